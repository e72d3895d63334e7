"""The operators: the one module that touches the native library behind `torch.ops.fastseq`.

Implementations are in ``csrc/torch``; here are their fake kernels and autograd formulas. Formulas
are written with the operators themselves, so that they can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _C  # type: ignore[attr-defined]  # importing it registers the operators

__all__ = [
    "DENSE",
    "FLOATING",
    "active_isa",
    "bmm",
    "cuda_kernels",
    "pack",
    "pack_checked",
    "unpack",
]

DENSE = 1
"""The alignment of a flat vector without gaps."""

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes that the operators know."""

_native = torch.ops.fastseq


def _load_cuda() -> bool:
    """Register the CUDA kernels, where there is a GPU and they were built."""
    if not torch.cuda.is_available():
        return False
    try:
        from . import _cuda  # type: ignore[attr-defined]  # noqa: F401
    except ImportError:
        return False
    return True


cuda_kernels = _load_cuda()
active_isa: str = _C.active_isa()


def pack(tensors: Sequence[Tensor], alignment: int = DENSE, scale: float = 1.0) -> Tensor:
    """Gather tensors into one new vector, in order, each multiplied by `scale`.

    Parameters
    ----------
    tensors
        Any shapes; one dtype (fp16, bf16, fp32 or fp64) and one device. At least one.
    alignment
        Bytes to whose multiples each start is rounded up; gaps are zero. 1: no gaps.

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
    flat: Tensor = _native.pack(list(tensors), alignment, scale)
    return flat


def pack_checked(
    tensors: Sequence[Tensor],
    alignment: int = DENSE,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Gather tensors as `pack` does, cast them, and look at the values, all in one pass.

    Not differentiable.

    Parameters
    ----------
    tensors, alignment, scale
        As in `pack`.
    dtype
        Of the vector: fp16, bf16, fp32 or fp64. None: that of the tensors.

    Returns
    -------
    flat : Tensor
        Shape ``(L,)``.
    facts : Tensor
        Shape ``(2,)``, float64, on the same device: 1 if all of `flat` is finite, else 0; and the
        sum of its squares. On the CPU the same bits for every number of threads.

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
        _native.pack_checked_(flat, facts, list(tensors), alignment, scale)
    return flat, facts


def unpack(
    flat: Tensor, numels: Sequence[int], alignment: int = DENSE, scale: float = 1.0
) -> list[Tensor]:
    """Scatter a vector into new vectors of the given lengths: the inverse of `pack`.

    Examples
    --------
    >>> unpack(torch.tensor([3.0, 3.0, 0.0]), [2, 1], scale=1 / 3)
    [tensor([1., 1.]), tensor([0.])]
    """
    pieces: list[Tensor] = _native.unpack(flat, list(numels), alignment, scale)
    return pieces


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product: ``(B, m, k) × (B, k, n) → (B, m, n)``, differentiable.

    Many tiny or thin matrices go to fastseq's own kernel, all other shapes to `torch.bmm`: a
    choice made from the shapes alone, by switch points that were measured. Transposed and
    strided operands are read where they lie. Under autocast it is `torch.bmm`.

    Raises
    ------
    ValueError
        Shapes, dtypes or devices don't fit together.

    Examples
    --------
    >>> bmm(torch.ones(5, 2, 3), torch.ones(5, 3, 4)).shape
    torch.Size([5, 2, 4])
    """
    # Nothing but the choice stands before the product: for a single small one, that shows.
    if a.shape[0] >= _MIN_BATCH and _own_kernel_wins(a, b):
        product: Tensor = _native.bmm(a, b)
        return product
    try:
        return torch.bmm(a, b)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            "bmm: expected a (B, m, k) and b (B, k, n) of one dtype on one device, got "
            f"{tuple(a.shape)} {a.dtype} on {a.device} and {tuple(b.shape)} {b.dtype} on "
            f"{b.device}"
        ) from error


# Where fastseq's kernel was found to beat `torch.bmm`: bench/results/bmm.json.
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
        return False  # as soon as can be: each further question costs a tenth of a microsecond
    if a.is_cuda:
        fast = batch >= 10_000 and max(m, k, n) <= _LARGEST_CUDA and a.dtype in _LARGEST
    else:
        fast = _own_cpu_kernel_wins(a, b, m, k, n)
    return (
        fast
        and b.shape[:2] == (batch, k)
        and a.dtype == b.dtype
        and a.device == b.device
        and (a.is_cpu or (a.is_cuda and cuda_kernels))
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


def _fake_bmm(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2])


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


def _save_bmm(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _grad_bmm(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    grad_a = bmm(grad, b.mT) if ctx.needs_input_grad[0] else None
    grad_b = bmm(a.mT, grad) if ctx.needs_input_grad[1] else None
    return grad_a, grad_b


torch.library.register_fake("fastseq::pack", _fake_pack)
torch.library.register_fake("fastseq::pack_checked_", _fake_pack_checked)
torch.library.register_fake("fastseq::unpack", _fake_unpack)
torch.library.register_fake("fastseq::bmm", _fake_bmm)
torch.library.register_autograd("fastseq::pack", _grad_pack, setup_context=_save_pack)
torch.library.register_autograd("fastseq::unpack", _grad_unpack, setup_context=_save_unpack)
torch.library.register_autograd("fastseq::bmm", _grad_bmm, setup_context=_save_bmm)
