"""Reading chunks from HDF5 files, with a warm page cache, and what reading costs a training step.

A file is read once from the disk before it is measured: the cache then holds it in larger pieces
than after writing.

1. A contiguous dataset: a block of `Sequences.batches` beside `memcpy` of as many bytes in one
   piece, and in the rows that make a block in memory as in the file; slices by h5py; torch's
   DataLoader with two workers that slice by h5py.
2. Layouts: the same numbers contiguous, and in chunks of several shapes, compressed and not.
3. Compressed chunks: a pass beside h5py reading each chunk of the file once.
4. Sequences of different lengths, each a dataset of one group, beside h5py reading each once.
5. Training from a file beside training on tensors: what the reader costs a step.

Files are made in a temporary folder (``TMPDIR``) and removed; the largest has 2.6 GB.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from harness import Bench, Mark
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

import fastseq as fs
from fastseq.data.chunk_plan import Chunk, ChunkPlan
from fastseq.data.sequences import Sequences

OURS, MEMCPY, ROWS = "fastseq", "memcpy", "memcpy, rows as stored in the file"
H5PY = "h5py, slices"
LOADER = "DataLoader, 2 workers"
EACH_ONCE = "h5py, each chunk of the file once"
FILE, MEMORY = "fit from a file", "fit on tensors"
ROUNDS = 12
# How many times as fast as h5py: with one core, with two.
GZIP, SHUFFLED = (1.7, 2.5), (1.4, 2.2)
Pass = Callable[[], Iterator[torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is read: chunks of `s` steps and `b` sequences of (t, n, f) numbers."""

    t: int
    n: int
    f: int
    b: int = 256
    s: int = 50

    def __str__(self) -> str:
        return f"({self.t}, {self.n}, {self.f}) fp32, batchsize {self.b}, seqsize {self.s}"

    @property
    def nbytes(self) -> int:
        return self.t * self.n * self.f * 4

    def chunks(self) -> list[Chunk]:
        return list(ChunkPlan(self.t, self.n, self.b, self.s).chunks())


def walk(shape: Shape) -> Iterator[np.ndarray]:
    """Yield what sensors might write: random walks in steps of 1/64, which can be compressed."""
    rng = np.random.default_rng(0)
    level = np.zeros((shape.n, shape.f), np.float32)
    for t in range(0, shape.t, 100):
        moves = rng.integers(-8, 9, (min(100, shape.t - t), *level.shape), np.int8)
        piece = level + np.cumsum(moves, 0, np.float32) / 64
        level = piece[-1]
        yield piece


def write(path: Path, shape: Shape, **layout: Any) -> None:
    """Write dataset ``x``; in pieces if it is contiguous, else at once, each chunk complete."""
    pieces: Iterable[np.ndarray] = walk(shape)
    if layout:
        pieces = [np.concatenate(list(pieces))]
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", (shape.t, shape.n, shape.f), np.float32, **layout)
        t = 0
        for piece in pieces:
            x[t : t + len(piece)] = piece
            t += len(piece)
    warm(path)


def warm(path: Path) -> None:
    """Let the page cache hold a file as reading it from the disk leaves it there."""
    with path.open("rb", buffering=0) as file:
        os.fsync(file)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(2**22):
            pass


class Slices(Dataset[torch.Tensor]):
    """What a PyTorch user writes: item i is chunk i; every worker opens the file itself."""

    def __init__(self, path: Path, chunks: list[Chunk]) -> None:
        self.path, self.chunks = path, chunks
        self.x: h5py.Dataset | None = None

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.x is None:
            self.x = h5py.File(self.path, "r")["x"]
        c = self.chunks[index]
        return torch.from_numpy(self.x[c.t0 : c.t1, c.n0 : c.n1])


def ours(x: Any, chunks: list[Chunk]) -> Pass:
    def read() -> Iterator[torch.Tensor]:
        for _, batch in Sequences(x, dtype=torch.float32).batches(chunks):
            yield batch.xs

    return read


def one_pass(read: Pass) -> Callable[[], None]:
    def run() -> None:
        for _ in read():
            pass

    return run


def check(passes: dict[str, Pass]) -> None:
    """Raise unless all yield the same chunks."""
    for chunks in zip(*(read() for read in passes.values()), strict=True):
        for name, chunk in zip(passes, chunks, strict=True):
            if not torch.equal(chunk, chunks[0]):
                raise AssertionError(f"{name} reads something else than {next(iter(passes))}")


