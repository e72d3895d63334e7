"""Runs of fit that are killed at any moment and resumed end with the bits of one that was not."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import random
import re
import signal
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from campaign import Campaign, main

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from interrupted import (
    LOSS,
    Draws,
    Named,
    assert_same,
    chain,
    result_and_numbers,
    schedule,
    seed_all,
)
from interrupted import data as some_data
from killing import Launcher, Moment, draw_moment, kills, launcher
from models import Custom
from torch import nn, optim
from torch.optim import lr_scheduler

import fastseq as fs
from fastseq.callbacks import GL, NumberSinceBest, Patience, RestoreBest
from fastseq.checkpoint.format import read
from fastseq.training.known_optimizers import _KNOWN
from fastseq.training.native_step import native_obstacle

FUSED = (optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad)
MORE: dict[Any, list[dict[str, Any]]] = {
    optim.SGD: [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"weight_decay": 1e-3}],
    optim.Adam: [{"amsgrad": True}, {"betas": (0.8, 0.9)}],
    optim.AdamW: [{"amsgrad": True}, {"weight_decay": 0.1}],
    optim.RMSprop: [{"momentum": 0.5}, {"centered": True}],
    optim.Adagrad: [{"lr_decay": 1e-3}],
    optim.ASGD: [{"t0": 5.0}],
}


class Own(optim.SGD):
    """One that fastseq does not know."""


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))


def torchs_lstm() -> nn.Module:
    return fs.nn.Chain(nn.LSTM(3, 4), nn.Dropout(0.1), nn.Linear(4, 1))


_HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
MODELS: list[Any] = [
    chain, chain, functools.partial(chain, 3, 0.0), Named, linear, Custom, torchs_lstm,
    lambda: fs.nn.Chain(fs.nn.GRU(3, 5, num_layers=2, dropout=0.2), nn.Linear(5, 1)),
    lambda: fs.nn.Chain(fs.nn.RNN(3, 5), nn.Linear(5, 1)),
]  # fmt: skip
CALLBACKS: list[Any] = [
    lambda: schedule(lambda o: lr_scheduler.OneCycleLR(o, 0.02, 200, cycle_momentum=False)),
    lambda: schedule(lambda o: lr_scheduler.ExponentialLR(o, 0.9), "epoch"),
    lambda: schedule(lambda o: lr_scheduler.CosineAnnealingLR(o, 7)),
    lambda: Patience(2), RestoreBest, lambda: NumberSinceBest(2), lambda: GL(20.0), Draws,
]  # fmt: skip


@dataclasses.dataclass
class Plan:
    """A run that is drawn: what is trained, how, and how it is saved."""

    model: Any
    optimizer: Any
    spec: dict[str, Any]
    options: dict[str, Any]
    callbacks: list[Any]
    fit: dict[str, Any]
    every: dict[str, Any]

    @classmethod
    def draw(cls, draw: random.Random, ranks: int) -> Plan:
        """Draw one; several ranks on few cores take long."""
        kind = draw.choice([*_KNOWN, Own])
        more = draw.choice([{}, *MORE.get(kind, [])])
        if kind in FUSED and not more.get("nesterov") and draw.random() < 0.3:
            more = {**more, "fused": True}
        spec = {
            "epochs": draw.randint(1, 4 if ranks == 1 else 2), "batchsize": draw.randint(2, 4),
            "seqsize": draw.choice([4, 5, 9, 30]), "shuffle": draw.random() < 0.5,
            "accumulate": draw.choice([1, 1, 2, 3]), "clip_norm": draw.choice([None, 0.5]),
            "scale_x": draw.choice([None, None, "standard", "robust"]),
        }  # fmt: skip
        options: dict[str, Any] = {"amp": draw.choice([None, None, None, "bf16", "fp16"])}
        if draw.random() < 0.8:
            options["seed"] = draw.randrange(1000)
        fit: dict[str, Any] = {"validation": draw.choice([None, 0.3, {"time": 0.3}])}
        model = draw.choice(MODELS)
        if model is torchs_lstm:  # PyTorch's has no fp16 on CPUs, and bf16 only with AVX-512
            options["amp"] = "bf16" if options["amp"] and _HAS_BF16 else None
        if draw.random() < 0.3:
            fit["lengths"] = torch.tensor([draw.randint(2, 23) for _ in range(10)] + [23]).numpy()
            fit["validation"] = draw.choice([None, 0.3])
        callbacks = draw.sample(CALLBACKS, draw.randint(0, 3))
        every = {
            "every_updates": draw.choice([None, 1, 1, 2, 5]),
            "every_epochs": draw.choice([None, 1, 1, 2]),
            "every_minutes": draw.choice([None, None, 1e-4]), "keep": draw.randint(1, 3),
        }  # fmt: skip
        lr = {optim.SGD: 0.02, Own: 0.02, optim.Adadelta: 1.0, optim.RMSprop: 1e-3}.get(kind, 1e-2)
        make = functools.partial(kind, lr=lr, **more)
        return cls(model, make, spec, options, callbacks, fit, every)

    def run(self, comm: Any, moment: Moment | None, **fit: Any) -> fs.Estimator:
        """Run it, and call `moment`'s callback."""
        seed_all()
        callbacks = [make() for make in self.callbacks]
        callbacks += kills(moment, 0 if comm is None else comm.rank)
        est = fs.Estimator(
            self.model(), LOSS, self.optimizer, self.spec, callbacks=callbacks, comm=comm,
            progress=False, **self.options,
        )  # fmt: skip
        return est.fit(*some_data(), **self.fit, **fit)

    def checkpoint(self, folder: Path) -> fs.callbacks.Checkpoint:
        return fs.callbacks.Checkpoint(folder, **self.every)


