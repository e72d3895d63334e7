"""Ranks on two hosts, whose link is cut, goes down, is slow, or loses, doubles and reorders packets.

The hosts are network namespaces on this machine. Their link is a process that passes packets from
one to the other: what it does to them is drawn, and needs nothing special of the kernel. All of it
is the case's own, and ends with it. Needs root and ``/dev/net/tun``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import fcntl
import heapq
import os
import random
import re
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import ranks as ranks_campaign
from campaign import Campaign, main
from forked_ranks import End, Meeting, Ranks, end_with_parent
from ranks import LOST, SLACK, Fault, Work

LASTING = ("cut", "one way", "down")  # these may last for ever
KINDS = (*LASTING, "slow", "lossy", "doubled", "reordered")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29500
NAME = b"link"

_NEW_NETWORK, _NEW_NAMES = 0x40000000, 0x04000000
_MAKE_TUN, _TUN, _NO_HEADER = 0x400454CA, 0x0001, 0x1000
_SET_ADDRESS, _SET_MASK, _SET_FLAGS, _UP, _DOWN = 0x8916, 0x891C, 0x8914, 0x41, 0
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass
class Link:
    """What happens to packets.

    Parameters
    ----------
    kind
        Which of `KINDS`.
    begin, end
        When it begins and ends, in seconds after the start.
    rate
        Which part of the packets it hits; for a slow link, bytes a second.
    side
        Whose packets it hits, if not both hosts'.
    rng
        What draws which.
    """

    kind: str
    begin: float
    end: float
    rate: float
    side: int
    rng: random.Random

    def __post_init__(self) -> None:
        self._free = [0.0, 0.0]

    def arrivals(self, now: float, side: int, size: int) -> list[float]:
        """Return when a packet that a host sends now arrives: never, once or twice."""
        if not self.begin <= now < self.end:
            return [now]
        if self.kind == "slow":
            self._free[side] = max(self._free[side], now) + size / self.rate
            return [self._free[side]] if self._free[side] < now + 1 else []
        if self.kind in LASTING:
            return [now] if self.kind == "one way" and side != self.side else []
        if self.rng.random() >= self.rate:
            return [now]
        later = now + self.rng.uniform(0, 0.02)
        return {"lossy": [], "doubled": [now, later], "reordered": [later]}[self.kind]


def _check(done: int, what: str) -> None:
    if done != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _be_up(name: bytes, flags: int = _UP) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sh14x", name, flags))


def _own_network(name: str) -> None:
    """Give this process and its children a network and a host name of their own."""
    _check(_LIBC.unshare(_NEW_NETWORK | _NEW_NAMES), "unshare")
    socket.sethostname(name)
    _be_up(b"lo")


def _forked(be: Callable[[], None]) -> int:
    """Return a process that calls `be` and then waits for its end."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        try:
            end_with_parent()
            be()
            os.write(writer, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    ready = os.read(reader, 1)
    os.close(reader)
    assert ready, "a host or their link could not be made"
    return process


def _enter(process: int) -> None:
    """Go to the host of a process."""
    for kind in ("net", "uts"):
        with open(f"/proc/{process}/ns/{kind}") as file:
            _check(_LIBC.setns(file.fileno(), 0), "setns")


def _plug(host: int, address: str) -> tuple[int, socket.socket]:
    """Return the far end of a host's interface, and a socket that controls it."""
    _enter(host)
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _MAKE_TUN, struct.pack("16sH22x", NAME, _TUN | _NO_HEADER))
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for what, value in ((_SET_ADDRESS, address), (_SET_MASK, "255.255.255.0")):
        request = struct.pack("16sH2x4s8x", NAME, socket.AF_INET, socket.inet_aton(value))
        fcntl.ioctl(control, what, request)
    fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sh14x", NAME, _UP))
    return end, control


def _pass_on(link: Link, ends: list[int], controls: list[socket.socket]) -> None:
    """Pass packets from one host to the other, for ever."""
    start, sent, is_up = time.monotonic(), 0, True
    waiting: list[tuple[float, int, int, bytes]] = []
    while True:
        now = time.monotonic() - start
        if link.kind == "down" and is_up == (link.begin <= now < link.end):
            is_up = not is_up
            flags = struct.pack("16sh14x", NAME, _UP if is_up else _DOWN)
            fcntl.ioctl(controls[link.side], _SET_FLAGS, flags)
        pause = 0.05 if not waiting else min(max(waiting[0][0] - now, 0), 0.05)
        for end in select.select(ends, [], [], pause)[0]:
            side = ends.index(end)
            try:
                packet = os.read(end, 65536)
            except OSError:  # it has gone down meanwhile
                continue
            now = time.monotonic() - start
            for due in link.arrivals(now, side, len(packet)):
                sent += 1
                heapq.heappush(waiting, (due, sent, 1 - side, packet))
        now = time.monotonic() - start
        while waiting and waiting[0][0] <= now:
            _, _, side, packet = heapq.heappop(waiting)
            try:
                os.write(ends[side], packet)
            except OSError:  # it is down
                continue


