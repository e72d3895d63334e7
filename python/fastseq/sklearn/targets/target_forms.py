"""Forms of targets: per sequence or per step, one or several."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import check_consistent_length

from ..._util.warn_user import warn_user
from ...data.user_arrays import refuse_foreign, refuse_null
from ..inputs.input_checks import Array, Inputs, Items, numbers
from ..inputs.input_forms import check_order

__all__ = ["TargetForm", "Targets", "read_targets", "refuse_missing", "warn_if_misread"]


@dataclasses.dataclass(frozen=True)
class TargetForm:
    """The form of targets, and so of predictions.

    Parameters
    ----------
    per_step
        Whether there is a target for every step, rather than one for a whole sequence.
    count
        K, the number of targets.
    squeezed
        Whether they came without the axis of K.
    """

    per_step: bool
    count: int
    squeezed: bool

    def restored(self, rows: Items) -> Items:
        """Return ``(N, K)``, ``(N, T, K)`` or a list of ``(T_i, K)`` in the form of the targets."""
        if not self.squeezed:
            return rows
        return [a[:, 0] for a in rows] if isinstance(rows, list) else rows[..., 0]


@dataclasses.dataclass(frozen=True)
class Targets:
    """Targets of samples.

    Parameters
    ----------
    y
        ``(N, K)``, per step ``(N, T, K)`` or a list of ``(T_i, K)``.
    form
        Which of these.
    order
        All that a target may be, in their order; None: unknown.
    column
        Whether they came as ``(N, 1)``, but are taken as ``(N,)``.
    """

    y: Items
    form: TargetForm
    order: tuple[Any, ...] | None = None
    column: bool = False

    @property
    def rows(self) -> Array:
        """All targets, one after the other, ``(M, K)``."""
        if isinstance(self.y, list):
            return np.concatenate(self.y)
        return self.y.reshape(-1, self.form.count)

    def raveled(self) -> Targets:
        """Return ``(N, 1)`` as ``(N,)``, all others unchanged."""
        form = self.form
        if form.per_step or form.squeezed or form.count > 1:
            return self
        return dataclasses.replace(self, form=dataclasses.replace(form, squeezed=True), column=True)

    def like(self, rows: Array) -> Items:
        """Return values ``(M, …)``, one for each of the targets' rows, in the targets' layout."""
        if isinstance(self.y, list):
            return np.split(rows, np.cumsum([len(a) for a in self.y])[:-1])
        shaped: Array = rows.reshape(*self.y.shape[:-1], *rows.shape[1:])
        return shaped


def read_targets(
    y: Any, inputs: Inputs, per_step: bool | None, *, numeric: bool, nan: str = "raise"
) -> Targets:
    """Check targets.

    Parameters
    ----------
    y
        ``(N,)`` or ``(N, K)``, per step ``(N, T)``, ``(N, T, K)``, or a list of ``(T_i,)`` or
        ``(T_i, K)``.
    inputs
        The inputs they belong to.
    per_step
        Whether ``(N, T)`` is one target per step; None: it is.
    numeric
        Whether they must be numbers; they stay in single or double precision.
    nan
        ``"mask"``: numbers may be NaN.

    Raises
    ------
    ValueError, TypeError
        They are none of these; messages are scikit-learn's.
    """
    if y is None:
        raise ValueError("this estimator requires y to be passed, but the target y is None")
    refuse_null(y, "y")
    if hasattr(y, "toarray"):
        raise TypeError("y is a sparse matrix, but targets must be dense: pass y.toarray()")
    refuse_foreign(y, "y")
    check_order(y, "y", inputs.names, panel=inputs.listed)
    listed = isinstance(y, (list, tuple)) and all(getattr(a, "ndim", 0) for a in y)
    if listed and inputs.listed and per_step is not False:
        return _read_list(y, inputs, numeric=numeric, finite=nan == "raise")
    if not numeric:
        refuse_missing(y)
        _refuse_mixed_list(y)
        y = _plain(y)
    try:
        y = check_array(
            y, ensure_2d=False, allow_nd=True, input_name="y", dtype="numeric" if numeric else None,
            ensure_all_finite=nan == "raise" or not numeric,
        )  # fmt: skip
    except ValueError:
        if numeric:
            _refuse_text(y)
        raise
    _check_count(y, inputs)
    y = numbers(y, "y") if numeric else y
    steps = y.ndim > 1 and not inputs.ragged and y.shape[1] == inputs.steps
    if y.ndim == 3 or (y.ndim == 2 and per_step is not False and steps and inputs.steps > 1):
        if per_step is False or not steps:
            raise ValueError(
                f"y of shape {y.shape} must have as many steps as X, {inputs.steps}, to be one "
                "target per step; with one per sequence it is (N,) or (N, K)"
            )
        return Targets(y.reshape(*y.shape[:2], -1), TargetForm(True, *_form(y, 2)))
    if per_step or y.ndim not in (1, 2):
        raise ValueError(
            f"y must be (N,) or (N, K), or per step (N, T) or (N, T, K), got {y.shape}"
        )
    return Targets(y.reshape(len(y), -1), TargetForm(False, *_form(y, 1)))


def _refuse_text(y: Any) -> None:
    """Raise if targets that are no numbers are text."""
    text = next((one for one in np.asarray(y, object).flat if isinstance(one, str)), None)
    if text is not None:
        raise ValueError(
            f"y must hold numbers, got the text {str(text)!r}: convert it, or use "
            "SequenceClassifier if these are classes"
        ) from None


def _check_count(y: Array, inputs: Inputs) -> None:
    """Raise unless there are targets of each sequence."""
    if len(y) == inputs.steps != inputs.count and not inputs.ragged:
        raise ValueError(
            f"X has {inputs.count} sequences of {inputs.steps} steps, but y has {len(y)} rows: X "
            "must be (N, T, F); if it is (T, N, F), pass X.transpose(1, 0, 2)"
        )
    check_consistent_length(inputs.lengths, y)


def warn_if_misread(targets: Targets, inputs: Inputs, per_step: bool | None) -> None:
    """Warn of targets per sequence that seem to be some per step, a step short or too long."""
    steps, count = inputs.steps, targets.form.count
    off = not inputs.ragged and steps > 3 and abs(count - steps) == 1
    if off and not targets.form.per_step and per_step is None:
        warn_user(
            f"y is read as {count} targets of each sequence, which has {steps} steps: for one "
            f"target per step, y must be (N, {steps}); if {count} per sequence are meant, pass "
            "per_step=False"
        )


def _read_list(y: Any, inputs: Inputs, *, numeric: bool, finite: bool) -> Targets:
    """Read one array per sequence."""
    check_consistent_length(inputs.lengths, y)
    items = [np.asarray(a) for a in y]
    if not numeric:
        for i, item in enumerate(items):
            refuse_missing(item, f"y[{i}]")
    wrong = next((i for i, a in enumerate(items) if len(a) != inputs.lengths[i]), None)
    if wrong is not None:
        raise ValueError(
            f"y[{wrong}] has {len(items[wrong])} steps, but X[{wrong}] has "
            f"{inputs.lengths[wrong]}; with one target per sequence pass an array (N,) or (N, K)"
        )
    whole = check_array(
        np.concatenate(items), ensure_2d=False, input_name="y",
        dtype="numeric" if numeric else None, ensure_all_finite=finite or not numeric,
    )  # fmt: skip
    whole = numbers(whole, "y") if numeric else whole
    form = TargetForm(True, *_form(whole, 1))
    rows = whole.reshape(len(whole), -1)
    if inputs.ragged:
        return Targets(np.split(rows, np.cumsum(inputs.lengths)[:-1]), form)
    return Targets(rows.reshape(inputs.count, inputs.steps, -1), form)


def refuse_missing(y: object, name: str = "y") -> None:
    """Raise if a label is None, NaN or pandas' NA, which cannot be sorted, or bytes."""
    try:
        labels = np.asarray(y)
    except ValueError as error:
        raise ValueError(f"{name} must be labels, got sequences of unequal lengths") from error
    if labels.size and isinstance(labels.flat[0], bytes):
        raise TypeError(
            f"{name} has labels of bytes, such as {bytes(labels.flat[0])!r}: decode them, those of "
            f'an HDF5 dataset by f["{name}"].asstr()[:]'
        )
    if labels.dtype != object:
        return
    for place, label in np.ndenumerate(labels):
        try:
            missing = label is None or bool(label != label)
        except (TypeError, ValueError):  # NA is neither equal nor unequal
            missing = not hasattr(label, "__len__")
        if missing:
            raise ValueError(
                f"{name} has no label at {', '.join(map(str, place))}, but {label!r}: leave such "
                "samples out, or give them any label and the weight 0"
            )


def _refuse_mixed_list(y: object) -> None:
    """Raise for a list of text and of others, of which NumPy would make text."""
    if isinstance(y, (list, tuple)) and 0 < sum(isinstance(one, str) for one in y) < len(y):
        raise TypeError("y mixes text labels with others: make all of them text, or all numbers")


def _plain(y: Any) -> Any:
    """Return integers and booleans of a data frame library in NumPy's dtype, not as floats."""
    dtype = getattr(getattr(y, "dtype", None), "numpy_dtype", None)
    exact = isinstance(dtype, np.dtype) and dtype.kind in "biu" and hasattr(y, "to_numpy")
    return y.to_numpy(dtype) if exact else y


def _form(y: Array, leading: int) -> tuple[int, bool]:
    """Return the number of targets, and whether there is no axis for them."""
    return (1, True) if y.ndim == leading else (y.shape[leading], False)
