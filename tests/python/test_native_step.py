"""Updates in C++ beside those by autograd: update by update, for drawn models, losses, optimizers and data."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy, mse_loss
from updates import Follow, Record, assert_close, drawn_runs

import fastseq as fs

FEATURES = 3


def drawn_model(rng: random.Random, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    width = FEATURES
    for _ in range(rng.randint(0, 2)):
        layers.append(nn.Linear(width, size := rng.choice([1, 5, 17]), bias=rng.random() < 0.8))
        layers.append(rng.choice([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity])())
        width = size
    if rng.random() < 0.8:
        kind = rng.choice([fs.nn.LSTM, fs.nn.GRU, fs.nn.RNN, nn.LSTM, nn.GRU, nn.RNN])
        hidden, both = rng.choice([1, 4, 10, 19]), rng.random() < 0.3
        layers.append(
            kind(
                width, hidden, rng.choice([1, 1, 2, 3]), bidirectional=both, bias=rng.random() < 0.8
            )
        )
        width = hidden * (2 if both else 1)
    layers.append(nn.Linear(width, outputs))
    return layers[0] if len(layers) == 1 else fs.nn.Chain(*layers)


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
    if rng.random() < 0.3:  # groups
        params = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "lr": 3e-3}]
    decay = rng.choice([0.0, 0.01])
    maximize = rng.random() < 0.1
    return rng.choice([
        lambda: optim.SGD(params, 1e-2, momentum=rng.choice([0, 0.9]), weight_decay=decay),
        lambda: optim.SGD(params, 1e-2, momentum=0.9, nesterov=True),
        lambda: optim.SGD(params, 1e-2, momentum=0.8, dampening=0.2, maximize=maximize),
        lambda: optim.Adam(params, 1e-2, weight_decay=decay, amsgrad=rng.random() < 0.3),
        lambda: optim.AdamW(params, 1e-2, weight_decay=decay, fused=True),
        lambda: optim.AdamW(params, 1e-2, betas=(0.8, 0.95), amsgrad=rng.random() < 0.3),
        lambda: optim.RMSprop(params, 1e-3, weight_decay=decay),
        lambda: optim.RMSprop(params, 1e-3, momentum=0.9, centered=True),
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
    ours = Record()
    native = make(ours).fit(**data)
    theirs = Follow(ours, itemsize)
    plain = by_torch(make(theirs), **data)
    assert natively
    assert len(ours.seen) == len(theirs.seen) > 1
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


X = torch.randn(40, 6, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X[..., :1] * 0.5
SPEC = {"epochs": 3, "batchsize": 3, "seqsize": 7}


def small(optimizer: Any = optim.AdamW, loss: Any = mse_loss, **more: Any) -> fs.Estimator:
    torch.manual_seed(0)
    model = fs.nn.Chain(fs.nn.LSTM(FEATURES, 5), nn.Linear(5, 1)).double()
    spec = SPEC | more.pop("spec", {})
    return fs.Estimator(
        model,
        fs.seqloss(loss),
        optimizer(model.parameters(), lr=1e-2),
        spec,
        progress=False,
        **more,
    )


def swap_optimizer_state(run: Any) -> None:
    state = copy.deepcopy(run.optimizer.state_dict())
    for each in state["state"].values():
        each["exp_avg"].zero_()
    run.optimizer.load_state_dict(state)


def replace_moments(run: Any) -> None:
    for state in run.optimizer.state.values():
        state["exp_avg"] = torch.ones_like(state["exp_avg"])


def replace_data(run: Any) -> None:
    run.model[1].weight.data = torch.zeros_like(run.model[1].weight)


def write_in_place(run: Any) -> None:
    with torch.no_grad():
        run.model[0].weight_hh_l0.mul_(0.5)


def change_rate(run: Any) -> None:
    run.optimizer.param_groups[0]["lr"] = 1e-3


def freeze(run: Any) -> None:
    run.model[0].requires_grad_(False)


def decay(run: Any) -> None:
    run.optimizer.param_groups[0]["weight_decay"] = 0.3


CHANGES = [
    swap_optimizer_state, replace_moments, replace_data, write_in_place, change_rate, freeze, decay,
]  # fmt: skip


@pytest.mark.parametrize("when", ["on_batch_end", "on_epoch_begin"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_callbacks_change_counts_from_then_on(change, when, by_torch, natively):
    def act(self, run):
        if (run.updates, when) == (8, "on_batch_end") or (run.epoch, when) == (2, "on_epoch_begin"):
            change(run)

    callback = type("Act", (fs.callbacks.Callback,), {when: act})
    native = small(callbacks=[callback()]).fit(X, Y)
    plain = by_torch(small(callbacks=[callback()]), X, Y)
    assert natively
    for p, q in zip(native.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_hooks_are_called(natively):
    called = []

    class Watch(fs.callbacks.Callback):
        def on_epoch_begin(self, run):
            if run.epoch == 2:
                run.model[1].register_forward_hook(lambda *args: called.append(args))

    est = small(callbacks=[Watch()]).fit(X, Y)
    updates = est.history_[1]["updates"]
    assert len(called) == 2 * updates
    assert sum(outcome.chunks for outcome, _ in natively) == updates - 1


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
        ("amp='bf16'", nn.Linear(3, 1), {"amp": "bf16"}),
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
