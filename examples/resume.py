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
from safetensors.torch import load_file
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
    est.history_.plot().figure.savefig(folder / "history.png", dpi=100)


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
        print("killed; started again")
        if run(killed).wait() or run(whole).wait():
            raise SystemExit("a run failed")
        models = [load_file(folder / "model.safetensors") for folder in (killed, whole)]
        options.out.write_bytes((killed / "history.png").read_bytes())
    print(f"Picture: {options.out}")
    for name, value in models[0].items():
        if not torch.equal(value, models[1][name]):
            raise SystemExit(f"the models differ in {name}")
    print("both models are equal, bit for bit")


if __name__ == "__main__":
    main()
