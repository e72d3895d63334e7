"""Frequencies of times: given or inferred, and the step of each time on their grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Frequency", "advice_on", "clock_of", "coarser", "common_season", "equal", "grid", "infer",
    "kind_of", "offset_of", "on_grid", "places", "setting_of", "text_of",
]  # fmt: skip

Array = np.ndarray
Frequency: TypeAlias = "pd.offsets.BaseOffset | float"
_MOST, _FOR_EACH = 10_000_000, 1000  # steps of a grid: at most, or for each time


def kind_of(index: pd.Index) -> str:
    """Return what an index holds: levels, dates, periods, durations, numbers or others."""
    import pandas as pd

    if isinstance(index, pd.MultiIndex):
        return "levels"
    if isinstance(index, pd.DatetimeIndex):
        return "dates"
    if isinstance(index, pd.PeriodIndex):
        return "periods"
    if isinstance(index, pd.TimedeltaIndex):
        return "durations"
    return "numbers" if getattr(index.dtype, "kind", "O") in "iuf" else "others"


def offset_of(freq: Any) -> Frequency:
    """Return the parameter `freq` as a pandas offset, or a number.

    Raises
    ------
    ValueError, TypeError
        It is neither, or does not go forward.

    Examples
    --------
    >>> offset_of("15min"), offset_of(1)
    (<15 * Minutes>, 1)
    """
    import pandas as pd

    if isinstance(freq, int | float | np.number) and not isinstance(freq, bool):
        found: Any = freq
        forward = freq > 0
    elif isinstance(freq, str | pd.offsets.BaseOffset | pd.Timedelta):
        try:
            found = pd.tseries.frequencies.to_offset(freq)
        except ValueError:
            try:
                found = pd.PeriodIndex([], freq=freq).freq  # names of periods are others
            except ValueError as error:
                raise ValueError(f"freq is not a frequency of pandas: {error}") from None
        forward = found.n > 0
    else:
        raise TypeError(
            f"freq must be a pandas frequency such as 'h', a number or None, got {freq!r}"
        )
    if not forward:
        raise ValueError(f"freq must go forward in time, got {freq!r}")
    return found


def _season_of(freq: Frequency | None) -> int | None:
    """Return the steps of the season that series of a frequency usually have, None if unknown.

    A day if steps are shorter (an hour, if shorter than a minute), a week of days or business days,
    else a year.

    Examples
    --------
    >>> import pandas as pd
    >>> names = ["30min", "h", "D", "B", "W", "MS", "2ME", "QS", "YS"]
    >>> [_season_of(pd.tseries.frequencies.to_offset(name)) for name in names]
    [48, 24, 7, 5, 52, 12, 6, 4, None]
    """
    if freq is None or isinstance(freq, int | float | np.number):
        return None
    import pandas as pd

    step = _step(freq)
    if step is not None:
        day = pd.Timedelta(days=1)
        if step % (7 * day) == pd.Timedelta(0):
            return _whole(52, step // (7 * day))
        if step >= day:
            return 7 if step == day else None
        whole = day if step >= pd.Timedelta(minutes=1) else pd.Timedelta(hours=1)
        return whole // step if whole % step == pd.Timedelta(0) and whole > step else None
    if isinstance(freq, pd.offsets.BusinessDay):
        week = (
            freq.weekmask.split() if isinstance(getattr(freq, "weekmask", None), str) else "12345"
        )
        return len(week) if freq.n == 1 else None
    if type(freq) is pd.DateOffset:
        return _whole(12, freq.kwds["months"] * freq.n) if set(freq.kwds) == {"months"} else None
    year = pd.date_range("2001-01-01", "2001-12-31", freq=freq.base)
    return _whole(len(year), freq.n) if len(year) <= 24 else None


def common_season(freqs: Iterable[Frequency | None]) -> int | None:
    """Return the season of series of these frequencies, None if they have different ones.

    Frequencies of None are unknown, and do not count.

    Examples
    --------
    >>> common_season([offset_of("h"), None]), common_season([offset_of("h"), offset_of("D")])
    (24, None)
    """
    found = {_season_of(freq) for freq in dict.fromkeys(freqs) if freq is not None}
    return found.pop() if len(found) == 1 else None


def _whole(steps: int, n: int) -> int | None:
    return steps // n if steps % n == 0 and steps > n else None


def _step(freq: Frequency) -> pd.Timedelta | None:
    """Return the length of a frequency's steps, without daylight saving; None: it varies."""
    import pandas as pd

    if isinstance(freq, pd.offsets.Week):
        return pd.Timedelta(days=7 * freq.n)
    if isinstance(freq, pd.offsets.Day):
        return pd.Timedelta(days=freq.n)
    return pd.Timedelta(freq) if isinstance(freq, pd.offsets.Tick) else None


