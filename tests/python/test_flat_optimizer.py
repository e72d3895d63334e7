"""Small parameters as one vector: what the optimizer then does, and what is left afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from models import adamw
from torch import nn, optim
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fastseq.flat import MAX_NUMEL, FlatOptimizer, describe

# Below, at and above the widths of vector registers; a scalar; nothing at all.
SHAPES = [(7,), (3, 5), (), (1,), (17,), (64,), (33, 2), (40, 10), (1, 10), (129,), (5, 0)]

DECAY = {"lr": 0.1, "weight_decay": 0.01}
OPTIMIZERS = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"momentum": 0.9, "dampening": 0.1, **DECAY}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True, **DECAY}),
    (optim.Adam, DECAY),
    (optim.Adam, {"amsgrad": True, **DECAY}),
    (optim.AdamW, {"lr": 0.1}),
    (optim.AdamW, {"lr": torch.tensor(0.1), "foreach": False}),
    (optim.NAdam, {"decoupled_weight_decay": True, **DECAY}),
    (optim.RAdam, DECAY),
    (optim.Adamax, DECAY),
    (optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.1, **DECAY}),
    (optim.Adadelta, {"weight_decay": 0.01}),
    (optim.RMSprop, {"momentum": 0.9, "centered": True, **DECAY}),
    (optim.Rprop, {"lr": 0.1}),
    (optim.ASGD, {"lambd": 0.1, "t0": 2, **DECAY}),
]
EXACT = [
    *OPTIMIZERS,
    *((kind, {**options, "maximize": True}) for kind, options in OPTIMIZERS),
    *(
        (kind, {**options, "foreach": True})
        for kind, options in OPTIMIZERS
        if "foreach" not in options
    ),
]


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, dtype=dtype, generator=generator)) for s in SHAPES]


def copies(params):
    return [nn.Parameter(p.detach().clone()) for p in params]


def train(optimizer, params, steps, *, seed, flat=None, skipped=frozenset()):
    """Make steps with random gradients; without `flat` as a plain loop does."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if flat is not None:
            flat.zero_grad()
        for index, p in enumerate(params):
            grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            p.grad = None if (step, index) in skipped else grad
        if flat is None:
            optimizer.step()
        else:
            flat.gather()
            flat.step()


def run(optimizer, params, steps, **options):
    """Make steps as `fit` does; return how many vectors there were."""
    with FlatOptimizer(optimizer, params) as flat:
        train(optimizer, params, steps, flat=flat, **options)
        return count(optimizer, params)


def count(optimizer, params):
    known = {id(p) for p in params}
    seen = [p for group in optimizer.param_groups for p in group["params"]]
    return sum(id(p) not in known for p in seen)


def assert_same_run(optimizer, params, plain, plain_params, rtol=0.0):
    """Both have the same parameters and the same state, and what `state_dict` gives is equal."""
    for p, q in zip(params, plain_params, strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=0)
        state, expected = optimizer.state.get(p, {}), plain.state.get(q, {})
        assert list(state) == list(expected)
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(state[key], value, rtol=rtol, atol=0)
            else:
                assert state[key] == value
    ours, theirs = optimizer.state_dict(), plain.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "options"), EXACT)
def test_one_vector_is_trained_as_its_parameters_are_bit_for_bit(kind, options, dtype):
    params = parameters(dtype)
    plain_params = copies(params)
    optimizer, plain = kind(params, **options), kind(plain_params, **options)
    assert run(optimizer, params, 5, seed=1) == 1
    train(plain, plain_params, 5, seed=1)
    assert_same_run(optimizer, params, plain, plain_params)
    assert run(optimizer, params, 3, seed=2) == 1  # goes on from the state of the first run
    train(plain, plain_params, 3, seed=2)
    assert_same_run(optimizer, params, plain, plain_params)


FUSED = [
    (optim.Adam, {**DECAY, "amsgrad": True}),
    (optim.Adam, {**DECAY, "decoupled_weight_decay": True}),
    (optim.AdamW, {"lr": 0.1, "maximize": True}),
    (optim.AdamW, {"lr": torch.tensor(0.1)}),
    (optim.AdamW, {"lr": 0.1, "betas": (torch.tensor(0.5), torch.tensor(0.9))}),
    (optim.SGD, DECAY),
    (optim.Adagrad, DECAY),
]


