"""The operators: the only package that uses the native library behind `torch.ops.fastseq`.

Implementations are in ``csrc/torch``; here are their fake kernels and autograd formulas. The
formulas use differentiable operators, so that they can be differentiated again.
"""

from __future__ import annotations

from .library import (
    FLOATING,
    active_isa,
    cuda_kernels,
    cuda_obstacle,
    gpu_obstacle,
    parallel_for,
)
from .packing import DENSE, pack, pack_checked, sum_of_squares, unpack
from .products import bmm
from .random_kernels import KERNELS, measure_thresholds_, random_kernels
from .recurrences import gru, lstm, rnn

__all__ = [
    "DENSE",
    "FLOATING",
    "KERNELS",
    "active_isa",
    "bmm",
    "cuda_kernels",
    "cuda_obstacle",
    "gpu_obstacle",
    "gru",
    "lstm",
    "measure_thresholds_",
    "pack",
    "pack_checked",
    "parallel_for",
    "random_kernels",
    "rnn",
    "sum_of_squares",
    "unpack",
]


def __dir__() -> list[str]:
    return __all__
