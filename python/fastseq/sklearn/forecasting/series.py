"""Reads series and known covariates as arrays, one for each series."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ...data.user_arrays import refuse_null, refuse_valueless
from .times import is_table, read_index

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Array", "Series", "filled", "join_variables", "read_series", "refuse_identifiers",
    "split_variables",
]  # fmt: skip

Array = np.ndarray


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
        Column names of a table; None: it was no table.
    dtype
        The given dtype if that is fp32 or fp64, else one that holds its values.
    indices
        Index of each series' table, None if it was no table.
    moved
        Whether each series' rows were sorted by time.
    """

    arrays: list[Array]
    single: bool
    flat: bool
    names: tuple[str, ...] | None
    dtype: np.dtype
    indices: tuple[pd.Index | None, ...]
    moved: tuple[bool, ...]

    @property
    def variables(self) -> int:
        """K."""
        return int(self.arrays[0].shape[1])

    @property
    def lengths(self) -> Array:
        """T_i."""
        return np.array([len(one) for one in self.arrays], np.int64)

    def like(self, values: Array) -> Array:
        """Return results ``(N, horizon, K, …)`` without the axes that the given series lacked."""
        if self.flat:
            values = values.squeeze(2)
        values = values.squeeze(0) if self.single else values
        return values.astype(self.dtype)


def read_series(given: Any, name: str, names: tuple[str, ...] | None = None) -> Series:
    """Read series ``(T,)``, ``(T, K)``, ``(N, T, K)``, or a list of ``(T_i,)`` or ``(T_i, K)``.

    Parameters
    ----------
    given
        An array, a tensor, a pandas Series or DataFrame, or a list of them; NaN marks missing
        values. Rows of tables with dates are sorted by time.
    name
        Its name in messages.
    names
        The columns that tables must have, put into this order. None: the first table's.

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
    panel = _is_panel(given)
    places = [f"{name}[{index}]" for index in range(len(given))] if panel else [name]
    tables = list(given) if panel else [given]
    known = names
    for number, (table, place) in enumerate(zip(tables, places, strict=True)):
        if is_table(table) and table.ndim == 2:
            tables[number] = _in_order(table, place, known)
            known = known or _columns(tables[number])
    items = [_numbers(one, place) for one, place in zip(tables, places, strict=True)]
    single = not panel and items[0].ndim < 3
    indices: list[pd.Index | None] = [None] * len(items)
    moved = [False] * len(items)
    for number, (table, place) in enumerate(zip(tables, places, strict=True)):
        if is_table(table) and len(table):
            indices[number], order = read_index(table.index, place)
            if order is not None:
                items[number], moved[number] = items[number][order], True
    if not panel and not single:
        items, places = list(items[0]), [f"{name}[{index}]" for index in range(len(items[0]))]
        indices, moved = [None] * len(items), [False] * len(items)
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
                f"{place} must have as many variables as {name}[0], got shapes {item.shape} and "
                f"{items[0].shape}"
            )
        if not item.size:
            raise ValueError(f"{place} holds no values: its shape is {item.shape}")
        if np.isinf(item).any():
            step = int(np.argwhere(np.isinf(item))[0][0])
            raise ValueError(f"{place} is infinite at step {step}; NaN marks missing values")
    arrays = [np.asarray(item, np.float64).reshape(len(item), -1) for item in items]
    kinds = {item.dtype for item in items}
    dtype = np.result_type(kinds.pop(), np.float32) if len(kinds) == 1 else np.dtype(np.float64)
    columns = _columns(tables[0]) if tables else None
    return Series(arrays, single, dims == 1, columns, dtype, tuple(indices), tuple(moved))


def _is_panel(given: object) -> bool:
    """Whether `given` is a list of series, rather than one series as a list of numbers."""
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
    raise ValueError(f"{name} must have the columns {', '.join(known)}, got {', '.join(own)}")


def _table_numbers(table: pd.DataFrame | pd.Series, name: str) -> Array:
    """Return the values of a Series or DataFrame; raise unless all columns are numbers."""
    columns = [(None, table)] if table.ndim == 1 else list(table.items())
    for label, column in columns:
        kind = column.dtype.kind
        if kind in "biuf" and column.dtype.name != "category":
            continue
        where = name if label is None else f"column {label!r} of {name}"
        advice = "leave it out, or make numbers of it (pandas.to_numeric, pandas.get_dummies)"
        if kind in "Mm" or column.dtype.name.startswith("period"):
            advice = (
                f"make times the index of {name} (set_index), and a table of several series a "
                "list, one table for each (groupby)"
            )
        raise TypeError(f"{where} must hold numbers, got {column.dtype}: {advice}")
    single = {column.dtype for _, column in columns} == {np.dtype(np.float32)}
    return np.asarray(table.to_numpy(np.float32 if single else np.float64, na_value=np.nan))


def _numbers(given: Any, name: str) -> Array:
    """Return an array of floats; NaN marks missing values."""
    if is_table(given):
        return _table_numbers(given, name)
    refuse_valueless(given, name)
    if isinstance(given, h5py.Group):
        raise TypeError(f"{name} is the group {given.name}: pass the list of its datasets")
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given
    if isinstance(given, np.ma.MaskedArray):
        given = np.ma.filled(given.astype(np.float64), np.nan)
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
        if re.fullmatch(r"(.*_)?id|ds|date|datetime|timestamp", column.lower()):
            raise ValueError(
                f"column {column!r} of {name} does not look like a variable, by its name: make "
                "times the index; turn a table of several series into a list, such as "
                f"[part.set_index(time)[values] for _, part in {name}.groupby({column!r})]; or "
                "rename it"
            )


def split_variables(arrays: list[Array]) -> list[Array]:
    """Return the variables of series ``(T_i, K)`` as series of their own, ``(T_i, 1)``.

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


def filled(values: Array, before: Array | None = None) -> Array:
    """Return values ``(T, K)`` with gaps filled by the last known value, at the start by the first.

    Parameters
    ----------
    values
        NaN marks gaps; a variable without any value stays NaN.
    before
        The last known value before them, ``(K,)``.

    Examples
    --------
    >>> filled(np.array([[np.nan], [1.0], [np.nan], [2.0]])).T
    array([[1., 1., 1., 2.]])
    """
    if before is not None:
        return filled(np.concatenate([before[None], values]))[1:]
    known = ~np.isnan(values)
    if known.all():
        return values
    rows = np.where(known, np.arange(len(values))[:, None], -1)
    rows = np.maximum.accumulate(rows, axis=0)
    rows = np.where(rows < 0, known.argmax(axis=0), rows)
    return np.asarray(np.take_along_axis(values, rows, axis=0))
