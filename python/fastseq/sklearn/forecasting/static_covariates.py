"""Static covariates: one row for each series."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..inputs.polars_frames import is_polars, refuse_unread, to_pandas
from .categories import find_vocabularies, with_codes
from .column_coding import ColumnCoding
from .series import Array, read_series
from .times import is_table

__all__ = ["StaticColumns", "by_id"]


@dataclasses.dataclass(frozen=True)
class StaticColumns:
    """Names, categories and scaling of the static covariates that `fit` got.

    Parameters
    ----------
    coding
        How they become numbers.

    Examples
    --------
    >>> static, rows = StaticColumns.learn(np.array([[1.0], [3.0]]), 2, None, scaled=True)
    >>> rows.T, static.read(np.array([[5.0]]), 1, None)
    (array([[-1.,  1.]]), array([[3.]]))
    """

    coding: ColumnCoding

    @classmethod
    def learn(
        cls, given: Any, count: int, ids: Sequence[Any] | None, *, scaled: bool
    ) -> tuple[StaticColumns, Array]:
        """Measure static covariates of `count` series; return them coded and scaled, ``(N, S)``.

        Parameters
        ----------
        given
            ``(N, S)``; a table's rows go by its index where series have `ids`.
        count
            N.
        ids
            The series' ids; None: they have none.
        scaled
            Whether to scale numbers.
        """
        table = _in_order(given, count, ids)
        vocabularies = find_vocabularies(table, "static")
        rows, names = _numbers(with_codes(table, vocabularies, "static"), count, None)
        coding, (rows,) = ColumnCoding.measure(names, vocabularies, [rows], [count], scaled=scaled)
        known = cls(coding)
        return known, known._ready(rows)

    def read(self, given: Any, count: int, ids: Sequence[Any] | None) -> Array:
        """Return static covariates of other series, coded and scaled as in `fit`."""
        table = _in_order(given, count, ids)
        coded = with_codes(table, self.coding.vocabularies, "static")
        if self.coding.vocabularies and coded is table and not is_table(given):
            raise TypeError(
                "static must be a DataFrame, as in fit: column "
                f"{next(iter(self.coding.vocabularies))!r} holds categories"
            )
        rows, _ = _numbers(coded, count, self.coding.names)
        if rows.shape[1] != len(self.coding.center):
            raise ValueError(
                f"static must have the {len(self.coding.center)} columns that fit got, got "
                f"{rows.shape[1]}"
            )
        return self._ready(rows)

    def _ready(self, rows: Array) -> Array:
        missing = np.isnan(rows)
        unknown = np.argwhere(missing & self.coding.numbers)
        if len(unknown):
            raise ValueError(
                f"static is NaN in row {unknown[0][0]}, column {unknown[0][1]}: fill it in, for "
                "instance with the mean"
            )
        return self.coding.scaled(np.where(missing, 0, rows))


def by_id(given: Any, id_col: str) -> Any:
    """Return a table with its column of ids, if it has one, as index; other data unchanged."""
    refuse_unread(given, "static")
    given = to_pandas(given) if is_polars(given) else given
    if is_table(given) and given.ndim == 2 and id_col in given.columns:
        return given.set_index(id_col)
    return given


def _in_order(given: Any, count: int, ids: Sequence[Any] | None) -> Any:
    """Return static covariates in the order of the series."""
    if ids is None or not is_table(given):
        return given
    given = given.to_frame() if given.ndim == 1 else given
    if not given.index.is_unique:
        twice = given.index[given.index.duplicated()][0]
        raise ValueError(f"static has two rows for series {twice!r}: keep one")
    missing = [one for one in ids if one not in given.index]
    if missing:
        which = "the series" if count == 1 else f"each of the {count} series"
        raise ValueError(
            f"static must have a row for {which}, by id, but has none for {missing[0]!r}"
        )
    return given.loc[list(ids)]


def _numbers(given: Any, count: int, names: tuple[str, ...] | None) -> tuple[Array, Any]:
    if is_table(given):
        given = given.reset_index(drop=True)  # which is not time
    elif isinstance(given, list | tuple):
        given = np.asarray(given)
    read = read_series(given, "static", names)
    if not read.single:
        raise ValueError("static must have the shape (series, columns), one row for each series")
    rows = read.arrays[0]
    if len(rows) != count:
        raise ValueError(f"static must have a row for each of {count} series, got {len(rows)}")
    return rows, read.names
