"""The last steps of series: what learning from later steps needs to know."""

from __future__ import annotations

import dataclasses

import numpy as np

from .series import Array

__all__ = ["LastSteps"]


@dataclasses.dataclass(frozen=True)
class LastSteps:
    """The last R steps of N series.

    Parameters
    ----------
    values
        ``(N, R, K)``; NaN marks missing values, and rows before a series' start.
    covariates
        ``(N, R, F)``, scaled; None: there are none.
    starts
        Number of rows before each series' start, ``(N,)``.

    Examples
    --------
    >>> last = LastSteps.of([np.array([[1.0], [2.0]])], None, 3)
    >>> last.advance(np.array([[[5.0]]]), None, 3).series()
    ([array([[1.],
           [2.],
           [5.]])], None)
    """

    values: Array
    covariates: Array | None
    starts: Array

    @classmethod
    def of(cls, arrays: list[Array], covariates: list[Array] | None, rows: int) -> LastSteps:
        """Keep at most `rows` steps of series ``(T_i, K)`` and of their covariates."""
        rows = min(rows, max(map(len, arrays)))
        known = None if covariates is None else _ends(covariates, rows, 0.0)
        starts = np.array([max(rows - len(one), 0) for one in arrays], np.int64)
        return cls(_ends(arrays, rows, np.nan), known, starts)

    def advance(self, values: Array, covariates: Array | None, rows: int) -> LastSteps:
        """Append values ``(N, n, K)`` and their covariates; keep at most `rows` steps."""
        longer = np.concatenate([self.values, values], axis=1)
        begin = max(longer.shape[1] - rows, 0)
        known = None
        if self.covariates is not None and covariates is not None:
            known = np.concatenate([self.covariates, covariates], axis=1)[:, begin:]
        return LastSteps(longer[:, begin:], known, np.maximum(self.starts - begin, 0))

    def series(self) -> tuple[list[Array], list[Array] | None]:
        """Return the steps of each series, ``(R_i, K)``, and of its covariates, ``(R_i, F)``."""
        arrays = [one[start:] for one, start in zip(self.values, self.starts, strict=True)]
        if self.covariates is None:
            return arrays, None
        return arrays, [
            one[start:] for one, start in zip(self.covariates, self.starts, strict=True)
        ]


def _ends(arrays: list[Array], rows: int, before: float) -> Array:
    found = np.full((len(arrays), rows, arrays[0].shape[1]), before)
    for own, one in zip(found, arrays, strict=True):
        own[max(rows - len(one), 0) :] = one[-rows:]
    return found
