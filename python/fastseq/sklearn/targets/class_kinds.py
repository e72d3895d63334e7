"""Kinds of the classifier's targets: classes, and labels of which each is there or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor, nn

from ..._util.spelling import meant
from ..._util.warn_user import warn_user
from ..inputs.input_checks import Array, Items
from ..losses_and_optimizers import loss_over_chunks
from .class_losses import WeightedLabels, class_loss
from .target_forms import Targets, refuse_missing

__all__ = [
    "ClassKind", "Classes", "Labels", "check_label_classes", "classes_of", "read_classes", "shown",
    "warn_if_one_hot", "warn_if_raveled", "weighted",
]  # fmt: skip


class ClassKind(Protocol):
    """How targets become numbers, and outputs become classes and probabilities.

    Attributes
    ----------
    classes
        What becomes ``classes_``.
    known
        The classes of each target, as `read` takes them; None: there is no choice.
    head
        A layer to put after the module; None: none.
    n_out
        Number of outputs the module needs.
    scores
        How many of the outputs are scores of each target's classes, see `fastseq.nn.Averaged`;
        None: they are no scores.
    form
        What must be the same in the next call, if it is to continue.
    arguments
        What its constructor needs to make it again.
    """

    classes: Any
    known: list[Array] | None
    head: nn.Module | None
    n_out: int
    scores: list[int] | None
    form: object
    arguments: tuple[Any, ...]

    def numbers(self, rows: Array) -> Array:
        """Return targets ``(M, K)`` as the loss needs them."""
        ...

    def loss(self, given: object) -> Callable[..., Tensor]:
        """Return the loss over chunks that the hyperparameter means."""
        ...

    def labels(self, outputs: Array) -> Array:
        """Return predicted targets ``(…, K)``."""
        ...

    def probabilities(self, outputs: Array) -> list[Array]:
        """Return probabilities ``(…, C)`` for each target."""
        ...

    def decisions(self, outputs: Array) -> Array:
        """Return scores of a single target: ``(…,)`` of two classes, else ``(…, C)``."""
        ...


class Classes:
    """One target that is one of several classes, or several such targets.

    Parameters
    ----------
    classes
        The classes of each target, sorted.

    Examples
    --------
    >>> kind = Classes([np.array(["a", "b", "c"])])
    >>> kind.labels(np.array([[0.0, 3.0, 1.0]])), kind.numbers(np.array([["c"]]))
    (array([['b']], dtype='<U1'), array([[2]]))
    """

    head: nn.Module | None = None

    def __init__(self, classes: list[Array]) -> None:
        self.known: list[Array] | None = classes
        self._each = classes
        self.classes: Any = classes[0] if len(classes) == 1 else classes
        self.scores: list[int] | None = [len(one) for one in classes]
        self.n_out: int = sum(self.scores)
        self.form: object = tuple(
            tuple((one.astype(str) if one.dtype.kind in "mM" else one).tolist()) for one in classes
        )
        self.arguments: tuple[Any, ...] = (classes,)

    @classmethod
    def read(cls, targets: Targets, weights: Items | None, known: list[Array] | None) -> Classes:
        """Check targets, and find their classes, unless they are known.

        Raises
        ------
        ValueError, TypeError
            As `classes_of`; or there are more or fewer targets than known.
        """
        if known is None:
            return cls(classes_of(targets, weights))
        if len(known) != targets.form.count:
            raise ValueError(
                f"y must have {len(known)} targets, as classes has, got {targets.form.count}"
            )
        return cls(known)

    def numbers(self, rows: Array) -> Array:
        """Return each label's index among its target's classes."""
        pairs = zip(_columns(rows), self._each, strict=True)
        return np.stack([_number(column, classes) for column, classes in pairs], 1)

    def loss(self, given: object) -> Callable[..., Tensor]:
        """Return the loss over chunks."""
        return class_loss(given, self._each)

    def labels(self, outputs: Array) -> Array:
        """Return the classes with the largest scores."""
        found = [
            classes[part.argmax(-1)]
            for classes, part in zip(self._each, self._parts(outputs), strict=True)
        ]
        if len({labels.dtype.kind for labels in found}) > 1:
            found = [labels.astype(object) for labels in found]
        return np.stack(found, -1)

    def probabilities(self, outputs: Array) -> list[Array]:
        """Return the softmax of each target's scores."""
        return [torch.from_numpy(part).softmax(-1).numpy() for part in self._parts(outputs)]

    def decisions(self, outputs: Array) -> Array:
        """Return the scores of a single target, of two classes their difference."""
        (scores,) = self._parts(outputs)
        return scores[..., 1] - scores[..., 0] if scores.shape[-1] == 2 else scores

    def _parts(self, outputs: Array) -> list[Array]:
        """Return the outputs for each target."""
        if outputs.shape[-1] != self.n_out:
            raise ValueError(
                f"the module has {outputs.shape[-1]} outputs, but it must have one for each class, "
                f"{self.n_out}"
            )
        ends = np.cumsum([len(classes) for classes in self._each])
        return np.split(outputs, ends[:-1], axis=-1)


