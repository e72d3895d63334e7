"""Short programs whose system calls fail, for system_calls.py.

Each has a folder. `prepare` fills it, `run` is the program and returns its result, and
`check_files` raises if a file there is half-written. A program may be run again in the same folder,
after an error or a success.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.checkpoint.format import read as read_checkpoint
from fastseq.sklearn import SequenceForecaster

T, N = 24, 4


class Fault:
    """Nothing fails; see system_calls.py."""

    report: Any = None

    def arm(self) -> None:
        """Begin to count calls."""

    def disarm(self) -> None:
        """End counting, and set `report`."""


class Stop(Exception):  # noqa: N818
    """What ends a run of fit."""


class StopAfter(fs.callbacks.Callback):
    """Ends fit after some updates."""

    def __init__(self, updates: int) -> None:
        self._updates = updates

    def on_batch_end(self, run: Any) -> None:
        if run.updates == self._updates:
            raise Stop


def estimator(*callbacks: Any, epochs: int = 2, comm: Any = None) -> fs.Estimator:
    torch.manual_seed(0)
    return fs.Estimator(
        fs.nn.Chain(fs.nn.LSTM(2, 4), nn.Linear(4, 1)), fs.seqloss(mse_loss),
        lambda p: torch.optim.AdamW(p, lr=1e-2),
        {"epochs": epochs, "batchsize": 2, "seqsize": 8}, callbacks=callbacks, progress=False,
        seed=1, comm=comm, device="cpu",
    )  # fmt: skip


def arrays(seed: int = 0, steps: int = T) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(steps, N, 2)).astype("f4")
    return x, x.cumsum(0)[..., :1]


def weights(est: fs.Estimator) -> dict[str, np.ndarray]:
    return {name: a.numpy().copy() for name, a in est.model.state_dict().items()}


def is_ours(error: BaseException) -> bool:
    """Return whether fastseq may raise an error because of the system."""
    return isinstance(error, fs.FastseqError | OSError | MemoryError)


def write_data(path: Path) -> None:
    x, y = arrays()
    with h5py.File(path, "w") as file:
        file["x"] = x
        file.create_dataset("y", data=y, chunks=(8, 2, 1))
        file.create_dataset("packed", data=x, chunks=(8, 4, 2), compression="gzip")


class Program:
    """A program that does nothing."""

    uncached = False

    def prepare(self, folder: Path) -> None:
        """Write the files that the program reads or replaces."""

    def run(self, folder: Path, fault: Fault) -> Any:
        """Arm `fault` where calls begin to count, and return the result."""
        raise NotImplementedError

    def check_files(self, folder: Path) -> None:
        """Raise if a file is half-written."""


class Fitting(Program):
    """Fits from HDF5 with checkpoints, is stopped, and resumes."""

    def prepare(self, folder: Path) -> None:
        write_data(folder / "data.h5")

    def run(self, folder: Path, fault: Fault) -> Any:
        fault.arm()
        settings = fs.callbacks.Checkpoint(folder / "run", every_updates=4)

        def fit(*callbacks: Any) -> fs.Estimator:
            x, y = (fs.h5mmap(folder / "data.h5", name) for name in ("x", "y"))
            est = estimator(*callbacks)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that an earlier checkpoint is used
                return est.fit(x, y, checkpoint=settings, resume="auto")

        with contextlib.suppress(Stop):
            fit(StopAfter(6))
        est = fit()
        return weights(est), [row["loss"] for row in est.history_]

    def check_files(self, folder: Path) -> None:
        for path in (folder / "run").glob("*.safetensors"):
            read_checkpoint(path)


class Files(Program):
    """Saves, joins and loads files, and predicts into them."""

    old: ClassVar[Any] = {"x": np.arange(5), "about": {"kind": "old"}}
    new: ClassVar[Any] = {"x": np.arange(300.0), "about": {"kind": "new", "list": [1, "a", None]}}

    def prepare(self, folder: Path) -> None:
        for day in range(2):
            fs.h5save(folder / f"day{day}.h5", {"x": arrays(day)[0]})
        for name in ("saved", "all", "links"):
            fs.h5save(folder / f"{name}.h5", self.old)
        with h5py.File(folder / "out.h5", "w") as file:
            file["straight"] = np.zeros((2 * T, N, 1), "f4")
            file.create_dataset("chunked", data=np.zeros((2 * T, N, 1), "f4"), chunks=(8, 2, 1))

    def run(self, folder: Path, fault: Fault) -> Any:
        fault.arm()
        days = [folder / f"day{day}.h5" for day in range(2)]
        fs.h5save(folder / "saved.h5", self.new)
        fs.h5concat(folder / "all.h5", days, virtual=False, progress=False)
        fs.h5concat(folder / "links.h5", days)
        found = [fs.h5load(folder / "saved.h5")]
        for source, name in (("all", "chunked"), ("links", "straight")):
            x = fs.h5mmap(folder / f"{source}.h5", "x")
            out = fs.h5mmap(folder / "out.h5", name, mode="r+")
            FITTED.predict(x, out=out)
        found += [fs.h5load(folder / f"{name}.h5") for name in ("all", "links", "out")]
        return found

    def check_files(self, folder: Path) -> None:
        joined = {"x": np.concatenate([arrays(day)[0] for day in range(2)])}
        for name, new in (("saved", self.new), ("all", joined), ("links", joined)):
            found = fs.h5load(folder / f"{name}.h5")
            assert same(found, self.old) or same(found, new), f"{name}.h5 is half-written"
        out = fs.h5load(folder / "out.h5")
        assert {a.shape for a in out.values()} == {(2 * T, N, 1)}


class Models(Program):
    """Saves and loads an estimator and a forecaster."""

    def prepare(self, folder: Path) -> None:
        estimator().fit(*arrays()).save(folder / "est")
        FORECASTER.save(folder / "forecaster")

    def run(self, folder: Path, fault: Fault) -> Any:
        x = arrays(1)[0]
        fault.arm()
        FITTED.save(folder / "est")
        est = fs.Estimator.load(folder / "est", progress=False)
        FORECASTER.save(folder / "forecaster")
        forecaster = SequenceForecaster.load(folder / "forecaster")
        return est.predict(x), forecaster.predict()

    def check_files(self, folder: Path) -> None:
        fs.Estimator.load(folder / "est")
        SequenceForecaster.load(folder / "forecaster")


class Reading(Program):
    """Predicts from contiguous, chunked and compressed files, which threads read ahead."""

    def prepare(self, folder: Path) -> None:
        write_data(folder / "data.h5")
        np.save(folder / "x.npy", arrays(2)[0])

    def run(self, folder: Path, fault: Fault) -> Any:
        fault.arm()
        data = folder / "data.h5"
        est = estimator()
        found = [est.evaluate(fs.h5mmap(data, "x"), fs.h5mmap(data, "y"))]
        found.append(FITTED.predict(fs.h5mmap(data, "packed")))
        found.append(FITTED.predict(np.load(folder / "x.npy", mmap_mode="r")))
        return found


class ReadingFromDisk(Reading):
    """The same, with nothing in the page cache."""

    uncached = True


class Ranks(Program):
    """Two ranks, as torchrun starts them, fit with a shared-memory communicator."""

    def __init__(self, faulted: int) -> None:
        self._faulted = faulted

    def run(self, folder: Path, fault: Fault) -> Any:
        """Fork the ranks, wait as torchrun does, and return or raise what the faulted one did."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        ranks = [self._start(rank, port, folder, fault) for rank in range(2)]
        statuses = _wait(ranks, folder)
        told = [_told(folder / f"rank{rank}") for rank in range(2)]
        fault.report = told[self._faulted][1] if told[self._faulted] else fault.report
        errors = [one[0] for one in told if one and isinstance(one[0], Exception)]
        for rank, status in enumerate(statuses):
            # One that is ended by the other, or by the launcher, need not tell anything.
            ended = status == -signal.SIGTERM and errors
            assert status in (0, 1) or ended, (rank, statuses, told)
            assert told[rank] or errors, (rank, statuses, told)
        suffered = told[self._faulted][0] if told[self._faulted] else None
        others = [error for error in errors if error is not suffered]
        assert all(is_ours(error) for error in others), others
        for error in [suffered, *others]:
            if isinstance(error, Exception):
                raise error
        return [one[0] for one in told if one]

    def _start(self, rank: int, port: int, folder: Path, fault: Fault) -> int:
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            os.environ |= {
                "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            told: Any = None
            try:
                told = self._train(rank, folder, fault if rank == self._faulted else Fault())
            except Exception as error:
                fault.disarm()
                told = error
            file = folder / f"rank{rank}"
            file.with_suffix(".new").write_bytes(pickle.dumps((_plain(told), fault.report)))
            file.with_suffix(".new").replace(file)
            if isinstance(told, Exception):
                sys.excepthook(type(told), told, told.__traceback__)  # ends the other rank, too
            else:
                fs.distributed.world().leave()  # as at exit
                status = 0
        finally:
            os._exit(status)

    def _train(self, rank: int, folder: Path, fault: Fault) -> Any:
        fault.arm()
        comm = fs.distributed.world()
        (folder / f"met{rank}").touch()
        found = weights(estimator(comm=comm).fit(*arrays()))
        fault.disarm()
        return found


def _plain(told: Any) -> Any:
    """Return an error without what cannot be pickled, and with its causes' texts."""
    try:
        return pickle.loads(pickle.dumps(told))  # noqa: S301
    except Exception:
        return RuntimeError(repr(told))


def _told(path: Path) -> Any:
    told = pickle.loads(path.read_bytes()) if path.exists() else None  # noqa: S301
    path.unlink(missing_ok=True)
    return told


def _wait(ranks: list[int], folder: Path) -> list[int]:
    """Wait for all ranks; like torchrun, end those that still wait to meet one that has failed."""
    statuses: dict[int, int] = {}
    while len(statuses) < len(ranks):
        for rank, process in enumerate(ranks):
            if rank in statuses or not (found := os.waitpid(process, os.WNOHANG))[0]:
                continue
            statuses[rank] = os.waitstatus_to_exitcode(found[1])
            met = all((folder / f"met{each}").exists() for each in range(2))
            if statuses[rank] and not met and 1 - rank not in statuses:
                time.sleep(0.3)
                os.kill(ranks[1 - rank], signal.SIGTERM)
        time.sleep(0.002)
    for rank in range(2):
        (folder / f"met{rank}").unlink(missing_ok=True)
    return [statuses[rank] for rank in range(2)]


FITTED = estimator(epochs=1).fit(*arrays(3))
FORECASTER = SequenceForecaster(3, season=None, epochs=1, hidden_size=4, random_state=0)
FORECASTER.fit(np.sin(np.arange(40.0)))
PROGRAMS: dict[str, Program] = {
    "fit": Fitting(), "files": Files(), "models": Models(), "reading": Reading(),
    "reading from the disk": ReadingFromDisk(), "ranks, 0 suffers": Ranks(0),
    "ranks, 1 suffers": Ranks(1),
}  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Return whether results are equal to the bit."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | torch.Tensor):
        return type(a) is type(b) and np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
    return bool(a == b)
