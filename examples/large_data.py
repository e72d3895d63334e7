"""Train on a file that is larger than the memory this process may have.

The process limits itself: it can get no more than `--memory` MB beyond what Python and PyTorch take
(RLIMIT_DATA: anonymous memory; RLIMIT_AS would count what files and libraries only map, too). Then
it writes an HDF5 file that is twice as large as all it may have, piece by piece, trains on all but
the last tenth of the time steps, and forecasts all of them into another file.

The series are noise that a filter has smoothed, one filter per sequence; the target is the next
step of the first feature. No model can predict the noise: its variance is the least error.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.nn.functional import mse_loss

import fastseq as fs

FEATURES, PIECE = 16, 100  # time steps written at once


def memory(kind: str) -> int:
    """Return a size from /proc/self/status in MB: VmData, RssAnon, RssFile."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) // 1000


def write_data(path: Path, steps: int, sequences: int) -> float:
    """Write ``x`` (T, N, F) and ``y`` (T, N, 1), what feature 0 of `x` will be a step later.

    Returns the variance of what is new in a step.
    """
    rng = np.random.default_rng(0)
    keep = rng.uniform(0.5, 0.95, (sequences, 1)).astype(np.float32)
    level = np.zeros((sequences, FEATURES), np.float32)
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", (steps, sequences, FEATURES), np.float32)
        y = file.create_dataset("y", (steps, sequences, 1), np.float32)
        for t in range(0, steps, PIECE):
            piece = rng.standard_normal((min(PIECE, steps - t) + 1, *level.shape), np.float32)
            piece[0] = level
            for before, now in itertools.pairwise(piece):
                now *= np.sqrt(1 - keep**2)
                now += keep * before
            level = piece[-1]
            x[t : t + len(piece) - 1] = piece[:-1]
            y[t : t + len(piece) - 1] = piece[1:, :, :1]
    return float((1 - keep**2).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--memory", type=int, default=500, help="MB (default 500)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the file goes (default: temporary)")
    options = parser.parse_args()
    torch.manual_seed(0)

    limit = memory("VmData") + options.memory
    resource.setrlimit(resource.RLIMIT_DATA, (limit * 10**6, limit * 10**6))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        train(Path(folder) / "data.h5", limit, options.epochs)


def train(path: Path, limit: int, epochs: int) -> None:
    """Write a file of twice `limit` MB, train on its first nine tenths, forecast all of it."""
    sequences = 1000
    steps = 2 * limit * 10**6 // (sequences * (FEATURES + 1) * 4)
    noise = write_data(path, steps, sequences)
    print(f"memory: at most {limit} MB; file: {path.stat().st_size // 10**6} MB")
    x, y = fs.h5mmap(path, "x"), fs.h5mmap(path, "y")
    try:
        np.array(x)
    except MemoryError:
        print("x as an array in memory: MemoryError")

    model = fs.nn.Chain(fs.nn.LSTM(FEATURES, 16), torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    spec = {"epochs": epochs, "batchsize": 250, "seqsize": 50}
    est = fs.Estimator(model, fs.seqloss(mse_loss), optimizer, spec)
    before = memory("RssAnon")
    est.fit(x, y, validation={"time": 0.1})
    losses = est.history_[-1]
    print(f"mean squared error {losses['loss']:.3f}, of the last tenth ", end="")
    print(f"{losses['validation_loss']:.3f}; of the best forecast there can be {noise:.3f}")

    with h5py.File(path.with_name("yhat.h5"), "w") as file:
        file.create_dataset("yhat", y.shape, np.float32)
    yhat = fs.h5mmap(path.with_name("yhat.h5"), "yhat", mode="r+")
    est.predict(x, out=yhat)
    grown, size = memory("RssAnon") - before, path.stat().st_size // 10**6
    print(f"training and forecasting took {grown} MB of memory for a file of {size} MB")


if __name__ == "__main__":
    main()
