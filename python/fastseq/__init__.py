"""Train sequence models in PyTorch with `fit` and `predict`.

Truncated back-propagation through time with carried state, data larger than memory, and the same
script under ``mpirun``. Start with `Estimator`.
"""

import importlib.metadata
from typing import TYPE_CHECKING, Any

from . import callbacks, distributed, nn, serving
from .data.hdf5 import h5concat, h5load, h5mmap, h5save
from .data.tables import LongTable
from .distributed import launch
from .errors import (
    BusyError,
    CheckpointError,
    CommunicationError,
    DivergedError,
    FastseqError,
    MissingFeatureError,
    NonFiniteError,
    ReadError,
    RemoteError,
)
from .estimator import Estimator
from .info import info
from .nn import builders
from .nn.losses import seqloss
from .nn.ops import bmm
from .nn.parameters import (
    decay_groups,
    loadstates,
    namedparams,
    net2grad,
    net2vec,
    notrack,
    states,
    vec2net,
    weights,
)
from .nn.stateful import Stateful
from .search_space import SearchSpace
from .training.history import History
from .training.spec import Spec

if TYPE_CHECKING:
    from .sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor

__all__ = [
    "BusyError",
    "CheckpointError",
    "CommunicationError",
    "DivergedError",
    "Estimator",
    "FastseqError",
    "History",
    "LongTable",
    "MissingFeatureError",
    "NonFiniteError",
    "ReadError",
    "RemoteError",
    "SearchSpace",
    "SequenceClassifier",
    "SequenceForecaster",
    "SequenceRegressor",
    "Spec",
    "Stateful",
    "__version__",
    "bmm",
    "builders",
    "callbacks",
    "decay_groups",
    "distributed",
    "h5concat",
    "h5load",
    "h5mmap",
    "h5save",
    "info",
    "launch",
    "loadstates",
    "namedparams",
    "net2grad",
    "net2vec",
    "nn",
    "notrack",
    "seqloss",
    "serving",
    "states",
    "vec2net",
    "weights",
]

__version__ = importlib.metadata.version("fastseq-torch")


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # a type checker would accept every name

    def __getattr__(name: str) -> Any:
        """Import the scikit-learn estimators on first use: it is slow, and needs scikit-learn."""
        if name not in ("SequenceClassifier", "SequenceForecaster", "SequenceRegressor"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            from . import sklearn as wrappers
        except MissingFeatureError as error:
            return _missing(name, error)
        return getattr(wrappers, name)


def _missing(name: str, error: MissingFeatureError) -> type:
    """Return a class that raises `error` when used; `hasattr` and imports work."""

    def refuse(*_: object, **__: object) -> Any:
        raise MissingFeatureError(str(error)) from error

    members = dict.fromkeys(("__new__", "__init_subclass__", "load"), refuse)
    return type(name, (), {**members, "__doc__": str(error)})
