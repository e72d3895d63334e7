"""Forecasts of fewer or more steps than the model was trained for."""

from __future__ import annotations

import dataclasses

import numpy as np

from .comparison import middle
from .covariate_rows import CovariateRows
from .rollout import Origin, Rollout
from .series import Array

__all__ = ["forecast_steps"]


def forecast_steps(
    rollout: Rollout, origin: Origin, covariates: CovariateRows | None, steps: int
) -> Array:
    """Return forecasts ``(N, steps, K, Q)`` of the next steps, Q = 1 for points.

    Beyond the trained horizon, forecasts continue from points forecast before, or from the medians:
    they do not see how uncertain those are. A recursive model draws its futures further.

    Parameters
    ----------
    rollout, origin
        The model, and where to forecast from.
    covariates
        Those known ahead, for all steps; None: there are none. Others keep their last values.
    """
    if rollout.recursive:
        return dataclasses.replace(rollout, horizon=steps).forecast(origin, covariates)
    found: list[Array] = []
    horizon = rollout.horizon
    for begin in range(0, steps, horizon):
        if begin:
            known = None if covariates is None else covariates.steps(begin - horizon, begin)
            origin = rollout.advance(origin, middle(found[-1], rollout.levels), known)
        ahead = None if covariates is None else covariates.horizon(begin, horizon)
        found.append(rollout.forecast(origin, ahead))
    return np.concatenate(found, axis=1)[:, :steps]
