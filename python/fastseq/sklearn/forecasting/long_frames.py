"""Long frames: the rows of many series one below another, with columns of ids and times."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..inputs.polars_frames import as_pandas, is_polars, kinds_of, refuse_unread, to_pandas
from .frequencies import (
    Frequency,
    advice_on,
    grid,
    infer,
    kind_of,
    on_grid,
    setting_of,
    text_of,
)
from .result_forms import Form
from .times import MISSING, Spacing, is_table, plain, refuse_dates_as_numbers, refuse_long_gap

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Columns", "LongTable"]

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class LongTable:
    """Values of many series, sorted by series and time.

    Parameters
    ----------
    table
        The given rows: a Series, or a DataFrame of several columns.
    steps
        The step of each row, counted through all series; None: no step is missing.
    bounds
        Where each series starts and the last one ends, in steps, ``(N + 1,)``.
    ids
        Names of the series.
    indices
        Times of each series.
    freq
        Distance of the steps; None: unknown, because each series has only one.
    gap
        The first series with missing steps, and the first of these.
    form
        The form of results.
    """

    table: pd.Series | pd.DataFrame
    steps: Array | None
    bounds: Array
    ids: tuple[Any, ...]
    indices: tuple[pd.Index, ...]
    freq: Frequency | None
    gap: tuple[int, object] | None
    form: Form

    def place(self, row: int) -> str:
        """Describe the place of a row, for messages."""
        step = row if self.steps is None else int(self.steps[row])
        series = int(np.searchsorted(self.bounds, step, side="right")) - 1
        return f"at {self.indices[series][step - self.bounds[series]]} of {self.ids[series]!r}"


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of long frames.

    Parameters
    ----------
    id, time, target
        Columns of ids, of times, and of values.
    weights
        A column of weights, which is left out, if there is one.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"unique_id": ["b", "a", "a"], "ds": [1, 2, 1], "y": [3.0, 2.0, 1.0]})
    >>> y, X = Columns("unique_id", "ds", "y").split(frame, None, Spacing())
    >>> y.ids, y.table.tolist(), X
    (('a', 'b'), [1.0, 2.0, 3.0], None)
    """

    id: str
    time: str
    target: str
    weights: str | None = None

    def split(self, y: Any, x: Any, spacing: Spacing) -> tuple[Any, Any]:
        """Split what a user passes into series and covariates.

        A long frame becomes a `LongTable` of its series and one of its covariates, a groupby a
        dictionary; other data are returned unchanged.

        Parameters
        ----------
        y, x
            The data passed. If `y` is a long frame, its other columns are the covariates.
        spacing
            How far apart times must be.

        Raises
        ------
        ValueError, TypeError
            A frame has no target, an id or time is missing or occurs twice, or steps are not
            equally far apart.
        """
        if not self.is_long(y):
            self._refuse_incomplete(y, "y")
            return _by_group(y, self.time), self.covariates(x, spacing)
        rows = _Rows.read(y, "y", self, spacing)
        if self.target not in rows.others:
            raise ValueError(
                f"y has the columns {self.id!r} and {self.time!r} of a long frame, but not the "
                f"target, {self.target!r}: name it by target_col; covariates of a horizon are X, "
                "predict(X=…)"
            )
        if x is not None:
            raise ValueError(
                "y is a long frame, whose other columns are the covariates: X must be None"
            )
        others = [name for name in rows.others if name not in (self.target, self.weights)]
        return rows.part(self.target), rows.part(others) if others else None

    def covariates(self, x: Any, spacing: Spacing, known: tuple[str, ...] | None = None) -> Any:
        """Return covariates that a user passes, as `split` does.

        `known`: names of those that `fit` got; a target that is not among them must be missing, and
        is left out.
        """
        if not self.is_long(x):
            self._refuse_incomplete(x, "X")
            return self.grouped(x)
        rows = _Rows.read(x, "X", self, spacing)
        others = [name for name in rows.others if name != self.weights]
        if known is not None and self.target in others and self.target not in known:
            others.remove(self.target)
            if rows.frame[self.target].notna().any():
                raise ValueError(
                    f"X has values of the target, {self.target!r}, which are not known ahead: "
                    f"leave this column out, with pandas X.drop(columns={self.target!r}); past "
                    "values belong into y"
                )
        if not others:
            lacking = f", but fit got {', '.join(known)}" if known else ""
            raise ValueError(f"X has no columns besides ids and times{lacking}")
        return rows.part(others)

    def grouped(self, given: Any) -> Any:
        """Return a pandas groupby as a dictionary, and polars frames as pandas ones."""
        return as_pandas(_by_group(given, self.time))

    @contextlib.contextmanager
    def split_by_rows(self, given: Any) -> Iterator[None]:
        """Add to an error about a long frame that a search may have split it by rows."""
        try:
            yield
        except ValueError as error:
            if not self.is_long(given):
                raise
            raise ValueError(
                f"score needs data that follow those of fit: {error} (if this is a search or a "
                "cross-validation: splitters cut a long frame between any rows, so pass "
                "cv=[(rows, later rows), …], split by time)"
            ) from error

    def _refuse_incomplete(self, given: Any, name: str) -> None:
        """Raise ValueError for what looks like a long frame, but is none; see `refuse_unread`."""
        refuse_unread(given, name)
        wide = is_polars(given) or (is_table(given) and given.ndim == 2)
        columns = set(given.columns) if wide else set()
        levels = set(given.index.names) if is_table(given) else set()
        if {self.id, self.time} <= columns | levels:
            inside = [repr(one) for one in (self.id, self.time) if one not in columns]
            raise ValueError(
                f"{name} has {' and '.join(inside)} in its index, but a long frame has ids and "
                f"times as columns: pass {name}.reset_index()"
            )
        if name == "y" and self.id in columns:
            raise ValueError(
                f"y has the column {self.id!r} of ids, but not {self.time!r}, that of times: name "
                "it by time_col, or turn the index into it by reset_index"
            )
        if name == "y" and self.time in columns:
            single = "make times the index by set_index" if is_table(given) else "add such a column"
            raise ValueError(
                f"y has the column {self.time!r} of times, but not {self.id!r}, that of ids: name "
                f"it by id_col; for a single series, {single}"
            )

    def is_long(self, given: Any) -> bool:
        """Whether it is a table with the columns of ids and times."""
        table = is_polars(given) or (is_table(given) and given.ndim == 2)
        return table and {self.id, self.time} <= set(given.columns)


