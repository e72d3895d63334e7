"""Columns of Arrow as columns of NumPy: which types are numbers, and which dtype holds all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..._util.optional_imports import need
from ..._util.spelling import meant

__all__ = ["check_names", "id_kind", "number_type", "stacked", "time_kind"]

_SHOWN = 20  # columns shown in messages


def check_names(names: Iterable[str], schema: Any, place: str) -> None:
    """Raise ValueError if a column is missing or there are several of its name."""
    for name in names:
        count = schema.names.count(name)
        if count > 1:
            raise ValueError(f"{place} has {count} columns {name!r}: rename all but one")
        if not count:
            shown = ", ".join(map(repr, schema.names[:_SHOWN])) or "no columns"
            more = ", …" if len(schema.names) > _SHOWN else ""
            raise ValueError(
                f"{place} has no column {name!r}, but {shown}{more}{meant(name, schema.names)}"
            )


def number_type(field: Any, place: str, *, nulls: bool) -> np.dtype:
    """Return the dtype of a column's values.

    Parameters
    ----------
    field
        The column in the schema.
    place
        The file or table, in messages.
    nulls
        Whether some of its values are null: integers become floats that hold them.

    Raises
    ------
    TypeError
        It holds no numbers; the message says what to make of them.
    """
    types = need("pyarrow", "LongTable").types
    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if types.is_decimal(kind):
        return np.dtype(np.float64)
    if types.is_null(kind):
        return np.dtype(np.float32)
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        found = np.dtype(kind.to_pandas_dtype())
        return np.result_type(found, np.float32) if nulls and found.kind in "biu" else found
    text = (types.is_string, types.is_large_string, getattr(types, "is_string_view", _no))
    if any(test(kind) for test in text):
        advice = "number its values, such as by pandas.factorize"
    elif types.is_temporal(kind):
        advice = "make numbers of it, such as hours or seconds"
    elif types.is_nested(kind):
        advice = "make a column of each of its parts"
    else:
        advice = "convert it"
    raise TypeError(
        f"the column {field.name!r} of {place} must hold numbers, but holds {field.type}: {advice}"
    )


def _no(_: object) -> bool:
    return False


def id_kind(field: Any, place: str) -> str:
    """Return what ids are: text or integers; files must agree on it."""
    types = need("pyarrow", "LongTable").types
    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if types.is_integer(kind):
        return "integers"
    text = (types.is_string, types.is_large_string, getattr(types, "is_string_view", _no))
    if any(test(kind) for test in text):
        return "text"
    raise TypeError(
        f"the ids in {field.name!r} of {place} must be text or integers, but are {field.type}: "
        "convert them"
    )


def time_kind(field: Any, place: str) -> str:
    """Return what times are: dates, times in a zone, or numbers; files must agree on it."""
    types = need("pyarrow", "LongTable").types
    if types.is_timestamp(field.type):
        return "dates" if field.type.tz is None else "times of a time zone"
    if types.is_date(field.type):
        return "dates"
    if types.is_integer(field.type) or types.is_floating(field.type):
        return "numbers"
    raise TypeError(
        f"the times in {field.name!r} of {place} must be dates, timestamps or numbers, but are "
        f"{field.type}: convert them, such as by pandas.to_datetime"
    )


def stacked(rows: Any, names: list[str], dtype: np.dtype) -> np.ndarray:
    """Return columns of a table or a batch as an array ``(rows, columns)``; null is NaN.

    Raises
    ------
    ValueError
        There are nulls, but `dtype` has no NaN: the file's statistics denied them.
    """
    arrow = need("pyarrow", "LongTable")
    out = np.empty((rows.num_rows, len(names)), dtype)
    for number, name in enumerate(names):
        column = rows.column(name)
        begin = 0
        for chunk in getattr(column, "chunks", [column]):
            encoded = arrow.types.is_dictionary(chunk.type)
            part = chunk.dictionary_decode() if encoded else chunk
            if part.null_count and dtype.kind in "biu":
                raise ValueError(f"the column {name!r} has nulls, which its statistics deny")
            if dtype.kind == "f":
                _check_held(part, name)
            out[begin : begin + len(part), number] = _numbers(part)
            begin += len(part)
    return out


def _check_held(part: Any, name: str) -> None:
    """Raise if floats would round integers of a column."""
    arrow, compute = need("pyarrow", "LongTable"), need("pyarrow.compute", "LongTable")
    if not arrow.types.is_integer(part.type) or part.type.bit_width < 64:
        return
    ends = compute.min_max(part)
    for end in (ends["min"].as_py(), ends["max"].as_py()):
        if end is not None and abs(end) > 2**53:
            raise ValueError(
                f"the column {name!r} has the integer {end}, which would be rounded: integers are "
                "read as floats if there are floats or nulls; leave such a column out, or scale it"
            )


def _numbers(part: Any) -> np.ndarray:
    arrow = need("pyarrow", "LongTable")
    if arrow.types.is_decimal(part.type) or arrow.types.is_null(part.type):
        part = part.cast(arrow.float64())
    elif arrow.types.is_boolean(part.type) and part.null_count:
        part = part.cast(arrow.uint8())
    values: np.ndarray = part.to_numpy(zero_copy_only=False)
    return values
