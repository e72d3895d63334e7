"""What can be done while `Estimator.fit` runs: stop early, change learning rates, write files."""

from .combining import AllOf, AnyOf, Warmup
from .limits import InvalidValue, NumberLimit, Threshold, TimeLimit
from .live_plot import LivePlot
from .log import Log
from .protocol import Callback
from .restoring import RestoreBest
from .schedules import CycleLearningRate, Schedule
from .snapshots import Snapshots
from .stopping import GL, PQ, Criterion, NumberSinceBest, Patience

__all__ = [
    "GL",
    "PQ",
    "AllOf",
    "AnyOf",
    "Callback",
    "Criterion",
    "CycleLearningRate",
    "InvalidValue",
    "LivePlot",
    "Log",
    "NumberLimit",
    "NumberSinceBest",
    "Patience",
    "RestoreBest",
    "Schedule",
    "Snapshots",
    "Threshold",
    "TimeLimit",
    "Warmup",
]
