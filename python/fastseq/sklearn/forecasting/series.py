"""Reads series and known covariates as arrays, one for each series."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ...data.user_arrays import refuse_null, refuse_valueless
from ..inputs.polars_frames import as_pandas, is_polars
from .frequencies import Frequency, kind_of
from .long_frames import LongTable
from .result_forms import ARRAYS, Form
from .times import Spacing, Times, is_table, read_index, regular

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Array",
    "Series",
    "as_numpy",
    "by_length",
    "carried",
    "filled",
    "first_known",
    "is_panel",
    "join_variables",
    "known_lengths",
    "read_series",
    "refuse_identifiers",
    "split_variables",
    "spread",
    "unknown_variables",
]  # fmt: skip

Array = np.ndarray

_AT_ONCE = 2**18  # values, which stay in a core's cache


@dataclasses.dataclass(frozen=True)
class Series:
    """One series, or a panel of them.

    Parameters
    ----------
    arrays
        Values of each series, ``(T_i, K)``, fp64.
    single
        Whether one series was given, rather than a panel.
    flat
        Whether it was given without the axis of variables.
    names
        Column names of a table; None: it was not a table.
    dtype
        The given dtype if that is fp32 or fp64, else one that holds its values.
    indices
        Times of each series' steps, None if it was not a table.
    moved
        Whether each series' rows were sorted by time.
    ids
        Names of the series of a dictionary, a groupby or a long frame; None: they have no ids.
    freqs
        Distance of each series' steps, None if unknown.
    gap
        The first series with missing steps, and the time of the first of these; their values are
        NaN. None: no step was missing.
    form
        The form of results for these series.
    """

    arrays: list[Array]
    single: bool
    flat: bool
    names: tuple[str, ...] | None
    dtype: np.dtype
    indices: tuple[pd.Index | None, ...]
    moved: tuple[bool, ...]
    ids: tuple[Any, ...] | None = None
    freqs: tuple[Frequency | None, ...] = ()
    gap: tuple[int, object] | None = None
    form: Form = ARRAYS

    @property
    def variables(self) -> int:
        """K."""
        return int(self.arrays[0].shape[1])

    @property
    def lengths(self) -> Array:
        """T_i."""
        return np.array([len(one) for one in self.arrays], np.int64)

    @property
    def times(self) -> list[Times | None]:
        """Times of each series; series with the same index share one object."""
        column = self.form.kind == "long"
        known: dict[int, Times | None] = {id(None): None}
        for index, freq in zip(self.indices, self.freqs, strict=True):
            if id(index) not in known:
                known[id(index)] = Times(index, freq, column)
        return [known[id(index)] for index in self.indices]

    def take(self, rows: Array) -> Series:
        """Return some of the series."""

        def taken(all_of: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(all_of[row] for row in rows) if all_of else ()

        return dataclasses.replace(
            self, arrays=list(taken(self.arrays)), indices=taken(self.indices),
            moved=taken(self.moved), freqs=taken(self.freqs),
            ids=None if self.ids is None else taken(self.ids),
        )  # fmt: skip

    def until(self, lengths: Array) -> Series:
        """Return the first steps of those series that have times; `lengths` are ``(N,)``."""
        known: dict[tuple[int, int], Any] = {}
        arrays, indices = list(self.arrays), list(self.indices)
        for number, (times, steps) in enumerate(zip(self.times, lengths.tolist(), strict=True)):
            if times is None or times.mean_nothing:
                continue
            arrays[number] = arrays[number][:steps]
            indices[number] = known.setdefault((id(times), steps), times.index[:steps])
        return dataclasses.replace(self, arrays=arrays, indices=tuple(indices))

    def like(self, values: Array) -> Array:
        """Return results ``(N, horizon, K, …)`` without the axes that the given series lacked."""
        if self.flat:
            values = values.squeeze(2)
        values = values.squeeze(0) if self.single else values
        return values.astype(self.dtype)


def read_series(
    given: Any,
    name: str,
    names: tuple[str, ...] | None = None,
    spacing: Spacing = Spacing(),  # noqa: B008 (it is frozen)
    *,
    empty: bool = False,
) -> Series:
    """Read series ``(T,)``, ``(T, K)``, ``(N, T, K)``, or a list of ``(T_i,)`` or ``(T_i, K)``.

    Parameters
    ----------
    given
        An array, a tensor, a pandas Series or DataFrame, a list or a dictionary of them, or a
        `LongTable`; NaN marks missing values. Rows of tables with dates are sorted by time, and
        steps that are missing get NaN.
    name
        Its name in messages.
    names
        The columns that tables must have, put into this order. None: the first table's.
    spacing
        How far apart times must be.
    empty
        Whether series may have no steps.

    Raises
    ------
    ValueError, TypeError
        `given` is something else, or holds infinities.

    Examples
    --------
    >>> series = read_series([np.zeros(5), np.ones(3)], "y")
    >>> series.lengths, series.variables, series.single, series.flat
    (array([5, 3]), 1, False, True)
    """
    if isinstance(given, LongTable):
        return _read_long(given, name, names)
    ids = tuple(given) if isinstance(given, dict) else None
    panel = ids is not None or is_panel(given)
    tables = [given]
    if panel:
        tables = list(given if ids is None else given.values())
    places = [f"{name}[{key!r}]" for key in ids or range(len(tables))] if panel else [name]
    known, polars = names, [is_polars(one) for one in tables]
    tables = [_of_polars(one, place) for one, place in zip(tables, places, strict=True)]
    for number, (table, place) in enumerate(zip(tables, places, strict=True)):
        if is_table(table) and table.ndim == 2:
            tables[number] = _in_order(table, place, known)
            known = known or _columns(tables[number])
    items = [_numbers(one, place) for one, place in zip(tables, places, strict=True)]
    single = not panel and items[0].ndim < 3
    times, moved, gap = _put_in_time(tables, items, places, spacing)
    if not panel and not single:
        items, places = list(items[0]), [f"{name}[{index}]" for index in range(len(items[0]))]
        times, moved = [None] * len(items), [False] * len(items)
    if not items:
        raise ValueError(f"{name} has no series: it is empty")
    dims = items[0].ndim
    for item, place in zip(items, places, strict=True):
        if item.ndim not in (1, 2):
            raise ValueError(
                f"{place} must have the shape (steps,) or (steps, variables), got {item.shape}"
            )
        if item.shape[1:] != items[0].shape[1:]:
            raise ValueError(
                f"{place} must have as many variables as {places[0]}, got shapes {item.shape} and "
                f"{items[0].shape}"
            )
        if not item.size and (len(item) or not empty):
            raise ValueError(f"{place} holds no values: its shape is {item.shape}")
        if np.isinf(item).any():
            step = int(np.argwhere(np.isinf(item))[0][0])
            raise ValueError(f"{place} is infinite at step {step}; NaN marks missing values")
    width = 1 if dims == 1 else items[0].shape[1]
    arrays = [np.asarray(item, np.float64).reshape(len(item), width) for item in items]
    kinds = {item.dtype for item in items}
    dtype = np.result_type(kinds.pop(), np.float32) if len(kinds) == 1 else np.dtype(np.float64)
    columns = _columns(tables[0]) if tables else None
    return Series(
        arrays, single, dims == 1, columns, dtype,
        tuple(None if one is None else one.index for one in times), tuple(moved), ids,
        tuple(None if one is None else one.freq for one in times), gap,
        Form.of(given, [None if of else one for one, of in zip(tables, polars, strict=True)]),
    )  # fmt: skip


def _of_polars(given: Any, name: str) -> Any:
    """Return a frame of polars as one of pandas, without times; other data unchanged."""
    if not is_polars(given):
        return given
    for column, kind in given.schema.items():
        if kind.is_temporal():
            raise TypeError(
                f"column {column!r} of {name} holds times, but this frame of polars is no long "
                "frame: add a column of ids (id_col), also for a single series"
            )
    return as_pandas(given)


def _put_in_time(
    tables: list[Any], items: list[Array], places: list[str], spacing: Spacing
) -> tuple[list[Times | None], list[bool], tuple[int, object] | None]:
    """Sort the rows of tables by time, and add those that are missing.

    Return times, whether rows were moved, and the first missing one (see `Series`).
    """
    times: list[Times | None] = [None] * len(items)
    moved = [False] * len(items)
    gap: tuple[int, object] | None = None
    found: list[tuple[str, Frequency]] = []
    mine = [n for n, table in enumerate(tables) if is_table(table) and len(table)]
    for number in sorted(mine, key=lambda n: -len(tables[n])):  # long ones show frequencies best
        table = tables[number]
        index, order = read_index(table.index, places[number])
        if order is not None:
            items[number], moved[number] = items[number][order], True
        own, steps = regular(index, places[number], spacing, found)
        times[number] = own
        if own.freq is not None and (kind_of(index), own.freq) not in found:
            found.append((kind_of(index), own.freq))
        if steps is None:
            continue
        items[number] = spread(items[number], steps, len(own.index))
        missing = own.index[np.isin(np.arange(len(own.index)), steps, invert=True)][0]
        gap = (number, missing) if gap is None or number < gap[0] else gap
    return times, moved, gap


def spread(values: Array, steps: Array, count: int) -> Array:
    """Return `values` at their steps of `count`, NaN at the others.

    Examples
    --------
    >>> spread(np.array([1.0, 2.0]), np.array([0, 2]), 3)
    array([ 1., nan,  2.])
    """
    whole = np.full((count, *values.shape[1:]), np.nan, np.result_type(values, np.float32))
    whole[steps] = values
    return whole


def _read_long(given: LongTable, name: str, names: tuple[str, ...] | None) -> Series:
    """Read the series of a long table."""
    table = given.table
    if table.ndim == 2:
        table = _in_order(table, name, names)
    values = _numbers(table, name)
    if np.isinf(values).any():
        row = int(np.argwhere(np.isinf(values))[0][0])
        raise ValueError(f"{name} is infinite {given.place(row)}; NaN marks missing values")
    if given.steps is not None:
        values = spread(values, given.steps, int(given.bounds[-1]))
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    bounds = given.bounds.tolist()
    return Series(
        [rows[start:end] for start, end in pairwise(bounds)], False, table.ndim == 1,
        _columns(table), np.result_type(values.dtype, np.float32), given.indices,
        (False,) * len(given.indices), given.ids, (given.freq,) * len(given.indices), given.gap,
        given.form,
    )  # fmt: skip


def is_panel(given: object) -> bool:
    """Whether `given` is a list of series, rather than one series as a list of numbers.

    Examples
    --------
    >>> is_panel([np.zeros(3), np.zeros(2)]), is_panel([1.0, 2.0])
    (True, False)
    """
    return isinstance(given, list | tuple) and any(hasattr(one, "__len__") for one in given)


def _columns(given: Any) -> tuple[str, ...] | None:
    return tuple(map(str, given.columns)) if is_table(given) and given.ndim == 2 else None


def _in_order(table: pd.DataFrame, name: str, known: tuple[str, ...] | None) -> pd.DataFrame:
    """Return a DataFrame with its columns in the `known` order."""
    own = tuple(map(str, table.columns))
    if len(set(own)) < len(own):
        twice = next(column for column in own if own.count(column) > 1)
        raise ValueError(f"{name} has two columns {twice!r}")
    if known is None or own == known:
        return table
    if set(own) == set(known):
        return table.iloc[:, [own.index(column) for column in known]]
    counted = [tuple(map(str, range(len(columns)))) for columns in (own, known)]
    if len(own) == len(known) and (own == counted[0] or known == counted[1]):
        return table  # columns without names
    lacking = ", ".join(repr(column) for column in known if column not in own)
    more = ", ".join(repr(column) for column in own if column not in known)
    advice = [f"{name} lacks {lacking}"] * bool(lacking) + [f"leave out {more}"] * bool(more)
    raise ValueError(
        f"{name} must have the columns {', '.join(known)}, got {', '.join(own)}: "
        f"{'; '.join(advice)}"
    )


def _table_numbers(table: pd.DataFrame | pd.Series, name: str) -> Array:
    """Return the values of a Series or DataFrame; raise unless all columns are numbers."""
    table = _from_objects(table)
    columns = [(None, table)] if table.ndim == 1 else list(table.items())
    for label, column in columns:
        kind = column.dtype.kind
        if kind in "biuf" and column.dtype.name != "category":
            continue
        where = name if label is None else f"column {label!r} of {name}"
        advice = "convert it to numbers (pandas.to_numeric)"
        if label is not None:
            advice = f"leave it out, or {advice[:-1]}, pandas.get_dummies)"
        if kind in "Mm" or column.dtype.name.startswith("period"):
            advice = (
                f"make times the index of {name} (set_index); for a table of several series, name "
                "the columns of ids, times and values by id_col, time_col and target_col"
            )
        raise TypeError(f"{where} must hold numbers, got {column.dtype}: {advice}")
    single = {column.dtype for _, column in columns} == {np.dtype(np.float32)}
    return np.asarray(table.to_numpy(np.float32 if single else np.float64, na_value=np.nan))


def _from_objects(table: Any) -> Any:
    """Return a table with numbers for columns of objects that are numbers, as from SQL."""
    from pandas.api.types import infer_dtype

    def are_numbers(column: pd.Series) -> bool:
        kinds = ("floating", "integer", "mixed-integer-float", "decimal")
        return column.dtype == object and infer_dtype(column) in kinds

    if table.ndim == 1:
        return table.astype(np.float64) if are_numbers(table) else table
    named = [label for label, column in table.items() if are_numbers(column)]
    return table.astype(dict.fromkeys(named, np.float64)) if named else table


def as_numpy(given: Any) -> Any:
    """Return a tensor as one that NumPy reads, a masked array with NaN; other data unchanged.

    Examples
    --------
    >>> as_numpy(np.ma.masked_equal([1, 2], 2))
    array([ 1., nan])
    """
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given
    if isinstance(given, np.ma.MaskedArray):
        given = np.ma.filled(given.astype(np.float64), np.nan)
    return given


def _numbers(given: Any, name: str) -> Array:
    """Return an array of floats; NaN marks missing values."""
    if is_table(given):
        return _table_numbers(given, name)
    refuse_valueless(given, name)
    if isinstance(given, h5py.Group):
        raise TypeError(f"{name} is the group {given.name}: pass the list of its datasets")
    given = as_numpy(given)
    refuse_null(given, name)
    try:
        array = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold floats or integers, got dtype {array.dtype}")
    if array.ndim == 0:
        raise TypeError(f"{name} must be a series of numbers, got {given!r}")
    return array if array.dtype.kind == "f" and array.dtype.itemsize <= 8 else array.astype(float)


def refuse_identifiers(series: Series, name: str) -> None:
    """Raise ValueError if a column's name says that it identifies series or holds times.

    Examples
    --------
    >>> import pandas as pd
    >>> refuse_identifiers(read_series(pd.DataFrame({"a": [1.0], "b": [2.0]}), "y"), "y")
    """
    for column in series.names or ():
        if re.fullmatch(r"(.*_)?id|ds|date|datetime|timestamp|year|unnamed: \d+", column.lower()):
            raise ValueError(
                f"column {column!r} of {name} does not look like a variable, by its name: make "
                "times the index; for a table of several series, name the columns of ids, times "
                "and values by id_col, time_col and target_col; or rename it"
            )


def split_variables(arrays: list[Array]) -> list[Array]:
    """Return the variables of series ``(T_i, K)`` as separate series, ``(T_i, 1)``.

    Examples
    --------
    >>> [one.T for one in split_variables([np.array([[1, 2], [3, 4]])])]
    [array([[1, 3]]), array([[2, 4]])]
    """
    return [one[:, k : k + 1] for one in arrays for k in range(one.shape[1])]


def join_variables(values: Array, variables: int) -> Array:
    """Return values ``(N · K, steps, 1, …)`` of series split by variable as ``(N, steps, K, …)``.

    Examples
    --------
    >>> join_variables(np.array([[[1], [3]], [[2], [4]]]), 2)
    array([[[1, 2],
            [3, 4]]])
    """
    return np.moveaxis(values.reshape(-1, variables, values.shape[1], *values.shape[3:]), 1, 2)


def by_length(
    arrays: Sequence[Array] | Array, starts: Array | None = None
) -> Iterator[tuple[Array, Array]]:
    """Yield which series have the same length, and their values ``(n, T, K)``, block by block.

    Parameters
    ----------
    arrays
        Series ``(T_i, K)``.
    starts
        Series whose numbers here differ are not put together, ``(N,)``.

    Examples
    --------
    >>> [(rows, block.shape) for rows, block in by_length([np.ones((2, 1)), np.ones((3, 1))])]
    [(array([0]), (1, 2, 1)), (array([1]), (1, 3, 1))]
    """
    lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
    key = lengths if starts is None else lengths * (int(starts.max()) + 1) + starts
    order = np.argsort(key, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
        most = max(1, _AT_ONCE // max(arrays[rows[0]].size, 1))
        for begin in range(0, len(rows), most):
            some = rows[begin : begin + most]
            yield some, np.stack([arrays[n] for n in some])


def first_known(values: Array) -> Array:
    """Return the first step of series ``(…, T, K)`` with a known value, ``(…)``; 0 if none has one.

    Examples
    --------
    >>> first_known(np.array([[np.nan, np.nan], [np.nan, 1.0], [2.0, 3.0]]))
    array(1)
    """
    return np.asarray((~np.isnan(values)).any(axis=-1).argmax(axis=-1))


def known_lengths(arrays: Sequence[Array]) -> Array:
    """Return the lengths of series ``(T_i, K)`` from their first known value on, ``(N,)``.

    Examples
    --------
    >>> known_lengths([np.array([[np.nan], [1.0], [np.nan]]), np.zeros((2, 1))])
    array([2, 2])
    """
    found = np.empty(len(arrays), np.int64)
    for rows, block in by_length(arrays):
        found[rows] = block.shape[1] - first_known(block)
    return found


def unknown_variables(arrays: Sequence[Array]) -> Array:
    """Return which variables of series ``(T_i, K)`` have no known value, ``(N, K)``.

    Examples
    --------
    >>> unknown_variables([np.array([[np.nan, 1.0]]), np.array([[2.0, 3.0]])])
    array([[ True, False],
           [False, False]])
    """
    found = np.empty((len(arrays), arrays[0].shape[1]), bool)
    for rows, block in by_length(arrays):
        found[rows] = np.isnan(block).all(axis=1)
    return found


def carried(values: Array, before: Array | None = None) -> Array:
    """Return values ``(…, T, K)`` with gaps filled by the last known; NaN before the first.

    Parameters
    ----------
    values
        NaN marks gaps.
    before
        The last known value before them, ``(…, K)``; NaN: there is none.

    Examples
    --------
    >>> carried(np.array([[np.nan], [1.0], [np.nan], [2.0]])).T
    array([[nan,  1.,  1.,  2.]])
    """
    if before is not None:
        whole = np.concatenate([before[..., None, :], values], axis=-2)
        return carried(whole)[..., 1:, :]
    known = ~np.isnan(values)
    if known.all():
        return values
    rows = np.where(known, np.arange(values.shape[-2])[:, None], 0)
    rows = np.maximum.accumulate(rows, axis=-2)
    return np.asarray(np.take_along_axis(values, rows, axis=-2))


def filled(values: Array) -> Array:
    """Return values ``(…, T, K)`` as `carried` does, and with the first known one before it.

    A variable without any value stays NaN.

    Examples
    --------
    >>> filled(np.array([[np.nan], [1.0], [np.nan], [2.0]])).T
    array([[1., 1., 1., 2.]])
    """
    known = ~np.isnan(values)
    if known.all():
        return values
    first = np.take_along_axis(values, known.argmax(axis=-2, keepdims=True), axis=-2)
    found = carried(values)
    return np.where(np.isnan(found), first, found)