@pytest.mark.parametrize(
    "skipped", [set(), {(0, 5), (2, 3), (2, 4), (4, 0)}], ids=["all", "not always"]
)
@pytest.mark.parametrize(("kind", "options"), FUSED)
def test_fused_optimizers_are_not_joined_and_do_the_same(kind, options, skipped):
    params = [*parameters(), nn.Parameter(torch.randn(MAX_NUMEL + 5)), *parameters(torch.float64)]
    plain_params = copies(params)

    def make(ps):
        return kind([{"params": ps[::2]}, {"params": ps[1::2], "lr": 0.2}], **options, fused=True)

    optimizer, plain = make(params), make(plain_params)
    for seed in range(2):
        assert run(optimizer, params, 6, seed=seed, skipped=skipped) == 0
        train(plain, plain_params, 6, seed=seed, skipped=skipped)
        assert_same_run(optimizer, params, plain, plain_params)
    pieces = [v for state in optimizer.state.values() for v in state.values() if v is not None]
    assert all(v.untyped_storage().nbytes() == v.nbytes for v in pieces)


def test_rates_set_between_steps_are_used():
    params = parameters()
    plain_params = copies(params)
    optimizer, plain = (optim.AdamW(ps, fused=True) for ps in (params, plain_params))
    with FlatOptimizer(optimizer, params) as flat:
        for step in range(5):
            for own, other in ((optimizer, flat), (plain, None)):
                own.param_groups[0]["lr"] = 0.1 * step
                train(own, params if other else plain_params, 1, seed=step, flat=other)
    assert_same_run(optimizer, params, plain, plain_params)


def test_profilers_see_the_steps():
    params = parameters()
    optimizer = optim.RMSprop(params)
    with torch.profiler.profile() as profile:
        run(optimizer, params, 3, seed=0)
    names = [event.key for event in profile.key_averages()]
    assert "Optimizer.step#RMSprop.step" in names


def test_groups_and_dtypes_are_kept_apart_and_schedules_work_on_them():
    params = [*parameters(), *parameters(torch.float64)]
    plain_params = copies(params)

    def make(ps):
        optimizer = adamw([{"params": ps[::2], "lr": 0.1}, {"params": ps[1::2], "weight_decay": 0}])
        return optimizer, optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    (optimizer, schedule), (plain, plain_schedule) = make(params), make(plain_params)
    groups = list(optimizer.param_groups)
    lists = [group["params"] for group in groups]
    for seed in range(3):
        assert run(optimizer, params, 2, seed=seed) == 4
        train(plain, plain_params, 2, seed=seed)
        schedule.step()
        plain_schedule.step()
    assert_same_run(optimizer, params, plain, plain_params)
    assert optimizer.param_groups[0]["lr"] == 0.1 / 8
    assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
    assert all(g["params"] is ps for g, ps in zip(groups, lists, strict=True))


def test_a_group_can_be_added_between_runs():
    params, more = parameters(), parameters()
    plain_params, plain_more = copies(params), copies(more)
    optimizer, plain = adamw(params), adamw(plain_params)
    run(optimizer, params, 2, seed=0)
    train(plain, plain_params, 2, seed=0)
    optimizer.add_param_group({"params": more, "lr": 0.2})
    plain.add_param_group({"params": plain_more, "lr": 0.2})
    assert run(optimizer, [*params, *more], 2, seed=1) == 2
    train(plain, [*plain_params, *plain_more], 2, seed=1)
    assert_same_run(optimizer, [*params, *more], plain, [*plain_params, *plain_more])


@pytest.mark.parametrize(
    "skipped",
    [
        {(step, 3) for step in range(7)},  # never used
        {(2, 3), (2, 4), (5, 3), (5, 4)},  # not used now and then
        {(3, index) for index in range(len(SHAPES)) if index != 2},  # hardly any
        {(step, index) for step in range(2) for index in range(len(SHAPES))},  # none
    ],
    ids=["never", "sometimes", "hardly any", "none"],
)
@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD])
def test_parameters_without_a_gradient_are_left_alone(kind, skipped):
    params = parameters()
    plain_params = copies(params)
    options = {"lr": 0.1, "weight_decay": 0.1}
    optimizer, plain = kind(params, **options), kind(plain_params, **options)
    run(optimizer, params, 7, seed=1, skipped=skipped)
    train(plain, plain_params, 7, seed=1, skipped=skipped)
    assert_same_run(optimizer, params, plain, plain_params)
    run(optimizer, params, 3, seed=2)  # now with step counts that may differ
    train(plain, plain_params, 3, seed=2)
    assert_same_run(optimizer, params, plain, plain_params)


