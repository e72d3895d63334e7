"""What forecasters train, updated in C++ beside updates by autograd."""

from __future__ import annotations

import copy
import functools
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from forecasting import LEVELS, quick, wave
from torch import nn, optim
from updates import assert_close, compared, drawn_runs

import fastseq as fs
from fastseq.sklearn.forecasting.ensemble import ensemble_of
from fastseq.sklearn.forecasting.forecast_losses import ForecastLoss, pinball_loss
from fastseq.sklearn.forecasting.forecast_net import ForecastNet
from fastseq.sklearn.forecasting.segment_rnn import SegmentRNN


def drawn_body(rng: random.Random, sizes: dict[str, int]) -> tuple[nn.Module, int]:
    """Return a body and the number of features of each value that it sees."""
    variables, lags = sizes["variables"], sizes["lags"]
    outputs = sizes["horizon"] * variables * sizes["outputs"]
    each = variables * rng.choice([1, 1, 2])
    if rng.random() < 0.6:
        return SegmentRNN(
            **sizes, segment=rng.randint(1, lags), season=rng.choice([None, 2]),
            hidden_size=rng.choice([1, 5, 16]), num_layers=rng.choice([1, 1, 2]),
        ), each  # fmt: skip
    inputs = lags * each
    make = rng.choice([
        lambda: fs.nn.Chain(fs.nn.GRU(inputs, 6), nn.Linear(6, outputs)),
        lambda: fs.nn.Chain(fs.nn.LSTM(inputs, 3, 2), nn.Linear(3, outputs)),
        lambda: nn.Sequential(nn.Linear(inputs, 7), nn.ReLU(), nn.Linear(7, outputs)),
        lambda: fs.nn.LSTM(inputs, outputs),
    ])  # fmt: skip
    return make(), each


def redrawn(net: ForecastNet) -> ForecastNet:
    """Return a copy with other weights."""
    own = copy.deepcopy(net)
    with torch.no_grad():
        for p in own.parameters():
            p.copy_(torch.randn_like(p) / 3)
    return own


def drawn_loss(rng: random.Random) -> ForecastLoss:
    levels = rng.choice([None, None, LEVELS, (0.5,), (0.05, 0.3)])
    if levels is not None:
        return ForecastLoss(functools.partial(pinball_loss, quantiles=levels), len(levels))
    return ForecastLoss(rng.choice([F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss]), None)


def drawn(number: int) -> tuple[Any, dict[str, Any], int]:
    """Return a function that makes an estimator, its data, and the size of its numbers."""
    rng = random.Random(number)  # noqa: S311
    torch.manual_seed(number)
    dtype = rng.choice([torch.float32, torch.float64, torch.float64])
    loss = drawn_loss(rng)
    sizes = {
        "horizon": rng.choice([1, 3]), "variables": rng.choice([1, 1, 2]),
        "outputs": loss.outputs or 1, "lags": rng.choice([4, 7, 12]),
    }  # fmt: skip
    body, each = drawn_body(rng, sizes)
    members = rng.choice([1, 1, 2, 3])
    net = ensemble_of(lambda _: redrawn(ForecastNet(body)), 0, members, sizes["outputs"]).to(dtype)
    steps, count = rng.choice([5, 12]), rng.choice([1, 6])
    rows = torch.randn(count, steps + sizes["lags"] - 1, each, dtype=dtype)
    strides = each, rows.stride(0), 1
    x = rows.as_strided((steps, count, sizes["lags"] * each), strides)  # as windows are
    y = torch.randn(steps, count, sizes["horizon"] * sizes["variables"], dtype=dtype)
    data: dict[str, Any] = {"x": x, "y": y}
    form = rng.choice(["known", "unknown", "weights", "lengths", "weights of targets"])
    if form != "known":
        y[torch.rand(y.shape) < 0.2] = torch.nan
    if form == "weights":
        data["w"] = torch.rand(steps, count).round(decimals=1) * (torch.rand(steps, count) < 0.8)
    if form == "weights of targets":
        data["y"] = y, torch.rand(y.shape, dtype=dtype).round(decimals=1)
        if rng.random() < 0.6:
            loss.step_weights = tuple(rng.choice([0.0, 0.5, 1.5]) for _ in range(sizes["horizon"]))
    if form == "lengths":
        data["lengths"] = torch.randint(1, steps + 1, (count,))
    spec = {
        "epochs": 3, "batchsize": rng.choice([2, 64]), "seqsize": rng.choice([3, 8]),
        "accumulate": rng.choice([1, 1, 2]), "clip_norm": rng.choice([None, 0.3]), "nan": "keep",
    }  # fmt: skip
    # So that a gradient of rounding alone counts for as little as it is.
    kind = rng.choice([optim.SGD, functools.partial(optim.AdamW, eps=1e-3)])

    def make(*callbacks: Any) -> fs.Estimator:
        own = copy.deepcopy(net)
        return fs.Estimator(
            own, loss, kind(own.parameters(), lr=1e-2), spec, seed=1, callbacks=list(callbacks),
            progress=False,
        )  # fmt: skip

    return make, data, dtype.itemsize


