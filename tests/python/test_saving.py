"""Estimators in files: what comes back predicts the same bits, and trains on to the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Custom, TwoInputs, adamw, chain
from safetensors.torch import load_file
from saved import LOSS, N, T, data, estimator, fitted, fresh, load, same
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import fastseq as fs


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


CHAINS = {
    "chain": lambda: chain(),
    "bare torch": lambda: nn.GRU(3, 1),
    "bare fastseq": lambda: fs.nn.LSTM(3, 1, trainable_state=True),
    "nested": lambda: fs.nn.Chain(
        fs.nn.Chain(fs.nn.GRU(3, 6), nn.LayerNorm(6)),
        nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Dropout(0.2)),
        fs.nn.RNN(4, 4, 2, dropout=0.1, nonlinearity="relu"),
        nn.Linear(4, 1, bias=False),
    ),
    "double": lambda: chain().double(),
    "linear": lambda: nn.Linear(3, 1),
}


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
def test_round_trip_without_the_model(make, path):
    """Predictions, losses and what more training does are the same bits."""
    x, y = data()
    model = make()
    est = estimator(model, scale_x="standard", scale_y="robust", shuffle=True)
    est.optimizer = torch.optim.SGD(model.parameters(), 1e-2)  # without a state of its own
    est.fit(x, y).save(path)
    loaded = load(path, loss=LOSS, optimizer=lambda params: torch.optim.SGD(params, 1e-2))
    assert repr(loaded.model) == repr(model)
    same(loaded.predict(x), est.predict(x))
    assert loaded.evaluate(x, y) == est.evaluate(x, y)
    assert loaded.spec == est.spec
    assert list(loaded.history_) == list(est.history_)
    for one in (est, loaded):
        torch.manual_seed(5)
        one.fit(x, y, epochs=1)
    assert loaded.history_[-1]["epoch"] == 3
    for (name, a), b in zip(
        loaded.model.state_dict().items(), est.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_bidirectional_model(path):
    x, _ = data()
    model = fs.nn.Chain(fs.nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 1))
    with pytest.warns(UserWarning, match="bidirectional"):
        est = fitted(model)
    est.save(path)
    same(load(path).predict(x), est.predict(x))  # where warnings are errors


def test_options_that_pytorch_warns_of(path):
    x, _ = data()
    with pytest.warns(UserWarning, match="dropout option"):
        est = fitted(fs.nn.Chain(nn.GRU(3, 4, dropout=0.5), nn.Linear(4, 1)))
    est.save(path)
    same(load(path).predict(x), est.predict(x))


def test_a_model_without_parameters(path):
    est = estimator(nn.Tanh(), optimizer=lambda _: torch.optim.SGD([{"params": []}], 1e-2))
    est.save(path)
    x, _ = data()
    same(load(path).predict(x), est.predict(x))


def test_sixteen_bits(path):
    est = estimator(chain().bfloat16())
    est.save(path)
    loaded = load(path)
    assert loaded.model[1].weight.dtype == torch.bfloat16
    x, _ = data()
    assert torch.equal(loaded.step(x[0]), est.step(x[0]))


def test_targets_without_a_last_axis(path):
    x, y = data()
    est = estimator(chain(), scale_y="standard").fit(x, y[..., 0])
    est.save(path)
    assert load(path).predict(x).shape == (T, N)
    same(load(path).predict(x), est.predict(x))
    same(load(path).step(x[0]), fresh(est).step(x[0]))


def test_classes(path):
    x, y = data()
    est = estimator(chain(outputs=3), fs.seqloss(cross_entropy), scale_x="standard", shuffle=True)
    est.fit(x, (y[..., 0] > y.mean()).long())
    est.save(path)
    same(load(path).predict(x), est.predict(x))


class Named(nn.Module):
    """Takes a dict and returns one."""

    def __init__(self):
        super().__init__()
        self.rnn = fs.nn.GRU(5, 4)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x, state=None):
        h, state = self.rnn(torch.cat([x["a"], x["b"]], -1), state)
        return {"sum": h.sum(-1, keepdim=True) * self.scale, "h": h}, state


def test_dicts_of_inputs_and_outputs(path):
    x = {"a": data(3)[0], "b": data(2)[0] ** 2}
    y = {"sum": x["a"][..., :1], "h": torch.cat([x["b"]] * 2, -1)}

    def loss(m, xs, ys):
        out = m(xs)
        return mse_loss(out["sum"], ys["sum"]) + mse_loss(out["h"], ys["h"])

    est = estimator(Named(), loss, scale_x="standard", scale_y="robust").fit(x, y)
    est.model.scale.fill_(0.25)  # buffers are saved too
    est.save(path)
    same(load(path, Named()).predict(x), est.predict(x))
    now = {name: part[0] for name, part in x.items()}
    same(load(path, Named).step(now)["sum"], fresh(est).step(now)["sum"])


def test_tuples_of_inputs(path):
    x = (data(3)[0], data(2)[0])
    est = estimator(TwoInputs())
    wanted = est.predict(x)
    est.save(path)
    same(load(path, TwoInputs).predict(x), wanted)


@pytest.mark.parametrize("given_as", ["instance", "class", "function"])
def test_a_model_of_ones_own(given_as, path):
    x, _ = data()
    est = fitted(Custom(hidden=6))
    est.save(path)
    with pytest.raises(ValueError, match=r"weights of a Custom.*models\.Custom.*model="):
        load(path)
    if given_as == "class":
        with pytest.raises(ValueError, match=r"float32 \(4, 7\) in the model.*\(6, 9\) in the f"):
            load(path, Custom)
        return
    model = Custom(hidden=6)
    loaded = load(path, model if given_as == "instance" else lambda: model)
    assert loaded.model is model
    same(loaded.predict(x), est.predict(x))


def test_what_is_no_model(path):
    fitted().save(path)
    for bad in (3, "torch.nn.Linear", lambda: 3):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, or a callable"):
            load(path, bad)


def test_an_exported_example_comes_back(path, tmp_path):
    fitted(scale_x="standard").save(path)
    loaded = load(path)
    loaded.export(tmp_path / "model.pt2")  # needs an example
    assert (tmp_path / "model.pt2").exists()


def test_frozen_parameters_stay_frozen(path):
    model = chain()
    model[0].weight_hh_l0.requires_grad_(False)
    fitted(model).save(path)
    frozen = [n for n, p in load(path).model.named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight_hh_l0"]


def test_a_model_that_is_frozen_as_a_whole_can_be_loaded_to_predict(path):
    est = fitted(chain())
    est.model.requires_grad_(False)
    est.save(path)
    x, _ = data()
    np.testing.assert_array_equal(load(path).predict(x), est.predict(x))


def test_shared_weights_need_the_model(path):
    def tied():
        model = fs.nn.Chain(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 1))
        model[2].weight = model[0].weight
        return model

    x, _ = data()
    est = fitted(tied())
    est.save(path)
    with pytest.raises(ValueError, match="pass model="):
        load(path)
    loaded = load(path, tied)
    assert loaded.model[2].weight is loaded.model[0].weight
    same(loaded.predict(x), est.predict(x))


def test_a_compiled_model_is_saved_as_what_was_compiled(path):
    x, _ = data()
    est = fitted()
    wanted = est.predict(x)  # a compiled model rounds otherwise
    est.model = torch.compile(est.model)
    est.save(path)
    same(load(path).predict(x), wanted)
    assert type(load(path).model) is fs.nn.Chain


def test_options_of_training(path):
    model = fs.nn.Chain(
        fs.nn.LSTM(3, 4), nn.Linear(4, 1)
    )  # torch's in bf16 need a processor that has it
    est = fitted(model, seed=7, amp="bf16", clip_norm=0.5)
    est.save(path)
    loaded = load(path)
    assert (loaded.seed, loaded.amp, loaded.spec.clip_norm) == (7, "bf16", 0.5)
    assert load(path, amp=None).amp is None
    drawn = fitted()
    drawn.save(path)
    assert load(path).seed is None
    assert load(path)._learner.drawn_seed == drawn._learner.drawn_seed


def test_loss_and_optimizer_are_asked_for(path):
    x, y = data()
    est = fitted()
    est.save(path)
    loaded = load(path)
    with pytest.raises(
        ValueError, match="evaluate needs a loss, which files do not hold: pass loss="
    ):
        loaded.evaluate(x, y)
    with pytest.raises(ValueError, match="fit needs a loss"):
        loaded.fit(x, y)
    loaded = load(path, loss=LOSS)
    with pytest.raises(ValueError, match="fit needs an optimizer"):
        loaded.fit(x, y)
    assert loaded.evaluate(x, y) == est.evaluate(x, y)
    load(path, loss=LOSS, optimizer=adamw).fit(x, y)
    with pytest.raises(TypeError, match="no_such"):
        load(path, no_such=3)


def test_a_callback_that_saves(path):
    """While parameters are views of one memory."""
    x, y = data()
    model = chain()
    est = fs.Estimator(
        model, LOSS, adamw, {"epochs": 3, "batchsize": 2, "seqsize": 7},
        device="cpu", progress=False,
        callbacks=[lambda run: run.epoch == 2 and run.estimator.save(path)],
    )  # fmt: skip
    est.fit(x, y)
    torch.manual_seed(0)
    two = estimator(chain())
    with torch.random.fork_rng([]):
        two.fit(x, y, epochs=2)
    same(load(path).predict(x), two.predict(x))


def test_weights_are_there_for_other_tools(path):
    est = fitted()
    est.save(path)
    weights = load_file(path)
    for name, a in est.model.state_dict().items():
        assert torch.equal(weights[f"model.{name}"], a)


# Drawn models

RECURRENT = st.sampled_from([nn.LSTM, nn.GRU, nn.RNN, fs.nn.LSTM, fs.nn.GRU, fs.nn.RNN])
BETWEEN = st.sampled_from(
    [nn.Tanh, nn.ReLU, nn.SiLU, lambda: nn.Dropout(0.3), lambda: nn.Softmax(-1), nn.Identity,
     lambda: nn.LeakyReLU(0.2)]
)  # fmt: skip


@st.composite
def chains(draw):
    layers, size = [], 3
    for _ in range(draw(st.integers(1, 5))):
        hidden = draw(st.integers(1, 5))
        kind = draw(st.sampled_from(["recurrent", "linear", "norm", "between", "nested"]))
        if kind == "recurrent":
            options = {"bias": draw(st.booleans()), "num_layers": draw(st.integers(1, 2))}
            layers.append(draw(RECURRENT)(size, hidden, **options))
            size = hidden
        elif kind == "linear":
            layers.append(nn.Linear(size, hidden, bias=draw(st.booleans())))
            size = hidden
        elif kind == "norm":
            layers.append(
                nn.LayerNorm(size, eps=draw(st.floats(1e-6, 1)), bias=draw(st.booleans()))
            )
        elif kind == "between":
            layers.append(draw(BETWEEN)())
        else:
            layers.append(nn.Sequential(nn.Linear(size, hidden), draw(BETWEEN)()))
            size = hidden
    return fs.nn.Chain(*layers, nn.Linear(size, 1))


@settings(max_examples=40)
@given(model=chains(), scale=st.sampled_from([None, "standard", "robust"]))
def test_drawn_chains_come_back_with_state(model, scale, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "drawn"
    x, y = data(steps=9)
    est = estimator(model, scale_x=scale, epochs=1).fit(x, y)
    est.predict(x)
    est.save(path, state=True)
    loaded = load(path)
    same(loaded.predict(x[:4], reset=False), est.predict(x[:4], reset=False))
    same(loaded.step(x[4]), est.step(x[4]))
    same(loaded.predict(x), est.predict(x))


@pytest.mark.parametrize("what", ["save", "export", "wrapper"])
def test_nothing_is_written_if_another_rank_does_not_make_the_call(what, tmp_path, monkeypatch):
    est = fitted()
    wrapper = fs.SequenceRegressor("gru", epochs=1, device="cpu", random_state=0)
    wrapper.fit(np.zeros((20, 5, 2)), np.arange(20.0))

    def missing(_):
        raise fs.CommunicationError("rank 1 has exited")

    monkeypatch.setattr("fastseq.distributed.replicas.Replicas.meet", missing)
    calls = {
        "save": lambda: est.save(tmp_path / "model.safetensors"),
        "export": lambda: est.export(tmp_path / "model.pt2"),
        "wrapper": lambda: wrapper.save(tmp_path / "model.safetensors"),
    }
    with pytest.raises(fs.CommunicationError):
        calls[what]()
    assert not list(tmp_path.iterdir())
