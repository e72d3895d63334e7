"""Learning rates: every step of `fit` against a plain loop with the same scheduler of torch's."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from models import chain
from scripted import ScriptedRun, play, row, through_a_file
from torch import nn, optim
from torch.optim import lr_scheduler as torch_schedulers

import fastseq as fs

cb = fs.callbacks
EPOCHS, STEPS = 6, 3


def sequential(optimizer):
    parts = [
        torch_schedulers.LinearLR(optimizer, 0.5, total_iters=2),
        torch_schedulers.ExponentialLR(optimizer, 0.7),
    ]
    return torch_schedulers.SequentialLR(optimizer, parts, milestones=[2])


def chained(optimizer):
    parts = [
        torch_schedulers.ConstantLR(optimizer, 0.5, total_iters=2),
        torch_schedulers.ExponentialLR(optimizer, 0.9),
    ]
    return torch_schedulers.ChainedScheduler(parts, optimizer)


SCHEDULERS = {
    "step": functools.partial(torch_schedulers.StepLR, step_size=2, gamma=0.5),
    "milestones": functools.partial(torch_schedulers.MultiStepLR, milestones=[2, 5], gamma=0.5),
    "cosine": functools.partial(torch_schedulers.CosineAnnealingLR, T_max=5),
    "restarts": functools.partial(torch_schedulers.CosineAnnealingWarmRestarts, T_0=2, T_mult=2),
    "lambda": functools.partial(torch_schedulers.LambdaLR, lr_lambda=lambda k: 1 / (1 + k)),
    "factor": functools.partial(torch_schedulers.MultiplicativeLR, lr_lambda=lambda _: 0.8),
    "polynomial": functools.partial(torch_schedulers.PolynomialLR, total_iters=4),
    "one cycle": functools.partial(
        torch_schedulers.OneCycleLR, max_lr=0.1, total_steps=EPOCHS * STEPS
    ),
    "cyclic": functools.partial(
        torch_schedulers.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=2, cycle_momentum=False
    ),
    "sequential": sequential,
    "chained": chained,
}
OPTIMIZERS = {
    "sgd": functools.partial(optim.SGD, lr=0.05, momentum=0.9),
    "adamw": functools.partial(optim.AdamW, lr=0.05),
    "fused": functools.partial(optim.AdamW, lr=0.05, fused=True),
    "tensor": lambda params: optim.AdamW(params, lr=torch.tensor(0.05)),
}
X = torch.randn(STEPS * 5, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
Y = X.mean(2, keepdim=True)
pytestmark = pytest.mark.usefixtures("in_double")
LOSS = fs.seqloss(nn.functional.mse_loss)


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


class Rates(cb.Callback):
    """Notes the learning rate that each step had: what is there before the schedule's turn."""

    def __init__(self):
        self.rates = []

    def on_batch_end(self, run):
        self.rates.append(float(run.optimizer.param_groups[0]["lr"]))


def estimator(optimizer, *callbacks, epochs=EPOCHS):
    return fs.Estimator(
        net(), LOSS, optimizer, fs.Spec(epochs, 4, 5), callbacks=callbacks, progress=False
    )


def by_hand(make_optimizer, make, per):
    """Return weights and rates of a plain loop."""
    model, rates = net(), []
    optimizer = make_optimizer(model.parameters())
    scheduler = make(optimizer)
    for _ in range(EPOCHS):
        for chunk in range(STEPS):
            part = slice(5 * chunk, 5 * chunk + 5)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(X[part]), Y[part]).backward()
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            if per == "update":
                scheduler.step()
        if per == "epoch":
            scheduler.step()
    return fs.net2vec(model).detach(), rates


