"""A score: how much better forecasts are than a constant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .series import Array

__all__ = ["skill"]


def skill(forecast: Array, actual: Array, quantiles: Sequence[float] | None) -> float:
    """Return 1 - loss / loss of the best constant for each variable; 1 is perfect.

    For points this is R², of squared errors; for quantiles D² of the pinball loss, as in
    `sklearn.metrics.d2_pinball_score`. The mean over variables (and quantiles) is returned.

    Parameters
    ----------
    forecast
        ``(M, K, Q)``; Q = 1 for points.
    actual
        ``(M, K)``, NaN where unknown.
    quantiles
        The levels; None: points.

    Examples
    --------
    >>> actual = np.array([[1.0], [2.0], [3.0]])
    >>> skill(actual[..., None], actual, None), skill(np.full((3, 1, 1), 2.0), actual, None)
    (1.0, 0.0)
    """
    scores = []
    for k in range(actual.shape[1]):
        known = ~np.isnan(actual[:, k])
        if known.sum() < 2:
            raise ValueError(
                f"variable {k} has {known.sum()} known values; a score needs at least 2"
            )
        came, found = actual[known, k], forecast[known, k]
        for q in range(found.shape[1]):
            if quantiles is None:
                loss, constant = ((came - guess) ** 2 for guess in (found[:, q], came.mean()))
            else:
                level = quantiles[q]
                errors = (came - found[:, q], came - np.quantile(came, level))
                loss, constant = (np.maximum(level * e, (level - 1) * e) for e in errors)
            total = float(constant.sum())
            if total:
                scores.append(1 - float(loss.sum()) / total)
            else:  # a constant series: as in scikit-learn
                scores.append(float(not loss.any()))
    return float(np.mean(scores))
