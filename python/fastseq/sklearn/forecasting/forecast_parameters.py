"""Checks of `SequenceForecaster`'s parameters, and of series against them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
from torch import nn

from ..._util.spelling import meant
from ...training.spec import check_count
from ..named_modules import NETWORKS, members_of, takes_images
from .calendar_features import FEATURES
from .forecast_losses import LOSSES
from .series import Array, Series, unknown_variables
from .transforms import TRANSFORMS

__all__ = ["check_lengths", "check_parameters", "season_lag"]

_MODULES = ("segrnn", "lstm", "gru", "rnn", "mlp", "linear")
_CHOICES = {
    "transform": (*TRANSFORMS, None),
    "conformal": ("split", "adaptive", None),
    "strategy": ("direct", "recursive"),
    "scale": ("auto", "standard", "series", None),
    "variables": ("independent", "together", None),
}


def check_parameters(given: dict[str, Any]) -> None:
    """Raise ValueError or TypeError if a parameter is invalid."""
    check_count("horizon", given["horizon"])
    if given["season"] not in (None, "auto"):
        if isinstance(given["season"], bool) or not isinstance(given["season"], Integral):
            raise TypeError(
                f'season must be a number of steps, "auto" or None, got {given["season"]!r}'
            )
        check_count("season", given["season"])
    for name in ("lags", "epochs", "batchsize", "seqsize", "fold"):
        if given[name] is not None:
            check_count(name, given[name])
    if given["validation"] is not None and given["validation"] != 0:
        check_count("validation", given["validation"])
    for name, allowed in _CHOICES.items():
        if given[name] not in allowed:
            hint = meant(given[name], [one for one in allowed if one is not None])
            raise ValueError(f"{name} must be one of {allowed}, got {given[name]!r}{hint}")
    names = members_of(given["module"])
    if len(names) > 1 or {*names} & {*NETWORKS} or takes_images(given["module"]):
        seen = "images" if takes_images(given["module"]) else "whole sequences"
        raise ValueError(
            f"module={given['module']!r} looks at {seen}, and forecasts nothing: use "
            '"segrnn", "lstm", "gru", "rnn", "mlp", "linear", or a module of yours'
        )
    if names and names[0] not in _MODULES:
        advice = "" if names[0] == "none" else meant(names[0], _MODULES)
        raise ValueError(
            f"module must be one of {_MODULES}, an nn.Module, its class or a builder, got "
            f"{names[0]!r}{advice}"
        )
    check_count("ensemble", given["ensemble"])
    if given["ensemble"] > 1 and isinstance(given["module"], nn.Module):
        raise ValueError(
            "an ensemble needs models with different weights: pass a name, a class or a builder as "
            f"module, rather than a {type(given['module']).__name__}"
        )
    _check_weights(given)
    _check_covariates(given)
    _check_columns(given)
    loss, levels = given["loss"], given["quantiles"]
    if given["conformal"] is not None and levels is None:
        raise ValueError(
            f"conformal={given['conformal']!r} shifts quantiles: pass quantiles, such as "
            "(0.1, 0.5, 0.9)"
        )
    if given["conformal"] is not None and given["validation"] == 0:
        raise ValueError(
            f"conformal={given['conformal']!r} needs steps to hold out, but validation is 0"
        )
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
        raise ValueError(f"quantiles must be increasing levels between 0 and 1, got {levels!r}")


def _check_weights(given: dict[str, Any]) -> None:
    half_life, steps = given["half_life"], given["horizon_weights"]
    if half_life is not None:
        if not isinstance(half_life, int | float | np.number) or isinstance(half_life, bool):
            raise TypeError(f"half_life must be a number of steps or None, got {half_life!r}")
        if not 0 < half_life < np.inf:
            raise ValueError(f"half_life must be above 0 and finite, got {half_life!r}")
    if steps is None:
        return
    try:
        found = np.asarray(steps, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"horizon_weights must be numbers or None, got {steps!r}") from None
    if given["strategy"] == "recursive":
        raise ValueError('horizon_weights need strategy="direct": "recursive" learns one step')
    if found.shape != (given["horizon"],):
        raise ValueError(
            f"horizon_weights must be one number for each of {given['horizon']} steps, got the "
            f"shape {found.shape}"
        )
    if not (np.isfinite(found).all() and (found >= 0).all() and found.any()):
        raise ValueError(
            f"horizon_weights must be finite, not negative, and not all 0, got {steps!r}"
        )


def _check_covariates(given: dict[str, Any]) -> None:
    past, calendar, holidays = given["past"], given["calendar"], given["holidays"]
    if not _is_list(past) or not all(_is_column(one) for one in past):
        raise TypeError(f"past must be a list of names or positions of columns, got {past!r}")
    if len(past) and given["strategy"] == "recursive":
        raise ValueError(
            'past needs strategy="direct": for strategy="recursive", all covariates must be known '
            "ahead, as the model is run over the horizon step by step"
        )
    if not isinstance(calendar, bool):
        if not _is_list(calendar) or not all(isinstance(one, str) for one in calendar):
            raise TypeError(f"calendar must be True, False or a list of features, got {calendar!r}")
        for one in calendar:
            if one not in FEATURES:
                raise ValueError(
                    f"calendar: features are {', '.join(FEATURES)}, got {one!r}"
                    f"{meant(one, FEATURES)}"
                )
    if not (holidays is None or isinstance(holidays, str)):
        raise TypeError(f"holidays must be a country's code, such as 'DE', got {holidays!r}")


def _check_columns(given: dict[str, Any]) -> None:
    """Raise ValueError if columns of long frames have the same name, or those of results have."""
    found: dict[str, str] = {}
    for parameter in ("id_col", "time_col", "target_col"):
        name = given[parameter]
        if isinstance(name, list | tuple | set):
            raise TypeError(
                f"{parameter} must be the name of one column, got {name!r}: join several columns "
                "of ids into one, such as region + '/' + shop"
            )
        if name in ("cutoff", "forecast"):
            raise ValueError(
                f"{parameter} is {name!r}, but forecasts get a column of that name: rename it"
            )
        if name in found:
            raise ValueError(f"{found[name]} and {parameter} are the same column, {name!r}")
        found[name] = parameter


def _is_list(given: object) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str)


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
    series: Series,
    least: int,
    why: str,
    *,
    shortest: int | None = None,
    known: bool = True,
    apart: Array | None = None,
    together: bool = False,
) -> None:
    """Raise unless all series have `least` steps, and, if `known`, enough known values.

    If `shortest` is given, only the longest needs `least` steps, the others so many. For known
    values, the last `apart` steps of each, ``(N,)``, do not count. Series without any known value
    pass, if others have some; `together`: not those that lack only some of the variables.
    """
    lengths, unknown = series.lengths, np.zeros((len(series.arrays), series.variables), bool)
    apart = np.zeros_like(lengths) if apart is None else apart
    lacking = unknown
    if known:
        learnt = [one[: max(len(one) - n, 0)] for one, n in zip(series.arrays, apart, strict=True)]
        unknown, never = unknown_variables(learnt), unknown_variables(series.arrays)
        lacking = unknown & (~never | unknown.all(axis=0))
        lacking |= unknown & ~unknown.all(axis=1, keepdims=True) & together
    counted = lengths[~unknown.all(axis=1) | lacking.any(axis=1)]
    if shortest is not None and shortest < least <= counted.max():
        least, why = shortest, "each series"
    short = (lengths < least) & (~unknown.all(axis=1) | lacking.any(axis=1))
    wrong = np.flatnonzero(short | lacking.any(axis=1))
    if wrong.size:
        first = int(wrong[0])
        place = "y" if series.single else f"y[{(series.ids or range(first + 1))[first]!r}]"
        others = f" (and {wrong.size - 1} others like it)" if wrong.size > 1 else ""
        if lengths[first] < least:
            steps = "1 step" if lengths[first] == 1 else f"{lengths[first]} steps"
            raise ValueError(f"{place} has {steps}, but {why} needs {least}{others}")
        before = " before the steps to validate on" if apart[first] else ""
        advice = "" if series.single else ": leave such series out"
        raise ValueError(
            f"{place} has no known values of variable {lacking[first].argmax()}{before}{others}"
            f"{advice}"
        )
    steps = series.lengths[0]
    dated = series.times[0] is not None and not series.times[0].mean_nothing
    if known and series.single and series.variables > steps > 1 and not dated:
        advice = "list(y)" if series.names is None else "y.T"
        raise ValueError(
            f"y is one series of {steps} steps with {series.variables} variables: for {steps} "
            f"series of {series.variables} steps pass {advice}"
        )
