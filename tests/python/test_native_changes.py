"""What callbacks change while updates run in C++ counts as it does by torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn.functional import l1_loss
from updates import SPEC, X, Y, small

import fastseq as fs
from fastseq.nn.per_sequence import PerSequence


def swap_optimizer_state(run: Any) -> None:
    state = copy.deepcopy(run.optimizer.state_dict())
    for each in state["state"].values():
        each["exp_avg"].zero_()
    run.optimizer.load_state_dict(state)


def replace_moments(run: Any) -> None:
    for state in run.optimizer.state.values():
        state["exp_avg"] = torch.ones_like(state["exp_avg"])


def drop_state(run: Any) -> None:
    run.optimizer.state.clear()


def drop_a_state(run: Any) -> None:
    del run.optimizer.state[run.model[1].weight]


def new_states(run: Any) -> None:
    for p, state in run.optimizer.state.items():
        run.optimizer.state[p] = {name: torch.zeros_like(a) for name, a in state.items()}


def move_moments(run: Any) -> None:
    for state in run.optimizer.state.values():
        state["exp_avg"].data = torch.zeros_like(state["exp_avg"])


def share_moments(run: Any) -> None:
    for state in run.optimizer.state.values():
        state["exp_avg"].share_memory_()


def move_gradients(run: Any) -> None:
    for p in run.model.parameters():
        p.grad.data = p.grad.clone()


def move_group(run: Any) -> None:
    first, second = run.optimizer.param_groups
    second["params"].append(first["params"].pop())


def merge_groups(run: Any) -> None:
    first, second = run.optimizer.param_groups
    first["params"] += second["params"]
    del run.optimizer.param_groups[1]


def replace_layer(run: Any) -> None:
    torch.manual_seed(1)
    run.model[1] = nn.Linear(5, 1).double()


def replace_weight(run: Any) -> None:
    run.model[1].weight = nn.Parameter(torch.ones_like(run.model[1].weight))


def drop_bias(run: Any) -> None:
    run.model[1].bias = None


def add_layer(run: Any) -> None:
    run.model.append(nn.Tanh())


def patch_forward(run: Any) -> None:
    layer = run.model[1]
    layer.forward = lambda x: 2 * type(layer).forward(layer, x)


def hook_gradient(run: Any) -> None:
    run.model[1].weight.register_hook(torch.zeros_like)


def hook_step(run: Any) -> None:
    def halve(optimizer: Any, *_: Any) -> None:
        for p in run.model.parameters():
            p.data *= 0.9

    run.optimizer.register_step_post_hook(halve)


def other_spec(run: Any) -> None:
    run.estimator.spec = fs.Spec(**SPEC, accumulate=2)


def other_loss(run: Any) -> None:
    run.estimator.loss = fs.seqloss(l1_loss)


def other_model(run: Any) -> None:
    run.estimator.model = small().model


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
    swap_optimizer_state, replace_moments, drop_state, drop_a_state, new_states, move_moments,
    share_moments, move_gradients, move_group, merge_groups, replace_layer, replace_weight,
    drop_bias, add_layer, patch_forward, hook_gradient, hook_step, other_spec, other_loss,
    other_model, replace_data, write_in_place, change_rate, freeze, decay,
]  # fmt: skip


def test_what_callbacks_do_to_classes_and_losses_counts(by_torch, monkeypatch):
    """A class's forward, and what a loss is made of, in the midst of an epoch."""
    forward = nn.Linear.forward

    def patch(loss: Any) -> None:
        monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: 2 * forward(layer, x))

    def swap(loss: Any) -> None:
        loss.loss = fs.seqloss(l1_loss)

    def fitted(change: Any, train: Any) -> Any:
        monkeypatch.setattr(nn.Linear, "forward", forward)

        class Act(fs.callbacks.Callback):
            def on_batch_end(self, run: Any) -> None:
                if run.updates == 8:
                    change(est.loss)

        est = small(callbacks=[Act()])
        est.loss = PerSequence(est.loss)
        train(est)
        return [row["loss"] for row in est.history_]

    for change in (patch, swap):
        native = fitted(change, lambda est: est.fit(X, Y))
        assert native == pytest.approx(fitted(change, lambda est: by_torch(est, X, Y)), rel=1e-11)


def error_of(function: Any, *args: Any) -> str | None:
    """Return what a layer's replacement may raise at the next epoch, before it is trained."""
    try:
        function(*args)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("when", ["on_batch_end", "on_epoch_begin"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_callbacks_change_counts_from_then_on(change, when, by_torch, natively):
    def act(self, run):
        if (run.updates, when) == (8, "on_batch_end") or (run.epoch, when) == (2, "on_epoch_begin"):
            change(run)

    callback = type("Act", (fs.callbacks.Callback,), {when: act})

    def make():
        est = small(callbacks=[callback()])
        if change in (move_group, merge_groups):
            first, *others = est.model.parameters()
            groups = [{"params": others}, {"params": [first], "lr": 0.1}]
            est.optimizer = optim.SGD(groups, lr=1e-2)  # keeps nothing for parameters
        return est

    native, plain = make(), make()
    errors = [error_of(native.fit, X, Y), error_of(by_torch, plain, X, Y)]
    assert errors[0] == errors[1]
    assert natively
    for p, q in zip(native.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
    assert len(native.optimizer.state) == len(plain.optimizer.state)
    for a, b in zip(native.history_, plain.history_, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-11)


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


def test_freezing_all_raises_as_by_torch(by_torch):
    class Freeze(fs.callbacks.Callback):
        def on_batch_end(self, run):
            run.model.requires_grad_(run.updates < 8)

    with pytest.raises(RuntimeError, match="does not require grad"):
        small(callbacks=[Freeze()]).fit(X, Y)


@pytest.mark.parametrize("when", ["on_fit_begin", "on_epoch_begin"])
def test_step_hooks_of_callbacks_are_called_at_each_update(when, by_torch):
    called = []

    def hook(self, run):
        if run.epoch <= 1:
            run.optimizer.register_step_pre_hook(lambda *args: called.append(args))

    est = by_torch(small(callbacks=[type("Hook", (fs.callbacks.Callback,), {when: hook})()]), X, Y)
    assert len(called) == sum(row["updates"] for row in est.history_)
