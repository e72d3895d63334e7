"""What is read of the data, when, and how often."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from models import adamw, chain
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq._util import threads
from fastseq.data.chunk_plan import ChunkPlan
from fastseq.data.sequences import Sequences

T, N = 20, 6


class Recorded:
    """An array-like that remembers which slices were taken and counts conversions."""

    def __init__(self, array, log, name):
        self.array, self.log, self.name = array, log, name
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, index):
        t, n = index
        self.log.append((self.name, (t.start, t.stop), (n.start, n.stop)))
        return Piece(self.array[index], self.log)


class Piece:
    def __init__(self, array, log):
        self.array, self.log = array, log
        self.shape, self.dtype = array.shape, array.dtype

    def __array__(self, dtype=None, copy=None):
        self.log.append("converted")
        return self.array.astype(dtype) if dtype else self.array


def recorded(log):
    rng = np.random.default_rng(0)
    return (
        Recorded(rng.standard_normal((T, N, 3)), log, "x"),
        Recorded(rng.standard_normal((T, N, 1)), log, "y"),
    )


def test_only_the_current_chunk_and_the_one_ahead_are_read():
    log: list = []
    x, y = recorded(log)
    chunks = [((t, min(t + 7, T)), (n, min(n + 4, N))) for n in (0, 4) for t in (0, 7, 14)]
    read_when_used = []

    def loss(m, xs, ys):
        # Whatever the reader will have read by the time this step ends.
        read_when_used.append(sum(entry != "converted" for entry in log))
        return mse_loss(m(xs), ys)

    est = fs.Estimator(chain(), loss, adamw, fs.Spec(1, 4, 7), progress=False)
    assert log == []
    est.fit(x, y)
    slices = [entry for entry in log if entry != "converted"]
    assert slices == [(name, *chunk) for chunk in chunks for name in ("x", "y")]
    for step, count in enumerate(read_when_used):
        assert count <= 2 * (step + 2), "read further ahead than one chunk"
    assert log.count("converted") == len(slices), "a piece was converted more than once"


def test_predict_reads_every_slice_once():
    log: list = []
    x, _ = recorded(log)
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), adamw, fs.Spec(1, 4, 7))
    est.predict(x)
    slices = [entry for entry in log if entry != "converted"]
    assert len(slices) == len(set(slices)) == 6


class Slow:
    """An array-like that tells who reads it, and when."""

    shape, dtype = (5, 2, 1), np.dtype("f4")

    def __init__(self, fails_at=None):
        self.loaded = []
        self.fails_at = fails_at
        self.second = threading.Event()

    def __getitem__(self, index):
        t = index[0].start
        self.loaded.append((t, threading.get_ident()))
        if t == 1:
            self.second.set()
        if t == self.fails_at:
            raise RuntimeError("disk on fire")
        return np.full((1, 2, 1), t, "f4")


def chunks_of(array):
    data = Sequences(array, dtype=torch.float32)
    return data.batches(ChunkPlan(5, 2, 2, 1).chunks())


def test_reading_is_one_ahead_in_another_thread():
    array = Slow()
    ahead = chunks_of(array)
    assert next(ahead)[1].xs.tolist() == [[[0], [0]]]
    assert array.second.wait(60), "the next chunk is not read until it is asked for"
    assert next(ahead)[1].xs.tolist() == [[[1], [1]]]
    assert [t for t, _ in array.loaded[:2]] == [0, 1]
    assert len(array.loaded) <= 3
    assert all(thread != threading.get_ident() for _, thread in array.loaded)
    ahead.close()
    assert not threads.waited_for


def test_errors_of_the_reader_arrive_when_their_chunk_is_due():
    seen = []
    with pytest.raises(
        fs.ReadError, match=r"x could not be read at steps 2 to 3.*on fire"
    ) as found:
        seen.extend(chunk.t0 for chunk, _ in chunks_of(Slow(fails_at=2)))
    assert seen == [0, 1]
    assert isinstance(found.value.__cause__, RuntimeError)
    assert not threads.waited_for


def test_the_callers_arrays_are_never_changed():
    def loss(m, xs, ys):
        xs.mul_(0)
        ys.add_(1)
        return mse_loss(m(xs), ys)

    x, y = torch.randn(T, N, 3), np.random.default_rng(0).standard_normal((T, N, 1), np.float32)
    kept = x.clone(), y.copy()
    fs.Estimator(chain(), loss, adamw, fs.Spec(1, N, T), progress=False).fit(x, y)
    assert torch.equal(x, kept[0])
    np.testing.assert_array_equal(y, kept[1])
