"""What the files of classifiers and regressors hold besides what those of all wrappers do."""

from __future__ import annotations

from typing import Any

import torch

from ...checkpoint.estimator_files import no_loss
from ...estimator import Estimator
from ...nn import Chain
from ...training.spec import Spec
from ..named_modules import make_module
from ..supervised import SequencePredictor
from .wrapper_files import WrapperFiles

__all__ = ["PredictorFiles"]


class PredictorFiles(SequencePredictor, WrapperFiles):
    """A classifier or regressor that can be saved."""

    _FITTED = (
        "n_features_in_", "feature_names_in_", "rows_", "image_shape_", "n_iter_", "continued_",
        "module_", "classes_", "_kind", "_seed", "_form", "_form_of_targets", "_columns", "_sizes",
        "column_labels_",
    )  # fmt: skip

    def _fitted_parts(self) -> dict[str, Any]:
        fitted = super()._fitted_parts()
        if not isinstance(self.module_, str):
            fitted["module_"] = None  # `load` gets it
        return fitted

    def _made_again(self) -> Estimator:
        if self.module_ is None:
            self.module_ = self.module
        n_in, n_out, sizes = self._sizes
        model = make_module(self.module_, n_in, n_out, sizes, seed=self._seed)
        head = getattr(self, "_kind", None) and self._kind.head
        if head is not None:
            model = Chain(model, head)
        dtype: torch.dtype = self._form[2]
        spec = Spec(epochs=1, batchsize=1, seqsize=1)  # until that of the file is set
        return self._estimator(model.to(dtype), no_loss, self.module_, spec, self._seed)
