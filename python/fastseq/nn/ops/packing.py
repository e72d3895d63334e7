"""Pack many tensors into one vector, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .library import FLOATING, native

__all__ = ["DENSE", "pack", "pack_checked", "sum_of_squares", "unpack"]

DENSE = 1
"""The alignment of a flat vector without gaps."""


def pack(tensors: Sequence[Tensor], alignment: int = DENSE, scale: float = 1.0) -> Tensor:
    """Gather tensors into one new vector, in order, each multiplied by `scale`.

    Parameters
    ----------
    tensors
        Any shapes; one dtype (fp16, bf16, fp32 or fp64) and one device. At least one.
    alignment
        Each tensor starts at a multiple of this many bytes; gaps are zero. 1: no gaps.

    Returns
    -------
    Tensor
        Shape ``(L,)``; without gaps L is the sum of the tensors' lengths.

    Examples
    --------
    >>> pack([torch.ones(2), torch.zeros(1, 1)], scale=3.0)
    tensor([3., 3., 0.])
    """
    if not tensors:
        raise ValueError("pack: tensors must hold at least one tensor, got none")
    flat: Tensor = native.pack(list(tensors), alignment, scale)
    return flat


def pack_checked(
    tensors: Sequence[Tensor],
    alignment: int = DENSE,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Gather tensors as `pack` does, cast them, and check the values, all in one pass.

    Not differentiable.

    Parameters
    ----------
    tensors, alignment, scale
        As in `pack`.
    dtype
        The vector's dtype: fp16, bf16, fp32 or fp64. None: the tensors' dtype.

    Returns
    -------
    flat : Tensor
        Shape ``(L,)``.
    facts : Tensor
        Shape ``(2,)``, float64, on the same device: 1 if all of `flat` is finite, else 0; and the
        sum of its squares. On the CPU, bits are the same for every number of threads.

    Examples
    --------
    >>> flat, facts = pack_checked([torch.ones(2), torch.zeros(1, 1)], 1, 3.0, torch.bfloat16)
    >>> flat, facts.tolist()
    (tensor([3., 3., 0.], dtype=torch.bfloat16), [1.0, 18.0])
    """
    if not tensors:
        raise ValueError("pack_checked: tensors must hold at least one tensor, got none")
    first = tensors[0]
    dtype = first.dtype if dtype is None else dtype
    unit = max(alignment // dtype.itemsize, 1)
    length: Any = 0
    for tensor in tensors:
        length = (length + tensor.numel() + unit - 1) // unit * unit
    flat = first.new_empty(length, dtype=dtype)
    facts = first.new_empty(2, dtype=torch.float64)
    with torch.no_grad():
        native.pack_checked_(flat, facts, list(tensors), alignment, scale)
    return flat, facts


def sum_of_squares(tensors: Sequence[Tensor]) -> float | None:
    """Return the sum of all tensors' squares, added in fp64 in one pass, or None.

    None if they are not dense tensors on the CPU, all of one dtype that `pack` takes. Bits are the
    same for every number of threads.

    Examples
    --------
    >>> sum_of_squares([torch.ones(2), torch.full((1, 1), 3.0)])
    11.0
    """
    if not tensors:
        return 0.0
    dtype = tensors[0].dtype
    if dtype not in FLOATING:
        return None
    for tensor in tensors:
        if not tensor.is_cpu or tensor.dtype != dtype or tensor.layout != torch.strided:
            return None
    total: float = native.sum_of_squares(tensors)
    return total


def unpack(
    flat: Tensor, numels: Sequence[int], alignment: int = DENSE, scale: float = 1.0
) -> list[Tensor]:
    """Scatter a vector into new vectors of the given lengths: the inverse of `pack`.

    Examples
    --------
    >>> unpack(torch.tensor([3.0, 3.0, 0.0]), [2, 1], scale=1 / 3)
    [tensor([1., 1.]), tensor([0.])]
    """
    pieces: list[Tensor] = native.unpack(flat, list(numels), alignment, scale)
    return pieces


def _fake_pack(tensors: list[Tensor], alignment: int, scale: float) -> Tensor:
    del scale
    unit = max(alignment // tensors[0].element_size(), 1)
    length: Any = 0
    for tensor in tensors:
        length = (length + tensor.numel() + unit - 1) // unit * unit
    return tensors[0].new_empty(length)


def _fake_pack_checked(
    flat: Tensor, facts: Tensor, tensors: list[Tensor], alignment: int, scale: float
) -> None:
    del flat, facts, tensors, alignment, scale


def _fake_unpack(flat: Tensor, numels: list[int], alignment: int, scale: float) -> list[Tensor]:
    del alignment, scale
    return [flat.new_empty(numel) for numel in numels]


def _save_pack(ctx: Any, inputs: tuple[list[Tensor], int, float], output: Tensor) -> None:
    del output
    tensors, ctx.alignment, ctx.scale = inputs
    ctx.shapes = [tensor.shape for tensor in tensors]


def _grad_pack(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, None]:
    numels = [shape.numel() for shape in ctx.shapes]
    pieces = unpack(grad, numels, ctx.alignment, ctx.scale)
    grads = [piece.view(shape) for piece, shape in zip(pieces, ctx.shapes, strict=True)]
    return grads, None, None


def _save_unpack(
    ctx: Any, inputs: tuple[Tensor, list[int], int, float], output: list[Tensor]
) -> None:
    del output
    _, _, ctx.alignment, ctx.scale = inputs


def _grad_unpack(ctx: Any, grads: list[Tensor]) -> tuple[Tensor, None, None, None]:
    return pack(grads, ctx.alignment, ctx.scale), None, None, None


torch.library.register_fake("fastseq::pack", _fake_pack)
torch.library.register_fake("fastseq::pack_checked_", _fake_pack_checked)
torch.library.register_fake("fastseq::unpack", _fake_unpack)
torch.library.register_autograd("fastseq::pack", _grad_pack, setup_context=_save_pack)
torch.library.register_autograd("fastseq::unpack", _grad_unpack, setup_context=_save_unpack)
