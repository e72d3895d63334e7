"""Ranks with data of their own, and ranks that should have the same and have not."""

from __future__ import annotations

import copy

import h5py
import numpy as np
import pytest
import torch
from models import Custom, adamw, assert_same_parameters, chain
from torch.nn.functional import mse_loss

import fastseq as fs

LOSS = fs.seqloss(mse_loss)


def data(steps=21, count=13):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(steps, count, 3, generator=generator)
    return x, x.mean(2, keepdim=True).roll(1, 0)


def estimator(comm, model, **spec):
    spec = {"epochs": 3, "batchsize": 2, "seqsize": 5, **spec}
    return fs.Estimator(copy.deepcopy(model), LOSS, adamw, spec, comm=comm, progress=False, seed=3)


def parts_of_blocks(count, batchsize, size):
    """Return which sequences each rank takes where blocks are shared out."""
    own = [[] for _ in range(size)]
    for n in range(0, count, batchsize * size):
        width = min(n + batchsize * size, count) - n
        for rank in range(size):
            own[rank] += range(n + width * rank // size, n + width * (rank + 1) // size)
    return own


def assert_identical(comm, model):
    mine = fs.net2vec(model).detach()
    assert torch.equal(mine, comm.broadcast_(mine.clone()))


@pytest.mark.parametrize("count", [5, 12, 13])
@pytest.mark.parametrize(
    "more",
    [{}, {"shuffle": True}, {"accumulate": 3}, {"scale_x": "standard", "clip_norm": 0.1}],
    ids=["plain", "shuffled", "accumulated", "scaled"],
)
def test_equals_one_process_where_parts_are_those_of_the_blocks(comm, count, more):
    x, y = data(21, count)
    w = torch.rand(21, count, generator=torch.Generator().manual_seed(2))
    own = parts_of_blocks(count, 2, comm.size)[comm.rank]
    if not all(parts_of_blocks(count, 2, comm.size)):
        return  # a rank without any sequence
    model = chain()
    many = estimator(comm, model, shard="given", **more)
    many.fit(x[:, own], y[:, own], w[:, own])
    one = estimator(None, model, **{"batchsize": 2 * comm.size, **more}).fit(x, y, w)
    assert_identical(comm, many.model)
    assert_same_parameters(many.model, one.model, rtol=1e-4)
    losses = [[row["loss"] for row in est.history_] for est in (many, one)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    predicted = many.predict(x[:, own])
    np.testing.assert_allclose(predicted, one.predict(x)[:, own], rtol=1e-3, atol=1e-4)
    assert many.evaluate(x[:, own], y[:, own], w[:, own]) == pytest.approx(
        one.evaluate(x, y, w), rel=1e-4
    )


def test_ranks_draw_members_of_blocks_from_their_own_lists(comm):
    """Rank 0 has a single block, whose members stay."""
    count = 2 + 5 * comm.rank
    lengths = [14 - i % 4 for i in range(count)]  # all have three chunks
    x, y = data(14, count)
    x, y = ([a[:n, i] for i, n in enumerate(lengths)] for a in (x, y))
    seen = []

    def loss(m, xs, ys, *ws):
        seen.append(frozenset(xs[0, :, 0].tolist()))
        return LOSS(m, xs, ys, *ws)

    spec = fs.Spec(6, 2, 5, shard="given", shuffle=True)
    est = fs.Estimator(chain(), loss, adamw, spec, comm=comm, progress=False, seed=3)
    est.fit(x, y)
    assert_identical(comm, est.model)
    assert len({row["updates"] for row in est.history_}) == 1
    blocks = -(-count // 2)
    assert len(seen) == 6 * 3 * blocks
    for epoch in range(6):
        part = seen[epoch * 3 * blocks : (epoch + 1) * 3 * blocks : 3]
        assert frozenset.union(*part) == {float(one[0, 0]) for one in x}
    assert len(set(seen[::3])) == 1 if comm.rank == 0 else len(set(seen[::3])) > blocks + 1


class Before(torch.nn.Module):
    """Sees the step before."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(6, 1)

    def forward(self, x):
        return self.head(torch.cat([x, torch.nn.functional.pad(x, (0, 0, 0, 0, 1, 0))[:-1]], -1))


@pytest.mark.parametrize("make", [Before, Custom])
def test_what_models_look_at_is_found_where_only_some_ranks_must_cut_series(comm, make):
    torch.manual_seed(0)
    model = make()
    steps = 4 if comm.rank else 21
    x, y = data(steps, 3)
    est = estimator(comm, model, shard="given", context=int(make is Before))
    for _ in range(2):
        expected = fs.Stateful(est.model)(x).detach()
        np.testing.assert_allclose(est.predict(x), expected, rtol=1e-4, atol=1e-5)
        assert np.isfinite(est.evaluate(x, y))
        est.fit(x, y, validation=(x, y))
        assert_identical(comm, est.model)


@pytest.mark.parametrize("kind", ["array", "lengths", "list", "file"])
def test_ranks_may_have_more_and_longer_series_than_others(comm, kind, tmp_path):
    """By hand: the k-th chunks of all ranks make the k-th step, as long as one rank has some."""
    shapes = [(7 + 6 * r, 2 + 3 * r) for r in range(comm.size)]
    ranks = [data(*shape) for shape in shapes]
    lengths = [np.full(n, t) for t, n in shapes]
    if kind in ("lengths", "list"):
        for r, (t, n) in enumerate(shapes):  # longest first, as lists are visited
            lengths[r] = np.maximum(t - np.arange(n), 1)
    model = chain()
    one = copy.deepcopy(model)
    optimizer = adamw(one.parameters())
    blocks = max(-(-n // 2) for _, n in shapes)
    mean_losses = []
    for _ in range(2):
        losses = weights = 0.0
        for block in range(blocks):
            states = [None] * comm.size
            some = [
                lengths[r][2 * block : 2 * block + 2] for r in range(comm.size)
                if 2 * block < shapes[r][1]
            ]  # fmt: skip
            for t in range(0, max(int(part.max()) for part in some), 5):
                optimizer.zero_grad()
                total, weight = 0.0, 0
                for r, (x, y) in enumerate(ranks):
                    box = slice(t, t + 5), slice(2 * block, 2 * block + 2)
                    steps = torch.arange(t, t + 5)[: x[box].shape[0]]
                    counts = steps[:, None] < torch.as_tensor(lengths[r][box[1]])
                    if not counts.any():
                        continue
                    keep = counts[..., None]
                    output, state = one(x[box] * keep, states[r])
                    states[r] = tuple(s and tuple(h.detach() for h in s) for s in state)
                    total = total + ((output - y[box] * keep) ** 2 * keep).sum()
                    weight += int(counts.sum())
                (total / weight).backward()
                optimizer.step()
                losses, weights = losses + total.item(), weights + weight
        mean_losses.append(losses / weights)
    x, y = ranks[comm.rank]
    own = lengths[comm.rank]
    est = estimator(comm, model, shard="given", epochs=2)
    if kind == "list":
        xs, ys = ([a[:n, i] for i, n in enumerate(own)] for a in (x, y))
        est.fit(xs, ys)
        assert [len(a) for a in est.predict(xs)] == own.tolist()
    elif kind == "lengths":
        est.fit(x, y, lengths=own)
    elif kind == "file":
        with h5py.File(tmp_path / f"{comm.rank}.h5", "w") as file:
            file["x"], file["y"] = x.numpy(), y.numpy()
        est.fit(*(fs.h5mmap(tmp_path / f"{comm.rank}.h5", name) for name in "xy"))
    else:
        est.fit(x, y, validation=(x, y))
        assert est.history_[-1]["validation_loss"] == pytest.approx(est.evaluate(x, y))
        assert est.predict(x).shape == y.shape
    assert_identical(comm, est.model)
    assert_same_parameters(est.model, one, rtol=1e-3)
    np.testing.assert_allclose([row["loss"] for row in est.history_], mean_losses, rtol=1e-4)


def test_a_run_with_data_of_its_own_is_resumed(comm, folder):
    x, y = data(20, 3 + 2 * comm.rank)
    model = chain()
    whole = estimator(comm, model, shard="given", shuffle=True, epochs=4).fit(x, y)
    checkpoint = fs.callbacks.Checkpoint(folder / "own", every_updates=3)

    class Fails(fs.callbacks.Callback):
        def on_batch_end(self, run):
            if run.updates == 10:
                raise ArithmeticError("stop")

    broken = estimator(comm, model, shard="given", shuffle=True, epochs=4)
    broken.callbacks = [Fails()]
    with pytest.raises((ArithmeticError, fs.RemoteError), match="stop"):
        broken.fit(x, y, checkpoint=checkpoint)
    again = estimator(comm, model, shard="given", shuffle=True, epochs=4)
    again.fit(x, y, checkpoint=checkpoint, resume="auto")
    assert_same_parameters(again.model, whole.model, rtol=0)
    comm.barrier()


CALLS = {
    "fit": lambda est, x, y: est.fit(x, y),
    "partial_fit": lambda est, x, y: est.partial_fit(x, y),
    "predict": lambda est, x, _: est.predict(x),
    "evaluate": lambda est, x, y: est.evaluate(x, y),
    "validation": lambda est, x, y: est.fit(*data(21, x.shape[1]), validation=(x, y)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["strided", "last sequence", "last step", "file"])
def test_ranks_that_were_given_different_data_are_told(comm, call, kind, tmp_path):
    x, y = data(21, 4 * comm.size)
    if kind in ("strided", "file"):
        x, y = x[:, comm.rank :: comm.size], y[:, comm.rank :: comm.size]
    else:
        x = x.clone()
        x[(slice(None), -1) if kind == "last sequence" else -1] += comm.rank
    if kind == "file":
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("x", data=x.numpy(), chunks=(5, 1, 3), compression="gzip")
        x = fs.h5mmap(tmp_path / "x.h5", "x")
    est = estimator(comm, chain())
    if comm.size == 1:
        CALLS[call](est, x, y)
        return
    before = fs.net2vec(est.model).clone()
    with pytest.raises(ValueError, match=r'x of shape .*; ranks share .* spec\.shard="given"'):
        CALLS[call](est, x, y)
    assert torch.equal(before, fs.net2vec(est.model))
    comm.barrier()


def test_the_same_data_pass_whatever_they_lie_in(comm, tmp_path):
    x, y = data()
    x[3, 2] = torch.nan
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=x.numpy(), chunks=(5, 2, 3), compression="gzip")
        file["plain"] = x.numpy()
    kinds = [x, x.numpy().copy(), x.transpose(0, 1).contiguous().transpose(0, 1), x.double()]
    kinds += [fs.h5mmap(tmp_path / "x.h5", "plain")]
    own = kinds[comm.rank % len(kinds)]
    estimator(comm, chain(), nan="mask").fit(own, y)
    compressed = fs.h5mmap(tmp_path / "x.h5", "x")  # a file for each rank
    estimator(comm, chain(), nan="mask").fit(compressed, y)
    lists = [a[: 5 + i] for i, a in enumerate(x.nan_to_num().unbind(1))]
    estimator(comm, chain()).fit(lists, [a[:, :1] for a in lists])


def test_statistics_that_callbacks_compute_are_those_of_all_ranks(comm):
    x, y = data(20, 4 * comm.size)
    own = parts_of_blocks(4 * comm.size, 2, comm.size)[comm.rank]
    metric = fs.callbacks.Metrics(mse=lambda a, b: float(((a - b) ** 2).mean()))
    many, one = estimator(comm, chain(), shard="given"), estimator(None, chain())
    many.callbacks = [metric]
    many.fit(x[:, own], y[:, own], validation=(x[:, own], y[:, own]))
    whole = one.model.load_state_dict(many.model.state_dict()) and one.predict(x)
    found = many.history_[-1]
    key = next(name for name in found if "mse" in name)
    assert found[key] == pytest.approx(float(((whole - y.numpy()) ** 2).mean()), rel=1e-4)
