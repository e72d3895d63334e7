"""Numbers of steps that are known on the host too, where data are on a GPU: reading there waits."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["beside", "mapped", "on_host"]


def beside(lengths: Tensor, host: Tensor) -> Tensor:
    """Let lengths on a device remember the same on the host."""
    lengths._on_host = host  # type: ignore[attr-defined]
    return lengths


def on_host(lengths: Tensor) -> Tensor:
    """Return lengths on the host, without a copy from the device where they are known."""
    if lengths.is_cpu:
        return lengths
    host: Tensor | None = getattr(lengths, "_on_host", None)
    return lengths.cpu() if host is None else host


def mapped(lengths: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a function of lengths, which is known on the host if they are.

    Examples
    --------
    >>> import torch
    >>> host = torch.tensor([3, 2])
    >>> on_host(mapped(beside(host.to("meta"), host), lambda n: n - 1))
    tensor([2, 1])
    """
    result = function(lengths)
    if not lengths.is_cpu and hasattr(lengths, "_on_host"):
        beside(result, function(lengths._on_host))
    return result
