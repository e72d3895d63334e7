"""`Communicator.allreduce_` beside `MPI_Allreduce` and scaling, gloo and `memcpy`; under mpirun.

Contenders average the same numbers in place. `memcpy` copies as many bytes on rank 0 while the
others wait: the speed of memory. NumPy's memory is what users of mpi4py exchange; "allocated" is
what `Communicator.allocate` returns, where fastseq keeps gradients.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import Bench, Mark, same
from mpi4py import MPI

import fastseq as fs

KIB, MIB = 2**10, 2**20
SIZES = [KIB, 8 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 25 * MIB, 64 * MIB, 128 * MIB]
AGAINST_MPI = {2: 3, 4: 5}  # ranks: how many times as fast, from 64 KiB on
NO_SLOWER = 1 / 0.97
MPI4PY, GLOO, MEMCPY = "MPI_Allreduce, scaling", "gloo, scaling", "memcpy on one rank"
OURS = "allreduce_, allocated memory"


def start_gloo(comm: fs.distributed.Communicator) -> None:
    """Make torch.distributed's gloo group; rank 0 offers a port of this machine."""
    port = torch.zeros(1, dtype=torch.int64)
    if comm.rank == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port[0] = free.getsockname()[1]
    comm.broadcast_(port)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{int(port)}",
        rank=comm.rank,
        world_size=comm.size,
    )


def mpi_mean(array: np.ndarray, ranks: int) -> None:
    MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, array)
    array *= np.float32(1 / ranks)


def gloo_mean(tensor: torch.Tensor, ranks: int) -> None:
    torch.distributed.all_reduce(tensor)
    tensor.mul_(1 / ranks)


def contenders(
    comm: fs.distributed.Communicator, size: int, dtype: torch.dtype
) -> dict[str, Callable[[], Any]]:
    numel = size // dtype.itemsize
    array = np.full(numel if dtype == torch.float32 else 0, comm.rank + 1, np.float32)
    private, gloo = (torch.full((numel,), comm.rank + 1.0, dtype=dtype) for _ in range(2))
    shared = comm.allocate(numel, dtype).fill_(comm.rank + 1)
    source, target = torch.ones(numel, dtype=dtype), torch.empty(numel, dtype=dtype)
    calls: dict[str, Callable[[], Any]] = {
        MPI4PY: lambda: mpi_mean(array, comm.size),
        OURS: lambda: comm.allreduce_(shared),
        "allreduce_, other memory": lambda: comm.allreduce_(private),
        GLOO: lambda: gloo_mean(gloo, comm.size),
        MEMCPY: (lambda: target.copy_(source)) if comm.rank == 0 else (lambda: None),
    }
    if dtype != torch.float32:
        del calls[MPI4PY]  # knows no 16-bit floats
    for call in calls.values():
        call()
    wanted = torch.full((numel,), (comm.size + 1) / 2, dtype=dtype)
    for found in (shared, private, gloo, *([torch.from_numpy(array)] if array.size else [])):
        same(found, wanted, rtol=0)
    return calls


def marks(size: int, ranks: int, dtype: torch.dtype) -> tuple[Mark, ...]:
    found = []
    if dtype == torch.float32:
        large = size >= 64 * KIB
        found.append(Mark(OURS, 1 / AGAINST_MPI[ranks] if large else NO_SLOWER))
        if large:
            found.append(Mark(OURS, 1 / 8, GLOO))
    if size >= 25 * MIB and ranks == 2:
        found.append(Mark(OURS, 0.8, MEMCPY))
    return tuple(found)


def main() -> None:
    comm = fs.distributed.world()
    start_gloo(comm)
    bench = Bench.from_arguments(f"allreduce_{comm.size}", rounds=30, shown=comm.rank == 0)
    for dtype in (torch.float32, torch.bfloat16):
        for size in SIZES:
            bench.compare(
                f"{size / KIB:g} KiB, {str(dtype)[6:]}, {comm.size} ranks, {comm.transport}",
                contenders(comm, size, dtype),
                repeats=max(1, min(50, 4 * MIB // size)),
                bytes_moved=size,
                marks=marks(size, comm.size, dtype),
            )
    bench.write(ranks=comm.size, mpi=MPI.Get_library_version().splitlines()[0].rstrip("\0"))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
