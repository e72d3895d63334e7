"""Check a recurrent layer's arguments, and convert them under autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .lengths import known_on_host, mapped, on_host

__all__ = ["autocasts", "check_input", "checked_lengths", "checked_state", "to_dtype"]

_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


def check_input(x: Tensor, features: int, like: Tensor, *, any_dtype: bool) -> None:
    """Raise unless the input is ``(T, N, features)``, with the weights' device and dtype."""
    if x.dim() != 3:
        raise ValueError(
            "input must be (time, sequences, features), the first two in the layer's order, or "
            f"(time, features), got {tuple(x.shape)}"
        )
    if x.shape[2] != features:
        raise ValueError(f"input has {x.shape[2]} features, but the layer was made for {features}")
    if x.device != like.device:
        raise ValueError(f"input is on {x.device}, but the layer's weights are on {like.device}")
    if x.dtype != like.dtype and not any_dtype:
        raise TypeError(
            f"input is {x.dtype}, but the layer's weights are {like.dtype}: convert one of them"
        )


def checked_state(
    hx: Any,
    names: tuple[str, ...],
    shapes: list[tuple[int, int, int]],
    x: Tensor,
    *,
    single: bool,
    any_dtype: bool,
) -> tuple[Tensor, ...]:
    """Return the state, ``(h0,)`` or ``(h0, c0)``; raise if it does not have these shapes.

    For a single sequence, it may lack the dimension for sequences.
    """
    state = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
    if len(state) != len(shapes) or not all(isinstance(s, Tensor) for s in state):
        wanted = "a tensor" if len(shapes) == 1 else "a tuple of two tensors, h0 and c0"
        got = ", ".join(type(s).__name__ for s in state)
        raise TypeError(f"hx must be {wanted}, got {len(state)}: {got}")
    if single:
        state = tuple(s.unsqueeze(1) if s.dim() == 2 else s for s in state)
    for name, shape, s in zip(names, shapes, state, strict=True):
        if s.shape != shape:
            raise ValueError(
                f"{name} must be (layers and directions, sequences, hidden size) = {shape}, "
                f"got {tuple(s.shape)}"
            )
        if s.device != x.device:
            raise ValueError(f"{name} is on {s.device}, but input is on {x.device}")
        if s.dtype != x.dtype and not any_dtype:
            raise TypeError(f"{name} is {s.dtype}, but input is {x.dtype}: convert one of them")
    return state


def checked_lengths(lengths: object, x: Tensor, *, may_wait: bool) -> Tensor:
    """Return the lengths as int64, or raise.

    Their values are checked where they are on the host, or may be awaited from a GPU.
    """
    steps, count = x.shape[:2]
    if not isinstance(lengths, Tensor) or lengths.dtype not in _INTEGERS:
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths must be a tensor of integers, got {got}")
    if lengths.shape != (count,):
        raise ValueError(
            f"lengths must be ({count},), one per sequence, got {tuple(lengths.shape)}"
        )
    if lengths.device != x.device:
        raise ValueError(f"lengths must be on {x.device}, like input, got {lengths.device}")
    # A compiler sees no values: there the kernel checks them.
    compiles = torch.compiler.is_compiling()
    values = None if compiles else on_host(lengths) if may_wait else known_on_host(lengths)
    if values is not None and count:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > steps:
            raise ValueError(
                f"lengths must be between 0 and {steps}, the number of steps, got {low} to {high}"
            )
    return mapped(lengths, Tensor.long)


def autocasts(x: Tensor) -> bool:
    """Return whether autocast is on, for x's device."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def to_dtype(given: Any, dtype: torch.dtype) -> Any:
    """Convert a tensor or a tuple of tensors to a dtype; all but floats stay unchanged."""
    if isinstance(given, tuple | list):
        return tuple(to_dtype(part, dtype) for part in given)
    known = isinstance(given, Tensor) and given.is_floating_point()
    return given.to(dtype) if known else given
