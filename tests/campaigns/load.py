"""Files that other processes change while they are read, and many calls at the same time."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from campaign import Campaign, main
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fastseq as fs

torch.set_num_threads(1)
warnings.simplefilter("ignore")
LOSS = fs.seqloss(mse_loss)
STEPS, COUNT, FEATURES = 240, 6, 8

# --- files that change ---------------------------------------------------------------------------


class Same(nn.Module):
    """A model whose output is its input: predictions show what has been read."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))
        self.first_call = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.first_call = self.first_call or time.time()
        return x * self.one


def same() -> fs.Estimator:
    spec = {"epochs": 2, "batchsize": 2, "seqsize": 20}
    model = Same()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return fs.Estimator(model, LOSS, optimizer, spec, progress=False, device="cpu", comm=None)


same().fit(torch.zeros(4, 2, 1), torch.zeros(4, 2, 1))  # imports what cases need, once


def values(version: int, shape: tuple[int, ...] = (STEPS, COUNT, FEATURES)) -> np.ndarray:
    """Return numbers that tell in each place which version of the file they are from."""
    places = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return np.asarray(places % 1000 + 1000 * (version + 1), np.float32)


STORES = ("contiguous", "chunked", "compressed", "group", "npy", "fortran")


def write(path: Path, store: str, version: int) -> None:
    """Write a file at once."""
    x = values(version)
    if store in ("npy", "fortran"):
        with path.open("wb") as file:
            np.save(file, np.asfortranarray(x) if store == "fortran" else x)
        return
    with h5py.File(path, "w", locking=False) as file:
        if version % 2:
            file["before"] = np.zeros(100 * version)  # the data are at another place in the file
        if store == "group":
            for n in range(COUNT):
                file[f"x/{n}"] = x[:, n]
        else:
            options: Any = {"chunks": (50, 2, FEATURES)} if store != "contiguous" else {}
            if store == "compressed":
                options["compression"] = "gzip"
            file.create_dataset("x", data=x, **options)


def opened(path: Path, store: str, way: str, stack: contextlib.ExitStack) -> Any:
    """Return the data, opened in some way."""
    if store in ("npy", "fortran"):
        mapped = np.load(path, mmap_mode="r")
        return mapped if way == "mapped" else mapped[:, :, ::-1]
    if way == "mapped" and store != "group":
        return fs.h5mmap(path, "x")
    return stack.enter_context(h5py.File(path, locking=False))["x"]


