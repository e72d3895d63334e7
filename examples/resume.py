"""Kill a training run, start it again, and get the same bits as without the kill.

The script starts itself twice: once it is killed in the middle (SIGKILL, which nothing can catch),
once it resumes from the checkpoint. A third run is left alone. Both models are equal, bit for bit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn.functional import mse_loss

import fastseq as fs


class Slow(fs.callbacks.Callback):
    """Makes epochs longer, so that there is time to kill."""

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def on_epoch_end(self, run: object) -> None:  # noqa: ARG002
        time.sleep(self.pause)


def train(folder: Path, pause: float) -> None:
    """Train, with a checkpoint after each epoch, which lasts `pause` seconds longer."""
    torch.manual_seed(0)
    x = torch.randn(400, 32, 4)
    y = x.mean(2, keepdim=True)
    model = fs.nn.Chain(fs.nn.GRU(4, 16), torch.nn.Linear(16, 1))
    spec = {"epochs": 12, "batchsize": 8, "seqsize": 20, "shuffle": True}
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), torch.optim.AdamW, spec, seed=0, progress=False,
        callbacks=[Slow(pause)],
    )  # fmt: skip
    est.fit(x, y, checkpoint=folder / "run", resume="auto")
    est.save(folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--train", type=Path, help="train in this folder, and nothing else")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=Path("resume.png"))
    options = parser.parse_args()
    if options.train is not None:
        train(options.train, options.pause)
        return

    def run(folder: Path, pause: float = 0.0) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        words = [sys.executable, __file__, "--train", str(folder), "--pause", str(pause)]
        return subprocess.Popen(words)

    with tempfile.TemporaryDirectory() as name:
        killed, whole = Path(name) / "killed", Path(name) / "whole"
        first = run(killed, pause=0.5)
        while not list(killed.glob("run/*")):
            time.sleep(0.05)
        time.sleep(1.0)  # some epochs
        first.kill()
        first.wait()
        done = int(max(killed.glob("run/*")).stem[-6:])  # the newest checkpoint's number
        print(f"killed after epoch {done}; started again")
        both = [run(killed), run(whole)]
        if [process.wait() for process in both] != [0, 0]:
            raise SystemExit("a run failed")
        runs = [fs.Estimator.load(folder / "model.safetensors") for folder in (whole, killed)]
    draw([run.history_ for run in runs], done, options.out)
    weights = [run.model.state_dict() for run in runs]
    for name, value in weights[0].items():
        if not torch.equal(value, weights[1][name]):
            raise SystemExit(f"the models differ in {name}")
    print("both models are equal, bit for bit")
    print(f"Picture: {options.out} (the resumed run's losses are those of the other one)")


def draw(histories: list[fs.History], done: int, path: Path) -> None:
    """Draw the losses of both runs, and when the second one was killed."""
    ax = Figure(figsize=(7, 4), layout="constrained").add_subplot()
    styles = ({"lw": 5, "alpha": 0.4}, {"marker": "o"})
    for rows, style, label in zip(histories, styles, ("left alone", "resumed"), strict=True):
        ax.plot([r["epoch"] for r in rows], [r["loss"] for r in rows], label=label, **style)
    ax.axvline(done, color="C3", ls="--", label=f"killed after epoch {done}")
    ax.set(xlabel="epoch", ylabel="mean squared error", yscale="log")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    ax.figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
