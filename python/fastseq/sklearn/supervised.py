"""Base of regressor and classifier: makes a `Task` from their input, and converts outputs back."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ..checkpoint.estimator_files import no_loss
from ..data.samples_first import SamplesFirst
from ..estimator import Estimator
from ..nn.token_ids import number_of_ids
from ..training.argument_checks import input_dtype
from ..training.learning_rate_finder import LearningRateTest
from .automatic_training import automatic_module, automatic_scaling
from .base import SequenceEstimator, Start, Task
from .batched_outputs import predicted
from .early_stopping import FRACTION, stops_early, warn_if_tiny
from .fitted_form import FittedForm, TableForm
from .inputs.category_columns import CategoryColumns
from .inputs.fitted_columns import FittedColumns, counted
from .inputs.input_checks import (
    Array,
    Inputs,
    Items,
    as_tensor,
    read_inputs,
    read_weights,
    refuse_rounded,
    take,
)
from .inputs.static_features import StaticFeatures, read_static
from .named_modules import Sizes, wants_whole
from .sample_module import SampleModule
from .targets.target_forms import TargetForm, Targets, warn_if_misread

__all__ = ["Problem", "SequencePredictor"]

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
# what checks of inputs set
_OF_INPUTS = (
    "n_features_in_", "feature_names_in_", "rows_", "image_shape_", "column_labels_",
)  # fmt: skip
_LONGEST = 100  # time steps per chunk, if every step has a target


@dataclasses.dataclass(frozen=True)
class Problem:
    """Targets, and how to learn them.

    Parameters
    ----------
    y
        Targets as the loss needs them, in the layout of `Targets`.
    n_out
        Number of outputs the module needs.
    loss
        Loss over chunks.
    form
        What must be the same in the next call, if it is to continue.
    weights
        Weights of samples, or of their steps; None: all 1.
    strata
        Classes of samples, all of which validation should see; None: there are none.
    scale_y
        How to scale targets.
    fitted
        Attributes to set after training.
    head
        A layer to put after the module; None: none.
    scores
        How many outputs are scores of each target's classes; None: they are no scores.
    labels
        The classes of a single target, by number; None: there are none.
    """

    y: Items
    n_out: int
    loss: Callable[..., Tensor]
    form: object
    weights: Items | None
    strata: Array | None = None
    scale_y: str | None = None
    fitted: dict[str, object] = dataclasses.field(default_factory=dict)
    head: nn.Module | None = None
    scores: list[int] | None = None
    labels: Array | None = None


class SequencePredictor(SequenceEstimator):
    """Base of the estimators whose samples are sequences."""

    loss: str | Callable[..., Tensor] | type[nn.Module]
    per_step: bool | None
    bidirectional: bool
    pool: str | None
    schedule: str | None
    nan: str
    early_stopping: bool | str
    validation_fraction: float | None
    channels_first: bool
    module_: str | nn.Module | Callable[..., nn.Module]
    rows_: str | None
    _form_of_targets: TargetForm
    _columns: FittedColumns
    _sizes: tuple[int, int, Sizes]  # inputs and outputs of the module, and others

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = self.nan == "mask"
        tags.target_tags.multi_output = True
        return tags

    @abstractmethod
    def _read_y(self, y: object, inputs: Inputs) -> Targets:
        """Check targets."""

    @abstractmethod
    def _problem(
        self, targets: Targets, weights: Items | None, known: list[Array] | None
    ) -> Problem:
        """Return the problem; `known` are classes from earlier calls."""

    def _learn(
        self,
        X: object,  # noqa: N803
        y: object,
        sample_weight: object,
        static: object,
        *,
        partial: bool = False,
        known: list[Array] | None = None,
    ) -> None:
        """Train on samples."""
        self._check_types()
        own = self.__dict__
        before = {name: own[name] for name in _OF_INPUTS if name in own}
        try:
            task, start, fitted = self._prepared(
                X, y, sample_weight, static, partial=partial, known=known
            )
            self._train(task, start)
            if start.why is not None:
                self._sizes = task.n_in, task.n_out, self._sizes_of(task)
        except BaseException:  # what was fitted before stays as it was
            for name in _OF_INPUTS:
                own.pop(name, None)
            own.update(before)
            raise
        for name, value in fitted.items():
            setattr(self, name, value)

    def _prepared(
        self,
        X: object,  # noqa: N803
        y: object,
        sample_weight: object,
        static: object,
        *,
        partial: bool = False,
        known: list[Array] | None = None,
    ) -> tuple[Task, Start, dict[str, object]]:
        """Return what is to be learnt from samples, and attributes to set after training."""
        if self.loss is no_loss:
            raise ValueError("fit needs a loss, which files do not hold: pass loss= to load")
        if partial and hasattr(self, "estimator_"):
            inputs, beside = self._read(X, static)
            inputs = dataclasses.replace(inputs, dtype=input_dtype(self.estimator_.model))
        else:
            inputs, beside = read_inputs(self, X, reset=True), None
            if static is not None:
                beside = read_static(static, inputs, None, rows=self.rows_, nan=self.nan)
        targets = self._read_y(y, inputs)
        form = targets.form
        if inputs.image is not None and form.per_step:
            raise ValueError("y must have one target per image, (N,) or (N, K)")
        warn_if_misread(targets, inputs, self.per_step)
        weights = read_weights(sample_weight, inputs, per_step=form.per_step)
        problem = self._problem(targets, weights, known)
        module, scale_x = self._chosen(inputs, form, partial=partial)
        if scale_x is None:
            refuse_rounded(inputs)
        if wants_whole(module) and not form.per_step:
            inputs = inputs.whole()
        steps = min(inputs.steps, _LONGEST) if form.per_step else inputs.steps
        start = self._begin(
            (
                problem.form,
                inputs.features,
                inputs.dtype,
                module if isinstance(module, str) else None,
                scale_x,
                inputs.image,
                None if inputs.columns is None else inputs.columns.form,
                None if beside is None else beside.form,
            ),
            partial=partial,
        )
        best = stops_early(self.early_stopping, inputs.count) and not partial
        training, apart = self._split(inputs, problem, start.seed, best=best)
        columns = self._columns if start.why is None else FittedColumns.measure(
            inputs, beside, counted(inputs.count, training, problem.weights)
        )  # fmt: skip
        sizes, inputs = columns.sizes(inputs), columns.joined(inputs, beside)
        x, y, w = _parts(inputs, problem, training)
        task = Task(
            x, y, w,
            n_in=inputs.features,
            n_out=problem.n_out,
            dtype=inputs.dtype,
            loss=problem.loss,
            steps=steps,
            validation=None if apart is None else _parts(inputs, problem, apart),
            scale_y=problem.scale_y,
            module=module,
            scale_x=scale_x,
            head=problem.head, scores=problem.scores, labels=problem.labels,
            image=inputs.image,
            columns=sizes,
            best=best,
        )  # fmt: skip
        fitted = {"_form_of_targets": form, "_columns": columns, "module_": module}
        return task, start, {**problem.fitted, **fitted}

    def _update(self, est: Estimator, task: Task) -> None:
        super()._update(est, task)
        # Sequences may be of one length or not, unlike before.
        est.spec = dataclasses.replace(est.spec, shuffle=self.shuffle and isinstance(task.x, list))
        if est.loss is no_loss or (
            getattr(est.loss, "at_last_step", False) != self._at_last_step(task)
        ):  # loaded from a file, or of another form than before
            est.loss = self._loss_of(task, est.model)

    def _chosen(self, inputs: Inputs, form: TargetForm, *, partial: bool) -> tuple[Any, str | None]:
        """Return the module and the scaling of inputs, where "auto" has been replaced."""
        before = getattr(self, "module_", None) if partial or self.warm_start else None
        module = automatic_module(
            self.module, inputs.steps, per_step=form.per_step, cut=self.seqsize, before=before
        )
        return module, automatic_scaling(self.scale_x, self.module, module, nan=self.nan)

    def find_lr(
        self,
        X: object,  # noqa: N803
        y: object,
        sample_weight: object = None,
        *,
        static: object = None,
        least: float = 1e-6,
        most: float = 1.0,
        updates: int = 100,
    ) -> LearningRateTest:
        """Test learning rates on a new, untrained module; this estimator is not changed.

        Parameters
        ----------
        X, y, sample_weight, static
            As in `fit`.
        least, most, updates
            As in `Estimator.find_lr`.

        Returns
        -------
        LearningRateTest
            ``rates`` and ``losses`` of the updates; ``suggestion``, the rate at which the loss
            falls fastest, or None; and ``plot()``.

        Raises
        ------
        ValueError, TypeError
            Data or hyperparameters are invalid, as in `fit`; or the range or `updates` are.
        NonFiniteError
            The loss is NaN or infinite from the start; or X is a dataset in a file, and holds a
            missing value.

        Examples
        --------
        >>> from fastseq.sklearn import SequenceRegressor
        >>> X = np.random.default_rng(0).standard_normal((60, 5, 1))
        >>> model = SequenceRegressor("linear", epochs=5, random_state=0)
        >>> found = model.find_lr(X, X.sum((1, 2)))
        >>> model = model.set_params(lr=found.suggestion).fit(X, X.sum((1, 2)))
        """
        new: SequencePredictor = clone(self)
        return new._find_lr(X, y, sample_weight, static, least=least, most=most, updates=updates)

    def _find_lr(
        self, X: object, y: object, sample_weight: object, static: object, **tried: Any  # noqa: N803
    ) -> LearningRateTest:  # fmt: skip
        """Test learning rates; sets what checks of the input set."""
        self._check_types()
        task, start, _ = self._prepared(X, y, sample_weight, static)
        est = self._make(task, start.seed)
        with self._arranged(est, task) as (x, ys, w, _, shuffler):
            shuffler.reorder(1)  # in the test no callback does
            return est.find_lr(x, ys, w, **tried)

    @property
    def form_(self) -> FittedForm:
        """The form of the samples and targets that `fit` got."""
        check_is_fitted(self)
        columns, static = self._columns.columns, self._columns.static
        names = getattr(self, "feature_names_in_", None)
        beside = None
        if static is not None:
            beside = TableForm(static.rows.shape[1], static.names, _categories(static.columns))
        return FittedForm(
            features=TableForm(
                int(self.n_features_in_),
                None if names is None or self.rows_ == "series" else tuple(names),
                _categories(columns),
            ),
            rows=self.rows_,
            image=self.image_shape_,
            channels_first=self.channels_first,
            missing=self.nan == "mask",
            ids=number_of_ids(self.estimator_.model),
            most=torch.finfo(input_dtype(self.estimator_.model)).max,
            static=beside,
            targets=self._form_of_targets.count,
            per_step=self._form_of_targets.per_step,
            labels=self._labelled,
        )

    @property
    def _labelled(self) -> bool:
        """Whether targets are labels, each of which is there or not."""
        return False

    def as_module(self) -> SampleModule:
        """Return a copy of the fitted module that takes samples as X has them: for other tools.

        It scales inputs, and undoes the scaling of a regressor's targets. It is in evaluation mode,
        can be differentiated (but for "rocket", of which it warns), and has the weights of now;
        further training does not change it.

        Returns
        -------
        SampleModule
            A `torch.nn.Module`: tensors in the layout of X, ``(N, T, F)``, ``(N, T)``, with
            `channels_first` ``(N, F, T)``, or images, to outputs ``(N, K)``, or per step
            ``(N, T, K)``; a classifier's are scores, without softmax.

        Raises
        ------
        NotFittedError
            There is no fitted module yet.
        ValueError
            It was fitted on categories or on static features.

        Examples
        --------
        >>> from fastseq.sklearn import SequenceClassifier
        >>> X, y = np.random.default_rng(0).standard_normal((60, 9, 3)), np.arange(60) % 2
        >>> model = SequenceClassifier("gru", epochs=2, random_state=0).fit(X, y)
        >>> scores = model.as_module()(torch.from_numpy(X))
        >>> np.allclose(scores.softmax(1).detach(), model.predict_proba(X))
        True
        """
        check_is_fitted(self)
        if not self._columns.plain:
            raise ValueError(
                "as_module is for arrays of numbers, but this module gets categories or static "
                "features, too: use estimator_.model"
            )
        per_step = self._form_of_targets.per_step
        whole = wants_whole(self.module_) and not per_step
        return SampleModule(
            self.estimator_, per_step=per_step, whole=whole,
            channels_first=self.channels_first, rows=self.rows_, image=self.image_shape_,
        )  # fmt: skip

    def _split(
        self, inputs: Inputs, problem: Problem, seed: int, *, best: bool
    ) -> tuple[Array | None, Array | None]:
        """Return which samples to train on, and which to hold out; None: all, and none.

        Samples without weight are not held out.
        """
        fraction = self.validation_fraction
        if fraction is None and best:
            fraction = FRACTION
        if fraction is not None and not (isinstance(fraction, Real) and 0 < fraction < 1):
            raise ValueError(f"validation_fraction must be above 0 and below 1, got {fraction!r}")
        if fraction is None:
            return None, None
        candidates, others = _with_weight(problem, inputs.count)
        strata = known = None if problem.strata is None else problem.strata[candidates]
        if strata is not None:
            sizes = np.unique(strata, return_counts=True)[1]
            smaller = min(fraction, 1 - fraction) * len(candidates)
            strata = None if len(sizes) > smaller or sizes.min() < 2 else strata
        found = train_test_split(
            candidates,
            test_size=fraction,
            shuffle=self.shuffle,
            stratify=strata if self.shuffle else None,
            random_state=seed if self.shuffle else None,
        )
        if len(others):
            found[0] = np.sort(np.concatenate([found[0], others]))
        if isinstance(inputs.x, SamplesFirst):
            found = list(map(np.sort, found))  # of files windows of consecutive samples are read
        training, apart = found
        if best and not isinstance(self.early_stopping, str):
            classes = None if problem.strata is None else problem.strata[apart]
            warn_if_tiny(len(apart), classes, known)
        return training, apart

    def _read(self, X: object, static: object) -> tuple[Inputs, StaticFeatures | None]:  # noqa: N803
        """Read inputs and static features in the form of those of `fit`."""
        known = self._columns.static
        inputs = read_inputs(self, X, reset=False, columns=self._columns.columns)
        if known is None and static is not None:
            raise ValueError("fit got no static, but static is given now: fit with it, too")
        if known is None:
            return inputs, None
        if static is None:
            raise ValueError(
                "fit got static features, so they are needed here, too: pass static=…, one row for "
                "each sequence"
            )
        return inputs, read_static(static, inputs, known, rows=self.rows_, nan=self.nan)

    def _outputs(self, X: object, static: object) -> Items:  # noqa: N803
        """Return the module's outputs, ``(N, K)``, ``(N, T, K)`` or a list of ``(T_i, K)``."""
        check_is_fitted(self)
        inputs, beside = self._read(X, static)
        est, form = self.estimator_, self._form_of_targets
        if est.scaling_ is None or est.scaling_.x is None:
            refuse_rounded(inputs)
        if wants_whole(self.module_) and not form.per_step:
            inputs = inputs.whole()
            expected = self._form[1]
            if inputs.features != expected:
                raise ValueError(
                    f"X has {inputs.features} values per sequence, but this module was fitted on "
                    f"{expected}: sequences must be as long as in fit"
                )
        inputs = self._columns.joined(inputs, beside)
        outputs = predicted(est, inputs, per_step=form.per_step)
        return list(outputs) if inputs.listed and form.per_step else outputs

    def _compared(
        self, X: object, y: object, sample_weight: object, static: object  # noqa: N803
    ) -> tuple[Array, Array, Array | None]:  # fmt: skip
        """Return targets and predictions, each concatenated to ``(M, K)``, and their weights."""
        predicted = self.predict(X, static=static)
        inputs, _ = self._read(X, static)
        targets = self._read_y(y, inputs)
        if targets.form.per_step != self._form_of_targets.per_step:
            raise ValueError("y must have targets per step, or per sequence, as in fit")
        weights: Any = read_weights(sample_weight, inputs, per_step=targets.form.per_step)
        if weights is not None and targets.form.per_step:
            if isinstance(weights, np.ndarray) and weights.ndim == 1:
                weights = np.repeat(weights, inputs.lengths)
            weights = np.concatenate([np.ravel(w) for w in weights])
        rows = np.concatenate(predicted) if isinstance(predicted, list) else predicted
        return targets.rows, rows.reshape(targets.rows.shape), weights


