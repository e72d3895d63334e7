"""Batched products of small matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import AutogradContext, gpu_obstacle, native

__all__ = ["bmm"]


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product: ``(B, m, k) × (B, k, n) → (B, m, n)``, differentiable.

    Many tiny or thin matrices go to fastseq's own kernel, all other shapes to `torch.bmm`: the
    choice depends only on shapes, with measured switch points. Transposed and strided operands are
    read in place. Under autocast it is `torch.bmm`.

    Parameters
    ----------
    a, b
        Tensors ``(B, m, k)`` and ``(B, k, n)``, of one dtype and on one device.

    Returns
    -------
    Tensor
        The B products, ``(B, m, n)``.

    Raises
    ------
    ValueError
        Shapes, dtypes or devices don't fit together.

    Examples
    --------
    >>> bmm(torch.ones(5, 2, 3), torch.ones(5, 3, 4)).shape
    torch.Size([5, 2, 4])
    """
    if type(a) is not Tensor and torch.compiler.is_exporting():
        return torch.bmm(a, b)  # a choice by shape would fix the exported shape
    try:
        # Nothing but the choice precedes the product: for a single small one, more would show.
        if a.shape[0] >= _MIN_BATCH and _own_kernel_wins(a, b):
            product: Tensor = native.bmm(a, b)
            return product
        return torch.bmm(a, b)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            "bmm: expected a (B, m, k) and b (B, k, n) of one dtype on one device, got "
            f"{tuple(a.shape)} {a.dtype} on {a.device} and {tuple(b.shape)} {b.dtype} on "
            f"{b.device}"
        ) from error


# Where fastseq's kernel beats `torch.bmm`: bench/results/bmm.json.
_MIN_BATCH = 200
# In multiplications; with fewer, PyTorch's dispatch of an operator costs more.
_MIN_PRODUCTS = 16_000
_MIN_PRODUCTS_OF_DOTS = 64_000  # the same where b is read by columns
_LARGEST = {torch.float16: 4, torch.bfloat16: 5, torch.float32: 12, torch.float64: 8}
_LARGEST_BY_COLUMNS = 8
_LARGEST_OF_VECTOR = 64
_SHORTEST_DOT = 16
_LARGEST_CUDA = 16


def _own_kernel_wins(a: Tensor, b: Tensor) -> bool:
    if a.dim() != 3 or b.dim() != 3:
        return False
    batch, m, k = a.shape
    n = b.shape[2]
    if max(m, k, n) > _LARGEST_OF_VECTOR or batch * m * k * n < _MIN_PRODUCTS:
        return False  # as early as possible: each further check costs a tenth of a microsecond
    if a.is_cuda:
        fast = batch >= 10_000 and max(m, k, n) <= _LARGEST_CUDA and a.dtype in _LARGEST
    else:
        fast = _own_cpu_kernel_wins(a, b, m, k, n)
    return (
        fast
        and b.shape[:2] == (batch, k)
        and a.dtype == b.dtype
        and a.device == b.device
        and (a.is_cpu or (a.is_cuda and not gpu_obstacle(a.get_device())))
        and not torch.is_autocast_enabled(a.device.type)
    )


def _own_cpu_kernel_wins(a: Tensor, b: Tensor, m: int, k: int, n: int) -> bool:
    largest = max(m, k, n)
    products = a.shape[0] * m * k * n
    by_columns = n > 1 and b.stride(2) != 1
    if (m == 1 or n == 1) and a.dtype in (torch.float32, torch.float64):
        if by_columns or (n == 1 and a.stride(2) == 1):  # dot products along contiguous memory
            return k >= _SHORTEST_DOT and products >= _MIN_PRODUCTS_OF_DOTS
        whole_panels = m * n % 32 == 0  # the kernel's widest
        return whole_panels or largest <= 16
    if by_columns:
        limit = min(_LARGEST.get(a.dtype, 0), _LARGEST_BY_COLUMNS)
        return products >= _MIN_PRODUCTS_OF_DOTS and largest <= limit
    return largest <= _LARGEST.get(a.dtype, 0)


def _fake_bmm(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2])


def _save_bmm(ctx: AutogradContext, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _grad_bmm(ctx: AutogradContext, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    grad_a = bmm(grad, b.mT) if ctx.needs_input_grad[0] else None
    grad_b = bmm(a.mT, grad) if ctx.needs_input_grad[1] else None
    return grad_a, grad_b


torch.library.register_fake("fastseq::bmm", _fake_bmm)
torch.library.register_autograd("fastseq::bmm", _grad_bmm, setup_context=_save_bmm)
