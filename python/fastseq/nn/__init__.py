"""Layers and networks."""

from .chain import Chain
from .images import OnImages
from .instance_scaling import InstanceScale
from .padded_layers import PaddedBatchNorm, PaddedConv
from .pooling import Pool
from .recurrent import GRU, LSTM, RNN
from .series_networks import LSTMFCN, TCN, InceptionTime, PooledRNN, Transformer

__all__ = [
    "GRU", "LSTM", "LSTMFCN", "RNN", "TCN", "Chain", "InceptionTime", "InstanceScale", "OnImages",
    "PaddedBatchNorm", "PaddedConv", "Pool", "PooledRNN", "Transformer",
]  # fmt: skip
