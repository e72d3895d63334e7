"""Steps that follow all or some of the training series, not always equally many of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from .covariate_rows import CovariateRows
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

    def stacked(self) -> tuple[Array, CovariateRows | None]:
        """Return the values of equally long series, ``(M, n, K)``, and their covariates."""
        return np.stack(self.arrays), self.covariates

    def by_length(self) -> Iterator[NewSteps]:
        """Yield the series of each length."""
        lengths = np.array([len(one) for one in self.arrays])
        for length in np.unique(lengths):
            mine = np.flatnonzero(lengths == length).tolist()
            yield NewSteps(
                self.rows[mine], [self.arrays[n] for n in mine],
                None if self.covariates is None else self.covariates.taken(np.array(mine)),
                [self.ends[n] for n in mine],
            )  # fmt: skip
