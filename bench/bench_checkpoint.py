"""What checkpoints cost: updates of `fit` with one every 100 updates, and without.

Timed are 100 updates in the middle of a run, with one checkpoint among them, its second: the copy
that is taken in between, and what the thread that writes takes away from those that follow.
They are quick for a model of that size: slower ones hide more.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from harness import Bench, Mark, Seconds, same
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs

EVERY = 100
HIDDEN = 896  # of two layers: 10 million parameters
FEATURES = 64
BATCH, SEQSIZE = 8, 10
BEGIN = EVERY + 20  # the checkpoint comes at the 80th of the updates that are timed


class Clock(fs.callbacks.Callback):
    """Takes the time of 100 updates, one of which is saved."""

    def on_batch_end(self, run: Any) -> None:
        if run.updates == BEGIN:
            self.begin = time.perf_counter()
        if run.updates == BEGIN + EVERY:
            self.seconds = time.perf_counter() - self.begin
            self.weights = fs.net2vec(run.model).detach().clone()
            run.stop("enough")


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, saves: bool) -> Clock:
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.uniform_(p, -0.03, 0.03)
    clock = Clock()
    spec = {"epochs": 1, "batchsize": x.shape[1], "seqsize": SEQSIZE}
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), lambda p: torch.optim.AdamW(p, fused=True), spec,
        device="cpu", comm=None, callbacks=[clock], progress=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        settings = fs.callbacks.Checkpoint(folder, every_updates=EVERY, every_epochs=None)
        est.fit(x, y, checkpoint=settings if saves else None)
    return clock


def main() -> None:
    bench = Bench.from_arguments("checkpoint", rounds=10)
    recurrent = fs.nn.LSTM(FEATURES, HIDDEN, num_layers=2)
    model = fs.nn.Chain(recurrent, nn.Linear(HIDDEN, 1))
    numel = sum(p.numel() for p in model.parameters())
    x = torch.randn(SEQSIZE * (BEGIN + EVERY + 1), BATCH, FEATURES)
    y = x.mean(2, keepdim=True)
    contenders = {False: "fit", True: f"fit, a checkpoint every {EVERY} updates"}
    same(*(train(model, x, y, saves=saves).weights for saves in contenders), rtol=0)
    bench.compare(
        f"LSTM({FEATURES}, {HIDDEN}, 2 layers), {numel / 1e6:.1f} million parameters, AdamW, "
        f"S × B = {SEQSIZE} × {BATCH}: an update",
        {
            name: lambda saves=saves: Seconds(train(model, x, y, saves=saves).seconds / EVERY)
            for saves, name in contenders.items()
        },
        marks=(Mark(contenders[True], 1.05),),
    )
    bench.write(parameters=numel, bytes_of_a_checkpoint=12 * numel)


if __name__ == "__main__":
    main()
