"""What goes wrong in jobs of several ranks: each time the job ends, or goes on, and says why."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from jobs import START, mpirun, seconds_since_it_failed

STEPS = """
        |import os, signal, time, warnings
        |model = torch.nn.Sequential(torch.nn.Linear(500, 500), torch.nn.Linear(500, 500))
        |def step(buckets):
        |    model.zero_grad()
        |    model(torch.ones(2, 500)).sum().backward()
        |    return buckets.wait()
"""


def processes_of(folder: Path) -> list[int]:
    """Return the processes whose command line names `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("transport", ["shm", "mpi", "hierarchy"])
def test_a_rank_killed_in_the_middle_of_a_step_leaves_nothing(tmp_path, transport):
    nodes = 2 if transport == "hierarchy" else 0
    done = mpirun(
        tmp_path,
        3,
        START
        + STEPS
        + f"""
        |from mpi4py import MPI
        |comm = fs.distributed.Communicator(
        |    MPI.COMM_WORLD, transport="{transport}", ranks_per_node={nodes})
        |buckets = fs.distributed.Bucketizer(model, comm, bucket_bytes=1000)
        |for i in range(10**9):
        |    if i == 20 and comm.rank == 1:
        |        fails()
        |        model[0].weight.register_hook(lambda g: os.kill(os.getpid(), signal.SIGKILL))
        |    step(buckets)
        """,
    )
    assert done.returncode != 0
    assert seconds_since_it_failed(tmp_path) < 60
    assert processes_of(tmp_path) == []


def test_a_rank_that_raises_in_backward_ends_all(tmp_path):
    done = mpirun(
        tmp_path,
        3,
        START
        + STEPS
        + """
        |def fail(grad):
        |    raise KeyError("in the middle of backward")
        |buckets = fs.distributed.Bucketizer(model, comm, bucket_bytes=1000)
        |step(buckets)
        |if comm.rank == 2:
        |    model[0].weight.register_hook(fail)
        |for _ in range(10**9):
        |    step(buckets)
        """,
    )
    assert done.returncode != 0
    assert "KeyError: 'in the middle of backward'" in done.stderr


@pytest.mark.parametrize("transport", ["shm", "mpi"])
def test_a_rank_that_does_not_come_is_named_by_all_others(tmp_path, transport):
    done = mpirun(
        tmp_path,
        3,
        START
        + STEPS
        + f"""
        |from mpi4py import MPI
        |comm = fs.distributed.Communicator(MPI.COMM_WORLD, transport="{transport}", timeout=5)
        |buckets = fs.distributed.Bucketizer(model, comm)
        |step(buckets)
        |def until_ended(*ranks):
        |    while not all(os.path.exists(f"ended{{rank}}") for rank in ranks):
        |        time.sleep(0.01)
        |if comm.rank == 1:
        |    until_ended(0, 2)
        |try:
        |    step(buckets)
        |except fs.CommunicationError as error:
        |    print(f"rank {{comm.rank}}: {{error}}", flush=True)
        |open(f"ended{{comm.rank}}", "w").close()
        |until_ended(0, 1, 2)
        |os._exit(0)
        """,
    )
    for rank in (0, 2):
        assert f"rank {rank}: rank {rank} waited 5 s for rank 1: " in done.stdout, done.stderr
    assert "rank 1: " in done.stdout, done.stderr


def test_a_machine_without_room_for_shared_memory_goes_on(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        """
        |import resource, warnings
        |# all ranks' files, memory files too, stay below 3 MB
        |resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
        """
        + START
        + """
        |model = torch.nn.Linear(1000, 1000)
        |with warnings.catch_warnings(record=True) as caught:
        |    warnings.simplefilter("always")
        |    buckets = fs.distributed.Bucketizer(model, comm)
        |for _ in range(3):
        |    model.zero_grad()
        |    (model(torch.ones(1, 1000)) * (comm.rank + 1)).sum().backward()
        |    buckets.wait()
        |assert (model.bias.grad == 1.5).all()
        |print("said", sum("no shared memory of 4004032 bytes" in str(w.message) for w in caught))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("said 1") == 2


def test_a_machine_without_any_shared_memory_uses_messages(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        """
        |import resource
        |from mpi4py import MPI
        |if MPI.COMM_WORLD.rank == 1:
        |    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        """
        + START
        + """
        |x = comm.allreduce_(torch.ones(3), "sum")
        |print("transport", comm.transport, x.tolist())
        |try:
        |    fs.distributed.Communicator(MPI.COMM_WORLD, transport="shm")
        |except fs.CommunicationError as error:
        |    print("refused:", error)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("transport mpi [2.0, 2.0, 2.0]") == 2
    assert done.stdout.count('refused: transport "shm" needs memory that') == 2


def test_an_mpi_without_threads_exchanges_in_wait(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        """
        |import mpi4py
        |mpi4py.rc.thread_level = "serialized"
        """
        + START
        + STEPS
        + """
        |from mpi4py import MPI
        |slow = fs.distributed.Communicator(MPI.COMM_WORLD, transport="mpi")
        |print("threaded", comm.threaded, slow.threaded)
        |for ranks in (comm, slow):
        |    buckets = fs.distributed.Bucketizer(model, ranks, bucket_bytes=1000)
        |    assert step(buckets) == (2, 0, True, False)
        |    buckets.close()
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("threaded True False") == 2


def test_forks_are_warned_of(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        START
        + """
        |import os
        |pid = os.fork()
        |if pid == 0:
        |    os._exit(0)
        |os.waitpid(pid, 0)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning: forking a process that runs under MPI") == 2


def test_ranks_bound_to_one_core_are_warned_of(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        """
        |import os
        |os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        """
        + START,
        options=("--bind-to", "none"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--bind-to none") == (1 if (os.cpu_count() or 1) > 1 else 0)


def test_models_that_differ_end_the_job_with_a_word(tmp_path):
    done = mpirun(
        tmp_path,
        3,
        START
        + """
        |fs.distributed.Bucketizer(torch.nn.Linear(3, 4 if comm.rank == 2 else 5), comm)
        """,
    )
    assert done.returncode != 0
    assert "the model differs between ranks: rank 2 has weight (4, 3)" in done.stderr


def test_two_jobs_side_by_side_do_not_meet(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    script = START + "|print(float(comm.allreduce_(torch.ones(1) * {}, 'sum')))".replace("|", "")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(mpirun, folder, 2, script.replace("{}", str(i + 1)))
            for i, folder in enumerate(folders)
        ]
    assert [job.result().stdout.split() for job in jobs] == [["2.0"] * 2, ["4.0"] * 2]
