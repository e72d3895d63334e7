"""`launch`: ranks of this machine from a notebook or a script, without a launcher."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from .._util.optional_imports import need
from .._util.threads import Thread
from .._util.untyped_torch import TCPStore
from ..errors import CommunicationError, RemoteError
from .launchers import found_launch

__all__ = ["launch", "read_message", "write_message"]

# Seconds for ranks to end by themselves after one has failed, and then after a request.
_GRACE = 5.0
_POLL = 0.05
_PIPES = 1.0


def launch(fn: Callable[..., Any], *args: Any, ranks: int, **kwargs: Any) -> list[Any]:
    """Call a function on several ranks of this machine, and return their results.

    Each rank is a new process, in which `world` and estimators find the others, as under
    ``torchrun``; MPI is not needed. Functions and classes of a notebook are sent along
    (`cloudpickle`). What ranks print appears here.

    Parameters
    ----------
    fn
        What each rank calls.
    *args, **kwargs
        Its arguments, the same on all ranks; they are copied.
    ranks
        How many.

    Returns
    -------
    list
        The results, by rank. They are copied, too: return what you need, and None elsewhere.

    Raises
    ------
    RemoteError
        A rank has failed; its traceback has been printed. All ranks have ended.
    CommunicationError
        This process is itself a rank.
    ValueError, TypeError
        `ranks` is no positive number, or something cannot be sent.
    MissingFeatureError
        `cloudpickle` is not installed.

    Examples
    --------
    >>> import fastseq as fs
    >>> def rank_and_size():
    ...     comm = fs.distributed.world()
    ...     return comm.rank, comm.size
    >>> fs.launch(rank_and_size, ranks=2)
    [(0, 2), (1, 2)]
    """
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
        raise ValueError(f"ranks must be a positive number, got {ranks!r}")
    if found_launch() is not None:
        raise CommunicationError(
            "a launcher has started this process as one of its ranks: launch is for scripts and "
            "notebooks that run alone; call the function itself"
        )
    cloudpickle = need("cloudpickle", "fs.launch")
    try:
        work = pickle.dumps((sys.path, cloudpickle.dumps((fn, args, kwargs))))
    except Exception as error:
        raise TypeError(f"fn and its arguments cannot be sent to the ranks: {error}") from error
    with _store() as port:
        team = [_Rank(number, ranks, port, work) for number in range(ranks)]
        try:
            _wait(team)
        finally:
            _end(team)
    failed = [rank for rank in team if rank.failure is not None]
    if failed:
        # Who only reports that another one has failed, is not the cause.
        cause = min(failed, key=lambda rank: (rank.outcome[:1] == ("told",), rank.ended))
        raise RemoteError(cause.number, str(cause.failure))
    return [rank.outcome[1] for rank in team]


@contextlib.contextmanager
def _store() -> Iterator[int]:
    """Keep a store for the ranks in the body of a ``with``; yield its port, on loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        port = int(listener.getsockname()[1])
        server = listener.detach()
    store = TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=server
    )
    yield port
    del store


