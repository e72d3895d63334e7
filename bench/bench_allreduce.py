"""`Communicator.allreduce_` beside `MPI_Allreduce` and scaling through mpi4py; run under mpirun."""

from __future__ import annotations

import numpy as np
import torch
from harness import Bench, same
from mpi4py import MPI

import fastseq as fs

SIZES = [2**k for k in (10, 13, 16, 18, 20, 22, 24, 26)]


def main() -> None:
    comm = fs.distributed.world()
    bench = Bench.from_arguments("allreduce", rounds=30)
    if comm.rank != 0:
        bench.name = ""
    for size in SIZES:
        ours = comm.allocate(size // 4)
        theirs = np.zeros(size // 4, np.float32)
        ours.fill_(comm.rank + 1)
        theirs.fill(comm.rank + 1)

        def mpi(array: np.ndarray = theirs) -> None:
            MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, array)
            array *= np.float32(1 / comm.size)

        mpi()
        same(comm.allreduce_(ours), torch.from_numpy(theirs), rtol=0)
        bench.compare(
            f"{size} bytes, {comm.size} ranks",
            {
                "mpi4py and scaling": mpi,
                "Communicator.allreduce_": lambda t=ours: comm.allreduce_(t),
            },
            repeats=max(1, min(100, 2**22 // size)),
            bytes_moved=size,
        )
    bench.write(ranks=comm.size, mpi=MPI.Get_library_version().splitlines()[0])


if __name__ == "__main__":
    main()
