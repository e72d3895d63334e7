"""Load the native library; importing it registers the operators."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from ... import _C

__all__ = ["FLOATING", "active_isa", "cuda_kernels", "cuda_obstacle", "load_cuda", "native"]

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes of flat vectors and products."""

ISAS = ("baseline", "x86-64-v3", "x86-64-v4")
"""The instruction sets that kernels are compiled for."""

native = torch.ops.fastseq


def load_cuda() -> str | None:
    """Register the CUDA kernels; return why they are missing, or None."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    if find_spec("fastseq._cuda") is None:
        return "not built"
    try:
        from ... import _cuda  # noqa: F401
    except ImportError as error:  # such as a library of a CUDA version other than torch's
        return f"built, but cannot be loaded: {error}"
    return None


cuda_obstacle = load_cuda()
cuda_kernels = cuda_obstacle is None
active_isa: str = _C.active_isa()
if (isa := os.environ.get("FASTSEQ_ISA", active_isa)) not in ISAS:
    raise ValueError(
        f"the environment variable FASTSEQ_ISA must be one of {', '.join(ISAS)}, got {isa!r}"
    )
