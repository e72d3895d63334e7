from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import pytest
import torch
from started import MESSAGES, UNDER_MPI
from waiting import until

import fastseq as fs

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


TRANSPORTS = ["shm", MESSAGES, "hierarchy of 1", "hierarchy of 2"]
made: dict[str, fs.distributed.Communicator] = {}


@pytest.fixture(params=TRANSPORTS)
def comm(request, world):
    """All ranks, by each of the transports; nodes of 1 or 2 ranks are pretended."""
    if request.param not in made:
        transport, _, ranks_per_node = request.param.partition(" of ")
        made[request.param] = world.duplicate(
            transport=transport, ranks_per_node=int(ranks_per_node or 0)
        )
    return made[request.param]


def test_ranks_are_those_of_the_launcher(comm):
    if UNDER_MPI:
        from mpi4py import MPI

        numbers = [MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size]
    else:
        numbers = [int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")]
    assert [comm.rank, comm.size] == numbers


def test_machines_and_their_cores(comm, world):
    assert world.transport == "shm"
    assert fs.distributed.world() is world
    nodes = comm._options["ranks_per_node"] or comm.size
    assert comm.local_rank == comm.rank % nodes
    assert comm.local_size == min(nodes, comm.size - comm.rank // nodes * nodes)
    if not UNDER_MPI:
        return  # torchrun says how many threads
    share = max((os.cpu_count() or 1) // comm.size, 1)
    assert torch.get_num_threads() == min(len(os.sched_getaffinity(0)), share)


@pytest.mark.parametrize(
    ("option", "ours", "theirs"),
    [
        ("wire_dtype", torch.bfloat16, None),
        ("transport", "shm", MESSAGES),
        ("timeout", 20, 21),
        ("ranks_per_node", 1, 2),
    ],
)
def test_options_that_differ_are_an_error_on_all_ranks(world, option, ours, theirs):
    if world.size == 1:
        return  # differs from nobody
    options = {"timeout": 20, option: ours if world.rank == 0 else theirs}
    said = rf"the ranks want different communicators: rank 0 has {option}=.*, rank 1 {option}="
    with pytest.raises(ValueError, match=said):
        world.duplicate(**options)


def test_results_have_the_same_bits_on_all_ranks(comm, world):
    torch.manual_seed(comm.rank)
    for numel in (5, 3000, 300_001):
        ours = comm.allreduce_(torch.randn(numel))
        assert torch.equal(world.broadcast_(ours.clone()), ours)


def test_shared_memory_sums_in_the_order_of_the_ranks(world):
    if world.size == 3:
        return  # a third is not exact
    torch.manual_seed(world.rank)
    for numel in (5, 3000, 300_001):
        mine = torch.randn(numel)
        parts = [world.broadcast_(mine.clone(), root) for root in range(world.size)]
        total = parts[0] / world.size
        for part in parts[1:]:
            total += part / world.size
        shared = world.allocate(numel)
        shared.copy_(mine)
        assert torch.equal(world.allreduce_(shared), total)
        assert torch.equal(world.allreduce_(mine), total)


def test_half_of_the_bytes_between_nodes(mpi, world):
    comm = fs.distributed.Communicator(
        mpi.COMM_WORLD, transport="hierarchy", ranks_per_node=2, wire_dtype=torch.bfloat16
    )
    torch.manual_seed(comm.rank)
    mine = torch.randn(5000)
    exact, full = world.allreduce_(mine.double()), world.allreduce_(mine.clone())
    ours = comm.allreduce_(mine)
    assert torch.equal(world.broadcast_(ours.clone()), ours)
    torch.testing.assert_close(ours.double(), exact, rtol=2**-7, atol=2**-7)
    assert comm.size <= 2 or not torch.equal(ours, full)  # it was in fewer bits


@pytest.mark.parametrize(
    "options",
    [
        {"transport": "smoke"},
        {"wire_dtype": torch.float16},
        {"timeout": float("nan")},
        {"ranks_per_node": -1},
    ],
)
def test_unknown_options_are_refused(world, options):
    with pytest.raises(ValueError, match="must be"):
        fs.distributed.Communicator(None, **options)


def test_duplicates_are_independent(comm):
    other = comm.duplicate()
    assert (other.rank, other.size, other.transport) == (comm.rank, comm.size, comm.transport)
    first, second = torch.ones(2000), torch.full((2000,), 2.0)
    thread = threading.Thread(target=lambda: other.allreduce_(second, "sum"))
    if comm.rank % 2 == 0:
        thread.start()
        comm.allreduce_(first, "sum")
    else:
        comm.allreduce_(first, "sum")
        thread.start()
    thread.join()
    assert (first == comm.size).all()
    assert (second == 2 * comm.size).all()


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


@pytest.mark.parametrize("data", [b"why", b""])
def test_broadcast_of_bytes(comm, data):
    root = comm.size - 1
    assert comm.broadcast_bytes(data if comm.rank == root else b"others", root) == data


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


@pytest.mark.parametrize("numel", [1001, 200_000])
@pytest.mark.parametrize("elsewhere", [0, -1])
def test_one_rank_s_data_are_elsewhere(comm, numel, elsewhere):
    shared, own = comm.allocate(numel), torch.empty(numel)
    data = own if comm.rank == elsewhere % comm.size else shared
    data.copy_(torch.arange(numel) % 7 + comm.rank)
    comm.allreduce_(data, "sum")
    ranks = comm.size * (comm.size - 1) // 2
    torch.testing.assert_close(data, torch.arange(numel) % 7 * float(comm.size) + ranks)


def test_sub_communicators_of_mpi4py(mpi, comm):
    half = mpi.COMM_WORLD.Split(comm.rank % 2, comm.rank)
    sub = fs.distributed.communicator(half)
    assert (sub.rank, sub.size) == (half.rank, half.size)
    total = sub.allreduce_(torch.tensor([float(comm.rank)], dtype=torch.float64), "sum")
    assert total.item() == sum(r for r in range(comm.size) if r % 2 == comm.rank % 2)
    half.Free()  # fastseq works on a duplicate of its own
    sub.barrier()


def test_the_user_s_own_traffic_does_not_meet_ours(mpi, comm):
    request = mpi.COMM_WORLD.isend(comm.rank, (comm.rank + 1) % comm.size, tag=0)
    comm.allreduce_(torch.ones(10))
    assert (
        mpi.COMM_WORLD.recv(source=(comm.rank - 1) % comm.size, tag=0)
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


@pytest.mark.parametrize("call", ["barrier", "allocate"])
def test_waiting_lets_other_python_threads_run(comm, folder, call):
    """The last rank comes when all others' threads have run, while these wait for it."""
    waiting = [folder / f"{call} {rank}" for rank in range(comm.size - 1)]
    comm.barrier()
    if comm.rank < comm.size - 1:
        later = threading.Timer(0.3, waiting[comm.rank].touch)
        later.start()
    else:
        until(lambda: all(path.exists() for path in waiting))
    comm.barrier() if call == "barrier" else comm.allocate(1000)


def test_an_mpi4py_of_another_mpi_is_refused(mpi, comm):
    other = SimpleNamespace(library_version=lambda: "MPICH Version: 4.3")
    with pytest.raises(fs.CommunicationError, match=r"fastseq was built with MPICH .*libmpi\.so"):
        fs.distributed.communicators._check_same_library(other)


@pytest.mark.parametrize("what", ["length", "dtype", "operation", "root"])
def test_ranks_out_of_step_are_told(comm, what):
    if comm.size == 1:
        return
    sub = comm.duplicate()  # it is of no use afterwards
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
