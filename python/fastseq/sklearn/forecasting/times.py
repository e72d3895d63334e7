"""Times of the steps of series: the index of a pandas table, read and compared."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from .frequencies import (
    Frequency,
    advice_on,
    clock_of,
    coarser,
    equal,
    grid,
    infer,
    kind_of,
    places,
    setting_of,
    text_of,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MISSING", "Spacing", "Times", "check_follows", "check_order", "counts", "ends_of", "is_table",
    "plain", "read_index", "refuse_dates_as_numbers", "refuse_long_gap", "regular", "times_of",
]  # fmt: skip

Array = np.ndarray
MISSING = 100  # steps that may be missing at once, besides as many as there are times


@dataclasses.dataclass(frozen=True)
class Spacing:
    """How far apart times must be.

    Parameters
    ----------
    given
        The parameter `freq`; None: it is inferred.
    known
        Kinds and frequencies of the training series: times of the same kind must have the same
        frequency.
    """

    given: Frequency | None = None
    known: tuple[tuple[str, Frequency], ...] = ()

    @classmethod
    def as_of(cls, series: Iterable[Times | None], given: Frequency | None) -> Spacing:
        """Return the spacing that series of the same kind as others must have."""
        apart = {id(one): one for one in series if one is not None}.values()
        known = [(kind_of(one.index), one.freq) for one in apart if one.freq is not None]
        return cls(given, tuple(dict.fromkeys(known)))


@dataclasses.dataclass(frozen=True)
class Times:
    """Times of a series' steps, all equally far apart.

    Parameters
    ----------
    index
        A rising pandas index of dates, periods or numbers; often only its end.
    freq
        Their distance: a pandas offset, or a difference of numbers. None: unknown, as there is
        only one step.
    column
        Whether they come from a column of times. Otherwise numbers that count from 0, like the
        index of any new table, are not times.
    clock
        The steps' time of day, if clocks were put forward over it before the last one, which is
        therefore later.

    Examples
    --------
    >>> import pandas as pd
    >>> month_ends = pd.DatetimeIndex(["2024-01-31", "2024-02-29", "2024-03-31"])
    >>> regular(month_ends, "y")[0].following(2).strftime("%d %b").tolist()
    ['30 Apr', '31 May']
    """

    index: pd.Index
    freq: Frequency | None
    column: bool = False
    clock: pd.Timedelta | None = None

    @property
    def end(self) -> Times:
        """The time of the last step only."""
        clock = clock_of(self.index, -1) if len(self.index) > 1 else self.clock
        return dataclasses.replace(self, index=self.index[-1:], clock=clock)

    @property
    def mean_nothing(self) -> bool:
        """Whether they only count from 0."""
        return not self.column and counts(self.index)

    def following(self, count: int) -> pd.Index:
        """Return the index of the next `count` steps."""
        if self.freq is None:
            raise ValueError(
                f"the times after {self.index[-1]}, the only one of its series, are unknown: pass "
                "freq=…"
            )
        return grid(self.index[-1:], self.freq, count + 1, self.end.clock)[1:]

    def reaching(self, ahead: int) -> pd.Index:
        """Return the index, and that of the next steps."""
        return self.index.append(self.following(ahead))

    def then(self, count: int) -> Times:
        """Return the times of the next `count` steps."""
        index = self.following(count)
        clock = clock_of(self.index[-1:].append(index), -1)
        return dataclasses.replace(self, index=index, clock=clock)


def ends_of(series: Iterable[Times | None]) -> list[Times | None]:
    """Return the times of the last steps; series of the same times share one object."""
    known: dict[int, Times] = {}
    found: list[Times | None] = []
    for times in series:
        if times is not None and id(times) not in known:
            known[id(times)] = times.end
        found.append(None if times is None else known[id(times)])
    return found


def regular(
    index: pd.Index,
    name: str,
    spacing: Spacing = Spacing(),
    others: Iterable[tuple[str, Frequency]] = (),
) -> tuple[Times, Array | None]:
    """Return times with missing ones filled in, and the step of each given one.

    Parameters
    ----------
    index
        As `read_index` returns it.
    name
        The table's name in messages.
    spacing
        How far apart they must be.
    others
        Kinds and frequencies of other series of the panel: these frequencies are tried first.

    Returns
    -------
    tuple
        The times, and the step of each row of the index; None: no time is missing.

    Raises
    ------
    ValueError
        The times do not have the required frequency, or none can be inferred.

    Examples
    --------
    >>> import pandas as pd
    >>> times, steps = regular(pd.Index([5, 10, 20, 25]), "y")
    >>> times.index.tolist(), steps
    ([5, 10, 15, 20, 25], array([0, 1, 3, 4]))
    """
    kind = kind_of(index)
    if spacing.given is not None and not (kind == "numbers" and counts(index)):
        return _at(index, name, spacing.given)
    near: tuple[Frequency, Array] | None = None
    alike = list(dict.fromkeys(freq for of, freq in spacing.known if of == kind))
    loose = [freq for of, freq in others if of == kind]
    for freq in dict.fromkeys([*alike, *loose]):
        steps = places(index, freq)
        if steps is not None and steps[-1] == len(index) - 1:
            return _filled(index, freq, steps)
        if steps is not None and near is None and not coarser(steps):
            near = freq, steps
    if len(index) == 1:
        one = index.freq if kind == "periods" else next(iter([*alike, *loose]), None)
        return Times(index, one), None
    if near is not None and (alike or len(index) == 2):
        refuse_long_gap(index, name, *near)
        return _filled(index, *near)
    try:
        own = infer(index, name)
    except ValueError:
        if near is None:
            raise
        refuse_long_gap(index, name, *near)
        return _filled(index, *near)
    if alike:
        raise ValueError(
            f"the steps of {name} are {text_of(own[0])} apart, but those that fit got "
            f"{' or '.join(map(text_of, alike))}"
        )
    missing = own[1][-1] > len(index) - 1
    return _filled(index, *(near if near is not None and missing else own))


def _at(index: pd.Index, name: str, freq: Frequency) -> tuple[Times, Array | None]:
    """Return times at a given frequency, as `regular` does."""
    kind, named = kind_of(index), setting_of(freq)
    if isinstance(freq, int | float | np.number) != (kind == "numbers"):
        raise ValueError(
            f"{named}, but the index of {name} has {kind}: numbers need a number, and dates a "
            "frequency of pandas"
        )
    if kind == "periods" and index.freq != freq:
        raise ValueError(f"{named}, but the periods of {name} are {text_of(index.freq)}")
    steps = places(index, freq)
    if steps is None:
        ends = (k for k in range(2, len(index) + 1) if places(index[:k], freq) is None)
        row = 0 if places(index[:1], freq) is None else next(ends) - 1
        raise ValueError(
            f"{named}, but {name} has {index[row]}, which does not fit it: {advice_on(index)}"
        )
    return _filled(index, freq, steps)


def refuse_long_gap(index: pd.Index, name: str, freq: Frequency, steps: Array) -> None:
    """Raise if so many steps are missing at once that a time must be mistyped."""
    apart = np.diff(steps)
    row = int(apart.argmax()) + 1
    if apart[row - 1] > len(index) + MISSING:
        raise ValueError(
            f"{apart[row - 1] - 1} steps of {name} are missing before {index[row]}, which comes "
            f"after {index[row - 1]}: pass {setting_of(freq)} if that is right; missing steps are "
            "then missing values"
        )


def _filled(index: pd.Index, freq: Frequency, steps: Array) -> tuple[Times, Array | None]:
    whole = steps[-1] == len(index) - 1
    if whole and kind_of(index) == "numbers":
        return Times(index, freq), None
    return Times(grid(index, freq, int(steps[-1]) + 1), freq), None if whole else steps


def is_table(given: object) -> bool:
    """Whether it is a pandas Series or DataFrame; does not import pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(given, pandas.Series | pandas.DataFrame)


