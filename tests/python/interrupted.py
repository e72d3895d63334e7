"""Runs of fit that are killed: ``python interrupted.py`` kills and resumes them, and compares.

Each run is a process of its own, forked from one that has imported all that is needed.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import lr_scheduler

import fastseq as fs

LOSS = fs.seqloss(mse_loss)
State = collections.namedtuple("State", ["h", "steps"])


class Named(nn.Module):
    """Has a state of its own kind, dropout, and statistics of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.GRU(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        if state is None:
            state = State(None, x.new_zeros(x.shape[1]))
        h, last = self.inner(x, state.h)
        if self.training:
            self.calls += 1
        h = nn.functional.dropout(self.norm(h.flatten(0, 1)).view_as(h), 0.2, self.training)
        age = state.steps.view(1, -1, 1) + torch.arange(len(x)).view(-1, 1, 1)
        weight = (1 + self.calls.sin()) * (1 + age / 100)
        return self.head(h) * weight, State(last, state.steps + len(x))


class Draws(fs.callbacks.Callback):
    """Draws from everybody's generators, and changes weights by what comes out of it."""

    def __init__(self) -> None:
        self.seen = 0.0

    def on_epoch_begin(self, run: Any) -> None:
        self.seen = 0.0
        self._move(run)

    def on_batch_end(self, run: Any) -> None:
        self.seen += run.loss
        if run.updates % 3 == 0:
            self._move(run)

    def on_epoch_end(self, run: Any) -> None:
        run.row["seen"] = self.seen + torch.rand(()).item()

    def _move(self, run: Any) -> None:
        by = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002, S311
        by = run.same(by)
        with torch.no_grad():
            next(run.model.parameters()).mul_(1 + 1e-3 * by)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def chain(hidden: int = 6, dropout: float = 0.3) -> fs.nn.Chain:
    return fs.nn.Chain(fs.nn.LSTM(3, hidden), nn.Dropout(dropout), nn.Linear(hidden, 1))


def schedule(make: Any, per: str = "update") -> fs.callbacks.Schedule:
    return fs.callbacks.Schedule(make, per=per)


# For each case: model, optimizer, spec, estimator's options, callbacks, fit's options.
Case = tuple[Any, Any, dict[str, Any], dict[str, Any], Callable[[], list[Any]], dict[str, Any]]

CASES: dict[str, Case] = {
    "validation by time": (
        chain, lambda p: torch.optim.AdamW(p, lr=1e-2), {"shuffle": True}, {"seed": 1},
        lambda: [schedule(lambda o: lr_scheduler.OneCycleLR(o, 0.05, 80))],
        {"validation": {"time": 0.3}},
    ),
    "no seed, accumulated": (
        chain, lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9), {"accumulate": 3}, {},
        lambda: [schedule(lambda o: lr_scheduler.ExponentialLR(o, 0.9), "epoch"), Draws()],
        {"validation": 0.3},
    ),
    "states of its own kind": (
        Named, lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True), {"clip_norm": 0.5},
        {"seed": 2},
        lambda: [fs.callbacks.Patience(2), fs.callbacks.RestoreBest(), Draws()],
        {"validation": {"time": 0.25}},
    ),
    "fp16, scaled, unequal lengths": (
        lambda: chain(4), lambda p: torch.optim.RMSprop(p, momentum=0.5),
        {"scale_x": "standard", "shuffle": True}, {"seed": 3, "amp": "fp16"},
        lambda: [fs.callbacks.NumberSinceBest(2)],
        {"lengths": np.array([23, 20, 3, 11, 23, 7, 19, 2, 5, 13, 8])},
    ),
}  # fmt: skip


class Kill:
    """Ends the process as a failure of power would."""

    def __init__(self, update: int) -> None:
        self._update = update

    def on_batch_end(self, run: Any) -> None:
        if run.updates >= self._update:
            os.kill(os.getpid(), signal.SIGKILL)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(23, 11, 3, generator=generator)
    return x, x.mean(2, keepdim=True).roll(1, 0)


def seed_all() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


