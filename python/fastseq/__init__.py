"""Train sequence models in PyTorch with `fit` and `predict`.

Truncated back-propagation through time with carried state, data larger than memory, and the same
script under ``mpirun``. Start with `Estimator`.
"""

from . import callbacks, distributed, nn
from ._info import info
from ._ops import bmm
from .errors import (
    CommunicationError,
    FastseqError,
    MissingFeatureError,
    NonFiniteError,
    ReadError,
    RemoteError,
)
from .estimator import Estimator
from .h5 import h5concat, h5load, h5mmap, h5save
from .history import History
from .losses import seqloss
from .params import (
    loadstates,
    namedparams,
    net2grad,
    net2vec,
    notrack,
    states,
    vec2net,
    weights,
)
from .spec import Spec
from .stateful import Stateful

__all__ = [
    "CommunicationError",
    "Estimator",
    "FastseqError",
    "History",
    "MissingFeatureError",
    "NonFiniteError",
    "ReadError",
    "RemoteError",
    "Spec",
    "Stateful",
    "bmm",
    "callbacks",
    "distributed",
    "h5concat",
    "h5load",
    "h5mmap",
    "h5save",
    "info",
    "loadstates",
    "namedparams",
    "net2grad",
    "net2vec",
    "nn",
    "notrack",
    "seqloss",
    "states",
    "vec2net",
    "weights",
]
