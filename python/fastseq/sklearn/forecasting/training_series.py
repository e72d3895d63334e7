"""The series that a forecaster is trained on, with all that belongs to each."""

from __future__ import annotations

import dataclasses

import numpy as np

from .covariate_rows import CovariateRows
from .series import Array, Series, unknown_variables
from .windows import SeriesScaling

__all__ = ["TrainingSeries"]


@dataclasses.dataclass(frozen=True)
class TrainingSeries:
    """Series and what belongs to them.

    Parameters
    ----------
    series
        N series, transformed.
    covariates
        Their covariates, which change with time; None: there are none.
    static
        Those that do not, ``(N, S)``.
    scaling
        How the series are scaled.
    weights
        Weights of their values; None: all count alike.
    apart
        How many last steps of each are held out, ``(N,)``.
    """

    series: Series
    covariates: CovariateRows | None
    static: Array | None
    scaling: SeriesScaling
    weights: list[Array] | None
    apart: Array

    @property
    def known(self) -> Array:
        """The rows of the series of which any value is known."""
        return np.flatnonzero(~unknown_variables(self.series.arrays).all(axis=1))

    def taken(self, rows: Array) -> TrainingSeries:
        """Return some of the series."""
        if len(rows) == len(self.series.arrays):
            return self
        return TrainingSeries(
            self.series.take(rows),
            None if self.covariates is None else self.covariates.taken(rows),
            None if self.static is None else self.static[rows], self.scaling.take(rows),
            None if self.weights is None else [self.weights[row] for row in rows],
            self.apart[rows],
        )  # fmt: skip
