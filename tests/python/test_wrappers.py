"""`SequenceRegressor` and `SequenceClassifier`: what they learn, of which shapes, and what they refuse."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq import builders
from fastseq.wrappers import SequenceClassifier, SequenceRegressor

RNG = np.random.default_rng(0)
X = RNG.standard_normal((48, 6, 3))
LAST = X[:, -2:].sum((1, 2))
STEPS = X.cumsum(1)[..., :2] / 3
LABELS = np.where(LAST > 0.5, "up", np.where(LAST < -0.5, "down", "flat"))
LIST = [x[: 2 + i % 5] for i, x in enumerate(X)]
QUICK = {"hidden_size": 8, "lr": 0.02, "batchsize": 16, "random_state": 0}


def regressor(module="gru", **more):
    return SequenceRegressor(module, **{**QUICK, "epochs": 3, **more})


def classifier(module="gru", **more):
    return SequenceClassifier(module, **{**QUICK, "epochs": 3, **more})


def parameters(model):
    return fs.net2vec(model.estimator_.model).detach().clone()


def same(a, b):
    """Whether two wrappers have learnt the same, bit for bit."""
    losses = [[row["loss"] for row in m.history_] for m in (a, b)]
    return torch.equal(parameters(a), parameters(b)) and losses[0] == losses[1]


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
        scale_x=None, scale_y=None, **more,
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
    model = regressor().fit(x, LAST)
    expected = np.float64 if kind == np.float64 else np.float32
    assert model.predict(x).dtype == expected
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
        ({"validation_fraction": 1.5}, "test_size"),
        ({"scale_x": "minmax"}, "scaling of x"),
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
    assert model.history_[0]["steps"] == 3
    model = regressor(validation_fraction=0.25, batchsize=12, shuffle=False, scale_y=None).fit(
        X, LAST
    )
    found = model.predict(X[36:])
    assert model.history_[-1]["validation_loss"] == pytest.approx(
        np.square(found - LAST[36:]).mean()
    )
    model = regressor(validation_fraction=0.25, seqsize=4).fit(LIST, LAST)
    assert np.isfinite(model.history_[-1]["validation_loss"])


# Classes


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        LABELS.astype(object),
        LAST > 0,
        (LAST > 0) * 7 - 3,
        (LAST > 0) * 1.0,
        LABELS.tolist(),
    ],
)
def test_classes_of_any_dtype(labels):
    model = classifier(epochs=25).fit(X, labels)
    assert np.array_equal(model.classes_, np.unique(labels))
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (48, len(model.classes_))
    np.testing.assert_allclose(probabilities.sum(1), 1)
    found = model.predict(X)
    assert found.dtype == model.classes_.dtype
    assert np.array_equal(found, model.classes_[probabilities.argmax(1)])
    assert model.score(X, labels) == np.mean(found == np.asarray(labels)) > 0.7


def test_classes_per_step():
    y = np.where(STEPS[..., 0] > 0, "up", "down")
    model = classifier(epochs=25).fit(X, y)
    assert model.predict(X).shape == (48, 6)
    assert model.predict_proba(X).shape == (48, 6, 2)
    assert model.score(X, y) == np.mean(model.predict(X) == y) > 0.8
    listed = [row[: len(x)] for row, x in zip(y, LIST, strict=True)]
    model = classifier(epochs=2).fit(LIST, listed)
    assert [a.shape for a in model.predict_proba(LIST)] == [(len(x), 2) for x in LIST]
    assert [a.shape for a in model.predict(LIST)] == [(len(x),) for x in LIST]


def test_several_targets_with_their_own_classes():
    y = np.stack([LABELS.astype(object), X[:, -1, 0] > 0], 1)
    model = classifier(epochs=30).fit(X, y)
    assert [len(classes) for classes in model.classes_] == [3, 2]
    assert [p.shape for p in model.predict_proba(X)] == [(48, 3), (48, 2)]
    found = model.predict(X)
    assert found.shape == (48, 2)
    assert model.score(X, y) == np.mean((found == y).all(1))
    assert np.mean(found == y) > 0.75


def test_cross_entropy_is_torch_s():
    begin = fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 3))
    once = {"epochs": 1, "batchsize": 48, "scale_x": None, "shuffle": False}
    outputs = begin.double()(torch.from_numpy(X).transpose(0, 1))[0][-1]
    numbers = torch.from_numpy(np.unique(LABELS, return_inverse=True)[1])
    weights = {"down": 3.0, "flat": 0.5, "up": 1.0}
    for class_weight, tensor in ((None, None), (weights, torch.tensor([3.0, 0.5, 1.0]).double())):
        model = classifier(begin, class_weight=class_weight, **once).fit(X, LABELS)
        expected = nn.functional.cross_entropy(outputs, numbers, tensor)
        assert model.history_[0]["loss"] == pytest.approx(expected.item())


def test_class_weights_and_sample_weights_multiply():
    w = RNG.uniform(0.5, 2, 48)
    weights = {"down": 3.0, "flat": 0.5, "up": 1.0}
    product = w * np.array([weights[label] for label in LABELS])
    assert same(
        classifier(class_weight=weights).fit(X, LABELS, w), classifier().fit(X, LABELS, product)
    )
    y = np.where(STEPS[..., 0] > 0, "up", "down")
    each = w[:, None] * np.where(y == "up", 2.0, 1.0)
    assert same(
        classifier(class_weight={"up": 2.0, "down": 1.0}).fit(X, y, w), classifier().fit(X, y, each)
    )


def test_one_class_only_is_refused():
    with pytest.raises(ValueError, match="one class only"):
        classifier().fit(X, np.full(48, "up"))
    with pytest.raises(ValueError, match="one class only"):
        classifier().fit(X, LABELS, (LABELS == "up") * 1.0)


def test_labels_that_were_not_seen_count_as_wrong():
    model = classifier().fit(X, LABELS)
    assert model.score(X, np.full(48, "sideways")) == 0
    with pytest.raises(
        ValueError, match=r"not among the classes \['down', 'flat', 'up'\]: \['no'\]"
    ):
        model.partial_fit(X, np.full(48, "no"))


def test_classes_may_come_later():
    model = classifier().partial_fit(X, LAST > 0, classes=[False, True, 2])
    assert model.predict_proba(X).shape == (48, 3)
    model.partial_fit(X, np.full(48, 2))
    assert model.n_iter_ == 2


# Bad data


@pytest.mark.parametrize(
    ("x", "match"),
    [
        ([X[0], X[1, :0]], r"X\[1\] has no time steps"),
        (X[:, :0], "no time steps"),
        ([X[0], X[1, :, :2]], r"X\[1\] has 2 features, but X\[0\] has 3"),
        (X[:0], "minimum of 1 is required"),
        (np.full((4, 2, 3), np.nan), "NaN"),
        ([X[0], np.full((2, 3), np.inf)], "infinity"),
        (X[..., None], "must have the shape"),
        (X[..., :0], "0 feature"),
        (X[0, 0], "Expected 2D array"),
    ],
)
def test_bad_inputs(x, match):
    with pytest.raises(ValueError, match=match):
        regressor().fit(x, LAST[: len(x)])
    if "minimum" not in match:
        with pytest.raises(ValueError, match=match):
            regressor().fit(X, LAST).predict(x)


def test_other_data_than_fitted_on_is_told():
    model = regressor().fit(X, LAST)
    for x in (X[..., :2], X[:, 0, :2], list(X[..., :2])):
        with pytest.raises(ValueError, match="2 features, but SequenceRegressor is expecting 3"):
            model.predict(x)
    with pytest.raises(ValueError, match="inconsistent"):
        regressor().fit(X, LAST[:5])
    with pytest.raises(ValueError, match="one target per step if fit got such"):
        model.score(X, STEPS[..., 0])


def test_one_sample_and_constant_features():
    assert regressor().fit(X[:1], LAST[:1]).predict(X[:1]).shape == (1,)
    constant = np.concatenate([X, np.full((48, 6, 1), 7.0)], 2)
    assert np.isfinite(regressor().fit(constant, LAST).score(constant, LAST))
    assert regressor().fit(X, np.full(48, 5.0)).predict(X) == pytest.approx(5.0, abs=2)


def test_weights_of_steps():
    model = regressor().fit(X, STEPS, np.ones((48, 6)))
    assert same(model, regressor().fit(X, STEPS, np.ones(48)))
    lists = [np.ones(len(x)) for x in LIST]
    y = [x[:, 0] for x in LIST]
    assert same(regressor().fit(LIST, y, lists), regressor().fit(LIST, y, np.ones(48)))
    assert model.score(X, STEPS, np.ones(48)) == pytest.approx(model.score(X, STEPS))
    w = RNG.uniform(0, 1, (48, 6))
    assert model.score(X, STEPS, w) != pytest.approx(model.score(X, STEPS))
    for wrong in (-np.ones(48), np.ones((48, 6)), np.ones(47)):
        with pytest.raises(ValueError, match=r"(?i)sample.weight|negative"):
            regressor().fit(X, LAST, wrong)


def test_pandas():
    frame = pd.DataFrame(X[:, 0], columns=["a", "b", "c"])
    target = pd.Series(LAST, name="y")
    model = regressor("mlp").fit(frame, target)
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    assert same(model, regressor("mlp").fit(X[:, 0], LAST))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["c", "b", "a"]])
    assert not hasattr(model.fit(X, LAST), "feature_names_in_")
    labels = pd.Series(LABELS, dtype="category")
    assert classifier("mlp").fit(frame, labels).classes_.tolist() == ["down", "flat", "up"]
