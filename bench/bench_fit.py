"""`Estimator.fit` beside a loop written by hand, skorch and Lightning, which all learn the same.

One epoch is one sample. Data are in memory (or in a file), models and optimizers are made; all else
that a user's call does for an epoch counts: slicing the data, the loop, the mean loss, callbacks.
skorch and Lightning are left out where they are not installed.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import h5py
import torch
from harness import Bench, Mark
from recurrent import Shape
from roofline import Work
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fastseq as fs

# What may lie between the loop's loss and parameters and a contender's, as a part of their norms.
# Other kernels round otherwise in every step: in single precision, the loop itself ends the small
# task's epoch 2.5e-6 off what it learns in double precision.
SAME_KERNELS, OTHER_KERNELS = 1e-6, 1e-5
OURS, SAME_MODULES, COMPILED = "fit", "fit, torch.nn.LSTM", "plain loop, torch.compile"
Make = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """Truncated back-propagation over `length` steps of `sequences` sequences."""

    shape: Shape
    length: int
    sequences: int

    @property
    def steps(self) -> int:
        return (self.length // self.shape.s) * (self.sequences // self.shape.n)

    def __str__(self) -> str:
        f, h, n, s = dataclasses.astuple(self.shape)
        return f"{self.steps} steps of LSTM({f},{h})+Linear, batchsize {n}, seqsize {s}"

    def work(self) -> Work:
        """Count what the LSTM has to do in an epoch; the rest is small."""
        step = self.shape.work("LSTM", backward=True)
        return Work(self.steps * step.operations, self.steps * step.bytes_moved)


SMALL = Task(Shape(10, 10, 20, 10), length=200, sequences=200)
LARGE = Task(Shape(64, 256, 128, 50), length=100, sequences=256)


class Plain:
    """The loop that a good PyTorch user writes. A call is an epoch."""

    epochs: ClassVar[int] = 1

    def __init__(
        self, lstm: nn.LSTM, head: nn.Linear, x: Tensor, y: Tensor, batchsize: int, seqsize: int
    ) -> None:
        self.lstm, self.head, self.x, self.y = lstm, head, x, y
        self.batchsize, self.seqsize = batchsize, seqsize
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)

    def __call__(self) -> None:
        total, steps = 0.0, 0
        for n in range(0, self.x.shape[1], self.batchsize):
            state = None
            for t in range(0, self.x.shape[0], self.seqsize):
                chunk = slice(t, t + self.seqsize), slice(n, n + self.batchsize)
                loss, state = self.forward(self.x[chunk], self.y[chunk], state)
                state = (state[0].detach(), state[1].detach())
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                total += loss.item()
                steps += 1
        self.loss = total / steps

    def forward(self, x: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        h, state = self.lstm(x, state)
        return mse_loss(self.head(h), y), state

    def parameters(self) -> list[nn.Parameter]:
        return [*self.lstm.parameters(), *self.head.parameters()]


class Compiled(Plain):
    """The loop with its forward pass, and so backward, compiled."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.forward = torch.compile(super().forward)  # type: ignore[method-assign]


class Fit:
    """The same by `Estimator.fit`."""

    epochs: ClassVar[int] = 1

    def __init__(
        self, lstm: nn.LSTM, head: nn.Linear, x: Any, y: Any, batchsize: int, seqsize: int,
        *, progress: bool = False,
    ) -> None:  # fmt: skip
        self.x, self.y = x, y
        model = fs.nn.Chain(lstm, head)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        spec = {"epochs": 1, "batchsize": batchsize, "seqsize": seqsize}
        self.est = fs.Estimator(
            model, fs.seqloss(mse_loss), optimizer, spec, progress=progress, comm=None
        )

    def __call__(self) -> None:
        with Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
            self.est.fit(self.x, self.y)

    @property
    def loss(self) -> float:
        return float(self.est.history_[-1]["loss"])

    def parameters(self) -> list[nn.Parameter]:
        return list(self.est.model.parameters())


def peers(bench: Bench, module: str, names: dict[str, str]) -> dict[str, Make]:
    """Return what is in `module`, if the library that it needs is installed."""
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        bench.say(f"{error}: {' and '.join(names)} left out (pip install --group bench)")
        return {}
    return {name: getattr(found, attribute) for name, attribute in names.items()}


def check(name: str, found: Any, plain: Plain, tolerance: float) -> None:
    """Raise unless both have learnt the same: loss and parameters, to a part of their norms."""
    for _ in range(found.epochs):
        plain()
    found()
    apart = [abs(found.loss - plain.loss) / plain.loss]
    for p, q in zip(found.parameters(), plain.parameters(), strict=True):
        apart.append(float((p - q).detach().norm() / q.detach().norm()))
    if not max(apart) <= tolerance:
        raise AssertionError(f"{name}: the loss or a parameter is {max(apart):.1e} off")


def run(bench: Bench, task: Task, makers: dict[str, Make], marks: tuple[Mark, ...]) -> None:
    """Check and time contenders; those whose name tells no other module use `fastseq.nn.LSTM`."""
    torch.manual_seed(0)
    shape = task.shape
    x = torch.randn(task.length, task.sequences, shape.f)
    y = x.mean(2, keepdim=True)
    lstm, head = nn.LSTM(shape.f, shape.h), nn.Linear(shape.h, 1)
    ours = fs.nn.LSTM(shape.f, shape.h)
    ours.load_state_dict(lstm.state_dict())

    contenders: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(Path(folder) / "data.h5", "w") as file:
            file["x"], file["y"] = x.numpy(), y.numpy()
        mapped = [fs.h5mmap(Path(folder) / "data.h5", name) for name in "xy"]
        for name, make in makers.items():
            own = name.startswith(OURS) and name != SAME_MODULES
            data = mapped if "HDF5" in name else (x, y)
            model = (ours if own else lstm), head
            contenders[name] = make(*copy.deepcopy(model), *data, shape.n, shape.s)
            plain = Plain(*copy.deepcopy((lstm, head)), x, y, shape.n, shape.s)
            others = name.startswith(OURS) or name == COMPILED
            check(name, contenders[name], plain, OTHER_KERNELS if others else SAME_KERNELS)
        bench.compare(
            f"{task}, {torch.get_num_threads()} thread(s)",
            contenders,
            work=task.work(),
            marks=tuple(m for m in marks if m.against is None or m.against in makers),
        )


def main() -> None:
    bench = Bench.from_arguments("fit", rounds=40)
    others = {
        **peers(bench, "peer_skorch", {"skorch": "Skorch"}),
        **peers(
            bench,
            "peer_lightning",
            {"Lightning": "Manual", "Lightning, automatic": "Automatic"},
        ),
    }
    small = {
        "plain loop": Plain,
        COMPILED: Compiled,
        OURS: Fit,
        f"{OURS}, progress bar": functools.partial(Fit, progress=True),
        f"{OURS}, HDF5 file": Fit,
        SAME_MODULES: Fit,
        **others,
    }
    large = {"plain loop": Plain, OURS: Fit, SAME_MODULES: Fit}
    marks = (Mark(OURS, 1 / 10), *(Mark(OURS, 1 / 12, name) for name in others))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        run(bench, SMALL, small, (*marks, Mark(SAME_MODULES, 1 / 10)))
        run(bench, LARGE, large, (Mark(OURS, 1 / 1.1), Mark(SAME_MODULES, 1.15)))
    bench.write()


if __name__ == "__main__":
    main()
