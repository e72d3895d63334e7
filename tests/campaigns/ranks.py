"""Ranks of which one fails, stops, is slow, lacks something or does something else, at a drawn moment."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import gc
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from campaign import Campaign, main
from forked_ranks import End, Meeting, Ranks, Told, free_port
from models import chain
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fastseq as fs

LOSS = fs.seqloss(mse_loss)
SLACK = 15.0  # on top of the time-out: 10 that are promised, 5 for a machine with other work
LONG = 20.0  # a time-out that nothing but a fault reaches
SHORT = 1.0  # one for faults that it ends

_NEW_MOUNTS, _PRIVATE, _READ_ONLY, _REMOUNT, _BIND = 0x20000, 0x44000, 1, 32, 0x1000
_LIBC = ctypes.CDLL(None, use_errno=True)

STARTS = r"threading.py\", line \d+ in wait\n.*threading.py\", line \d+ in start\n"
# What ends a rank's own process or call, where it is in it.
ENDS = ("raise", "exit", "interrupt", "os._exit", "kill")
# What makes it lack something.
LACKS = ("memory", "data", "descriptors")
DISKS = ("disk removed", "disk full", "disk read-only")
OUTSIDE = ("killed", "stopped", "terminated")
DIFFERS = ("other data", "other model", "other spec", "other time-out", "other calls", "absent")


class Mishap(Exception):  # noqa: N818
    """What a fault raises."""


@dataclasses.dataclass
class Fault:
    """What befalls a rank.

    Parameters
    ----------
    kind
        What it is.
    rank
        Who has it.
    place, count
        Where in its work it comes, and the how manieth time it is there.
    pause
        Seconds that a stop lasts.
    amount
        How many bytes or files are left to it.
    disk
        The folder of its checkpoints.
    """

    kind: str
    rank: int
    place: str
    count: int
    pause: float = 0.0
    amount: int = 0
    disk: str = ""
    me: int = -1
    seen: int = 0

    def at(self, place: str) -> None:
        """Strike if this is the place."""
        if self.me != self.rank or place != self.place:
            return
        self.seen += 1
        if self.seen == self.count:
            Told.strike()
            getattr(self, "_" + re.sub(r"\W", "_", self.kind), lambda: None)()

    def _raise(self) -> None:
        raise Mishap("drawn")

    def _exit(self) -> None:
        sys.exit(3)

    def _interrupt(self) -> None:
        raise KeyboardInterrupt

    def _os__exit(self) -> None:
        os._exit(7)

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def _slow(self) -> None:
        time.sleep(self.pause)

    def _memory(self) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        self._limit(resource.RLIMIT_AS, used + self.amount)

    def _data(self) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        self._limit(resource.RLIMIT_DATA, used + self.amount)

    def _descriptors(self) -> None:
        self._limit(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) + self.amount % 8)

    def _limit(self, which: int, most: int) -> None:
        resource.setrlimit(which, (most, resource.getrlimit(which)[1]))

    def _disk_removed(self) -> None:
        shutil.rmtree(self.disk, ignore_errors=True)

    def _disk_full(self) -> None:
        with contextlib.suppress(OSError), open(f"{self.disk}/filler", "wb", 0) as file:
            while file.write(bytes(1024)):
                pass

    def _disk_read_only(self) -> None:
        # A second mount above it: the disk itself is busy while a file is open for writing.
        _mount(self.disk, _BIND, source=self.disk)
        _mount(self.disk, _BIND | _REMOUNT | _READ_ONLY)


class Watched:
    """Data that a fault may hit when they are read."""

    def __init__(self, data: Tensor, fault: Fault) -> None:
        self._data, self._fault = data, fault
        self.shape, self.dtype = data.shape, data.dtype

    def __getitem__(self, index: Any) -> Tensor:
        self._fault.at("read")
        return self._data[index]


class Places(fs.callbacks.Callback):
    """The places of a fault that callbacks see."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def on_epoch_begin(self, run: Any) -> None:  # noqa: ARG002
        self._fault.at("epoch begins")

    def on_batch_end(self, run: Any) -> None:  # noqa: ARG002
        self._fault.at("update")

    def on_epoch_end(self, run: Any) -> None:  # noqa: ARG002
        self._fault.at("epoch ends")


