"""What writes files is killed at any moment: the old file is there, or the new one, and whole."""

from __future__ import annotations

import functools
import os
import random
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import h5py
import numpy as np
import torch
from campaign import Campaign, main
from forecasting import quick, wave
from interrupted import LOSS, chain, seed_all
from killing import Moment, arm, ended, in_process

import fastseq as fs
from fastseq.sklearn import SequenceForecaster


class Target:
    """A file of which there are versions: that number `n` holds `n` in all places.

    Parameters
    ----------
    folder
        Where it is.
    draw
        What decides on its size.
    """

    name = "data.h5"

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.path = folder / self.name
        self.size = int(10 ** draw.uniform(0.5, 5))
        self.draw(draw)

    def draw(self, draw: random.Random) -> None:
        """Draw more."""

    def prepare(self, version: int) -> None:
        """Make what is not watched."""

    def write(self, version: int) -> None:
        """Write a version."""
        raise NotImplementedError

    def read(self) -> int:
        """Return which version there is; raise if it is none."""
        raise NotImplementedError

    def found(self) -> int:
        """Return which version there is; 0: none."""
        return self.read() if self.path.exists() else 0


def only(values: Any) -> int:
    """Return the one value of an array."""
    values = np.asarray(values)
    assert (values == values.flat[0]).all(), values
    return int(values.flat[0])


class Saved(Target):
    """Written by `h5save`."""

    def write(self, version: int) -> None:
        fs.h5save(self.path, self._tree(version))

    def read(self) -> int:
        tree = fs.h5load(self.path)
        version = only(tree["x"])
        assert tree["x"].shape == (self.size,)
        assert only(tree["more"]["y"][1]) == version
        assert tree["more"]["name"] == f"version {version}"
        return version

    def _tree(self, version: int) -> dict[str, Any]:
        more = {"name": f"version {version}", "y": [None, torch.full((30,), version)]}
        return {"x": np.full(self.size, float(version)), "more": more}


