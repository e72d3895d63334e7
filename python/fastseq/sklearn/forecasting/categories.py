"""Columns of tables that hold categories, as codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .long_frames import LongTable
from .series import Array
from .times import is_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Vocabulary", "find_vocabularies", "map_tables", "with_codes"]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The categories of a column; the code of each is its place, from 1 on.

    Code 0 is for categories that are not among them.

    Parameters
    ----------
    values
        The categories, sorted: their order does not depend on that of rows.

    Examples
    --------
    >>> import pandas as pd
    >>> known = Vocabulary.of([pd.Series(["b", "a", None]), pd.Series(["c"])])
    >>> known.values, known.codes(pd.Series(["c", "x", None]), "X")
    (('a', 'b', 'c'), array([ 3.,  0., nan]))
    """

    values: tuple[Any, ...]

    @classmethod
    def of(cls, columns: Iterable[pd.Series]) -> Vocabulary:
        """Return the categories that occur in columns; dtypes may declare more."""
        found = {value for column in columns for value in column.dropna().unique().tolist()}
        return cls(tuple(sorted(found, key=_rank)))

    def codes(self, column: pd.Series, name: str) -> Array:
        """Return a column's codes, NaN where values are missing.

        Raises
        ------
        TypeError
            Its values are numbers, and the categories are not, or the other way round.
        """
        import pandas as pd

        rows, values = pd.factorize(column.astype(object))
        numbers = {_rank(value)[0] for value in self.values}
        if len(values) and numbers and numbers.isdisjoint({_rank(value)[0] for value in values}):
            raise TypeError(
                f"{name} holds {values[0]!r}, but in fit it held categories such as "
                f"{self.values[0]!r}: pass the same kind of values"
            )
        code = {value: place for place, value in enumerate(self.values, 1)}
        found = np.array([*(code.get(value, 0) for value in values), np.nan])
        return np.asarray(found[rows])

    def only(self, codes: Array) -> tuple[Vocabulary, Array]:
        """Return the vocabulary of some `codes` alone, and the new code of each old one.

        Examples
        --------
        >>> Vocabulary(("a", "b", "c")).only(np.array([3.0, np.nan, 2.0]))
        (Vocabulary(values=('b', 'c')), array([0., 0., 1., 2.]))
        """
        kept = np.unique(codes[codes > 0]).astype(int)
        code = np.zeros(len(self.values) + 1)
        code[kept] = np.arange(1, len(kept) + 1)
        return Vocabulary(tuple(self.values[place - 1] for place in kept)), code


def _rank(value: object) -> tuple[int, float, str]:
    if isinstance(value, bool | int | float | np.bool_ | np.number):
        return 0, float(value), ""
    kind = "" if isinstance(value, str) else type(value).__name__
    return 1, 0.0, f"{kind} {value}"


def _is_category(column: pd.Series) -> bool:
    import pandas as pd

    types, dtype = pd.api.types, column.dtype
    return isinstance(dtype, pd.CategoricalDtype) or any(
        is_kind(dtype)
        for is_kind in (types.is_bool_dtype, types.is_string_dtype, types.is_object_dtype)
    )


def map_tables(given: Any, fn: Callable[[pd.DataFrame, str], Any], name: str) -> Any:
    """Replace the tables in `given`, one or a list or dict of them, by ``fn(table, place)``."""
    if isinstance(given, Mapping):
        return {key: map_tables(part, fn, f"{name}[{key!r}]") for key, part in given.items()}
    if isinstance(given, list | tuple):
        return [map_tables(part, fn, f"{name}[{i}]") for i, part in enumerate(given)]
    if isinstance(given, LongTable):
        return dataclasses.replace(given, table=map_tables(given.table, fn, name))
    if not is_table(given):
        return given
    if given.ndim == 1:  # a Series stays one, unless it holds categories
        return fn(given.to_frame(0), name) if _is_category(given) else given
    return fn(given, name)


def find_vocabularies(given: Any, name: str) -> dict[str, Vocabulary]:
    """Return the vocabularies of those columns that hold categories in any of the tables.

    Examples
    --------
    >>> import pandas as pd
    >>> find_vocabularies(pd.DataFrame({"n": [1.0, 2.0], "c": ["b", "a"]}), "X")
    {'c': Vocabulary(values=('a', 'b'))}
    """
    columns: dict[str, list[pd.Series]] = {}
    categories: set[str] = set()

    def look(table: pd.DataFrame, place: str) -> None:
        for label, column in table.items():
            columns.setdefault(str(label), []).append(column)
            if _is_category(column):
                categories.add(str(label))
                _check_hashable(column, f"column {label!r} of {place}")
                _refuse_numbers(column, f"column {label!r} of {place}")
                if name == "X":  # texts of series may all differ, such as names
                    _refuse_texts(column, f"column {label!r} of {place}")

    map_tables(given, look, name)
    return {label: Vocabulary.of(columns[label]) for label in columns if label in categories}


def _check_hashable(column: pd.Series, name: str) -> None:
    for value in column.dropna():
        if not isinstance(value, str | int | float | np.generic):
            try:
                hash(value)
            except TypeError:
                raise TypeError(
                    f"{name} must hold numbers or categories, got {value!r}: leave it out, or "
                    "split it into columns"
                ) from None


def _refuse_numbers(column: pd.Series, name: str) -> None:
    """Raise TypeError if objects are numbers and some are no integers, so no categories."""
    known = column.dropna() if column.dtype == object else ()
    if not all(isinstance(value, Real | Decimal) for value in known):
        return
    broken = next((value for value in known if value % 1), None)
    if broken is not None:
        raise TypeError(
            f"{name} holds numbers, such as {broken}, as objects: make numbers of it by "
            'astype(float), or categories by astype("category")'
        )


def _refuse_texts(column: pd.Series, name: str) -> None:
    """Raise ValueError if texts differ from row to row, such as broken numbers or dates."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return
    known = column.dropna()
    count = known.nunique()
    if count > _DIFFERENT and 2 * count > len(known):
        raise ValueError(
            f"{name} has {count} different values in {len(known)} rows, such as "
            f"{known.iloc[0]!r}, too many for categories: make numbers of them by "
            'pandas.to_numeric, leave the column out, or insist by astype("category")'
        )


_DIFFERENT = 50


def with_codes(given: Any, vocabularies: Mapping[str, Vocabulary], name: str) -> Any:
    """Return tables with codes in place of categories.

    Examples
    --------
    >>> import pandas as pd
    >>> with_codes(pd.DataFrame({"c": ["b", "x"]}), {"c": Vocabulary(("a", "b"))}, "X")
         c
    0  2.0
    1  0.0
    """
    if not vocabularies:
        return given

    def code(table: pd.DataFrame, place: str) -> pd.DataFrame:
        import pandas as pd

        columns = []
        for label, column in table.items():
            known = vocabularies.get(str(label))
            if known is not None:
                codes = known.codes(column, f"column {label!r} of {place}")
                column = pd.Series(codes, table.index, name=label)
            columns.append(column)
        return pd.concat(columns, axis=1) if columns else table

    return map_tables(given, code, name)
