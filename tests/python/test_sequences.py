"""Every sample that counts is seen once per epoch, in its place; what does not count, never."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastseq as fs
from fastseq.data.chunk_plan import ChunkPlan
from fastseq.data.sequences import Sequences, _twice

sizes = st.integers(1, 13)


def passes(data, *, batchsize, seqsize, size=1, by_time=False):
    """Yield each rank's chunks with their batches."""
    for rank in range(size):
        plan = ChunkPlan(
            data.steps, data.count, batchsize, seqsize, rank, size, by_time, data.lengths
        )
        yield plan, list(data.batches(plan.chunks()))


def seen(data, **options):
    """Return the numbers of all samples that count; all ranks make as many steps."""
    found = []
    steps = set()
    for plan, batches in passes(data, **options):
        steps.add(len(batches))
        assert len(plan) == len(batches)
        before = None
        for chunk, batch in batches:
            if batch is None:
                continue
            numbers = batch.xs[..., 0].long()
            counts = torch.ones_like(numbers) if batch.ws is None else batch.ws
            assert torch.equal(batch.xs[..., 0], batch.ys[..., 0])
            assert not batch.xs[counts == 0].any()
            found += numbers[counts > 0].tolist()
            # Steps of one sequence follow each other, from chunk to chunk of a block too.
            both = (counts[1:] > 0) & (counts[:-1] > 0)
            assert (numbers.diff(dim=0)[both] == 1).all()
            if chunk.index > 0 and before is not None:
                both = (before[1] > 0) & (counts[0] > 0)
                assert (numbers[0] - before[0] == 1)[both].all()
            before = numbers[-1], counts[-1]
    assert len(steps) == 1
    return sorted(found)


def numbered(lengths):
    """Return series of consecutive numbers, from 1 on, no two the same."""
    ends = np.cumsum(lengths) + 1
    return [
        np.arange(end - n, end, dtype=np.float64)[:, None]
        for n, end in zip(lengths, ends, strict=True)
    ]


def padded(series, steps):
    """Return an array (T, N, 1) with NaN behind the series' ends."""
    x = np.full((steps, len(series), 1), np.nan)
    for n, one in enumerate(series):
        x[: len(one), n] = one
    return x


@given(
    lengths=st.lists(st.integers(0, 13), min_size=1, max_size=9).filter(any),
    batchsize=sizes, seqsize=sizes, size=st.integers(1, 4), by_time=st.booleans(),
    kind=st.sampled_from(["lengths", "mask", "list", "memory map", "group", "tensors"]),
)  # fmt: skip
def test_every_sample_that_counts_is_seen_once(
    tmp_path_factory, lengths, batchsize, seqsize, size, by_time, kind
):
    series = numbered(lengths)
    steps = max(lengths)
    x = padded(series, steps)
    options = {}
    file = None
    if kind == "lengths":
        options["lengths"] = lengths
    elif kind == "mask":
        options["mask"] = ~np.isnan(x)
    elif kind == "list":
        x = series
    elif kind == "tensors":
        x = [torch.from_numpy(one) for one in series]
    else:
        path = tmp_path_factory.getbasetemp() / "series"
        if kind == "group":
            file = h5py.File(f"{path}.h5", "w")
            for number, one in enumerate(series):
                file[f"x/s{number}"] = one.astype(np.float32)
            x = file["x"]
        else:
            np.save(f"{path}.npy", x)
            x, options["lengths"] = np.load(f"{path}.npy", mmap_mode="r"), lengths
    data = Sequences(x, x, **options, dtype=torch.float64)
    found = seen(data, batchsize=batchsize, seqsize=seqsize, size=size, by_time=by_time)
    assert found == list(range(1, sum(lengths) + 1))
    if file is not None:
        file.close()


@given(
    steps=sizes, count=sizes, segments=st.integers(1, 5), batchsize=sizes, seqsize=sizes,
    size=st.integers(1, 3),
)  # fmt: skip
def test_folded_series(steps, count, segments, batchsize, seqsize, size):
    if segments > steps:
        return
    numbers = 1 + torch.arange(steps * count, dtype=torch.float64).view(count, steps)
    x = numbers.t().contiguous().unsqueeze(2)
    data = Sequences(x, x, dtype=torch.float64).folded(segments)
    found = seen(data, batchsize=batchsize, seqsize=seqsize, size=size)
    assert found == sorted(numbers[:, : steps // segments * segments].flatten().tolist())


@given(
    steps=sizes, count=sizes, window=st.tuples(*[st.floats(0, 1)] * 4), segments=st.integers(1, 3)
)
def test_windows_that_are_folded(steps, count, window, segments):
    t0, t1 = sorted(round(steps * share) for share in window[:2])
    n0, n1 = sorted(round(count * share) for share in window[2:])
    if t1 - t0 < segments or n1 == n0:
        return
    numbers = 1 + torch.arange(steps * count, dtype=torch.float64).view(count, steps)
    x = numbers.t().contiguous().unsqueeze(2)
    data = Sequences(x, x, dtype=torch.float64).part(t0, t1, n0, n1).folded(segments)
    length = (t1 - t0) // segments * segments
    expected = numbers[n0:n1, t0 : t0 + length]
    assert seen(data, batchsize=2, seqsize=3) == sorted(expected.flatten().tolist())


def test_fold_warns_of_what_is_left_out_and_wants_enough_steps():
    x = torch.randn(10, 2, 3)
    model = torch.nn.Linear(3, 1)
    loss = fs.seqloss(torch.nn.functional.mse_loss)

    def fit(fold):
        spec = fs.Spec(1, 4, 5, fold=fold)
        est = fs.Estimator(model, loss, torch.optim.SGD, spec, progress=False)
        return est.fit(x, x[..., :1])

    with pytest.warns(UserWarning, match="fold=3 leaves the last 1 of 10 steps out"):
        assert fit(3).history_[-1]["updates"] == 2
    with pytest.raises(ValueError, match="fold=11 cannot cut series of 10 steps"):
        fit(11)


def test_blocks_end_with_their_longest_sequence_and_waste_is_told():
    series = numbered([10, 1, 9, 2])
    data = Sequences(series, series, dtype=torch.float64)
    assert data.order.tolist() == [0, 2, 3, 1]
    plan = ChunkPlan(data.steps, data.count, 2, 4, lengths=data.lengths)
    assert [(c.block, c.t0, c.t1) for c in plan.chunks()] == [
        (0, 0, 4), (0, 4, 8), (0, 8, 10), (1, 0, 2),
    ]  # fmt: skip
    assert plan.padding == pytest.approx(1 - 22 / 24)


def test_buffers_are_not_used_again_while_somebody_keeps_them(tmp_path):
    a = np.random.default_rng(0).standard_normal((40, 600, 30)).astype(np.float32)
    np.save(tmp_path / "a.npy", a)
    data = Sequences(np.load(tmp_path / "a.npy", mmap_mode="r"), dtype=torch.float32)
    plan = ChunkPlan(40, 600, 600, 2)  # chunks too large to be read together
    kept = [batch.xs[:, :1] for _, batch in data.batches(plan.chunks())]
    np.testing.assert_array_equal(torch.cat(kept), a[:, :1])
    places = [batch.xs.data_ptr() for _, batch in data.batches(plan.chunks())]
    assert len(set(places)) <= 4


def test_two_threads_go_through_the_same_iterator():
    def numbers():
        for i in range(3000):
            time.sleep(0)  # lets the other thread in
            yield i

    branches = _twice(numbers())
    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(list, branches):
            assert found == list(range(3000))
