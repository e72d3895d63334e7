"""Which launcher started a process, by its variables; and ranks that find each other without MPI."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore

import fastseq as fs
from fastseq.distributed import communicators, gloo, launchers, rendezvous, stores
from fastseq.distributed.launchers import found_launch, is_rank, note_rank

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
ELASTIC = {
    **TORCHRUN, "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "0", "GROUP_WORLD_SIZE": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[003-007,9],b", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "1",
}  # fmt: skip
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"}


def without_launcher(name):
    return not re.match(r"OMPI_|PMI|MV2_|SLURM_|RANK$|WORLD_SIZE$|MASTER_|TORCHELASTIC_|GROUP_|FASTSEQ_RANK", name)  # fmt: skip


@pytest.fixture
def env(monkeypatch):
    """Set variables of a launcher, in place of all others."""

    def env(variables):
        for name in list(os.environ):
            if not without_launcher(name):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    env({})
    monkeypatch.setattr(communicators, "_world", None)
    return env


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (TORCHRUN, ("torchrun", False, 1, 3, "node7", 29500, False)),
        (ELASTIC, ("torchrun", False, 1, 3, "node7", 29500, True)),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "0"}, None),  # of something else
        (SRUN, ("srun", False, 2, 4, "node003", 22388, False)),
        ({**SRUN, "SLURM_STEP_NUM_NODES": "1"}, ("srun", False, 2, 4, "127.0.0.1", 22388, False)),
        ({**SRUN, "MASTER_ADDR": "a", "MASTER_PORT": "9"}, ("srun", False, 2, 4, "a", 9, False)),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_PROCID": "0"}, None),
        (MPIRUN, ("the launcher", True, 0, 2, "", 0, False)),
        ({**MPIRUN, **SRUN}, ("the launcher", True, 0, 2, "", 0, False)),
        ({**SRUN, "PMIX_RANK": "2"}, ("the launcher", True, 0, 4, "", 0, False)),
        ({**MPIRUN, "RANK": "1", "WORLD_SIZE": "2"}, ("the launcher", True, 0, 2, "", 0, False)),
        # an agent of torchrun on each of two machines
        ({**SRUN, **ELASTIC, "SLURM_STEP_NUM_TASKS": "2", "GROUP_WORLD_SIZE": "2"}, ("torchrun", False, 1, 3, "node7", 29500, True)),
    ],
)  # fmt: skip
def test_a_launch_is_found(env, variables, expected):
    env(variables)
    launch = found_launch()
    if expected is None:
        assert launch is None
        assert not is_rank()
        assert fs.distributed.communicator("auto").size == 1
        return
    names = ("launcher", "mpi", "rank", "size", "address", "port", "hosted")
    assert tuple(getattr(launch, name) for name in names) == expected
    assert is_rank()
    assert fs.distributed.communicator(None).size == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({**TORCHRUN, "RANK": "3"}, "do not hold a rank and a number of ranks: RANK='3', WORLD_SIZE='3'"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE='many'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR='' and MASTER_PORT='' do not say where they meet"),
        ({**TORCHRUN, "MASTER_PORT": "x"}, "MASTER_PORT='x'"),
        ({**TORCHRUN, "MASTER_PORT": "99999"}, "MASTER_PORT='99999'"),
        ({**SRUN, "MASTER_PORT": "x"}, "MASTER_PORT='x' is not a port: unset it"),
        ({**SRUN, "SLURM_PROCID": "9"}, "the variables of srun do not hold a rank"),
        ({**SRUN, "SLURM_STEP_NODELIST": ""}, "names no host: set MASTER_ADDR"),
        ({**MPIRUN, "RANK": "0", "WORLD_SIZE": "2"}, "two launchers started this process: .* RANK=0; use one"),
        ({**MPIRUN, "RANK": "1", "WORLD_SIZE": "4"}, "WORLD_SIZE=4"),
        ({**MPIRUN, **ELASTIC}, "one started torchrun 2 times, but torchrun expects 1; use one launcher"),
        ({**SRUN, **ELASTIC}, "--nnodes 4"),
    ],
)  # fmt: skip
def test_wrong_variables_and_two_launchers_are_refused(env, variables, message):
    env(variables)
    with pytest.raises(fs.CommunicationError, match=message):
        fs.distributed.world()
    assert fs.distributed.communicator(None).size == 1


def test_children_of_ranks_are_none(env, monkeypatch):
    env(ELASTIC)
    monkeypatch.setenv("FASTSEQ_RANK_PROCESS", "")  # restored afterwards
    note_rank()
    assert is_rank()
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in a child
    assert not is_rank()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # a launch of its own
    assert is_rank()


def test_an_mpi_library_that_is_not_the_launcher_s_is_found(env, monkeypatch):
    alone = SimpleNamespace(Get_size=lambda: 1)
    library = SimpleNamespace(COMM_WORLD=alone, Get_library_version=lambda: "MPICH 4.3\nmore")
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=library))
    env({"OMPI_COMM_WORLD_SIZE": "2"})
    said = r"started 2 processes, but the MPI library of mpi4py \(MPICH 4.3\) finds only one: use"
    with pytest.raises(fs.CommunicationError, match=said):
        communicators._of_launch(found_launch())
    # srun's own numbers count where its PMI is another library's.
    env({**SRUN, "PMI_RANK": "2", "PMI_SIZE": "4"})
    met = []
    monkeypatch.setattr(communicators, "Rendezvous", met.append)
    monkeypatch.setattr(communicators, "Communicator", lambda made_of: made_of)
    communicators._of_launch(found_launch())
    assert [(launch.launcher, launch.rank, launch.size) for launch in met] == [("srun", 2, 4)]


JOB = """
import sys, torch, fastseq as fs
comm = fs.distributed.world()
def say(*what):
    sys.stdout.write(" ".join(map(str, what)) + "\\n")
    sys.stdout.flush()