@pytest.mark.parametrize("per", ["epoch", "update"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_of_torch_s(name, per):
    make = SCHEDULERS[name]
    weights, rates = by_hand(OPTIMIZERS["sgd"], make, per)
    assert len(set(rates)) > 2
    noted = Rates()
    est = estimator(OPTIMIZERS["sgd"], noted, cb.Schedule(make, per=per)).fit(X, Y)
    assert noted.rates == rates
    np.testing.assert_allclose(fs.net2vec(est.model).detach(), weights, rtol=1e-5, atol=1e-7)
    if per == "epoch":
        assert [row["lr"] for row in est.history_] == rates[::STEPS]


@pytest.mark.parametrize("per", ["epoch", "update"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rates_take_effect_at_the_next_update(name, per):
    make = functools.partial(torch_schedulers.StepLR, step_size=2, gamma=0.3)
    weights, rates = by_hand(OPTIMIZERS[name], make, per)
    noted = Rates()
    est = estimator(OPTIMIZERS[name], noted, cb.Schedule(make, per=per)).fit(X, Y)
    assert noted.rates == rates
    np.testing.assert_allclose(fs.net2vec(est.model).detach(), weights, rtol=1e-5)
    constant = estimator(OPTIMIZERS[name]).fit(X, Y)
    assert not np.allclose(fs.net2vec(constant.model).detach(), weights, rtol=1e-2)


def test_an_instance():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = SCHEDULERS["step"](optimizer)
    noted = Rates()
    fs.Estimator(
        model, LOSS, optimizer, fs.Spec(EPOCHS, 4, 5), progress=False,
        callbacks=[noted, cb.Schedule(scheduler)],
    ).fit(X, Y)  # fmt: skip
    assert noted.rates == by_hand(OPTIMIZERS["sgd"], SCHEDULERS["step"], "epoch")[1]


def test_plateau_gets_the_watched_loss():
    """With patience 1: epochs 3 and 4 are no better than 2, so 5 has half the rate, and so on."""
    losses = [3.0, 2.0, 2.5, 2.0, 1.5, 1.6, 1.7, 1.8]
    rates = [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]
    for monitor, rows in [
        (None, [row(loss) for loss in losses]),
        ("loss", [row(1.0, loss) for loss in losses]),
        ("mae", [{"loss": 1.0, "mae": loss} for loss in losses]),
    ]:
        optimizer = optim.SGD(net().parameters(), lr=1.0)
        plateau = functools.partial(torch_schedulers.ReduceLROnPlateau, factor=0.5, patience=1)
        seen = []
        run = ScriptedRun(optimizer=optimizer)
        schedule = cb.Schedule(plateau, monitor=monitor)
        play(
            schedule,
            rows,
            run,
            train=lambda r, seen=seen: seen.append(r.optimizer.param_groups[0]["lr"]),
        )
        assert seen == rates
        assert optimizer.param_groups[0]["lr"] == 0.25


def test_plateau_in_fit():
    plateau = functools.partial(
        torch_schedulers.ReduceLROnPlateau, factor=0.5, patience=0, threshold=0.9999
    )  # nothing is ten thousand times better: after the first epoch, halved each time
    est = estimator(OPTIMIZERS["adamw"], cb.Schedule(plateau)).fit(X, Y, validation=(X, Y))
    assert [row["lr"] for row in est.history_] == [
        0.05 * 0.5 ** max(0, k - 1) for k in range(EPOCHS)
    ]


@pytest.mark.parametrize("per", ["epoch", "update"])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("optimizer_first", [False, True])
def test_two_calls_of_fit_and_a_resumed_run_are_like_one(name, per, optimizer_first):
    make = SCHEDULERS[name]
    rates = by_hand(OPTIMIZERS["sgd"], make, per)[1]
    noted = Rates()
    schedule = cb.Schedule(make, per=per)
    est = estimator(OPTIMIZERS["sgd"], noted, schedule)
    est.fit(X, Y, epochs=2)
    saved = through_a_file(schedule.state_dict()), copy.deepcopy(est.optimizer.state_dict())
    weights = copy.deepcopy(est.model.state_dict())
    est.fit(X, Y, epochs=EPOCHS - 2)
    assert noted.rates == rates
    # Another process: all is made again, then given its state.
    noted, again = Rates(), cb.Schedule(make, per=per)
    resumed = estimator(OPTIMIZERS["sgd"], noted, again)
    resumed.model.load_state_dict(weights)
    if optimizer_first:
        resumed.optimizer.load_state_dict(saved[1])
    again.load_state_dict(saved[0])
    run = ScriptedRun(optimizer=resumed.optimizer)
    run.updates = 2 * STEPS
    again.on_fit_begin(run)
    if not optimizer_first:
        resumed.optimizer.load_state_dict(saved[1])
    assert through_a_file(again.state_dict()) == saved[0]
    resumed.fit(X, Y, epochs=EPOCHS - 2)
    assert noted.rates == rates[2 * STEPS :]
    assert torch.equal(fs.net2vec(resumed.model), fs.net2vec(est.model))


def test_a_state_that_comes_while_the_scheduler_is_there():
    optimizers = [OPTIMIZERS["adamw"](net().parameters()) for _ in range(2)]
    make = functools.partial(torch_schedulers.OneCycleLR, max_lr=0.1, total_steps=20)
    one, two = (cb.Schedule(make, per="update") for _ in optimizers)
    play(one, [row(1.0)] * 7, ScriptedRun(optimizer=optimizers[0]))
    two.on_fit_begin(ScriptedRun(optimizer=optimizers[1]))
    two.load_state_dict(through_a_file(one.state_dict()))
    for key in ("lr", "betas"):
        assert optimizers[0].param_groups[0][key] == optimizers[1].param_groups[0][key]
    assert one.state_dict() == two.state_dict()


def halved(optimizer):
    return torch_schedulers.LambdaLR(optimizer, lambda epoch: 0.5**epoch)


def test_copies_and_pickles_go_on_with_a_copy_of_the_optimizer():
    noted = Rates()
    est = estimator(OPTIMIZERS["sgd"], noted, cb.Schedule(halved)).fit(X, Y, epochs=3)
    for twin in (copy.deepcopy(est), pickle.loads(pickle.dumps(est))):  # noqa: S301 (our own)
        twin.fit(X, Y, epochs=EPOCHS - 3)
        assert twin.callbacks[0].rates == by_hand(OPTIMIZERS["sgd"], halved, "epoch")[1]
    assert est.optimizer.param_groups[0]["lr"] == 0.05 / 8


def test_a_copy_begins_anew_with_another_estimator():
    used = cb.Schedule(halved)
    estimator(OPTIMIZERS["sgd"], used).fit(X, Y)
    noted = Rates()
    estimator(OPTIMIZERS["sgd"], noted, copy.deepcopy(used)).fit(X, Y)
    assert noted.rates == by_hand(OPTIMIZERS["sgd"], halved, "epoch")[1]


def test_another_optimizer_begins_anew():
    schedule = cb.Schedule(SCHEDULERS["step"])
    for _ in range(2):
        noted = Rates()
        estimator(OPTIMIZERS["sgd"], noted, schedule).fit(X, Y)
        assert noted.rates == by_hand(OPTIMIZERS["sgd"], SCHEDULERS["step"], "epoch")[1]


def test_optimizers_stay_as_quick_as_without():
    schedule = cb.Schedule(SCHEDULERS["cosine"])
    est = fs.Estimator(
        chain(), LOSS, torch.optim.AdamW, fs.Spec(2, 4, 5), progress=False, callbacks=[schedule]
    ).fit(X, Y)
    assert fs.info(est)["optimizer"] == "fused AdamW: one call for all parameters"


def test_no_warning_where_the_first_update_is_left_out():
    mask = torch.ones(X.shape[:2], dtype=torch.bool)
    mask[:5] = False
    estimator(OPTIMIZERS["sgd"], cb.Schedule(SCHEDULERS["step"], per="update")).fit(X, Y, mask=mask)


def test_cycle():
    """Lower 1, upper 3, two epochs up, two down: 1, 2, 3, 2, 1, 2, …"""
    noted = Rates()
    estimator(OPTIMIZERS["sgd"], cb.CycleLearningRate(2, lower=0.01, upper=0.03), noted).fit(X, Y)
    expected = np.repeat([0.01, 0.02, 0.03, 0.02, 0.01, 0.02], STEPS)
    np.testing.assert_allclose(noted.rates, expected, rtol=1e-12)
    noted = Rates()
    est = estimator(OPTIMIZERS["tensor"], cb.CycleLearningRate(2, lower=0.01, upper=0.03), noted)
    for _ in range(EPOCHS):
        est.partial_fit(X, Y)
    np.testing.assert_allclose(noted.rates, expected, rtol=1e-6)
    assert isinstance(est.optimizer.param_groups[0]["lr"], torch.Tensor)


def test_several_groups():
    model = net()
    optimizer = optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}], lr=0.01
    )
    make = functools.partial(torch_schedulers.ExponentialLR, gamma=0.5)
    fs.Estimator(
        model, LOSS, optimizer, fs.Spec(2, 4, 5), callbacks=[cb.Schedule(make)], progress=False
    ).fit(X, Y)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.0025]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cb.Schedule("cosine"), "scheduler must be one of torch.optim.lr_scheduler"),
        (lambda: cb.Schedule(SCHEDULERS["step"], per="batch"), 'per must be "epoch" or "update"'),
        (lambda: cb.Schedule(SCHEDULERS["step"], monitor=1), "monitor must be the name"),
        (lambda: cb.CycleLearningRate(0), "stepsize must be positive, got 0"),
        (lambda: cb.CycleLearningRate(lower=0.1, upper=0.1), "lower must be less than upper"),
        (lambda: cb.CycleLearningRate(lower=-0.1), "lower must be positive, got -0.1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    ("make", "per", "message"),
    [
        (lambda _: None, "epoch", "must return one of torch.optim.lr_scheduler, got NoneType"),
        (torch_schedulers.ReduceLROnPlateau, "update", 'use per="epoch"'),
        (SCHEDULERS["step"](optim.SGD(net().parameters())), "epoch", "made for another optimizer"),
    ],
)
def test_bad_schedulers_are_told_before_training(make, per, message):
    est = estimator(OPTIMIZERS["sgd"], cb.Schedule(make, per=per))
    with pytest.raises((ValueError, TypeError), match=message):
        est.fit(X, Y)
    assert len(est.history_) == 0