def _by_group(given: Any, time: str) -> Any:
    """Return a pandas groupby as a dictionary, other data unchanged."""
    if not (hasattr(given, "ngroups") and hasattr(given, "obj")):
        return given
    keys = given.keys if isinstance(given.keys, list) else [given.keys]
    keys = [key for key in keys if isinstance(key, Hashable)]
    level = given.level

    def table(part: Any) -> Any:
        if part.ndim == 2:
            part = part.drop(columns=[key for key in keys if key in list(part.columns)])
            part = part.set_index(time) if time in part.columns else part
        return part if level is None or part.index.nlevels == 1 else part.droplevel(level)

    return {key: table(part) for key, part in given}


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of a long frame, and how to sort them; see `LongTable`."""

    frame: pd.DataFrame
    others: list[str]
    order: Array | None
    steps: Array | None
    bounds: Array
    ids: pd.Index
    indices: tuple[pd.Index, ...]
    freq: Frequency | None
    gap: tuple[int, object] | None
    form: Form

    @classmethod
    def read(cls, given: Any, name: str, columns: Columns, spacing: Spacing) -> _Rows:
        """Sort and check the rows of a frame, called `name` in messages."""
        polars = is_polars(given)
        frame = to_pandas(given) if polars else given
        own = list(frame.columns)
        twice = next((column for column in own if own.count(column) > 1), None)
        if twice is not None:
            raise ValueError(f"{name} has two columns {twice!r}")
        if not len(frame):
            raise ValueError(f"{name} has no series: it is empty")
        ids, series = _sorted_codes(frame[columns.id], f"column {columns.id!r} of {name}")
        times, when = _read_times(frame[columns.time], f"column {columns.time!r} of {name}")
        key = series * len(times) + when
        order = None
        if not (np.diff(key) > 0).all():
            order = _order(key, len(ids) * len(times))
            series, when = series[order], when[order]
            double = np.flatnonzero((np.diff(series) == 0) & (np.diff(when) == 0))
            if double.size:
                row = double[0]
                raise ValueError(
                    f"{name} has two rows for {times[when[row]]} of {ids[series[row]]!r}: keep "
                    "one row for each time of a series"
                )
        counts = np.bincount(series)
        placed = _place(times, when, counts, ids, name, spacing)
        bounds = np.concatenate([[0], placed.lengths.cumsum()])
        steps = gap = None
        if bounds[-1] > len(when):
            steps = placed.steps + np.repeat(bounds[:-1], counts)
            first = int(np.flatnonzero(placed.lengths > counts)[0])
            start = int(counts[:first].sum())
            there = placed.steps[start : start + counts[first]]
            missing = np.setdiff1d(np.arange(placed.lengths[first]), there)[0]
            gap = first, placed.indices[first][missing]
        form = Form(
            "long", ids, columns=(columns.id, columns.time, columns.target),
            polars=kinds_of(given, columns.id, columns.time) if polars else None,
        )  # fmt: skip
        others = [column for column in own if column not in (columns.id, columns.time)]
        return cls(
            frame, others, order, steps, bounds, ids, placed.indices, placed.freq, gap,
            form,
        )  # fmt: skip

    def part(self, columns: str | list[str]) -> LongTable:
        """Return some of the columns."""
        table = self.frame[columns]
        if self.order is not None:
            table = table.take(self.order)
        return LongTable(
            table, self.steps, self.bounds, tuple(self.ids.tolist()), self.indices, self.freq,
            self.gap, self.form,
        )  # fmt: skip


def _order(keys: Array, count: int) -> Array:
    """Return the order that sorts integers in ``[0, count)``; rows of equal ones are neighbours."""
    if count <= 8 * len(keys):  # fewer steps than a sort
        rows = np.full(count, -1)
        rows[keys] = np.arange(len(keys))
        order = rows[rows >= 0]
        if len(order) == len(keys):
            return order
    return np.argsort(keys, kind="stable")


def _sorted_codes(column: pd.Series, name: str) -> tuple[pd.Index, Array]:
    """Return the ids of a column, sorted, and each row's position among them."""
    import pandas as pd

    codes, ids = pd.factorize(column)
    if (codes < 0).any():
        raise ValueError(f"{name} has no id in row {int((codes < 0).argmax())}")
    ids = pd.Index(ids)
    plain = ids.astype(ids.categories.dtype) if hasattr(ids, "categories") else ids
    try:
        order = plain.argsort()
    except TypeError as error:
        some: dict[type, Any] = {type(one): one for one in reversed(ids.tolist())}
        if len(some) == 1:
            raise TypeError(f"{name} has ids that cannot be sorted: {error}") from None
        one, another = list(some.values())[-1:-3:-1]
        raise TypeError(
            f"{name} has ids of several types, such as {one!r} and {another!r}: make them of one, "
            "such as texts by astype(str)"
        ) from None
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    return ids[order], rank[codes]


