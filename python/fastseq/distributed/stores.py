"""The store of torch.distributed at which ranks without MPI meet, with time-outs that hold."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .._util.threads import Thread
from .._util.untyped_torch import TCPStore
from ..errors import CommunicationError
from .launchers import Launch

__all__ = ["GRACE", "first_line", "in_time", "limited", "missing", "reach"]

GRACE = 5.0
"""Seconds that a store may take to answer beyond the time that it was to wait."""

T = TypeVar("T")


def reach(launch: Launch, timeout: float) -> Any:
    """Return the store of a launch, which rank 0 makes unless the launcher has.

    Raises
    ------
    CommunicationError
        It cannot be reached or made.
    """

    def reached() -> Any:
        return TCPStore(
            launch.address,
            launch.port,
            is_master=launch.rank == 0 and not launch.hosted,
            timeout=limited(timeout),
            wait_for_workers=False,
            multi_tenant=True,  # a script may call init_process_group, at the same port
        )

    try:
        return in_time(reached, timeout + GRACE)
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise CommunicationError(
            f"rank {launch.rank} of {launch.size} cannot meet the others at "
            f"{launch.address}:{launch.port}: {first_line(error)}"
        ) from error


def in_time(call: Callable[[], T], seconds: float) -> T:
    """Return what a call of a store returns, or raise what it raises.

    Torch's calls may wait for ever, whatever time-out they have, for a store that is stopped or cut
    off; then this one is left alone in its thread.

    Raises
    ------
    TimeoutError
        It takes longer than `seconds`.
    """
    returned: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(call())
        except BaseException as error:
            raised.append(error)

    thread = Thread(run, daemon=True)
    thread.start()
    if not thread.join(seconds):
        raise TimeoutError(f"no answer in {seconds:g} s: stopped, or cut off?")
    if raised:
        raise raised[0]
    return returned[0]


def missing(store: Any, keys: Mapping[str, int]) -> str:
    """Return which of the ranks have not set their keys; "the others" if that can't be told.

    Parameters
    ----------
    keys
        The key of each rank.
    """
    try:
        found = in_time(lambda: [r for key, r in keys.items() if not store.check([key])], GRACE)
    except (RuntimeError, TimeoutError):
        found = []
    return ", ".join(f"rank {rank}" for rank in found) or "the others"


def limited(seconds: float) -> datetime.timedelta:
    """Return a time-out for torch, which knows no infinite ones."""
    return datetime.timedelta(seconds=min(seconds, 1e8))


def first_line(error: Exception) -> str:
    """Return the first line of an error's message: torch adds the stack in C++."""
    return str(error).partition("\n")[0]
