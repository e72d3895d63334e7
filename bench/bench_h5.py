"""`h5concat` by copy beside `cp` of the same files; a bar for neither, all in the page cache.

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
from harness import Bench, Mark, Seconds

import fastseq as fs

CP, ALONG_TIME, ALONG_SEQUENCES = "cp", "h5concat along time", "h5concat along sequences"
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


def main() -> None:
    bench = Bench.from_arguments("h5", rounds=ROUNDS)
    shape = (400, 512, 32) if bench.rounds < ROUNDS else (4000, 512, 32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [folder / f"part{i}.h5" for i in range(FILES)]
        for i, source in enumerate(sources):
            write(source, shape, i)
        target, copies = folder / "whole.h5", folder / "copies"
        copies.mkdir()

        def timed(call: Callable[[], object]) -> Seconds:
            os.sync()
            begin = time.perf_counter()
            call()
            taken = Seconds(time.perf_counter() - begin)
            for path in (target, *copies.iterdir()):
                path.unlink(missing_ok=True)
            return taken

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
            {key: functools.partial(timed, call) for key, call in calls.items()},
            bytes_moved=int(FILES * np.prod(shape) * 4),
            marks=tuple(Mark(key, 1 / 0.6) for key in memory),
        )
    bench.write(memory_mb=memory)


if __name__ == "__main__":
    main()
