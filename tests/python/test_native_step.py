"""Updates in C++ beside those by autograd: update by update, for drawn models, losses, optimizers and data."""

from __future__ import annotations

import copy
import functools
import random
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy, mse_loss
from updates import (
    FEATURES,
    SPEC,
    Record,
    X,
    Y,
    assert_close,
    compared,
    drawn_model,
    drawn_runs,
    small,
)

import fastseq as fs
from fastseq.nn.per_sequence import AtLastStep, PerSequence
from fastseq.training.native_layers import End


def drawn_loss(rng: random.Random) -> tuple[Any, int, str]:
    """Return a loss over samples, the number of outputs, and the kind of targets."""
    losses = [
        (mse_loss, "numbers"), (nn.MSELoss(), "numbers"), (nn.L1Loss(), "numbers"),
        (nn.HuberLoss(delta=0.3), "numbers"), (nn.SmoothL1Loss(beta=0.4), "numbers"),
        (nn.BCEWithLogitsLoss(), "parts"), (cross_entropy, "classes"),
    ]  # fmt: skip
    fn, kind = rng.choice(losses)
    return fn, rng.choice([2, 4]) if kind == "classes" else rng.choice([1, 2]), kind


def drawn_optimizer(rng: random.Random, params: Any) -> optim.Optimizer:
    params = list(params)
    eps = 1e-8 if params[0].dtype == torch.float64 else 1e-3  # scales no rounding up
    if rng.random() < 0.3:  # groups
        params = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "lr": 3e-3}]
    decay = rng.choice([0.0, 0.01])
    maximize = rng.random() < 0.2
    return rng.choice([
        lambda: optim.SGD(params, 1e-2, momentum=rng.choice([0, 0.9]), weight_decay=decay),
        lambda: optim.SGD(params, 1e-2, momentum=0.9, nesterov=True, weight_decay=decay),
        lambda: optim.SGD(params, 1e-2, momentum=0.8, dampening=0.2, maximize=maximize),
        lambda: optim.Adam(
            params, 1e-2, eps=eps, weight_decay=decay, amsgrad=rng.random() < 0.3,
            maximize=maximize,
        ),
        lambda: optim.AdamW(params, 1e-2, eps=eps, weight_decay=decay, fused=True),
        lambda: optim.AdamW(params, 1e-2, (0.8, 0.95), eps, amsgrad=rng.random() < 0.3),
        lambda: optim.RMSprop(params, 1e-3, eps=eps, weight_decay=decay, maximize=maximize),
        lambda: optim.RMSprop(params, 1e-3, eps=eps, momentum=0.9, centered=True),
    ])()  # fmt: skip


def drawn_data(rng: random.Random, kind: str, outputs: int, dtype: torch.dtype) -> dict[str, Any]:
    count, steps = rng.choice([1, 5, 12]), rng.choice([7, 20])
    draw = torch.Generator().manual_seed(rng.randrange(2**30))
    x = torch.randn(steps, count, FEATURES, generator=draw, dtype=dtype)
    y = torch.randn(steps, count, outputs, generator=draw, dtype=dtype)
    if kind == "parts":
        y = y.sigmoid()
    if kind == "classes":
        y = torch.randint(outputs, (steps, count, 1), generator=draw)
        if rng.random() < 0.3:
            y[rng.randrange(steps), 0] = -100
    data: dict[str, Any] = {"x": x, "y": y}
    form = rng.choice(["arrays", "arrays", "arrays", "weights", "mask", "lengths"])
    if form == "weights":
        data["w"] = torch.rand(steps, count, generator=draw).round(decimals=1)
    if form == "mask":
        data["mask"] = torch.rand(steps, count, generator=draw) < 0.7
    if form == "lengths":
        data["lengths"] = torch.randint(1, steps + 1, (count,), generator=draw)
    return data


