"""What checkpoints hold of models, optimizers, callbacks and generators of random numbers."""

from __future__ import annotations

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn, optim

import fastseq as fs
from fastseq._util.random_state import random_state, set_random_state
from fastseq.checkpoint.broadcast import broadcast_tree
from fastseq.checkpoint.contents import (
    callback_states,
    check_model,
    check_optimizer,
    load_callbacks,
    load_model,
    load_optimizer,
    model_state,
)
from fastseq.checkpoint.encoding import decode, encode
from fastseq.distributed import Communicator
from fastseq.training.optimizer_step import OptimizerStep


def through_text(tree):
    tensors, text = encode(tree)
    return decode(text, {name: tensor.clone() for name, tensor in tensors.items()})


class Model(nn.Module):
    """Has a buffer that is not persistent, and something beside its tensors."""

    def __init__(self, width=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64), persistent=False)
        self.note = "new"

    def get_extra_state(self):
        return {"note": self.note}

    def set_extra_state(self, state):
        self.note = state["note"]


def test_models_come_back_whole():
    torch.manual_seed(1)
    one, other = Model(), Model()
    one.layers(torch.randn(5, 2))
    one.count += 3
    one.note = "used"
    load_model(other, through_text(model_state(one)))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(one.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)
    assert other.count == 3
    assert other.note == "used"


class Scaled(Model):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("mine", "theirs", "message"),
    [
        (Model(), Model(4), r"parameter layers\.0\.weight is \(4, 2\) .*, this model's \(3, 2\)"),
        (Scaled(), Model(), r"parameter scale is missing from the file$"),
        (Model(), Scaled(), r"this model has no parameter scale"),
        (Model(), Model().double(), r"layers\.0\.weight is .*float64, this model's .*float32"),
        (nn.Linear(1, 1), nn.BatchNorm1d(1), r"is \(1,\) .* this model's \(1, 1\)"),
        (
            nn.BatchNorm1d(1),
            nn.BatchNorm1d(1, track_running_stats=False),
            "buffer running_mean is missing",
        ),
    ],
)
def test_other_models_are_told_by_their_first_difference(mine, theirs, message):
    with pytest.raises(fs.CheckpointError, match="^x is from another model: .*" + message):
        check_model(mine, model_state(theirs), "x")


def optimizer_of(kind, model, **options):
    return kind(model.parameters(), lr=0.01, **options)


KINDS = [
    (optim.AdamW, {}),
    (optim.AdamW, {"fused": True}),
    (optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (optim.RMSprop, {"momentum": 0.5, "centered": True}),
    (optim.NAdam, {}),
    (optim.Adagrad, {}),
    (optim.LBFGS, {"max_iter": 2}),
]


def steps(model, optimizer, stepper, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(5, 2, generator=generator)
        stepper.zero_grad()
        model(x).square().mean().backward()
        if isinstance(optimizer, optim.LBFGS):
            optimizer.step(lambda x=x: model(x).square().mean())
        else:
            stepper.step()


def nets():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 500), nn.Linear(500, 1))


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_optimizers_are_saved_within_fit_and_go_on_elsewhere(kind, options):
    """Three steps and five more, or eight: the same bits, whether or not a state was taken."""
    results, states = [], []
    for saves in (False, True):
        model = nets()
        optimizer = optimizer_of(kind, model, **options)
        with OptimizerStep(optimizer, model.parameters()) as stepper:
            steps(model, optimizer, stepper, 3, 0)
            if saves:
                state = {"kind": kind.__name__, "state": optimizer.state_dict()}
                saved = through_text([model_state(model), state])
            steps(model, optimizer, stepper, 5, 1)
        results.append(nn.utils.parameters_to_vector(model.parameters()))
        states.append(optimizer.state_dict())
    assert torch.equal(*results)

    model = nets()
    optimizer = optimizer_of(kind, model, **options)
    check_model(model, saved[0], "x")
    check_optimizer(optimizer, saved[1], "x")
    load_model(model, saved[0])
    load_optimizer(optimizer, saved[1])
    with OptimizerStep(optimizer, model.parameters()) as stepper:
        steps(model, optimizer, stepper, 5, 1)
        inside = through_text(optimizer.state_dict())
    assert torch.equal(results[0], nn.utils.parameters_to_vector(model.parameters()))
    for found in (inside, optimizer.state_dict()):
        assert found.keys() == states[0].keys()
        assert found["state"].keys() == states[0]["state"].keys()
        left, right = encode(found)[0], encode(states[0])[0]
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_how_an_optimizer_computes_is_not_taken_over():
    saved = nets()
    optimizer = optimizer_of(optim.AdamW, saved, fused=True)
    state = {"kind": "AdamW", "state": optimizer.state_dict()}
    state["state"]["param_groups"][0].update(lr=0.5, capturable=True)
    own = optimizer_of(optim.AdamW, nets())
    load_optimizer(own, through_text(state))
    (group,) = own.param_groups
    assert group["lr"] == 0.5
    assert not group["fused"]
    assert not group["capturable"]


