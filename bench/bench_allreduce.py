"""`Communicator.allreduce_` beside `MPI_Allreduce` and scaling through mpi4py; run under mpirun.

NumPy asks for huge pages from 4 MiB on, which alone makes large messages up to a fifth faster. So
both contenders run on both kinds of memory: NumPy's, and what `Communicator.allocate` returns.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from harness import Bench, same
from mpi4py import MPI

import fastseq as fs

SIZES = [2**k for k in (10, 13, 16, 18, 20, 22, 24, 26)]


def vector(comm: fs.distributed.Communicator, kind: str, numel: int) -> torch.Tensor:
    """Make a vector of the rank's number."""
    numpys = kind == "NumPy's memory"
    tensor = torch.from_numpy(np.zeros(numel, np.float32)) if numpys else comm.allocate(numel)
    return tensor.fill_(comm.rank + 1)


def mpi_mean(array: np.ndarray, ranks: int) -> None:
    MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, array)
    array *= np.float32(1 / ranks)


def main() -> None:
    comm = fs.distributed.world()
    bench = Bench.from_arguments("allreduce", rounds=30, shown=comm.rank == 0)
    for size in SIZES:
        pairs = {}
        for kind in ("NumPy's memory", "allocated memory"):
            theirs, ours = (vector(comm, kind, size // 4) for _ in range(2))
            mpi_mean(theirs.numpy(), comm.size)
            same(comm.allreduce_(ours), theirs, rtol=0)
            pairs[kind] = theirs.numpy(), ours
        bench.compare(
            f"{size} bytes, {comm.size} ranks",
            {
                f"{name}, {kind}": call
                for kind, (array, tensor) in pairs.items()
                for name, call in (
                    ("mpi4py", partial(mpi_mean, array, comm.size)),
                    ("allreduce_", partial(comm.allreduce_, tensor)),
                )
            },
            repeats=max(1, min(100, 2**22 // size)),
            bytes_moved=size,
        )
    bench.write(ranks=comm.size, mpi=MPI.Get_library_version().splitlines()[0].rstrip("\0"))


if __name__ == "__main__":
    main()
