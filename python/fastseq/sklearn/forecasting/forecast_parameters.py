"""Checks of `SequenceForecaster`'s parameters, and of series against them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ...training.spec import check_count
from .forecast_losses import LOSSES
from .series import Series

__all__ = ["check_lengths", "check_parameters", "season_lag"]

_CHOICES = {
    "strategy": ("direct", "recursive"),
    "scale": ("standard", "series", None),
    "variables": ("independent", "together", None),
}


def check_parameters(given: dict[str, Any]) -> None:
    """Raise ValueError or TypeError if a parameter is invalid."""
    check_count("horizon", given["horizon"])
    if given["season"] not in (None, "auto"):
        check_count("season", given["season"])
    for name in ("lags", "epochs", "batchsize", "seqsize", "fold"):
        if given[name] is not None:
            check_count(name, given[name])
    if given["validation"] is not None and given["validation"] != 0:
        check_count("validation", given["validation"])
    for name, allowed in _CHOICES.items():
        if given[name] not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {given[name]!r}")
    loss, levels = given["loss"], given["quantiles"]
    if isinstance(loss, str) and loss not in LOSSES:
        raise ValueError(f"loss must be one of {tuple(LOSSES)} or a callable, got {loss!r}")
    if not (loss is None or isinstance(loss, str) or callable(loss)):
        raise TypeError(f"loss must be one of {tuple(LOSSES)} or a callable, got {loss!r}")
    if levels is None:
        return
    try:
        edges = [0.0, *map(float, levels), 1.0]
    except (TypeError, ValueError):
        raise TypeError(f"quantiles must be a list of levels or None, got {levels!r}") from None
    if len(edges) == 2 or not all(low < high for low, high in pairwise(edges)):
        raise ValueError(f"quantiles must be rising levels between 0 and 1, got {levels!r}")


def season_lag(season: int | None, horizon: int, strategy: str) -> int | None:
    """Return the lag in steps, a multiple of `season`, at which values are compared.

    Examples
    --------
    >>> season_lag(24, 36, "direct"), season_lag(24, 36, "recursive")
    (48, 24)
    """
    if season is None or strategy == "recursive":
        return season
    return season * -(-horizon // season)


def check_lengths(
    series: Series, least: int, why: str, *, known: bool = True, apart: int = 0
) -> None:
    """Raise unless all series have `least` steps, and, if `known`, any known value.

    For the latter, the last `apart` steps do not count.
    """
    for index, length in enumerate(series.lengths):
        place = "y" if series.single else f"y[{(series.ids or range(index + 1))[index]!r}]"
        if length < least:
            raise ValueError(f"{place} has {length} steps, but {why} needs {least}")
        unknown = np.isnan(series.arrays[index][: length - apart]).all(axis=0)
        if known and unknown.any():
            before = " before the steps to validate on" if apart else ""
            raise ValueError(f"{place} has no known values of variable {unknown.argmax()}{before}")
    if series.single and series.variables > series.lengths[0] > 1:
        raise ValueError(
            f"y is one series of {series.lengths[0]} steps with {series.variables} variables: for "
            f"{series.lengths[0]} series of {series.variables} steps pass list(y)"
        )
