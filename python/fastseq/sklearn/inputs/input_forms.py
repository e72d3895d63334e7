"""Forms in which other libraries hold sequences: read where that is safe, refused with a hint."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "check_order",
    "is_panel",
    "refuse_forms",
    "sequences_of_panel",
    "time_first",
    "warn_if_swapped",
]

_MANY = 10  # features for each step: rarely meant


def refuse_forms(X: Any, *, channels_first: bool) -> None:  # noqa: N803
    """Raise for nested data frames, arrays of arrays, and long data frames.

    Raises
    ------
    TypeError
        It is one of these; the message says what to pass instead.
    """
    cells, name = _cells(X), type(X).__name__
    if cells is not None and cells.ndim == 1:
        raise TypeError(
            f"X is an array of {cells.size} arrays: for sequences of different lengths pass a list "
            f"of arrays {'(F, T_i)' if channels_first else '(T_i, F)'}, [np.asarray(a) for a in X]"
        )
    if cells is not None:
        rows = "X.to_numpy()" if hasattr(X, "iloc") else "X"
        stacked = "np.stack(row)" if channels_first else "np.stack(row, axis=1)"
        raise TypeError(
            f"X is a nested {name}, whose cells hold series: pass a list of arrays, "
            f"[{stacked} for row in {rows}]"
        )
    columns = [str(column) for column in getattr(X, "columns", ())]
    if {"unique_id", "ds"} <= set(columns):
        parts = '[one.drop(columns=["unique_id", "ds"]) for _, one in X.groupby("unique_id")]'
        if hasattr(X, "partition_by"):  # polars
            parts = '[one.drop("unique_id", "ds") for one in X.partition_by("unique_id")]'
        raise TypeError(
            "X is a long frame, with the columns 'unique_id' and 'ds': sort it by both, and pass a "
            f"list of frames (T_i, F) without them, {parts}, with y in the order of 'unique_id'"
        )
    listed = channels_first and isinstance(X, (list, tuple))
    if listed and any(hasattr(one, "columns") for one in X):
        raise TypeError(
            "channels_first=True is for arrays, but X is a list of data frames, whose rows are "
            "steps: pass channels_first=False"
        )


def _cells(X: Any) -> Any:  # noqa: N803
    """Return the cells of an array or frame if they hold arrays, Series or lists; else None."""
    framed = hasattr(X, "iloc")
    dtypes = np.ravel(X.dtypes) if framed else [getattr(X, "dtype", None)]
    if not any(getattr(dtype, "kind", None) == "O" for dtype in dtypes):
        return None
    cells = X.to_numpy() if framed else np.atleast_1d(np.asarray(X))
    several = (isinstance(a, (list, tuple)) or getattr(a, "ndim", 0) > 0 for a in cells[:1].flat)
    return cells if any(several) else None


def is_panel(X: Any, *, alone: bool = False) -> bool:  # noqa: N803
    """Whether `X` is a data frame of sequences: its index has two levels, sequence and time.

    Some sequence has several steps, unless `alone`.

    Examples
    --------
    >>> import pandas as pd
    >>> index = pd.MultiIndex.from_product([["a", "b"], [0, 1, 2]])
    >>> is_panel(pd.DataFrame({"x": range(6)}, index)), is_panel(pd.DataFrame({"x": range(6)}))
    (True, False)
    """
    index: Any = getattr(X, "index", None)
    if not hasattr(X, "columns") or getattr(index, "nlevels", 1) != 2:
        return False
    return alone or bool(index.get_level_values(0).has_duplicates)


def sequences_of_panel(X: Any) -> list[Any]:  # noqa: N803
    """Return the sequences ``(T_i, F)`` of a frame with the index (sequence, time), in its order.

    The first is a frame, with the columns' names; the others are arrays.

    Raises
    ------
    ValueError
        Rows of a sequence are not together, or not in order of time.

    Examples
    --------
    >>> import pandas as pd
    >>> index = pd.MultiIndex.from_tuples([("b", 0), ("b", 1), ("a", 0)])
    >>> [len(one) for one in sequences_of_panel(pd.DataFrame({"x": [1.0, 2.0, 3.0]}, index))]
    [2, 1]
    """
    one, time = (X.index.get_level_values(level).factorize(sort=True)[0] for level in (0, 1))
    ends = np.flatnonzero(np.diff(one)) + 1
    later = np.diff(time) > 0
    later[ends - 1] = True
    if min(one.min(), time.min()) < 0 or not later.all():
        raise ValueError(
            "X must have one row for each time of a sequence, in order, but its index (sequence, "
            "time) has others: sort X by its index, and y by the first level"
        )
    if len(ends) + 1 > len(np.unique(one)):
        place = next(i for i, at in enumerate(ends) if one[at] in one[: ends[i]])
        raise ValueError(
            f"X has rows of the sequence {X.index[ends[place]][0]} in several places: sort X by "
            "its index, and y by the first level"
        )
    return [X.iloc[: next(iter(ends), len(X))], *np.split(np.asarray(X), ends)[1:]]


def check_order(given: Any, name: str, samples: Any, *, panel: bool) -> None:
    """Raise if the index of a Series or frame names the samples of X in another order.

    Parameters
    ----------
    given
        What has a row for each sample; only the index of pandas counts.
    name
        What messages call it.
    samples
        The names of the samples, in their order, an index; None: there are none.
    panel
        Whether X is a panel, of whose index they are the first level; else they are its index.

    Raises
    ------
    ValueError
        The order is another.

    Examples
    --------
    >>> import pandas as pd
    >>> y = pd.Series([1.0, 2.0], ["b", "a"])
    >>> check_order(y, "y", pd.Index(["b", "a"]), panel=False)
    >>> check_order(y, "y", pd.Index(["a", "b"]), panel=False)
    Traceback (most recent call last):
    ValueError: y has the samples of X in another order, by its index: pass y.loc[X.index], or, ...
    """
    index: Any = getattr(given, "index", None)
    if samples is None or not hasattr(index, "nlevels") or len(index) != len(samples):
        return
    if index.equals(samples) or not (index.is_unique and samples.is_unique):
        return
    if index.isin(samples).all():
        kind, order = ("sequences", "X.index.unique(0)") if panel else ("samples", "X.index")
        raise ValueError(
            f"{name} has the {kind} of X in another order, by its index: pass {name}.loc[{order}], "
            f"or, if the rows are in the order of X, {name}.to_numpy()"
        )


def time_first(X: Sequence[Any]) -> list[Any]:  # noqa: N803
    """Return views ``(T_i, F)`` of arrays ``(F, T_i)``."""
    return [np.asarray(a).T for a in X]


def warn_if_swapped(shape: tuple[int, ...], name: str) -> None:
    """Warn if the axes of time and of features seem to have changed places, as read.

    Parameters
    ----------
    shape
        ``(N, T, F)``, or ``(T_i, F)`` of the longest sequence of a list.
    name
        What has this shape.
    """
    steps, features = shape[-2:]
    if features >= _MANY * steps:
        letters = "N, F, T" if len(shape) == 3 else "F, T_i"
        warnings.warn(
            f"{name} {shape} is read as {steps} step{'s' * (steps > 1)} of {features} features: if "
            f"it is ({letters}), pass channels_first=True",
            stacklevel=6,
        )
