"""Lists with `Spec.shuffle`: each epoch has other blocks."""

from __future__ import annotations

import copy
import itertools
import warnings

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interrupted import Stop, stop_after
from models import adamw, assert_same_parameters, chain
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import Dataset

import fastseq as fs
from fastseq.data.chunk_plan import ChunkPlan
from fastseq.data.drawn_members import drawn_order, longest_drawn
from fastseq.sklearn.automatic_training import enough_epochs

LENGTHS = np.random.default_rng(5).integers(8, 14, 23)
SERIES = [torch.randn(n, 3) for n in LENGTHS]
for number, one in enumerate(SERIES):
    one[:, 0] = number
TARGETS = [one[:, :1] + torch.arange(len(one))[:, None] / 100 for one in SERIES]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def padding(lengths, batchsize):
    blocks = [lengths[i : i + batchsize] for i in range(0, len(lengths), batchsize)]
    return 1 - lengths.sum() / sum(len(block) * block.max() for block in blocks)


def mates(order, batchsize):
    """Return which sequences are in a block together, as a matrix."""
    block = np.empty_like(order)
    block[order] = np.arange(len(order)) // batchsize
    return (block[:, None] == block) & ~np.eye(len(order), dtype=bool)


spreads = st.sampled_from([0.25, 3.0])


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60), st.integers(0, 99), spreads)
def test_an_order_has_all_sequences_and_none_longer_than_foreseen(lengths, seed, spread):
    lengths = np.sort(lengths)[::-1]
    order = drawn_order(lengths, spread, generator(seed))
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (lengths[order] <= longest_drawn(lengths, spread)).all()
    assert np.array_equal(order, drawn_order(lengths, spread, generator(seed)))


@pytest.mark.parametrize("count", [537, 3000])
@pytest.mark.parametrize(("spread", "most", "same"), [(0.25, 0.12, 0.45), (3.0, 0.35, 0.12)])
def test_little_is_padding_and_most_members_are_others(count, spread, most, same):
    lengths = np.sort(np.random.default_rng(0).integers(100, 1345, count))[::-1]
    orders = [drawn_order(lengths, spread, generator(seed)) for seed in range(5)]
    for order, after in itertools.pairwise(orders):
        assert padding(lengths[order], 32) < most
        before, now = mates(order, 32), mates(after, 32)
        assert (before & now).sum() / before.sum() < same


def test_sequences_of_one_length_are_drawn_from_all():
    orders = np.array([drawn_order(np.full(40, 7), 0.25, generator(seed)) for seed in range(300)])
    assert np.abs(orders.mean(0) - 19.5).max() < 4  # its deviation is 0.67
    lengths = np.repeat([100, 60], 20)  # too different to be mixed
    assert (drawn_order(lengths, 0.25, generator(0))[:20] < 20).all()


class Pairs(Dataset):
    def __len__(self):
        return len(SERIES)

    def __getitem__(self, index):
        return SERIES[index], TARGETS[index]


@pytest.fixture(params=["list", "dataset", "group", "packed group"])
def stored(request, tmp_path):
    if request.param == "list":
        yield SERIES, TARGETS
    elif request.param == "dataset":
        yield Pairs(), None
    else:
        packed = {"chunks": (3, 2), "compression": "gzip"} if "packed" in request.param else {}
        with h5py.File(tmp_path / "series.h5", "w") as file:
            for n, (x, y) in enumerate(zip(SERIES, TARGETS, strict=True)):
                file.create_dataset(f"x/{n}", data=x.numpy(), **packed)
                file[f"y/{n}"] = y.numpy()
        with h5py.File(tmp_path / "series.h5", "r") as file:
            yield file["x"], file["y"]


def fit(x, y, *, loss=None, w=None, seed=3, callbacks=(), model=None, checkpoint=None, **spec):
    spec = {"epochs": 4, "batchsize": 5, "seqsize": 20, "shuffle": True, **spec}
    options = {"callbacks": list(callbacks), "seed": seed, "progress": False, "comm": None}
    loss = loss or fs.seqloss(mse_loss)
    est = fs.Estimator(model or chain(), loss, adamw, spec, **options)
    return est.fit(x, y, w, checkpoint=checkpoint, resume=None if checkpoint is None else "auto")


