"""`fit` against loops written by hand in plain torch."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from models import Custom, TwoInputs, adamw, assert_same_parameters, chain, plain_loop
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs

X = torch.randn(45, 10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X.mean(2, keepdim=True).roll(1, 0)
pytestmark = pytest.mark.usefixtures("in_double")


def fit(model, loss=None, *, x=X, y=Y, batchsize=5, seqsize=9, epochs=5, w=None, mask=None, **spec):
    spec = {"epochs": epochs, "batchsize": batchsize, "seqsize": seqsize, **spec}
    loss = fs.seqloss(mse_loss) if loss is None else loss
    est = fs.Estimator(copy.deepcopy(model), loss, adamw, spec, progress=False)
    return est.fit(x, y, w, mask=mask)


class Wrapped(nn.Module):
    """A recurrent layer with a head, as users write it: ``forward(x, state)``."""

    def __init__(self, rnn, head):
        super().__init__()
        self.rnn, self.head = rnn, head

    def forward(self, x, state):
        h, state = self.rnn(x, state)
        return self.head(h), state


MODELS = {
    "chain of LSTM": chain,
    "chain of two": lambda: fs.nn.Chain(nn.GRU(3, 4), nn.Tanh(), nn.RNN(4, 2), nn.Linear(2, 1)),
    "two layers": lambda: fs.nn.Chain(nn.LSTM(3, 4, num_layers=2), nn.Linear(4, 1)),
    "module": lambda: Wrapped(nn.LSTM(3, 4), nn.Linear(4, 1)),
    "nested state": Custom,
    "bare LSTM": lambda: nn.LSTM(3, 1),
    "bare GRU": lambda: nn.GRU(3, 1),
    "bare RNN": lambda: nn.RNN(3, 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_fifty_updates_equal_a_hand_written_loop(name):
    model = MODELS[name]()
    est = fit(model)  # 2 blocks of 5 chunks, 5 epochs
    expected = plain_loop(model, X, Y, batchsize=5, seqsize=9, updates=50)
    assert sum(row["updates"] for row in est.history_) == 50
    assert_same_parameters(est.model, expected)


def test_state_is_carried_between_chunks_only():
    model = chain()
    with_state = fit(model).model
    fresh = plain_loop(model, X, Y, batchsize=5, seqsize=9, updates=50, carry=False)
    with pytest.raises(AssertionError, match="differs"):
        assert_same_parameters(with_state, fresh)


@pytest.mark.parametrize(("batchsize", "seqsize"), [(4, 7), (3, 45), (10, 44), (99, 99), (1, 40)])
def test_short_tails_are_kept(batchsize, seqsize):
    model = chain()
    est = fit(model, batchsize=batchsize, seqsize=seqsize, epochs=3)
    steps = -(-10 // batchsize) * -(-45 // seqsize)
    expected = plain_loop(model, X, Y, batchsize=batchsize, seqsize=seqsize, updates=3 * steps)
    assert [row["updates"] for row in est.history_] == [steps] * 3
    assert_same_parameters(est.model, expected)


def test_two_inputs_and_dict_of_targets():
    x = X, torch.randn(45, 10, 2)
    model = TwoInputs()

    def loss(m, xs, ys):
        return mse_loss(m(xs)["level"], ys["level"])

    def plain_loss(output, y):
        return mse_loss(output["level"], y)

    est = fit(model, loss, x=x, y={"level": Y})
    expected = plain_loop(model, x, Y, batchsize=5, seqsize=9, updates=50, loss=plain_loss)
    assert_same_parameters(est.model, expected)


def test_a_loss_written_step_by_step_is_seqloss():
    def loss(m, xs, ys):
        total = 0.0
        for t in range(len(xs)):
            total = total + mse_loss(m(xs[t]), ys[t])
        return total / len(xs)

    model = chain()
    assert_same_parameters(fit(model, loss).model, fit(model).model, rtol=1e-5)


def test_stateless_model():
    model = nn.Linear(3, 1)
    whole = fit(model, batchsize=10, seqsize=45, epochs=4).model
    optimizer = adamw(model.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        mse_loss(model(X), Y).backward()
        optimizer.step()
    assert_same_parameters(whole, model)


def test_gradient_norm_is_clipped():
    model = chain()
    est = fit(model, clip_norm=0.01)
    expected = plain_loop(model, X, Y, batchsize=5, seqsize=9, updates=50, clip_norm=0.01)
    assert_same_parameters(est.model, expected)


def test_gradient_values_are_clipped():
    model = nn.Linear(3, 1)
    spec = {"epochs": 1, "batchsize": 10, "seqsize": 45, "clip_value": 1e-3}

    def sgd(params):
        return torch.optim.SGD(params, lr=1.0)

    before = copy.deepcopy(model)
    fs.Estimator(model, fs.seqloss(mse_loss), sgd, spec, progress=False).fit(X, Y + 100)
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close((p - q).abs(), torch.full_like(p, 1e-3), rtol=1e-3, atol=0)


def test_weights_count_as_repeated_samples():
    """A weight of 2 is the sequence given twice, where all are in one block."""
    model = chain()
    w = torch.ones(10)
    w[3] = 2
    twice = torch.cat([X, X[:, 3:4]], 1), torch.cat([Y, Y[:, 3:4]], 1)
    weighted = fit(model, batchsize=20, w=w).model
    repeated = fit(model, x=twice[0], y=twice[1], batchsize=20).model
    assert_same_parameters(weighted, repeated, rtol=1e-5)


@pytest.mark.parametrize("shape", [(10,), (45, 10), (45, 10, 1)])
def test_shapes_of_weights(shape):
    model = chain()
    w = torch.rand(10).expand(45, 10)
    given = w[0] if len(shape) == 1 else w.reshape(shape)
    kept = given.clone()
    got = fit(model, w=given.numpy()).model
    assert torch.equal(given, kept)
    assert_same_parameters(got, fit(model, w=w).model, rtol=0)


def test_masked_steps_add_nothing_even_if_they_are_nan():
    model = chain()
    mask = torch.ones(45, 10, dtype=torch.bool)
    mask[20:, 4] = False
    mask[:, 7] = False
    dirty = (
        torch.where(mask.unsqueeze(-1), X, torch.nan),
        torch.where(mask.unsqueeze(-1), Y, torch.inf),
    )
    clean = torch.where(mask.unsqueeze(-1), X, 0)
    kept = dirty[0].clone()
    masked = fit(model, x=dirty[0], y=dirty[1], mask=mask).model
    weighted = fit(model, x=clean, w=mask.float()).model
    assert_same_parameters(masked, weighted, rtol=0)
    torch.testing.assert_close(dirty[0], kept, rtol=0, atol=0, equal_nan=True)


def test_a_wholly_masked_run_is_an_error_and_changes_nothing():
    model = chain()
    before = copy.deepcopy(model)
    est = fs.Estimator(model, fs.seqloss(mse_loss), adamw, fs.Spec(1, 3, 7))
    with pytest.raises(ValueError, match="nothing to train on"):
        est.fit(X, Y, mask=torch.zeros(X.shape[:2], dtype=torch.bool))
    assert_same_parameters(model, before, rtol=0)


def test_a_custom_loss_gets_weights():
    seen = []

    def loss(m, xs, ys, ws):
        seen.append(tuple(ws.shape))
        return (((m(xs) - ys) ** 2).mean(-1) * ws).sum() / ws.sum()

    model = chain()
    w = torch.rand(10)
    got = fit(model, loss, w=w).model
    assert set(seen) == {(9, 5)}
    assert_same_parameters(got, fit(model, w=w).model, rtol=1e-5)


def test_shuffling_permutes_blocks_and_repeats_with_the_seed():
    def order(seed):
        seen = []

        def loss(m, xs, ys):
            seen.append(int(ys[0, 0, 0]))
            return mse_loss(m(xs), ys)

        x = torch.zeros(4, 12, 3)
        y = torch.arange(12.0).repeat(4, 1).unsqueeze(-1)
        spec = fs.Spec(epochs=3, batchsize=1, seqsize=2, shuffle=True)
        fs.Estimator(chain(), loss, adamw, spec, seed=seed, progress=False).fit(x, y)
        return seen

    first = order(3)
    epochs = [first[i : i + 24 : 2] for i in range(0, 72, 24)]
    assert all(sorted(e) == list(range(12)) for e in epochs)
    assert first[::2] == first[1::2]  # both chunks of a block, one after the other
    assert len({tuple(e) for e in epochs}) == 3
    assert order(3) == first
    assert order(4) != first


def test_same_seed_same_bits_and_the_global_generator_is_left_alone():
    def run(seed):
        torch.manual_seed(5)
        model = fs.nn.Chain(nn.GRU(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        spec = {"epochs": 2, "batchsize": 3, "seqsize": 9}
        est = fs.Estimator(model, fs.seqloss(mse_loss), adamw, spec, seed=11, progress=False)
        est.fit(X, Y)
        assert torch.equal(before, torch.get_rng_state())
        return model

    assert_same_parameters(run(0), run(1), rtol=0)


def test_two_short_runs_are_one_long_one():
    model = chain()
    spec = fs.Spec(epochs=5, batchsize=3, seqsize=9, shuffle=True)

    def estimator():
        own = copy.deepcopy(model)
        return fs.Estimator(own, fs.seqloss(mse_loss), adamw, spec, seed=1, progress=False)

    once = estimator().fit(X, Y)
    parts = estimator().fit(X, Y, epochs=2).partial_fit(X, Y).fit(X, Y, epochs=2)
    assert_same_parameters(parts.model, once.model, rtol=0)
    assert [row["epoch"] for row in parts.history_] == [1, 2, 3, 4, 5]
    assert [r["loss"] for r in parts.history_] == [r["loss"] for r in once.history_]


@dataclasses.dataclass
class MySpec:
    epochs: int = 5
    batchsize: int = 5
    seqsize: int = 9
    note: str = "other objects may carry more"


@pytest.mark.parametrize(
    "spec",
    [
        {"epochs": 5, "batchsize": 5, "seqsize": 9},
        namedtuple("S", "epochs batchsize seqsize")(5, 5, 9),
        SimpleNamespace(epochs=5, batchsize=5, seqsize=9, more=1),
        MySpec(),
        fs.Spec(5, 5, 9),
    ],
    ids=["dict", "namedtuple", "object", "dataclass", "Spec"],
)
def test_kinds_of_spec(spec):
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), adamw, spec)
    assert est.spec == fs.Spec(5, 5, 9)


def test_history_has_the_mean_loss_over_all_samples():
    model = chain()
    losses = []

    def loss(m, xs, ys):
        value = mse_loss(m(xs), ys)
        losses.append((float(value.detach()), xs.shape[0] * xs.shape[1]))
        return value

    est = fit(model, loss, batchsize=4, seqsize=7, epochs=1)
    mean = sum(value * n for value, n in losses) / (45 * 10)
    assert est.history_[0]["loss"] == pytest.approx(mean, rel=1e-9)
    assert est.history_[0]["lr"] == 1e-2


def test_evaluate_without_any_weight_is_an_error():
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), adamw, fs.Spec(1, 3, 7))
    with pytest.raises(ValueError, match="nothing to compute a loss on"):
        est.evaluate(X, Y, torch.zeros(10))


def test_evaluate_is_the_loss_without_training():
    model = fs.nn.Chain(nn.GRU(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    est = fs.Estimator(model, fs.seqloss(mse_loss), adamw, fs.Spec(1, 3, 7))
    model.eval()
    with torch.no_grad():
        expected = float(mse_loss(model(X)[0], Y))
    model.train()
    assert est.evaluate(X, Y) == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_modes_are_restored_and_the_caller_s_optimizer_is_used():
    model = chain()
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    est = fs.Estimator(model, fs.seqloss(mse_loss), optimizer, fs.Spec(1, 5, 9), progress=False)
    est.fit(X, Y)
    assert est.optimizer is optimizer
    assert not model.training


def test_frozen_parameters_and_bf16_models():
    model = chain().to(torch.bfloat16)
    model[1].bias.requires_grad_(False)
    bias = model[1].bias.clone()
    est = fs.Estimator(model, fs.seqloss(mse_loss), adamw, fs.Spec(2, 5, 9), progress=False)
    est.fit(X, Y)
    assert torch.equal(bias, model[1].bias)
    assert est.predict(X).dtype == "float32"


def test_compiled_model_trains_as_the_plain_one():
    model = chain()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    spec = fs.Spec(1, 5, 9)
    est = fs.Estimator(compiled, fs.seqloss(mse_loss), adamw, spec, progress=False).fit(X, Y)
    assert_same_parameters(est.model, fit(model, epochs=1).model, rtol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda est: pickle.loads(pickle.dumps(est))])  # noqa: S301
def test_copies_of_an_estimator_train_on_their_own(copied):
    est = fit(chain(), epochs=2)
    other = copied(est)
    other.fit(X, Y, epochs=2)
    assert_same_parameters(other.model, est.fit(X, Y, epochs=2).model, rtol=0)
    assert [r["epoch"] for r in other.history_] == [1, 2, 3, 4]


def test_a_fit_that_fails_as_it_begins_leaves_no_hooks(monkeypatch):
    model = nn.Sequential(*(nn.Linear(700, 700) for _ in range(3)))  # more than one bucket
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), lambda p: torch.optim.SGD(p, lr=0.1),
        {"epochs": 1, "batchsize": 2, "seqsize": 5}, comm=None, progress=False,
    )  # fmt: skip
    x = torch.zeros(5, 2, 700)

    def fails(_):
        raise TypeError("cannot be sent")

    monkeypatch.setattr(
        est._learner.replicas, "alone", False
    )  # one rank, with all there is of several
    monkeypatch.setattr(est._learner.replicas, "sync", fails)
    with pytest.raises(TypeError, match="cannot be sent"):
        est.fit(x, x)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    monkeypatch.undo()
    est.fit(x, x)