def drawn(number: int) -> tuple[Any, dict[str, Any], int]:
    """Return a function that makes an estimator, its data, and the number of updates."""
    rng = random.Random(number)  # noqa: S311
    torch.manual_seed(number)
    dtype = rng.choice([torch.float32, torch.float64, torch.float64])
    fn, outputs, kind = drawn_loss(rng)
    model = drawn_model(rng, outputs).to(dtype)
    clip = rng.choice([{}, {}, {"clip_norm": 0.1}, {"clip_value": 0.01}])
    spec = {
        "epochs": 2, "batchsize": rng.choice([2, 5, 64]), "seqsize": rng.choice([3, 7, 100]),
        "shuffle": rng.random() < 0.3, "accumulate": rng.choice([1, 1, 1, 2, 3]), **clip,
    }  # fmt: skip
    data = drawn_data(rng, kind, outputs, dtype)
    if any(type(m) in (nn.LSTM, nn.GRU, nn.RNN) and m.bidirectional for m in model.modules()):
        data.pop("lengths", None)  # they are not told where sequences end
    state = rng.getstate()

    def make(*callbacks: Any) -> fs.Estimator:
        rng.setstate(state)
        own = copy.deepcopy(model)
        return fs.Estimator(
            own, fs.seqloss(fn), drawn_optimizer(rng, own.parameters()), spec, seed=1,
            callbacks=list(callbacks), progress=False,
        )  # fmt: skip

    return make, data, dtype.itemsize


@pytest.mark.filterwarnings(
    "ignore:.*bidirectional", "ignore:.*reads the chunks", "ignore:dropout option"
)
@pytest.mark.parametrize("number", drawn_runs(200, sample=70))
def test_drawn_runs_are_those_by_torch(number, by_torch, natively):
    make, data, itemsize = drawn(number)
    native, plain = compared(make, data, itemsize, by_torch)
    assert natively
    together = make().fit(**data)  # many chunks in a call
    for p, q in zip(native.model.parameters(), together.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert [row["loss"] for row in native.history_] == [row["loss"] for row in together.history_]
    # Rounding adds up in these.
    own, other = (est.optimizer.state_dict()["state"] for est in (native, plain))
    assert own.keys() == other.keys()
    for name in {name for state in other.values() for name in state}:
        parts = ([state[name] for state in states.values()] for states in (own, other))
        assert_close(*parts, itemsize, name, 1 if itemsize == 8 else 10)


def pruned(layer: nn.Linear, outputs: int) -> nn.Linear:
    """Cut outputs of a layer whose attributes still tell the old number."""
    layer.weight = nn.Parameter(layer.weight[:outputs].detach().clone())
    layer.bias = nn.Parameter(layer.bias[:outputs].detach().clone())
    return layer


def with_forward(module: nn.Module) -> nn.Module:
    module.forward = type(module).forward.__get__(module)
    return module


@pytest.mark.parametrize(
    ("what", "model", "more"),
    [
        ("the model has a Conv1d", nn.Conv1d(3, 1, 1), {}),
        ("layers share parameters", nn.Sequential(*[nn.Linear(3, 3)] * 2, nn.Linear(3, 1)), {}),
        ("projections", fs.nn.Chain(fs.nn.LSTM(3, 4, proj_size=1)), {}),
        ("a trainable initial state", fs.nn.Chain(fs.nn.GRU(3, 1, trainable_state=True)), {}),
        ("compile=True", nn.Linear(3, 1), {"compile": True}),
        ("the optimizer is Adagrad", nn.Linear(3, 1), {"optimizer": optim.Adagrad}),
        ("the loss is not made by seqloss", nn.Linear(3, 1), {"loss": lambda m, x, y: m(x).sum()}),
        (
            "the loss is multi_margin_loss",
            nn.Linear(3, 1),
            {"loss": nn.functional.multi_margin_loss},
        ),
        ("amp='fp16'", nn.Linear(3, 1), {"amp": "fp16"}),
        (
            "a parameter of shape (7, 3), where its layer says (8, 3)",
            nn.Sequential(pruned(nn.Linear(3, 8), 7), nn.Linear(7, 1)),
            {},
        ),
        ("the loss has its own forward", nn.Linear(3, 1), {"loss": with_forward(nn.MSELoss())}),
    ],
)
def test_info_says_what_keeps_a_fit_with_torch(what, model, more):
    optimizer = more.pop("optimizer", optim.SGD)(model.parameters(), lr=0.1)
    loss = more.pop("loss", mse_loss)
    loss = loss if what.endswith("seqloss") else fs.seqloss(loss)
    est = fs.Estimator(model, loss, optimizer, SPEC | more.pop("spec", {}), progress=False, **more)
    assert fs.info(est)["updates"] == f"by PyTorch: {what}"
    assert fs.info(small())["updates"] == "in C++, several at a time"


def test_a_loss_that_is_not_finite_raises_as_by_torch(by_torch, natively):
    def fail(train):
        est = small(optim.SGD, spec={"seqsize": 5})
        est.optimizer.param_groups[0]["lr"] = 1e200
        with pytest.raises(fs.errors.DivergedError) as raised:
            train(est, X, Y)
        return str(raised.value), [p.detach() for p in est.model.parameters()]

    ours, theirs = fail(lambda est, *data: est.fit(*data)), fail(by_torch)
    assert ours[0] == theirs[0]
    for p, q in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=0)