class Labels:
    """Several labels, each of which is there or not: multi-label classification.

    Parameters
    ----------
    count
        L, the number of labels.
    dtype
        The labels' dtype.
    weights
        Weights of each label's 0 and 1, ``(2, L)``; None: all 1.

    Examples
    --------
    >>> kind = Labels(2, np.dtype(bool))
    >>> kind.labels(np.array([[0.5, -3.0]])), kind.probabilities(np.array([[0.0, 0.0]]))
    (array([[ True, False]]), [array([[0.5, 0.5]])])
    """

    head: nn.Module | None = None
    known: list[Array] | None = None

    def __init__(self, count: int, dtype: np.dtype[Any], weights: Array | None = None) -> None:
        # Scikit-learn's scorers mistake the numbers of two labels, as of its MLPClassifier, for two
        # classes; cross_val_predict needs an array.
        self.classes: Any = np.tile(np.array([0, 1]).astype(dtype), (count, 1))
        self.n_out = count
        self.scores: list[int] | None = [1] * count
        self._dtype = dtype
        self._weights = weights
        self.form: object = None if weights is None else tuple(weights.ravel().tolist())
        self.arguments: tuple[Any, ...] = (count, dtype, weights)

    @classmethod
    def read(cls, targets: Targets, class_weight: object) -> Labels:
        """Check labels, and find their weights.

        Raises
        ------
        ValueError, TypeError
            There is only one label, or one that is neither 0 nor 1; or the weights are invalid.
        """
        form = targets.form
        if form.squeezed:
            raise ValueError(
                "loss='binary_cross_entropy' needs labels (N, L), 0 or 1 for each of L labels, or "
                f"per step (N, T, L), but y has one per {'step' if form.per_step else 'sequence'}: "
                + ("if its columns are labels, not steps, pass per_step=False; if it has one label "
                   "per step, " if form.per_step else "")
                + "pass loss='cross_entropy'"
            )  # fmt: skip
        rows = _zeros_and_ones(targets.rows)
        if class_weight is None:
            return cls(form.count, rows.dtype)
        return cls(form.count, rows.dtype, _label_weights(rows, class_weight))

    def numbers(self, rows: Array) -> Array:
        """Return the labels as integers."""
        return _zeros_and_ones(rows).astype(np.int64)

    def loss(self, given: object) -> Callable[..., Tensor]:
        """Return the loss over chunks."""
        del given  # the name by which this kind was chosen
        weights = self._weights
        fn = F.binary_cross_entropy_with_logits if weights is None else WeightedLabels(weights)
        return loss_over_chunks(fn, {})

    def labels(self, outputs: Array) -> Array:
        """Return 1 where a label is more probable than not, else 0."""
        return (outputs > 0).astype(self._dtype)

    def probabilities(self, outputs: Array) -> list[Array]:
        """Return the probability of each label's 1."""
        return [torch.from_numpy(outputs).sigmoid().numpy()]

    def decisions(self, outputs: Array) -> Array:
        """Return the outputs, which are logits."""
        return outputs