def test_what_must_stay_by_itself_does():
    large = nn.Parameter(torch.randn(MAX_NUMEL + 1))
    turned = nn.Parameter(torch.randn(4, 3).t())
    base = torch.randn(20)
    views = [nn.Parameter(base[:10]), nn.Parameter(base[10:])]
    shared = nn.Parameter(torch.randn(9))
    alias = shared.detach()
    half = [nn.Parameter(torch.randn(5, dtype=torch.bfloat16)) for _ in range(2)]
    apart = [large, turned, *views, shared, *half]
    params = [*apart, *parameters()]
    plain_params = copies(params)
    addresses = [p.data_ptr() for p in apart]
    optimizer, plain = adamw(params), adamw(plain_params)
    with FlatOptimizer(optimizer, params) as flat:
        train(optimizer, params, 2, seed=1, flat=flat)
        assert [p.data_ptr() for p in apart] == addresses
        assert count(optimizer, params) == 1
    train(plain, plain_params, 2, seed=1)
    assert_same_run(optimizer, params, plain, plain_params)
    assert torch.equal(alias, shared)


def refused(name, params):
    """Optimizers that must see every parameter."""
    if name == "subclass":
        return type("Mine", (optim.AdamW,), {})(params)
    if name == "fused":
        return optim.SGD(params, lr=0.1, fused=True)
    if name == "Adafactor":
        return optim.Adafactor(params)
    optimizer = optim.AdamW(params, differentiable=name == "differentiable")
    if name == "hook":
        optimizer.register_step_post_hook(lambda *_: None)
    if name == "own step":
        optimizer.step = lambda: None
    return optimizer


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("subclass", "Mine is not known to work element by element"),
        ("Adafactor", "Adafactor is not known to work element by element"),
        ("fused", "SGD is fused: its kernel takes all parameters at once"),
        ("hook", "AdamW has step hooks, which may look at its parameters"),
        ("own step", "AdamW has a step method of its own"),
        ("differentiable", "AdamW is differentiable"),
    ],
)
def test_an_optimizer_that_must_see_every_parameter_does(name, reason):
    params = parameters()
    assert describe(refused(name, params)) == f"per parameter: {reason}"
    optimizer = refused(name, params)
    with FlatOptimizer(optimizer, params) as flat:
        for p in params:
            p.grad = torch.ones_like(p)
        flat.gather()
        assert optimizer.param_groups[0]["params"] == params


def test_hooks_of_all_optimizers_keep_them_from_being_joined():
    hook = register_optimizer_step_pre_hook(lambda *_: None)
    try:
        assert "step hooks" in describe(adamw(parameters()))
    finally:
        hook.remove()
    assert describe(adamw(parameters())) == "flat: 10 of 11 parameters as 1"


def test_fused_adam_goes_on_from_what_is_loaded_meanwhile():
    params = parameters()
    plain_params = copies(params)
    optimizer, plain = (optim.AdamW(ps, lr=0.1, fused=True) for ps in (params, plain_params))
    train(plain, plain_params, 3, seed=1)
    loaded = copy.deepcopy(plain.state_dict())
    loaded["param_groups"][0]["lr"] = 0.01
    with FlatOptimizer(optimizer, params) as flat:
        train(optimizer, params, 3, seed=1, flat=flat)
        optimizer.load_state_dict(copy.deepcopy(loaded))
        train(optimizer, params, 3, seed=2, flat=flat)
    plain.load_state_dict(loaded)
    train(plain, plain_params, 3, seed=2)
    assert all(torch.equal(p, q) for p, q in zip(params, plain_params, strict=True))


def test_fused_adam_without_any_gradient():
    params = parameters()
    optimizer = optim.AdamW(params, fused=True)
    with FlatOptimizer(optimizer, params) as flat:
        for _ in range(2):
            flat.zero_grad()
            flat.gather()
            flat.step()
    assert not optimizer.state
