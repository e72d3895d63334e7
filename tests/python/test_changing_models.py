"""Layers replaced, frozen and unfrozen, groups added: trained as in a plain loop, or an error."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from models import assert_same_parameters
from torch import nn, optim
from torch.nn.functional import mse_loss

import fastseq as fs

X = torch.randn(40, 8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X.mean(2, keepdim=True).roll(1, 0)
LOSS = fs.seqloss(mse_loss)
SPEC = {"epochs": 3, "batchsize": 8, "seqsize": 10}

OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.05, momentum=0.9, foreach=False),  # or it is made fused
    "adamw": partial(optim.AdamW, lr=0.05),
    "fused": partial(optim.AdamW, lr=0.05, fused=True),
    "clipped": partial(optim.AdamW, lr=0.05),
}
every = pytest.mark.parametrize("kind", OPTIMIZERS)
pytestmark = pytest.mark.usefixtures("in_double")


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def spec_of(kind):
    return {**SPEC, **({"clip_norm": 0.1} if kind == "clipped" else {})}


def plain(model, optimizer, change, kind, epochs=3, first=1):
    """Train by hand; `change` is called with epoch, model and optimizer before each epoch."""
    for epoch in range(first, first + epochs):
        change(epoch, model, optimizer)
        for t in range(0, 40, 10):
            model.zero_grad()
            mse_loss(model(X[t : t + 10]), Y[t : t + 10]).backward()
            if kind == "clipped":
                own = [p for group in optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(own, 0.1)
            optimizer.step()


class Changing(fs.callbacks.Callback):
    def __init__(self, change, hook="on_epoch_begin"):
        self.change = change
        setattr(self, hook, self._call)

    def _call(self, run):
        self.change(run.epoch, run.model, run.optimizer)

    def on_epoch_begin(self, run): ...

    def on_epoch_end(self, run): ...


def fitted(model, optimizer, change, kind, hook="on_epoch_begin", **spec):
    est = fs.Estimator(
        model, LOSS, optimizer, {**spec_of(kind), **spec}, callbacks=[Changing(change, hook)],
        progress=False,
    )  # fmt: skip
    return est.fit(X, Y)


def freeze_and_unfreeze(epoch, model, _):
    model[0].requires_grad_(epoch != 2)
    model[2].requires_grad_(epoch != 1)


@every
@pytest.mark.parametrize("given", ["instance", "callable"])
def test_layers_frozen_and_unfrozen_by_a_callback(kind, given):
    found, wanted = layers(), layers()
    make = OPTIMIZERS[kind]
    plain(wanted, make(wanted.parameters()), freeze_and_unfreeze, kind)
    optimizer = make(found.parameters()) if given == "instance" else make
    fitted(found, optimizer, freeze_and_unfreeze, kind)
    assert_same_parameters(found, wanted)


@every
def test_layers_unfrozen_between_fits_with_a_callable(kind):
    """The optimizer was made without them; of the others it remembers all."""
    found, wanted = layers(), layers()
    make = OPTIMIZERS[kind]
    for model in (found, wanted):
        model[0].requires_grad_(False)
    optimizer = make(wanted[2].parameters())

    def unfreeze(epoch, model, optimizer):
        if epoch == 4:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters())})

    plain(wanted, optimizer, unfreeze, kind, epochs=6)
    est = fitted(found, make, lambda *_: None, kind)
    kept = est.optimizer
    found[0].requires_grad_(True)
    est.fit(X, Y)
    assert est.optimizer is kept  # which schedules may hold
    assert_same_parameters(found, wanted)


@every
def test_a_head_replaced_between_fits_with_a_callable(kind):
    found, wanted = layers(), layers()
    make = OPTIMIZERS[kind]
    optimizer = make(wanted.parameters())
    torch.manual_seed(5)
    head = nn.Linear(4, 1)

    def replace(epoch, model, optimizer):
        if epoch == 4:
            model[2] = copy.deepcopy(head)
            params = list(model.parameters())
            for p in set(optimizer.state) - set(params):
                del optimizer.state[p]
            optimizer.param_groups[0]["params"] = params
            optimizer.param_groups[0]["lr"] = 0.01

    plain(wanted, optimizer, replace, kind, epochs=6)
    est = fitted(found, make, lambda *_: None, kind)
    est.optimizer.param_groups[0]["lr"] = 0.01  # what was set goes on
    found[2] = copy.deepcopy(head)
    est.fit(X, Y)
    assert set(est.optimizer.state) == set(found.parameters())
    assert_same_parameters(found, wanted)


@every
@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_epoch_end"])
def test_a_head_replaced_within_a_fit(kind, hook):
    found, wanted = layers(), layers()
    make = OPTIMIZERS[kind]
    torch.manual_seed(5)
    head = nn.Linear(4, 1)

    def replace(epoch, model, _):
        if epoch == (2 if hook == "on_epoch_begin" else 1):
            model[2] = copy.deepcopy(head)

    def also_in_the_optimizer(epoch, model, optimizer):
        if epoch == 2:
            model[2] = copy.deepcopy(head)
            optimizer.param_groups[0]["params"] = list(model.parameters())

    plain(wanted, make(wanted.parameters()), also_in_the_optimizer, kind)
    fitted(found, make, replace, kind, hook)
    assert_same_parameters(found, wanted)


@every
def test_groups_of_parameters_added_by_a_callback(kind):
    found, wanted = layers(), layers()
    make = OPTIMIZERS[kind]

    def add(epoch, model, optimizer):
        if epoch == 2:
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})

    plain(wanted, make(wanted[2].parameters()), add, kind)
    est = fitted(found, lambda _: make(found[2].parameters()), add, kind)
    assert_same_parameters(found, wanted)
    assert [len(group["params"]) for group in est.optimizer.param_groups] == [2, 2]


@pytest.mark.parametrize("between", [True, False])
@pytest.mark.parametrize("change", ["replaced", "unfrozen"])
def test_an_optimizer_that_cannot_follow_is_an_error(between, change):
    model = layers()
    model[0].requires_grad_(change != "unfrozen")
    optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)

    def replace(epoch, model, _):
        if epoch == 2:
            if change == "replaced":
                model[2] = nn.Linear(4, 1)
            model[0].requires_grad_(True)

    est = fs.Estimator(
        model, LOSS, optimizer, {**SPEC, "epochs": 1 if between else 3}, progress=False,
        callbacks=[] if between else [Changing(replace)],
    )  # fmt: skip
    name = "2.weight, 2.bias" if change == "replaced" else "0.weight, 0.bias"
    if between:
        est.fit(X, Y)
        replace(2, model, None)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"the optimizer lacks {name}.*add_param_group.*callable"):
        est.fit(X, Y)
    if between:
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    est.optimizer = optim.AdamW(model.parameters(), lr=0.05)  # as the message says
    est.callbacks = []
    head = model[2].weight.detach().clone()
    est.fit(X, Y)
    assert not torch.equal(model[2].weight, head)


def test_a_parameter_in_two_groups_is_an_error():
    model = layers()

    def add(epoch, model, optimizer):
        if epoch == 2:  # what torch refuses, unless it meets a joined parameter
            optimizer.add_param_group({"params": list(model[0].parameters())})

    with pytest.raises(ValueError, match=r"more than one parameter group|0\.weight twice"):
        fitted(model, OPTIMIZERS["sgd"], add, "sgd")


@every
def test_what_is_unfrozen_in_mid_epoch_is_trained_from_the_next_on(kind):
    found, wanted = layers(), layers()
    make = OPTIMIZERS[kind]
    for model in (found, wanted):
        model[0].requires_grad_(False)

    def unfreeze(epoch, model, _):
        if epoch == 2:
            model[0].requires_grad_(True)

    plain(wanted, make(wanted.parameters()), unfreeze, kind)

    class Early(fs.callbacks.Callback):
        def on_batch_end(self, run):
            run.model[0].requires_grad_(True)

    optimizer = make(found.parameters())
    est = fs.Estimator(found, LOSS, optimizer, spec_of(kind), callbacks=[Early()], progress=False)
    est.fit(X, Y)
    assert_same_parameters(found, wanted, rtol=5e-6)


def test_what_is_unfrozen_in_mid_epoch_waits_with_scaled_gradients_too():
    model = layers().float()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model[0])

    class Early(fs.callbacks.Callback):
        def on_batch_end(self, run):
            run.model[0].requires_grad_(True)

    optimizer = optim.SGD(model.parameters(), lr=0.05)
    est = fs.Estimator(
        model, LOSS, optimizer, {**SPEC, "epochs": 1}, callbacks=[Early()], amp="fp16",
        device="cpu", comm=None, progress=False,
    )  # fmt: skip
    est.fit(X.float(), Y.float())
    assert_same_parameters(model[0], before, rtol=0)
    est.fit(X.float(), Y.float())
    assert not torch.equal(model[0].weight, before.weight)


def test_what_is_left_out_on_purpose_stays_as_it_is():
    found, wanted = layers(), layers()
    make = OPTIMIZERS["clipped"]
    plain(wanted, make(wanted[2].parameters()), lambda *_: None, "clipped")
    fitted(found, make(found[2].parameters()), lambda *_: None, "clipped")
    assert_same_parameters(found, wanted, rtol=5e-6)
    assert_same_parameters(found[0], layers()[0], rtol=0)


@pytest.mark.parametrize("kind", ["adamw", "fused"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, tmp_path):
    def run(model, epochs, callbacks=(), **options):
        make = partial(OPTIMIZERS[kind], model.parameters())
        est = fs.Estimator(
            model, LOSS, make(), SPEC, seed=1, progress=False,
            callbacks=[Changing(freeze_and_unfreeze), *callbacks],
        )  # fmt: skip
        return est.fit(X, Y, epochs=epochs, **options)

    whole = layers()
    run(whole, 4)

    class Fails(fs.callbacks.Callback):
        def on_batch_end(self, run):
            if run.updates == 10:
                raise KeyboardInterrupt

    broken, again = layers(), layers()
    every_step = fs.callbacks.Checkpoint(tmp_path / "d", every_updates=3)
    with pytest.raises(KeyboardInterrupt):
        run(broken, 4, [Fails()], checkpoint=every_step)
    run(again, 4, checkpoint=every_step, resume="auto")
    assert_same_parameters(again, whole, rtol=0)


def test_copies_can_be_pickled_though_callables_cannot():
    est = fitted(layers(), lambda params: optim.SGD(params, 0.1), lambda *_: None, "sgd")
    est.callbacks = []
    again = pickle.loads(pickle.dumps(est))  # noqa: S301
    again.fit(X, Y)
    again.model[2] = nn.Linear(4, 1)
    with pytest.raises(ValueError, match="the optimizer lacks"):
        again.fit(X, Y)


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_model_that_is_frozen_as_a_whole_is_an_error(when):
    model = layers()
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), optim.SGD, fs.Spec(2, 2, 5), progress=False,
        callbacks=[lambda _: model.requires_grad_(False)],
    )  # fmt: skip
    if when == "before":
        model.requires_grad_(False)
    with pytest.raises(ValueError, match="has nothing to train: all its parameters are frozen"):
        est.fit(torch.zeros(5, 2, 3), torch.zeros(5, 2, 1))
    assert len(est.history_) == (when == "within")


def test_parts_that_are_replaced_are_those_in_use():
    est = fs.Estimator(layers(), LOSS, OPTIMIZERS["adamw"], SPEC, comm=None, progress=False)
    est.fit(X, Y)
    other = fs.nn.Chain(nn.LSTM(3, 4), nn.Linear(4, 1))
    twin = copy.deepcopy(other)
    est.model = other
    est.fit(X, Y)
    assert all(p.grad is not None for p in other.parameters())
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(est.predict(X)), other(X)[0])
    alone = fs.Estimator(twin, LOSS, OPTIMIZERS["adamw"], SPEC, comm=None, progress=False)
    assert_same_parameters(alone.fit(X, Y).model, other)

    est.loss = fs.seqloss(nn.functional.l1_loss)
    expected = nn.functional.l1_loss(torch.from_numpy(est.predict(X)), Y)
    assert est.evaluate(X, Y) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match="carries one from chunk to chunk"):
        est.spec = {**SPEC, "context": 2}
    with pytest.raises(TypeError, match="model must be a torch"):
        est.model = "other"
    assert est.spec.context == 0
    assert est.model is other


@pytest.mark.parametrize("model", [layers().requires_grad_(False), nn.Identity()])
def test_a_class_as_optimizer_of_nothing_is_an_error(model):
    what = (
        "it has no parameters"
        if isinstance(model, nn.Identity)
        else "all its parameters are frozen"
    )
    with pytest.raises(ValueError, match=f"the model has nothing to train: {what}"):
        fs.Estimator(model, LOSS, optim.SGD, SPEC, comm=None)
