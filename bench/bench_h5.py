"""Writing HDF5 files, all in the page cache.

1. `h5concat` by copy beside `cp` of the same files; a bar for neither.
2. `h5concat` that compresses beside h5py compressing the same numbers (gzip, level 4, shuffle).
3. `predict` into a compressed dataset beside h5py writing the same predictions.

Before each call what the calls before left to write goes to the disk, so that none waits for it.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from bench_reading import Shape, walk
from harness import Bench, Mark, Seconds
from torch.nn.functional import mse_loss

import fastseq as fs

CP, ALONG_TIME, ALONG_SEQUENCES = "cp", "h5concat along time", "h5concat along sequences"
H5PY, COMPRESSED, PREDICTED = "h5py", "h5concat, compressed", "predict"
GZIP = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
FILES, ROUNDS = 8, 10


def write(path: Path, shape: tuple[int, int, int], seed: int) -> None:
    piece = np.random.default_rng(seed).standard_normal((shape[0] // 8, *shape[1:]), np.float32)
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", shape, np.float32)
        for i in range(8):
            x[i * len(piece) : (i + 1) * len(piece)] = piece + i


def resident() -> tuple[int, int]:
    """Return how much memory this process has now, and had at most, in kB."""
    status = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in status if line.endswith("kB")}
    return int(sizes["VmRSS"]), int(sizes["VmHWM"])


def grown(call: Callable[[], object]) -> float:
    """Return by how many MB the process was larger while `call` ran than before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
    before, _ = resident()
    call()
    return (resident()[1] - before) / 1e3


def timed(call: Callable[[], object], *made: Path) -> Seconds:
    """Time a call that makes files and folders, and remove the files."""
    os.sync()
    begin = time.perf_counter()
    call()
    taken = Seconds(time.perf_counter() - begin)
    for path in made:
        for file in path.iterdir() if path.is_dir() else (path,):
            file.unlink(missing_ok=True)
    return taken


def joined(bench: Bench, folder: Path, shape: tuple[int, int, int]) -> dict[str, float]:
    """Set copies of many files in one beside `cp`; return how much memory they need."""
    sources = [folder / f"part{i}.h5" for i in range(FILES)]
    for i, source in enumerate(sources):
        write(source, shape, i)
    target, copies = folder / "whole.h5", folder / "copies"
    copies.mkdir()
    calls: dict[str, Callable[[], object]] = {
        CP: lambda: subprocess.run(["/bin/cp", *sources, copies], check=True),
        **{
            key: functools.partial(
                fs.h5concat, target, sources, axis, virtual=False, progress=False
            )
            for axis, key in enumerate((ALONG_TIME, ALONG_SEQUENCES))
        },
    }
    memory = {}
    for axis, key in enumerate((ALONG_TIME, ALONG_SEQUENCES)):
        memory[key] = grown(calls[key])
        bench.say(f"{key}: {memory[key]:.0f} MB of memory, mark <= 300")
        with h5py.File(target, "r") as whole:
            for i, source in enumerate(sources):
                with h5py.File(source, "r") as part:
                    box = [slice(None)] * 3
                    box[axis] = slice(i * shape[axis], (i + 1) * shape[axis])
                    if not np.array_equal(whole["x"][tuple(box)], part["x"][()]):
                        raise AssertionError(f"{key} made something else than its parts")
        target.unlink()
    bench.compare(
        f"{FILES} files of {np.prod(shape) * 4 / 1e6:.0f} MB",
        {key: functools.partial(timed, call, target, copies) for key, call in calls.items()},
        bytes_moved=int(FILES * np.prod(shape) * 4),
        marks=tuple(Mark(key, 1 / 0.6) for key in memory),
    )
    for source in sources:
        source.unlink()
    return memory


