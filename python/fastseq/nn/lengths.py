"""Lengths and weights on a GPU with a copy on the host: reading from the GPU would wait."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["beside", "known_on_host", "mapped", "on_host"]


def beside(there: Tensor, host: Tensor) -> Tensor:
    """Attach the copy on the host to a tensor on a device, and return that."""
    if there is not host:
        there._on_host = host  # type: ignore[attr-defined]
    return there


def known_on_host(there: Tensor) -> Tensor | None:
    """Return a tensor on the host if it is there, too."""
    if there.is_cpu:
        return there
    host: Tensor | None = getattr(there, "_on_host", None)
    return host


def on_host(there: Tensor) -> Tensor:
    """Return a tensor on the host, without copying from the device if it is known."""
    host = known_on_host(there)
    return there.cpu() if host is None else host


def mapped(lengths: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to lengths, and to their copy on the host if there is one.

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
