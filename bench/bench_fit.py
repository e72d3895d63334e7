"""`Estimator.fit` beside a loop written by hand, skorch and Lightning, which all learn the same.

One epoch is one sample. Data are in memory (or in a file), models and optimizers are made; all else
that a user's call does for an epoch counts: slicing the data, the loop, the mean loss, callbacks.
skorch and Lightning are left out where they are not installed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import h5py
import torch
from fit_classifier import Classify, FitClassifier, PlainClassifier
from fit_tasks import Deep, Forecast, Task, detached
from harness import Bench, Mark
from recurrent import Shape
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fastseq as fs

# What may lie between the loop's loss and parameters and a contender's, as a part of their norms.
# Other kernels round otherwise in every step: in single precision, the loop itself ends the small
# task's epoch 2.5e-6 off what it learns in double precision.
SAME_KERNELS, OTHER_KERNELS = 1e-6, 1e-5
OURS, SAME_MODULES, COMPILED = "fit", "fit, torch's layer", "plain loop, torch.compile"
Make = Callable[..., Any]


SMALL = Task(Shape(10, 10, 20, 10), length=200, sequences=200)
WIDE = Task(Shape(10, 10, 256, 10), length=500, sequences=512)
MIDDLE = Task(Shape(32, 64, 64, 32), length=256, sequences=256)
LARGE = Task(Shape(64, 256, 128, 50), length=100, sequences=256)
DEEP = Deep(Shape(10, 32, 32, 20), length=400, sequences=64)
CLASSIFY = Classify(Shape(6, 32, 32, 60), sequences=512, classes=5)
FORECAST = Forecast(Shape(96, 32, 64, 1), length=20, sequences=128)


class Plain:
    """The loop that a good PyTorch user writes. A call is an epoch."""

    epochs: ClassVar[int] = 1

    def __init__(
        self, layer: nn.Module, head: nn.Module, x: Tensor, y: Tensor, batchsize: int, seqsize: int
    ) -> None:
        self.layer, self.head, self.x, self.y = layer, head, x, y
        self.batchsize, self.seqsize = batchsize, seqsize
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)

    def __call__(self) -> None:
        total, steps = 0.0, 0
        for n in range(0, self.x.shape[1], self.batchsize):
            state = None
            for t in range(0, self.x.shape[0], self.seqsize):
                chunk = slice(t, t + self.seqsize), slice(n, n + self.batchsize)
                loss, state = self.forward(self.x[chunk], self.y[chunk], state)
                state = detached(state)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                total += loss.item()
                steps += 1
        self.loss = total / steps

    def forward(self, x: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        h, state = self.layer(x, state)
        return mse_loss(self.head(h), y), state

    def parameters(self) -> list[nn.Parameter]:
        return [*self.layer.parameters(), *self.head.parameters()]


class Compiled(Plain):
    """The loop with its forward pass, and so backward, compiled."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.forward = torch.compile(super().forward)  # type: ignore[method-assign]


class Fit:
    """The same by `Estimator.fit`."""

    epochs: ClassVar[int] = 1

    def __init__(
        self, layer: nn.Module, head: nn.Module, x: Any, y: Any, batchsize: int, seqsize: int,
        *, progress: bool = False, amp: str | None = None,
    ) -> None:  # fmt: skip
        self.x, self.y = x, y
        model = fs.nn.Chain(layer, head)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        spec = {"epochs": 1, "batchsize": batchsize, "seqsize": seqsize}
        self.est = fs.Estimator(
            model, fs.seqloss(mse_loss), optimizer, spec,
            amp=amp, progress=progress, comm=None,
        )  # fmt: skip

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


def run(bench: Bench, task: Task, makers: dict[str, Make], marks: tuple[Mark, ...] = ()) -> None:
    """Check and time contenders; those of ours whose name tells no other module use our layers."""
    torch.manual_seed(0)
    x, y = task.data()
    layer, head = task.layer(), task.head()
    contenders: dict[str, Any] = {}
    layers = []
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(Path(folder) / "data.h5", "w") as file:
            file["x"], file["y"] = x.numpy(), y.numpy()
        mapped = [fs.h5mmap(Path(folder) / "data.h5", name) for name in "xy"]
        for name, make in makers.items():
            ours = name.startswith(OURS) and name != SAME_MODULES
            data = mapped if "HDF5" in name else (x, y)
            model = task.own(layer) if ours else copy.deepcopy(layer), copy.deepcopy(head)
            layers.append(model[0])
            contenders[name] = make(*model, *data, task.shape.n, task.shape.s)
            plain = Plain(*copy.deepcopy((layer, head)), x, y, task.shape.n, task.shape.s)
            others = name.startswith(OURS) or name == COMPILED
            check(name, contenders[name], plain, OTHER_KERNELS if others else SAME_KERNELS)
        for own in layers if task.dropout else []:
            own.dropout = task.dropout  # all draw it in their own ways
        bench.compare(
            f"{task}, {torch.get_num_threads()} thread(s)",
            contenders,
            work=task.work(),
            marks=tuple(m for m in marks if m.against is None or m.against in makers),
        )


def run_classifier(bench: Bench, task: Classify, makers: dict[str, Make]) -> None:
    """Check and time contenders that learn classes of sequences of different lengths."""
    torch.manual_seed(0)
    data, network = task.data(), task.network()
    contenders: dict[str, Any] = {}
    for name, make in makers.items():
        contenders[name] = make(copy.deepcopy(network), data, task.shape.n)
        plain = PlainClassifier(copy.deepcopy(network), data, task.shape.n)
        check(name, contenders[name], plain, OTHER_KERNELS if name == OURS else SAME_KERNELS)
    title = f"{task}, {torch.get_num_threads()} thread(s)"
    bench.compare(title, contenders, work=task.work())


def main() -> None:
    bench = Bench.from_arguments("fit", rounds=10)
    others = {
        **peers(bench, "peer_skorch", {"skorch": "Skorch"}),
        **peers(
            bench,
            "peer_lightning",
            {"Lightning": "Manual", "Lightning, automatic": "Automatic"},
        ),
    }
    classifiers = {
        "plain loop": PlainClassifier,
        OURS: FitClassifier,
        **peers(bench, "peer_skorch", {"skorch": "SkorchClassifier"}),
        **peers(bench, "peer_lightning", {"Lightning": "Classifier"}),
    }
    loops = {"plain loop": Plain, COMPILED: Compiled}
    each = {**loops, OURS: Fit, SAME_MODULES: Fit, **others}
    small = {**each, f"{OURS}, progress bar": functools.partial(Fit, progress=True)}
    small[f"{OURS}, HDF5 file"] = Fit
    windows = {**loops, OURS: Fit, **others}
    large = {"plain loop": Plain, OURS: Fit, SAME_MODULES: Fit}
    faster = tuple(Mark(OURS, 1 / 12, name) for name in others)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        run(bench, SMALL, small, (Mark(OURS, 1 / 10), *faster, Mark(f"{OURS}, HDF5 file", 1 / 10)))
        run(bench, WIDE, each, (Mark(OURS, 1 / 3.5),))
        run(bench, MIDDLE, each, (Mark(OURS, 1 / 1.6),))
        run(bench, LARGE, large, (Mark(OURS, 1 / 1.2), Mark(SAME_MODULES, 1.03)))
        run(bench, DEEP, each)
        run_classifier(bench, CLASSIFY, classifiers)
        run(bench, FORECAST, windows)
    bench.write()


if __name__ == "__main__":
    main()
