"""A GPU on the host: tensors of the CPU stand for those of a GPU, whose work runs in its streams.

The module for CUDA on the host is built by the C++ tests (``make cpp-test``).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

from fastseq.distributed import bucketizer
from fastseq.distributed.native_bucketizers import DeviceBucketizer
from fastseq.training import fit

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def library():
    """Return the module, and its functions for tests."""
    built = ROOT / "build/package/tests/cuda_on_host"
    found = list(built.glob("_cuda_comm.*.so"))
    if not found:
        return None
    # NCCL on the host finds its streams there.
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        spec = importlib.util.spec_from_file_location("fastseq._cuda_comm", found[0])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.setdlopenflags(flags)
    ctypes.CDLL(str(built / "libnccl.so.2"))
    functions = ctypes.CDLL(str(found[0]))
    functions.cuda_on_host_start()
    return module, functions


class OnHost(DeviceBucketizer):
    """Gradients are there when they are given, as no stream makes them."""

    def _module(self):
        return library()[0]

    def _stream(self):
        return 0

    def _keep(self, tensor):
        kept.append(tensor)

    def _tensor(self, memory):
        address, _ = memory.__cuda_array_interface__["data"]
        if not len(memory):
            return torch.empty(0, dtype=torch.uint8)
        alive = type("Alive", (ctypes.c_ubyte * len(memory),), {}).from_address(address)
        alive.memory = memory
        return torch.frombuffer(alive, dtype=torch.uint8)

    def finish(self):
        update = super().finish()
        synchronize()  # operators of the CPU do not come after what streams do
        kept.clear()
        return update


kept: list[torch.Tensor] = []


def synchronize():
    assert library()[1].cuda_on_host_synchronize() == 0


def host_waits() -> int:
    count = library()[1].cuda_on_host_waits
    count.restype = ctypes.c_long
    return count()


@pytest.fixture
def gpu_on_host(monkeypatch):
    """Average all gradients as those on a GPU are; call it with the number of this rank's GPU."""
    if library() is None:
        if os.environ.get("FASTSEQ_REQUIRE_MPI") == "1":
            pytest.fail("CUDA on the host is not built: make cpp-test")
        pytest.skip("CUDA on the host is not built: make cpp-test")
    monkeypatch.setattr(bucketizer, "native_for", lambda params: OnHost)
    monkeypatch.setattr(fit, "_trainer_for", lambda learner: fit.Trainer)  # as on a GPU
    set_gpu = library()[1].cuda_on_host_set_gpu
    set_gpu(0)
    return set_gpu