def classes_of(targets: Targets, weights: Items | None) -> list[Array]:
    """Return the classes of each target, sorted.

    Raises
    ------
    ValueError, TypeError
        There is only one, or they cannot be sorted, or are no classes.
    """
    columns = _columns(targets.rows)
    for column in columns:
        _refuse_mixed(column)
        check_classification_targets(column)
    _check_classes(columns, targets, weights)
    return [np.unique(column) for column in columns]


def read_classes(classes: Any) -> list[Array]:
    """Return the classes of each target that a user lists, sorted.

    Raises
    ------
    ValueError
        One is missing, or there are none.
    """
    refuse_missing(np.asarray(classes, object), "classes")
    if not np.size(np.asarray(classes, object)):
        raise ValueError("classes must hold all labels that may occur, got none")
    several = isinstance(classes, (list, tuple)) and np.ndim(classes[0]) > 0
    return [np.unique(one) for one in (classes if several else [classes])]


def warn_if_one_hot(targets: Targets) -> None:
    """Warn of several targets per sequence of which exactly one is 1, and the others are 0."""
    rows = targets.rows
    if targets.form.per_step or rows.shape[1] < 2 or rows.dtype.kind not in "biuf":
        return
    ones = rows == 1
    if (ones | (rows == 0)).all() and (ones.sum(axis=1) == 1).all():
        warn_user(
            f"y is read as {rows.shape[1]} targets of each sequence, but each row has exactly one "
            "1: if these are one-hot rows of one class each, pass y.argmax(1)"
        )


def warn_if_raveled(targets: Targets) -> None:
    """Warn of labels that came as ``(N, 1)``, but are taken as ``(N,)``, as scikit-learn does."""
    if targets.column:
        warn_user(
            f"y has the shape ({len(targets.rows)}, 1) and is read as ({len(targets.rows)},), as "
            "predict returns it: pass y.ravel(), or of a data frame y.iloc[:, 0]",
            DataConversionWarning,
        )


def check_label_classes(classes: Any) -> None:
    """Check the classes of labels that a user lists: there is no choice."""
    if any(one.tolist() != [0, 1] for one in read_classes(classes)):
        raise ValueError(
            f"classes must be [0, 1], as each of several labels is 0 or 1, got {classes!r}: leave "
            "it out"
        )


def weighted(
    targets: Targets, weights: Items | None, class_weight: Any, known: list[Array]
) -> Items:
    """Return weights of samples or steps, multiplied by their classes' weights.

    Raises
    ------
    ValueError
        `class_weight` is neither "balanced" nor weights of the `known` classes.
    """
    columns = _columns(targets.rows)
    if isinstance(class_weight, str) and class_weight == "balanced":
        each = compute_sample_weight("balanced", columns[0] if len(columns) == 1 else targets.rows)
    else:
        several = class_weight if isinstance(class_weight, (list, tuple)) else [class_weight]
        if len(several) != len(columns) or not all(isinstance(one, dict) for one in several):
            raise ValueError(
                "class_weight must be 'balanced' or weights {class: weight}, of several targets a "
                f"list of such, got {class_weight!r}{_meant(class_weight)}"
            )
        _check_weights(several)
        each = np.ones(len(columns[0]))
        for given, ordered, column in zip(several, known, columns, strict=True):
            classes = np.sort(ordered)  # all, of which parts of the data may lack some
            found = compute_class_weight(given, classes=classes, y=column)
            each *= found[_number(column, classes)]
    found = targets.like(each)
    if weights is None:
        return found
    if isinstance(found, list):
        return [a * b for a, b in zip(found, weights, strict=True)]
    whole = np.asarray(weights)
    if found.ndim > whole.ndim:  # a sequence's weight applies to each of its steps
        whole = whole[:, None]
    product: Array = found * whole
    return product