def read_index(index: pd.Index, name: str) -> tuple[pd.Index, Array | None]:
    """Return a table's index sorted by time, and the order of rows if they must be moved.

    Parameters
    ----------
    index
        The index of a Series or DataFrame.
    name
        The table's name in messages.

    Raises
    ------
    ValueError, TypeError
        The index does not hold dates, periods or numbers, has a row without a time (NaT or NaN),
        two rows for one time, or unsorted numbers, which may not mean time.

    Examples
    --------
    >>> import pandas as pd
    >>> read_index(pd.DatetimeIndex(["2024-01-02", "2024-01-01"]), "y")[1]
    array([1, 0])
    """
    index = plain(index)
    kind = kind_of(index)
    if kind == "levels":
        raise TypeError(
            f"the index of {name} has {index.nlevels} levels, but must have the times alone: pass "
            f"a list of series, such as [part.droplevel(0) for _, part in {name}.groupby(level=0)]"
        )
    if kind == "others":
        raise TypeError(
            f"the index of {name} holds {index.inferred_type} values, but must have dates, periods "
            "or numbers: convert it by pandas.to_datetime, or drop it by "
            "reset_index(drop=True)"
        )
    if index.hasnans:
        raise ValueError(f"the index of {name} has no time in row {int(index.isna().argmax())}")
    if not index.is_unique:
        raise ValueError(
            f"{name} has two rows for {index[index.duplicated()][0]}: for several series, pass a "
            "list, one table for each; for one, keep one row for each time"
        )
    refuse_dates_as_numbers(index, f"the index of {name}")
    if index.is_monotonic_increasing:
        return index, None
    if kind == "numbers":
        row = int(np.flatnonzero(np.asarray(index[1:] < index[:-1]))[0])
        raise ValueError(
            f"the index of {name} is not in order, {index[row + 1]} comes after {index[row]}: call "
            "sort_index if it is the time, else reset_index(drop=True)"
        )
    order = np.asarray(index.argsort())
    return index[order], order


