"""Predictions that C++ runs whole: those by torch to rounding, those of single steps to the bit."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn.functional import mse_loss
from updates import FEATURES, SPEC, X, drawn_model

import fastseq as fs
from fastseq._util.tree import tree_leaves
from fastseq.inference import predictor
from fastseq.inference.native_forward import NativeForward


def untrained(model: nn.Module, **spec: Any) -> fs.Estimator:
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return fs.Estimator(model, fs.seqloss(mse_loss), optimizer, SPEC | spec, progress=False)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Count the chunks that C++ runs."""
    counts: list[Any] = []
    real = NativeForward.__call__

    def counted(self: NativeForward, x: torch.Tensor) -> torch.Tensor:
        counts.append(x.shape)
        return real(self, x)

    monkeypatch.setattr(NativeForward, "__call__", counted)
    return counts


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that predicts by torch's operators."""

    def predict(est: fs.Estimator, *data: Any, **more: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(predictor.Predictor, "_runner", lambda self, stateful, *_: stateful)
            return est.predict(*data, **more)

    return predict


@pytest.mark.filterwarnings("ignore:.*bidirectional")
@pytest.mark.parametrize("number", range(40))
def test_drawn_models_predict_as_by_torch(number, by_torch, runs):
    rng = random.Random(number)  # noqa: S311
    torch.manual_seed(number)
    dtype = rng.choice([torch.float32, torch.float64])
    model = drawn_model(rng, 2).to(dtype)
    x = torch.randn(rng.choice([1, 13, 40]), rng.choice([1, 5, 20]), FEATURES, dtype=dtype)
    lengths = None
    if rng.random() < 0.5:
        lengths = [rng.randint(0, len(x)) for _ in range(x.shape[1] - 1)] + [len(x)]
    ours, theirs = (
        untrained(copy.deepcopy(model), batchsize=rng.choice([3, 7]), seqsize=6) for _ in range(2)
    )
    again = not any(getattr(layer, "bidirectional", False) for layer in model.modules())
    for first in (True, False) if again else (True,):
        more = {"reset": first} if lengths is None else {"reset": first, "lengths": lengths}
        y, wanted = ours.predict(x, **more), by_torch(theirs, x, **more)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        np.testing.assert_allclose(y, wanted, rtol=tolerance, atol=tolerance)
    assert bool(runs) == again
    if again and any(isinstance(layer, nn.RNNBase) for layer in model.modules()):
        for a, b in zip(*map(tree_leaves, (ours.get_state(), theirs.get_state())), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.LSTM, fs.nn.GRU, nn.RNN])
def test_single_steps_have_the_bits_of_whole_predictions(layer, runs):
    torch.manual_seed(0)
    est = untrained(fs.nn.Chain(layer(FEATURES, 5, 2), nn.Tanh(), nn.Linear(5, 1)).double())
    whole = est.predict(X)
    assert runs
    est.reset_state()
    steps = [est.step(x_t) for x_t in X]
    assert np.array_equal(whole, torch.stack(steps).numpy())


def test_hooks_see_predictions(runs):
    seen = []
    model = fs.nn.Chain(fs.nn.LSTM(FEATURES, 5), nn.Linear(5, 1)).double()
    model[1].register_forward_hook(lambda *args: seen.append(args))
    untrained(model).predict(X)
    assert seen
    assert not runs


def test_dropout_drops_nothing(by_torch, runs):
    model = fs.nn.Chain(fs.nn.LSTM(FEATURES, 5, 2, dropout=0.5), nn.Dropout(), nn.Linear(5, 1))
    est = untrained(model.double().train())
    np.testing.assert_allclose(est.predict(X), by_torch(est, X), rtol=1e-12, atol=1e-12)
    assert runs
    assert model.training


def tied() -> nn.Module:
    """A layer whose weight is another one's, transposed."""
    first, second = nn.Linear(FEATURES, 5, bias=False), nn.Linear(5, FEATURES, bias=False)
    del second.weight
    second.weight = first.weight.t()
    return nn.Sequential(first, nn.Tanh(), second)


def every_other() -> nn.Module:
    layer = nn.Linear(FEATURES, 2)
    del layer.weight
    layer.register_buffer("weight", torch.randn(2, 2 * FEATURES)[:, ::2])
    return layer


def repeated() -> nn.Module:
    layer = nn.Linear(FEATURES, 4000)
    del layer.bias
    layer.bias = torch.ones(1).expand(4000)
    return layer


def negated() -> nn.Module:
    layer = nn.Linear(FEATURES, 2)
    layer.weight = nn.Parameter(torch._neg_view(layer.weight.detach()))
    return layer


def later_without_biases() -> nn.Module:
    layer = fs.nn.GRU(FEATURES, 4)
    layer.bias = False
    return layer


@pytest.mark.parametrize("make", [tied, every_other, repeated, negated, later_without_biases])
def test_weights_that_are_no_parameters_are_left_to_torch(make, runs):
    torch.manual_seed(0)
    model = make()
    est, x = untrained(model), X.float()
    with torch.no_grad():
        y = model(x)
    wanted = (y[0] if isinstance(y, tuple) else y).numpy()
    for _ in range(3):
        np.testing.assert_allclose(est.step(x[0]), wanted[0], rtol=1e-5, atol=1e-5)
        est.reset_state()
    np.testing.assert_allclose(est.predict(x), wanted, rtol=1e-5, atol=1e-5)
    assert not runs
    assert fs.info(est)["updates"].startswith("by PyTorch")


def test_dropout_that_stays_on_drops(runs):
    """As for samples of what a model is unsure of."""
    model = nn.Sequential(nn.Linear(FEATURES, 50), nn.Dropout(), nn.Linear(50, 1))
    model[1].train = lambda mode=True: model[1]
    est, x = untrained(model), X.float()
    assert not np.array_equal(est.predict(x), est.predict(x))
    assert not torch.equal(est.step(x[0]), est.step(x[0]))
    assert not runs


@pytest.mark.parametrize("like", [torch.ones(1, 6, 4).double(), torch.ones(1, 6, 1)])
def test_states_that_are_not_the_model_s_raise_as_by_torch(like, runs):
    est, x = untrained(fs.nn.Chain(nn.GRU(FEATURES, 4))), X.float()
    est.predict(x)
    before = len(runs)
    est.set_state((like,))
    with pytest.raises(RuntimeError, match=r"hidden size|same dtype"):
        est.predict(x, reset=False)
    assert len(runs) == before
