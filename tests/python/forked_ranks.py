"""Ranks forked from a process that has all imported: they meet as torchrun's do, and tell how they ended."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import faulthandler
import hashlib
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from fastseq.distributed import bucketizer, communicators
from fastseq.distributed.rendezvous import Rendezvous

# Ports that are not handed out to connections, so that nobody takes one before rank 0 does.
_FIRST_PORT, _PORTS = 20000, 12000
_SIGNAL_OF_PARENT = 1  # PR_SET_PDEATHSIG
_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE)

Work = Callable[[int], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Meeting:
    """How ranks meet, and what carries their data.

    Parameters
    ----------
    size
        How many there are.
    transport, ranks_per_node, timeout
        As `Communicator` has them; the time-out counts for the meeting, too.
    hosted
        Whether the store is the launcher's, as with torchrun, or rank 0's, as with srun.
    address
        Where rank 0 is.
    """

    size: int
    transport: str = "auto"
    ranks_per_node: int | None = None
    timeout: float = 30.0
    hosted: bool = False
    address: str = "127.0.0.1"


@dataclasses.dataclass
class End:
    """How a rank ended.

    Parameters
    ----------
    status
        Its exit status; negative: the signal that ended it.
    seconds
        How long it lived.
    error
        The error that its work raised; empty: none.
    bits
        A digest of what its work returned; empty: nothing.
    transport
        What carried its data; empty: it had no communicator.
    struck
        Whether it told of a fault.
    printed
        What it printed.
    """

    status: int
    seconds: float
    error: str = ""
    bits: str = ""
    transport: str = ""
    struck: bool = False
    printed: str = ""


class Ranks:
    """Ranks that do some work, each in a process of its own.

    Parameters
    ----------
    meeting
        How they meet.
    work
        What each does with its number; what it returns is compared.
    folder
        Where they print.
    catches
        Whether their script catches errors, and ends as usual then.
    enter
        Called first in each rank: where it goes to another host, say.
    port
        Where they meet.
    """

    def __init__(
        self,
        meeting: Meeting,
        work: Work,
        folder: Path,
        *,
        catches: bool = True,
        enter: Callable[[int], None] | None = None,
        port: int | None = None,
    ) -> None:
        self._meeting, self._work, self._folder = meeting, work, folder
        self._catches, self._enter = catches, enter
        folder.mkdir(parents=True)
        self._agent = 0
        self._port = free_port(os.getpid()) if port is None else port
        if meeting.hosted:
            self._host_store()
        self.start = time.monotonic()
        self._outcomes: list[int] = []
        self.processes = [self._fork(rank) for rank in range(meeting.size)]
        self._ends: dict[int, tuple[int, float]] = {}

    def _host_store(self) -> None:
        """Start a process that has the store, as torchrun's agent does."""
        reader, writer = os.pipe()
        self._agent = os.fork()
        if self._agent:
            os.close(writer)
            assert os.read(reader, 1)
            os.close(reader)
            return
        end_with_parent()
        if self._enter is not None:
            self._enter(0)
        store = TCPStore(self._meeting.address, self._port, is_master=True, wait_for_workers=False)
        os.write(writer, b"1")
        signal.pause()
        os._exit(len(store.host))

    def _fork(self, rank: int) -> int:
        reader, writer = os.pipe()
        process = os.fork()
        if process:
            os.close(writer)
            self._outcomes.append(reader)
            return process
        try:
            end_with_parent()
            for outcome in (*self._outcomes, reader):
                os.close(outcome)
            self._be(rank, writer)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _be(self, rank: int, outcome: int) -> None:
        """Be a rank: do the work, tell what came of it, and end as a script does."""
        printed = os.open(self._folder / f"rank-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(printed, stream)
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR2, all_threads=True)
        if self._enter is not None:
            self._enter(rank)
        self._become(rank)
        told: dict[str, Any] = {}
        status, caught = 0, None
        try:
            work = Told(outcome, self._work)
            told["bits"] = hashlib.sha256(work(rank).numpy().tobytes()).hexdigest()
        except SystemExit as end:
            status, told["error"] = int(end.code or 0), repr(end)
        except BaseException as error:
            caught, status, told["error"] = error, 1, f"{type(error).__name__}: {error}"
        for limit in _LIMITS:
            resource.setrlimit(limit, (resource.getrlimit(limit)[1],) * 2)
        told["transport"] = getattr(communicators._world, "transport", "")
        os.write(outcome, json.dumps(told).encode())
        if caught is not None:
            if not self._catches:
                sys.excepthook(type(caught), caught, caught.__traceback__)
            traceback.print_exception(caught)
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(status)

    def _become(self, rank: int) -> None:
        """Set what a launcher sets, and shorter time-outs than usual."""
        meeting = self._meeting
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(meeting.size), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": meeting.address, "MASTER_PORT": str(self._port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        if meeting.hosted:
            os.environ |= {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        atexit._clear()  # torch has slow ones, which have nothing to do with ranks
        atexit.register(bucketizer._stop_all)
        communicators._world = None
        Rendezvous.__init__.__defaults__ = (meeting.timeout,)
        communicators.Communicator.__init__.__kwdefaults__ |= {
            "timeout": meeting.timeout, "transport": meeting.transport,
            "ranks_per_node": meeting.ranks_per_node,
        }  # fmt: skip

    def poll(self, *, reap: bool = True) -> set[int]:
        """Return which ranks are stopped now; note which have ended."""
        stopped = set()
        for rank, process in enumerate(self.processes):
            if rank in self._ends:
                continue
            flags = os.WNOHANG | os.WEXITED | os.WSTOPPED | os.WNOWAIT
            found = os.waitid(os.P_PID, process, flags)
            if found is None:
                continue
            if found.si_code == os.CLD_STOPPED:
                stopped.add(rank)
                continue
            code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            self._ends[rank] = code, time.monotonic() - self.start
            if reap:
                os.waitpid(process, 0)
        return stopped

    @property
    def living(self) -> set[int]:
        """Which ranks have not ended."""
        return set(range(len(self.processes))) - set(self._ends)

    def send(self, rank: int, number: int) -> None:
        """Send a rank a signal, if it lives."""
        if rank in self.living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank], number)

    def stacks(self) -> str:
        """Let those that live print where they are; return what all have printed."""
        for rank in self.living:
            self.send(rank, signal.SIGUSR2)
        time.sleep(0.5)
        return "\n".join(f"--- rank {r}\n{self._printed(r)}" for r in range(len(self.processes)))

    def _printed(self, rank: int) -> str:
        file = self._folder / f"rank-{rank}"
        return file.read_text(errors="replace") if file.exists() else ""

    def finish(self) -> list[End]:
        """End all that still lives; return how each ended."""
        for rank in self.living:
            self.send(rank, signal.SIGKILL)
        for rank, process in enumerate(self.processes):
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(process, 0)
                seconds = time.monotonic() - self.start
                self._ends.setdefault(rank, (os.waitstatus_to_exitcode(status), seconds))
        if self._agent:
            os.kill(self._agent, signal.SIGKILL)
            os.waitpid(self._agent, 0)
        ends = []
        for rank, outcome in enumerate(self._outcomes):
            with os.fdopen(outcome, "rb") as reader:
                text = reader.read().decode()
            struck, text = text.startswith("!"), text.lstrip("!")
            told = json.loads(text) if text else {}
            ends.append(End(*self._ends[rank], **told, struck=struck, printed=self._printed(rank)))
        return ends

    def undisturbed(self, seconds: float = 60.0) -> list[End]:
        """Wait for all to end by themselves; return how."""
        while self.living and time.monotonic() < self.start + seconds:
            self.poll()
            time.sleep(0.002)
        return self.finish()


class Told:
    """A rank's work, which can tell of the fault that it is about to meet."""

    current: Told | None = None

    def __init__(self, outcome: int, work: Work) -> None:
        self._outcome, self._work = outcome, work
        Told.current = self

    def __call__(self, rank: int) -> torch.Tensor:
        return self._work(rank)

    @classmethod
    def strike(cls) -> None:
        """Tell that the fault comes now."""
        assert cls.current is not None
        os.write(cls.current._outcome, b"!")


def end_with_parent() -> None:
    """Let the system kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(_SIGNAL_OF_PARENT, signal.SIGKILL, 0, 0, 0)


def free_port(number: int) -> int:
    """Return a port that nobody listens at; another one for each number, mostly."""
    for step in range(_PORTS):
        port = _FIRST_PORT + (number + step) % _PORTS
        with socket.socket() as one, contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("", port))
            return port
    raise RuntimeError("all ports are taken")