def grid(
    index: pd.Index, freq: Frequency, count: int, clock: pd.Timedelta | None = None
) -> pd.Index:
    """Return `count` steps from the first of an index; `clock` is that of `clock_of`."""
    import pandas as pd

    kind = kind_of(index)
    if kind == "numbers":
        return index[:1].repeat(count) + np.arange(count) * freq
    if kind == "dates":
        return _dates(index, freq, clock, periods=count)
    ranges = {"periods": pd.period_range, "durations": pd.timedelta_range}
    return ranges[kind](index[0], periods=count, freq=freq, name=index.name)


def clock_of(index: pd.Index, row: int) -> pd.Timedelta | None:
    """Return the time of day of an index, where clocks are put forward over it in a row's night.

    None: they are not. Where steps are days or months, that row's time is later than the others'.

    Examples
    --------
    >>> import pandas as pd
    >>> days = pd.DatetimeIndex(["2024-04-25 00:00", "2024-04-26 01:00"], tz="Africa/Cairo")
    >>> clock_of(days, 1), clock_of(days, 0)
    (Timedelta('0 days 00:00:00'), None)
    """
    import pandas as pd

    zone = getattr(index, "tz", None)
    if zone is None:
        return None
    before = (index[row].tz_convert("UTC") - pd.Timedelta(microseconds=1)).tz_convert(zone)
    if index[row].utcoffset() <= before.utcoffset():
        return None
    local = index.tz_localize(None)
    of_day = local - local.normalize()
    return of_day.min() if of_day.min() < of_day[row] else None


def _dates(
    index: pd.Index, freq: Frequency, clock: pd.Timedelta | None = None, **until: Any
) -> pd.DatetimeIndex:
    """Return dates from the first of an index."""
    import pandas as pd

    start = index[0]
    # Before pandas 3, a day was a tick; clocks tell its length in all versions.
    ticks = isinstance(freq, pd.offsets.Tick) and not isinstance(freq, pd.offsets.Day)
    local = start.tzinfo is not None and not ticks
    if local:
        clock = clock_of(index, 0) if clock is None else clock
    if clock is None or not local:
        try:
            return pd.date_range(start, freq=freq, unit=index.unit, name=index.name, **until)
        except _clock_errors():
            if not local:
                raise
    # A clock that is put forward or back at this time of the day.
    until = {key: end if key == "periods" else end.tz_localize(None) for key, end in until.items()}
    start = start.tz_localize(None)
    start = start if clock is None else start.normalize() + clock
    dates = pd.date_range(start, freq=freq, unit=index.unit, name=index.name, **until)
    return dates.tz_localize(
        index.tz, nonexistent="shift_forward", ambiguous=np.ones(len(dates), bool)
    )


def _clock_errors() -> tuple[type[Exception], ...]:
    """Return what pandas raises at times that a clock skips or has twice: before 3.0, pytz's."""
    try:
        import pytz
    except ImportError:
        return (ValueError,)
    return (ValueError, pytz.InvalidTimeError)


