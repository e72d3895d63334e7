"""What users pass as series and as known covariates: read as arrays, one for each series."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

__all__ = ["Array", "Series", "filled", "read_series"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Series:
    """One series, or a panel of them.

    Parameters
    ----------
    arrays
        For each series its values ``(T_i, K)``, fp64.
    single
        Whether one series was given, rather than a panel.
    flat
        Whether it was given without the axis of variables.
    names
        What a table calls its columns; None if it was no table.
    dtype
        Of what was given, if these were floats, else fp64.
    """

    arrays: list[Array]
    single: bool
    flat: bool
    names: tuple[str, ...] | None
    dtype: np.dtype[Any]

    @property
    def variables(self) -> int:
        """K."""
        return int(self.arrays[0].shape[1])

    @property
    def lengths(self) -> Array:
        """T_i."""
        return np.array([len(one) for one in self.arrays], np.int64)

    def like(self, values: Array) -> Array:
        """Return results ``(N, horizon, K, …)`` without the axes that the series came without."""
        if self.flat:
            values = values.squeeze(2)
        values = values.squeeze(0) if self.single else values
        return values.astype(self.dtype)


def read_series(given: Any, name: str) -> Series:
    """Read series ``(T,)``, ``(T, K)``, ``(N, T, K)``, or a list of ``(T_i,)`` or ``(T_i, K)``.

    Parameters
    ----------
    given
        An array, a tensor, a pandas Series or DataFrame, or a list of them; NaN where there is no
        value.
    name
        What messages call it.

    Raises
    ------
    ValueError, TypeError
        It is something else, or holds infinities.

    Examples
    --------
    >>> series = read_series([np.zeros(5), np.ones(3)], "y")
    >>> series.lengths, series.variables, series.single, series.flat
    (array([5, 3]), 1, False, True)
    """
    if _is_panel(given):
        items = [_numbers(one, f"{name}[{index}]") for index, one in enumerate(given)]
        names = _columns(given[0])
        single = False
    else:
        array = _numbers(given, name)
        names = _columns(given)
        single = array.ndim < 3
        items = [array] if single else list(array)
    if not items:
        raise ValueError(f"{name} has no series: it is empty")
    dims = items[0].ndim
    for index, item in enumerate(items):
        place = name if single else f"{name}[{index}]"
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
    dtype = kinds.pop() if len(kinds) == 1 else np.dtype(np.float64)
    return Series(arrays, single, dims == 1, names, dtype)


def _is_panel(given: Any) -> bool:
    """Whether it is a list of series, rather than one series written as a list of numbers."""
    return isinstance(given, list | tuple) and any(hasattr(one, "__len__") for one in given)


def _columns(given: Any) -> tuple[str, ...] | None:
    columns = getattr(given, "columns", None)
    return None if columns is None else tuple(map(str, columns))


def _numbers(given: Any, name: str) -> Array:
    """Return an array of floats, NaN where there is no value."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
    if hasattr(given, "to_numpy") and not hasattr(given, "detach"):
        kinds = set(given.dtypes) if _columns(given) is not None else {given.dtype}
        single = kinds == {np.dtype(np.float32)}
        wanted = np.float32 if single else np.float64
        try:
            return np.asarray(given.to_numpy(dtype=wanted, na_value=np.nan))
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must hold numbers: {error}") from error
    if isinstance(given, np.ma.MaskedArray):
        given = np.ma.filled(given.astype(np.float64), np.nan)
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise TypeError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold floats or integers, got dtype {array.dtype}")
    if array.ndim == 0:
        raise TypeError(f"{name} must be a series of numbers, got {given!r}")
    return array if array.dtype.kind == "f" and array.dtype.itemsize <= 8 else array.astype(float)


def filled(values: Array, before: Array | None = None) -> Array:
    """Return values ``(T, K)`` whose gaps hold the last known value, at the start the first one.

    Parameters
    ----------
    values
        NaN where there is no value; a variable without any stays as it is.
    before
        The last known value before, ``(K,)``.

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
