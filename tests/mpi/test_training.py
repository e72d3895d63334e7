"""Several ranks against one process that has all their sequences in its batch."""

from __future__ import annotations

import copy

import h5py
import numpy as np
import pytest
import torch
from models import Custom, TwoInputs, adamw, assert_same_parameters, chain
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs

LOSS = fs.seqloss(mse_loss)


def data(steps=21, count=13):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(steps, count, 3, generator=generator)
    return x, x.mean(2, keepdim=True).roll(1, 0)


def train(comm, model, x, y, w=None, *, mask=None, loss=LOSS, **spec):
    spec = {"epochs": 4, "batchsize": 2, "seqsize": 5, **spec}
    model = copy.deepcopy(model)
    est = fs.Estimator(model, loss, adamw, spec, comm=comm, progress=False, seed=3)
    return est.fit(x, y, w, mask=mask)


def union(comm, model, x, y, w=None, *, batchsize=2, **options):
    """Train alone, with as large a batch as all ranks have."""
    return train(None, model, x, y, w, batchsize=batchsize * comm.size, **options)


def assert_identical_on_all_ranks(comm, model):
    mine = fs.net2vec(model).detach()
    first = comm.broadcast_(mine.clone())
    assert torch.equal(mine, first)


@pytest.mark.parametrize(
    ("steps", "count", "batchsize", "seqsize"),
    [(20, 12, 2, 5), (21, 13, 2, 5), (7, 1, 1, 3), (7, 2, 4, 7), (9, 5, 1, 2), (5, 7, 3, 99)],
    ids=str,
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_equals_one_process_with_the_union_batch(comm, steps, count, batchsize, seqsize, shuffle):
    x, y = data(steps, count)
    model = chain()
    options = {"batchsize": batchsize, "seqsize": seqsize, "shuffle": shuffle}
    many, one = train(comm, model, x, y, **options), union(comm, model, x, y, **options)
    assert_same_parameters(many.model, one.model, rtol=1e-5)
    assert_identical_on_all_ranks(comm, many.model)
    losses = [[row["loss"] for row in est.history_] for est in (many, one)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("batchsize", "seqsize", "shard"),
    [(2, 20, "sequences"), (2, 5, "sequences"), (1, 20, "sequences"), (2, 20, "time")],
    ids=str,
)
def test_blocks_of_lists_are_drawn_alike(comm, batchsize, seqsize, shard):
    x, y = data(20, 27)
    lengths = torch.arange(27) % 7 + 14
    x, y = ([a[:n, i] for i, n in enumerate(lengths)] for a in (x, y))
    options = {"seqsize": seqsize, "shuffle": True, "batchsize": batchsize}
    model = nn.Linear(3, 1) if shard == "time" else chain()  # a part of a series has no past
    many = train(comm, model, x, y, shard=shard, **options)
    if shard == "sequences":
        options["batchsize"] *= comm.size
    one = train(None, model, x, y, **options)
    assert_same_parameters(many.model, one.model, rtol=1e-4)
    assert_identical_on_all_ranks(comm, many.model)
    losses = [[row["loss"] for row in est.history_] for est in (many, one)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_weights_masks_and_clipping_too(comm):
    x, y = data()
    w = torch.rand(13)
    mask = torch.rand(21, 13) > 0.4
    mask[:, :3] = False
    y[~mask] = torch.nan
    model = chain()
    options = {"mask": mask, "clip_norm": 0.05, "clip_value": 0.03}
    many, one = train(comm, model, x, y, w, **options), union(comm, model, x, y, w, **options)
    assert_same_parameters(many.model, one.model, rtol=1e-5)
    assert_identical_on_all_ranks(comm, many.model)


@pytest.mark.parametrize(
    "more",
    [{"clip_norm": 0.05}, {"clip_norm": 0.05, "accumulate": 3}, {"clip_norm": 1e6}],
    ids=["clipped", "accumulated", "never clipped"],
)
@pytest.mark.parametrize("all_stepped", [True, False])
def test_clipping_by_the_norm_that_the_exchange_computes(comm, more, all_stepped):
    """Of parameters that the optimizer does not have, gradients are averaged but do not count."""
    x, y = data(21, 12)
    model = chain()
    kept = list(dict(model.named_parameters()))[0 if all_stepped else 1 :]

    def optimizer(model):
        return adamw([p for name, p in model.named_parameters() if name in kept])

    found = []
    for ranks, batchsize in ((comm, 2), (None, 2 * comm.size)):
        own = copy.deepcopy(model)
        spec = {"epochs": 4, "batchsize": batchsize, "seqsize": 5, **more}
        est = fs.Estimator(own, LOSS, optimizer(own), spec, comm=ranks, progress=False)
        found.append(est.fit(x, y).model)
    assert_same_parameters(*found, rtol=1e-5)
    assert_identical_on_all_ranks(comm, found[0])


def test_parameters_that_take_no_part_stay_as_in_one_process(comm):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.never = nn.Linear(3, 1), nn.Linear(3, 1)
            self.frozen = nn.Linear(1, 1).requires_grad_(False)
            self.wide = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x):
            return self.frozen(self.used(x)) + self.wide.float()

    x, y = data()
    model = Unused()
    many, one = train(comm, model, x, y), union(comm, model, x, y)
    assert_same_parameters(many.model, one.model, rtol=1e-5)
    assert_same_parameters(many.model.never, model.never, rtol=0)  # no decay without a gradient


@pytest.mark.parametrize("make", [Custom, lambda: nn.GRU(3, 1)], ids=["custom", "bare"])
def test_other_models(comm, make):
    x, y = data()
    model = make()
    many, one = train(comm, model, x, y), union(comm, model, x, y)
    assert_same_parameters(many.model, one.model, rtol=1e-5)


def test_rank_0_decides_where_training_starts(comm):
    x, y = data()
    torch.manual_seed(comm.rank)
    model = fs.nn.Chain(nn.GRU(3, 4), Permuted(), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=10.0 ** -(2 + comm.rank))
    if comm.rank == 0:  # a state that the others lack
        sum(p.sum() for p in model.parameters()).backward()
        optimizer.step()
    spec = fs.Spec(2, 2, 5)
    est = fs.Estimator(model, LOSS, optimizer, spec, progress=False).fit(x, y)
    assert_identical_on_all_ranks(comm, est.model)
    buffers = torch.cat([b.flatten().double() for b in model.buffers()])
    assert torch.equal(buffers, comm.broadcast_(buffers.clone()))
    assert optimizer.param_groups[0]["lr"] == 1e-2
    step = optimizer.state[model[0].weight_ih_l0]["step"]
    assert step == 1 + sum(row["updates"] for row in est.history_)


class Permuted(nn.Module):
    """Has buffers, of several dtypes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.randperm(4))
        self.register_buffer("scale", torch.rand(4))

    def forward(self, x):
        return x[..., self.order] * self.scale


def test_dropout_differs_between_ranks_and_repeats(comm):
    seen = []

    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 1)

        def forward(self, x):
            if self.training:
                seen.append(float(torch.rand(())))
            return self.head(x)

    x, y = data(5, 6)
    model = Noise()
    train(comm, model, x, y, epochs=1)
    train(comm, model, x, y, epochs=1)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    firsts = torch.zeros(comm.size, dtype=torch.float64)
    if seen:
        firsts[comm.rank] = seen[0]
    comm.allreduce_(firsts, "sum")
    assert len(set(firsts.tolist())) == comm.size


def test_sharded_by_time(comm):
    x, y = data(20, 3)
    model = chain()
    many = train(comm, model, x, y, shard="time", batchsize=3, epochs=1, seqsize=4)
    assert_identical_on_all_ranks(comm, many.model)
    # The same by hand: the ranks' parts of the series side by side, step by step.
    one = copy.deepcopy(model)
    optimizer = adamw(one.parameters())
    bounds = [(20 * r // comm.size, 20 * (r + 1) // comm.size) for r in range(comm.size)]
    states = [None] * comm.size
    for k in range(-(-max(b - a for a, b in bounds) // 4)):
        optimizer.zero_grad()
        pieces = [(a + 4 * k, min(a + 4 * k + 4, b)) for a, b in bounds]
        total = sum(max(b - a, 0) for a, b in pieces)
        for r, (a, b) in enumerate(pieces):
            if a < b:
                output, state = one(x[a:b], states[r])
                states[r] = tuple(
                    None if s is None else tuple(h.detach() for h in s) for s in state
                )
                (mse_loss(output, y[a:b]) * (b - a) / total).backward()
        optimizer.step()
    assert_same_parameters(many.model, one, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 13])
def test_every_rank_predicts_the_whole(comm, count):
    x, _ = data(21, count)
    model = chain()
    spec = fs.Spec(1, 2, 5)
    many = fs.Estimator(model, LOSS, adamw, spec)
    one = fs.Estimator(model, LOSS, adamw, spec, comm=None)
    np.testing.assert_allclose(many.predict(x), one.predict(x), rtol=1e-5, atol=1e-6)
    many.predict(x[:9])
    one.predict(x[:9])
    out = torch.full((8, count, 1), torch.nan)
    assert many.predict(x[9:17], reset=False, out=out) is out
    np.testing.assert_allclose(out, one.predict(x[9:17], reset=False), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(many.get_state(), one.get_state())
    torch.testing.assert_close(many.step(x[17]), one.step(x[17]))


def test_predicts_several_outputs(comm):
    x = data(9, 5)[0], data(9, 5)[0][..., :2]
    model = TwoInputs()
    spec = fs.Spec(1, 2, 5)
    many = fs.Estimator(model, LOSS, adamw, spec).predict(x)
    one = fs.Estimator(model, LOSS, adamw, spec, comm=None).predict(x)
    for key in one:
        np.testing.assert_allclose(many[key], one[key], rtol=1e-5, atol=1e-6)


def test_evaluate_is_the_mean_over_all_ranks(comm):
    x, y = data()
    model = chain()
    spec = fs.Spec(1, 2, 5)
    many = fs.Estimator(model, LOSS, adamw, spec).evaluate(x, y)
    one = fs.Estimator(model, LOSS, adamw, spec, comm=None).evaluate(x, y)
    assert many == pytest.approx(one, rel=1e-5)


def test_from_a_file_every_rank_reads(comm, folder):
    x, y = data()
    path = folder / "d.h5"
    if comm.rank == 0:
        with h5py.File(path, "w") as file:
            file["x"], file["y"] = x.numpy(), y.numpy()
    comm.barrier()
    model = chain()
    many = train(comm, model, fs.h5mmap(path, "x"), fs.h5mmap(path, "y"))
    assert_same_parameters(many.model, train(comm, model, x, y).model, rtol=0)
    comm.barrier()


def expect_failure(comm, failing, own, action):
    """Run `action`: the failing rank gets its own error, all others RemoteError naming it."""
    if comm.rank == failing:
        with pytest.raises(own[0], match=own[1]):
            action()
    else:
        with pytest.raises(fs.RemoteError, match=f"rank {failing} failed: .*{own[1]}"):
            action()
    comm.barrier()


def test_nan_on_one_rank_is_raised_on_all(comm):
    x, y = data(20, 2 * comm.size)
    y[12, -1] = torch.nan  # the last rank's
    message = f"y holds NaN at step 12, sequence {2 * comm.size - 1}, feature 0"
    model = chain()
    expect_failure(
        comm, comm.size - 1, (fs.NonFiniteError, message), lambda: train(comm, model, x, y)
    )


def test_bad_data_on_one_rank_are_raised_on_all(comm):
    x, y = data()
    failing = comm.size // 2
    bad = y[1:] if comm.rank == failing else y
    model = chain()
    expect_failure(
        comm, failing, (ValueError, "y must have as many"), lambda: train(comm, model, x, bad)
    )
    expect_failure(
        comm,
        failing,
        (ValueError, "must have 3 dimensions"),
        lambda: fs.Estimator(model, LOSS, adamw, fs.Spec(1, 2, 5)).predict(
            x[0] if comm.rank == failing else x
        ),
    )


def test_an_error_in_the_loss_of_one_rank_is_raised_on_all(comm):
    calls = []

    def loss(m, xs, ys):
        calls.append(1)
        if comm.rank == comm.size - 1 and len(calls) == 3:
            raise KeyError("my own bug")
        return mse_loss(m(xs), ys)

    x, y = data(20, 2 * comm.size)
    model = chain()
    expect_failure(
        comm, comm.size - 1, (KeyError, "my own bug"), lambda: train(comm, model, x, y, loss=loss)
    )


@pytest.mark.parametrize("what", ["model", "spec", "data"])
def test_ranks_that_differ_are_told(comm, what):
    if comm.size == 1:
        return
    odd = comm.rank == 1
    x, y = data(21, 12 if what == "data" and odd else 13)
    model = chain(hidden=5 if what == "model" and odd else 4)
    options = {"batchsize": 3} if what == "spec" and odd else {}
    with pytest.raises(ValueError, match=r"differs between ranks: rank 1 has .*, rank 0 "):
        train(comm, model, x, y, **options)
    comm.barrier()