class Seen:
    """A loss that notes the members of all chunks, after checks of what it gets."""

    def __init__(self, *, w=None):
        self.chunks = []
        self.w = w

    def __call__(self, m, xs, ys, ws=None):
        members = xs[0, :, 0].round().long()
        ws = torch.ones(ys.shape[:2]) if ws is None else ws
        for column, n in enumerate(members.tolist()):
            if not ws[:, column].any():
                continue  # it has ended
            steps = ws[:, column] > 0
            start = int(((ys[0, column, 0] - n) * 100).round())
            own = slice(start, start + int(steps.sum()))
            assert torch.equal(ys[steps, column], TARGETS[n][own])
            assert torch.equal(xs[steps, column], SERIES[n][own])
            if self.w is not None:
                assert (ws[steps, column] == self.w[n]).all()
            self.chunks.append((n, own.start, own.stop, frozenset(members.tolist())))
        error = (m(xs) - ys).square().mean(-1)
        return (error * ws).sum() / ws.sum()

    def epochs(self, count):
        """Return each epoch's blocks; each sequence must have been seen once, from start to end."""
        size = sum(-(-int(n) // self.seqsize) for n in LENGTHS)
        assert len(self.chunks) == count * size
        found = []
        for epoch in range(count):
            part = self.chunks[epoch * size : (epoch + 1) * size]
            assert sorted(c[:3] for c in part) == [
                (n, begin, min(begin + self.seqsize, int(length)))
                for n, length in enumerate(LENGTHS)
                for begin in range(0, int(length), self.seqsize)
            ]
            found.append(list(dict.fromkeys(c[3] for c in part if c[1] == 0)))
        return found

    seqsize = 20


@pytest.mark.parametrize("seqsize", [20, 3])
def test_each_epoch_sees_each_sequence_once_in_blocks_of_other_members(stored, seqsize):
    w = torch.rand(len(SERIES)) + 0.5
    loss = Seen(w=w)
    loss.seqsize = seqsize
    est = fit(*stored, loss=loss, w=w, seqsize=seqsize)
    epochs = loss.epochs(4)
    assert all(sorted(map(len, blocks)) == [3, 5, 5, 5, 5] for blocks in epochs)
    assert len({frozenset(blocks) for blocks in epochs}) == 4
    assert len({row["updates"] for row in est.history_}) == 1
    assert 0 < est.padding_ < 0.2


def test_without_shuffle_blocks_are_those_of_the_sorted_lengths(stored):
    loss = Seen()
    fit(*stored, loss=loss, shuffle=False)
    order = np.argsort(-LENGTHS, kind="stable").tolist()
    blocks = [frozenset(order[i : i + 5]) for i in range(0, 23, 5)]
    assert loss.epochs(4) == [blocks] * 4


def test_inputs_of_sequences_go_with_them_when_they_are_scaled():
    own = torch.arange(23.0)[:, None] * 1000
    seen = []

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 1)

        def forward(self, xs):
            x, ids = xs
            if self.training:
                seen.append((x[0, :, 0], ids[0, :, 0]))
            return self.head(torch.cat([x[..., :1], ids], -1))

    est = fit((SERIES, own), TARGETS, model=Both(), scale_x="standard")
    first, second = (torch.cat(parts).double() for parts in zip(*seen, strict=True))
    assert len(first) >= 4 * 23
    affines = est.scaling_.x
    numbers = first * affines[0].scale[0] + affines[0].center[0]
    ids = second * affines[1].scale[0] + affines[1].center[0]
    torch.testing.assert_close(numbers * 1000, ids, rtol=1e-4, atol=0.1)


def test_the_seed_decides():
    def blocks(seed):
        loss = Seen()
        est = fit(SERIES, TARGETS, loss=loss, seed=seed, model=copy.deepcopy(model))
        return loss.epochs(4), est.model

    model = chain()
    (first, a), (again, b), (other, _) = blocks(1), blocks(1), blocks(2)
    assert first == again != other
    assert_same_parameters(a, b, rtol=0)


@pytest.mark.parametrize("seqsize", [20, 3])
@pytest.mark.parametrize("updates", [3, 13, 31])
def test_a_resumed_run_has_the_bits_of_a_whole_one(tmp_path, seqsize, updates):
    model = chain()
    options = {"seqsize": seqsize, "epochs": 8}
    whole = fit(SERIES, TARGETS, model=copy.deepcopy(model), **options)
    every = fs.callbacks.Checkpoint(tmp_path, every_updates=1)
    with pytest.raises(Stop):
        fit(
            SERIES, TARGETS, model=copy.deepcopy(model), checkpoint=every,
            callbacks=[stop_after(updates)], **options,
        )  # fmt: skip
    again = fit(SERIES, TARGETS, model=copy.deepcopy(model), checkpoint=tmp_path, **options)
    assert_same_parameters(whole.model, again.model, rtol=0)
    assert [r["loss"] for r in whole.history_] == [r["loss"] for r in again.history_]


@given(
    st.lists(st.integers(0, 60), min_size=2, max_size=40), st.integers(1, 7), st.integers(1, 20),
    st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 9), spreads,
)  # fmt: skip
def test_plans_have_room_for_all_orders(
    lengths, batchsize, seqsize, ranks, by_time, joined, seed, spread
):
    lengths = np.sort(lengths)[::-1]
    order = drawn_order(lengths, spread, generator(seed))
    covered = np.zeros((max(int(lengths[0]), 1), len(lengths)), int)
    sizes = set()
    for rank in range(ranks):
        plan = ChunkPlan(
            int(lengths[0]), len(lengths), batchsize, seqsize, rank, ranks, by_time, lengths, joined
        ).with_room(spread)
        drawn = plan.reordered(lengths[order]) if plan.mixes else plan
        sizes |= {len(plan), len(drawn), len(list(drawn.chunks()))}
        for c in drawn.chunks():
            covered[c.t0 : c.t1, c.n0 : c.n1] += 1
    assert len(sizes) == 1
    assert covered.max(initial=0) <= 1
    own = lengths[order] if plan.mixes else lengths
    for n, length in enumerate(own):
        assert (covered[:length, n] == 1).all()


