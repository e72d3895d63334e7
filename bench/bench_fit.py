"""What a step of `Estimator.fit` costs beside a loop written by hand, with the same modules."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from pathlib import Path

import h5py
import torch
from harness import Bench, Mark
from torch.nn.functional import mse_loss

import fastseq as fs

T, N, F, BATCH, SEQ = 200, 200, 10, 20, 10
STEPS = (T // SEQ) * (N // BATCH)


class Plain:
    """Truncated back-propagation as a good PyTorch user writes it."""

    def __init__(self, lstm: torch.nn.LSTM, head: torch.nn.Linear) -> None:
        self.lstm, self.head = lstm, head
        params = [*lstm.parameters(), *head.parameters()]
        self.optimizer = torch.optim.AdamW(params, lr=1e-3, fused=True)

    def epoch(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Make one pass; returns the mean loss."""
        total = 0.0
        for n in range(0, x.shape[1], BATCH):
            state = None
            for t in range(0, x.shape[0], SEQ):
                xs, ys = x[t : t + SEQ, n : n + BATCH], y[t : t + SEQ, n : n + BATCH]
                h, state = self.lstm(xs, state)
                state = (state[0].detach(), state[1].detach())
                loss = mse_loss(self.head(h), ys)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                total += loss.item()
        return total / STEPS


def estimator(lstm: torch.nn.LSTM, head: torch.nn.Linear, *, progress: bool) -> fs.Estimator:
    model = fs.nn.Chain(copy.deepcopy(lstm), copy.deepcopy(head))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    spec = {"epochs": 1, "batchsize": BATCH, "seqsize": SEQ}
    return fs.Estimator(model, fs.seqloss(mse_loss), optimizer, spec, progress=progress, comm=None)


def check_parameters(est: fs.Estimator, plain: Plain) -> None:
    """Raise unless both have learnt the same, to 1e-6 of each parameter's norm."""
    theirs = [*plain.lstm.parameters(), *plain.head.parameters()]
    for p, q in zip(est.model.parameters(), theirs, strict=True):
        apart = float((p - q).detach().norm() / q.detach().norm())
        if not apart <= 1e-6:
            raise AssertionError(f"fit's parameters are {apart:.1e} off those of the plain loop")


def run(bench: Bench, threads: int, folder: Path) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x = torch.randn(T, N, F)
    y = x.mean(2, keepdim=True)
    lstm, head = torch.nn.LSTM(F, 10), torch.nn.Linear(10, 1)
    with h5py.File(folder / "data.h5", "w") as file:
        file["x"], file["y"] = x.numpy(), y.numpy()
    mapped = fs.h5mmap(folder / "data.h5", "x"), fs.h5mmap(folder / "data.h5", "y")

    quiet, shown, filed = (estimator(lstm, head, progress=p) for p in (False, True, False))
    plain = Plain(copy.deepcopy(lstm), copy.deepcopy(head))

    plain.epoch(x, y)
    for est, data in ((quiet, (x, y)), (filed, mapped)):
        est.fit(*data)
        check_parameters(est, plain)

    def with_bar() -> None:
        with Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
            shown.fit(x, y)

    bench.compare(
        f"{STEPS} steps of LSTM(10,10)+Linear, batchsize 20, seqsize 10, {threads} thread(s)",
        {
            "plain loop": lambda: plain.epoch(x, y),
            "Estimator.fit": lambda: quiet.fit(x, y),
            "Estimator.fit, progress bar": with_bar,
            "Estimator.fit, HDF5 file": lambda: filed.fit(*mapped),
        },
        marks=(Mark("Estimator.fit", 1.15), Mark("Estimator.fit, progress bar", 1.15)),
    )


def main() -> None:
    bench = Bench.from_arguments("fit", rounds=40)
    with tempfile.TemporaryDirectory() as folder:
        for threads in (1, 2):
            run(bench, threads, Path(folder))
    bench.write()


if __name__ == "__main__":
    main()
