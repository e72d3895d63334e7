"""Training data with steps that follow them, in the forms that users pass: to train again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .times import Times, is_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["appended", "copied", "cut"]


def copied(given: Any) -> Any:
    """Return a copy of what `fit` got: series, or covariates."""
    return _each(lambda one, _: one.copy() if is_table(one) else np.array(_array(one)), given)


def cut(given: Any, steps: int, before: Sequence[Times | None]) -> tuple[Any, Any]:
    """Return the first steps of later data, and the others.

    Parameters
    ----------
    given
        Series, or covariates, in any form.
    steps
        Number of first steps.
    before
        Times of the last step before them of each series; None: there are none.

    Examples
    --------
    >>> cut(np.arange(3), 2, [None])
    (array([0, 1]), array([2]))
    """

    def part(one: Any, last: Times | None, *, first: bool) -> Any:
        if not is_table(one):
            one = _array(one)
            place = slice(steps) if first else slice(steps, None)
            return one[:, place] if one.ndim == 3 else one[place]
        if last is None or _counts(one.index):
            return one.iloc[:steps] if first else one.iloc[steps:].reset_index(drop=True)
        known = one.index <= last.following(steps)[-1]
        return one[known] if first else one[~known]

    return (
        _each(lambda one, last: part(one, last, first=True), given, before),
        _each(lambda one, last: part(one, last, first=False), given, before),
    )


def appended(given: Any, later: Any, before: Sequence[Times | None]) -> Any:
    """Return training data and the steps that follow them, in the form of the former.

    Parameters
    ----------
    given, later
        Series, or covariates, in any form.
    before
        Times of the last step of each series in `given`; None: there are none.

    Examples
    --------
    >>> import pandas as pd
    >>> days = pd.date_range("2024-01-01", periods=3)
    >>> y = pd.Series([1.0, 2.0], days[:2])
    >>> appended(y, np.array([3.0]), [Times.of(y.index, "y")])
    2024-01-01    1.0
    2024-01-02    2.0
    2024-01-03    3.0
    dtype: float64
    """
    rest = iter(later if _is_list(later) else [later] * max(len(before), 1))
    return _each(lambda one, last: _joined(one, next(rest), last), given, before)


def _each(
    change: Callable[[Any, Times | None], Any], given: Any, before: Sequence[Times | None] = ()
) -> Any:
    """Return what `change` returns for each part of a list, with its times, or for the whole."""
    if given is None:
        return None
    if not _is_list(given):
        return change(given, before[0] if len(before) else None)
    times = before or [None] * len(given)
    return [change(one, last) for one, last in zip(given, times, strict=True)]


def _is_list(given: object) -> bool:
    return isinstance(given, list | tuple) and any(hasattr(one, "__len__") for one in given)


def _joined(one: Any, more: Any, last: Times | None) -> Any:
    if is_table(one):
        import pandas as pd

        return pd.concat([one, _like_table(one, more, last)])
    if is_table(more):
        more = more.sort_index().to_numpy(np.float64, na_value=np.nan)
    one, more = _array(one), _array(more)
    if one.ndim == 3:
        return np.concatenate([one, more], axis=1)
    return np.concatenate([one, more.reshape(len(more), *one.shape[1:])])


def _array(given: Any) -> np.ndarray:
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given
    if isinstance(given, np.ma.MaskedArray):
        given = np.ma.filled(given.astype(np.float64), np.nan)
    return np.asarray(given)


def _like_table(
    table: pd.Series | pd.DataFrame, more: Any, last: Times | None
) -> pd.Series | pd.DataFrame:
    """Return what follows a table as such a table, with the times that follow."""
    import pandas as pd

    if not is_table(more):
        values = _array(more)
        more = pd.Series(values.ravel()) if table.ndim == 1 else pd.DataFrame(
            values.reshape(len(values), -1), columns=table.columns
        )  # fmt: skip
    elif table.ndim == more.ndim == 2 and set(table.columns) != set(more.columns):
        more = more.set_axis(table.columns, axis=1)  # one of them has no names
    elif table.ndim != more.ndim:
        more = more.iloc[:, 0] if table.ndim == 1 else more.to_frame(table.columns[0])
    if _counts(more.index):
        index = pd.RangeIndex(len(table), len(table) + len(more))
        more = more.set_axis(index if last is None else last.following(len(more)))
    return more


def _counts(index: pd.Index) -> bool:
    """Whether an index counts from 0, as in any new table."""
    numbers = getattr(index.dtype, "kind", "O") in "iuf"
    return numbers and bool((index == np.arange(len(index))).all())
