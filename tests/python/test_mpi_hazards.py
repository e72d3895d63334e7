"""What goes wrong in jobs of several ranks: each time the job ends, or goes on, and says why."""

from __future__ import annotations

import os
import re
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

OTHER_WAYS = [pytest.param(way, marks=pytest.mark.slow) for way in ("mpi", "hierarchy")]


def processes_of(folder: Path) -> list[int]:
    """Return the processes whose command line names `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("transport", ["shm", *OTHER_WAYS])
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


@pytest.mark.parametrize("transport", ["shm", OTHER_WAYS[0]])
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
        # by its own clock, or by that of the other, which was first to give up
        said = rf"^rank {rank}: (rank {rank} cannot continue: )?rank [02] waited 5 s for rank 1: "
        assert re.search(said, done.stdout, re.MULTILINE), done.stdout + done.stderr
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
        |print("said", sum("could not get 4004032 bytes of shared memory" in str(w.message) for w in caught))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("said 1") == 2


@pytest.mark.slow
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


@pytest.mark.slow
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
        |    assert step(buckets).weight == 2
        |    buckets.close()
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("threaded True False") == 2


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_rank_that_makes_no_communicator_is_waited_for_no_longer_than_said(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        START
        + """
        |import os, time
        |from mpi4py import MPI
        |if comm.rank == 0:
        |    try:
        |        fs.distributed.Communicator(MPI.COMM_WORLD, timeout=1)
        |    except fs.CommunicationError as error:
        |        print("gave up:", error, flush=True)
        |else:
        |    time.sleep(4)
        |os._exit(0)
        """,
    )
    assert "gave up: rank 0 waited 1 s for all ranks to make a communicator: " in done.stdout


@pytest.mark.slow
def test_the_missing_rank_is_named_where_ranks_wait_for_others_than_it(tmp_path):
    done = mpirun(
        tmp_path,
        4,
        START
        + """
        |import os, signal, subprocess, threading, time
        |from mpi4py import MPI
        |ranks = fs.distributed.Communicator(MPI.COMM_WORLD, timeout=4, ranks_per_node=2)
        |def stop():  # as a machine does that hangs; it's killed later
        |    subprocess.Popen(["sh", "-c", f"sleep 20; kill -KILL {os.getpid()}"])
        |    os.kill(os.getpid(), signal.SIGSTOP)
        |if ranks.rank == 2:
        |    threading.Timer(1.0, stop).start()
        |x = torch.ones(1_000_000)
        |try:
        |    while True:
        |        ranks.allreduce_(x)
        |except fs.CommunicationError as error:
        |    print(f"rank {ranks.rank} heard: {error}", flush=True)
        |time.sleep(20)
        |os._exit(0)
        """,
    )
    heard = re.findall(r"^rank (\d) heard: (.*)$", done.stdout, re.MULTILINE)
    assert sorted(rank for rank, _ in heard) == ["0", "1", "3"], done.stdout + done.stderr
    for _, error in heard:
        assert re.search(r"rank [013] waited \d s for rank 2: ", error), error


@pytest.mark.parametrize("ranks_per_node", [pytest.param(1, marks=pytest.mark.slow), None])
def test_a_failure_while_data_move_is_told_to_all(tmp_path, ranks_per_node):
    done = mpirun(
        tmp_path,
        2,
        START
        + f"""
        |import os, resource
        |from mpi4py import MPI
        |transport = "mpi" if {ranks_per_node} is None else "hierarchy"
        |ranks = fs.distributed.Communicator(
        |    MPI.COMM_WORLD, transport=transport, ranks_per_node={ranks_per_node}, timeout=60)
        |x = ranks.allocate(50_000_000, torch.float16)  # goes from where it lies
        |ranks.allreduce_(x[:1000])
        |if ranks.rank == 1:  # no memory for what the others send
        |    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        |    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
        |try:
        |    ranks.allreduce_(x)
        |    print("wrong")
        |except (fs.CommunicationError, MemoryError) as error:
        |    print(f"rank {{ranks.rank}}: {{type(error).__name__}}: {{error}}", flush=True)
        |resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        |comm.barrier()
        |os._exit(0)
        """,
    )
    assert "rank 1: MemoryError" in done.stdout, done.stdout + done.stderr
    assert (
        "rank 0: CommunicationError: rank 0 cannot continue: rank 1 failed in the middle of allreduce: "
        "std::bad_alloc" in done.stdout
    )


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["shm", OTHER_WAYS[0]])
def test_a_rank_that_leaves_while_another_fails(tmp_path, transport):
    done = mpirun(
        tmp_path,
        2,
        START
        + f"""
        |import time
        |from mpi4py import MPI
        |ranks = fs.distributed.Communicator(MPI.COMM_WORLD, transport="{transport}")
        |if ranks.rank == 1:
        |    time.sleep(0.5)
        |    ranks.fail("not well")
        |ranks.leave()
        |print("left", flush=True)
        |if ranks.rank == 0:
        |    sys.exit(0)
        |comm.fail("not well either")  # meets the other rank's exit
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("left") == 2
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("transport", ["shm", OTHER_WAYS[0]])
def test_a_script_that_ends_in_mid_step_ends(tmp_path, transport):
    done = mpirun(
        tmp_path,
        2,
        START
        + STEPS
        + f"""
        |from mpi4py import MPI
        |torch.set_num_threads(2)  # a thread for the exchange
        |ranks = fs.distributed.Communicator(MPI.COMM_WORLD, transport="{transport}")
        |buckets = fs.distributed.Bucketizer(model, ranks, bucket_bytes=1000)
        |step(buckets)
        |if ranks.rank == 0:
        |    model(torch.ones(2, 500)).sum().backward()  # the other rank does not come
        |print("ends", flush=True)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ends") == 2


@pytest.mark.slow
def test_a_failure_in_a_nested_call_is_told_once(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        START
        + """
        |from torch.nn.functional import mse_loss
        |x = torch.arange(240.0).sin().reshape(20, 4, 3)
        |class Look(fs.callbacks.Callback):
        |    armed = True
        |    def on_epoch_end(self, run):
        |        if self.armed:
        |            est.predict(x if comm.rank else "no data")
        |est = fs.Estimator(torch.nn.GRU(3, 1), fs.seqloss(mse_loss), torch.optim.SGD,
        |                   dict(epochs=1, batchsize=2, seqsize=5), callbacks=[look := Look()])
        |try:
        |    est.fit(x, x[..., :1])
        |except Exception as error:
        |    print(f"rank {comm.rank}: {type(error).__name__}", flush=True)
        |look.armed = False
        |est.fit(x, x[..., :1])
        |print("fine", flush=True)
        |look.armed = True
        |est.fit(x, x[..., :1])
        """,
    )
    assert "rank 0: TypeError" in done.stdout, done.stdout + done.stderr
    assert "rank 1: RemoteError" in done.stdout
    assert done.stdout.count("fine") == 2, done.stderr
    assert "fastseq: rank 0 failed:\nTraceback" in done.stderr  # it's that one's that is shown


@pytest.mark.slow
def test_ranks_that_call_different_things_are_told_which(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        START
        + """
        |from torch.nn.functional import mse_loss
        |x = torch.arange(240.0).sin().reshape(20, 4, 3)
        |est = fs.Estimator(torch.nn.GRU(3, 1), fs.seqloss(mse_loss), torch.optim.SGD,
        |                   dict(epochs=1, batchsize=2, seqsize=5))
        |try:
        |    est.fit(x, x[..., :1]) if comm.rank == 0 else est.predict(x)
        |except fs.CommunicationError as error:
        |    print(error, flush=True)
        """,
    )
    assert re.search(
        r"rank 0 calls [^,]* in (agree in )?fit, rank 1 calls [^;]* in predict;", done.stdout
    ), done.stdout + done.stderr