def test_other_optimizers():
    model = nets()
    saved = {"kind": "AdamW", "state": optim.AdamW(model.parameters()).state_dict()}
    with pytest.raises(fs.CheckpointError, match="with the optimizer AdamW, not SGD"):
        check_optimizer(optim.SGD(model.parameters()), saved, "x")
    groups = [{"params": list(model.parameters())[:2]}, {"params": list(model.parameters())[2:]}]
    with pytest.raises(fs.CheckpointError, match="groups of 6 parameters, this one has 2, 4"):
        check_optimizer(optim.AdamW(groups), saved, "x")


class Counter:
    def __init__(self, value=0):
        self.value = value

    def on_epoch_end(self, run):
        pass

    def state_dict(self):
        return {"value": self.value} if self.value else {}

    def load_state_dict(self, state):
        self.value = state["value"]


class Other(Counter):
    pass


def test_callbacks_find_their_own_state():
    saved = through_text(callback_states([Counter(1), len, Other(2), Counter(), Counter(3)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callbacks = [Other(), Counter(), Counter(7), len, Counter(), Counter(8)]
        load_callbacks(callbacks, saved)
    assert [c.value for c in callbacks if c is not len] == [2, 1, 7, 3, 8]
    with pytest.warns(UserWarning, match="callbacks that are not in this fit: Other"):
        load_callbacks([Counter(), Counter(), Counter()], saved)


def test_schedulers_of_torch_fit_in():
    """Their states hold counters, nested dicts and infinities."""
    schedulers = optim.lr_scheduler

    def make(optimizer):
        return [
            schedulers.MultiStepLR(optimizer, [2, 4]),
            schedulers.OneCycleLR(optimizer, 1.0, 20),
            schedulers.CyclicLR(optimizer, 0.1, 1.0, cycle_momentum=False),
            schedulers.ReduceLROnPlateau(optimizer),
            schedulers.CosineAnnealingWarmRestarts(optimizer, 3),
            schedulers.SequentialLR(
                optimizer,
                [schedulers.LinearLR(optimizer), schedulers.ExponentialLR(optimizer, 0.9)],
                [3],
            ),
        ]

    def run(all_, count):
        for scheduler in all_:
            for _ in range(count):
                args = [1.0] if isinstance(scheduler, schedulers.ReduceLROnPlateau) else []
                optimizer.step()
                scheduler.step(*args)

    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    one = make(optimizer)
    run(one, 3)
    states = [through_text(scheduler.state_dict()) for scheduler in one]
    other = make(optimizer)
    for scheduler, state in zip(other, states, strict=True):
        scheduler.load_state_dict(copy.deepcopy(state))
    for a, b in zip(one, other, strict=True):
        optimizer.param_groups[0]["lr"] = 0.25
        run([a], 3)
        expected = optimizer.param_groups[0]["lr"]
        optimizer.param_groups[0]["lr"] = 0.25
        run([b], 3)
        assert optimizer.param_groups[0]["lr"] == expected


def test_generators_go_on():
    device = torch.device("cpu")

    def draw():
        numbers = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]  # noqa: NPY002, S311
        return [*numbers, torch.randn(3).tolist(), torch.rand(1).item()]

    draw()  # odd numbers of Gaussians: each generator has kept one
    state = through_text(random_state(device))
    first = draw()
    assert draw() != first
    set_random_state(state, device)
    assert draw() == first


def test_trees_of_one_process_stay_as_they_are():
    tree = {"a": torch.ones(1)}
    assert broadcast_tree(tree, Communicator()) is tree


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"folder": 3}, TypeError, "checkpoint needs a folder, got 3"),
        ({"every_updates": 0}, ValueError, "every_updates must be positive, got 0"),
        ({"every_updates": 1.5}, TypeError, r"every_updates must be an integer, got 1\.5"),
        ({"every_minutes": -1}, ValueError, "every_minutes must be positive"),
        ({"every_minutes": "1"}, TypeError, "every_minutes must be a number"),
        ({"every_epochs": True}, TypeError, "every_epochs must be an integer"),
        ({"keep": None}, TypeError, "keep must be an integer, got None"),
        ({"keep": 0}, ValueError, "keep must be positive"),
    ],
)
def test_settings_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        fs.callbacks.Checkpoint(**{"folder": "x", **arguments})
