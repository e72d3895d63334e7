"""Networks that are averaged: each learns as if alone, and their outputs' mean predicts."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fastseq as fs
from fastseq.nn import LSTMFCN, Averaged, OrdinalLogProbabilities, PooledRNN, Rocket
from fastseq.sklearn.sequence_losses import EachMember

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 12, 2)).astype(np.float32)
LIST = [one[: 5 + i % 8] for i, one in enumerate(X)]
Y = np.arange(40) % 3
NAMES = "gru+lstm-fcn+rocket"


def averaged():
    torch.manual_seed(0)
    return Averaged([PooledRNN(2, 3, "gru", 4), LSTMFCN(2, 3, 4, (5, 3)), Rocket(2, 3, 12)])


def test_outputs_are_apart_in_training_and_averaged_after_it():
    model, x, n = averaged(), torch.from_numpy(X[:4]).swapaxes(0, 1), torch.tensor([12, 7, 9, 12])
    each = [net(x, lengths=n) for net in model.eval()]
    torch.testing.assert_close(model(x, lengths=n), sum(each) / 3)
    model.train()
    for net in model:
        net.eval()  # batch normalisation does not matter here
    found = model(x, lengths=n)
    assert isinstance(found, tuple)
    assert all(torch.equal(a, b) for a, b in zip(found, each, strict=True))


def test_the_loss_is_that_of_each_network():
    model, x = averaged(), torch.from_numpy(X).swapaxes(0, 1)
    labels = torch.from_numpy(Y)
    loss = EachMember(lambda m, xs, ys: functional.cross_entropy(m(xs), ys))
    model.train()
    expected = sum(functional.cross_entropy(own, labels) for own in model(x)) / 3
    torch.testing.assert_close(loss(fs.Stateful(model), x, labels), expected)
    model.eval()
    expected = functional.cross_entropy(model(x), labels)
    torch.testing.assert_close(loss(fs.Stateful(model), x, labels), expected)


class Dropped(nn.Module):
    """Counts its calls, and returns what it gets with another scale each time."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, lengths=None):
        self.calls += 1
        self.seen = lengths
        return self.weight * self.calls * x.mean(0)


@pytest.mark.parametrize("lengths", [None, torch.tensor([12, 5])])
def test_losses_may_run_the_network_as_they_like(lengths):
    nets = [Dropped(), Dropped()]
    m = fs.Stateful(Averaged(nets).train())
    x = torch.ones(12, 2, 1)
    found = []

    def loss(m, xs, ys):
        first, other, again = m(xs), m(xs + ys), m(xs)
        found.append((first[0].item(), other[0].item(), again[0].item()))
        return first.sum() + 0.5 * sum(p.square().sum() for p in fs.weights(m))

    m.lengths = lengths
    value = EachMember(loss)(m, x, torch.ones(1))
    # Both see the first and third run of all; each makes its own inputs for the second.
    assert found == [(1, 4, 3), (1, 8, 3)]
    assert value.item() == 2 + 0.5 * 2
    if lengths is not None:
        assert nets[1].seen.tolist() == [12, 5]


class Difference(nn.Module):
    """Combines the outputs of averaged networks by itself."""

    def __init__(self):
        super().__init__()
        self.nets = Averaged([PooledRNN(2, 1, "gru", 4), PooledRNN(2, 1, "gru", 4)])

    def forward(self, x):
        first, second = [net(x) for net in self.nets]
        return first - second


def test_networks_that_are_part_of_a_model_are_left_to_it():
    torch.manual_seed(0)
    model = fs.Stateful(Difference())
    x, y = torch.from_numpy(X).swapaxes(0, 1), torch.ones(40, 1)
    loss = lambda m, xs, ys: functional.mse_loss(m(xs), ys)  # noqa: E731
    torch.testing.assert_close(EachMember(loss)(model, x, y), loss(model, x, y))


def test_it_averages_as_a_module_and_in_builders_too():
    def build(n_in, n_out, rng):
        return Averaged([LSTMFCN(n_in, n_out), Rocket(n_in, n_out, 12)], [n_out])

    y = (X[..., 0].mean(1) > 0).astype(int)
    kw = {"lr": 0.01, "epochs": 40, "random_state": 0}
    for module in (build, build(2, 2, None)):
        model = fs.SequenceClassifier(module, **kw).fit(X, y)
        net = model.estimator_.model
        scores = [m.eval() for m in next(m for m in net.modules() if isinstance(m, Averaged))]
        x = torch.from_numpy((X - X.mean((0, 1))) / X.std((0, 1)))
        for own in scores:
            assert (own(x.swapaxes(0, 1)).argmax(1).numpy() == y).mean() > 0.95


def test_parts_of_averaged_networks():
    both = averaged()
    both.classes = [3]
    assert both[:2].classes == [3]
    assert len(both[1:]) == 2
    assert both[-1] is list(both)[2]
    with pytest.raises(ValueError, match="must carry no state, got a LSTM"):
        Averaged([fs.nn.LSTM(2, 3)])
    with pytest.raises(ValueError, match="no networks"):
        Averaged()(torch.zeros(5, 2, 2))


