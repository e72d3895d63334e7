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
            patch.setattr(predictor.Predictor, "_runner", lambda self, stateful, data: stateful)
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
