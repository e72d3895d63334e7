"""`SequenceRegressor`: what it learns, of which shapes, with which modules."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from wrapped import LAST, LIST, RNG, STEPS, X, parameters, regressor, same

import fastseq as fs
from fastseq import builders
from fastseq.sklearn import SequenceRegressor

# What comes out is what went in


@pytest.mark.parametrize(
    ("x", "y", "shape"),
    [
        (X, LAST, (48,)),
        (X, LAST[:, None], (48, 1)),
        (X, STEPS[:, -1], (48, 2)),
        (X, STEPS, (48, 6, 2)),
        (X, STEPS[..., 0], (48, 6)),
        (X[:, 0], LAST, (48,)),
        (X[:, 0], STEPS[:, 0], (48, 2)),
        (X[:, :1], LAST, (48,)),
        (X.tolist(), LAST.tolist(), (48,)),
        (LIST, LAST, (48,)),
        (LIST, STEPS[:, -1], (48, 2)),
    ],
)
def test_predictions_have_the_targets_shape(x, y, shape):
    model = regressor().fit(x, y)
    assert model.predict(x).shape == shape
    assert model.n_features_in_ == 3
    assert np.isfinite(model.score(x, y))
    assert model.n_iter_ == len(model.history_) == 3


@pytest.mark.parametrize("squeezed", [False, True])
def test_lists_of_sequences_with_targets_per_step(squeezed):
    y = [s[: len(x), 0] if squeezed else s[: len(x)] for s, x in zip(STEPS, LIST, strict=True)]
    model = regressor(epochs=20).fit(LIST, y)
    found = model.predict(LIST)
    assert [a.shape for a in found] == [a.shape for a in y]
    residual, spread = (np.concatenate([p - q for p, q in zip(y, other, strict=True)])
                        for other in (found, [np.concatenate(y).mean(0)] * len(y)))  # fmt: skip
    r2 = 1 - (residual**2).sum(0) / (spread**2).sum(0)
    assert model.score(LIST, y) == pytest.approx(r2.mean())
    assert r2.mean() > 0.5


def test_what_two_axes_mean_can_be_said():
    y = RNG.standard_normal((48, 6))
    assert regressor(per_step=False).fit(X, y).estimator_.model[-1].out_features == 6
    assert regressor().fit(X, y).estimator_.model[-1].out_features == 1
    with pytest.raises(ValueError, match="as many steps as X, 6"):
        regressor().fit(X, y[:, :4, None])
    with pytest.raises(ValueError, match=r"y\[1\] has 2 steps, but X\[1\] has 3"):
        regressor().fit(LIST, [row[:2] for row in y])


def test_sequences_of_one_length_may_come_as_a_list():
    assert same(regressor().fit(list(X), LAST), regressor().fit(X, LAST))
    assert isinstance(regressor().fit(list(X), list(STEPS)).predict(list(X)), list)


# What is learnt is what a loop by hand learns


def by_hand(x, y, w, *, seqsize, epochs=3, batchsize=16, **more):
    """Train by truncated back-propagation on the targets of the last steps, samples in order."""
    torch.manual_seed(0)
    lstm, head = nn.LSTM(3, 8), nn.Linear(8, 1)
    begin = fs.nn.Chain(lstm, head)
    wrapped = SequenceRegressor(
        begin, lr=0.01, epochs=epochs, batchsize=batchsize, seqsize=seqsize, shuffle=False,
        schedule=None, clip_norm=None, scale_x=None, scale_y=None, **more,
    ).fit(x, y, w)  # fmt: skip
    lstm.double(), head.double()
    optimizer = torch.optim.AdamW([*lstm.parameters(), *head.parameters()], lr=0.01, weight_decay=0)
    xs, ys = torch.from_numpy(x).transpose(0, 1), torch.from_numpy(y)
    ws = torch.ones(len(y)).double() if w is None else torch.from_numpy(w)
    for _ in range(epochs):
        for n in range(0, len(y), batchsize):
            part, state = slice(n, n + batchsize), None
            for t in range(0, len(xs), seqsize):
                h, state = lstm(xs[t : t + seqsize, part], state)
                state = tuple(s.detach() for s in state)
            losses = (head(h[-1])[:, 0] - ys[part]) ** 2
            optimizer.zero_grad()
            ((losses * ws[part]).sum() / ws[part].sum()).backward()
            optimizer.step()
    learnt = torch.cat([p.detach().flatten() for p in (*lstm.parameters(), *head.parameters())])
    torch.testing.assert_close(parameters(wrapped), learnt, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seqsize", [6, 4, 50])
@pytest.mark.parametrize("weighted", [False, True])
def test_targets_of_sequences_are_those_of_last_steps(seqsize, weighted):
    by_hand(X, LAST, RNG.uniform(0, 2, 48) if weighted else None, seqsize=seqsize)


def test_sequences_of_different_lengths_learn_at_their_own_ends():
    begin = fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 1))
    one = {"epochs": 1, "batchsize": 48, "scale_x": None, "scale_y": None, "shuffle": False}
    loss = regressor(begin, **one).fit(LIST, LAST).history_[0]["loss"]
    model = begin.double()
    ends = [model(torch.from_numpy(x[:, None]))[0][-1, 0, 0].item() for x in LIST]
    assert loss == pytest.approx(np.square(np.array(ends) - LAST).mean())


def test_scaling_is_undone_and_counts_all_steps():
    x, y = 1000 + 50 * X, 300 + 20 * LAST
    for seqsize in (None, 4):
        model = regressor(epochs=25, seqsize=seqsize).fit(x, y)
        scaling = model.estimator_.scaling_
        np.testing.assert_allclose(scaling.x.center, x.mean((0, 1)))
        np.testing.assert_allclose(scaling.x.scale, x.std((0, 1)))
        np.testing.assert_allclose(scaling.y.center, [y.mean()])
        assert model.score(x, y) > 0.5


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_computes_in_the_dtype_of_the_data(kind):
    x = (10 * X).astype(kind)
    model = regressor().fit(x, LAST.astype(np.float32))
    expected = np.float64 if kind == np.float64 else np.float32
    assert model.predict(x).dtype == expected
    assert regressor(epochs=1).fit(x, LAST).predict(x).dtype == np.float64  # as the targets
    assert {p.dtype for p in model.estimator_.model.parameters()} == {
        torch.float64 if kind == np.float64 else torch.float32
    }


def test_the_callers_arrays_stay_as_they_are():
    x, y, w = X.copy(), LAST.copy(), np.ones(48)
    for array in (x, y, w):
        array.setflags(write=False)
    regressor().fit(x, y, w)
    regressor(seqsize=2).fit(x, y, w)


def test_shuffling_gives_each_epoch_its_own_order_and_keeps_samples_together():
    seen = []

    def loss(m, xs, ys, ws):
        seen.append(torch.stack([xs[-1, :, 0], ys[-1, :, 0], ws[-1]]))
        return m(xs).mean() * 0

    x = np.repeat(np.arange(48.0)[:, None, None], 2, 1)
    regressor(loss=loss, scale_x=None, scale_y=None).fit(x, 10 * x[:, 0, 0], 1 + x[:, 0, 0])
    epochs = torch.cat(seen, 1).reshape(3, 3, 48)
    assert torch.equal(epochs[1], 10 * epochs[0])
    assert torch.equal(epochs[2], 1 + epochs[0])
    assert all(sorted(epoch.tolist()) == list(range(48)) for epoch in epochs[0])
    assert not torch.equal(epochs[0, 0], epochs[0, 1])
    assert not torch.equal(epochs[0, 0], torch.arange(48.0).double())


# Modules, optimizers, losses


class Net(nn.Module):
    def __init__(self, input_size, n_out, hidden_size):
        super().__init__()
        self.a, self.b = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, n_out)

    def forward(self, x):
        return self.b(self.a(x).tanh())


@pytest.mark.parametrize(
    ("module", "count"),
    [
        ("lstm", 4 * 8 * (3 + 8 + 2) + 9),
        ("gru", 3 * 8 * (3 + 8 + 2) + 9),
        ("rnn", 8 * (3 + 8 + 2) + 9),
        ("mlp", 19 * 8 + 9),  # 6 steps of 3 features at once
        ("linear", 19),
        (builders.Linear(), 19),
        (builders.Short(5, dropout=0.0), 19 * 5 + 6),
        (builders.MLP((4, 2)), 19 * 4 + 10 + 3),
        (builders.Recurrent("gru", 4, num_layers=2, dropout=0.1), 108 + 12 * 10 + 5),
        (Net, 4 * 8 + 9),
        (Net(3, 1, 5), 20 + 6),
        (lambda n_in, n_out, _: nn.Linear(n_in, n_out), 4),
    ],
)
def test_modules(module, count):
    model = regressor(module).fit(X, LAST)
    assert sum(p.numel() for p in model.estimator_.model.parameters()) == count
    assert model.predict(X).shape == (48,)


def test_modules_are_copied_and_builders_seeded():
    net = Net(3, 1, 5)
    before = fs.net2vec(net).detach().clone()
    regressor(net).fit(X, LAST)
    assert torch.equal(fs.net2vec(net), before)
    weights = []

    def build(n_in, n_out, rng):
        layer = nn.Linear(n_in, n_out)
        weights.append(torch.cat([layer.weight.detach().flatten(), torch.rand(2, generator=rng)]))
        return layer

    state = torch.get_rng_state()
    for _ in range(2):
        regressor(build).fit(X, LAST)
    assert torch.equal(*weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_whole_sequences_must_have_one_length():
    with pytest.raises(ValueError, match="must have one length"):
        regressor("mlp").fit(LIST, LAST)
    with pytest.raises(ValueError, match="sequences must be as long"):
        regressor("mlp").fit(X, LAST).predict(X[:, :4])
    assert regressor("mlp").fit(LIST, [x[:, 0] for x in LIST])  # each step alone


@pytest.mark.parametrize(
    ("parameter", "match"),
    [
        ({"module": "lstmm"}, "module must be one of"),
        ({"module": 3}, "module must be a name"),
        ({"module": nn.Conv1d}, "Conv1d needs in_channels, out_channels, kernel_size"),
        ({"module": lambda *_: 3}, "must build an nn.Module, got int"),
        ({"module": nn.Linear(3, 2)}, "as many outputs as y has features"),
        ({"optimizer": "adamm"}, "optimizer must be one of"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))])}, "optimizer must be a name"),
        ({"optimizer": torch.optim.Rprop, "weight_decay": 0.1}, "takes no weight_decay"),
        ({"loss": "mape"}, "loss must be one of"),
        ({"loss": 3}, "loss must be a name"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"batchsize": 1.5}, "batchsize must be an integer"),
        ({"validation_fraction": 1.5}, "validation_fraction must be above 0 and below 1, got 1.5"),
        ({"scale_x": "minmax"}, "scale_x must be one of"),
        ({"scale_y": "minmax"}, "scaling of y"),
        ({"callbacks": fs.callbacks.Log()}, "callbacks must be a list"),
    ],
)
def test_wrong_parameters_are_told(parameter, match):
    with pytest.raises((ValueError, TypeError), match=match):
        regressor(**parameter).fit(X, LAST)


def test_biases_may_be_left_out_of_decay():
    still = functools.partial(torch.optim.SGD, momentum=0.0)

    def nothing(m, xs, ys):
        return m(xs).sum() * 0

    for decay_biases in (True, False):
        net = Net(3, 1, 5)
        model = regressor(net, optimizer=still, lr=0.1, weight_decay=0.5, epochs=1, batchsize=48,
                          decay_biases=decay_biases, loss=nothing).fit(X, LAST)  # fmt: skip
        learnt = model.estimator_.model
        torch.testing.assert_close(learnt.a.weight, 0.95 * net.a.weight.double())
        factor = 0.95 if decay_biases else 1.0
        torch.testing.assert_close(learnt.a.bias, factor * net.a.bias.double())


@pytest.mark.parametrize("loss", ["mae", nn.SmoothL1Loss, nn.HuberLoss(), mse_loss,
                                  fs.seqloss(mse_loss)])  # fmt: skip
def test_losses(loss):
    before, after = (
        row["loss"] for row in regressor(loss=loss, epochs=8).fit(X, LAST).history_[::7]
    )
    assert after < before


def test_validation_is_apart():
    model = regressor(validation_fraction=0.25, batchsize=12).fit(X, LAST)
    assert all(np.isfinite(row["validation_loss"]) for row in model.history_)
    assert model.history_[0]["updates"] == 3
    model = regressor(validation_fraction=0.25, batchsize=12, shuffle=False, scale_y=None).fit(
        X, LAST
    )
    found = model.predict(X[36:])
    assert model.history_[-1]["validation_loss"] == pytest.approx(
        np.square(found - LAST[36:]).mean()
    )
    model = regressor(validation_fraction=0.25, seqsize=4).fit(LIST, LAST)
    assert np.isfinite(model.history_[-1]["validation_loss"])


def test_a_part_too_small_for_all_classes_is_held_out_at_random():
    model = fs.SequenceClassifier(validation_fraction=0.1, epochs=1).fit(X, np.arange(len(X)) % 12)
    assert np.isfinite(model.history_[-1]["validation_loss"])
