"""How ranks without MPI find each other: through a store of torch.distributed."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from .. import _comm
from .._util.untyped_torch import PrefixStore
from ..errors import CommunicationError
from .gloo import Gloo
from .launchers import Launch
from .stores import GRACE, first_line, in_time, limited, missing, reach

__all__ = ["Rendezvous"]

_UNSHARED = (
    'transport "{}" needs memory that the ranks of a machine can share: the machine has none left, '
    "or its ranks run in separate containers or as different users"
)
T = TypeVar("T")

# Ranks that wait for one on their machine, which waits for another machine, wait longer than it.
_LONGER = 10.0


class Rendezvous:
    """The ranks of a launch, and the store that they all reach.

    Parameters
    ----------
    launch
        What the launcher says.
    timeout
        Seconds to wait for the store.

    Raises
    ------
    CommunicationError
        The store cannot be reached or made.
    """

    def __init__(self, launch: Launch, timeout: float = 600.0) -> None:
        self._launch = launch
        self._made = 0
        self._store = PrefixStore(f"fastseq/{launch.attempt}", reach(launch, timeout))

    def connect(
        self, transport: str, timeout: float, ranks_per_node: int, half_wire: bool
    ) -> _comm.Communicator:
        """Return a native communicator of the ranks. Collective.

        Raises
        ------
        ValueError
            The ranks want different communicators; or one that needs MPI.
        CommunicationError
            Ranks do not come, or the transport is not available.
        """
        self._made += 1
        store = PrefixStore(str(self._made), self._store)
        meeting = _Meeting(store, self._launch, timeout)
        wishes = {
            "transport": transport,
            "timeout": f"{timeout:g}",
            "ranks_per_node": ranks_per_node,
            "wire_dtype": "bfloat16" if half_wire else "float32",
        }
        link = _comm.NodeLink(self._launch.rank)
        facts = meeting.gather(
            "facts", {"machine": _machine(), "slot": link.address, "wishes": wishes}
        )
        _compare([fact["wishes"] for fact in facts])
        if transport == "mpi":
            raise ValueError(self._needs_mpi('transport="mpi"'))
        machines = _machines([fact["machine"] for fact in facts], ranks_per_node)
        number = next(i for i, ranks in enumerate(machines) if self._launch.rank in ranks)
        ranks = machines[number]
        if transport == "shm" and len(machines) > 1:
            raise CommunicationError('transport "shm" needs all ranks on one machine')
        alone = len(machines) == 1 and transport in ("auto", "shm")
        node = None
        if transport != "gloo":
            slots = [tuple(facts[r]["slot"]) for r in ranks]
            node = _share_memory(meeting, link, slots, ranks, timeout + (0 if alone else _LONGER))
            if node is None and transport != "auto":
                raise CommunicationError(_UNSHARED.format(transport))
        if node is not None and alone:
            meeting.end()
            return _comm.node_communicator(node)
        if half_wire:
            raise ValueError(self._needs_mpi("wire_dtype=torch.bfloat16 between machines"))
        slices = 0 if node is None else min(map(len, machines))
        local = ranks.index(self._launch.rank)
        across = [m[local] for m in machines] if local < slices else None
        relay = Gloo(store, self._launch.rank, self._launch.size, across, timeout)
        meeting.end()
        return _comm.relay_communicator(
            relay, "gloo", self._launch.rank, self._launch.size, node, local, len(ranks), slices
        )

    def _needs_mpi(self, what: str) -> str:
        return (
            f"{what} needs ranks that find each other through MPI: start them with mpirun instead "
            f"of {self._launch.launcher}"
        )


class _Meeting:
    """What ranks tell each other while they make a communicator."""

    def __init__(self, store: Any, launch: Launch, timeout: float) -> None:
        self._store, self._rank, self._size = store, launch.rank, launch.size
        self._timeout = timeout
        store.set_timeout(limited(timeout))
        self._names: list[str] = []
        self._host = "the launcher" if launch.hosted else "rank 0"

    def gather(self, name: str, value: object) -> list[Any]:
        """Return all ranks' values, which JSON can write."""
        self._names.append(name)
        own = json.dumps(value)
        keys = [f"{name}/{rank}" for rank in range(self._size)]

        def gathered() -> list[Any]:
            self._store.set(keys[self._rank], own)
            self._store.wait(keys, limited(self._timeout))
            return [json.loads(self._store.get(key)) for key in keys]

        return self._ask(gathered, keys)

    def _ask(self, call: Callable[[], T], keys: list[str]) -> T:
        """Return what a call of the store returns, which waits for the ranks' keys."""
        me = f"rank {self._rank}"
        try:
            return in_time(call, self._timeout + GRACE)
        except TimeoutError as error:
            raise CommunicationError(
                f"{me} cannot make a communicator: the store of {self._host}, where the ranks "
                f"meet, gives {error}"
            ) from error
        except RuntimeError as error:  # DistError
            if "timeout" in str(error):
                awaited = missing(self._store, {key: rank for rank, key in enumerate(keys)})
                cause = f"waited {self._timeout:g} s for {awaited}"
                raise CommunicationError(f"{me} {cause} to make a communicator") from error
            raise CommunicationError(
                f"{me} cannot make a communicator: the connection to the store of {self._host}, "
                f"where the ranks meet, is lost; has that ended? ({first_line(error)})"
            ) from error

    def all(self, name: str, value: bool) -> bool:
        return all(self.gather(name, value))

    def end(self) -> None:
        """Wait on rank 0, which may have the store, until all have read; then forget the values."""
        keys = [f"ended/{rank}" for rank in range(self._size)]
        told = [f"{name}/{rank}" for name in self._names for rank in range(self._size)]

        def ended() -> None:
            self._store.set(keys[self._rank], "")
            if self._rank == 0:
                self._store.wait(keys, limited(self._timeout))
                for key in (*told, *keys):
                    self._store.delete_key(key)

        self._ask(ended, keys)


def _share_memory(
    meeting: _Meeting, link: _comm.NodeLink, slots: list[Any], ranks: list[int], timeout: float
) -> _comm.Node | None:
    """Return this rank's machine; None on all ranks if one cannot share memory."""
    opened = link.open(slots, ranks.index(link.address[3]))
    if not meeting.all("opened", opened):
        return None
    node = link.join(timeout)
    return node if meeting.all("joined", node.shares_memory) else None


def _machine() -> str:
    """Return what ranks of one machine have in common, and those of others don't."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return "/".join([socket.gethostname(), boot.read_text().strip() if boot.exists() else ""])


def _machines(names: list[str], ranks_per_node: int) -> list[list[int]]:
    """Return the ranks of each machine, in parts of `ranks_per_node` if that is not 0."""
    found: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        found.setdefault(name, []).append(rank)
    machines = []
    for ranks in found.values():
        step = ranks_per_node or len(ranks)
        machines += [ranks[i : i + step] for i in range(0, len(ranks), step)]
    return machines


def _compare(wishes: list[dict[str, object]]) -> None:
    for rank, theirs in enumerate(wishes):
        for name, value in wishes[0].items():
            if theirs[name] != value:
                raise ValueError(
                    f"the ranks want different communicators: rank 0 has {name}={value}, rank "
                    f"{rank} {name}={theirs[name]}; give all ranks the same options"
                )