def plain(index: pd.Index) -> pd.Index:
    """Return an index of a type of arrow, or of one with missing values, as one of NumPy's.

    Objects that are dates of Python, as from SQL, become dates of pandas.
    """
    import pandas as pd

    kinds = {"M": pd.DatetimeIndex, "m": pd.TimedeltaIndex}
    if kind_of(index) == "others" and not index.hasnans and index.inferred_type == "date":
        return pd.DatetimeIndex(index)
    if isinstance(index.dtype, np.dtype) or index.hasnans:
        return index
    if kind_of(index) == "numbers":
        return pd.Index(index.to_numpy(index.dtype.numpy_dtype), name=index.name)
    if kind_of(index) == "others" and index.dtype.kind in kinds:
        return kinds[index.dtype.kind](index)
    return index


def refuse_dates_as_numbers(index: pd.Index, name: str) -> None:
    """Raise ValueError if numbers are dates such as 20240131, or months such as 202401.

    Examples
    --------
    >>> import pandas as pd
    >>> refuse_dates_as_numbers(pd.Index([2023, 2024]), "the index of y")
    >>> refuse_dates_as_numbers(pd.Index([20240131, 20240201]), "the index of y")
    Traceback (most recent call last):
    ValueError: the index of y has dates as numbers, such as 20240131: convert them by \
    pandas.to_datetime(…, format="%Y%m%d")
    """
    if kind_of(index) != "numbers" or index.dtype.kind not in "iu" or len(index) < 2:
        return
    for form, digits in (("%Y%m%d", 8), ("%Y%m", 6)):
        rest = np.asarray(index, np.int64)
        days = rest % 100 if digits == 8 else np.ones_like(rest)
        rest = rest // 100 if digits == 8 else rest
        years, months = rest // 100, rest % 100
        fits = (years >= 1900) & (years < 2100) & (months >= 1) & (months <= 12)
        # Numbers within a year may be others.
        if (fits & (days >= 1) & (days <= 31)).all() and (digits == 8 or np.ptp(years)):
            raise ValueError(
                f"{name} has dates as numbers, such as {index[0]}: convert them by "
                f'pandas.to_datetime(…, format="{form}")'
            )