def places(index: pd.Index, freq: Frequency) -> Array | None:
    """Return the step of each time, counted from the first, on the grid of a frequency.

    None if a time is not on the grid.

    Parameters
    ----------
    index
        Rising times.

    Examples
    --------
    >>> import pandas as pd
    >>> places(pd.DatetimeIndex(["2024-01-31", "2024-02-29", "2024-05-31"]), pd.offsets.MonthEnd())
    array([0, 1, 4])
    """
    steps = on_grid(index, freq)
    return steps if (steps >= 0).all() and (np.diff(steps) > 0).all() else None


def on_grid(index: pd.Index, freq: Frequency) -> Array:
    """Return what `places` does, -1 for times that are not on the grid."""
    kind, most = kind_of(index), max(_MOST, _FOR_EACH * len(index))
    nowhere = np.full(len(index), -1)
    if isinstance(freq, int | float | np.number) != (kind == "numbers"):
        return nowhere
    if kind == "periods":
        if index.freq != freq:
            return nowhere
        steps, beyond = np.divmod(index.asi8 - index.asi8[0], index.freq.n)
        return np.where(beyond == 0, steps, -1)
    if kind == "dates":
        once = _dates(index, freq, periods=2)
        if once[0] != index[0] or (index[-1] - index[0]) / (once[1] - once[0]) > most:
            return nowhere
        whole = _dates(index, freq, end=index[-1])
        return np.asarray(whole.get_indexer(index), np.int64)
    step = freq if kind == "numbers" else _step(freq)
    if step is None:
        return nowhere
    far = np.asarray((index - index[0]) / step, float)
    if far[-1] > most:
        return nowhere
    return np.where(np.abs(far - far.round()) <= 1e-3, far.round(), -1).astype(np.int64)


def coarser(steps: Array) -> bool:
    """Whether steps are regular, but farther apart than those of their grid.

    Examples
    --------
    >>> coarser(np.array([0, 7, 14])), coarser(np.array([0, 7]))
    (True, False)
    """
    apart = np.diff(steps)
    return len(apart) > 1 and bool(apart[0] > 1) and bool((apart == apart[0]).all())


def infer(index: pd.Index, name: str) -> tuple[Frequency, Array]:
    """Infer how far apart the steps of an index are.

    Parameters
    ----------
    index
        At least two rising times.
    name
        Its table's name in messages.

    Returns
    -------
    tuple
        The frequency, and the step of each time; some may be missing.

    Raises
    ------
    ValueError
        No frequency fits the times such that at least half of them follow each other directly, and
        at least half of the steps are there.
    """
    found: list[tuple[Frequency, Array]] = []
    for freq in _candidates(index):
        steps = places(index, freq)
        if steps is None:
            continue
        if steps[-1] == len(index) - 1:
            return freq, steps
        found.append((freq, steps))
    if not found:
        shown = ", ".join(map(str, index[:3]))
        raise ValueError(
            f"the times of {name}, {shown}, …, are not equally far apart, and no frequency can be "
            f"inferred from them: {advice_on(index)}"
        )
    freq, steps = min(found, key=lambda one: one[1][-1])  # the one with the fewest missing steps
    apart = np.diff(steps)
    if 2 * (apart == 1).sum() < len(apart) or steps[-1] >= 2 * len(steps):
        row = int(apart.argmax()) + 1
        raise ValueError(
            f"most steps of {name} are missing if they are {text_of(freq)} apart, such as those "
            f"before {index[row]}, which comes after {index[row - 1]}: pass "
            f"{setting_of(freq)} if that is right; missing steps are then missing values"
        )
    return freq, steps


def advice_on(index: pd.Index) -> str:
    """Say what to do about times that have no frequency, or not the given one."""
    import pandas as pd

    if kind_of(index) == "numbers":
        return (
            "drop an index that is not time by reset_index(drop=True), in the place of a groupby "
            "pass {key: part.reset_index(drop=True) for key, part in groups}"
        )
    if kind_of(index) == "dates" and len(index) > 1:
        local, hour = index.tz_localize(None), pd.Timedelta(hours=1)
        of_day = (local - local.normalize()).unique()
        changes = len(of_day) == 2 and (of_day.max() - of_day.min()) / hour in (1, 23)
        if changes and (index[1:] - index[:-1]).min() >= 23 * hour:
            return (
                "their time of day changes by an hour, as that of local days in UTC does; convert "
                'them to the local time zone by tz_convert, such as to "Europe/Berlin"'
            )
    return "pass their freq=…, or make them regular by resample"


