"""`Estimator.fit` of this version beside that of another, installed in its own environment.

python bench/bench_before.py /path/to/other/bin/python NAME [--quick] [--results FOLDER]

Each version trains in a separate process; they take turns, an epoch of `bench_fit` each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import torch
from bench_fit import LARGE, SMALL, Fit, Task
from harness import Bench, Mark, Seconds
from torch import nn

import fastseq as fs

TASKS = {"small": SMALL, "large": LARGE}
CASES = (
    ("small", "memory", 1), ("small", "HDF5", 1), ("small", "memory", 2), ("large", "memory", 1),
)  # fmt: skip
BEFORE, NOW = "before", "now"


class Worker:
    """Trains in another process. A call is an epoch, and returns the seconds that it took."""

    def __init__(self, python: str, *arguments: str) -> None:
        command = [python, __file__, "worker", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __call__(self) -> Seconds:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return Seconds(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def work(task: Task, threads: int, source: str) -> None:
    """Train for an epoch for each line of the standard input, and answer with its seconds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = task.shape
    x: Any = torch.randn(task.length, task.sequences, shape.f)
    y: Any = x.mean(2, keepdim=True)
    with tempfile.TemporaryDirectory() as folder:
        if source == "HDF5":
            with h5py.File(Path(folder) / "data.h5", "w") as file:
                file["x"], file["y"] = x.numpy(), y.numpy()
            x, y = (fs.h5mmap(Path(folder) / "data.h5", name) for name in "xy")
        fit = Fit(fs.nn.LSTM(shape.f, shape.h), nn.Linear(shape.h, 1), x, y, shape.n, shape.s)
        for _ in sys.stdin:
            begin = time.perf_counter()
            fit()
            print(time.perf_counter() - begin, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("python")
    parser.add_argument("name")
    options, sys.argv[1:] = parser.parse_known_args()
    bench = Bench.from_arguments("before", rounds=60)
    for name, source, threads in CASES:
        pythons = {BEFORE: options.python, NOW: sys.executable}
        workers = {
            version: Worker(python, name, source, str(threads))
            for version, python in pythons.items()
        }
        case = f"{TASKS[name]}, from {source}, {threads} thread(s)"
        bench.compare(case, {**workers}, marks=(Mark(NOW, 1.03),))
        for worker in workers.values():
            worker.close()
    bench.write(before=options.name)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        work(TASKS[sys.argv[2]], int(sys.argv[4]), sys.argv[3])
    else:
        main()
