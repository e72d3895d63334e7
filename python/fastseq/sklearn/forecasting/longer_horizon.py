"""Forecasts of fewer or more steps than the model was trained for."""

from __future__ import annotations

import dataclasses

import numpy as np

from .covariate_rows import CovariateRows
from .forecast_accuracy import middle
from .rollout import Origin, Rollout
from .series import Array

__all__ = ["forecast_blocks"]


def forecast_blocks(
    rollout: Rollout, origin: Origin, covariates: CovariateRows | None, steps: int
) -> list[Array]:
    """Return forecasts of at least the next steps, horizon by horizon: ``(N, horizon, K, Q)`` each.

    Beyond the trained horizon, forecasts continue from earlier points, or from medians, and ignore
    how uncertain these are. A recursive model continues its drawn futures.

    Parameters
    ----------
    rollout, origin
        The model, and where to forecast from.
    covariates
        Those known ahead, for all steps; None: there are none. Others keep their last values.
    steps
        How many steps to forecast.
    """
    horizon = rollout.horizon
    begins = range(0, steps, horizon)
    if rollout.recursive:
        whole = horizon * len(begins)
        ahead = None if covariates is None else covariates.horizon(0, whole)
        found = dataclasses.replace(rollout, horizon=whole).forecast(origin, ahead)
        return np.split(found, len(begins), axis=1)
    ahead = None if covariates is None else CovariateRows(covariates.ahead)
    blocks: list[Array] = []
    for begin in begins:
        if begin:
            known = None if ahead is None else ahead.steps(begin - horizon, begin)
            origin = rollout.advance(origin, middle(blocks[-1], rollout.levels), known)
        then = None if ahead is None else ahead.horizon(begin, horizon)
        blocks.append(rollout.forecast(origin, then))
    return blocks