def _candidates(index: pd.Index) -> Sequence[Frequency]:
    """Return how far apart the steps of an index may be, if some may be missing."""
    import pandas as pd

    kind = kind_of(index)
    if kind == "periods":
        return [index.freq]
    if kind == "numbers":
        apart = np.diff(np.asarray(index))
        if index.dtype.kind in "iu":
            return [int(apart.min())]
        mean = float(index[-1] - index[0]) / (len(index) - 1)  # exact, unless there are gaps
        return [mean, float(f"{np.median(apart):.9g}")]
    given = [index.freq] if index.freq is not None else []
    to_offset = pd.tseries.frequencies.to_offset
    found = [to_offset(apart) for apart in _distances(index)]
    if kind == "durations":
        return given + found
    local = index.tz_localize(None)  # days and months are those of clocks
    day = pd.Timedelta(days=1)
    days = [
        apart // day for apart in _distances(local) if apart % day == 0 * day and apart > 0 * day
    ]
    found = [pd.offsets.Day(count) for count in days] + found
    if 1 in days and local.day_of_week.max() < 5:
        found.append(pd.offsets.BDay())
    months = int(pd.Series(np.diff(local.year * 12 + local.month)).mode()[0])
    if months:
        if (local.day_of_week == local.day_of_week[0]).all():
            week, day = (local.day[0] - 1) // 7, local.day_of_week[0]
            found += [pd.offsets.WeekOfMonth(months, week=week, weekday=day)] if week < 4 else []
            found.append(pd.offsets.LastWeekOfMonth(months, weekday=day))
        # Few months, quarters or years may have equally many days, but are not meant as days.
        named = ("MonthBegin", "MonthEnd", "BMonthBegin", "BMonthEnd")
        ends = [getattr(pd.offsets, name)(months) for name in named]
        same_day = bool((local.day == local.day[0]).all())
        found = [*ends, *([pd.DateOffset(months=months)] if same_day else []), *found]
        found += [] if same_day else [pd.DateOffset(months=months)]
    return given + found


def _distances(index: pd.Index) -> list[pd.Timedelta]:
    """Return the most frequent and the smallest distance of successive times."""
    import pandas as pd

    apart = pd.Series(index[1:] - index[:-1])
    return list(dict.fromkeys((apart.mode()[0], apart.min())))


def equal(one: pd.Index, other: pd.Index) -> bool:
    """Whether two indices have the same times, to rounding."""
    if one is other:
        return True
    kind = kind_of(one)
    if len(one) != len(other) or kind != kind_of(other):
        return False
    if kind == "dates" and (one.tz is None) != (other.tz is None):
        return False
    if kind == "periods" and one.freq != other.freq:
        return False
    if kind == "numbers" and "f" in (one.dtype.kind, other.dtype.kind):
        a, b = np.asarray(one, float), np.asarray(other, float)
        step = np.abs(np.diff(b)).min() if len(b) > 1 else 0
        return bool(np.allclose(a, b, rtol=1e-12, atol=1e-3 * step))
    return bool((one == other).all())


def text_of(freq: Frequency) -> str:
    """Return the name of a frequency.

    Examples
    --------
    >>> text_of(offset_of("30min")), text_of(5)
    ('30min', '5')
    """
    return str(getattr(freq, "freqstr", freq))


def setting_of(freq: Frequency) -> str:
    """Return the parameter `freq` as it is passed.

    Examples
    --------
    >>> setting_of(offset_of("30min")), setting_of(5)
    ("freq='30min'", 'freq=5')
    """
    text = text_of(freq)
    return f"freq={text}" if isinstance(freq, int | float | np.number) else f"freq={text!r}"
