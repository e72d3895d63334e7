"""Features of the calendar, computed from the times of steps."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._util.optional_imports import need
from ..._util.spelling import meant
from .series import Array
from .times import Times

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FEATURES", "Calendar", "check_zones"]

_HOUR, _DAY, _WEEK, _MONTH, _YEAR = 1 / 24, 1.0, 7.0, 30.44, 365.25  # in days


def _circle(place: Array) -> Array:
    """Return points on a circle; a place of 1 is once around."""
    angle = 2 * np.pi * np.asarray(place, float)
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _one_hot(place: Array, count: int) -> Array:
    return np.asarray(np.asarray(place, int)[:, None] == np.arange(count))


def _hour(index: pd.DatetimeIndex) -> Array:
    """Return the time of day in hours, as clocks show it."""
    return np.asarray(index.hour + index.minute / 60 + index.second / 3600, float)


def _days_before(index: pd.DatetimeIndex) -> Array:
    """Return the time since the start of the day, in days."""
    return _hour(index) / 24


@dataclasses.dataclass(frozen=True)
class _Feature:
    """A feature that repeats after `period` days, for steps of at most `longest` days.

    `columns` computes it. `categories`: their number, if it is one categorical column; else 0.
    """

    longest: float
    period: float
    columns: Callable[[Any], Array]
    categories: int = 0


_TABLE = {
    "minute_of_hour": _Feature(
        _HOUR / 2, _HOUR, lambda i: _circle((i.minute + i.second / 60) / 60)
    ),
    "hour_of_day": _Feature(_DAY / 2, _DAY, lambda i: _circle(_hour(i) / 24)),
    "day_of_week": _Feature(_DAY, _WEEK, lambda i: _one_hot(i.day_of_week, 7)),
    "hour_of_week": _Feature(
        _DAY / 2, _WEEK, lambda i: np.asarray(24 * i.day_of_week + i.hour + 1, float)[:, None], 168
    ),
    "day_of_month": _Feature(
        _DAY, _MONTH, lambda i: _circle((i.day - 1 + _days_before(i)) / i.days_in_month)
    ),
    "week_of_year": _Feature(
        _WEEK, _YEAR, lambda i: _circle((np.asarray(i.isocalendar().week, float) - 1) / 52.1775)
    ),
    "day_of_year": _Feature(
        _WEEK, _YEAR,
        lambda i: _circle((i.day_of_year - 1 + _days_before(i)) / (365 + i.is_leap_year)),
    ),
    "month": _Feature(92, _YEAR, lambda i: _circle((i.month - 1) / 12)),
    "quarter": _Feature(92, _YEAR, lambda i: _one_hot(i.quarter - 1, 4)),
}  # fmt: skip
FEATURES = tuple(_TABLE)
"""Names of features."""


@dataclasses.dataclass(frozen=True)
class Calendar:
    """Features of the calendar.

    All but "hour_of_week", a category, are numbers: points on a circle, or 0 and 1 for each of few
    possibilities.

    Parameters
    ----------
    features
        Names among `FEATURES`.
    holidays
        A country's code, such as "DE", or with a part of it "DE-BY", whose holidays, and the days
        before and after them, are marked; None: none.

    Examples
    --------
    >>> import pandas as pd
    >>> days = pd.date_range("2024-01-01", periods=3)
    >>> Calendar(("day_of_week",), None).rows(days).astype(int)
    array([[1, 0, 0, 0, 0, 0, 0],
           [0, 1, 0, 0, 0, 0, 0],
           [0, 0, 1, 0, 0, 0, 0]])
    """

    features: tuple[str, ...]
    holidays: str | None

    @classmethod
    def of(
        cls,
        wanted: bool | Sequence[str],
        holidays: str | None,
        times: Sequence[Times | None],
    ) -> Calendar:
        """Choose features.

        Parameters
        ----------
        wanted
            Names of features; True: those that differ between steps and whose period fits at least
            twice into the longest series, the shortest in any case. "day_of_month" is among them
            only if steps are days.
        holidays
            See above.
        times
            Times of the training series.

        Raises
        ------
        ValueError
            Series have no dates, no feature differs between steps, or steps are longer than a day
            and holidays are wanted.
        """
        apart: dict[int, tuple[float, float]] = {}  # many series may have the same times
        for n, one in enumerate(times):
            if id(one) not in apart:
                apart[id(one)] = _span(one, _name(n, len(times)))
                _warn_of_days_elsewhere(one, _name(n, len(times)))
        spans = [apart[id(one)] for one in times]
        step, length = np.median([step for step, _ in spans]), max(length for _, length in spans)
        if holidays is not None and step > 1.01 * _DAY:
            raise ValueError(
                f"holidays={holidays!r} needs steps of at most a day, got about {step:.3g} days: "
                "pass the number of holidays in each step as a covariate"
            )
        if not isinstance(wanted, bool):
            return cls(tuple(wanted), holidays)
        chosen = _chosen(float(step), length) if wanted else ()
        return cls(chosen, holidays)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of categories of each column; 0: it holds numbers."""
        found: list[int] = []
        for name in self.features:
            feature = _TABLE[name]
            width = 1 if feature.categories else _TABLE[name].columns(_any_day()).shape[1]
            found += [feature.categories] * width
        return (*found, *([0] * 3 if self.holidays is not None else []))

    def rows(self, dates: pd.DatetimeIndex) -> Array:
        """Return the features of dates, ``(T, F)``."""
        parts = [_TABLE[feature].columns(dates) for feature in self.features]
        if self.holidays is not None:
            parts.append(_of_holidays(dates, self.holidays))
        return np.concatenate([np.asarray(part, float) for part in parts], axis=1)

    def rows_of_all(
        self, times: Sequence[Times | None], reach: Callable[[Times], pd.Index]
    ) -> list[Array]:
        """Return the features of the steps that `reach` returns for each series' times.

        Series with the same times share them.
        """
        known: dict[Any, Array] = {}
        found = []
        for n, one in enumerate(times):
            if id(one) not in known:
                dates = _dates(None if one is None else reach(one), _name(n, len(times)))
                known[id(one)] = self.rows(dates)
            found.append(known[id(one)])
        return found