def _read_times(column: pd.Series, name: str) -> tuple[pd.Index, Array]:
    """Return the times of a column, sorted, and each row's position among them."""
    import pandas as pd

    index = pd.Index(column)
    if index.hasnans:
        raise ValueError(f"{name} has no time in row {int(index.isna().argmax())}")
    index = plain(index)
    if kind_of(index) == "others":
        raise TypeError(
            f"{name} holds {index.inferred_type} values, but must have dates, periods or numbers: "
            "convert it by pandas.to_datetime"
        )
    refuse_dates_as_numbers(index, name)
    codes, times = pd.factorize(index, sort=True)
    return times, codes


@dataclasses.dataclass(frozen=True)
class _Placed:
    """Places of rows in time: the step of each in its series, and the times of the series."""

    steps: Array
    lengths: Array
    indices: tuple[pd.Index, ...]
    freq: Frequency | None


def _place(
    times: pd.Index, when: Array, counts: Array, ids: pd.Index, name: str, spacing: Spacing
) -> _Placed:
    """Find the frequency, and the steps of all rows.

    Parameters
    ----------
    times
        All times, sorted.
    when
        Each row's position among them, ``(rows,)``; rows are sorted by series and time.
    counts
        Rows of each series.
    ids, name
        Names of the series and of the frame, for messages.
    spacing
        How far apart times must be.
    """
    kind = kind_of(times)
    known = [freq for of, freq in spacing.known if of == kind]
    if spacing.given is not None:
        freq = spacing.given
        return _on_grids(times, when, counts, ids, name, freq, setting_of(freq))
    if known:
        placed = _on_grids(
            times, when, counts, ids, name, known[0], f"fit got steps of {text_of(known[0])!r}"
        )
        _refuse_coarser(placed, counts, ids, name)
        _refuse_long_gaps(placed, counts, ids, name)
        return placed
    longest = int(counts.argmax())
    start = int(counts[:longest].sum())
    index, place = times[when[start : start + counts[longest]]], f"{name}[{ids[longest]!r}]"
    if len(index) == 1 and kind != "periods":
        ones = {step: times[step : step + 1] for step in np.unique(when).tolist()}
        indices = tuple(ones[step] for step in when.tolist())
        return _Placed(np.zeros(len(when), np.int64), counts, indices, None)
    freq = index.freq if len(index) == 1 else infer(index, place)[0]
    why = f"the steps of {place} are {text_of(freq)!r}"
    placed = _on_grids(times, when, counts, ids, name, freq, why)
    missing = int((placed.lengths - counts).sum())
    if missing > len(when):
        raise ValueError(
            f"most steps of {name} are missing if they are {text_of(freq)!r} apart as in {place}: "
            f"pass {setting_of(freq)} if that is right; missing steps are then missing values"
        )
    _refuse_coarser(placed, counts, ids, name)
    _refuse_long_gaps(placed, counts, ids, name)
    return placed


