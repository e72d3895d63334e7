"""Layers and networks."""

from .chain import Chain
from .column_encoder import ColumnEncoder
from .instance_scaling import InstanceScale
from .padded_layers import PaddedBatchNorm, PaddedConv
from .pooling import Pool
from .recurrent import GRU, LSTM, RNN
from .series_networks import LSTMFCN, TCN, InceptionTime, PooledRNN, Transformer

__all__ = [
    "GRU", "LSTM", "LSTMFCN", "RNN", "TCN", "Chain", "ColumnEncoder", "InceptionTime",
    "InstanceScale", "PaddedBatchNorm", "PaddedConv", "Pool", "PooledRNN", "Transformer",
]  # fmt: skip
