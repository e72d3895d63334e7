"""Rocket as a network and by name: what it learns, and that `fit` measures the first batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from wrapped import LABELS, LAST, STEPS, X, classifier, regressor

import fastseq as fs
from fastseq.nn import Rocket


@pytest.mark.parametrize("lengths", [[12, 5, 9], [1, 1], [3, 20, 0]])
def test_padding_changes_nothing(lengths):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(20, len(lengths), 3, generator=rng)
    results = []
    for past, steps in ((torch.nan, max(lengths)), (7.0, 20)):
        model = Rocket(3, 2, 12)
        padded = x[:steps].clone()
        for n, length in enumerate(lengths):
            padded[length:, n] = past
        found = model(padded, torch.tensor(lengths))
        nn.init.normal_(model.linear.weight, generator=torch.Generator().manual_seed(0))
        found = model.eval()(padded, torch.tensor(lengths))
        results.append((found, dict(model.named_buffers())))
        for n, length in enumerate(lengths):
            alone = model(x[:length, n : n + 1])
            torch.testing.assert_close(found[n : n + 1], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*results)


def test_only_the_linear_layer_learns():
    x = torch.randn(30, 4, 2, requires_grad=True)
    model = Rocket(2, 1, 30)
    model(x).sum().backward()
    assert x.grad is None
    assert [name for name, _ in model.named_parameters()] == ["linear.weight", "linear.bias"]


RNG = np.random.default_rng(0)
RAMPS = 0.1 * RNG.standard_normal((64, 50, 2))
UP = RNG.integers(0, 2, 64)
for series, up in zip(RAMPS, UP, strict=True):  # somewhere; means and levels do not tell
    begin = RNG.integers(0, 34)
    series[begin : begin + 16, 0] += np.linspace(0, 2, 16)[:: 1 if up else -1]


@pytest.mark.parametrize("x", [RAMPS, [a[: 50 - i % 3] for i, a in enumerate(RAMPS)]], ids=type)
def test_it_tells_shapes_apart(x):
    model = fs.SequenceClassifier("rocket", epochs=30, random_state=0).fit(x[:32], UP[:32])
    assert model.score(x[32:], UP[32:]) > 0.95
    proba = model.predict_proba(x)
    for i in (0, 3, 7):
        np.testing.assert_allclose(model.predict_proba([x[i]])[0], proba[i], rtol=1e-6)
    assert model.predict([np.concatenate([x[0], x[0]]), x[1][:3]]).shape == (2,)


def test_the_length_of_short_sequences_counts():
    each = [a[: 10 + 20 * k] for a, k in zip(RAMPS, UP, strict=True)]
    model = fs.SequenceRegressor("rocket", epochs=30, random_state=0).fit(each[:40], UP[:40])
    assert model.score(each[40:], UP[40:]) > 0.8


def test_levels_and_rare_classes_are_learnt():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 30, 1)).astype(np.float32)
    model = fs.SequenceRegressor("rocket", scale_y=None, random_state=0).fit(x, 50 + x.max((1, 2)))
    assert model.predict(x).mean() == pytest.approx(50 + x.max((1, 2)).mean(), abs=0.5)
    rare = np.arange(100) % 25 == 0
    proba = (
        fs.SequenceClassifier("rocket", random_state=0)
        .fit(x, rare)
        .predict_proba(rng.standard_normal((300, 30, 1)).astype(np.float32))
    )
    assert proba[:, 1].mean() < 0.08


def test_batches_without_sequences_and_with_integers():
    model = Rocket(2, 3, 10)
    model(torch.zeros(10, 0, 2))
    assert model(torch.randn(10, 4, 2)).isfinite().all()
    x = torch.randint(0, 3, (20, 3, 2))
    layer, other = fs.nn.RandomKernels(2, 20), fs.nn.RandomKernels(2, 20)
    assert torch.equal(layer(x), other(x.float()))


@pytest.mark.parametrize(
    ("x", "y"),
    [(X, LABELS), ([x[: 1 + i % 3] for i, x in enumerate(X)], LABELS), (X[:, :1], LABELS)],
)
def test_short_sequences(x, y):
    model = classifier("rocket").fit(x, y)
    assert np.isfinite(model.predict_proba(x)).all()


def test_weights_decay_unless_told():
    def decay(module, **more):
        model = regressor(module, epochs=1, **more).fit(X, LAST)
        return model.estimator_.optimizer.param_groups[-1]["weight_decay"]

    assert decay("rocket") == 1
    assert decay("rocket", weight_decay=0.0) == 0
    assert decay("rocket", optimizer="sgd") == 0
    assert decay("gru") == 0
    model = regressor("rocket", warm_start=True).fit(X, LAST)
    model.set_params(weight_decay=0.3, epochs=5).fit(X, LAST)
    assert model.continued_
    assert model.estimator_.optimizer.param_groups[-1]["weight_decay"] == 0.3
    model.set_params(weight_decay=None, epochs=6).fit(X, LAST)
    assert model.estimator_.optimizer.param_groups[-1]["weight_decay"] == 1


@pytest.mark.parametrize(
    ("kw", "y", "message"),
    [
        ({}, STEPS, "one target per sequence"),
        ({"num_layers": 2}, LAST, "num_layers must be None"),
        ({"pool": "mean"}, LAST, "pool is for"),
        ({"bidirectional": True}, LAST, "bidirectional is for"),
        ({"seqsize": 3}, LAST, "depend on earlier and later time steps"),
    ],
)
def test_what_it_cannot_do(kw, y, message):
    with pytest.raises(ValueError, match=message):
        regressor("rocket", **kw).fit(X, y)


def data():
    x = np.ascontiguousarray(RAMPS.swapaxes(0, 1).astype(np.float32))
    return x, np.broadcast_to(UP[:, None].astype(np.float32), (50, 64, 1)).copy()


def estimator(model, **more):
    loss = fs.seqloss(nn.functional.mse_loss)
    spec = {"epochs": 2, "batchsize": 16, "seqsize": 70, "shuffle": False}
    return fs.Estimator(
        model, loss, torch.optim.AdamW, spec, device="cpu", comm=None, progress=False, **more
    )


class OfSequences(nn.Module):
    """Repeats a sequence's output at each of its steps."""

    def __init__(self, groups=24):
        super().__init__()
        self.net = Rocket(2, 1, 50, groups)

    def forward(self, x, lengths=None):
        return self.net(x, lengths).expand(x.shape[0], -1, -1)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fit_measures_its_first_batch(compiled):
    torch.manual_seed(0)
    model = OfSequences()
    alone = copy.deepcopy(model)
    est = estimator(model, compile=compiled)
    x, y = data()
    est.predict(x)
    est.evaluate(x, y)
    est.find_lr(x, y, updates=10)
    assert not model.net.kernels.ready
    est.fit(x, y)
    alone(torch.from_numpy(x[:, :16]))
    assert torch.equal(model.net.kernels.thresholds, alone.net.kernels.thresholds)
    assert model.net.kernels.ready


def test_the_first_batch_is_measured_by_the_loss():
    def loss(m, xs, ys):
        return (m(xs["a"] * 3) - ys).square().mean()

    model = OfSequences()
    alone = copy.deepcopy(model)
    x, y = data()
    est = fs.Estimator(
        model, loss, torch.optim.SGD, {"epochs": 1, "batchsize": 16, "seqsize": 70, "shuffle": False},
        device="cpu", comm=None, progress=False,
    )  # fmt: skip
    est.fit({"a": x, "b": x}, y)
    alone(torch.from_numpy(3 * x[:, :16]))
    assert torch.equal(model.net.kernels.thresholds, alone.net.kernels.thresholds)


def test_exported_programs_run_on_any_number_of_steps(tmp_path):
    torch.manual_seed(0)
    model = OfSequences(groups=2)
    nn.init.normal_(model.net.linear.weight)
    x = torch.randn(70, 5, 2)
    model(x)
    est = estimator(model)
    est.export(tmp_path / "model.pt2", x)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for steps, count in ((70, 5), (50, 1), (9, 3), (1, 1)):
        some = x[:steps, :count]
        torch.testing.assert_close(program(some), torch.from_numpy(est.predict(some)))