def _on_grids(
    times: pd.Index, when: Array, counts: Array, ids: pd.Index, name: str, freq: Frequency, why: str
) -> _Placed:
    """Return the steps of rows at a frequency; see `_place`. `why` says where it comes from.

    Series may have different grids: some weeks start on Monday, others on Tuesday.
    """
    ends = counts.cumsum()
    first, last = when[ends - counts], when[ends - 1]
    steps = np.empty(len(when), np.int64)
    indices: list[pd.Index | None] = [None] * len(counts)
    left = np.argsort(first, kind="stable")
    while left.size:
        begin = int(first[left[0]])
        place = np.full(len(times), -1)
        place[begin:] = on_grid(times[begin:], freq)
        there = place[first[left]] >= 0
        there[0] = True  # so that a time that is not on its own grid is reported
        mine, left = left[there], left[~there]
        rows: Any = slice(None)
        if len(mine) < len(counts):
            chosen = np.zeros(len(counts), bool)
            chosen[mine] = True
            rows = np.repeat(chosen, counts)
        found = place[when[rows]]
        if (found < 0).any():
            row = int(np.arange(len(when))[rows][(found < 0).argmax()])
            one = int(np.searchsorted(ends, row, side="right"))
            raise ValueError(
                f"{why}, but {name}[{ids[one]!r}] has the time {times[when[row]]}, which is not "
                f"one of its steps: {advice_on(times[when[ends[one] - counts[one] : ends[one]]])}"
            )
        steps[rows] = found
        whole = grid(times[begin:], freq, int(place[last[mine]].max()) + 1)
        parts: dict[tuple[int, int], pd.Index] = {}
        starts, stops = place[first[mine]].tolist(), (place[last[mine]] + 1).tolist()
        for series, start, stop in zip(mine.tolist(), starts, stops, strict=True):
            if (start, stop) not in parts:
                parts[start, stop] = whole[start:stop]
            indices[series] = parts[start, stop]
    starts = steps[ends - counts]
    lengths = steps[ends - 1] - starts + 1
    return _Placed(steps - np.repeat(starts, counts), lengths, tuple(indices), freq)


def _refuse_long_gaps(placed: _Placed, counts: Array, ids: pd.Index, name: str) -> None:
    """Raise ValueError if so many steps are missing at once that a time must be mistyped."""
    if placed.freq is None:
        return
    wrong = np.flatnonzero(placed.lengths - counts >= counts + MISSING)
    ends = counts.cumsum()
    for one in wrong.tolist():
        steps = placed.steps[ends[one] - counts[one] : ends[one]]
        index = placed.indices[one][steps]
        refuse_long_gap(index, f"{name}[{ids[one]!r}]", placed.freq, steps)


def _refuse_coarser(placed: _Placed, counts: Array, ids: pd.Index, name: str) -> None:
    """Raise ValueError if the steps of a series are regular, but those of a lower frequency."""
    if (placed.lengths == counts).all():
        return
    ends = counts.cumsum()
    apart = np.diff(placed.steps, append=0)
    apart[ends - 1] = 0
    most = np.maximum.reduceat(apart, ends - counts)
    apart[ends - 1] = most
    least = np.minimum.reduceat(apart, ends - counts)
    wrong = np.flatnonzero((counts > 2) & (least == most) & (most > 1))
    if wrong.size:
        raise ValueError(
            f"all steps of {name}[{ids[wrong[0]]!r}] are {most[wrong[0]]} times as far apart as "
            f"those of the panel, {text_of(placed.freq)!r}: series must have the same frequency; "
            "pass freq=… if steps are missing"
        )