def contiguous(bench: Bench, folder: Path, shape: Shape) -> None:
    """Set the chunks of a block beside memcpy and what else reads them."""
    path = folder / "x.h5"
    write(path, shape)
    plan = shape.chunks()
    chunks = [c for c in plan if c.block == plan[-1].block // 2]  # in the midst of the file
    sizes = [(c.t1 - c.t0) * (c.n1 - c.n0) * shape.f * 4 for c in chunks]
    source = np.ones(sum(sizes), np.uint8)
    targets = [np.ones(max(sizes), np.uint8) for _ in range(2)]

    def memcpy() -> None:
        begin = source.ctypes.data
        for i, size in enumerate(sizes):
            ctypes.memmove(targets[i % 2].ctypes.data, begin, size)
            begin += size

    slices = Slices(path, chunks)
    whole = np.ones((shape.t, shape.n, shape.f), np.float32)

    def memcpy_rows() -> None:
        for i, c in enumerate(chunks):
            rows = whole[c.t0 : c.t1, c.n0 : c.n1]
            np.copyto(targets[i % 2].view(np.float32)[: rows.size].reshape(rows.shape), rows)

    # The workers are started before anything is timed, and stay.
    loader: DataLoader[torch.Tensor] = DataLoader(
        slices, batch_size=None, num_workers=2, persistent_workers=True,
        multiprocessing_context="fork",
    )  # fmt: skip
    passes: dict[str, Pass] = {
        H5PY: lambda: (slices[i] for i in range(len(chunks))),
        OURS: ours(fs.h5mmap(path, "x"), chunks),
        LOADER: lambda: iter(loader),
    }
    # A worker that was forked must not find the file open.
    check({name: passes[name] for name in (LOADER, OURS, H5PY)})
    bench.compare(
        f"contiguous, {shape}, a block",
        {
            MEMCPY: memcpy,
            ROWS: memcpy_rows,
            **{name: one_pass(read) for name, read in passes.items()},
        },
        bytes_moved=sum(sizes),
        marks=(Mark(OURS, 1 / 0.7), Mark(OURS, 1 / 3, H5PY), Mark(OURS, 1 / 2, LOADER)),
    )
    path.unlink()


def layouts(bench: Bench, folder: Path, shape: Shape) -> None:
    """Set passes over the same numbers, stored in several ways, beside one over memory."""
    b, s, f = shape.b, shape.s, shape.f
    gzip = {"compression": "gzip", "compression_opts": 4}
    kinds: dict[str, dict[str, Any]] = {"contiguous": {}}
    for chunks in ((s, b, f), (2 * s, b // 4, f), (1, shape.n, f), (shape.t, 1, f), True):
        name = "chunks of h5py's choice" if chunks is True else f"chunks {chunks}"
        kinds |= {name: {"chunks": chunks}, f"{name}, gzip": {"chunks": chunks, **gzip}}
    kinds[f"chunks {(s, b, f)}, gzip, shuffle"] = {"chunks": (s, b, f), "shuffle": True, **gzip}
    passes = {}
    sizes = {}
    for i, (name, layout) in enumerate(kinds.items()):
        path = folder / f"layout{i}.h5"
        write(path, shape, **layout)
        sizes[name] = path.stat().st_size / shape.nbytes
        passes[name] = ours(fs.h5mmap(path, "x"), shape.chunks())
    for axis, along in enumerate(("time", "sequences")):
        name = f"virtual, 8 contiguous files along {along}"
        path = folder / f"layout-{along}.h5"
        passes[name] = ours(in_pieces(path, shape, axis), shape.chunks())
        sizes[name] = 1.0
    check(passes)
    with warnings.catch_warnings():  # that some layouts are read again and again
        warnings.simplefilter("ignore")
        bench.compare(
            f"layouts, {shape}",
            {name: one_pass(read) for name, read in passes.items()},
            bytes_moved=shape.nbytes,
        )
    bench.cases[-1]["size"] = sizes
    for path in folder.glob("layout*.h5"):
        path.unlink()


def in_pieces(path: Path, shape: Shape, axis: int) -> Any:
    """Write the same numbers as 8 files that a virtual dataset joins; return that."""
    parts = []
    for i, piece in enumerate(np.split(np.concatenate(list(walk(shape))), 8, axis)):
        parts.append(path.with_name(f"{path.stem}{i}.h5"))
        with h5py.File(parts[-1], "w") as file:
            file["x"] = piece
    fs.h5concat(path, parts, axis, progress=False)
    return fs.h5mmap(path, "x")


def compressed(bench: Bench, folder: Path, shape: Shape) -> None:
    """Set a pass over compressed chunks, on one core and on two, beside h5py reading each once."""
    path = folder / "x.h5"
    plan = shape.chunks()

    def slices() -> Iterator[torch.Tensor]:
        with h5py.File(path, "r", rdcc_nbytes=2**28) as file:
            for c in plan:
                yield torch.from_numpy(file["x"][c.t0 : c.t1, c.n0 : c.n1])

    def each_once() -> None:
        with h5py.File(path, "r") as file:
            for box in file["x"].iter_chunks():
                file["x"][box]

    small, large = (shape.s, shape.b, shape.f), (2 * shape.s, shape.b // 4, shape.f)
    kinds = (
        ("gzip", small, False, GZIP),
        ("gzip", large, False, GZIP),
        ("gzip, shuffle", small, True, SHUFFLED),
    )
    for kind, chunks, shuffle, wanted in kinds:
        write(path, shape, chunks=chunks, shuffle=shuffle, compression="gzip", compression_opts=4)
        passes = {OURS: ours(fs.h5mmap(path, "x"), plan), "h5py, slices, cache of 256 MB": slices}
        check(passes)
        contenders = {
            EACH_ONCE: each_once,
            **{name: one_pass(read) for name, read in passes.items()},
        }
        for count, times in enumerate(wanted, 1):
            with on_cores(count):
                bench.compare(
                    f"{kind}, chunks {chunks}, {shape}, {count} core(s)",
                    contenders,
                    bytes_moved=shape.nbytes,
                    marks=(Mark(OURS, 1 / times),),
                )
        path.unlink()


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Let this process use so many of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def ragged(bench: Bench, folder: Path, shape: Shape) -> None:
    """Set a pass over sequences of different lengths beside h5py reading each once."""
    path = folder / "x.h5"
    rng = np.random.default_rng(0)
    lengths = rng.integers(shape.t // 10, shape.t + 1, shape.n)
    with h5py.File(path, "w") as file:
        for i, length in enumerate(lengths):
            file[f"x/{i}"] = rng.standard_normal((length, shape.f), np.float32)

    with h5py.File(path, "r") as file:
        data = Sequences(file["x"], dtype=torch.float32)
        plan = ChunkPlan(shape.t, shape.n, shape.b, shape.s, lengths=data.lengths)
        chunks = list(plan.chunks())
        found = {int(i): [] for i in data.order}
        for chunk, batch in data.batches(chunks):
            for n in range(chunk.n0, chunk.n1):
                end = min(chunk.t1, data.lengths[n]) - chunk.t0
                found[int(data.order[n])].append(batch.xs[: max(end, 0), n - chunk.n0].clone())
        for i, parts in found.items():
            if not torch.equal(torch.cat(parts), torch.from_numpy(file[f"x/{i}"][()])):
                raise AssertionError(f"{OURS} reads something else for sequence {i} than h5py")

        def each_once() -> None:
            for i in range(shape.n):
                file[f"x/{i}"][()]

        def read() -> None:
            for _ in data.batches(chunks):
                pass

        bench.compare(
            f"{shape.n} datasets of {lengths.min()} to {shape.t} steps, {shape.f} features, "
            f"batchsize {shape.b}, seqsize {shape.s}",
            {"h5py, each dataset once": each_once, OURS: read},
            bytes_moved=int(lengths.sum()) * shape.f * 4,
        )
    bench.cases[-1]["padding"] = plan.padding
    bench.say(f"  {bench.cases[-1]['padding']:.1%} of what was read is padding")
    path.unlink()


def training(bench: Bench, folder: Path, shape: Shape) -> None:
    """Set `fit` from files beside `fit` on the same data in memory; steps outlast reading."""
    path = folder / "x.h5"
    layout = {"chunks": (shape.s, shape.b, shape.f), "compression": "gzip", "compression_opts": 4}
    for kind, kwargs in (("contiguous", {}), ("gzip", layout)):
        write(path, shape, **kwargs)
        x = torch.from_numpy(np.concatenate(list(walk(shape))))
        y = x.mean(2, keepdim=True)
        with h5py.File(path, "a") as file:
            file["y"] = y.numpy()
        estimators = {}
        for name, data in (
            (MEMORY, (x, y)),
            (FILE, (fs.h5mmap(path, "x"), fs.h5mmap(path, "y"))),
        ):
            torch.manual_seed(0)
            model = fs.nn.Chain(fs.nn.LSTM(shape.f, 64), torch.nn.Linear(64, 1))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
            spec = {"epochs": 1, "batchsize": shape.b, "seqsize": shape.s}
            estimators[name] = (
                fs.Estimator(
                    model, fs.seqloss(mse_loss), optimizer, spec, progress=False, comm=None
                ),
                data,
            )

        def epochs(name: str, estimators: Any = estimators) -> Callable[[], None]:
            est, data = estimators[name]
            return lambda: est.fit(*data)

        for threads in (1, 2):
            torch.set_num_threads(threads)
            bench.compare(
                f"training, {kind}, {shape}, LSTM({shape.f},64)+Linear, {threads} thread(s)",
                {name: epochs(name) for name in estimators},
                marks=(Mark(FILE, 1.25 if threads == 2 and kind == "gzip" else 1.05),),
            )
        torch.set_num_threads(1)
        losses = [[e["loss"] for e in est.history_] for est, _ in estimators.values()]
        if losses[0] != losses[1]:
            raise AssertionError(f"training from a file learnt something else: {losses}")
        path.unlink()


def main() -> None:
    torch.set_num_threads(1)
    bench = Bench.from_arguments("reading", rounds=ROUNDS)
    small = bench.rounds < ROUNDS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contiguous(bench, folder, Shape(5_000, 512, 32) if small else Shape(10_000, 2000, 32))
        layouts(bench, folder, Shape(200 if small else 1000, 1024, 32))
        compressed(bench, folder, Shape(200 if small else 1000, 1024, 32))
        ragged(bench, folder, Shape(1000, 200 if small else 2000, 32))
        training(bench, folder, Shape(500, 512 if small else 2048, 32))
    bench.write()


if __name__ == "__main__":
    main()