NAMES = re.compile(
    r"checkpoint-\d{6}\.safetensors|\.lock|\.checkpoint-\d{6}\.safetensors\.\w+\.(tmp|lock)"
)


def check_files(folder: Path, keep: int, *, ended: bool) -> None:
    """Raise unless all files are whole, and what is left of killed writers is known as such."""
    names = sorted(os.listdir(folder)) if folder.exists() else []
    whole = [name for name in names if not name.startswith(".")]
    for name in names:
        assert NAMES.fullmatch(name), names
    # One more than is kept if a run is killed before it removes the oldest: the next writer does.
    assert len(whole) <= keep + 1, names
    for name in whole:
        read(folder / name)
    if ended:
        assert whole, names
        assert whole == names, names


def rank_of(comm: Any) -> int:
    return 0 if comm is None else int(comm.rank)


class Case:
    """A run, killed and resumed until it is done.

    Parameters
    ----------
    number
        Its number, from which all is drawn.
    folder
        An empty folder.
    ranks
        The number of ranks.
    """

    def __init__(self, number: int, folder: Path, ranks: int) -> None:
        self._draw = random.Random(10 * number + ranks)  # noqa: S311
        self._plan = Plan.draw(self._draw, ranks)
        self._folder, self._ranks = folder, ranks
        self._temporary = folder / "temporary"
        self._temporary.mkdir()
        tempfile.tempdir = str(self._temporary)
        warnings.simplefilter("ignore")
        print(self._plan, flush=True)

    def do(self) -> str:
        """Do it, and return what it was."""
        plan, draw, settings = self._plan, self._draw, self._plan.checkpoint(self._folder / "run")
        with launcher(self._ranks, hosted=draw.random() < 0.8) as starts:
            statuses = starts.start(self._first)
            assert not any(statuses), statuses
            first = torch.load(self._folder / "whole-0.pt", weights_only=False)
            kinds = []
            for _ in range(draw.choice([1, 1, 2, 3])):
                moment = draw_moment(draw, self._ranks, first["updates"], first["size"])
                print(moment, flush=True)
                kinds.append(str(moment))
                self._interrupt(starts, moment, first["seconds"])
                check_files(settings.folder, plan.every["keep"], ended=False)
            statuses = starts.start(self._last)
        assert not any(statuses), statuses
        check_files(settings.folder, plan.every["keep"], ended=True)
        assert not os.listdir(self._temporary), os.listdir(self._temporary)
        return f"{first['path']}, {kinds[0]}"

    def _first(self, comm: Any) -> None:
        """Run what is not killed; note how long it takes."""
        plan, rank = self._plan, rank_of(comm)
        folder = self._folder / "first"
        start = time.perf_counter()
        est = plan.run(comm, None, checkpoint=plan.checkpoint(folder))
        seconds = time.perf_counter() - start
        whole = {
            "result": result_and_numbers(est), "seconds": seconds,
            "updates": sum(row["updates"] for row in est.history_),
            "path": "torch" if native_obstacle(est._learner) else "native",
            "size": 1 if rank else max(path.stat().st_size for path in folder.iterdir()),
        }  # fmt: skip
        torch.save(whole, self._folder / f"whole-{rank}.pt")

    def _resumed(self, comm: Any, moment: Moment | None = None) -> fs.Estimator:
        checkpoint = self._plan.checkpoint(self._folder / "run")
        return self._plan.run(comm, moment, checkpoint=checkpoint, resume="auto")

    def _interrupt(self, starts: Launcher, moment: Moment, seconds: float) -> None:
        """Start it, and kill it at a moment."""
        goes_on = self._ranks == 1 and self._draw.random() < 0.5

        def job(comm: Any) -> None:
            try:
                self._resumed(comm, moment)
            except KeyboardInterrupt:
                if not goes_on:
                    raise
                self._resumed(comm)  # as in a notebook

        statuses = starts.start(job, moment, seconds)
        print([_told(status) for status in statuses], flush=True)
        killers = {moment.signal, signal.SIGKILL}
        for status in statuses:
            if os.WIFSIGNALED(status):
                assert os.WTERMSIG(status) in killers, statuses
            else:  # it was too late for a kill, or another rank is gone
                interrupted = self._ranks > 1 or moment.signal == signal.SIGINT
                assert os.WEXITSTATUS(status) <= interrupted, statuses

    def _last(self, comm: Any) -> None:
        """Resume it to its end, compare it, and resume once more, when nothing is left to do."""
        whole = torch.load(self._folder / f"whole-{rank_of(comm)}.pt", weights_only=False)
        for _ in range(2):
            assert_same(whole["result"], result_and_numbers(self._resumed(comm)))


def _told(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"ends with {os.WEXITSTATUS(status)}"


def case_of(ranks: int, number: int, folder: Path) -> str:
    return Case(number, folder, ranks).do()


def warm_up() -> None:
    """Import what PyTorch imports when it is first used, and start no threads."""
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(12):
            plan = Plan.draw(random.Random(number), 1)  # noqa: S311
            plan.spec["epochs"] = 1
            with tempfile.TemporaryDirectory() as folder:
                plan.run(None, None, checkpoint=folder)


_WHAT = "{} that are killed up to three times, at any moment, and resumed end with the same bits"
CAMPAIGNS = [
    Campaign(
        "kills-1", functools.partial(case_of, 1), 1000, 120, _WHAT.format("Runs of a process")
    ),
    Campaign("kills-2", functools.partial(case_of, 2), 1000, 300, _WHAT.format("Runs of 2 ranks")),
    Campaign("kills-4", functools.partial(case_of, 4), 1000, 300, _WHAT.format("Runs of 4 ranks")),
]

if __name__ == "__main__":
    warm_up()
    main(CAMPAIGNS)