class _Rank:
    """A process, what it prints, and what comes of it.

    Attributes
    ----------
    outcome
        ``("value", result)``, ``("error", text)``, ``("told", text)`` if that is of another rank,
        or empty: nothing came.
    ended
        When it was seen that the process has ended.
    """

    def __init__(self, number: int, size: int, port: int, work: bytes) -> None:
        self.number = number
        self.ended = float("inf")
        self.outcome: tuple[Any, ...] = ()
        names = {
            "RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": f"launch-{os.getpid()}-{port}",
            "TORCHELASTIC_USE_AGENT_STORE": True,
        }  # fmt: skip
        results, write = os.pipe()
        self._received = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", "fastseq.distributed.launched_rank", str(write)],
            env={**os.environ, **{name: str(value) for name, value in names.items()}},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[write],
        )
        os.close(write)
        assert self._process.stdin is not None
        self._threads = [
            Thread(functools.partial(run, *arguments), daemon=True)
            for run, arguments in (
                (self._send, (work,)),
                (self._receive, (results,)),
                (_forward, (self._process.stdout, "stdout")),
                (_forward, (self._process.stderr, "stderr")),
            )
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, work: bytes) -> None:
        # The pipe stays open: its end tells the rank that this process is gone.
        with contextlib.suppress(OSError):  # it has ended already
            assert self._process.stdin is not None
            write_message(self._process.stdin, work)

    def _receive(self, results: int) -> None:
        with os.fdopen(results, "rb") as pipe:
            data = read_message(pipe)
        try:
            self.outcome = pickle.loads(data) if data else ()  # noqa: S301 (of our own process)
        except Exception as error:
            self.outcome = ("error", f"its result cannot be read here: {error}")
        self._received.set()

    @property
    def running(self) -> bool:
        if self._process.poll() is None:
            return True
        self.ended = min(self.ended, time.monotonic())
        # Its result may still be on the way; processes that it has forked may hold its pipes.
        return not self._received.is_set() and time.monotonic() < self.ended + _GRACE

    @property
    def failure(self) -> str | None:
        """Why there is no result; None: there is one, or the rank still runs."""
        if self.running:
            return None
        code = self._process.returncode
        if self.outcome[:1] in (("error",), ("told",)):
            return str(self.outcome[1])
        if code < 0:
            return f"it was ended by {signal.Signals(-code).name}"
        return None if self.outcome and code == 0 else f"it ended with exit code {code}"

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            self._process.send_signal(number)

    def finish(self) -> None:
        """Take in the rest of what an ended rank has sent."""
        self._process.wait()
        # Processes that it has started may keep its pipes open.
        deadline = time.monotonic() + _PIPES
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()


def write_message(pipe: IO[bytes], data: bytes) -> None:
    """Write bytes for `read_message`."""
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def read_message(pipe: IO[bytes]) -> bytes:
    """Return what was written; empty if the other process has ended."""
    head = pipe.read(8)
    size = int.from_bytes(head, "little")
    data = pipe.read(size) if len(head) == 8 else b""
    return data if len(data) == size else b""


def _forward(source: IO[bytes], name: str) -> None:
    """Write what a rank prints where this process prints, line by line: ranks print at once."""
    pending = b""
    with source:
        while data := os.read(source.fileno(), 65536):
            pending += data
            end = max(pending.rfind(b"\n"), pending.rfind(b"\r")) + 1
            _print(pending[:end], name)
            pending = pending[end:]
    _print(pending, name)


def _print(data: bytes, name: str) -> None:
    if not data:
        return
    target = getattr(sys, name)  # in a notebook, below the cell
    coding = getattr(target, "encoding", None) or "utf-8"
    text = data.decode(errors="replace").encode(coding, errors="replace").decode(coding)
    with contextlib.suppress(OSError, ValueError):  # nobody reads it; the rank goes on
        target.write(text)
        target.flush()


def _running(team: list[_Rank]) -> list[_Rank]:
    return [rank for rank in team if rank.running]


def _wait(team: list[_Rank]) -> None:
    """Wait until all ranks have ended; after one has failed, for a while."""
    deadline = float("inf")
    while _running(team) and time.monotonic() < deadline:
        try:
            time.sleep(_POLL)
        except KeyboardInterrupt:
            for rank in team:  # in a terminal they have got it, too
                rank.signal(signal.SIGINT)
            raise
        failed = any(rank.failure is not None for rank in team)
        deadline = min(deadline, time.monotonic() + _GRACE) if failed else deadline


def _end(team: list[_Rank]) -> None:
    """End ranks that still run, and take in what all have sent."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        for rank in team:
            rank.signal(request)
        deadline = time.monotonic() + _GRACE
        while _running(team) and time.monotonic() < deadline:
            time.sleep(_POLL)
    for rank in team:
        rank.finish()
