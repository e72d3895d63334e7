"""Names of series and columns, and types of polars, as plain values, which a file can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..._util.optional_imports import need
from .saved_times import index_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["index_from", "index_state", "polars_from", "polars_state"]


def index_state(index: pd.Index) -> dict[str, Any]:
    """Return an index of labels as plain values.

    Examples
    --------
    >>> import pandas as pd
    >>> index_from(index_state(pd.Index(["a", "b"], name="shop"))).tolist()
    ['a', 'b']
    """
    state = {"dtype": str(index.dtype), "names": list(index.names)}
    if hasattr(index, "categories"):
        parts = {"values": index.codes.tolist(), "categories": index_state(index.categories)}
        return {**state, **parts, "ordered": bool(index.ordered)}
    return {**state, "values": index.asi8 if hasattr(index, "asi8") else index.tolist()}


def index_from(state: Mapping[str, Any]) -> pd.Index:
    """Return what was given to `index_state`."""
    import pandas as pd

    values, names = state["values"], state["names"]
    if "categories" in state:
        categories = index_from(state["categories"])
        found = pd.Categorical.from_codes(values, categories, ordered=state["ordered"])
        return pd.CategoricalIndex(found, name=names[0])
    if len(names) > 1:
        return pd.MultiIndex.from_tuples(values, names=names)
    if not isinstance(values, list):
        return index_of(values, state["dtype"]).rename(names[0])
    return pd.Index(values, dtype=state["dtype"], name=names[0])


def polars_state(kind: Any) -> list[Any]:
    """Return a type of polars as plain values; those with parts other than dates' raise."""
    parts = [getattr(kind, "time_unit", None), getattr(kind, "time_zone", None)]
    state = [str(kind).partition("(")[0], *parts]
    if polars_from(state) != kind:
        raise TypeError(f"a file cannot hold the type {kind} of a column of polars")
    return state


def polars_from(state: list[Any]) -> Any:
    """Return what was given to `polars_state`."""
    polars = need("polars", "load")
    name, unit, zone = state
    kind = getattr(polars, name)
    if not issubclass(kind, polars.DataType):
        raise TypeError(f"{name} is not a type of polars")
    if name == "Datetime":
        return kind(unit, zone)
    return kind if unit is None else kind(unit)
