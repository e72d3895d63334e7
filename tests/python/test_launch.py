"""fs.launch: ranks from a script or a notebook."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from waiting import until

import fastseq as fs


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


class Here:
    """Of this module, which ranks cannot import: it is sent along."""

    def __init__(self, value):
        self.value = value


def test_results_come_by_rank_and_prints_appear_here(capsys):
    def work(values, *, factor):
        comm = fs.distributed.world()
        print("rank", comm.rank, "says hello", sys.stdin.read())
        print("and warns", file=sys.stderr)
        total = comm.allreduce_(torch.tensor(values) * (comm.rank + 1), "sum")
        return Here((comm.rank, comm.size, comm.transport, factor * total))

    found = fs.launch(work, [1.0, 2.0], ranks=3, factor=10)
    assert [type(each) for each in found] == [Here] * 3
    assert [each.value[:3] for each in found] == [(r, 3, "shm") for r in range(3)]
    assert all(each.value[3].tolist() == [60.0, 120.0] for each in found)
    out, messages = capsys.readouterr()
    assert sorted(out.splitlines()) == [f"rank {r} says hello " for r in range(3)]
    assert messages.splitlines().count("and warns") == 3
    assert not any(name in os.environ for name in ("RANK", "FASTSEQ_RANK_PROCESS"))


def test_training_on_ranks_is_training_with_larger_batches():
    def train(x, y, batchsize):
        torch.manual_seed(0)
        est = fs.Estimator(
            fs.nn.Chain(fs.nn.LSTM(2, 4), torch.nn.Linear(4, 1)),
            fs.seqloss(torch.nn.MSELoss()),
            lambda p: torch.optim.AdamW(p, lr=0.01),
            fs.Spec(epochs=2, batchsize=batchsize, seqsize=5),
            progress=False,
        )
        return est.fit(x, y)

    torch.manual_seed(1)
    x = torch.randn(20, 8, 2)
    y = x.cumsum(0)[..., :1]
    first, second = fs.launch(train, x, y, 2, ranks=2)
    assert np.array_equal(first.predict(x), second.predict(x))
    alone = train(x, y, 4)
    np.testing.assert_allclose(first.predict(x), alone.predict(x), rtol=1e-4, atol=1e-5)


def children():
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found.append(f"RUN_ID=launch-{os.getpid()}-" in path.read_text(errors="replace"))
    return sum(found)


def test_an_error_on_a_rank_is_raised_here_and_ends_all(capsys):
    def work():
        comm = fs.distributed.world()
        if comm.rank == 1:
            raise KeyError("only here")
        comm.barrier()

    with pytest.raises(fs.RemoteError, match="rank 1 failed: KeyError: 'only here'") as caught:
        fs.launch(work, ranks=3)
    assert caught.value.rank == 1
    assert "in work" in capsys.readouterr().err  # its traceback
    assert not children()


def test_other_ways_to_end_are_errors():
    def work(how):
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exits":
            sys.exit(3)
        if how == "ends":
            sys.exit()
        if how == "no way":
            return threading.Lock()
        return None

    for how, message in (
        ("killed", "rank 0 failed: it was ended by SIGKILL"),
        ("exits", "rank 0 failed: SystemExit: 3"),
        ("no way", "rank 0 failed: TypeError: the result of the function cannot be sent"),
    ):
        with pytest.raises(fs.RemoteError, match=message):
            fs.launch(work, how, ranks=1)
    assert fs.launch(work, "ends", ranks=1) == [None]
    with pytest.raises(TypeError, match="fn and its arguments cannot be sent to the ranks"):
        fs.launch(work, threading.Lock(), ranks=1)
    for ranks in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="ranks must be a positive number, got"):
            fs.launch(work, ranks=ranks)


def test_ranks_do_not_launch_ranks(monkeypatch):
    monkeypatch.setenv("PMIX_RANK", "0")
    with pytest.raises(fs.CommunicationError, match="a launcher has started this process as one"):
        fs.launch(print, ranks=2)


SCRIPT = """
import os, time
import fastseq as fs
def work():
    open(f"pid{os.environ['RANK']}", "w").write(str(os.getpid()))
    time.sleep(300)
fs.launch(work, ranks=2)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_ranks_end_with_their_parent(tmp_path, number):
    (tmp_path / "job.py").write_text(textwrap.dedent(SCRIPT))
    parent = subprocess.Popen([sys.executable, "job.py"], cwd=tmp_path, stderr=subprocess.PIPE)
    files = [tmp_path / f"pid{rank}" for rank in range(2)]
    until(lambda: all(file.exists() and file.read_text() for file in files))
    pids = [int(file.read_text()) for file in files]
    time.sleep(0.2)
    parent.send_signal(number)
    _, messages = parent.communicate(timeout=60)
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    if number == signal.SIGINT:
        assert b"KeyboardInterrupt" in messages