@pytest.mark.parametrize("x", [X, LIST], ids=["array", "list"])
@pytest.mark.parametrize("loss", ["cross_entropy", "ordinal"])
def test_probabilities_are_those_of_the_mean(loss, x):
    kw = {"loss": loss, "hidden_size": 8, "epochs": 2, "random_state": 0}
    model = fs.SequenceClassifier(NAMES, **kw, scale_x="both").fit(x, Y)
    model.estimator_.model.eval()
    proba = model.predict_proba(x[:1])
    net = next(m for m in model.estimator_.model.modules() if isinstance(m, Averaged))
    seen = []
    net.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    again = model.predict_proba(x[:1])
    np.testing.assert_array_equal(again, proba)
    inputs, found = seen[-1]
    each = torch.stack([own(inputs) for own in net])
    if loss == "ordinal":  # conditional scores
        torch.testing.assert_close(found, each.mean(0))
        expected = OrdinalLogProbabilities(3)(each.mean(0)).exp()
    else:
        expected = each.softmax(-1).mean(0)
    np.testing.assert_allclose(proba, expected.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_scores_are_those_of_mean_probabilities():
    nets = [PooledRNN(2, 6, "gru", 4), PooledRNN(2, 6, "lstm", 4)]
    x = torch.randn(7, 5, 2)
    each = torch.stack([100 * net(x) for net in nets])  # far too sure
    for net in nets:
        *_, weight, bias = net.parameters()
        weight.data *= 100
        bias.data *= 100
    found = Averaged(nets, classes=[3, 2, 1]).eval()(x)
    mean = each[..., :3].softmax(-1).mean(0)
    torch.testing.assert_close(found[:, :3].softmax(-1), mean)
    torch.testing.assert_close(found[:, 3:5].softmax(-1), each[..., 3:5].softmax(-1).mean(0))
    torch.testing.assert_close(found[:, 5].sigmoid(), each[..., 5].sigmoid().mean(0))
    assert found.isfinite().all()


def test_several_sets_of_ordinal_outputs_are_each_turned_into_probabilities():
    layer, outputs = OrdinalLogProbabilities(4), torch.randn(5, 6).split(3, 1)
    assert all(map(torch.equal, layer(outputs), map(layer, outputs)))
    with pytest.raises(ValueError, match="4 classes in an order need 3 outputs"):
        layer(torch.randn(5, 6))


def test_the_history_s_loss_is_the_mean_of_the_networks():
    kw = {"hidden_size": 8, "epochs": 1, "batchsize": 40, "random_state": 0, "scale_x": "standard"}
    both = fs.SequenceRegressor("gru+tcn", **kw).fit(X, X.sum((1, 2)))
    assert both.history_[0]["loss"] == pytest.approx(1.0, abs=0.6)  # targets are scaled
    labels = fs.SequenceClassifier("gru+tcn", loss="binary_cross_entropy", **kw)
    labels.fit(X, np.stack([Y > 0, Y > 1], 1).astype(int))
    assert labels.history_[0]["loss"] == pytest.approx(np.log(2), abs=0.2)


def decays(model):
    return [(group["weight_decay"], len(group["params"])) for group in model.param_groups]


def test_rockets_have_a_weight_decay_of_their_own():
    kw = {"hidden_size": 8, "epochs": 1, "random_state": 0, "scale_x": "standard"}
    model = fs.SequenceClassifier("lstm-fcn+rocket", **kw).fit(X, Y)
    others = len(list(model.estimator_.model.parameters())) - 1
    assert decays(model.estimator_.optimizer) == [(0.0, others), (1.0, 1)]  # biases do not decay
    assert decays(fs.SequenceClassifier("rocket", **kw).fit(X, Y).estimator_.optimizer) == [
        (0.0, 1), (1.0, 1)
    ]  # fmt: skip
    model.set_params(weight_decay=0.1, warm_start=True, epochs=2).fit(X, Y)
    assert decays(model.estimator_.optimizer) == [(0.1, others + 1)]
    model = fs.SequenceClassifier("rocket", optimizer="sgd", **kw).fit(X, Y)
    assert decays(model.estimator_.optimizer) == [(0, 2)]


def test_members_are_made_as_if_alone():
    model = fs.SequenceRegressor("gru+inception+lstm-fcn", epochs=1).fit(X, Y * 1.0)
    pools = [m.how for m in model.estimator_.model.modules() if isinstance(m, fs.nn.Pool)]
    assert pools == ["last", "mean", "mean"]
    model = fs.SequenceClassifier("transformer+rocket", epochs=1, hidden_size=8).fit(X, Y)
    assert model.history_[0]["lr"] <= 0.002
    with pytest.raises(ValueError, match="looks at whole sequences"):
        fs.SequenceForecaster(5, module="gru+tcn").fit(X[:, :, 0].ravel())


@pytest.mark.parametrize(
    ("module", "more", "message"),
    [
        ("gru+mlp", {}, r"averages .* got 'mlp'"),
        ("gru+lstm-fnc", {}, r"got 'lstm-fnc'.*lstm-fcn"),
        ("lstm-fcn+rocket", {"num_layers": 2}, "num_layers is for none of"),
        ("lstm-fcn+rocket", {"bidirectional": True}, "bidirectional is for none of"),
    ],
)
def test_what_cannot_be_averaged_is_refused(module, more, message):
    with pytest.raises(ValueError, match=message):
        fs.SequenceClassifier(module, epochs=1, **more).fit(X, Y)
    steps = np.tile(Y[:, None], 12)
    with pytest.raises(ValueError, match="one target per sequence"):
        fs.SequenceClassifier("gru+rocket", epochs=1).fit(X, steps)


def test_averaged_networks_are_saved_and_pickled(tmp_path):
    import pickle

    model = fs.SequenceClassifier(epochs=2, random_state=0).fit(X, Y)
    assert model.module_ == "lstm-fcn+rocket"
    proba = model.predict_proba(LIST)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own)
    np.testing.assert_array_equal(again.predict_proba(LIST), proba)
    model.estimator_.save(tmp_path / "model")
    again = fs.Estimator.load(tmp_path / "model")
    x = X.swapaxes(0, 1)
    np.testing.assert_array_equal(again.predict(x), model.estimator_.predict(x))