@pytest.mark.parametrize("number", drawn_runs(80, sample=30))
def test_drawn_runs_are_those_by_torch(number, by_torch, natively):
    make, data, itemsize = drawn(number)
    assert fs.info(make())["updates"] == "in C++, several at a time"
    native, _ = compared(make, data, itemsize, by_torch)
    assert natively
    together = make().fit(**data)  # many chunks in a call
    for p, q in zip(native.model.parameters(), together.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_unknown_targets_alone_change_nothing_but_the_optimizer(by_torch, natively):
    """Where no target is known, the loss is 0, and so are gradients."""

    def make():
        torch.manual_seed(0)
        net = ForecastNet(fs.nn.Chain(fs.nn.GRU(2, 3), nn.Linear(3, 2))).double()
        optimizer = optim.AdamW(net.parameters(), lr=1e-2)
        loss = ForecastLoss(F.l1_loss, None)
        spec = {"epochs": 2, "batchsize": 4, "seqsize": 3, "nan": "keep"}
        return fs.Estimator(net, loss, optimizer, spec, progress=False)

    x, y = torch.randn(2, 9, 4, 2, dtype=torch.float64)
    y[3:6] = torch.nan
    native, plain = make().fit(x, y), by_torch(make(), x, y)
    assert natively
    for p, q in zip(native.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
    assert_close(
        [row["loss"] for row in native.history_], [row["loss"] for row in plain.history_], 8, "loss"
    )


PARAMETERS = [
    {}, {"quantiles": LEVELS}, {"loss": "huber"}, {"loss": "mse", "validation": 20},
    {"module": "gru"}, {"module": "mlp", "quantiles": LEVELS}, {"strategy": "recursive"},
    {"ensemble": 2}, {"ensemble": 3, "module": "lstm", "quantiles": LEVELS}, {"season": 7}, {"variables": "together"}, {"lags": 30, "num_layers": 2},
    {"transform": "log1p", "scale": "series"}, {"half_life": 30}, {"horizon_weights": [1, 0, 1, 2]},
]  # fmt: skip


@pytest.mark.parametrize("params", PARAMETERS, ids=str)
def test_forecasts_are_those_after_updates_by_torch(params, by_torch, natively):
    y = wave(150, 2).T + 20
    y[70:73, 0] = np.nan

    def make():
        return quick(dropout=0.0, **params)  # each draws its own

    native, plain = make().fit(y), by_torch(make(), y)
    assert natively
    assert fs.info(native.estimator_)["updates"] == "in C++, several at a time"
    for p, q in zip(
        native.estimator_.model.parameters(), plain.estimator_.model.parameters(), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(native.predict(), plain.predict(), rtol=1e-3)


@pytest.mark.parametrize(
    ("what", "params"),
    [
        ("covariates", {"calendar": ["hour_of_day"]}),
        (
            "the loss is <lambda>",
            {"loss": lambda a, b, reduction: F.mse_loss(a, b, reduction=reduction)},
        ),
    ],
)
def test_info_says_what_keeps_a_forecaster_with_torch(what, params, natively):
    import pandas as pd

    index = pd.date_range("2020-01-01", periods=60, freq="h")
    f = quick(**params).fit(pd.Series(wave(60)[0], index))
    assert not natively
    assert fs.info(f.estimator_)["updates"] == f"by PyTorch: {what}"


SPEC = {"epochs": 1, "batchsize": 1, "seqsize": 1, "nan": "keep"}


class Doubled(SegmentRNN):
    """Another model."""

    def forward(self, x):
        return 2 * super().forward(x)


def broken(change):
    sizes = {"horizon": 2, "variables": 1, "outputs": 1, "lags": 6, "segment": 2}
    net = SegmentRNN(**sizes, hidden_size=4)
    change(net)
    return ForecastNet(net)


@pytest.mark.parametrize(
    ("what", "net"),
    [
        ("the model has a Doubled", ForecastNet(Doubled(
            horizon=2, variables=1, outputs=1, lags=6, segment=2
        ))),
        ("a SegmentRNN whose mix is a Identity",
         broken(lambda net: setattr(net, "mix", nn.Identity()))),
        ("a SegmentRNN whose recurrent is a LSTM",
         broken(lambda net: setattr(net, "recurrent", nn.LSTM(4, 4)))),
        ("its layers do not fit", broken(lambda net: setattr(net, "out", nn.Linear(4, 3)))),
        ("the model has parameters that are not its layers'",
         broken(lambda net: setattr(net, "more", nn.Linear(1, 1)))),
        ("a SegmentRNN behind other layers",
         ForecastNet(fs.nn.Chain(nn.Linear(6, 6), broken(lambda net: None).body))),
        ("the model has a ForecastNet", fs.nn.Chain(ForecastNet(nn.Linear(6, 2)))),
        ("a Sequential, which passes no state and no lengths", ForecastNet(nn.Sequential(nn.GRU(6, 2)))),
    ],
)  # fmt: skip
def test_other_models_stay_with_torch(what, net):
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    est = fs.Estimator(net, ForecastLoss(F.l1_loss, None), optimizer, SPEC, progress=False)
    assert fs.info(est)["updates"] == f"by PyTorch: {what}"


def test_an_ensemble_in_evaluation_mode_trains_the_mean_by_torch(by_torch, natively):
    class Evaluate(fs.callbacks.Callback):
        def on_epoch_begin(self, run):
            run.model.body.eval()

    def make():
        torch.manual_seed(0)
        net = ensemble_of(lambda _: ForecastNet(nn.Linear(4, 2)), 0, 2, 1)
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        return fs.Estimator(
            net,
            ForecastLoss(F.l1_loss, None),
            optimizer,
            SPEC,
            callbacks=[Evaluate()],
            progress=False,
        )

    x, y = torch.randn(6, 1, 4), torch.randn(6, 1, 2)
    native, plain = make().fit(x, y), by_torch(make(), x, y)
    assert not natively
    for p, q in zip(native.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_members_need_a_loss_that_knows_of_them():
    net = ensemble_of(lambda _: ForecastNet(nn.Linear(4, 2)), 0, 2, 1)
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    est = fs.Estimator(net, fs.seqloss(F.mse_loss), optimizer, SPEC, progress=False)
    assert fs.info(est)["updates"] == "by PyTorch: a loss that does not know of members"