class InBackward(torch.autograd.Function):
    """Hands its input on, and lets a fault hit backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fault: Fault) -> Tensor:
        ctx.fault = fault
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.fault.at("backward")
        return grad, None


def data() -> tuple[Tensor, Tensor]:
    """Return inputs and targets, the same on all ranks."""
    x = torch.randn(11, 9, 3, generator=torch.Generator().manual_seed(7))
    return x, x.mean(2, keepdim=True).roll(1, 0)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Dropout(0.2), nn.Linear(40, 1))


@dataclasses.dataclass
class Work:
    """What each rank does.

    Parameters
    ----------
    kind
        ``"native"``: fit in C++; ``"own"``: fit with a loss of one's own; ``"buckets"``: a loop of
        one's own; ``"calls"``: collective calls.
    fault
        What happens meanwhile.
    options
        More that is drawn: of fit, of a Bucketizer.
    """

    kind: str
    fault: Fault
    options: dict[str, Any]

    def __call__(self, rank: int) -> Tensor:
        fault = self.fault
        fault.me = rank
        fault.at("start")
        if fault.kind == "absent" and rank == fault.rank:
            Told.strike()
            os._exit(0)
        if fault.kind == "other time-out" and rank == fault.rank:
            fs.distributed.Communicator.__init__.__kwdefaults__["timeout"] += 1
        fs.distributed.world()
        fault.at("met")
        torch.manual_seed(0)
        done = {"buckets": self._loop, "calls": self._calls}.get(self.kind, self._fit)()
        fault.at("end")
        return done

    def _differs(self, kind: str) -> bool:
        return self.fault.kind == kind and self.fault.me == self.fault.rank

    def _model(self) -> nn.Module:
        if self._differs("other model"):
            return chain(hidden=5)
        return perceptron() if self.options["perceptron"] else chain()

    def _loss(self, m: Any, xs: Tensor, ys: Tensor) -> Tensor:
        self.fault.at("loss")
        out = InBackward.apply(m(xs), self.fault)
        return (out - ys).square().mean()

    def _fit(self) -> Tensor:
        x, y = data()
        if self._differs("other data"):
            x, y = x[:-1], y[:-1]
        spec = {"epochs": 2, "batchsize": 2, "seqsize": 5, **self.options["spec"]}
        if self._differs("other spec"):
            spec["batchsize"] = 1
        checkpoint = None
        if self.options["every"]:
            every = self.options["every"]
            checkpoint = fs.callbacks.Checkpoint(self.fault.disk, every_updates=every)
        est = fs.Estimator(
            self._model(), LOSS if self.kind == "native" else self._loss,
            lambda params: torch.optim.AdamW(params, lr=1e-2), spec,
            callbacks=[Places(self.fault)], seed=1, progress=False,
        )  # fmt: skip
        held = Watched(x, self.fault) if self.options["watched"] else x
        est.fit(held, y, checkpoint=checkpoint, validation=self.options["validation"])
        self.fault.at("trained")
        if self._differs("other calls"):
            est.fit(x, y)
        out = est.predict(Watched(x, self.fault) if self.options["watched"] else x)
        return torch.cat([fs.net2vec(est.model).detach(), torch.as_tensor(out).flatten()])

    def _loop(self) -> Tensor:
        """Do as somebody does who has a loop of their own."""
        x, y = data()
        fault = self.fault
        model = self._model()
        buckets = fs.distributed.Bucketizer(model, bucket_bytes=self.options["bucket_bytes"])
        sgd = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(6 if self._differs("other calls") else 5):
            sgd.zero_grad()
            out = model(x[:, fault.me :: 4])
            out = out[0] if isinstance(out, tuple) else out
            fault.at("loss")
            loss = (InBackward.apply(out, fault) - y[:, fault.me :: 4]).square().mean()
            loss.backward()
            fault.at("update")
            buckets.wait()
            sgd.step()
        return fs.net2vec(model).detach()

    def _calls(self) -> Tensor:
        """Make the collective calls that there are, in a drawn order."""
        comm, rng = fs.distributed.world(), random.Random(self.options["calls"])  # noqa: S311
        found = []
        for _ in range(12 if self._differs("other calls") else 11):
            kind = rng.choice(["sum", "mean", "broadcast", "barrier", "shared", "agree", "another"])
            numel = rng.choice([1, 7, 300, 5000, 200_000])
            self.fault.at("update")
            own = torch.arange(numel, dtype=torch.float32).add(comm.rank).sin()
            if kind in ("sum", "mean"):
                comm.allreduce_(own, kind)
            elif kind == "broadcast":
                comm.broadcast_(own, rng.randrange(comm.size))
            elif kind == "barrier":
                comm.barrier()
            elif kind == "agree":
                comm.agree("a number", str(numel))
            elif kind == "another":
                comm.duplicate().allreduce_(own)
            else:
                own = comm.allreduce_(comm.allocate(numel).copy_(own)).clone()
            if kind not in ("barrier", "agree"):
                found.append(own)
        return torch.cat(found)


def draw(number: int, folder: Path) -> tuple[Meeting, Work, dict[str, Any]]:
    """Return how ranks meet, what they do, and how the case watches them."""
    rng = random.Random(number)  # noqa: S311
    size = rng.choice([2, 2, 2, 3, 3, 4])
    transport, per_node = rng.choice(
        [("auto", None), ("shm", None), ("gloo", None), ("auto", 1), ("auto", 2), ("hierarchy", 1),
         ("hierarchy", 2)]
    )  # fmt: skip
    kind = rng.choice(["native", "own", "own", "buckets", "calls"])
    fit = kind in ("native", "own")
    differs = DIFFERS if fit else DIFFERS[1:2] + DIFFERS[3:] if kind == "buckets" else DIFFERS[3:]
    groups = [ENDS, ENDS, LACKS, OUTSIDE, ("stop",), ("slow",), differs, *([DISKS] if fit else [])]
    fault_kind = rng.choice(rng.choice(groups))
    places = ["start", "met", "update", "end"]
    if kind != "calls":
        places += ["loss", "backward"] if kind != "native" else []
    if fit:
        places += ["read", "epoch begins", "epoch ends", "trained"]
    long = fault_kind in ("stop", "slow", "stopped") and rng.random() < 0.25
    unreaped = fault_kind in ("os._exit", "kill", "killed") and rng.random() < 0.2
    place = rng.choice(places)
    ended = fault_kind in (*ENDS, "killed", "terminated", "absent", "other time-out")
    timeout = SHORT if long or unreaped else 3 * SHORT if ended else LONG
    fault = Fault(
        fault_kind, rng.randrange(size), place, rng.choice([1, 1, 2, 3, 5]),
        pause=rng.uniform(SHORT + 0.5, SHORT + 2) if long else rng.uniform(0.02, 0.3),
        amount=rng.randrange(rng.choice([1 << 18, 1 << 22, 1 << 25])), disk=str(folder / "disk"),
    )  # fmt: skip
    saves = fault_kind in DISKS or (fit and rng.random() < 0.3)
    options = {
        "perceptron": rng.random() < 0.5, "watched": place == "read" or rng.random() < 0.2,
        "every": rng.randint(1, 4) if saves else 0,
        "validation": rng.choice([None, None, 0.3]), "bucket_bytes": rng.choice([64, 400, 1 << 20]),
        "calls": number,
        "spec": {"shuffle": rng.random() < 0.5, "accumulate": rng.choice([1, 1, 2])},
    }  # fmt: skip
    how = {
        "catches": rng.random() < 0.8, "reap": not unreaped, "at": rng.uniform(0, 0.5),
        "gone": long and rng.random() < 0.4, "long": long, "blocks": rng.choice([4, 16, 64, 256]),
    }  # fmt: skip
    meeting = Meeting(size, transport, per_node, timeout, hosted=rng.random() < 0.5)
    return meeting, Work(kind, fault, options), how


def _mount(folder: str, flags: int, options: str = "", source: str = "none") -> None:
    done = _LIBC.mount(source.encode(), folder.encode(), b"tmpfs", flags, options.encode())
    if done != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount {folder}")


def own_disk(folder: Path, blocks: int) -> None:
    """Give this process and its children a small disk of their own."""
    if _LIBC.unshare(_NEW_MOUNTS) != 0:
        raise OSError(ctypes.get_errno(), "cannot have mounts of its own")
    if _LIBC.mount(b"none", b"/", None, _PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "cannot make mounts private")
    _mount(str(folder), 0, f"size={4 * blocks}k")


def watch(ranks: Ranks, meeting: Meeting, fault: Fault, how: dict[str, Any]) -> list[End]:
    """Do from outside what is to be done, and wait for all that live to end."""
    signals = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "terminated": signal.SIGTERM}
    pending = signals.get(fault.kind)
    goes_on: float | None = None
    lasting = max(how["at"], fault.pause) + meeting.timeout + SLACK
    while living := ranks.living:
        now = time.monotonic() - ranks.start
        stopped = ranks.poll(reap=how["reap"] or pending is not None)
        if pending is not None and now > how["at"]:
            ranks.send(fault.rank, pending)
            pending = None
        if stopped and goes_on is None:
            goes_on = now + fault.pause
        if stopped and how["gone"] and ranks.living == {fault.rank}:
            break
        if stopped and goes_on is not None and now > goes_on and not how["gone"]:
            ranks.send(fault.rank, signal.SIGCONT)
        if now > lasting:
            stacks = ranks.stacks()
            # Python waits for ever for a thread that had no memory to begin (3.11 does).
            if living == {fault.rank} and fault.kind in LACKS and re.search(STARTS, stacks):
                break
            raise AssertionError(f"a hang: ranks {living} live after {now:.1f} s\n{stacks}")
        time.sleep(0.002)
    return ranks.finish()


def case(number: int, folder: Path) -> str:
    """Let ranks work while something happens to one, and judge how all of them end."""
    meeting, work, how = draw(number, folder)
    fault = work.fault
    print(meeting, work, how, sep="\n", flush=True)
    disk = Path(fault.disk)
    disk.mkdir()
    if fault.kind in ("disk full", "disk read-only"):
        try:
            own_disk(disk, how["blocks"] if fault.kind == "disk full" else 4096)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES):
                raise
            return f"{fault.kind}: not possible here"
    port = free_port(number)
    ranks = Ranks(meeting, work, folder / "ranks", catches=how["catches"], port=port)
    ends = watch(ranks, meeting, fault, how)
    for rank, end in enumerate(ends):
        print(f"rank {rank}: {dataclasses.replace(end, printed=end.printed[-1000:])}", flush=True)
    well = {end.transport for end in ends if end.bits}
    reference = {transport: undisturbed(work, meeting, transport, folder) for transport in well}
    return judge(work, how, ends, reference)


def undisturbed(work: Work, meeting: Meeting, transport: str, folder: Path) -> str:
    """Return the bits of the same work without a fault."""
    fault = dataclasses.replace(work.fault, kind="none", disk=str(folder / "another"), me=-1)
    os.mkdir(fault.disk)
    if meeting.transport == "auto" and transport == "gloo":  # for want of memory to share
        meeting = dataclasses.replace(meeting, transport=transport)
    meeting = dataclasses.replace(meeting, timeout=60.0)
    work = dataclasses.replace(work, fault=fault)
    ends = Ranks(meeting, work, folder / "undisturbed").undisturbed()
    bits = {end.bits for end in ends}
    assert len(bits) == 1, ends
    assert bits != {""}, ends
    assert {end.transport for end in ends} == {transport}, ends
    return bits.pop()


def judge(work: Work, how: dict[str, Any], ends: list[End], reference: dict[str, str]) -> str:
    """Return what the case was; raise if a promise is broken."""
    fault = work.fault
    struck = any(end.struck for end in ends)
    for rank, end in enumerate(ends):
        if end.bits:
            assert end.bits == reference[end.transport], f"rank {rank} has other bits"
        elif end.error:
            assert tells(fault, end.error, victim=rank == fault.rank), f"rank {rank}: {end.error}"
        else:
            assert may_say_nothing(work, rank, end), f"rank {rank} died of {end.status}"
    well = sum(bool(end.bits) for end in ends)
    if fault.kind in ENDS and struck and fault.place != "end":
        assert not well, "ranks went on without one"
    harmless = fault.kind in ("stop", "slow", "stopped") and not how["long"]
    if harmless or not (struck or fault.kind in (*OUTSIDE, *DIFFERS, *DISKS)):
        assert well == len(ends), "nothing has happened that would stop them"
    if fault.kind in DIFFERS and fault.kind != "other calls":
        assert not well, "ranks that differ went on"
    found = "same bits" if well == len(ends) else "errors" if not well else "some errors"
    return f"{fault.kind}: {found}"


# What a rank says of a fault of its own.
OWN = {
    "raise": "^(Mishap|ReadError: x could not be read at .*): drawn$", "exit": r"^SystemExit\(3\)$", "interrupt": "^KeyboardInterrupt",
    "memory": r"memory|alloc|create a primitive|new thread|unavailable",
    "data": r"memory|alloc|create a primitive|new thread|unavailable",
    "descriptors": "Too many open files",
}  # fmt: skip
# What ranks say that have lost another one, apart from its number.
LOST = (
    r"rank \d+ has exited|the connection to .* is lost; has that ended|waited \S+ s for the others|"
    r"it cannot connect to (the others|rank)|cannot meet the others at|where the ranks meet, gives no|rank \d+ waited"
)


def tells(fault: Fault, error: str, *, victim: bool) -> bool:
    """Return whether an error tells its cause."""
    if victim and re.search(OWN.get(fault.kind, "$^"), error):
        return True
    if fault.kind in DISKS and re.search(
        r"^(\w+Error|RemoteError: rank \d+ failed: \w+Error): .*checkpoint", error
    ):
        return True
    if fault.kind in LACKS and re.search(
        "^CommunicationError: .* the machine has none left", error
    ):
        return True
    if fault.kind in DIFFERS and re.search("^ValueError: .*(differs? between|different)", error):
        return f"rank {fault.rank}" in error
    if not error.startswith(("CommunicationError: ", "RemoteError: ")):
        return False
    return f"rank {fault.rank}" in error or re.search(LOST, error) is not None


def may_say_nothing(work: Work, rank: int, end: End) -> bool:
    """Return whether a rank may have ended without a word."""
    kind = work.fault.kind
    if kind == "terminated" and work.options["every"]:
        return end.status == -signal.SIGTERM  # all save then, and end
    statuses = {
        "os._exit": 7, "kill": -signal.SIGKILL, "killed": -signal.SIGKILL, "absent": 0,
        "terminated": -signal.SIGTERM, "stop": -signal.SIGKILL, "stopped": -signal.SIGKILL,
        "memory": -signal.SIGKILL, "data": -signal.SIGKILL,  # it hung, see `watch`
    }  # fmt: skip
    return rank == work.fault.rank and end.status == statuses.get(kind)


def _warm() -> None:
    """Import what is imported on first use."""
    torch.set_num_threads(1)
    x, y = data()
    for model in (chain(), perceptron()):
        for loss in (LOSS, lambda m, xs, ys, ws=None: (m(xs) - ys).square().mean()):
            spec = {"epochs": 1, "batchsize": 2, "seqsize": 5}
            est = fs.Estimator(model, loss, torch.optim.AdamW, spec, comm=None, progress=False)
            with tempfile.TemporaryDirectory() as folder:
                est.fit(x, y, validation=0.3, checkpoint=folder).predict(x)
    gc.freeze()


CAMPAIGNS = [
    Campaign(
        "ranks", case, wanted=10_000, limit=90.0,
        promise="whatever happens to a rank, each surviving rank stops in time: with an error that "
        "names the cause, or with the same bits as an undisturbed run",
    )
]  # fmt: skip
_warm()

if __name__ == "__main__":
    main(CAMPAIGNS)
