"""Processes that are killed at drawn moments, alone or as the ranks of a job."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import faulthandler
import os
import random
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Any

from interrupted import Kill

import fastseq as fs
from fastseq._util.untyped_torch import TCPStore
from fastseq.checkpoint import format as checkpoint_format
from fastseq.distributed.launchers import found_launch
from fastseq.distributed.rendezvous import Rendezvous

CALLS = ("replace", "fsync", "unlink", "mkdir", "write")
SECONDS = 20.0  # that ranks wait for each other
MEETING_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a process is killed, and how.

    Parameters
    ----------
    how
        ``"time"``: after `at` of the run's measured time; ``"meeting"``: so, but while ranks meet;
        ``"call"``: at its call number `at` of a function of the system, `name`, before or `after`;
        ``"size"``: in the middle of a write, when a file has `at` bytes; ``"update"``: after `at`
        updates.
    signal
        Which signal it gets.
    everybody
        Whether all ranks get it, or `rank` alone.
    """

    how: str
    signal: int = signal.SIGKILL
    at: float = 0.0
    name: str = ""
    after: bool = False
    rank: int = 0
    everybody: bool = False

    def __str__(self) -> str:
        when = {
            "time": "at any time", "meeting": "while ranks meet", "call": f"in {self.name}",
            "size": "in the middle of a write", "update": "after an update",
        }  # fmt: skip
        return f"{signal.Signals(self.signal).name} {when[self.how]}"


def draw_moment(draw: random.Random, ranks: int, updates: int, size: int) -> Moment:
    """Draw a moment for a run of so many updates, with checkpoints of so many bytes."""
    hows = ["time", "time", "time", "call", "call", "update"]
    hows += ["size"] if ranks == 1 else ["meeting"] * (draw.random() < 0.3)
    how = draw.choice(hows)
    if how == "call":
        name = draw.choice(CALLS)
        return Moment(how, at=draw.randint(1, 6), name=name, after=draw.random() < 0.5)
    if how == "size":
        return Moment(how, signal.SIGXFSZ, at=draw.randrange(1, size))
    who: dict[str, Any] = {"rank": draw.randrange(ranks), "everybody": draw.random() < 0.3}
    if how == "update":
        return Moment(how, at=draw.randint(1, updates), **who)
    number = signal.SIGKILL
    if draw.random() < 0.5:
        number = draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    return Moment(how, number, at=draw.uniform(0, 1.2), **who)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Counted:
    """A function that kills the process at one of its calls."""

    def __init__(self, function: Callable[..., Any], moment: Moment) -> None:
        self._function, self._moment, self._left = function, moment, int(moment.at)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._moment.after:
            die()
        result = self._function(*args, **kwargs)
        if self._left == 0:
            die()
        return result


class _Cut(FileIO):
    """A file of which a drawn write stops in the middle."""

    left = 0
    share = 0.5

    def write(self, data: Any) -> int:
        _Cut.left -= 1
        if _Cut.left == 0:
            super().write(memoryview(data)[: int(_Cut.share * len(data)) // 4096 * 4096])
            die()
        return super().write(data)


def arm(moment: Moment, seed: int) -> None:
    """Let this process die at a moment that it can tell itself."""
    if moment.how == "size":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(moment.at), hard))
    elif moment.how == "call" and moment.name == "write":
        _Cut.left, _Cut.share = int(moment.at), random.Random(seed).random()  # noqa: S311

        def cut(path: Any, mode: str, *args: Any, **kwargs: Any) -> Any:
            opened = FileIO if mode != "wb" else _Cut
            return (
                opened(path, mode) if mode == "wb" else builtins.open(path, mode, *args, **kwargs)
            )

        checkpoint_format.open = cut  # type: ignore[attr-defined]
    elif moment.how == "call":
        setattr(os, moment.name, _Counted(getattr(os, moment.name), moment))


