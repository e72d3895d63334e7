"""Checks of `SequenceForecaster`'s parameters, and of series against them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ...errors import meant
from ...training.spec import check_count
from .calendar_features import FEATURES
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
    _check_covariates(given)
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


def _check_covariates(given: dict[str, Any]) -> None:
    past, calendar, holidays = given["past"], given["calendar"], given["holidays"]
    if isinstance(past, str) or not all(_is_column(one) for one in past):
        raise TypeError(f"past must be a list of names or positions of columns, got {past!r}")
    if len(past) and given["strategy"] == "recursive":
        raise ValueError(
            'past needs strategy="direct": for strategy="recursive", all covariates must be known '
            "ahead, as the model is run over the horizon step by step"
        )
    if not isinstance(calendar, bool):
        if isinstance(calendar, str) or not all(isinstance(one, str) for one in calendar):
            raise TypeError(f"calendar must be True, False or a list of features, got {calendar!r}")
        for one in calendar:
            if one not in FEATURES:
                raise ValueError(
                    f"calendar: features are {', '.join(FEATURES)}, got {one!r}"
                    f"{meant(one, FEATURES)}"
                )
    if not (holidays is None or isinstance(holidays, str)):
        raise TypeError(f"holidays must be a country's code, such as 'DE', got {holidays!r}")


def _is_column(given: object) -> bool:
    return isinstance(given, str | int | np.integer) and not isinstance(given, bool)


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
        place = "y" if series.single else f"y[{index}]"
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
