"""What `fit` has found out about the data as plain values, which a file can hold, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ..forecasting.all_covariates import AllCovariates
from ..forecasting.automatic_settings import AutomaticSettings
from ..forecasting.baselines import Baselines
from ..forecasting.calendar_features import Calendar
from ..forecasting.column_coding import ColumnCoding
from ..forecasting.conformal import Conformal, ShiftTracker
from ..forecasting.covariate_encoder import CovariateSizes
from ..forecasting.covariate_rows import CovariateRows
from ..forecasting.covariates import Covariates
from ..forecasting.held_out import Correction
from ..forecasting.last_steps import LastSteps
from ..forecasting.result_forms import Form
from ..forecasting.rollout import Origin
from ..forecasting.series import Series
from ..forecasting.static_covariates import StaticColumns
from ..forecasting.times import Times
from ..forecasting.windows import SeriesScaling
from ..inputs.category_columns import CategoryColumns
from ..inputs.fitted_columns import Coding, FittedColumns
from ..inputs.static_features import StaticFeatures
from ..inputs.vocabulary import Vocabulary
from ..named_modules import ColumnSizes, Sizes
from ..targets.class_kinds import Classes, Labels
from ..targets.ordinal_classes import Ordinal
from ..targets.target_forms import TargetForm
from .saved_labels import index_from, index_state, polars_from, polars_state
from .saved_times import times_from, times_state

__all__ = ["plain", "restored"]

# Dataclasses in files: each is saved field by field. Loading makes nothing else, but the `_KINDS`.
_PARTS: dict[str, type] = {
    one.__name__: one
    for one in (
        AllCovariates, Baselines, Calendar, AutomaticSettings, ColumnCoding, Conformal, Correction,
        CovariateRows, CovariateSizes, Covariates, Form, LastSteps, Origin, Series, SeriesScaling,
        StaticColumns, ShiftTracker, Vocabulary,
        CategoryColumns, Coding, ColumnSizes, FittedColumns, Sizes, StaticFeatures, TargetForm,
    )
}  # fmt: skip
_KINDS: dict[str, type] = {one.__name__: one for one in (Classes, Labels, Ordinal)}
_PART, _KIND, _TIMES, _ARRAYS = "<part>", "<kind>", "<times>", "<arrays>"
_DTYPE, _TORCH, _OBJECTS = "<dtype>", "<torch>", "<objects>"
_INDEX, _POLARS, _LABEL = "<index>", "<polars>", "<label>"


def plain(value: Any) -> Any:
    """Return a part, or a tree of parts, as nested dicts, lists and tuples of plain values.

    Examples
    --------
    >>> part = LastSteps([np.array([[1.0], [2.0]])], None)
    >>> state = plain({"last": [part]})
    >>> state["last"][0]["<part>"]
    'LastSteps'
    >>> restored(state)["last"][0].values[0].T
    array([[1., 2.]])
    """
    if type(value) in _PARTS.values():
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_PART: type(value).__name__, "fields": fields}
    if type(value) in _KINDS.values():
        return {_KIND: type(value).__name__, "arguments": plain(value.arguments)}
    if isinstance(value, np.dtype):
        return {_DTYPE: value.str}
    if isinstance(value, torch.dtype):
        return {_TORCH: str(value).removeprefix("torch.")}
    if isinstance(value, np.ndarray) and not _is_tensor(value):
        labels = value.astype(np.int64) if value.dtype.kind in "mM" else value
        for one in labels.ravel().tolist():
            if not isinstance(one, str | bool | int | float | None):
                kind = type(one).__name__
                raise TypeError(f"a file cannot hold {one!r}, a {kind}: use texts or numbers")
        return {_OBJECTS: labels.tolist(), "dtype": value.dtype.str}
    if hasattr(value, "asi8") or hasattr(value, "to_flat_index"):
        return {_INDEX: index_state(value)}
    if hasattr(value, "is_temporal"):
        return {_POLARS: polars_state(value)}
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if type(value) is list:
        if any(isinstance(one, Times) for one in value):
            return {_TIMES: times_state(value)}
        if len(value) > 1 and all(_is_tensor(one) and one.ndim for one in value):
            shapes = {(one.shape[1:], one.dtype) for one in value}
            if len(shapes) == 1:  # one tensor in the file instead of thousands
                lengths = np.array([len(one) for one in value], np.int64)
                return {_ARRAYS: np.concatenate(value), "lengths": lengths}
        return [plain(part) for part in value]
    if hasattr(value, "isoformat") or hasattr(value, "ordinal"):  # an id, or a category
        return _label_state(value)
    return tuple(map(plain, value)) if type(value) is tuple else value


def _is_tensor(value: Any) -> bool:
    """Whether a value is an array of numbers, as tensors are."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.dtype.isnative


def _label_state(value: Any) -> Any:
    import pandas as pd

    known = isinstance(value, pd.Timestamp | pd.Timedelta | pd.Period)
    return {_LABEL: index_state(pd.Index([value]))} if known else value


def restored(state: Any) -> Any:
    """Return what was given to `plain`.

    Raises
    ------
    KeyError, TypeError, ValueError
        It is not from `plain`.
    """
    if isinstance(state, list | tuple):
        return type(state)(map(restored, state))
    if not isinstance(state, dict):
        return state
    if _PART in state:
        fields = {name: restored(part) for name, part in state["fields"].items()}
        return _PARTS[state[_PART]](**fields)
    if _KIND in state:
        return _KINDS[state[_KIND]](*restored(state["arguments"]))
    if _TORCH in state:
        return _torch_dtype(state[_TORCH])
    if _OBJECTS in state:
        dtype = np.dtype(state["dtype"])
        if dtype.kind in "mM":
            return np.array(state[_OBJECTS], np.int64).astype(dtype)
        return np.array(state[_OBJECTS], dtype)
    if _TIMES in state:
        return times_from(state[_TIMES])
    if _INDEX in state:
        return index_from(state[_INDEX])
    if _LABEL in state:
        return index_from(state[_LABEL])[0]
    if _POLARS in state:
        return polars_from(state[_POLARS])
    if _DTYPE in state:
        return np.dtype(state[_DTYPE])
    if _ARRAYS in state:
        return np.split(state[_ARRAYS], np.cumsum(state["lengths"])[:-1])
    return {key: restored(part) for key, part in state.items()}


def _torch_dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"{name} is not a type of torch")
    return found
