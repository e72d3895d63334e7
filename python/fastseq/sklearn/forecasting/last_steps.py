"""The last steps of series, which learning from later steps needs."""

from __future__ import annotations

import dataclasses

import numpy as np

from .covariate_rows import CovariateRows, Rows
from .new_steps import NewSteps
from .series import Array

__all__ = ["LastSteps"]


@dataclasses.dataclass(frozen=True)
class LastSteps:
    """The last steps of N series.

    Parameters
    ----------
    values
        ``(R_i, K)`` of each series; NaN marks missing values.
    covariates
        Those of these steps; None: there are none.

    Examples
    --------
    >>> last = LastSteps.of([np.array([[1.0], [2.0]])], None, 2)
    >>> new = NewSteps(np.array([0]), [np.array([[5.0]])], None, [None])
    >>> last.advance(new, 2).values[0].T
    array([[2., 5.]])
    """

    values: list[Array]
    covariates: CovariateRows | None

    @classmethod
    def of(cls, arrays: list[Array], covariates: CovariateRows | None, rows: int) -> LastSteps:
        """Keep at most `rows` steps of series ``(T_i, K)`` and of their covariates."""
        ahead = past = None
        if covariates is not None and covariates.ahead is not None:
            ahead = _ends(
                [a[: len(y)] for a, y in zip(covariates.ahead, arrays, strict=True)], rows
            )
        if covariates is not None and covariates.past is not None:
            past = _ends(list(covariates.past), rows)
        known = None if covariates is None else CovariateRows(ahead, past)
        return cls(_ends(arrays, rows), known)

    def advance(self, new: NewSteps, rows: int | None = None) -> LastSteps:
        """Append the next steps; keep at most `rows` of those series, None: all."""
        before = self.taken(new.rows)
        arrays, more, had = new.arrays, new.covariates, before.covariates
        ahead = past = None
        if had is not None and had.ahead is not None and more is not None:
            assert more.ahead is not None
            cut = [a[: len(y)] for a, y in zip(more.ahead, arrays, strict=True)]
            ahead = _joined(had.ahead, cut)
        if had is not None and had.past is not None and more is not None:
            assert more.past is not None
            past = _joined(had.past, more.past)
        known = None if had is None else CovariateRows(ahead, past)
        whole = LastSteps(_joined(before.values, arrays), known)
        if rows is not None:
            whole = LastSteps.of(whole.values, whole.covariates, rows)
        return self._with(new.rows, whole)

    def taken(self, rows: Array) -> LastSteps:
        """Return some of the series."""
        covariates = None if self.covariates is None else self.covariates.taken(rows)
        return LastSteps([self.values[n] for n in rows], covariates)

    def _with(self, rows: Array, part: LastSteps) -> LastSteps:
        """Return all series, with some of them replaced."""

        def put(all_of: Rows, some: Rows) -> list[Array]:
            found = list(all_of)
            for row, one in zip(rows, some, strict=True):
                found[row] = one
            return found

        def put_some(all_of: Rows | None, some: Rows | None) -> list[Array] | None:
            return None if all_of is None or some is None else put(all_of, some)

        known = self.covariates
        if known is not None and part.covariates is not None:
            known = CovariateRows(
                put_some(known.ahead, part.covariates.ahead),
                put_some(known.past, part.covariates.past),
            )
        return LastSteps(put(self.values, part.values), known)


def _ends(arrays: list[Array], rows: int) -> list[Array]:
    return [one[-rows:].copy() for one in arrays]


def _joined(arrays: Rows, later: Rows) -> list[Array]:
    return [np.concatenate(pair) for pair in zip(arrays, later, strict=True)]
