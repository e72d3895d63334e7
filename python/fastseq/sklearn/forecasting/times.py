"""Times of the steps of series: the index of a pandas table, read and compared."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Times", "check_follows", "check_order", "is_table", "read_index", "times_of"]

Array = np.ndarray
Frequency: TypeAlias = "pd.offsets.BaseOffset | float"


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

    Examples
    --------
    >>> import pandas as pd
    >>> month_ends = pd.DatetimeIndex(["2024-01-31", "2024-02-29", "2024-03-31"])
    >>> Times.of(month_ends, "y").following(2).strftime("%d %b").tolist()
    ['30 Apr', '31 May']
    """

    index: pd.Index
    freq: Frequency

    @classmethod
    def of(cls, index: pd.Index, name: str, known: Iterable[Times | None] = ()) -> Times:
        """Find out how far apart the steps of an index are.

        Parameters
        ----------
        index
            As `read_index` returns it.
        name
            The table's name in messages.
        known
            Times of the training series: if they are of the same kind, steps must be as far apart.

        Raises
        ------
        ValueError
            The steps are not equally far apart; if only some are missing, the first is named.
        """
        alike = [t.freq for t in known if t is not None and _kind(t.index) == _kind(index)]
        freqs = list(dict.fromkeys(freq for freq in alike if freq is not None))
        for freq in freqs:
            if _equal(_grid(index, freq, len(index)), index):
                return cls(index, freq)
        if len(index) == 1:
            return cls(index, index.freq if _kind(index) == "periods" else next(iter(freqs), None))
        candidates = _candidates(index)
        fitting = (f for f in candidates if _equal(_grid(index, f, len(index)), index))
        freq = next(fitting, None)
        if freq is None:
            raise ValueError(_why_irregular(index, candidates, name))
        if freqs:
            raise ValueError(
                f"the steps of {name} are {_text(freq)} apart, but those that fit got "
                f"{' or '.join(map(_text, freqs))}"
            )
        return cls(index, freq)

    @property
    def end(self) -> Times:
        """The time of the last step alone."""
        return Times(self.index[-1:], self.freq)

    def following(self, count: int) -> pd.Index:
        """Return the index of the next `count` steps."""
        return _grid(self.index[-1:], self.freq, count + 1)[1:]

    def reaching(self, ahead: int) -> pd.Index:
        """Return the index, and that of the next steps."""
        return self.index.append(self.following(ahead))

    def after(self, count: int) -> Times:
        """Return the time of the last of the next `count` steps."""
        return Times(self.following(count)[-1:], self.freq)


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
        two rows of one time, or unsorted numbers, which need not mean time.

    Examples
    --------
    >>> import pandas as pd
    >>> read_index(pd.DatetimeIndex(["2024-01-02", "2024-01-01"]), "y")[1]
    array([1, 0])
    """
    kind = _kind(index)
    if kind == "levels":
        raise TypeError(
            f"the index of {name} has {index.nlevels} levels, but must have the times alone: pass "
            f"a list of series, such as [part.droplevel(0) for _, part in {name}.groupby(level=0)]"
        )
    if kind == "others":
        raise TypeError(
            f"the index of {name} holds {index.inferred_type} values, but must have dates, periods "
            "or numbers: make dates of it by pandas.to_datetime, or drop it by "
            "reset_index(drop=True)"
        )
    if index.hasnans:
        raise ValueError(f"the index of {name} has no time in row {int(index.isna().argmax())}")
    if not index.is_unique:
        raise ValueError(
            f"{name} has two rows for {index[index.duplicated()][0]}: of several series, pass a "
            "list, one table for each; of one, leave one row for each time"
        )
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
        if moved and (other is None or _kind(other) == "numbers"):
            raise ValueError(
                f"the rows of {name} are not in the order of time, and {other_name} has no times "
                f"to be sorted by: call sort_index on {name}, and put {other_name} into the same "
                "order"
            )


def times_of(
    y: Any, x: Any, names: tuple[str, str], *, ahead: int = 0, known: Iterable[Times | None] = ()
) -> Times | None:
    """Return the times of a series, None if it has none; raise unless its covariates' times match.

    Parameters
    ----------
    y, x
        The indices of a series and of its covariates, None if there is none.
    names
        Their names in messages.
    ahead
        How many steps further covariates reach.
    known
        See `Times.of`.

    Raises
    ------
    ValueError
        The covariates have other times.
    """
    times = None if y is None else Times.of(y, names[0], known)
    if x is None or (times is not None and _counts(x) and _kind(y) != "numbers"):
        return times
    if times is None or (_counts(y) and _kind(x) != "numbers"):
        return Times(x[: len(x) - ahead], Times.of(x, names[1], known).freq)
    expected = y.append(times.following(ahead)) if ahead else y
    what = f"{names[0]} and of the horizon" if ahead else names[0]
    _check_same(x, expected, names[1], what)
    return times


def check_follows(times: Times | None, index: pd.Index, name: str) -> Times:
    """Return the times of steps that must directly follow earlier ones.

    Parameters
    ----------
    times
        Times of the earlier steps; None: they have none.
    index
        The given times. Numbers that count from 0, as in any new table, mean none.
    name
        Name of the new steps in messages.

    Raises
    ------
    ValueError
        They start earlier or later, or some are missing.
    """
    if times is None or times.freq is None or (_counts(times.index) and _kind(index) != "numbers"):
        return Times.of(index, name)
    following = times.following(len(index))
    if _counts(index):
        return Times(following, times.freq)
    _check_same(index, following, name, "the steps that follow")
    return Times(index, times.freq)


def _check_same(index: pd.Index, expected: pd.Index, name: str, what: str) -> None:
    if _kind(index) != _kind(expected):
        raise ValueError(
            f"the index of {name} has {_kind(index)}, but that of {what} has {_kind(expected)}"
        )
    if _aware(index) != _aware(expected):
        raise ValueError(f"only one of the index of {name} and that of {what} has a time zone")
    if not _equal(index, expected):
        row = next(
            i for i in range(len(index)) if not _equal(index[i : i + 1], expected[i : i + 1])
        )
        raise ValueError(
            f"{name} must have the times of {what}: that of step {row} is {expected[row]}, got "
            f"{index[row]}"
        )


def _kind(index: pd.Index) -> str:
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


def _aware(index: pd.Index) -> bool:
    return getattr(index, "tz", None) is not None


def _counts(index: pd.Index) -> bool:
    """Whether an index counts from 0, as in any new table: then it holds no times."""
    return _kind(index) == "numbers" and bool((index == np.arange(len(index))).all())


def _grid(index: pd.Index, freq: Frequency, count: int) -> pd.Index:
    """Return `count` steps from the first of an index."""
    import pandas as pd

    if _kind(index) == "numbers":
        return index[:1].repeat(count) + np.arange(count) * freq
    ranges = {"dates": pd.date_range, "periods": pd.period_range, "durations": pd.timedelta_range}
    return ranges[_kind(index)](index[0], periods=count, freq=freq)


def _equal(one: pd.Index, other: pd.Index) -> bool:
    if len(one) != len(other) or _aware(one) != _aware(other) or _kind(one) != _kind(other):
        return False
    if _kind(one) == "periods" and one.freq != other.freq:
        return False
    if _kind(one) == "numbers" and "f" in (one.dtype.kind, other.dtype.kind):
        a, b = np.asarray(one, float), np.asarray(other, float)
        step = np.abs(np.diff(b)).min() if len(b) > 1 else 0
        return bool(np.allclose(a, b, rtol=1e-12, atol=1e-3 * step))
    return bool((one == other).all())


def _candidates(index: pd.Index) -> list[Frequency]:
    """Return how far apart the steps of an index may be, if some may be missing."""
    import pandas as pd

    kind = _kind(index)
    if kind == "periods":
        return [index.freq]
    if kind == "numbers":
        mean = (index[-1] - index[0]) / (len(index) - 1)  # exact, unless there are holes
        return [int(np.diff(index).min())] if index.dtype.kind in "iu" else [
            float(mean), float(f"{np.median(np.diff(index)):.9g}"),
        ]  # fmt: skip
    given = [index.freq] if index.freq is not None else []
    found = [pd.Series(index[1:] - index[:-1]).mode()[0]]
    if kind == "durations":
        return given + found
    local = index.tz_localize(None)  # days and months are those of clocks
    days = pd.Series(local[1:] - local[:-1]).mode()[0] / pd.Timedelta(days=1)
    if days == int(days):
        found.insert(0, pd.offsets.Day(int(days)))
        if days == 1 and local.day_of_week.max() < 5:
            found.append(pd.offsets.BDay())
    months = int(pd.Series(np.diff(local.year * 12 + local.month)).mode()[0])
    if months:
        if (local.day_of_week == local.day_of_week[0]).all():
            week, day = (local.day[0] - 1) // 7, local.day_of_week[0]
            found += [pd.offsets.WeekOfMonth(months, week=week, weekday=day)] if week < 4 else []
            found.append(pd.offsets.LastWeekOfMonth(months, weekday=day))
        named = ("MonthBegin", "MonthEnd", "BMonthBegin", "BMonthEnd")
        found += [getattr(pd.offsets, name)(months) for name in named]
        found.append(pd.DateOffset(months=months))
    return given + found


def _why_irregular(index: pd.Index, candidates: list[Frequency], name: str) -> str:
    """Return what is wrong with an index whose steps are not equally far apart."""
    holes = {freq: place for freq in candidates if (place := _first_hole(index, freq)) is not None}
    if not holes:
        shown = ", ".join(map(str, index[:3]))
        advice = "make them regular by resample or asfreq"
        if _kind(index) == "numbers":
            advice = "drop an index that is not time by reset_index(drop=True)"
        return (
            f"the times of {name}, {shown}, …, are not equally far apart, and no frequency can be "
            f"inferred from them: {advice}"
        )
    freq = min(holes, key=lambda freq: holes[freq][1])  # the one with the fewest missing steps
    row, _, missing = holes[freq]
    make = f"reindex({name}.index.union([{missing}, …]))"
    if _kind(index) in ("dates", "durations"):
        make = f"asfreq({_text(freq)!r})"
    elif _kind(index) == "numbers":
        make = "reindex"
    return (
        f"{name} has no row for {missing}: {index[row]} comes after {index[row - 1]}, while others "
        f"are {_text(freq)} apart; {make} makes rows of NaN, which marks missing values"
    )


def _first_hole(index: pd.Index, freq: Frequency) -> tuple[int, int, object] | None:
    """Return the first row after a hole, how many steps are missing, and the first missing one.

    None if the steps do not lie on a grid of `freq`.
    """
    import pandas as pd

    kind = _kind(index)
    if kind == "dates":
        if index[-1] - index[0] > 1000 * len(index) * (index[1:] - index[:-1]).min():
            return None
        grid = pd.date_range(index[0], index[-1], freq=freq)
    elif kind == "periods":
        grid = pd.period_range(index[0], index[-1], freq=freq)
    else:
        whole = np.asarray((index - index[0]) / freq, float)
        if not np.allclose(whole, whole.round(), rtol=0, atol=1e-3) or whole[-1] > 1e9:
            return None
        holes = np.flatnonzero(np.diff(whole.round()) > 1)
        if not holes.size:
            return None
        row = int(holes[0]) + 1
        return row, round(whole[-1]) + 1 - len(index), index[row - 1] + freq
    if len(grid) <= len(index) or not bool(index.isin(grid).all()):
        return None
    row = int(np.flatnonzero(np.asarray(grid[: len(index)] != index))[0])
    return row, len(grid) - len(index), grid[row]


def _text(freq: Frequency) -> str:
    import pandas as pd

    if isinstance(freq, pd.Timedelta):
        freq = pd.tseries.frequencies.to_offset(freq)
    return str(getattr(freq, "freqstr", freq))
