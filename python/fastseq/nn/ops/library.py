"""Load the native library; importing it registers the operators."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from ... import _C
from ..._util.torch_internals import assume_constant_result

__all__ = [
    "FLOATING",
    "AutogradContext",
    "active_isa",
    "cuda_kernels",
    "cuda_obstacle",
    "gpu_obstacle",
    "load_cuda",
    "native",
    "parallel_for",
]

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes of flat vectors and products."""

ISAS = ("baseline", "x86-64-v3", "x86-64-v4")
"""The instruction sets that kernels are compiled for."""

native = torch.ops.fastseq


class AutogradContext(Protocol):
    """What autograd passes from an operator's forward to its backward."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Any, ...]  # tensors, and None where None was saved

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for `saved_tensors`."""

    def set_materialize_grads(self, value: bool) -> None:
        """Set whether gradients that are None become zeros."""


def load_cuda() -> str | None:
    """Register the CUDA kernels; return why they are missing, or None.

    Warns
    -----
    RuntimeWarning
        They are built, but cannot be loaded.
    """
    if not torch.cuda.is_available():
        return "there is no GPU"
    if find_spec("fastseq._cuda") is None:
        return "not built"
    try:
        from ... import _cuda  # noqa: F401
    except ImportError as error:  # such as a library of a CUDA version other than torch's
        found = f"built, but cannot be loaded: {error}"
        warnings.warn(f"fastseq's CUDA kernels are {found}", RuntimeWarning, stacklevel=2)
        return found
    return None


cuda_obstacle: str | None = load_cuda()
cuda_kernels: bool = cuda_obstacle is None
_obstacles: dict[int, str] = {}


@assume_constant_result
def gpu_obstacle(index: int) -> str:
    """Return why a GPU cannot run the CUDA kernels, empty if it can.

    Warns
    -----
    RuntimeWarning
        The first time, where kernels are loaded that were built for other GPUs.
    """
    if cuda_obstacle is not None:
        return cuda_obstacle
    if index not in _obstacles:
        from ... import _cuda

        with torch.cuda.device(index):
            _obstacles[index] = _cuda.obstacle()
        if found := _obstacles[index]:
            name = torch.cuda.get_device_name(index)
            warnings.warn(
                f"fastseq's CUDA kernels cannot run on GPU {index} ({name}): {found}. PyTorch's "
                "are taken where they can do the same",
                RuntimeWarning,
                stacklevel=2,
            )
    return _obstacles[index]


active_isa: str = _C.active_isa()
parallel_for: int = _C.parallel_for()
"""The address of the loop on torch's threads that C++ code may call."""
if (isa := os.environ.get("FASTSEQ_ISA", active_isa)) not in ISAS:
    raise ValueError(
        f"the environment variable FASTSEQ_ISA must be one of {', '.join(ISAS)}, got {isa!r}"
    )