def run(case: str, *, kill: int | None = None, comm: Any = None, **fit: Any) -> fs.Estimator:
    """Make the whole program's run, which may be killed after `kill` updates."""
    model, optimizer, spec, options, callbacks, more = CASES[case]
    seed_all()
    spec = {"epochs": 4, "batchsize": 3, "seqsize": 5, **spec}
    listed = [*callbacks(), *([] if kill is None else [Kill(kill)])]
    est = fs.Estimator(
        model(), LOSS, optimizer, spec, callbacks=listed, comm=comm, progress=False, **options
    )
    return est.fit(*data(), **more, **fit)


def result(est: fs.Estimator) -> dict[str, Any]:
    """Return all that two runs must have in common, to the bit."""
    timeless = [
        {key: value for key, value in row.items() if "second" not in key} for row in est.history_
    ]
    return {
        "model": est.model.state_dict(), "buffers": dict(est.model.named_buffers()),
        "optimizer": est.optimizer.state_dict(), "history": timeless, "stopped": est.stop_reason_,
        "scaler": est._learner.precision.state_dict(),
    }  # fmt: skip


def result_and_numbers(est: fs.Estimator) -> dict[str, Any]:
    """Return which random numbers come next, too."""
    numbers = random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002, S311
    return {**result(est), "numbers": numbers}


def assert_same(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), (path, a.keys(), b.keys())
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), (path, len(a), len(b))
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            assert_same(p, q, f"{path}.{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, (path, a, b)


class Stop(Exception):  # noqa: N818
    """What ends a run in these tests."""


def stop_after(updates):
    class StopAfter(fs.callbacks.Callback):
        def on_batch_end(self, run):
            if run.updates == updates:
                raise Stop

    return StopAfter()


def estimator(
    *callbacks, model=None, epochs=3, seed=1, optimizer=None, comm=None, device="cpu", **spec
):
    seed_all()
    spec = {"epochs": epochs, "batchsize": 3, "seqsize": 5, **spec}
    return fs.Estimator(
        model or chain(), LOSS, optimizer or (lambda p: torch.optim.AdamW(p, lr=1e-2)), spec,
        callbacks=callbacks, progress=False, seed=seed, comm=comm, device=device,
    )  # fmt: skip


EPOCH = 20  # updates of `estimator` on `data`


def interrupted(folder, updates, every_updates=1, **options):
    checkpoint = fs.callbacks.Checkpoint(folder, every_updates=every_updates)
    with contextlib.suppress(Stop):
        estimator(stop_after(updates), **options).fit(*data(), checkpoint=checkpoint)
        raise AssertionError("it was not stopped")


def files(folder: Any) -> list[str]:
    return sorted(os.listdir(folder))


def in_a_process(function: Callable[[], None]) -> int:
    """Run a function in a process of its own; return what `os.waitpid` tells of its end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        function()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def kill_and_resume(case: str, seed: int) -> None:
    """Kill a run twice, at drawn updates, and compare it with one that was not."""
    draw = random.Random(seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        whole = os.path.join(folder, "whole.pt")
        status = in_a_process(lambda: torch.save(result_and_numbers(run(case)), whole))
        assert status == 0, (case, status)
        last = sum(row["updates"] for row in torch.load(whole)["history"])
        kills = sorted(draw.sample(range(2, last), 2))
        every = draw.choice([1, 1, 2, 5, None])
        settings = fs.callbacks.Checkpoint(os.path.join(folder, "run"), every_updates=every)
        print(f"{case}: {last} updates, killed at {kills}, saved every {every}", flush=True)
        for kill in kills:
            status = in_a_process(
                lambda kill=kill: run(case, kill=kill, checkpoint=settings, resume="auto")
            )
            assert status == signal.SIGKILL, (case, kill, status)

        def finish() -> None:
            est = run(case, checkpoint=settings, resume="auto")
            assert_same(torch.load(whole), result_and_numbers(est), case)
            again = run(case, checkpoint=settings, resume="auto")  # nothing is left to do
            assert_same(torch.load(whole), result_and_numbers(again), case)

        assert in_a_process(finish) == 0, (case, kills, every)


if __name__ == "__main__":
    torch.set_num_threads(1)  # no threads, which forked processes would lack
    for name in CASES:
        run(name)  # PyTorch imports much when it is first used
    for number in range(int(sys.argv[1])):
        for name in CASES:
            kill_and_resume(name, number)
