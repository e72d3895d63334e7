"""The test of learning rates: what it measures, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from wrapped import LABELS, LAST, LIST, X, classifier, parameters, regressor

import fastseq as fs

SPEC = {"epochs": 2, "batchsize": 4, "seqsize": 5, "clip_norm": 1.0, "shuffle": True}
SGD = torch.optim.SGD


def data(steps=10, count=12):
    x = torch.randn(steps, count, 3)
    return x, x.sum(2, keepdim=True)


class Net(nn.Module):
    """Has what training may change: statistics, dropout, a state, a buffer that is replaced."""

    def __init__(self):
        super().__init__()
        self.rnn = fs.nn.LSTM(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x, state=None):
        h, state = self.rnn(x, state)
        h = self.norm(h.flatten(0, 1)).view_as(h)
        if self.training:
            self.seen = self.seen + 1
        return self.head(self.drop(h)), state


def estimator(model=None, loss=mse_loss, make=torch.optim.AdamW, **more):
    spec = {**SPEC, **more.pop("spec", {})}
    return fs.Estimator(model or Net(), fs.seqloss(loss), make, spec, progress=False, **more)


def everything(est):
    """Return copies of all that must not change."""
    return copy.deepcopy({
        "weights": [*est.model.parameters(), *est.model.buffers()],
        "grads": [p.grad for p in est.model.parameters()],
        "modes": [m.training for m in est.model.modules()],
        "optimizer": est.optimizer.state_dict(),
        "history": list(est.history_),
        "scaling": est.scaling_ and est.scaling_.x.center,
        "others": (est.padding_, est.stop_reason_, est._learner.drawn_seed, est._learner.example),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],  # noqa: NPY002
        "python": random.getstate(),
    })  # fmt: skip


def equal(a, b):
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return type(a) is type(b) and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def fails_at(call, error):
    calls = []

    def loss(output, target, reduction="mean"):
        calls.append(1)
        np.random.rand()  # noqa: NPY002
        random.random()  # noqa: S311
        if len(calls) == call:
            raise error
        return mse_loss(output, target, reduction=reduction)

    return loss


def test_losses_are_those_of_a_plain_loop():
    x, y = data(10, 8)
    model = nn.Linear(3, 1)
    plain, losses = copy.deepcopy(model), []
    optimizer, rates = SGD(plain.parameters(), lr=1), np.geomspace(1e-4, 0.1, 12)
    boxes = [(slice(t, t + 5), slice(n, n + 4)) for n in (0, 4) for t in (0, 5)]
    for i, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        box = boxes[i % 4]
        loss = mse_loss(plain(x[box]), y[box])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    est = estimator(model, make=SGD, spec={"clip_norm": None, "shuffle": False})
    found = est.find_lr(x, y, least=1e-4, most=0.1, updates=12)
    np.testing.assert_allclose(found.rates, rates, rtol=1e-12)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)


def test_losses_that_come_late_as_on_a_gpu(monkeypatch):
    x, y = data()
    est = estimator(seed=0)
    now = est.find_lr(x, y, updates=20)
    monkeypatch.setattr("fastseq.training.loop.Trainer._can_read_at_once", lambda trainer: False)
    np.testing.assert_array_equal(est.find_lr(x, y, updates=20).losses, now.losses)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("call", "error"),
    [(None, None), (9, ArithmeticError("stop")), (9, KeyboardInterrupt())],
    ids=["complete", "error", "interrupted"],
)
@pytest.mark.parametrize("seed", [None, 3])
def test_nothing_is_left(trained, call, error, seed):
    x, y = data()
    est = estimator(seed=seed, spec={"scale_x": "standard"})
    est.model.norm.eval()  # a mode of its own
    if trained:
        est.fit(x, y)
    est.loss = fs.seqloss(fails_at(call, error))
    before, twin = everything(est), copy.deepcopy(est)
    if error is None:
        assert len(est.find_lr(x + 1, y, updates=20).losses) == 20
    else:
        with pytest.raises(type(error)):
            est.find_lr(x + 1, y)
    assert equal(before, everything(est))
    state = torch.get_rng_state()
    est.loss = twin.loss = fs.seqloss(mse_loss)
    est.fit(x, y)
    torch.set_rng_state(state)
    twin.fit(x, y)  # a fit afterwards does the same
    assert equal(list(est.model.parameters()), list(twin.model.parameters()))


def test_a_rate_and_counts_that_are_tensors_keep_their_places():
    x, y = data()
    est = estimator(make=lambda p: torch.optim.Adam(p, lr=torch.tensor(0.02)))
    rate = est.optimizer.param_groups[0]["lr"]
    est.fit(x, y).find_lr(x, y, updates=10)
    assert est.optimizer.param_groups[0]["lr"] is rate
    assert rate == torch.tensor(0.02)


@pytest.mark.parametrize("most", [1e3, 1e30])
def test_it_stops_where_the_loss_diverges(most):
    x, y = data()
    est = estimator(nn.Linear(3, 1), make=SGD, spec={"clip_norm": None})
    before = everything(est)
    found = est.find_lr(x, y, least=1e-3, most=most)
    assert 10 < len(found.losses) == len(found.rates) < 80
    assert np.isfinite(found.losses).all()
    assert equal(before, everything(est))
    assert 1e-3 < found.suggestion < 1


def below_zero(output, target, reduction="mean"):
    return nn.functional.l1_loss(output, target, reduction=reduction) - 5


def infinite(output, target, reduction="mean"):
    return mse_loss(output, target, reduction=reduction) * torch.inf


def test_a_loss_below_zero_is_no_divergence():
    x, y = data()
    est = estimator(nn.Linear(3, 1), below_zero, make=SGD)
    assert len(est.find_lr(x, y, most=1e-2).losses) == 100


def test_bad_data_are_no_divergence():
    x, y = data()
    x[-1, -1, 0] = torch.nan
    est = estimator(spec={"shuffle": False})
    with pytest.raises(fs.NonFiniteError, match="x holds NaN at step 9, sequence 11"):
        est.find_lr(x, y)
    est = estimator(nn.Linear(3, 1), infinite)
    with pytest.raises(fs.NonFiniteError, match="the loss is"):
        est.find_lr(*data())


def result(losses, rates=None):
    """Make the result of a test that found these losses."""
    x, y = data(2, 2)
    found = estimator(nn.Linear(3, 1), make=SGD).find_lr(x, y, updates=10)
    rates = np.geomspace(1e-5, 1, len(losses)) if rates is None else rates
    return type(found)(rates, np.asarray(losses, float))


@pytest.mark.parametrize("best", [1e-3, 0.03])
def test_the_suggestion_is_the_steepest_place(best):
    rates = np.geomspace(1e-6, 10, 141)
    logistic = 1 / (1 + (rates / best) ** 2)  # over log(rate), steepest at `best`
    found = result(logistic + 5 * (rates > 3), rates)
    assert abs(np.log10(found.suggestion / best)) < 0.06
    assert result(logistic[::-1], rates).suggestion is None  # it only rises
    assert result([1.0] * 50).suggestion is None
    assert result(logistic[:5], rates[:5]).suggestion is None


def test_losses_are_smoothed_over_a_tenth():
    losses = np.random.default_rng(0).standard_normal(100)
    around = [losses[max(0, i - 5) : i + 6].mean() for i in range(100)]
    np.testing.assert_allclose(result(losses).smoothed, around)
    np.testing.assert_array_equal(result(losses[:12]).smoothed, losses[:12])


def test_groups_keep_their_ratios():
    x, y = data()
    seen = []

    def make(params):
        first, *rest = params
        return SGD([{"params": [first], "lr": 0.1}, {"params": rest, "lr": 0.4}])

    est = estimator(nn.Linear(3, 1), make=make)
    est.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([g["lr"] for g in optimizer.param_groups])
    )
    found = est.find_lr(x, y, most=1e-2, updates=10)
    np.testing.assert_allclose(np.array(seen), np.outer(found.rates, [0.25, 1]))
    assert [g["lr"] for g in est.optimizer.param_groups] == [0.1, 0.4]


def test_callbacks_are_not_called():
    calls = []
    est = estimator(callbacks=[lambda run: calls.append(run.epoch)])
    est.find_lr(*data(), updates=40)
    assert not calls


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"least": 1e-2, "most": 1e-3}, ValueError, "0 < least < most"),
        ({"least": 0}, ValueError, "0 < least < most"),
        ({"most": "1"}, TypeError, "most must be a number, got '1'"),
        ({"updates": 9}, ValueError, "updates must be at least 10, got 9"),
        ({"updates": 20.0}, TypeError, "updates must be an integer"),
    ],
)
def test_ranges_that_make_no_sense(options, error, message):
    with pytest.raises(error, match=message):
        estimator().find_lr(*data(), **options)


def test_gradients_are_needed():
    with torch.no_grad(), pytest.raises(ValueError, match="find_lr needs gradients"):
        estimator().find_lr(*data())


def test_plot():
    found = estimator().find_lr(*data())
    axes = found.plot()
    assert axes.get_xscale() == "log"
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), found.losses)
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), found.smoothed)
    assert axes.lines[2].get_xdata()[0] == found.suggestion
    assert found.plot(axes) is axes
    assert repr(found).startswith("LearningRateTest: 100 updates, rates 1e-06 to 1; suggestion ")


@pytest.mark.parametrize(
    ("model", "x", "y"),
    [
        (regressor(), X, LAST),
        (regressor("lstm-fcn", validation_fraction=0.2), LIST, LAST),
        (classifier(class_weight="balanced"), X, LABELS),
        (classifier("mlp"), X, np.where(X[..., 0] > 0, "a", "b")),
    ],
)
def test_wrappers(model, x, y):
    before = dict(vars(model))
    found = model.find_lr(x, y, updates=20)
    assert vars(model) == before  # not fitted
    again = model.fit(x, y).find_lr(x, y, updates=20)
    np.testing.assert_array_equal(found.losses, again.losses)
    assert parameters(model).equal(parameters(model.__sklearn_clone__().fit(x, y)))


def test_wrappers_shuffle_samples():
    batches = []

    def loss(output, target, reduction="mean"):
        batches.append(target.clone())
        return nn.functional.cross_entropy(output, target, reduction=reduction)

    order = LABELS.argsort()
    classifier(loss=loss).find_lr(X[order], LABELS[order], updates=10)
    assert all(len(batch.unique()) > 1 for batch in batches)
