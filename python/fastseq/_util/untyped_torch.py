"""Public functions of torch that have no types, with types."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

__all__ = [
    "PrefixStore",
    "TCPStore",
    "backward",
    "cuda_is_in_use",
    "cuda_stream",
    "external_stream",
]

_distributed: Any = distributed
PrefixStore: Any = _distributed.PrefixStore
TCPStore: Any = _distributed.TCPStore


def backward(loss: Tensor) -> None:
    """Add a loss's gradients to those of the parameters."""
    loss.backward()  # type: ignore[no-untyped-call]


def cuda_stream(device: torch.device) -> torch.cuda.Stream:
    """Make a stream on a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def external_stream(handle: int, device: torch.device) -> torch.cuda.Stream:
    """Return torch's object for a stream that somebody else has made."""
    return torch.cuda.ExternalStream(handle, device)  # type: ignore[no-untyped-call]


def cuda_is_in_use() -> bool:
    """Return whether this process has started to use a GPU."""
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
