"""A fitted module that takes samples in the layout of scikit-learn."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ..estimator import Estimator
from ..inference.scaled_model import ScaledModel
from ..training.argument_checks import input_dtype

__all__ = ["SampleModule"]


class SampleModule(nn.Module):
    """Samples ``(N, T, F)`` to outputs ``(N, K)``, or per step ``(N, T, K)``, both unscaled.

    Parameters
    ----------
    est
        The fitted estimator, whose model is copied.
    per_step
        Whether there is an output for each step.
    whole
        Whether the model takes a whole sequence as one step.
    """

    def __init__(self, est: Estimator, *, per_step: bool, whole: bool) -> None:
        super().__init__()
        model, scaling = copy.deepcopy(est.model), est.scaling_
        self._dtype = None if scaling is not None and scaling.x is not None else input_dtype(model)
        scalings = (None, None) if scaling is None else (scaling.x, scaling.y)
        self.scaled = ScaledModel(model, *scalings)
        self._per_step, self._whole = per_step, whole
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Run on samples of one length, without missing values."""
        if not isinstance(x, Tensor) or x.dim() != 3:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a tensor of samples (N, T, F), got {got}")
        x = x.flatten(1).unsqueeze(0) if self._whole else x.swapaxes(0, 1)
        y, _ = self.scaled(x if self._dtype is None else x.to(self._dtype))
        found: Tensor = y if y.dim() == 2 else y.swapaxes(0, 1) if self._per_step else y[-1]
        return found
