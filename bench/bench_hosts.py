"""Averaging between two hosts: `hierarchy`, also with bf16 on the wire, beside `MPI_Allreduce`.

The hosts are network namespaces on this machine, joined by a link of 1 Gbit/s each way, with 2
ranks on each. Run as root without mpirun; it starts its own jobs: one with Open MPI's defaults, one
with the setting that was found best for MPI (no ``coll/han``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import hosts
import numpy as np
import torch
from harness import Bench, Mark, same

import fastseq as fs

MIB = 2**20
SIZES = [MIB, 25 * MIB, 100 * MIB]
SETTINGS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "best": ("--mca", "coll", "^han"),
}
ONE_WAY, MPI4PY = "one way, rank to rank", "MPI_Allreduce, scaling"
FULL, HALF = "hierarchy", "hierarchy, bf16 on the wire"


def contenders(comms: dict[str, fs.distributed.Communicator], size: int) -> dict[str, Any]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    array = np.full(size // 4, world.rank + 1, np.float32)
    packet = np.ones(size // 4, np.float32)

    def one_way() -> None:
        if world.rank == 0:
            world.Send(packet, dest=world.size // 2)
        elif world.rank == world.size // 2:
            world.Recv(packet, source=0)
        world.Barrier()

    def mpi_mean() -> None:
        world.Allreduce(MPI.IN_PLACE, array)
        np.multiply(array, np.float32(1 / world.size), out=array)

    calls: dict[str, Callable[[], object]] = {ONE_WAY: one_way, MPI4PY: mpi_mean}
    tensors = {}
    for name, comm in comms.items():
        tensors[name] = comm.allocate(size // 4).fill_(world.rank + 1)
        calls[name] = lambda c=comm, t=tensors[name]: c.allreduce_(t)
    for call in calls.values():
        call()
    for tensor in tensors.values():
        same(tensor, torch.from_numpy(array), rtol=0)
    return calls


def marks(size: int, setting: str) -> tuple[Mark, ...]:
    if size < 25 * MIB:
        return ()
    found = [Mark(FULL, 1.35, ONE_WAY), Mark(HALF, 0.7, ONE_WAY)]
    if setting == "defaults":
        return (*found, Mark(FULL, 1 / 4, MPI4PY))
    return (*found, Mark(FULL, 1 / 0.97, MPI4PY), Mark(HALF, 1 / 1.7, MPI4PY))


def inside(setting: str) -> None:
    """Compare, as one of the ranks."""
    from mpi4py import MPI

    world = fs.distributed.world()
    if world.transport != "hierarchy":
        raise RuntimeError(f"the hosts were not taken for two: transport {world.transport}")
    half = fs.distributed.Communicator(MPI.COMM_WORLD, wire_dtype=torch.bfloat16)
    bench = Bench.from_arguments(f"hosts_{setting}", rounds=7, shown=world.rank == 0)
    for size in SIZES:
        bench.compare(
            f"{size // MIB} MiB, float32, 2 hosts with {world.local_size} ranks, {hosts.RATE}, "
            f"MPI: {setting}",
            contenders({FULL: world, HALF: half}, size),
            bytes_moved=size,
            marks=marks(size, setting),
        )
    bench.write(ranks=world.size, link=hosts.RATE, mpi=MPI.Get_library_version().split(",")[0])


def main() -> None:
    if reason := hosts.possible():
        print(f"hosts: left out: {reason}")
        return
    with hosts.two_hosts():
        for setting, options in SETTINGS.items():
            command = [sys.executable, __file__, *sys.argv[1:]]
            done = hosts.mpirun(command, options=(*options, "-x", f"FASTSEQ_BENCH={setting}"))
            print(done.stdout)
            if done.returncode:
                raise SystemExit(f"the job on two hosts failed with {done.returncode}")


if __name__ == "__main__":
    if "FASTSEQ_BENCH" in os.environ:
        inside(os.environ["FASTSEQ_BENCH"])
    else:
        main()
