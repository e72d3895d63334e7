"""Process settings of a rank: threads, exceptions, forks, exit."""

from __future__ import annotations

import atexit
import math
import os
import sys
import time
import traceback
import warnings
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from ..errors import RemoteError

__all__ = ["end_together", "share_cores", "warn_of_forks", "warn_of_shared_cores"]


class Ranks(Protocol):
    """The part of `Communicator` that this module uses."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def local_size(self) -> int: ...
    @property
    def busy(self) -> str: ...
    def allreduce_(self, tensor: Tensor) -> Tensor: ...
    def abort(self, code: int) -> None: ...
    def leave(self) -> None: ...


def share_cores(comm: Ranks) -> None:
    """Give each rank of a machine its share of the cores, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    allowed = len(_cores()) or math.inf
    share = max((os.cpu_count() or 1) // comm.local_size, 1)
    torch.set_num_threads(int(min(allowed, share)))


def _cores() -> set[int]:
    """Return the cores that this process may use; empty if the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def warn_of_shared_cores(comm: Ranks) -> None:
    """Warn on rank 0 if all ranks are bound to one core although the machine has more."""
    cores = _cores()
    bound = torch.tensor(1.0 if len(cores) == 1 else 0.0)
    first = torch.tensor(float(min(cores, default=0)))
    comm.allreduce_(bound)
    mean, square = first.clone(), first * first
    comm.allreduce_(mean)
    comm.allreduce_(square)
    all_on_one = bool(bound == 1) and bool(square == mean * mean)
    if comm.rank == 0 and all_on_one and (os.cpu_count() or 1) > 1:
        warnings.warn(
            f"all {comm.size} ranks are bound to core {int(first)}: they take turns instead of "
            "working together; start them with mpirun --bind-to none",
            RuntimeWarning,
            stacklevel=3,
        )


def warn_of_forks() -> None:
    """Warn about forks from now on: forked processes can't use MPI, and may hang in it."""

    def warn() -> None:
        warnings.warn(
            "forking a process that runs under MPI: the child must not use fastseq.distributed and "
            'may hang; use multiprocessing\'s "spawn" or "forkserver" (a DataLoader: '
            'multiprocessing_context="spawn")',
            RuntimeWarning,
            stacklevel=2,
        )

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=warn)


def end_together(comm: Ranks) -> None:
    """End all ranks when an exception ends one, and announce this rank's exit."""
    process = os.getpid()
    previous = sys.excepthook

    def end_all(
        kind: type[BaseException], value: BaseException, trace: TracebackType | None
    ) -> None:
        if os.getpid() != process:
            previous(kind, value, trace)
            return
        if isinstance(value, RemoteError):
            print(f"fastseq: rank {comm.rank} stops: {value}", file=sys.stderr, flush=True)
            time.sleep(1)  # lets the rank that failed print its traceback first
        else:
            text = "".join(traceback.format_exception(kind, value, trace))
            print(f"fastseq: rank {comm.rank} failed:\n{text}", file=sys.stderr, flush=True)
        comm.abort(1)

    def announce_exit() -> None:
        if os.getpid() == process and not comm.busy:
            comm.leave()

    sys.excepthook = end_all
    atexit.register(announce_exit)
