"""The types of what clients send, from what a model was fitted on; the app's schema has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field, create_model

from ..sklearn.fitted_form import FittedForm, TableForm

__all__ = ["list_of", "number", "record_type", "row_type", "static_type", "step_type"]

_FORBID = ConfigDict(extra="forbid")
_STRICT: dict[type, Any] = {
    bool: Annotated[bool, Field(strict=True)],
    float: Annotated[float, Field(strict=True)],
    str: Annotated[str, Field(strict=True)],
}


def number(*, missing: bool = False, ids: int | None = None, most: float | None = None) -> Any:
    """Return the type of numbers, or null, too, if they may be `missing`; or that of `ids`.

    `most` is the largest that the model's dtype holds.
    """
    if ids is not None:
        return Annotated[int, Field(strict=True, ge=0, lt=ids)]
    least = None if most is None else -most
    found = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=least, le=most)]
    return found | None if missing else found


def list_of(item: Any, count: int | None = None) -> Any:
    """Return the type of lists of `count` items; None: of one or more."""
    least = 1 if count is None else count
    return Annotated[list[item], Field(min_length=least, max_length=count)]


def step_type(features: int, *, missing: bool, ids: int | None, most: float) -> Any:
    """Return the type of one time step, ``(F,)``."""
    return list_of(number(missing=missing, ids=ids, most=most), features)


def row_type(name: str, table: TableForm, *, missing: bool) -> Any:
    """Return the type of a table's rows: lists, or objects with a value for each named column."""
    one = number(missing=missing)
    if table.names is None:
        return list_of(one, table.count)
    fields: dict[str, Any] = {}
    for place, column in enumerate(table.names):
        kind = one
        if place in table.categories:
            kind = _category_type(str(column), table.categories[place])
        fields[f"column_{place}"] = (kind, Field(alias=str(column)))
    return create_model(name, __config__=_FORBID, **fields)


def _category_type(column: str, values: Sequence[Any]) -> Any:
    """Return the type of a column's categories; new ones of the same type may come."""
    kinds: set[Any] = set()
    known: tuple[Any, ...] = (bool, int, float, str)
    for value in values:
        for kind in known:
            if isinstance(value, kind):
                kinds.add(float if kind is int else kind)
                break
        else:
            raise ValueError(
                f"make_app: column {column!r} has categories of {type(value).__name__}, which JSON "
                "does not have: fit with texts or numbers there"
            )
    found: Any = None
    for one, strict in _STRICT.items():
        if one in kinds:
            found = strict if found is None else found | strict
    return found | None


def record_type(form: FittedForm) -> Any:
    """Return the type of one of X's samples."""
    one = number(missing=form.missing, ids=form.ids, most=form.most)
    features = form.features.count
    if form.rows == "series":
        return list_of(one)
    if form.rows == "samples" and form.ids is not None:
        return list_of(one, features)
    if form.rows == "samples" or form.features.names is not None:
        row = row_type("Row", form.features, missing=form.missing)
        return row if form.rows == "samples" else list_of(row)
    if form.image is not None:
        width, height, channels = form.image
        pixels = list_of(list_of(list_of(one, channels), height), width)
        return pixels | list_of(list_of(one, height), width) if channels == 1 else pixels
    if form.channels_first:
        return list_of(list_of(one), features)
    steps = list_of(list_of(one, features))
    return steps | list_of(one) if features == 1 else steps


def static_type(form: FittedForm) -> Any:
    """Return the type of one row of static features; None: `fit` got none."""
    return None if form.static is None else row_type("Static", form.static, missing=form.missing)
