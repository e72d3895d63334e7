"""Steps that follow all or some of the training series, not always equally many of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from .covariate_rows import CovariateRows, Rows
from .series import Array
from .times import Times

__all__ = ["NewSteps"]


@dataclasses.dataclass(frozen=True)
class NewSteps:
    """The next steps of series.

    Parameters
    ----------
    rows
        Which of the training series they continue, rising, ``(M,)``.
    arrays
        Their values, ``(n_i, K)``.
    covariates
        Those of these steps, and ahead; None: there are none.
    ends
        Times of their last steps.

    Examples
    --------
    >>> new = NewSteps(np.array([0, 2]), [np.ones((1, 1)), np.ones((3, 1))], None, [None, None])
    >>> [(part.rows, part.stacked()[0].shape) for part in new.by_length()]
    [(array([0]), (1, 1, 1)), (array([2]), (1, 3, 1))]
    """

    rows: Array
    arrays: list[Array]
    covariates: CovariateRows | None
    ends: Sequence[Times | None]

    @property
    def lengths(self) -> Array:
        """n_i."""
        return np.array([len(one) for one in self.arrays], np.int64)

    def stacked(self) -> tuple[Array, CovariateRows | None]:
        """Return the values of equally long series, ``(M, n, K)``, and their covariates."""
        return np.stack(self.arrays), self.covariates

    def padded(self) -> tuple[Array, CovariateRows | None]:
        """Return values ``(M, n, K)``, NaN after the end of each series, and covariates.

        There, covariates are average, or unknown, as they are after the last step of all.

        Examples
        --------
        >>> new = NewSteps(np.arange(2), [np.ones((1, 1)), np.ones((2, 1))], None, [None, None])
        >>> new.padded()[0][..., 0]
        array([[ 1., nan],
               [ 1.,  1.]])
        """
        known = self.covariates
        if known is not None:
            known = CovariateRows(
                None if known.ahead is None else _longest(known.ahead, 0),
                None if known.past is None else _longest(known.past, np.nan),
            )
        return _longest(self.arrays, np.nan), known

    def first(self, steps: int) -> NewSteps:
        """Return the first steps only, with all covariates; `ends` stay those of all steps."""
        return dataclasses.replace(self, arrays=[one[:steps] for one in self.arrays])

    def by_length(self) -> Iterator[NewSteps]:
        """Yield the series of each length."""
        lengths = self.lengths
        for length in np.unique(lengths):
            mine = np.flatnonzero(lengths == length).tolist()
            yield NewSteps(
                self.rows[mine], [self.arrays[n] for n in mine],
                None if self.covariates is None else self.covariates.taken(np.array(mine)),
                [self.ends[n] for n in mine],
            )  # fmt: skip


def _longest(arrays: Rows, value: float) -> Array:
    """Return arrays ``(n_i, C)`` as one, ``(M, n, C)``, with `value` after the end of each."""
    found = np.full((len(arrays), max(map(len, arrays)), arrays[0].shape[1]), value, np.float64)
    for own, one in zip(found, arrays, strict=True):
        own[: len(one)] = one
    return found
