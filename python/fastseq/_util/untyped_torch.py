"""Public functions of torch that have no types, with types."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["backward", "cuda_event", "cuda_is_in_use", "cuda_runtime", "cuda_stream"]


def backward(loss: Tensor) -> None:
    """Add a loss's gradients to those of the parameters."""
    loss.backward()  # type: ignore[no-untyped-call]


def cuda_stream(device: torch.device) -> torch.cuda.Stream:
    """Make a stream on a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def cuda_event() -> torch.cuda.Event:
    """Make an event on the current GPU."""
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def cuda_runtime() -> Any:
    """Return the CUDA runtime's module, which lists only what it was built with."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def cuda_is_in_use() -> bool:
    """Return whether this process has started to use a GPU."""
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