def compressed(bench: Bench, folder: Path, shape: Shape) -> dict[str, float]:
    """Set a compressed copy of two files beside one that h5py makes, with the same chunks."""
    sources = [folder / "a.h5", folder / "b.h5"]
    for source, half in zip(sources, np.split(np.concatenate(list(walk(shape))), 2), strict=True):
        fs.h5save(source, {"x": half})
    target, other = folder / "whole.h5", folder / "other.h5"

    def ours() -> None:
        fs.h5concat(target, sources, virtual=False, compression="gzip", progress=False)

    memory = grown(ours)
    bench.say(f"{COMPRESSED}: {memory:.0f} MB of memory, mark <= 300")
    with h5py.File(target) as file:
        chunks = file["x"].chunks

    def h5py_alone() -> None:
        with h5py.File(other, "w") as file:
            x = file.create_dataset("x", (shape.t, shape.n, shape.f), "f4", chunks=chunks, **GZIP)
            parts = [h5py.File(source) for source in sources]
            halves = [part["x"] for part in parts]
            for box in x.iter_chunks():
                t, rest = box[0], box[1:]
                middle = shape.t // 2
                if t.start < middle < t.stop:
                    ends = halves[0][(slice(t.start, middle), *rest)]
                    starts = halves[1][(slice(0, t.stop - middle), *rest)]
                    x[box] = np.concatenate([ends, starts])
                else:
                    past = middle if t.start >= middle else 0
                    x[box] = halves[past > 0][(slice(t.start - past, t.stop - past), *rest)]
            for part in parts:
                part.close()

    h5py_alone()
    check(target, other)
    bench.compare(
        f"compressed, {shape}, chunks {chunks}",
        {
            H5PY: functools.partial(timed, h5py_alone, other),
            COMPRESSED: functools.partial(timed, ours, target),
        },
        bytes_moved=shape.nbytes,
        marks=(Mark(COMPRESSED, 1 / 2),),
    )
    for source in sources:
        source.unlink()
    return {COMPRESSED: memory}


class ByH5py:
    """A dataset that is written to by h5py, slice by slice."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.dataset, self.shape, self.dtype = dataset, dataset.shape, dataset.dtype

    def __setitem__(self, box: object, values: np.ndarray) -> None:
        self.dataset[box] = values


def predicted(bench: Bench, folder: Path, shape: Shape) -> None:
    """Set predictions into a compressed dataset beside h5py writing each as it comes."""
    x = np.concatenate(list(walk(shape)))
    model = torch.nn.Linear(shape.f, shape.f, bias=False)
    torch.nn.init.eye_(model.weight)
    spec = {"epochs": 1, "batchsize": shape.b, "seqsize": shape.s}
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), torch.optim.AdamW, spec, progress=False, comm=None
    )
    targets = {H5PY: folder / "theirs.h5", PREDICTED: folder / "ours.h5"}
    layout = {"chunks": (shape.s, shape.b, shape.f), **GZIP}

    def predict(name: str) -> None:
        with h5py.File(targets[name], "w") as file:
            y = file.create_dataset("x", x.shape, "f4", **layout)
            est.predict(x, out=ByH5py(y) if name == H5PY else y)

    for name in targets:
        predict(name)
    check(*targets.values())
    bench.compare(
        f"predictions, {shape}, chunks {layout['chunks']}",
        {
            name: functools.partial(timed, functools.partial(predict, name), path)
            for name, path in targets.items()
        },
        bytes_moved=shape.nbytes,
        marks=(Mark(PREDICTED, 1 / 2),),
    )


def check(one: Path, two: Path) -> None:
    """Raise unless two files hold the same numbers; remove them."""
    with h5py.File(one) as a, h5py.File(two) as b:
        if not np.array_equal(a["x"][()], b["x"][()]):
            raise AssertionError(f"{one.name} holds something else than {two.name}")
    one.unlink()
    two.unlink()


def main() -> None:
    torch.set_num_threads(1)
    bench = Bench.from_arguments("h5", rounds=ROUNDS)
    small = bench.rounds < ROUNDS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory = joined(bench, folder, (400, 512, 32) if small else (4000, 512, 32))
        memory |= compressed(bench, folder, Shape(200 if small else 1000, 1024, 32))
        predicted(bench, folder, Shape(200 if small else 1000, 1024, 32))
    bench.write(memory_mb=memory)


if __name__ == "__main__":
    main()
