"""Layers."""

from .chain import Chain
from .recurrent import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "Chain"]