def connect(link: Link) -> list[int]:
    """Make two hosts and their link; return the processes that they live as long as."""
    hosts = [_forked(lambda i=i: _own_network(f"host-{i}")) for i in range(2)]
    reader, writer = os.pipe()
    joined = os.fork()
    if not joined:
        try:
            end_with_parent()
            plugs = [_plug(*each) for each in zip(hosts, ADDRESSES, strict=True)]
            os.write(writer, b"1")
            _pass_on(link, [end for end, _ in plugs], [control for _, control in plugs])
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1), "the hosts could not be connected"
    os.close(reader)
    return [*hosts, joined]


def draw(number: int, folder: Path) -> tuple[Meeting, Work, Link]:
    """Return how ranks meet, what they do, and what happens to their link."""
    rng = random.Random(number)  # noqa: S311
    size = rng.choice([2, 2, 3, 4])
    kind = rng.choice(KINDS)
    ever = kind in LASTING and rng.random() < 0.6
    begin = rng.choice([0.0, rng.uniform(0, 0.3), rng.uniform(0, 1)])
    lasts = 1e9 if ever or kind not in LASTING else rng.uniform(0.1, 1.5)
    rate = rng.uniform(2e5, 2e6) if kind == "slow" else rng.choice([0.01, 0.03, 0.1, 0.3])
    if kind == "lossy":
        rate = min(rate, 0.05)  # TCP waits for 0.2 s and more for what was lost
    work = rng.choice(["native", "own", "buckets", "calls"])
    options = {
        "perceptron": rng.random() < 0.5, "watched": False, "every": 0, "validation": None,
        "bucket_bytes": rng.choice([64, 400, 1 << 20]), "calls": number, "spec": {},
    }  # fmt: skip
    meeting = Meeting(
        size, rng.choice(["auto", "gloo"]), (size + 1) // 2, 2.0 if ever else 30.0,
        hosted=rng.random() < 0.5, address=ADDRESSES[0],
    )  # fmt: skip
    link = Link(kind, begin, begin + lasts, rate, rng.randrange(2), rng)
    return meeting, Work(work, Fault("none", -1, "", 1, disk=str(folder)), options), link


def case(number: int, folder: Path) -> str:
    """Let ranks work while something happens to their link, and judge how all of them end."""
    meeting, work, link = draw(number, folder)
    print(meeting, work, link, sep="\n", flush=True)
    _own_network("here")
    lives = connect(link)

    def enter(rank: int) -> None:
        _enter(lives[rank // (meeting.ranks_per_node or 1)])
        os.environ["GLOO_SOCKET_IFNAME"] = NAME.decode()

    ranks = Ranks(meeting, work, folder / "ranks", enter=enter, port=PORT)
    lasting = min(link.end, link.begin + 2) + meeting.timeout + SLACK
    while living := ranks.living:
        ranks.poll()
        if (now := time.monotonic() - ranks.start) > lasting:
            raise AssertionError(f"a hang: ranks {living} live after {now:.1f} s\n{ranks.stacks()}")
        time.sleep(0.002)
    ends = ranks.finish()
    for process in lives:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    for rank, end in enumerate(ends):
        print(f"rank {rank}: {dataclasses.replace(end, printed=end.printed[-1000:])}", flush=True)
    here = dataclasses.replace(meeting, address="127.0.0.1")
    well = {end.transport for end in ends if end.bits}
    assert len(well) < 2, well
    bits = ranks_campaign.undisturbed(work, here, well.pop(), folder) if well else ""
    return judge(link, ends, bits)


def judge(link: Link, ends: list[End], bits: str) -> str:
    """Return what the case was; raise if a promise is broken."""
    for rank, end in enumerate(ends):
        if end.bits:
            assert end.bits == bits, f"rank {rank} has other bits"
        else:
            assert end.error.startswith("CommunicationError: "), f"rank {rank}: {end.error}"
            assert re.search(LOST, end.error), f"rank {rank}: {end.error}"
    well = sum(bool(end.bits) for end in ends)
    ever = link.kind in LASTING and link.end > 1e6
    assert ever or well == len(ends), "what ended by itself, or only slowed, has ended ranks"
    found = "same bits" if well == len(ends) else "errors" if not well else "some errors"
    return f"{link.kind}{' for ever' if ever else ''}: {found}"


def impossible() -> str | None:
    """Return why there can be no hosts here; None: there can."""
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/net/tun"):
        return "needs /dev/net/tun"
    process = os.fork()
    if not process:
        try:
            _own_network("here")
            connect(Link("slow", 0, 0, 1, 0, random.Random(0)))  # noqa: S311
        except BaseException:
            os._exit(1)
        os._exit(0)
    return None if os.waitpid(process, 0)[1] == 0 else "needs namespaces of its own"


WHY_NOT = impossible()
CAMPAIGNS = [
    Campaign(
        "links", case, wanted=200, limit=120.0,
        promise="whatever happens to the link between two hosts, each rank stops in time: with an "
        "error that names the cause, or with the same bits as an undisturbed run",
    )
] if WHY_NOT is None else []  # fmt: skip

if __name__ == "__main__":
    if WHY_NOT is None:
        main(CAMPAIGNS)
    print(f"links: not possible here: {WHY_NOT}, not run")
