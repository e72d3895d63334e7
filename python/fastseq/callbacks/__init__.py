"""Callbacks of `Estimator.fit`: stop early, change learning rates, write files."""

import importlib
from typing import Any

from ..checkpoint.settings import Checkpoint
from ..training.run import Callback
from .best_weights import RestoreBest
from .combining import AllOf, AnyOf, Warmup
from .live_plot import LivePlot
from .log import Log
from .schedules import CycleLearningRate, Schedule
from .snapshots import Snapshots
from .stop_criteria import InvalidValue, NumberLimit, Threshold, TimeLimit
from .stopping import GL, PQ, Criterion, NumberSinceBest, Patience

__all__ = [
    "GL",
    "PQ",
    "AllOf",
    "AnyOf",
    "Callback",
    "Checkpoint",
    "ClassificationReport",
    "Criterion",
    "CycleLearningRate",
    "InvalidValue",
    "LivePlot",
    "Log",
    "MLflow",
    "Metrics",
    "NumberLimit",
    "NumberSinceBest",
    "OptunaPruning",
    "Patience",
    "RayTune",
    "RestoreBest",
    "Schedule",
    "Snapshots",
    "TensorBoard",
    "Threshold",
    "TimeLimit",
    "Warmup",
]

# Imported on first use: they need large or optional packages.
_LATER = {
    "ClassificationReport": "classification_report",
    "MLflow": "mlflow",
    "Metrics": "metrics",
    "OptunaPruning": "optuna",
    "RayTune": "ray",
    "TensorBoard": "tensorboard",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
