"""The types of what clients send, from what a model was fitted on; the app's schema has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, create_model

if TYPE_CHECKING:
    from ..sklearn.inputs.category_columns import CategoryColumns
    from ..sklearn.supervised import SequencePredictor

__all__ = ["list_of", "number", "record_type", "row_type", "static_type", "step_type"]

_FORBID = ConfigDict(extra="forbid")


def number(*, missing: bool = False) -> Any:
    """Return the type of finite numbers, or null, too, if they may be `missing`."""
    found = Annotated[float, Field(strict=True, allow_inf_nan=False)]
    return found | None if missing else found


def list_of(item: Any, count: int | None = None) -> Any:
    """Return the type of lists of `count` items; None: of one or more."""
    least = 1 if count is None else count
    return Annotated[list[item], Field(min_length=least, max_length=count)]


def step_type(features: int, *, missing: bool = False) -> Any:
    """Return the type of one time step, ``(F,)``."""
    return list_of(number(missing=missing), features)


def row_type(
    name: str, names: Sequence[str], columns: CategoryColumns | None, *, missing: bool
) -> Any:
    """Return the type of rows of a data frame: objects, with a value for each column."""
    coded = {} if columns is None else columns.vocabularies
    one = number(missing=missing)
    value = str | bool | Annotated[int, Field(strict=True)] | one | None
    fields: dict[str, Any] = {
        f"column_{place}": (value if place in coded else one, Field(alias=str(column)))
        for place, column in enumerate(names)
    }
    return create_model(name, __config__=_FORBID, **fields)


def record_type(model: SequencePredictor) -> Any:
    """Return the type of one of X's samples."""
    missing = model.nan == "mask"
    one, features = number(missing=missing), model.n_features_in_
    names = getattr(model, "feature_names_in_", None)
    if names is not None and model.rows_ != "series":
        row = row_type("Row", list(names), model._columns.columns, missing=missing)
        return row if model.rows_ == "samples" else list_of(row)
    if model.rows_ == "samples":
        return list_of(one, features)
    if model.rows_ == "series":
        return list_of(one)
    if model.image_shape_ is not None:
        width, height, channels = model.image_shape_
        pixels = list_of(list_of(list_of(one, channels), height), width)
        return pixels | list_of(list_of(one, height), width) if channels == 1 else pixels
    if model.channels_first:
        return list_of(list_of(one), features)
    steps = list_of(list_of(one, features))
    return steps | list_of(one) if features == 1 else steps


def static_type(model: SequencePredictor) -> Any:
    """Return the type of one row of static features; None: `fit` got none."""
    static = model._columns.static
    if static is None:
        return None
    missing = model.nan == "mask"
    if static.names is None:
        return list_of(number(missing=missing), static.rows.shape[1])
    return row_type("StaticRow", static.names, static.columns, missing=missing)
