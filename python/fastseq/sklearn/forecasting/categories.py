"""Columns of tables that hold categories, as codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any

from ..inputs.vocabulary import Unseen, Vocabulary, check_hashable, holds_categories, refuse_texts
from .long_frames import LongTable
from .times import is_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["find_vocabularies", "map_tables", "with_codes"]


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
        return fn(given.to_frame(0), name) if holds_categories(given) else given
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
            if holds_categories(column):
                categories.add(str(label))
                check_hashable(column, f"column {label!r} of {place}")
                _refuse_numbers(column, f"column {label!r} of {place}")
                if name == "X":  # texts of series may all differ, such as names
                    refuse_texts(column, f"column {label!r} of {place}")

    map_tables(given, look, name)
    return {label: Vocabulary.of(columns[label]) for label in columns if label in categories}


def _refuse_numbers(column: pd.Series, name: str) -> None:
    """Raise TypeError if objects are numbers and some are no integers, so no categories."""
    known = column.dropna() if column.dtype == object else ()
    if not all(isinstance(value, Real | Decimal) for value in known):
        return
    broken = next((value for value in known if value % 1), None)
    if broken is not None:
        raise TypeError(
            f"{name} holds numbers, such as {broken}, as objects: convert it to numbers by "
            'astype(float), or to categories by astype("category")'
        )


def with_codes(given: Any, vocabularies: Mapping[str, Vocabulary], name: str) -> Any:
    """Return tables with codes in place of categories; warn of those that are unseen.

    Examples
    --------
    >>> import pandas as pd
    >>> with_codes(pd.DataFrame({"c": ["b", None]}), {"c": Vocabulary(("a", "b"))}, "X")
         c
    0  2.0
    1  NaN
    """
    if not vocabularies:
        return given
    unseen = Unseen()

    def code(table: pd.DataFrame, place: str) -> pd.DataFrame:
        import pandas as pd

        columns = []
        for label, column in table.items():
            known = vocabularies.get(str(label))
            if known is not None:
                codes = known.codes(column, f"column {label!r} of {place}")
                unseen.add(str(label), known, column, codes)
                column = pd.Series(codes, table.index, name=label)
            columns.append(column)
        return pd.concat(columns, axis=1) if columns else table

    coded = map_tables(given, code, name)
    unseen.warn(name)
    return coded