def _categories(columns: CategoryColumns | None) -> dict[int, tuple[Any, ...]]:
    if columns is None:
        return {}
    return {place: known.values for place, known in columns.vocabularies.items()}


def _with_weight(problem: Problem, count: int) -> tuple[Array, Array]:
    """Return the samples that have a weight, and the others; if none has, all."""
    every, weights = np.arange(count), problem.weights
    if weights is None or isinstance(weights, list) or weights.ndim > 1 or not weights.any():
        return every, every[:0]
    return every[weights > 0], every[weights == 0]


def _parts(inputs: Inputs, problem: Problem, index: Array | None) -> tuple[Any, Any, Any]:
    """Return inputs, targets and weights of some samples as a `Task` has them."""
    y, w = problem.y, problem.weights
    xs, ys = _part(inputs.x, index), _part(y, index)
    if w is None:
        return xs, ys, None
    if isinstance(w, list):
        return xs, ys, [one.to(inputs.dtype) for one in _part(w, index)]
    return xs, ys, _part(w.astype(_NUMPY[inputs.dtype], copy=False), index, leading=1)


def _part(items: Items | SamplesFirst, index: Array | None, leading: int = 2) -> Any:
    """Return some samples; arrays with one row of them each, `leading` axes, are copied."""
    if isinstance(items, SamplesFirst):
        return items if index is None else items.like(index=index)
    if isinstance(items, list):
        return [as_tensor(a) for a in (items if index is None else take(items, index))]
    if items.ndim > leading:
        return SamplesFirst(items, index)
    return as_tensor(np.ascontiguousarray(items if index is None else items[index]))
