"""Train on one rank and on two, and get the same model: by `fastseq.launch`, or under mpirun.

Two ranks with a batch size of 32 do what one does with 64: each computes the gradients of its half,
and the optimizer gets their mean. So losses and weights are equal, but for rounding. The script
launches two ranks; ``mpirun -n 2 python two_ranks.py`` starts it on both instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn.functional import mse_loss

import fastseq as fs

BATCHSIZE = 64  # sequences of an update, of all ranks together


def train(epochs: int, *, alone: bool = False) -> dict[str, Any]:
    """Train together with the ranks that this process was started with, or `alone`."""
    torch.set_num_threads(1)  # a core for each rank
    torch.manual_seed(0)
    x = torch.randn(200, 512, 8)  # the same data on all ranks: each takes its part
    y = x[..., :1] + 0.5 * x[..., 1:2].roll(3, 0)  # of now, and of three steps ago
    comm = None if alone else fs.distributed.world()
    ranks = 1 if comm is None else comm.size
    model = fs.nn.Chain(fs.nn.LSTM(8, 96), torch.nn.Linear(96, 1))
    spec = {"epochs": epochs, "batchsize": BATCHSIZE // ranks, "seqsize": 50}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    est = fs.Estimator(model, fs.seqloss(mse_loss), optimizer, spec, comm=comm, progress=False)
    est.fit(x, y)
    return {
        "ranks": ranks,
        "losses": np.array([row["loss"] for row in est.history_]),
        "seconds": np.cumsum([row["seconds"] for row in est.history_]),
        "weights": torch.cat([p.detach().flatten() for p in model.parameters()]).numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("two_ranks.png"))
    options = parser.parse_args()

    comm = fs.distributed.world()
    if comm.size > 1:  # mpirun has started this script several times
        together = train(options.epochs)
        if comm.rank != 0:
            return
    else:
        together = fs.launch(train, options.epochs, ranks=2)[0]  # both ranks have the same weights
    runs = [train(options.epochs, alone=True), together]

    print("ranks  batch size  seconds  loss of the first and the last epoch")
    for run in runs:
        losses, seconds = run["losses"], run["seconds"][-1]
        print(f"{run['ranks']:5}{BATCHSIZE // run['ranks']:12}{seconds:9.1f}", end="")
        print(f"{losses[0]:10.6f}{losses[-1]:10.6f}")
    apart = float(np.abs(runs[0]["weights"] - runs[1]["weights"]).max())
    print(f"the models' {together['weights'].size} weights differ by at most {apart:.0e}")
    draw(runs, options.out)
    print(f"Picture: {options.out} (left: the losses are equal; right: how soon each run has them)")
    if apart > 1e-3:
        raise SystemExit("the weights differ by more than rounding")


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the losses by epoch, and by time."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for run, style in zip(runs, ({"lw": 5, "alpha": 0.4}, {"marker": "o"}), strict=True):
        label = f"{run['ranks']} rank{'s' * (run['ranks'] > 1)}"
        left.plot(np.arange(1, len(run["losses"]) + 1), run["losses"], label=label, **style)
        right.plot(run["seconds"], run["losses"], label=label, **style)
    left.set(xlabel="epoch", ylabel="mean squared error", yscale="log")
    right.set(xlabel="time (s)", xlim=(0, None))
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