class Joined(Target):
    """Written by `h5concat`."""

    def draw(self, draw: random.Random) -> None:
        self._virtual = draw.random() < 0.4
        self._axis = draw.choice([0, 1])
        self._sources = self.path.parent.with_name("sources")
        self._sources.mkdir()

    def prepare(self, version: int) -> None:
        for part in range(3):
            x = np.full((self.size // 3 + 1, 2, 1), version, np.float32)
            tree = {"x": x, "kept": np.full(3, version)}
            fs.h5save(self._sources / f"{version}-{part}.h5", tree)

    def write(self, version: int) -> None:
        pattern = f"{self._sources}/{version}-*.h5"
        fs.h5concat(self.path, pattern, self._axis, virtual=self._virtual, progress=False)

    def read(self) -> int:
        with h5py.File(self.path) as file:
            version = only(file["x"])
            assert only(file["kept"]) == version
            assert file["x"].size == 6 * (self.size // 3 + 1)
        return version


class SavedEstimator(Target):
    """Written by `Estimator.save`."""

    name = "model.safetensors"

    def write(self, version: int) -> None:
        seed_all()
        est = fs.Estimator(
            chain(int(self.size**0.5) // 3 + 2), LOSS, torch.optim.AdamW,
            {"epochs": 1, "batchsize": 3, "seqsize": 5}, comm=None, progress=False,
        )  # fmt: skip
        fill(est.model, version)
        est.save(self.path)

    def read(self) -> int:
        return version_of(fs.Estimator.load(self.path, comm=None).model)


class SavedForecaster(Target):
    """Written by `SequenceForecaster.save`."""

    name = "forecaster.safetensors"

    def write(self, version: int) -> None:
        forecaster = fitted()
        fill(forecaster.estimator_.model, version)
        forecaster.save(self.path)

    def read(self) -> int:
        return version_of(SequenceForecaster.load(self.path, comm=None).estimator_.model)


@functools.cache
def fitted() -> SequenceForecaster:
    return quick(epochs=1, comm=None, module="lstm").fit(list(wave(60, 2)))


def fill(model: torch.nn.Module, version: int) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(version)


def version_of(model: torch.nn.Module) -> int:
    return only(torch.cat([p.detach().flatten() for p in model.parameters()]))


class Predicted(Target):
    """Written by ``predict(out=…)``, into a file that is there: all in its places, or not yet.

    Another dataset of the file stays as it is.
    """

    def draw(self, draw: random.Random) -> None:
        self._steps, self._count = draw.randint(20, 60), max(self.size // 30, 1)
        self.kind = draw.choice(["array", "dataset", "dataset", "lazy", "ragged", "chunked"])
        self._chunk = draw.choice([3, 20, 100])
        if self.kind == "array":
            self.path = self.path.with_name("data.npy")
        if self.kind == "ragged":
            self._count = min(self._count, 30)
        self._lengths = [draw.randint(1, self._steps) for _ in range(self._count)]
        self._lengths[0] = self._steps

    def prepare(self, version: int) -> None:
        shape = self._steps, self._count, 1
        if version > 1:
            return
        if self.kind == "array":
            np.save(self.path, np.full(shape, np.nan, np.float32))
            return
        with h5py.File(self.path, "w") as file:
            file["other"] = np.arange(1000)
            if self.kind == "ragged":
                for n, length in enumerate(self._lengths):
                    file.create_dataset(f"y/{n}", (length, 1), "f4", fillvalue=np.nan)
            else:
                chunks = (5, 2, 1) if self.kind == "chunked" else None
                chunks = chunks and tuple(map(min, chunks, shape))
                file.create_dataset("y", shape, "f4", fillvalue=np.nan, chunks=chunks)
                if self.kind == "lazy":
                    file["y"][:] = np.nan

    def _predict(self, out: Any) -> Any:
        torch.manual_seed(1)
        spec = {"epochs": 1, "batchsize": 50, "seqsize": self._chunk}
        est = fs.Estimator(chain(), LOSS, torch.optim.SGD, spec, comm=None, progress=False)
        x: Any = torch.randn(
            self._steps, self._count, 3, generator=torch.Generator().manual_seed(2)
        )
        if self.kind == "ragged":
            x = [x[:length, n] for n, length in enumerate(self._lengths)]
        return est.predict(x, out=out)

    def write(self, version: int) -> None:  # noqa: ARG002
        if self.kind == "array":
            self._predict(np.load(self.path, mmap_mode="r+"))
        elif self.kind == "lazy":
            self._predict(fs.h5mmap(self.path, "y", mode="r+"))
        else:
            with h5py.File(self.path, "r+") as file:
                self._predict(file["y"])

    def read(self) -> int:
        """Return 1 if all is written, 0 if there are only parts."""
        wanted = self._predict(None)
        if self.kind == "array":
            return self._compare(wanted, np.load(self.path))
        with h5py.File(self.path) as file:
            np.testing.assert_array_equal(file["other"], np.arange(1000))
            if self.kind == "ragged":
                pairs = [(one, file[f"y/{n}"][()]) for n, one in enumerate(wanted)]
                return min(self._compare(*pair) for pair in pairs)
            return self._compare(wanted, file["y"][()])

    def _compare(self, wanted: Any, found: Any) -> int:
        left = np.isnan(found)
        np.testing.assert_array_equal(found[~left], np.asarray(wanted)[~left])
        return int(not left.any())


KINDS = {
    "h5save": Saved, "h5concat": Joined, "Estimator.save": SavedEstimator,
    "SequenceForecaster.save": SavedForecaster, "predict(out=…)": Predicted,
}  # fmt: skip


def draw_moment(draw: random.Random, size: int) -> Moment:
    how = draw.choice(["time", "time", "call", "size"])
    if how == "time":
        number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        return Moment(how, number, draw.uniform(0, 1.1))
    if how == "size":
        # In the middle of no number: the system ends the writes of killed processes at pages.
        return Moment(how, signal.SIGXFSZ, draw.randint(1, size) // 8 * 8)
    name = draw.choice(["replace", "fsync", "unlink", "write"])
    return Moment(how, at=draw.choice([1, 1, 2]), name=name, after=draw.random() < 0.5)


def attempt(write: Callable[[], None], moment: Moment | None, seconds: float, orphan: bool) -> int:
    """Write, and be killed; a child may live on that was forked in the middle of it."""
    ready, is_ready = os.pipe()

    def job() -> None:
        if orphan:
            replace = os.replace

            def forking(*args: Any) -> None:
                if not os.fork():
                    time.sleep(0.2)
                    os._exit(0)
                replace(*args)

            os.replace = forking
        if moment is not None:
            arm(moment, 0)
        os.write(is_ready, b"1")
        write()

    process = in_process(job)
    os.close(is_ready)
    os.read(ready, 1)
    os.close(ready)
    if moment is not None and moment.how == "time":
        time.sleep(seconds * moment.at)
        os.kill(process, moment.signal)
    return ended([process], 30)[0]


def case(number: int, folder: Path) -> str:
    """Write a file some times, be killed in most of them, and look at it each time."""
    draw = random.Random(number)  # noqa: S311
    warnings.simplefilter("ignore")
    for name in ("data", "temporary"):
        (folder / name).mkdir()
    tempfile.tempdir = str(folder / "temporary")
    kind = draw.choice([*KINDS])
    target = KINDS[kind](folder / "data", draw)
    there = 0
    if draw.random() < 0.8:
        target.prepare(there := 1)
        if not isinstance(target, Predicted):
            target.write(1)
    start = time.perf_counter()
    measured = KINDS[kind](_other(folder), draw) if kind != "predict(out=…)" else target
    measured.prepare(1)
    if kind != "predict(out=…)":
        measured.write(1)
    seconds = time.perf_counter() - start
    size = max(path.stat().st_size for path in measured.path.parent.iterdir())
    moments, orphan = [], draw.random() < 0.1
    for version in range(2, 2 + draw.choice([1, 1, 2, 3])):
        moments.append(draw_moment(draw, size))
        target.prepare(version)
        print(kind, target.path, version, moments[-1], flush=True)
        status = attempt(functools.partial(target.write, version), moments[-1], seconds, orphan)
        check_end(status, moments[-1])
        found = target.found()
        assert isinstance(target, Predicted) or found in (there, version), (there, version, found)
        there = found
    last = 9
    target.prepare(last)
    assert attempt(functools.partial(target.write, last), None, 0, orphan=False) == 0
    assert target.found() == (1 if isinstance(target, Predicted) else last)
    assert os.listdir(target.path.parent) == [target.path.name], os.listdir(target.path.parent)
    assert not os.listdir(folder / "temporary"), os.listdir(folder / "temporary")
    if orphan:
        time.sleep(0.3)
    return f"{kind}, {moments[0]}"


def _other(folder: Path) -> Path:
    (folder / "other").mkdir()
    (folder / "other" / "data").mkdir()
    return folder / "other" / "data"


def check_end(status: int, moment: Moment) -> None:
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) in (moment.signal, signal.SIGKILL), status
    else:
        assert os.WEXITSTATUS(status) <= (moment.signal == signal.SIGINT), status


CAMPAIGNS = [
    Campaign(
        "kills-output", case, 1000, 120,
        "Each file that a killed process was writing is either the complete old version or the "
        "complete new one",
    )
]  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(1)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        for number, make in enumerate(KINDS.values()):  # PyTorch imports much when first used
            (Path(scratch) / str(number) / "data").mkdir(parents=True)
            one = make(Path(scratch) / str(number) / "data", random.Random(1))  # noqa: S311
            one.prepare(1)
            one.write(1)
            one.read()
    main(CAMPAIGNS)