"""


def script(folder, body):
    path = folder / "job.py"
    path.write_text(textwrap.dedent(JOB) + textwrap.dedent(body.replace("        |", "")))
    return path


def clean(**more):
    return {**{n: v for n, v in os.environ.items() if without_launcher(n)}, "OMP_NUM_THREADS": "1", **more}  # fmt: skip


def torchrun(folder, ranks, body, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *options]  # fmt: skip
    return subprocess.run(
        [*command, script(folder, body)], env=clean(), cwd=folder, capture_output=True, text=True, timeout=250, check=False
    )  # fmt: skip


def test_ranks_of_torchrun(tmp_path):
    done = torchrun(
        tmp_path,
        2,
        """
        |total = comm.allreduce_(torch.tensor([1.0 + comm.rank]), "sum").item()
        |say(comm.transport, comm.size, comm.local_rank == comm.rank, total)
        |sub = comm.duplicate(transport="gloo")
        |sub.barrier()
        |torch.distributed.init_process_group("gloo")  # the script's own
        |torch.distributed.barrier()
        |say(sub.transport, fs.info()["ranks"]["transport"])
        |torch.distributed.destroy_process_group()
        """,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("shm 2 True 3.0") == 2
    assert lines.count("gloo shm") == 2


def test_a_restart_of_torchrun_resumes_from_the_checkpoint(tmp_path):
    """The first attempt ends in its third epoch: rank 1 is gone."""
    done = torchrun(
        tmp_path,
        2,
        """
        |import os
        |from torch.nn.functional import mse_loss
        |attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        |x = torch.randn(12, 8, 2, generator=torch.Generator().manual_seed(0))
        |y = x.mean(2, keepdim=True).cumsum(0)
        |class Ends(fs.callbacks.Callback):
        |    def on_epoch_begin(self, run):
        |        if attempt == "0" and run.epoch == 2 and comm.rank == 1:
        |            os._exit(7)
        |def fitted(**more):
        |    torch.manual_seed(0)
        |    est = fs.Estimator(torch.nn.GRU(2, 1), fs.seqloss(mse_loss),
        |                       lambda p: torch.optim.AdamW(p, lr=0.01),
        |                       dict(epochs=4, batchsize=2, seqsize=4), callbacks=[Ends()])
        |    return est.fit(x, y, **more)
        |resumed = fitted(checkpoint="run", resume="auto")
        |whole = fitted()
        |same = all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters()))
        |say("attempt", attempt, len(resumed.history_), same)
        """,
        "--max-restarts",
        "1",
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"exitcode *: 7", done.stderr)
    assert [line for line in done.stdout.splitlines() if "attempt" in line] == [
        "attempt 1 4 True"
    ] * 2


@pytest.mark.slow
def test_a_rank_that_has_ended_is_missed_by_every_communicator(tmp_path):
    done = torchrun(
        tmp_path,
        2,
        """
        |import time
        |other = comm.duplicate()  # its time-out is ten minutes
        |if comm.rank == 1:
        |    sys.exit(0)
        |begin = time.monotonic()
        |try:
        |    other.barrier()
        |except fs.CommunicationError as error:
        |    say(error, time.monotonic() - begin < 60)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "rank 1 has exited True" in done.stdout


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_tasks_of_srun_without_mpi(tmp_path):
    path = script(
        tmp_path,
        """
        |say(comm.size, comm.transport, comm.allreduce_(torch.ones(2), "sum").tolist())
        |if comm.rank == 1:
        |    import time
        |    time.sleep(1)  # the other one may still be in the exchange
        |    raise ValueError("only here")
        |comm.barrier()
        """,
    )
    variables = {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "5", "MASTER_PORT": str(free_port()),
        "SLURM_STEP_NODELIST": "here",
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            [sys.executable, path], env=clean(**variables, SLURM_PROCID=str(rank)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    texts = [task.communicate(timeout=120) for task in tasks]
    assert [task.returncode for task in tasks] == [1, 1]
    assert [out.strip() for out, _ in texts] == ["2 shm [2.0, 2.0]"] * 2
    assert "ValueError: only here" in texts[1][1]
    assert "rank 0 cannot continue: rank 1 has exited" in texts[0][1]


@pytest.mark.slow
def test_ranks_of_two_agents_of_torchrun(tmp_path):
    path = script(
        tmp_path,
        """
        |say(comm.size, comm.rank, comm.transport, comm.allreduce_(torch.ones(2), "sum").tolist())
        """,
    )
    where = f"127.0.0.1:{free_port()}"
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--nnodes", "2",
             "--rdzv-backend", "c10d", "--rdzv-endpoint", where, "--rdzv-id", "two", path],
            env=clean(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    texts = [agent.communicate(timeout=200) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], texts
    assert {out.strip() for out, _ in texts} == {f"2 {rank} shm [2.0, 2.0]" for rank in range(2)}


def test_ranks_that_do_not_come_are_named(tmp_path):
    launch = launchers.Launch("torchrun", False, 0, 2, "127.0.0.1", free_port())
    meeting = communicators.Rendezvous(launch)
    with pytest.raises(fs.CommunicationError, match=r"rank 0 waited 0\.5 s for rank 1 to make a"):
        meeting.connect("auto", 0.5, 0, False)
    lost = launchers.Launch("torchrun", False, 1, 2, "127.0.0.1", free_port())
    with pytest.raises(fs.CommunicationError, match=r"rank 1 of 2 cannot meet the others at 127"):
        communicators.Rendezvous(lost, timeout=0.5)


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch):
    """The system takes connections for a process that is stopped."""
    monkeypatch.setattr(stores, "GRACE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        launch = launchers.Launch("torchrun", False, 1, 2, "127.0.0.1", stopped.getsockname()[1])
        with pytest.raises(fs.CommunicationError, match=r"rank 1 of 2 .*: no answer in 0\.5 s"):
            communicators.Rendezvous(launch, timeout=0.4)


def test_a_store_that_is_stopped_later_is_not_waited_for_either(monkeypatch):
    monkeypatch.setattr(rendezvous, "GRACE", 0.1)
    stuck = SimpleNamespace(
        set_timeout=lambda _: None, set=lambda *_: threading.Event().wait(), check=lambda _: True
    )
    launch = launchers.Launch("torchrun", False, 1, 2, "a", 1)
    with pytest.raises(
        fs.CommunicationError, match=r"store of rank 0, where .* no answer in 0\.2 s"
    ):
        rendezvous._Meeting(stuck, launch, 0.1).gather("facts", 1)


def test_a_store_that_is_lost_is_named():
    port = free_port()
    server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    launch = launchers.Launch("torchrun", False, 1, 2, "127.0.0.1", port, hosted=True)
    meeting = communicators.Rendezvous(launch)
    del server
    said = (
        "rank 1 cannot make a communicator: the connection to the store of the launcher.* is lost"
    )
    with pytest.raises(fs.CommunicationError, match=said):
        meeting.connect("auto", 5, 0, False)


def test_errors_of_gloo_are_shown(monkeypatch):
    monkeypatch.setattr(gloo, "GRACE", 0.1)
    stuck = SimpleNamespace(check=lambda _: threading.Event().wait(), set=lambda *_: None)
    monkeypatch.setattr(gloo, "PrefixStore", lambda name, store: store)

    def fails(*_):
        raise RuntimeError("[/source/pair.cc:5] Resource temporarily unavailable. Advice.")

    monkeypatch.setattr(gloo.torch_internals, "gloo_group", fails)
    said = r"rank 0 .*: it cannot connect to the others \(Resource temporarily unavailable\)$"
    with pytest.raises(fs.CommunicationError, match=said):
        gloo.Gloo(stuck, 0, 2, None, 5)


def test_gloo_names_ranks_that_do_not_come():
    store = TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    store.set("all/2 comes", "")
    said = r"^rank 0 cannot continue: it waited 0\.3 s for rank 1, rank 3$"
    with pytest.raises(fs.CommunicationError, match=said):
        gloo.Gloo(store, 0, 4, None, 0.3)


def test_what_ranks_tell_each_other_is_forgotten():
    launch = launchers.Launch("torchrun", False, 0, 1, "127.0.0.1", free_port())
    meeting = communicators.Rendezvous(launch)
    fs.distributed.Communicator(meeting)
    before = meeting._store.num_keys()
    for _ in range(3):
        fs.distributed.Communicator(meeting)
    assert meeting._store.num_keys() == before