def test_labels_that_are_no_classes_raise_as_by_torch(by_torch):
    labels = torch.zeros(40, 6, 1, dtype=torch.int64)
    labels[33, 2] = 5

    def fail(train):
        torch.manual_seed(0)
        model = fs.nn.Chain(fs.nn.LSTM(FEATURES, 5), nn.Linear(5, 3))
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        est = fs.Estimator(model, fs.seqloss(cross_entropy), optimizer, SPEC, progress=False)
        with pytest.raises(ValueError, match="must be class numbers") as raised:
            train(est, X.float(), labels)
        return str(raised.value)

    assert fail(lambda est, *data: est.fit(*data)) == fail(by_torch)


@pytest.mark.parametrize("outer", [PerSequence, AtLastStep])
@pytest.mark.parametrize("inner", [PerSequence, AtLastStep])
def test_losses_of_sequences_within_another(outer, inner, natively):
    est = small(optim.SGD, spec={"seqsize": 40, "batchsize": 6, "epochs": 1})
    est.optimizer.param_groups[0]["lr"] = 0.0
    est.loss = outer(inner(fs.seqloss(mse_loss)))
    est.fit(X, Y)
    assert natively
    expected = est.loss(fs.Stateful(est.model), X, Y).item()
    assert est.history_[-1]["loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("wrapper", [PerSequence, AtLastStep])
def test_losses_of_sequences_ignore_labels_as_by_torch(wrapper, by_torch, natively):
    labels = torch.zeros(40, 6, 1, dtype=torch.int64)
    labels[:, ::2] = 2
    labels[:, 1] = -100

    def make():
        torch.manual_seed(0)
        model = fs.nn.Chain(fs.nn.LSTM(FEATURES, 5), nn.Linear(5, 3)).double()
        loss, spec = wrapper(fs.seqloss(cross_entropy)), SPEC | {"seqsize": 40}
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        return fs.Estimator(model, loss, optimizer, spec, progress=False)

    native, plain = make().fit(X, labels), by_torch(make(), X, labels)
    assert natively
    for p, q in zip(native.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_a_loss_with_more_arguments_is_left_to_torch():
    loss = functools.partial(fs.seqloss(mse_loss), ws=torch.ones(7, 3))
    model = nn.Linear(3, 1)
    est = fs.Estimator(model, loss, optim.SGD(model.parameters(), 0.1), SPEC, progress=False)
    assert fs.info(est)["updates"] == "by PyTorch: the loss is not made by seqloss"


@pytest.mark.parametrize("loss", [nn.HuberLoss(delta=-1.0), nn.SmoothL1Loss(beta=-1.0)])
def test_losses_that_torch_refuses_raise(loss):
    with pytest.raises(RuntimeError, match="does not support"):
        small(optim.SGD, loss).fit(X, Y)


@pytest.mark.parametrize("optimizer", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop])
def test_parameters_may_be_infinite(optimizer, by_torch, natively):
    labels = torch.arange(240).reshape(40, 6, 1) % 2

    def make():
        torch.manual_seed(0)
        model = fs.nn.Chain(fs.nn.LSTM(FEATURES, 5), nn.Linear(5, 3)).double()
        nn.init.constant_(model[1].bias[2:], -torch.inf)  # a class that is never predicted
        own = optimizer(model.parameters(), lr=1e-2, weight_decay=0)
        return fs.Estimator(model, fs.seqloss(cross_entropy), own, SPEC, progress=False)

    native, plain = make().fit(X, labels), by_torch(make(), X, labels)
    assert natively
    for p, q in zip(native.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_data_in_any_layout_train_alike():
    x = X.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    y = torch.cat([Y, Y], 2)
    ours = small(outputs=2).fit(x, y.permute(2, 0, 1).contiguous().permute(1, 2, 0))
    for p, q in zip(
        ours.model.parameters(), small(outputs=2).fit(X, y).model.parameters(), strict=True
    ):
        assert torch.equal(p, q)


def test_pauses_change_no_dropout(natively):
    """Calls end after a while; what was drawn beyond is drawn again."""
    x = torch.randn(60_000, 16, FEATURES, generator=torch.Generator().manual_seed(0))

    def fitted(x, *callbacks):
        torch.manual_seed(0)
        gru = fs.nn.GRU(FEATURES, 48, 2, dropout=0.5)
        model = fs.nn.Chain(gru, nn.Dropout(0.2), nn.Linear(48, 1))
        optimizer, spec = optim.SGD(model.parameters(), lr=1e-2), SPEC | {"batchsize": 16}
        est = fs.Estimator(
            model, fs.seqloss(mse_loss), optimizer, spec, callbacks=callbacks, seed=1,
            progress=False,
        )  # fmt: skip
        return list(est.fit(x, x[..., :1]).model.parameters())

    steps = 600
    together = fitted(x[:steps])
    while steps < len(x) and all(outcome.end != End.paused for outcome, _ in natively):
        steps *= 2
        together = fitted(x[:steps])
    for p, q in zip(together, fitted(x[:steps], Record()), strict=True):  # one update in a call
        assert torch.equal(p, q)


def test_dropout_is_drawn_by_seed(natively):
    def fitted(seed):
        torch.manual_seed(0)
        model = fs.nn.Chain(
            fs.nn.GRU(FEATURES, 5, 2, dropout=0.5), nn.Dropout(0.2), nn.Linear(5, 1)
        )
        optimizer = optim.AdamW(model.parameters(), lr=1e-2)
        est = fs.Estimator(model, fs.seqloss(mse_loss), optimizer, SPEC, seed=seed, progress=False)
        return [row["loss"] for row in est.fit(X.float(), Y.float()).history_]

    assert fitted(1) == fitted(1) != fitted(2)
    assert natively


def test_evaluating_layers_drop_nothing(by_torch, natively):
    class Evaluate(fs.callbacks.Callback):
        def on_epoch_begin(self, run):
            run.model[0].eval()
            run.model[1].eval()

    def make():
        torch.manual_seed(0)
        gru = fs.nn.GRU(FEATURES, 5, 2, dropout=0.5)
        model = fs.nn.Chain(gru, nn.Dropout(0.2), nn.Linear(5, 1)).double()
        optimizer = optim.AdamW(model.parameters(), lr=1e-2)
        return fs.Estimator(
            model, fs.seqloss(mse_loss), optimizer, SPEC, callbacks=[Evaluate()], progress=False
        )

    native, plain = make().fit(X, Y), by_torch(make(), X, Y)
    assert natively
    for p, q in zip(native.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
