"""Covariates of series as the model sees them: scaled numbers and codes, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from .series import Array

__all__ = ["CovariateRows", "Rows", "ends_together", "known_so_far"]

Rows: TypeAlias = Sequence[Array] | Array


@dataclasses.dataclass(frozen=True)
class CovariateRows:
    """Covariates of steps of series.

    Parameters
    ----------
    ahead
        Those known ahead, ``(T_i, F)`` of each series, or ``(N, T, F)``; they may cover more steps
        than the others. None: there are none.
    past
        Those known in the past only, NaN where unknown. None: there are none, or they are unknown.
    """

    ahead: Rows | None
    past: Rows | None = None

    def steps(self, begin: int, end: int | None) -> CovariateRows:
        """Return some steps; `end` None: up to the last."""
        return CovariateRows(_cut(self.ahead, begin, end), _cut(self.past, begin, end))

    def after(self, lengths: Array) -> CovariateRows:
        """Return those known ahead, without the first steps of each series."""
        if self.ahead is None:
            return CovariateRows(None)
        rows = [one[steps:] for one, steps in zip(self.ahead, lengths, strict=True)]
        return CovariateRows(np.stack(rows))

    def horizon(self, begin: int, steps: int) -> CovariateRows:
        """Return those known ahead of some steps; beyond their last row they are 0, average."""
        rows = _cut(self.ahead, begin, begin + steps)
        return CovariateRows(None if rows is None else np.stack([_longer(a, steps) for a in rows]))

    def split(self, at: Sequence[int], steps: int) -> tuple[CovariateRows, CovariateRows]:
        """Return each series' steps before its own `at`, and those after it, ``(N, steps, …)``.

        Series with fewer steps after it get zeros before them.

        Examples
        --------
        >>> before, after = CovariateRows([np.ones((3, 1)), np.ones((3, 1))]).split([1, 2], 2)
        >>> len(before.ahead[1]), after.ahead[..., 0]
        (2, array([[1., 1.],
               [0., 1.]]))
        """
        cut = []
        for rows in (self.ahead, self.past):
            pairs = [] if rows is None else list(zip(rows, at, strict=True))
            cut.append((
                None if rows is None else [one[:end] for one, end in pairs],
                ends_together([one[end:] for one, end in pairs], steps, 0) if pairs else None,
            ))  # fmt: skip
        (ahead, ahead_after), (past, past_after) = cut
        return CovariateRows(ahead, past), CovariateRows(ahead_after, past_after)

    def joined(self, then: CovariateRows) -> CovariateRows:
        """Return these steps, ``(N, n, …)``, followed by those of others."""

        def both(first: Rows | None, second: Rows | None) -> Rows | None:
            if first is None or second is None:
                return None
            return np.concatenate([np.stack(list(first)), np.stack(list(second))], axis=1)

        return CovariateRows(both(self.ahead, then.ahead), both(self.past, then.past))

    def repeated(self, count: int) -> CovariateRows:
        """Return each series' rows `count` times, for each of its variables."""
        return CovariateRows(_repeated(self.ahead, count), _repeated(self.past, count))

    def taken(self, order: Array) -> CovariateRows:
        """Return the rows of some of the series."""
        return CovariateRows(_taken(self.ahead, order), _taken(self.past, order))

    def seen(self, lengths: Array, *, lagged: bool) -> list[Array] | None:
        """Return what the model sees of each series' past, ``(T_i, G)``, without gaps.

        `lagged`: with covariates known ahead, before the others.
        """
        parts = []
        if lagged and self.ahead is not None:
            parts.append([one[:steps] for one, steps in zip(self.ahead, lengths, strict=True)])
        if self.past is not None:
            parts.append([known_so_far(one) for one in self.past])
        if not parts:
            return None
        return [np.concatenate(one, axis=1) for one in zip(*parts, strict=True)]


def ends_together(arrays: Sequence[Array], steps: int, value: float) -> Array:
    """Return arrays ``(n_i, C)`` as one, ``(N, steps, C)``, with `value` before shorter ones.

    Examples
    --------
    >>> ends_together([np.ones((1, 1)), np.ones((2, 1))], 2, 0)[..., 0]
    array([[0., 1.],
           [1., 1.]])
    """
    found = np.full((len(arrays), steps, arrays[0].shape[1]), value, np.float64)
    for own, one in zip(found, arrays, strict=True):
        own[steps - len(one) :] = one
    return found


def _longer(rows: Array, length: int) -> Array:
    return np.concatenate([rows, np.zeros((length - len(rows), rows.shape[1]))])


def _cut(rows: Rows | None, begin: int, end: int | None) -> Rows | None:
    if rows is None or isinstance(rows, np.ndarray):
        return None if rows is None else rows[:, begin:end]
    return [one[begin:end] for one in rows]


def _repeated(rows: Rows | None, count: int) -> Rows | None:
    if rows is None or isinstance(rows, np.ndarray):
        return None if rows is None else np.repeat(rows, count, axis=0)
    return [one for one in rows for _ in range(count)]


def _taken(rows: Rows | None, order: Array) -> Rows | None:
    return None if rows is None else [rows[n] for n in order]


def known_so_far(values: Array, before: Array | None = None) -> Array:
    """Return values ``(…, T, C)`` with gaps filled by the last known value; 0 before the first.

    Parameters
    ----------
    values
        NaN marks gaps.
    before
        The last known value before them, ``(…, C)``.

    Examples
    --------
    >>> known_so_far(np.array([[np.nan], [1.0], [np.nan]])).T
    array([[0., 1., 1.]])
    """
    if before is None:
        before = np.zeros((*values.shape[:-2], values.shape[-1]))
    whole = np.concatenate([before[..., None, :], values], axis=-2)
    rows = np.where(np.isnan(whole), 0, np.arange(whole.shape[-2])[:, None])
    rows = np.maximum.accumulate(rows, axis=-2)
    return np.asarray(np.take_along_axis(whole, rows, axis=-2)[..., 1:, :])