class Changes:
    """What another process does to a file, at drawn moments."""

    def __init__(self, draw: random.Random, path: Path, store: str) -> None:
        self._draw, self._path, self._store = draw, path, store
        self.kind: str = draw.choice(
            ["replaced", "truncated", "appended", "removed", "written", "moved", "rewritten"]
        )
        self._times = path.with_name("times")
        self._delays = [draw.uniform(0, 0.03) for _ in range(draw.randint(1, 3))]

    def start(self) -> int:
        """Fork the process that does it."""
        child = os.fork()
        if not child:
            try:
                for version, delay in enumerate(self._delays, 1):
                    time.sleep(delay + _TICK)
                    begin = time.time()
                    try:
                        self._change(version)
                    finally:
                        with self._times.open("a") as file:
                            file.write(f"{begin} {time.time()}\n")
            except OSError:
                pass  # it is gone already
            finally:
                os._exit(0)
        return child

    def happened(self, begin: float, end: float) -> bool:
        """Whether something was changed in this time; call it when there are no more changes."""
        lines = self._times.read_text().splitlines() if self._times.exists() else []
        spans = [[float(number) for number in line.split()] for line in lines]
        return any(start < end and begin < stop for start, stop in spans)

    def _change(self, version: int) -> None:
        path, kind = self._path, self.kind
        if kind in ("replaced", "moved"):
            new = path.with_suffix(".new")
            write(new, self._store, version)
            if kind == "moved":
                path.rename(path.with_suffix(f".{version}"))
            new.replace(path)
        elif kind == "truncated":
            os.truncate(path, self._draw.randrange(path.stat().st_size))
        elif kind == "appended":
            with path.open("ab") as file:
                file.write(bytes(self._draw.randrange(1, 10_000)))
        elif kind == "removed":
            path.unlink()
        elif kind == "written":
            with path.open("r+b") as file:
                file.seek(self._draw.randrange(path.stat().st_size) // 8 * 8)
                file.write(values(version).tobytes()[: 4 * self._draw.randrange(1, 5000)])
        else:
            write(path, self._store, version)


_TICK = 0.01  # seconds after which the time of a change certainly differs


def files(number: int, folder: Path) -> str:
    """Read a file that another process changes: what it was when it was opened, or an error."""
    draw = random.Random(number)  # noqa: S311
    path = folder / "data.file"
    store = draw.choice(STORES)
    write(path, store, 0)
    time.sleep(_TICK)
    changes = Changes(draw, path, store)
    wait = draw.choice([0.0, draw.uniform(0, 0.03)])
    way, call = draw.choice(["handle", "mapped"]), draw.choice(["predict", "predict", "fit"])
    est = same()
    child = changes.start()
    begin = 0.0
    try:
        with contextlib.ExitStack() as stack:
            time.sleep(wait)
            begin = time.time()
            return f"{changes.kind}: {read(est, path, store, way, call, changes.kind, stack)}"
    except OtherDataError:
        os.waitpid(child, 0)
        child = 0
        # A change before the first read is none, and one just before it hides those just after it.
        if changes.happened(begin - _TICK, est.model.first_call):
            return f"{changes.kind}: read while its time could not tell"
        raise
    finally:
        if child:
            os.waitpid(child, 0)


class OtherDataError(Exception):
    """What was read is none of what the file held before and after its changes."""


def read(
    est: fs.Estimator,
    path: Path,
    store: str,
    way: str,
    call: str,
    kind: str,
    stack: contextlib.ExitStack,
) -> str:
    """Open and read; return how it ended, or raise if that is not as promised."""
    try:
        x = opened(path, store, way, stack)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        if ours(error) and path.name not in str(error):
            raise
        return "not opened"
    copy = snapshot(path)
    try:
        if call == "predict":
            found = as_array(est.predict(x), store)
        else:
            found = est.fit(x, targets(store)).history_[-1]["loss"]
    except (fs.ReadError, ValueError, OSError) as error:
        if path.name not in str(error):
            raise
        return type(error).__name__
    except (fs.NonFiniteError, fs.DivergedError):
        # What is written anywhere into a file may make it hold such numbers.
        if kind not in ("written", "rewritten", "truncated"):
            raise
        return "not finite"
    wanted = [values(version) for version in range(4)]
    with contextlib.suppress(Exception), contextlib.ExitStack() as own:
        wanted.append(as_array(opened(copy, store, "handle", own), store).copy())
    if way == "handle" and store in ("npy", "fortran"):
        wanted = [*[w[:, :, ::-1] for w in wanted[:4]], *wanted[4:]]
    if call == "predict":
        if any(np.array_equal(found, one, equal_nan=True) for one in wanted):
            return "read"
    elif any(np.isclose(found, (one.astype(float) ** 2).mean(), rtol=1e-5) for one in wanted):
        return "read"
    raise OtherDataError(f"{store}, {way}, {call}")


def snapshot(path: Path) -> Path:
    """Copy a file, as far as it is there."""
    copy = path.with_suffix(".copy")
    copy.write_bytes(b"")
    with contextlib.suppress(OSError):
        copy.write_bytes(path.read_bytes())
    return copy


def as_array(data: Any, store: str) -> np.ndarray:
    if store == "group":
        rows = [data[str(n)] for n in range(COUNT)] if isinstance(data, h5py.Group) else data
        return np.stack([np.asarray(row) for row in rows], 1)
    return np.asarray(data)


def targets(store: str) -> Any:
    zeros = np.zeros((STEPS, COUNT, FEATURES), np.float32)
    return [*zeros.transpose(1, 0, 2).copy()] if store == "group" else zeros


def ours(error: BaseException) -> bool:
    """Whether fastseq raised it, rather than h5py or NumPy when the campaign called these."""
    trace = error.__traceback__
    while trace is not None:
        if "python/fastseq" in trace.tb_frame.f_code.co_filename:
            return True
        trace = trace.tb_next
    return False


# --- many at a time ------------------------------------------------------------------------------


def ready_for_threads() -> None:
    """Renew PyTorch's pool of threads, as threads that do so together in a forked process fail."""
    torch.set_num_threads(1)


def untrained(seed: int) -> fs.Estimator:
    torch.manual_seed(seed)
    model = fs.nn.Chain(nn.LSTM(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))
    spec = {"epochs": 2, "batchsize": 4, "seqsize": 10}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return fs.Estimator(
        model, LOSS, optimizer, spec, progress=False, device="cpu", comm=None, seed=seed
    )


def trained(est: fs.Estimator, x: Tensor) -> Tensor:
    """Fit a small model, and return its weights."""
    est.fit(x, x[..., :1])
    return fs.net2vec(est.model).detach()


SIDE_BY_SIDE = 64


def side_by_side(number: int, folder: Path) -> str:
    """Run 64 fits at a time, in threads or processes: bits as alone, in linear time."""
    ready_for_threads()
    draw = random.Random(number)  # noqa: S311
    x = torch.randn(20, 8, 3, generator=torch.Generator().manual_seed(number))
    trained(untrained(0), x)
    begin = time.process_time()
    alone = [trained(untrained(seed), x) for seed in range(4)]
    each = (time.process_time() - begin) / 4
    how = draw.choice(["threads", "processes"])
    models = [untrained(n % 4) for n in range(SIDE_BY_SIDE)]
    begin, children = time.process_time(), os.times().children_user
    if how == "threads":
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            found = [*pool.map(lambda est: trained(est, x), models)]
    else:
        processes = [os.fork() or _save(trained(models[n], x), folder / f"{n}.pt")
                     for n in range(SIDE_BY_SIDE)]  # fmt: skip
        assert not any(os.waitpid(child, 0)[1] for child in processes)
        found = [torch.load(folder / f"{n}.pt") for n in range(SIDE_BY_SIDE)]
    spent = time.process_time() - begin + os.times().children_user - children
    wrong = [n for n, one in enumerate(found) if not torch.equal(one, alone[n % 4])]
    assert not wrong, f"other weights than alone: {wrong}"
    assert spent < 5 * SIDE_BY_SIDE * each + 1, f"{spent:.2f} s of work, {each:.4f} s alone"
    return how


def _save(weights: Tensor, path: Path) -> int:
    torch.save(weights, path)
    os._exit(0)


def shared(number: int, folder: Path) -> str:
    """Use one estimator from several threads at once: what each would get alone, or an error."""
    ready_for_threads()
    kinds = (two_fits, eight_predicts, two_outputs)
    kind = kinds[number % len(kinds)]
    return f"{kind.__name__}: {kind(random.Random(number), folder)}"  # noqa: S311


def one_estimator(draw: random.Random, x: Tensor) -> fs.Estimator:
    torch.manual_seed(draw.getrandbits(32))
    model = fs.nn.Chain(draw.choice([nn.LSTM, nn.GRU])(3, 4), nn.Linear(4, 1))
    spec = {"epochs": 3, "batchsize": 4, "seqsize": 10}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    est = fs.Estimator(
        model, LOSS, optimizer, spec, progress=False, device="cpu", comm=None, seed=1
    )
    return est.fit(x, x[..., :1])


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    """Make calls at the same time; return what each returned or raised."""
    together = threading.Barrier(len(calls))

    def work(call: Callable[[], Any]) -> Any:
        together.wait(30)
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return [*pool.map(work, calls)]


def two_fits(draw: random.Random, _: Path) -> str:
    x = torch.randn(60, 8, 3, generator=torch.Generator().manual_seed(draw.getrandbits(32)))
    est, wanted = one_estimator(random.Random(0), x), one_estimator(random.Random(0), x)  # noqa: S311
    after = [fs.net2vec(wanted.fit(x, x[..., :1]).model).clone() for _ in range(2)]
    sys.setswitchinterval(draw.choice([1e-6, 1e-4, 5e-3]))
    delay = draw.choice([0.0, draw.uniform(0, 0.01)])
    found = in_threads(
        [lambda: est.fit(x, x[..., :1]), lambda: (time.sleep(delay), est.fit(x, x[..., :1]))[1]]
    )
    refused = [one for one in found if isinstance(one, Exception)]
    assert all(isinstance(one, fs.BusyError) for one in refused), found
    assert len(refused) < 2, found
    assert torch.equal(fs.net2vec(est.model), after[1 - len(refused)])
    return "refused" if refused else "one after the other"


def eight_predicts(draw: random.Random, folder: Path) -> str:
    x = torch.randn(40, 8, 3, generator=torch.Generator().manual_seed(draw.getrandbits(32)))
    est = one_estimator(draw, x)
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = x
        file.create_dataset("packed", data=x, chunks=(10, 2, 3), compression="gzip")
    wanted = est.predict(x)
    names = [draw.choice(["", "x", "packed"]) for _ in range(8)]
    sys.setswitchinterval(draw.choice([1e-6, 1e-4, 5e-3]))
    found = in_threads(
        [(lambda n=name: est.predict(fs.h5mmap(folder / "x.h5", n) if n else x)) for name in names]
    )
    for one in found:
        if isinstance(one, Exception):
            raise one
        np.testing.assert_array_equal(one, wanted)
    return "whole"


def two_outputs(draw: random.Random, folder: Path) -> str:
    """Predict into the same file: each refused or whole, and the file holds one of them."""
    kind = draw.choice(["map", "chunked", "handle"])
    x = torch.randn(40, 8, 3, generator=torch.Generator().manual_seed(draw.getrandbits(32)))
    est = one_estimator(draw, x)
    wanted = [est.predict(x), est.predict(-x)]
    path = folder / "out.h5"
    with h5py.File(path, "w") as file:
        chunks = None if kind == "map" else (10, 2, 1)
        file.create_dataset("out", wanted[0].shape, np.float32, chunks=chunks)
    with contextlib.ExitStack() as stack:
        if kind == "handle":
            handle = stack.enter_context(h5py.File(path, "r+"))["out"]
            outs = [handle, handle]
        else:
            outs = [fs.h5mmap(path, "out", mode="r+") for _ in range(2)]
        found = in_threads(
            [lambda: est.predict(x, out=outs[0]), lambda: est.predict(-x, out=outs[1])]
        )
    with h5py.File(path) as file:
        left = file["out"][()]
    refused = [one for one in found if isinstance(one, Exception)]
    assert all(isinstance(one, fs.BusyError) for one in refused), refused
    whole = [np.array_equal(left, one) for one in wanted]
    assert any(whole), f"{kind}: a mixture of two predictions, {refused}"
    return f"{kind}, {len(refused)} refused"


CAMPAIGNS = [
    Campaign(
        "load-files", files, 20_000, 60,
        "Data that another process replaces, truncates, extends, removes or writes to are read as "
        "they were when they were opened, or an error names the file.",
    ),
    Campaign(
        "load-side-by-side", side_by_side, 200, 300,
        "64 fits at a time, in threads or processes, end with the bits of each alone.",
    ),
    Campaign(
        "load-shared", shared, 3000, 60,
        "One estimator in several threads gives each what it would get alone, or is refused.",
    ),
]  # fmt: skip

if __name__ == "__main__":
    main(CAMPAIGNS)