def check_order(
    y: tuple[pd.Index | None, bool], x: tuple[pd.Index | None, bool], names: tuple[str, str]
) -> None:
    """Raise if rows of a series or of its covariates were sorted, and the other has no times.

    Parameters
    ----------
    y, x
        The index of each, None if there is none, and whether its rows were moved.
    names
        Their names in messages.
    """
    pairs = ((y, x, *names), (x, y, *reversed(names)))
    for (_, moved), (other, _), name, other_name in pairs:
        if moved and (other is None or kind_of(other) == "numbers"):
            raise ValueError(
                f"the rows of {name} are not in the order of time, and {other_name} has no times "
                f"to be sorted by: call sort_index on {name}, and put {other_name} into the same "
                "order"
            )


def times_of(
    y: Times | None, x: Times | None, names: tuple[str, str], *, ahead: int = 0
) -> Times | None:
    """Return the times of a series, None if it has none; raise unless its covariates' times match.

    Parameters
    ----------
    y, x
        The times of a series and of its covariates, None if there are none.
    names
        Their names in messages.
    ahead
        How many steps further covariates reach.

    Raises
    ------
    ValueError
        The covariates have other times.
    """
    if x is None or (y is not None and x.mean_nothing and kind_of(y.index) != "numbers"):
        return y
    if y is None or (y.mean_nothing and kind_of(x.index) != "numbers"):
        return dataclasses.replace(x, index=x.index[: len(x.index) - ahead])
    expected = y.index.append(y.following(ahead)) if ahead else y.index
    what = f"{names[0]} and of the horizon" if ahead else names[0]
    _check_same(x.index, expected, names[1], what)
    return y


def check_follows(times: Times | None, given: Times, name: str) -> Times:
    """Return the times of steps that must directly follow earlier ones.

    Parameters
    ----------
    times
        Times of the earlier steps; None: they have none.
    given
        The given times.
    name
        Name of the new steps in messages.

    Raises
    ------
    ValueError
        They start earlier or later, or some are missing.
    """
    numbers = kind_of(given.index) == "numbers"
    if times is None or times.freq is None or (times.mean_nothing and not numbers):
        return given
    then = times.then(len(given.index))
    if given.mean_nothing:
        return then
    advice = ""
    if kind_of(given.index) == kind_of(then.index) and _aware(given.index) == _aware(then.index):
        late = given.index[0] > then.index[0]
        advice = "; if steps between them have no values, add rows of NaN" if late else ""
    _check_same(given.index, then.index, name, "the steps that follow", advice)
    # Dates stay in their time zone; numbers are not summed up, with their rounding.
    return dataclasses.replace(then, index=given.index) if numbers else then


def _check_same(
    index: pd.Index, expected: pd.Index, name: str, what: str, advice: str = ""
) -> None:
    if kind_of(index) != kind_of(expected):
        raise ValueError(
            f"the index of {name} has {kind_of(index)}, but that of {what} has {kind_of(expected)}"
        )
    if _aware(index) != _aware(expected):
        if _aware(index):
            own, other, advice = f"the time zone {index.tz}", "none", "drop it by tz_localize(None)"
        else:
            own, other = "no time zone", str(expected.tz)
            advice = f"add it by tz_localize({other!r})"
        raise ValueError(f"the index of {name} has {own}, but that of {what} has {other}: {advice}")
    if not equal(index, expected):
        rows = range(min(len(index), len(expected)))
        row = next((i for i in rows if not equal(index[i : i + 1], expected[i : i + 1])), None)
        if row is None:
            raise ValueError(
                f"{name} must have the times of {what}: {len(expected)} steps from {expected[0]} "
                f"to {expected[-1]}, got {len(index)}"
            )
        raise ValueError(
            f"{name} must have the times of {what}: that of step {row} is {expected[row]}, got "
            f"{index[row]}{advice}"
        )


def _aware(index: pd.Index) -> bool:
    return getattr(index, "tz", None) is not None


def counts(index: pd.Index) -> bool:
    """Whether an index counts from 0, as in any new table: then it holds no times."""
    return kind_of(index) == "numbers" and bool((index == np.arange(len(index))).all())
