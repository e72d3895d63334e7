"""Labels of columns: whether they are in the order of `fit`, and in that of time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sklearn.base import BaseEstimator

from ..._util.warn_user import warn_user
from .category_columns import is_frame

__all__ = ["check_labels", "warn_if_unsorted"]

_NUMBERED = re.compile(r"(.*?)(\d+)", re.ASCII | re.DOTALL)
_SHOWN = 5

Labels = tuple[int | float | str, ...]


def check_labels(estimator: BaseEstimator, X: Any, *, reset: bool) -> None:  # noqa: N803
    """Set or compare the labels of columns that are not text, in a data frame or a list of them.

    They may be others than in `fit`, such as later times, but not the same in another order.

    Parameters
    ----------
    estimator
        The estimator, which keeps the labels.
    X
        Its input, of any form.
    reset
        Whether `X` sets the labels.

    Raises
    ------
    ValueError
        The order is another.
    """
    listed = isinstance(X, (list, tuple))
    frames = ((i, one) for i, one in enumerate(X if listed else [X]) if is_frame(one))
    if reset:
        _, first = next(frames, (0, None))
        estimator.column_labels_ = None if first is None else _labels(first)
    known = getattr(estimator, "column_labels_", None)  # older files have none
    if known is not None:
        for i, one in frames:
            _check(one, known, f"X[{i}]" if listed else "X")


def _check(frame: Any, known: Labels, name: str) -> None:
    found = _labels(frame)
    if found is None or found == known or set(found) != set(known):
        return
    raise ValueError(
        f"{name} has the columns of fit in another order, {_listed(found)} instead of "
        f"{_listed(known)}: pass them in the order of fit, or {name}.to_numpy() if only the labels "
        "are wrong"
    )


def _labels(frame: Any) -> Labels | None:
    """Return the columns' labels as numbers and text, which a file can hold.

    None: all are text, of which scikit-learn keeps track, or two are alike.
    """
    given = frame.columns.tolist()
    labels = tuple(one if isinstance(one, int | float) else str(one) for one in given)
    text = all(isinstance(one, str) for one in given)
    return None if text or len(set(labels)) < len(labels) else labels


def warn_if_unsorted(columns: Sequence[Any]) -> None:
    """Warn if columns that are read as steps are numbered, but not in order.

    Numbers may rise or fall, and may begin in the middle, as months of a year do.
    """
    names = [str(one) for one in columns if isinstance(one, str | int)]
    parts = [found for one in names if (found := _NUMBERED.fullmatch(one)) is not None]
    stems, numbers = {found[1] for found in parts}, [int(found[2]) for found in parts]
    if len(parts) < len(columns) or len(stems) > 1 or len(set(numbers)) < len(numbers):
        return
    stem = next(iter(stems), "")
    decimal = re.search(r"\d[.,]$", stem) is not None  # t0.25 and t0.5
    if decimal or min(_turns(numbers), _turns(numbers[::-1])) <= 1:
        return
    key = f"int(name[{len(stem)}:])" if stem else "int(name)"
    warn_user(
        f"the columns of X are read as steps, in the order {_listed(names)}, which is not that of "
        f"their numbers: if time is, pass X[sorted(X.columns, key=lambda name: {key})]"
    )


def _turns(numbers: list[int]) -> int:
    """Return how often numbers fall, going around: once if they rise from some place on."""
    return sum(a > b for a, b in zip(numbers, numbers[1:] + numbers[:1], strict=True))


def _listed(labels: Sequence[Any]) -> str:
    more = ", …" if len(labels) > _SHOWN else ""
    return ", ".join(str(one) for one in labels[:_SHOWN]) + more