@pytest.mark.filterwarnings("error")
def test_schedules_end_with_the_last_update():
    model = fs.SequenceRegressor(
        "gru", hidden_size=4, schedule="onecycle", batchsize=5, seqsize=3, random_state=0
    ).fit([one.numpy() for one in SERIES], [y[:, 0].numpy() for y in TARGETS])
    history = model.estimator_.history_
    updates = {row["updates"] for row in history}
    assert len(updates) == 1
    assert len(history) == enough_epochs(*updates)
    assert history[-2]["lr"] > 1e-6 > history[-1]["lr"]


class Norm(nn.Module):
    """Normalises over sequences and steps, padding included."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 1)

    def forward(self, x, state=None):
        return self.head(self.norm(x.flatten(0, 1)).view_as(x)), state


def test_padding_is_warned_of_only_where_there_is_some():
    apart = [torch.randn(n, 3) for n in [12] * 4 + [6] * 4]
    near = [torch.randn(n, 3) for n in [12] * 4 + [11] * 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(apart, [x[:, :1] for x in apart], model=Norm(), batchsize=4)
    with pytest.warns(UserWarning, match="count the padding"):
        fit(near, [x[:, :1] for x in near], model=Norm(), batchsize=4)


@pytest.mark.filterwarnings("error")
def test_networks_with_batch_normalisation_are_as_good_after_training_as_in_it():
    rng = np.random.default_rng(0)
    y = rng.uniform(0.3, 1.2, 128)  # frequencies
    lengths = rng.integers(10, 60, 128).tolist()
    starts = rng.uniform(0, 6, 128)
    series = [np.sin(f * np.arange(n) + a) for f, n, a in zip(y, lengths, starts, strict=True)]
    model = fs.SequenceRegressor("tcn", hidden_size=8, epochs=20, batchsize=16, random_state=0)
    model.fit(series, y)
    loss = model.estimator_.history_[-1]["loss"]  # of scaled targets
    assert loss < 0.05
    assert 1 - model.score(series, y) < 2 * loss
