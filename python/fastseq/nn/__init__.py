"""Layers, networks, and losses as modules."""

from .averaged import Averaged
from .chain import Chain
from .column_encoder import ColumnEncoder
from .focal_loss import FocalLoss
from .images import OnImages
from .instance_scaling import InstanceScale
from .ordinal import OrdinalLogProbabilities
from .padded_layers import PaddedBatchNorm, PaddedConv
from .pooling import Pool
from .recurrent import GRU, LSTM, RNN
from .rocket import RandomKernels, Rocket
from .series_networks import LSTMFCN, TCN, InceptionTime, PooledRNN, Transformer

__all__ = [
    "GRU", "LSTM", "LSTMFCN", "RNN", "TCN", "Averaged", "Chain", "ColumnEncoder", "FocalLoss",
    "InceptionTime", "InstanceScale", "OnImages", "OrdinalLogProbabilities", "PaddedBatchNorm",
    "PaddedConv", "Pool", "PooledRNN", "RandomKernels", "Rocket", "Transformer",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
