"""What an optimizer keeps, and gets, in `fit`: the same as in a plain loop."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from functools import partial

import pytest
import torch
from models import adamw, assert_same_parameters, chain, plain_loop
from torch import nn, optim
from torch.nn.functional import mse_loss

import fastseq as fs

X = torch.randn(45, 10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X.mean(2, keepdim=True).roll(1, 0)
pytestmark = pytest.mark.usefixtures("in_double")
SPEC = {"epochs": 1, "batchsize": 5, "seqsize": 9}  # ten steps
LOSS = fs.seqloss(mse_loss)


def estimator(model, loss=LOSS, optimizer=adamw, **spec):
    return fs.Estimator(model, loss, optimizer, {**SPEC, **spec}, progress=False)


def plain(model, updates=10, **options):
    return plain_loop(model, X, Y, batchsize=5, seqsize=9, updates=updates, **options)


def assert_private(model, optimizer):
    """Every parameter, gradient and piece of state has memory to itself."""
    tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
    tensors += [v for state in optimizer.state.values() for v in state.values()]
    storages = [t.untyped_storage() for t in tensors]
    assert len({s.data_ptr() for s in storages}) == len(tensors)
    assert all(s.nbytes() == t.nbytes for s, t in zip(storages, tensors, strict=True))


def test_an_error_leaves_the_steps_before_it():
    calls = []

    def loss(m, xs, ys):
        calls.append(1)
        if len(calls) == 6:
            raise ArithmeticError("stop")
        return LOSS(m, xs, ys)

    model = chain()
    expected = plain(model, updates=5)
    est = estimator(model, loss)
    with pytest.raises(ArithmeticError, match="stop"):
        est.fit(X, Y)
    assert set(est.optimizer.state) == set(model.parameters())
    assert all(state["step"] == 5 for state in est.optimizer.state.values())
    assert_same_parameters(model, expected, rtol=1e-14)


def test_an_optimizer_that_fails_at_its_first_step_leaves_all_in_place():
    model = chain()
    before = copy.deepcopy(model)
    est = estimator(model, optimizer=lambda params: optim.AdamW(params, lr=torch.tensor(0.1)))
    est.optimizer.param_groups[0]["foreach"] = True  # which torch refuses with such a rate
    with pytest.raises(RuntimeError, match="lr as a Tensor"):
        est.fit(X, Y)
    assert_same_parameters(model, before, rtol=0)


@pytest.mark.parametrize("clip", [{}, {"clip_norm": 1e-2}, {"clip_value": 1e-3}])
def test_gradients_are_left_as_a_plain_loop_leaves_them(clip):
    model = chain()
    expected = copy.deepcopy(model)
    optimizer = adamw(expected.parameters())
    state = None
    for t in range(0, 45, 9):
        output, state = expected(X[t : t + 9], state)
        state = tuple(part and tuple(s.detach() for s in part) for part in state)
        optimizer.zero_grad()
        mse_loss(output, Y[t : t + 9]).backward()
        if "clip_norm" in clip:
            nn.utils.clip_grad_norm_(expected.parameters(), clip["clip_norm"])
        if "clip_value" in clip:
            nn.utils.clip_grad_value_(expected.parameters(), clip["clip_value"])
        optimizer.step()
    est = estimator(model, batchsize=10, **clip).fit(X, Y)
    assert_private(model, est.optimizer)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-9)


def test_copies_and_files_hold_no_more_than_their_own():
    model = chain()
    size = len(pickle.dumps(model[1].weight.detach().clone()))
    est = estimator(model).fit(X, Y)
    # PyTorch writes the storage's address, whose digits may differ in number, and twice.
    assert abs(len(pickle.dumps(model[1].weight.detach())) - size) <= 8
    stream = io.BytesIO()
    torch.save(est.optimizer.state_dict(), stream)
    fresh = io.BytesIO()
    other = copy.deepcopy(model)
    other_optimizer = adamw(other.parameters())
    for p in other.parameters():
        p.grad = torch.ones_like(p)
    other_optimizer.step()
    torch.save(other_optimizer.state_dict(), fresh)
    assert len(stream.getvalue()) == len(fresh.getvalue())


def test_models_can_be_moved_and_loaded_between_runs():
    model = chain()
    values = {name: torch.randn_like(v) for name, v in model.state_dict().items()}
    est = estimator(model).fit(X, Y)
    model.load_state_dict(values)
    expected = copy.deepcopy(model)
    saved = copy.deepcopy(est.optimizer.state_dict())
    est.fit(X, Y)
    other = estimator(expected)
    other.optimizer.load_state_dict(saved)
    other.fit(X, Y)
    assert_same_parameters(model, other.model, rtol=0)
    model.to(torch.float64)
    assert all(
        p.dtype == torch.float64 and p.untyped_storage().nbytes() == 8 * p.numel()
        for p in model.parameters()
    )
    model.load_state_dict(values, assign=True)
    expected = plain(model)
    assert_same_parameters(estimator(model).fit(X, Y).model, expected, rtol=1e-14)


def test_parameters_set_anew_by_the_loss_are_trained_from_there():
    """As clipping weights by ``p.data = p.data.clamp(...)`` does."""

    def clamp(model):
        for p in model.parameters():
            p.data = p.data.clamp(-0.1, 0.1)

    def loss(m, xs, ys):
        clamp(m.module)
        return LOSS(m, xs, ys)

    model = chain()
    other = copy.deepcopy(model)
    estimator(model, loss).fit(X, Y)
    optimizer = adamw(other.parameters())
    for n in (0, 5):
        state = None
        for t in range(0, 45, 9):
            clamp(other)
            output, state = other(X[t : t + 9, n : n + 5], state)
            state = tuple(part and tuple(s.detach() for s in part) for part in state)
            optimizer.zero_grad()
            mse_loss(output, Y[t : t + 9, n : n + 5]).backward()
            optimizer.step()
    assert_same_parameters(model, other, rtol=1e-14)


def test_a_copy_that_shares_memory_sees_every_step():
    model = chain()
    frozen = fs.notrack(model)
    apart = []

    def loss(m, xs, ys):
        apart.append(
            max(
                float((p - q).detach().abs().max())
                for p, q in zip(frozen.parameters(), m.parameters(), strict=True)
            )
        )
        return LOSS(m, xs, ys)

    estimator(model, loss).fit(X, Y)
    assert max(apart) == 0


@pytest.mark.parametrize(
    "optimizer", [optim.AdamW, partial(optim.AdamW, fused=True), optim.SGD, optim.RMSprop]
)
def test_schedules_go_on_between_epochs(optimizer):
    model = chain()
    expected = copy.deepcopy(model)

    def train(model, steps):
        own = optimizer(model.parameters(), lr=0.1)
        schedule = optim.lr_scheduler.ExponentialLR(own, 0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as: schedule.step() before optimizer.step()
            for _ in range(3):
                steps(own)
                schedule.step()
        return own

    def plain_steps(own):
        state = None
        for t in range(0, 45, 9):
            output, state = expected(X[t : t + 9], state)
            state = tuple(part and tuple(s.detach() for s in part) for part in state)
            own.zero_grad()
            mse_loss(output, Y[t : t + 9]).backward()
            own.step()

    train(expected, plain_steps)
    own = train(model, lambda own: estimator(model, optimizer=own, batchsize=10).fit(X, Y))
    assert own.param_groups[0]["lr"] == 0.1 / 8
    assert_same_parameters(model, expected, rtol=1e-14)


def test_made_optimizers_are_fused_where_there_are_kernels():
    model = chain()

    def told(optimizer, module=model):
        return fs.info(estimator(module, optimizer=optimizer))["optimizer"]

    fused = "fused AdamW: one call for all parameters"
    assert told(optim.AdamW) == told(partial(optim.AdamW, lr=0.1)) == fused
    assert told(lambda params: optim.AdamW(params, lr=0.1)) == fused
    plain = "AdamW: parameter by parameter"
    assert told(partial(optim.AdamW, fused=False)) == plain
    assert told(partial(optim.AdamW, foreach=True)) == plain
    assert told(lambda params: optim.AdamW(params, differentiable=True)) == plain
    assert told(partial(optim.SGD, momentum=0.9)) == "SGD: parameter by parameter"
    own = optim.AdamW(model.parameters())
    assert told(own) == plain
    assert own.defaults["fused"] is None
    assert told(optim.RMSprop) == "RMSprop: parameter by parameter"
    sparse = nn.Sequential(nn.Embedding(3, 2, sparse=True))
    assert told(optim.SGD, sparse) == "SGD: parameter by parameter"
    assert "optimizer" not in fs.info()


def test_fused_steps_are_those_of_the_plain_ones():
    kinds = [optim.Adagrad, optim.Adam, optim.AdamW, optim.SGD]
    kinds += [lambda params, lr: optim.Adagrad(params, lr, initial_accumulator_value=0.5)]
    for kind in kinds:
        model = chain()
        expected = plain(model, make=kind)
        found = estimator(model, optimizer=partial(kind, lr=0.01)).fit(X, Y)
        assert_same_parameters(found.model, expected, rtol=1e-5)


@pytest.mark.parametrize("optimizer", [optim.SGD, partial(optim.AdamW, fused=True)])
def test_what_was_frozen_after_a_run_is_left_alone(optimizer):
    model = chain()
    est = estimator(model, optimizer=partial(optimizer, lr=0.1)).fit(X, Y)
    model[0].requires_grad_(False)
    before = copy.deepcopy(model)
    est.fit(X, Y)
    assert_same_parameters(model[0], before[0], rtol=0)
    assert not torch.equal(model[1].weight, before[1].weight)


def test_clipping_stays_within_its_step():
    """A parameter that is only added to the loss has the loss's own gradient, which is 1."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.shift = nn.Linear(3, 1), nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.inner(x)

    def loss(m, xs, ys):
        return mse_loss(m(xs), ys) + m.shift.squeeze()

    model = Shifted()
    estimator(model, loss, partial(optim.SGD, lr=0.0), clip_value=0.25).fit(X, Y)
    estimator(model, loss, partial(optim.SGD, lr=0.0)).fit(X, Y)
    assert model.shift.grad.item() == 1


def test_steps_with_weight_zero_count_nothing_even_if_y_is_nan():
    w = torch.ones(45, 10)
    w[::4, 3] = 0
    holes = Y.clone()
    holes[::4, 3] = torch.nan
    found = chain()
    wanted = copy.deepcopy(found)
    estimator(found).fit(X, holes, w)
    estimator(wanted).fit(X, Y, w)
    assert_same_parameters(found, wanted, rtol=1e-14)
    assert holes.isnan().any()
