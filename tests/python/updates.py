"""Updates in C++ and by autograd, compared one by one, for tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.training import fit
from fastseq.training.loop import Trainer
from fastseq.training.native_step import NativeTrainer

NAMES = "loss", "parameters", "gradients"

FEATURES = 3
X = torch.randn(40, 6, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X[..., :1] * 0.5
SPEC = {"epochs": 3, "batchsize": 3, "seqsize": 7}


def small(optimizer: Any = optim.AdamW, loss: Any = mse_loss, **more: Any) -> fs.Estimator:
    """Return an estimator of a small model in fp64, to be trained on `X` and `Y`."""
    torch.manual_seed(0)
    outputs = more.pop("outputs", 1)
    model = fs.nn.Chain(fs.nn.LSTM(FEATURES, 5), nn.Linear(5, outputs)).double()
    spec = SPEC | more.pop("spec", {})
    return fs.Estimator(
        model,
        fs.seqloss(loss),
        optimizer(model.parameters(), lr=1e-2),
        spec,
        progress=False,
        **more,
    )


def parametrize(metafunc: pytest.Metafunc, modules: set[str], sample: set[str]) -> None:
    """Run the tests of some modules both ways: by torch only those of a sample, or with slow tests."""
    name = metafunc.module.__name__
    if name in modules:
        metafunc.fixturenames.append("updates_by")
        by_torch = pytest.param("torch", marks=() if name in sample else pytest.mark.slow)
        metafunc.parametrize("updates_by", ["fastseq", by_torch], indirect=True)


def drawn_model(rng: random.Random, outputs: int) -> nn.Module:
    """Return layers one after another, of drawn kinds and sizes."""
    layers: list[nn.Module] = []
    width = FEATURES
    act = rng.choice([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity])()
    for _ in range(rng.randint(0, 2)):
        linear = nn.Linear(width, size := rng.choice([1, 5, 17]), bias=rng.random() < 0.8)
        layers.append(nn.Sequential(linear, act))  # the same one twice
        width = size
    if rng.random() < 0.8:
        kind = rng.choice([fs.nn.LSTM, fs.nn.GRU, fs.nn.RNN, nn.LSTM, nn.GRU, nn.RNN])
        hidden, both = rng.choice([1, 4, 10, 19]), rng.random() < 0.3
        layers.append(
            kind(
                width, hidden, rng.choice([1, 1, 2, 3]), bidirectional=both, bias=rng.random() < 0.8
            )
        )
        width = hidden * (2 if both else 1)
    layers.append(nn.Linear(width, outputs))
    return layers[0] if len(layers) == 1 else fs.nn.Chain(*layers)


def drawn_runs(count: int, sample: int) -> list[Any]:
    """Return numbers of drawn runs; those beyond a sample are slow tests."""
    return [pytest.param(i, marks=pytest.mark.slow if i >= sample else ()) for i in range(count)]


@pytest.fixture
def updates_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `fit` run updates in C++ where it can, or always by torch."""
    if request.param == "torch":
        monkeypatch.setattr(fit, "_trainer_for", lambda learner: Trainer)


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that trains by autograd."""

    def train(est: Any, *data: Any, **more: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(fit, "_trainer_for", lambda learner: Trainer)
            return est.fit(*data, **more)

    return train


@pytest.fixture
def natively(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Count what is trained in C++."""
    counts: list[Any] = []
    real = NativeTrainer._train_natively

    def counted(self: NativeTrainer, *args: Any) -> Any:
        counts.append(real(self, *args))
        return counts[-1]

    monkeypatch.setattr(NativeTrainer, "_train_natively", counted)
    return counts


class Record(fs.callbacks.Callback):
    """What each update leaves."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[Any], ...]] = []

    def on_batch_end(self, run: Any) -> None:
        params = [p.detach().clone() for p in run.model.parameters()]
        grads = [p.grad.clone() for p in run.model.parameters() if p.grad is not None]
        self.seen.append(([run.loss], params, grads))


class Follow(Record):
    """Compare updates with recorded ones, and go on from their parameters, so that rounding does not add up."""

    def __init__(self, record: Record, itemsize: int) -> None:
        super().__init__()
        self.record, self.itemsize = record, itemsize

    def on_batch_end(self, run: Any) -> None:
        super().on_batch_end(run)
        update = len(self.seen) - 1
        recorded = self.record.seen[update]
        for name, a, b in zip(NAMES, recorded, self.seen[update], strict=True):
            assert_close(a, b, self.itemsize, f"{name} of update {update}")
        with torch.no_grad():
            for p, q in zip(run.model.parameters(), recorded[1], strict=True):
                p.copy_(q)


def compared(
    make: Callable[..., Any], data: dict[str, Any], itemsize: int, by_torch: Callable[..., Any]
) -> tuple[Any, Any]:
    """Train in C++ and by torch, compare each update, and return both estimators."""
    ours = Record()
    native = make(ours).fit(**data)
    theirs = Follow(ours, itemsize)
    plain = by_torch(make(theirs), **data)
    assert len(ours.seen) == len(theirs.seen) > 1
    return native, plain


def assert_close(a: list[Any], b: list[Any], itemsize: int, what: str, times: float = 1) -> None:
    """Compare tensors to a part of the largest element among them: sums may cancel out."""
    a, b = ([torch.as_tensor(v) for v in values] for values in (a, b))
    assert len(a) == len(b), what
    rtol = times * (1e-12 if itemsize == 8 else 1e-5)
    most = max((float(v.abs().nan_to_num().max()) for v in b if v.numel()), default=0.0)
    for own, other in zip(a, b, strict=True):
        torch.testing.assert_close(
            own, other, rtol=rtol, atol=rtol * most, equal_nan=True, msg=lambda m: f"{what}: {m}"
        )
