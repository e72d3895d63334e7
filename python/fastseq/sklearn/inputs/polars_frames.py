"""Frames of polars, by narwhals: to pandas column by column, and back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._util.optional_imports import need

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["as_pandas", "is_polars", "kinds_of", "refuse_unread", "to_pandas", "to_polars"]

_USER = "a frame of polars"


def is_polars(given: object) -> bool:
    """Whether it is a polars DataFrame; does not import polars."""
    polars = sys.modules.get("polars")
    return polars is not None and isinstance(given, polars.DataFrame)


def refuse_unread(given: object, name: str) -> None:
    """Raise TypeError for a LazyFrame of polars, or a table of pyarrow."""
    polars, arrow = sys.modules.get("polars"), sys.modules.get("pyarrow")
    if polars is not None and isinstance(given, polars.LazyFrame):
        raise TypeError(
            f"{name} is a LazyFrame of polars, whose rows are not there yet: pass {name}.collect()"
        )
    if arrow is not None and isinstance(given, arrow.Table | arrow.RecordBatch):
        raise TypeError(f"{name} is a table of pyarrow: pass {name}.to_pandas()")


def as_pandas(given: Any) -> Any:
    """Return a polars frame, or those in a list or a dictionary, as pandas; other data unchanged.

    Examples
    --------
    >>> import polars as pl
    >>> as_pandas([pl.DataFrame({"a": [1.0]})])[0].columns.tolist(), as_pandas([1.0])
    (['a'], [1.0])
    """
    if "polars" not in sys.modules:
        return given
    if isinstance(given, dict):
        return {key: as_pandas(one) for key, one in given.items()}
    if isinstance(given, list | tuple) and any(map(is_polars, given)):
        return list(map(as_pandas, given))
    return to_pandas(given) if is_polars(given) else given


def to_pandas(frame: Any) -> pd.DataFrame:
    """Return a polars frame as a pandas one; pyarrow is not needed."""
    pd, nw = need("pandas", _USER), need("narwhals", _USER)
    table = nw.from_native(frame, eager_only=True)
    return pd.DataFrame({name: _column(table[name]) for name in table.columns})


def _column(column: Any) -> Any:
    pd, nw = need("pandas", _USER), need("narwhals", _USER)
    kind = column.dtype
    if kind == nw.Datetime:
        zone = kind.time_zone
        if zone is not None:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        index = pd.DatetimeIndex(column.to_numpy())
        return index if zone is None else index.tz_localize("UTC").tz_convert(zone)
    if kind == nw.Date:
        return pd.DatetimeIndex(column.to_numpy())
    if kind in (nw.Categorical, nw.Enum):
        return pd.Categorical(column.cast(nw.String).to_list())
    if kind == nw.String:
        return pd.array(column.to_list(), dtype="str")
    return (column.cast(nw.Float64) if kind == nw.Decimal else column).to_numpy()


def kinds_of(frame: Any, *columns: str) -> tuple[Any, ...]:
    """Return the types of columns of a polars frame."""
    return tuple(frame.schema[column] for column in columns)


def to_polars(frame: pd.DataFrame, kinds: dict[str, Any]) -> Any:
    """Return a pandas frame as a polars one, with columns of these types.

    Parameters
    ----------
    frame
        Ids, times and numbers.
    kinds
        Types of polars, as from `kinds_of`, of some columns.
    """
    polars = need("polars", _USER)
    columns = []
    for name, column in frame.items():
        kind = kinds.get(name)
        zone = getattr(column.dtype, "tz", None)
        if getattr(column.dtype, "kind", "O") in "M" or zone is not None:
            index = column.dt.tz_convert("UTC").dt.tz_localize(None) if zone else column
            values = polars.Series(name, np.asarray(index.astype("datetime64[us]")))
            if zone is not None:
                values = values.dt.replace_time_zone("UTC").dt.convert_time_zone(str(zone))
        elif getattr(column.dtype, "kind", "O") in "biuf":
            values = polars.Series(name, column.to_numpy())
        else:
            values = polars.Series(name, column.tolist())
        columns.append(values if kind is None else values.cast(kind))
    return polars.DataFrame(columns)