_ENOUGH = 1000  # steps suffice to measure their length
_ON_REQUEST = ("minute_of_hour", "week_of_year", "quarter")


def _chosen(step: float, length: float) -> tuple[str, ...]:
    """Return the features that `Calendar.of` chooses, for lengths of steps and series in days."""
    unwanted = set(_ON_REQUEST)
    if step < 0.99 * _DAY:
        unwanted.add("day_of_month")
    if step <= 1.01 * _WEEK:
        unwanted.add("month")
    fine = {
        name: one.period
        for name, one in _TABLE.items()
        if step <= 1.01 * one.longest and name not in unwanted
    }
    if not fine:
        raise ValueError(
            f"calendar=True has no features for steps of about {step:.3g} days: leave it out"
        )
    shortest = min(fine.values())
    return tuple(
        name for name, period in fine.items() if period == shortest or length >= 2 * period
    )


def _any_day() -> pd.DatetimeIndex:
    import pandas as pd

    return pd.DatetimeIndex(["2024-01-01"])


def _name(number: int, count: int) -> str:
    return "y" if count == 1 else f"y[{number}]"


def _span(times: Times | None, name: str) -> tuple[float, float]:
    """Return the length of a step, and of a series, in days."""
    dates = _dates(None if times is None else times.index, name)
    first = dates[:_ENOUGH]
    first = first if first.tz is None else first.tz_convert(None)  # numbers, not objects
    days = np.diff(first.to_numpy()) / np.timedelta64(1, "D")
    length = (dates[-1] - dates[0]).total_seconds() / 86400
    return float(np.median(days)) if len(days) else 0.0, length


def _dates(index: pd.Index | None, name: str) -> pd.DatetimeIndex:
    """Return an index as dates, those of periods' starts."""
    import pandas as pd

    if isinstance(index, pd.PeriodIndex):
        return index.to_timestamp(how="start")
    if isinstance(index, pd.DatetimeIndex):
        return index
    raise ValueError(
        f"calendar and holidays need dates, but {name} has none: pass a pandas Series or DataFrame "
        "with a DatetimeIndex or a PeriodIndex"
    )


def _warn_of_days_elsewhere(times: Times | None, name: str) -> None:
    """Warn if steps of days in UTC do not begin at midnight: they may be days of another zone."""
    dates = _dates(None if times is None else times.index, name)
    far = len(dates) > 1 and (dates[1] - dates[0]).total_seconds() >= 0.9 * 86400
    if far and str(dates.tz) in ("UTC", "Etc/UTC") and _hour(dates[:1])[0]:
        warnings.warn(
            f"the steps of {name} begin at {dates[0].time()} in UTC, whose days those of the "
            "calendar are: if they are local days, convert times to their time zone by tz_convert",
            UserWarning,
            stacklevel=2,
        )


def check_zones(times: Sequence[Times | None], known: Sequence[Times | None]) -> None:
    """Raise ValueError unless series to forecast are in time zones of training series.

    Parameters
    ----------
    times, known
        Times of the series to forecast, and of the training series.
    """

    def zones(of: Sequence[Times | None]) -> dict[str, int]:
        found: dict[str, int] = {}
        for number, one in enumerate(of):
            if one is not None:
                zone = getattr(one.index, "tz", None)
                found.setdefault("no time zone" if zone is None else str(zone), number)
        return found

    own, fine = zones(times), zones(known)
    other = next((zone for zone in own if zone not in fine), None)
    if other is not None:
        raise ValueError(
            f"{_name(own[other], len(times))} has times in {other}, but fit got {', '.join(fine)}, "
            "and the calendar's features follow clocks: convert times by tz_convert, or drop the "
            "zones in both by tz_localize(None) if clocks mean the same everywhere"
        )


def _of_holidays(dates: pd.DatetimeIndex, code: str) -> Array:
    """Return whether days are holidays, days before one, and days after one, ``(T, 3)``."""
    import pandas as pd

    library = need("holidays", f"holidays={code!r}")
    country, _, part = code.partition("-")
    days = dates.tz_localize(None).normalize()
    years = range(int(days[0].year) - 1, int(days[-1].year) + 2)
    try:
        known = library.country_holidays(country, subdiv=part or None, years=years)
    except NotImplementedError:
        countries = library.list_supported_countries()
        if country not in countries:
            hint = meant(country, countries)
            raise ValueError(
                f"holidays must be a country's code, such as 'DE', got {code!r}{hint}"
            ) from None
        raise ValueError(
            f"holidays: {country} has no part {part!r}, but {', '.join(countries[country])}"
        ) from None
    free = pd.DatetimeIndex(sorted(known)).normalize()
    shifts = [pd.Timedelta(days=shift) for shift in (0, 1, -1)]
    return np.stack([(days + shift).isin(free) for shift in shifts], axis=1)
