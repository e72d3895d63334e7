"""Loads the native library; importing it registers the operators."""

from __future__ import annotations

import os

import torch

from .. import _C  # type: ignore[attr-defined]

__all__ = ["FLOATING", "active_isa", "cuda_kernels", "native"]

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes that flat vectors and products know."""

ISAS = ("baseline", "x86-64-v3", "x86-64-v4")
"""The instruction sets that kernels are compiled for."""

native = torch.ops.fastseq


def _load_cuda() -> bool:
    """Register the CUDA kernels, where there is a GPU and they were built."""
    if not torch.cuda.is_available():
        return False
    try:
        from .. import _cuda  # type: ignore[attr-defined]  # noqa: F401
    except ImportError:
        return False
    return True


cuda_kernels = _load_cuda()
active_isa: str = _C.active_isa()
if (isa := os.environ.get("FASTSEQ_ISA", active_isa)) not in ISAS:
    raise ValueError(f"the environment's FASTSEQ_ISA must be one of {', '.join(ISAS)}, got {isa!r}")
