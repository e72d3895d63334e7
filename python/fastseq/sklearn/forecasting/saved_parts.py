"""The parts of a forecaster as plain values, which a file can hold, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..inputs.vocabulary import Vocabulary
from .all_covariates import AllCovariates
from .automatic_settings import AutomaticSettings
from .baselines import Baselines
from .calendar_features import Calendar
from .column_coding import ColumnCoding
from .conformal import Conformal, ShiftTracker
from .covariate_encoder import CovariateSizes
from .covariate_rows import CovariateRows
from .covariates import Covariates
from .held_out import Correction
from .last_steps import LastSteps
from .result_forms import Form
from .rollout import Origin
from .saved_labels import index_from, index_state, polars_from, polars_state
from .saved_times import times_from, times_state
from .series import Series
from .static_covariates import StaticColumns
from .times import Times
from .windows import SeriesScaling

__all__ = ["plain", "restored"]

# Dataclasses in files: each is saved field by field. Loading makes nothing else.
_PARTS: dict[str, type] = {
    one.__name__: one
    for one in (
        AllCovariates, Baselines, Calendar, AutomaticSettings, ColumnCoding, Conformal, Correction,
        CovariateRows, CovariateSizes, Covariates, Form, LastSteps, Origin, Series, SeriesScaling,
        StaticColumns, ShiftTracker, Vocabulary,
    )
}  # fmt: skip
_PART, _TIMES, _DTYPE, _ARRAYS = "<part>", "<times>", "<dtype>", "<arrays>"
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
    if isinstance(value, np.dtype):
        return {_DTYPE: value.str}
    if hasattr(value, "asi8") or hasattr(value, "to_flat_index"):
        return {_INDEX: index_state(value)}
    if hasattr(value, "is_temporal"):
        return {_POLARS: polars_state(value)}
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if type(value) is list:
        if any(isinstance(one, Times) for one in value):
            return {_TIMES: times_state(value)}
        if len(value) > 1 and all(isinstance(one, np.ndarray) and one.ndim for one in value):
            shapes = {(one.shape[1:], one.dtype) for one in value}
            if len(shapes) == 1:  # one tensor in the file instead of thousands
                lengths = np.array([len(one) for one in value], np.int64)
                return {_ARRAYS: np.concatenate(value), "lengths": lengths}
        return [plain(part) for part in value]
    if hasattr(value, "isoformat") or hasattr(value, "ordinal"):  # an id, or a category
        return _label_state(value)
    return tuple(map(plain, value)) if type(value) is tuple else value


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
