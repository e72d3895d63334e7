"""Two jobs with one folder of checkpoints: the second is refused, if the first one is alive."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaign import Campaign, main

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from interrupted import LOSS, assert_same, chain, data, files, result_and_numbers, seed_all
from killing import ended, in_process, launcher

import fastseq as fs
from fastseq.checkpoint import folder as checkpoint_folder

SPEC = {"epochs": 2, "batchsize": 3, "seqsize": 5, "shuffle": True}


class Told(fs.callbacks.Callback):
    """Does something after a drawn update."""

    def __init__(self, update: int, what: Callable[[], None]) -> None:
        self._update, self._what = update, what

    def on_batch_end(self, run: Any) -> None:
        if run.updates == self._update:
            self._what()


def fit(folder: Any, *callbacks: Any, comm: Any = None) -> fs.Estimator:
    seed_all()
    est = fs.Estimator(
        chain(), LOSS, lambda p: torch.optim.AdamW(p, lr=1e-2), SPEC, seed=1, comm=comm,
        callbacks=callbacks, progress=False,
    )  # fmt: skip
    settings = fs.callbacks.Checkpoint(folder, every_updates=3)
    return est.fit(*data(), checkpoint=settings, resume="auto")


class Jobs:
    """What the two do."""

    def __init__(self, draw: random.Random, folder: Path) -> None:
        self.draw, self.folder = draw, folder / "run"
        self.update = draw.randint(1, 39)
        self.ranks = 1
        self._whole = folder / "whole"
        first = in_process(lambda: self._note(folder))
        assert ended([first], 30) == [0]

    def _note(self, folder: Path) -> None:
        torch.save(result_and_numbers(fit(folder / "first")), self._whole)

    def compare(self, est: fs.Estimator) -> None:
        """Raise unless a run came to the bits of one alone."""
        if self.ranks == 1:
            assert_same(torch.load(self._whole, weights_only=False), result_and_numbers(est))

    def refused(self, comm: Any = None) -> None:
        """Start one that must be refused, on all ranks."""
        kind = fs.BusyError if comm is None or comm.rank == 0 else fs.RemoteError
        with pytest.raises(kind, match="another run writes to the folder") as told:
            fit(self.folder, comm=comm)
        assert f"process {self.first} on {socket.gethostname()}" in str(told.value)

    def held(self, *more: Any) -> int:
        """Start the first, which waits after a drawn update; return its process."""
        told, tell = os.pipe()
        self.go, goes = os.pipe()

        def wait() -> None:
            os.write(goes, b"1")
            os.read(told, 1)

        self.tell = tell
        self.first = in_process(
            lambda: self.compare(fit(self.folder, Told(self.update, wait), *more))
        )
        assert os.read(self.go, 1)
        return self.first

    def last(self) -> None:
        """Start one that must not be refused."""
        assert ended([in_process(lambda: self.compare(fit(self.folder)))], 30) == [0]

    def refuse(self) -> None:
        """The second is refused, on 1 to 3 ranks, some times; the first goes on unharmed."""
        first = self.held()
        ranks = self.draw.choice([1, 1, 2, 3])
        with launcher(ranks, hosted=True) as starts:
            for _ in range(self.draw.choice([1, 1, 2])):
                statuses = starts.start(self.refused)
                assert not any(statuses), statuses
        os.write(self.tell, b"1")
        assert ended([first], 30) == [0]

    def refuse_inside(self) -> None:
        """The second is in the process of the first: in a callback of it."""

        def job() -> None:
            self.first = os.getpid()
            self.compare(fit(self.folder, Told(self.update, self._refused_beside)))

        assert ended([in_process(job)], 30) == [0]

    def _refused_beside(self) -> None:
        # Its own random numbers, so that the first has its own.
        state = torch.get_rng_state()
        kept = random.getstate()
        numbers = np.random.get_state()  # noqa: NPY002
        self.refused()
        torch.set_rng_state(state)
        random.setstate(kept)
        np.random.set_state(numbers)  # noqa: NPY002

    def follow_killed(self) -> None:
        """The first is killed; a child of it may live on, which inherited its files."""
        child: list[Any] = []
        if orphan := self.draw.random() < 0.5:
            child = [Told(1, self._fork)]
        first = self.held(*child) if self.update > 1 else self.held()
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        self.last()
        if orphan:
            time.sleep(0.5)

    def _fork(self) -> None:
        if not os.fork():
            time.sleep(0.4)
            os._exit(0)

    def follow_failed(self) -> None:
        """The first fails, and the second comes in the same process."""

        def fail() -> None:
            raise KeyError

        def interrupt() -> None:
            os.kill(os.getpid(), signal.SIGINT)

        what, error = self.draw.choice([(fail, KeyError), (interrupt, KeyboardInterrupt)])

        def job() -> None:
            try:
                fit(self.folder, Told(self.update, what))
            except error:
                self.compare(fit(self.folder))
            else:
                raise AssertionError("it did not fail")

        assert ended([in_process(job)], 30) == [0]

    def at_once(self) -> None:
        """Several start at the same time: what is not refused comes to the same bits."""

        def job(delay: float) -> None:
            time.sleep(delay)
            try:
                self.compare(fit(self.folder))
            except fs.BusyError:
                os._exit(3)

        delays = [self.draw.choice([0.0, 0.0, 0.01, 0.1]) for _ in range(self.draw.randint(2, 4))]
        jobs = [in_process(lambda delay=delay: job(delay)) for delay in delays]  # type: ignore[misc]
        statuses = [os.waitstatus_to_exitcode(status) for status in ended(jobs, 30)]
        assert set(statuses) <= {0, 3}, statuses
        assert 0 in statuses, statuses

    def elsewhere(self) -> None:
        """The first is on another machine: the second waits, as that machine may have failed."""

        def first() -> None:
            socket.gethostname = lambda: "elsewhere"
            fit(self.folder, Told(self.update, signal.pause))

        process = in_process(first)
        while not (self.folder / ".lock").exists() or not (self.folder / ".lock").read_text():
            time.sleep(0.001)
        ends = self.draw.random() < 0.5

        def second() -> None:
            checkpoint_folder._FAILED_SECONDS = 10.0 if ends else 0.3
            if ends:
                self.compare(fit(self.folder))
                return
            with pytest.raises(fs.BusyError, match="on elsewhere"):
                fit(self.folder)

        waits = in_process(second)
        if ends:
            time.sleep(0.2)
            os.kill(process, signal.SIGKILL)
        assert ended([waits], 30) == [0]
        if not ends:
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)

    def without_locks(self) -> None:
        """The file system has no locks: nobody is refused, and nothing else is lost."""
        number = self.draw.choice([errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])

        def none(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        def job() -> None:
            fcntl.flock = none
            self.compare(fit(self.folder))

        assert ended([in_process(job)], 30) == [0]

    def read_only(self) -> None:
        """The folder cannot be written; its checkpoints can be read."""
        assert ended([in_process(lambda: fit(self.folder) and None)], 30) == [0]
        before = files(self.folder)
        for path in (self.folder, *self.folder.parents[:3]):
            path.chmod(path.stat().st_mode & 0o755 | 0o055)  # others may look
        self.folder.chmod(0o555)

        def job() -> None:
            if os.getuid() == 0:  # who may write everywhere
                os.setuid(65534)
            with pytest.raises(OSError, match="cannot be written: Permission denied"):
                fit(self.folder)
            seed_all()
            est = fs.Estimator(
                chain(), LOSS, lambda p: torch.optim.AdamW(p, lr=1e-2), SPEC, seed=1, comm=None,
                progress=False,
            )  # fmt: skip
            self.compare(est.fit(*data(), resume=self.folder))

        assert ended([in_process(job)], 30) == [0]
        assert files(self.folder) == before
        self.folder.chmod(0o755)


KINDS = [
    "refuse", "refuse", "refuse_inside", "follow_killed", "follow_killed", "follow_failed",
    "at_once", "at_once", "elsewhere", "without_locks", "read_only",
]  # fmt: skip


def case(number: int, folder: Path) -> str:
    draw = random.Random(number)  # noqa: S311
    warnings.simplefilter("ignore")
    tempfile.tempdir = str(folder)
    kind = draw.choice(KINDS)
    print(kind, flush=True)
    jobs = Jobs(draw, folder)
    getattr(jobs, kind)()
    jobs.last()
    left = files(jobs.folder)
    assert all(name.startswith("checkpoint-") for name in left), left
    assert sorted(os.listdir(folder)) == ["first", "run", "whole"], os.listdir(folder)
    return kind.replace("_", " ")


CAMPAIGNS = [
    Campaign(
        "two-jobs", case, 1000, 100,
        "A second job with the same folder of checkpoints is refused while the first is running",
    )
]  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        fit(scratch)
    main(CAMPAIGNS)
