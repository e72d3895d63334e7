from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace

import pytest
import torch

import fastseq as fs

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def test_ranks_are_those_of_mpi(comm):
    from mpi4py import MPI

    assert (comm.rank, comm.size) == (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
    assert (comm.local_rank, comm.local_size) == (comm.rank, comm.size)  # one machine
    assert comm.transport == "mpi"
    assert fs.distributed.world() is comm
    share = max((os.cpu_count() or 1) // comm.size, 1)
    assert torch.get_num_threads() == min(len(os.sched_getaffinity(0)), share)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", [0, 1, 3, 1000, (1 << 20) + 7])
def test_allreduce(comm, dtype, numel):
    def values(rank):
        return (torch.arange(numel) % 13 - 6 + rank).to(dtype)

    total = torch.stack([values(r).double() for r in range(comm.size)]).sum(0)
    mine = values(comm.rank)
    assert comm.allreduce_(mine, "sum") is mine
    assert torch.equal(mine, total.to(dtype))
    mean = comm.allreduce_(values(comm.rank))
    torch.testing.assert_close(mean, (total / comm.size).to(dtype))


def test_allreduce_of_strided_tensors_and_parameters(comm):
    matrix = torch.full((4, 6), float(comm.rank + 1))
    comm.allreduce_(matrix[:, ::2], "sum")
    total = comm.size * (comm.size + 1) / 2
    assert (matrix[:, ::2] == total).all()
    assert (matrix[:, 1::2] == comm.rank + 1).all()
    parameter = torch.nn.Parameter(torch.ones(3))
    square = (parameter**2).sum()
    comm.allreduce_(parameter, "sum")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool], ids=str)
def test_broadcast(comm, dtype):
    root = comm.size - 1
    tensor = (torch.arange(5) * (comm.rank + 1) % 2).to(dtype)
    comm.broadcast_(tensor, root)
    assert torch.equal(tensor, (torch.arange(5) * comm.size % 2).to(dtype))


def test_allocate(comm):
    buffer = comm.allocate(1001, torch.float32)
    assert buffer.shape == (1001,)
    assert not buffer.any()
    assert buffer.data_ptr() % 64 == 0
    comm.allreduce_(buffer.add_(1), "sum")
    assert (buffer == comm.size).all()
    view = buffer[5:]
    del buffer
    assert (view == comm.size).all()
    assert comm.allocate(0).numel() == 0


def test_sub_communicators_of_mpi4py(comm):
    from mpi4py import MPI

    half = MPI.COMM_WORLD.Split(comm.rank % 2, comm.rank)
    sub = fs.distributed.communicator(half)
    assert (sub.rank, sub.size) == (half.rank, half.size)
    total = sub.allreduce_(torch.tensor([float(comm.rank)], dtype=torch.float64), "sum")
    assert total.item() == sum(r for r in range(comm.size) if r % 2 == comm.rank % 2)
    half.Free()  # fastseq works on a duplicate of its own
    sub.barrier()


def test_the_user_s_own_traffic_does_not_meet_ours(comm):
    from mpi4py import MPI

    request = MPI.COMM_WORLD.isend(comm.rank, (comm.rank + 1) % comm.size, tag=0)
    comm.allreduce_(torch.ones(10))
    assert (
        MPI.COMM_WORLD.recv(source=(comm.rank - 1) % comm.size, tag=0)
        == (comm.rank - 1) % comm.size
    )
    request.wait()


def test_failure_of_one_rank_is_raised_on_all(comm):
    if comm.size == 1:
        comm.fail("nobody hears")
        return
    failing = comm.size - 1
    if comm.rank == failing:
        comm.fail("the disk is full")
    else:
        with pytest.raises(fs.RemoteError, match="the disk is full") as caught:
            comm.allreduce_(torch.ones(3))
        assert caught.value.rank == failing
    comm.barrier()  # and the ranks can go on


def test_several_failures_name_the_lowest_rank(comm):
    if comm.size < 3:
        return
    if comm.rank in (1, 2):
        comm.fail(f"message of {comm.rank}")
    else:
        with pytest.raises(fs.RemoteError, match="rank 1 failed: message of 1"):
            comm.barrier()


def test_waiting_lets_other_python_threads_run(comm):
    counted = []
    done = threading.Event()

    def count():
        while not done.wait(0.01):
            counted.append(1)

    thread = threading.Thread(target=count)
    thread.start()
    if comm.rank == comm.size - 1:
        time.sleep(1)
    comm.barrier()
    done.set()
    thread.join()
    assert len(counted) > 10


def test_an_mpi4py_of_another_mpi_is_refused(comm):
    other = SimpleNamespace(library_version=lambda: "MPICH Version: 4.3")
    with pytest.raises(fs.CommunicationError, match=r"fastseq was built with MPICH .*libmpi\.so"):
        fs.distributed._check_same_library(other)


@pytest.mark.parametrize("what", ["length", "dtype", "operation", "root"])
def test_ranks_out_of_step_are_told(comm, what):
    if comm.size == 1:
        return
    from mpi4py import MPI

    sub = fs.distributed.Communicator(MPI.COMM_WORLD)  # it is of no use afterwards
    odd = comm.rank == 1
    tensor = torch.ones(5 if what == "length" and odd else 4)
    if what == "dtype" and odd:
        tensor = torch.ones(2, dtype=torch.float64)
    with pytest.raises(fs.CommunicationError, match="out of step: rank 0 calls"):
        if what == "root":
            sub.broadcast_(tensor, int(odd))
        elif what == "operation" and odd:
            sub.barrier()
        else:
            sub.allreduce_(tensor)
    with pytest.raises(fs.CommunicationError, match="restart the job"):
        sub.barrier()