def _meant(class_weight: object) -> str:
    return meant(class_weight, ["balanced"]) if isinstance(class_weight, str) else ""


def _check_weights(several: Sequence[dict[Any, Any]]) -> None:
    values = [weight for one in several for weight in one.values()]
    if not all(isinstance(value, Real) and 0 <= float(value) < np.inf for value in values):
        raise ValueError(f"class_weight must hold numbers that are not negative, got {values}")


def shown(labels: Array) -> str:
    """Return labels as messages show them."""
    text = ", ".join(map(repr, labels[:8].tolist()))
    return f"[{text}, …]" if len(labels) > 8 else f"[{text}]"


def _columns(rows: Array) -> list[Array]:
    return [_typed(column) for column in rows.T] if rows.shape[1] > 1 else [rows[:, 0]]


def _typed(column: Array) -> Array:
    """Return labels of one type in its dtype, if an array of several columns made them objects."""
    alike = column.dtype == object and len({type(label) for label in column}) == 1
    return np.array(column.tolist()) if alike else column


def _refuse_mixed(column: Array) -> None:
    """Raise if labels cannot be sorted."""
    kinds = {isinstance(label, str) for label in column} if column.dtype == object else set()
    if len(kinds) > 1:
        raise TypeError("y mixes text labels with others: make all of them text, or all numbers")


def _check_classes(columns: list[Array], targets: Targets, weights: Items | None) -> None:
    """Raise if there is only one class."""
    counts = np.ones(len(columns[0]), bool)
    if weights is not None and not targets.form.per_step:
        counts = np.asarray(weights) > 0
    found = [np.unique(column[counts]) for column in columns]
    if all(len(classes) < 2 for classes in found):
        raise ValueError(
            f"y has one class only, {found[0][:1].tolist()}: a classifier needs at least two; for "
            "partial_fit, pass all that may occur as classes"
        )


def _number(column: Array, classes: Array) -> Array:
    """Return each label's index among the classes."""
    numbers = np.searchsorted(classes, column).clip(max=len(classes) - 1)
    unknown = np.unique(column[classes[numbers] != column])
    if len(unknown):
        raise ValueError(
            f"y has labels that are not among the classes {shown(classes)}: {shown(unknown)}"
        )
    return numbers


def _zeros_and_ones(rows: Array) -> Array:
    """Check labels ``(M, L)``; return them in a dtype of numbers."""
    found = np.array(rows.tolist()) if rows.dtype == object else rows
    wrong = found if found.dtype.kind not in "biuf" else found[(found != 0) & (found != 1)]
    if wrong.size:
        raise ValueError(
            "loss='binary_cross_entropy' needs labels that are 0 or 1 (or False and True), got "
            f"{shown(np.unique(wrong))}; for targets with other classes pass loss='cross_entropy'"
        )
    return found


def _label_weights(rows: Array, class_weight: Any) -> Array:
    """Return weights of each label's 0 and 1, ``(2, L)``."""
    given = class_weight
    if isinstance(given, str) and given == "balanced":
        found = np.ones((2, rows.shape[1]))
        for label, column in enumerate(rows.T):
            present = np.unique(column)
            if len(present) == 2:  # else there is nothing to balance
                found[:, label] = compute_class_weight("balanced", classes=present, y=column)
        return found
    each = [given] * rows.shape[1] if isinstance(given, dict) else given
    if (
        not isinstance(each, (list, tuple))
        or len(each) != rows.shape[1]
        or not all(isinstance(one, dict) and set(one) <= {0, 1} for one in each)
    ):
        raise ValueError(
            "class_weight of labels must be 'balanced', weights {0: …, 1: …} for all labels, or a "
            f"list of such for each of the {rows.shape[1]} labels, got {given!r}{_meant(given)}"
        )
    _check_weights(each)
    return np.array([[one.get(value, 1) for one in each] for value in (0, 1)], float)