def in_process(function: Callable[[], None]) -> int:
    """Run a function in a process of its own; return its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        faulthandler.enable()
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(processes: list[int], seconds: float) -> list[int]:
    """Return what `os.waitpid` tells of the ends; raise if they take longer."""
    statuses: dict[int, int] = {}
    end = time.monotonic() + seconds
    while len(statuses) < len(processes):
        for process in set(processes) - set(statuses):
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                statuses[process] = status
        if time.monotonic() > end:
            for process in set(processes) - set(statuses):
                os.kill(process, signal.SIGABRT)  # faulthandler shows where they are
                os.waitpid(process, 0)
            raise AssertionError(f"a hang: of {processes} these have ended: {statuses}")
        time.sleep(0.001)
    return [statuses[process] for process in processes]


class Launcher:
    """Starts ranks as torchrun does, in forked processes.

    Parameters
    ----------
    ranks
        How many there are; one of them is a process alone.
    hosted
        Whether the launcher has the store where ranks meet, or rank 0 has it.
    """

    def __init__(self, ranks: int, *, hosted: bool) -> None:
        self.ranks = ranks
        self._attempt = 0
        self._host = 0
        if ranks > 1 and hosted:
            read, write = os.pipe()

            def be_host() -> None:
                store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
                os.write(write, str(store.port).encode())
                signal.pause()

            self._host = in_process(be_host)
            self._port = int(os.read(read, 100))

    def start(
        self, job: Callable[[Any], None], moment: Moment | None = None, seconds: float = 0.0
    ) -> list[int]:
        """Call ``job(comm)`` on each rank, kill at a moment, and return how all have ended.

        `seconds` is how long a run takes that is not killed.
        """
        self._attempt += 1
        ready, is_ready = os.pipe()
        if not self._host:
            self._port = _free_port() if self.ranks > 1 else 0
        processes = [
            in_process(lambda rank=rank: self._be_rank(rank, job, moment, is_ready))  # type: ignore[misc]
            for rank in range(self.ranks)
        ]
        os.close(is_ready)
        timed = moment is not None and moment.how in ("time", "meeting")
        if moment is not None and timed:
            if moment.how == "meeting":
                time.sleep(0.1 * moment.at)
            else:
                for _ in processes:
                    os.read(ready, 1)  # nothing if one has failed
                time.sleep(seconds * moment.at)
            for process in processes if moment.everybody else [processes[moment.rank]]:
                os.kill(process, moment.signal)
        os.close(ready)
        return ended(processes, SECONDS + 20)

    def _be_rank(
        self, rank: int, job: Callable[[Any], None], moment: Moment | None, is_ready: int
    ) -> None:
        comm: Any = None
        if self.ranks > 1:
            os.environ |= {
                "RANK": str(rank), "WORLD_SIZE": str(self.ranks), "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._port),
                "TORCHELASTIC_RUN_ID": "1", "TORCHELASTIC_RESTART_COUNT": str(self._attempt),
                "TORCHELASTIC_USE_AGENT_STORE": str(self._host > 0),
            }  # fmt: skip
            meets = moment is not None and moment.how == "meeting"
            launch = found_launch()
            assert launch is not None
            limit = MEETING_SECONDS if meets else SECONDS
            comm = fs.distributed.Communicator(Rendezvous(launch, limit), timeout=limit)
        if moment is not None and (moment.everybody or moment.rank == rank):
            arm(moment, rank)
        with contextlib.suppress(BrokenPipeError):
            os.write(is_ready, b"1")
        job(comm)
        if comm is not None:
            comm.leave()  # as at the exit of a rank

    def close(self) -> None:
        """End the store."""
        if self._host:
            os.kill(self._host, signal.SIGKILL)
            os.waitpid(self._host, 0)


@contextlib.contextmanager
def launcher(ranks: int, *, hosted: bool) -> Iterator[Launcher]:
    """Return a `Launcher` that is closed at the end."""
    starts = Launcher(ranks, hosted=hosted)
    try:
        yield starts
    finally:
        starts.close()


def kills(moment: Moment | None, rank: int) -> list[Any]:
    """Return the callback that kills a rank after an update, if that is the moment."""
    if moment is None or moment.how != "update" or not (moment.everybody or moment.rank == rank):
        return []
    return [Kill(int(moment.at))]


def _free_port() -> int:
    """Return a port that nobody uses, of those that are not handed out to connections."""
    while True:
        port = random.SystemRandom().randrange(12000, 32000)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
