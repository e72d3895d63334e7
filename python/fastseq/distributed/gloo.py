"""Messages between machines by Gloo, the host's part of torch.distributed."""

from __future__ import annotations

import re
from typing import Any

import torch

from .._util import torch_internals
from .._util.untyped_torch import PrefixStore
from ..errors import CommunicationError
from .stores import GRACE, first_line, in_time, limited, missing

__all__ = ["Gloo"]

_DTYPES = {"f": torch.float32, "d": torch.float64}


class Gloo:
    """What a native communicator calls to send messages.

    Parameters
    ----------
    store
        Where the ranks find each other.
    rank, size
        This process' number, and that of all.
    across
        The ranks with this one's number on each machine; None if there are none.
    timeout
        Seconds to wait for ranks that don't come.
    """

    def __init__(
        self, store: Any, rank: int, size: int, across: list[int] | None, timeout: float
    ) -> None:
        self._rank, self._size = rank, size
        self._timeout = timeout
        self._store = store
        self._interrupted = False
        self._all = self._group("all", list(range(size)))
        self._across: Any = None
        if across is not None:
            self._across = self._group(f"of {across[0]}", across)

    def _group(self, name: str, ranks: list[int]) -> Any:
        """Return Gloo's group of some ranks, each of which calls this."""
        store, limit = PrefixStore(name, self._store), limited(self._timeout)
        keys = [f"{rank} comes" for rank in ranks]
        mine = ranks.index(self._rank)

        def connected() -> Any:
            store.set(keys[mine], "")
            return torch_internals.gloo_group(store, mine, len(ranks), limit)

        try:
            return in_time(connected, self._timeout + GRACE)
        except (RuntimeError, TimeoutError) as error:
            awaited = missing(store, dict(zip(keys, ranks, strict=True)))
            what = f"it cannot connect to {awaited}"
            raise self._lost(error, what, awaited) from error

    def gather(self, mine: memoryview, all_: memoryview) -> None:
        """Fill `all_` with all ranks' bytes."""
        out = list(torch.frombuffer(all_, dtype=torch.uint8).chunk(self._size))
        own = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        self._wait(self._all.allgather([out], [own]))

    def broadcast(self, data: memoryview, root: int) -> None:
        """Replace data by root's."""
        self._wait(self._all.broadcast(torch.frombuffer(data, dtype=torch.uint8), root))

    def sum(self, data: memoryview, across: bool) -> None:
        """Replace data by their sum over all ranks, or over those of `across`."""
        group = self._across if across else self._all
        self._wait(group.allreduce(torch.frombuffer(data, dtype=_DTYPES[data.format])))

    def break_up(self, cause: str) -> None:
        """Make the others' calls raise, with this cause."""
        try:
            in_time(lambda: self._store.set("broken", cause), GRACE)
        finally:
            self._close()

    def interrupt(self) -> None:
        """Make this rank's calls raise, because the process ends."""
        self._interrupted = True
        self._close()

    def _close(self) -> None:
        for group in (self._all, self._across):
            if group is not None:
                group.abort()

    def _wait(self, work: Any) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            what = "the connection to another rank is lost; has that ended?"
            raise self._lost(error, what) from error

    def _lost(self, error: Exception, what: str, awaited: str = "the others") -> CommunicationError:
        cause = "it has exited" if self._interrupted else self._told()
        if not cause and re.search("timed out|timeout", str(error), re.IGNORECASE):
            cause = f"it waited {self._timeout:g} s for {awaited}"
        # Gloo begins with the place in its source, and ends with advice.
        said = re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". ")[0]
        return CommunicationError(
            f"rank {self._rank} cannot continue: {cause or f'{what} ({said})'}"
        )

    def _told(self) -> str:
        """Return the cause that another rank told; empty if there is none."""

        def told() -> str:
            found = self._store.check(["broken"])
            return self._store.get("broken").decode() if found else ""

        try:
            return in_time(told, GRACE)
        except (RuntimeError, TimeoutError):  # who had the store has gone, too
            return ""
