"""Checks of the ids and times of series, of their covariates, and of the steps that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from .frequencies import kind_of, on_grid
from .series import Array, Series
from .times import Times, check_follows, check_order, refuse_long_gap, times_of

__all__ = [
    "after_gaps", "aligned", "check_ahead", "check_by_id", "check_going_on", "check_ids",
    "check_together", "joined", "rows_of_ids",
]  # fmt: skip


def check_together(y: Series, x: Series | None, *, ahead: int = 0) -> list[Times | None]:
    """Return the times of series, None where there are none; covariates' times must match.

    Parameters
    ----------
    y, x
        The series, and their covariates.
    ahead
        How many steps further the covariates reach.

    Raises
    ------
    ValueError
        Times of covariates differ.
    """
    found: dict[tuple[int, int], Times | None] = {}  # many series may have the same times
    times = []
    for own, other, names in _pairs(y, x):
        key = id(own), id(other)
        if key not in found:
            found[key] = times_of(own, other, names, ahead=ahead)
        times.append(found[key])
    return times


def check_going_on(
    y: Series, x: Series | None, before: Sequence[Times | None]
) -> list[Times | None]:
    """Return the end times of series that, with their covariates, continue earlier steps.

    Series without steps end where they did.

    Parameters
    ----------
    y, x
        The next steps, and their covariates.
    before
        Times of the earlier steps; None where there are none.

    Raises
    ------
    ValueError
        The steps do not follow.
    """
    known: dict[tuple[int, ...], Times | None] = {}
    ends: list[Times | None] = []
    for (own, other, names), last, steps in zip(_pairs(y, x), before, y.lengths, strict=True):
        if not steps:
            ends.append(last)
            continue
        key = id(own), id(other), id(last), int(steps)
        if key not in known:
            known[key] = _end(own, other, names, last, int(steps))
        ends.append(known[key])
    return ends


def _end(
    own: Times | None, other: Times | None, names: tuple[str, str], last: Times | None, steps: int
) -> Times | None:
    if last is None:
        times = times_of(own, other, names)
        return None if times is None else times.end
    given = zip((own, other), names, strict=True)
    found = [check_follows(last, one, name) for one, name in given if one is not None]
    return found[0].end if found else last.then(steps).end


def check_ahead(x: Series, before: Sequence[Times | None]) -> None:
    """Raise ValueError unless covariates directly follow the earlier steps."""
    known: set[tuple[int, int]] = set()
    for own, name, last in zip(x.times, _names(x, "X"), before, strict=True):
        if own is not None and (id(own), id(last)) not in known:
            check_follows(last, own, name)
            known.add((id(own), id(last)))


def rows_of_ids(series: Series, ids: tuple[Any, ...] | None, name: str) -> Array:
    """Return the position in `ids` of each of some series.

    Parameters
    ----------
    series
        Series with ids.
    ids
        All ids; None: they have none.
    name
        The series' name in messages.

    Raises
    ------
    ValueError
        There is no such id.

    Examples
    --------
    >>> from .series import read_series
    >>> rows_of_ids(read_series({"b": np.zeros(3)}, "y"), ("a", "b"), "y")
    array([1])
    """
    assert series.ids is not None
    if ids is None:
        raise ValueError(f"{name} has ids, such as {series.ids[0]!r}, but the series have none")
    places = {one: place for place, one in enumerate(ids)}
    unknown = [one for one in series.ids if one not in places]
    if unknown:
        raise ValueError(
            f"{name} has the id {unknown[0]!r}, which none of the {len(ids)} series has, such as "
            f"{ids[0]!r}"
        )
    return np.array([places[one] for one in series.ids], np.int64)


def check_ids(series: Series, like: Series, name: str) -> None:
    """Raise ValueError if series without ids belong to those of a long frame, which are sorted.

    Parameters
    ----------
    series
        Series that go by their order if they have no ids.
    like
        The series to which they belong.
    name
        Name of `series` in messages.
    """
    if like.form.kind == "long" and series.ids is None and not series.single:
        raise ValueError(
            f"{name} has no ids, but the series came in a long frame: pass {name} as a long frame, "
            "too, or as a dictionary by id"
        )


def check_by_id(
    x: Series | None, given: tuple[Any, ...] | None, now: tuple[Any, ...] | None
) -> None:
    """Raise ValueError if covariates go by their order, though their series were put into another.

    Parameters
    ----------
    x
        The covariates; None: there are none.
    given, now
        The ids of the series as they were given, and in their present order.
    """
    if x is not None and x.ids is None and not x.single and given != now:
        raise ValueError(
            "X has no ids, but y has its series in another order than in fit: pass X as a "
            "dictionary by id"
        )


def aligned(series: Series, ids: tuple[Any, ...] | None, name: str) -> Series:
    """Return series in the order of `ids`, all of which must be given; unchanged without ids.

    Parameters
    ----------
    series, ids, name
        As in `rows_of_ids`.

    Raises
    ------
    ValueError
        An id is missing, or is none of `ids`.

    Examples
    --------
    >>> from .series import read_series
    >>> series = read_series({"b": np.zeros(3), "a": np.ones(3)}, "X")
    >>> aligned(series, ("a", "b"), "X").ids
    ('a', 'b')
    """
    if series.ids is None or series.ids == ids:
        return series
    rows = rows_of_ids(series, ids, name)
    assert ids is not None
    if len(rows) < len(ids):
        missing = next(one for one in ids if one not in set(series.ids))
        raise ValueError(f"{name} lacks the series {missing!r}")
    return series.take(rows.argsort())


def after_gaps(series: Series, before: Sequence[Times | None]) -> Series:
    """Return series with missing values for the steps between earlier ones and their first.

    Parameters
    ----------
    series
        Later steps.
    before
        Times of the earlier steps; None where there are none.

    Examples
    --------
    >>> import pandas as pd
    >>> from .series import read_series
    >>> later = read_series(pd.Series([1.0, 2.0], [8, 9]), "y")
    >>> after_gaps(later, [Times(pd.Index([6]), 1)]).arrays[0].T
    array([[nan,  1.,  2.]])
    """
    arrays, indices = list(series.arrays), list(series.indices)
    known: dict[tuple[int, int], Any] = {}
    for number, (own, last) in enumerate(zip(series.times, before, strict=True)):
        if own is None or last is None or last.freq is None or own.mean_nothing:
            continue
        if not len(own.index):
            continue
        key = id(own), id(last)
        if key not in known:
            known[key] = _gap(own, last, _names(series, "y")[number])
        if known[key] is not None:
            arrays[number] = np.pad(
                arrays[number], ((len(known[key]) - len(own.index), 0), (0, 0)),
                constant_values=np.nan,
            )  # fmt: skip
            indices[number] = known[key]
    return dataclasses.replace(series, arrays=arrays, indices=tuple(indices))


def _gap(own: Times, last: Times, name: str) -> Any:
    """Return times with the steps that are missing before them; None: there are none."""
    index, zones = own.index, [getattr(one.index, "tz", None) for one in (own, last)]
    if kind_of(index) != kind_of(last.index) or (zones[0] is None) != (zones[1] is None):
        return None
    index = index if zones[0] is None else index.tz_convert(zones[1])
    if index[0] <= last.index[-1]:
        return None
    both = last.index[-1:].append(index[:1])
    assert last.freq is not None
    steps = on_grid(both, last.freq)
    if steps[-1] <= 1:
        return None
    refuse_long_gap(both, name, last.freq, steps)
    return last.following(int(steps[-1]) - 1).append(index)


def joined(first: Series, then: Series) -> Series:
    """Concatenate series in time.

    Examples
    --------
    >>> from .series import read_series
    >>> joined(read_series(np.zeros(3), "X"), read_series(np.ones(1), "X")).lengths
    array([4])
    """
    known: dict[tuple[int, int], Any] = {}
    indices = []
    for pair in zip(first.indices, then.indices, strict=True):
        key = id(pair[0]), id(pair[1])
        if key not in known:
            known[key] = None if pair[0] is None or pair[1] is None else pair[0].append(pair[1])
        indices.append(known[key])
    arrays = [np.concatenate(both) for both in zip(first.arrays, then.arrays, strict=True)]
    return dataclasses.replace(first, arrays=arrays, indices=tuple(indices))


def _names(series: Series, name: str) -> list[str]:
    count = len(series.arrays)
    if series.single:
        return [name] * count
    return [f"{name}[{key!r}]" for key in series.ids or range(count)]


def _pairs(y: Series, x: Series | None) -> list[tuple[Times | None, Times | None, tuple[str, str]]]:
    """Return for each series its times, its covariates' times, and their names in messages."""
    if x is None:
        return [(own, None, (name, "X")) for own, name in zip(y.times, _names(y, "y"), strict=True)]
    names = list(zip(_names(y, "y"), _names(x, "X"), strict=True))
    for number, pair in enumerate(names):
        check_order(
            (y.indices[number], y.moved[number]), (x.indices[number], x.moved[number]), pair
        )
    return list(zip(y.times, x.times, names, strict=True))
