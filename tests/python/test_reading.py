"""Files that are read while training: interrupted, cut short, changed, in other processes."""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr
from models import adamw, assert_same_parameters, chain
from torch.nn.functional import mse_loss
from waiting import until

import fastseq as fs
from fastseq._util import threads
from fastseq.data.chunk_plan import ChunkPlan
from fastseq.data.sequences import Sequences

T, N = 60, 8
X = np.random.default_rng(0).standard_normal((T, N, 3)).astype(np.float32)
Y = X.mean(2, keepdims=True)


def estimator(model=None, loss=None, **spec):
    spec = {"epochs": 2, "batchsize": 4, "seqsize": 5, **spec}
    model = chain() if model is None else model
    loss = loss or fs.seqloss(mse_loss)
    return fs.Estimator(model, loss, adamw, spec, progress=False, seed=0)


def files(folder, **options):
    with h5py.File(folder / "data.h5", "w") as file:
        file.create_dataset("x", data=X, **options)
        file.create_dataset("y", data=Y, **options)
    return [fs.h5mmap(folder / "data.h5", name) for name in "xy"]


LAYOUTS = {"contiguous": {}, "gzip": {"chunks": (7, 3, 1), "compression": "gzip"}}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"fold": 3}, {"shuffle": True}, {"nan": "mask"}])
def test_training_is_the_same_as_from_memory(layout, options, tmp_path):
    torch.manual_seed(0)
    found = chain()
    torch.manual_seed(0)
    wanted = chain()
    estimator(found, **options).fit(*files(tmp_path, **LAYOUTS[layout]), validation=2)
    estimator(wanted, **options).fit(X, Y, validation=2)
    assert_same_parameters(found, wanted, rtol=0)


def resources():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fit_that_is_stopped_in_the_middle_leaves_nothing_open(layout, tmp_path):
    x, y = files(tmp_path, **LAYOUTS[layout])
    estimator().fit(x, y)  # what stays for good is there then
    gc.collect()
    before = resources()

    def loss(m, xs, ys):
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            estimator(loss=loss).fit(x, y)
    gc.collect()
    until(lambda: resources() == before)
    assert not threads.waited_for


@pytest.mark.parametrize("what", ["truncated", "changed"])
def test_a_file_that_is_touched_while_it_is_read(what, tmp_path):
    x, y = files(tmp_path)
    path = tmp_path / "data.h5"

    def loss(m, xs, ys):
        if what == "truncated":
            os.truncate(path, 3000)
        else:
            with path.open("r+b") as file:
                file.write(b"something else")
        return mse_loss(m(xs), ys)

    # A file that was cut short has changed, too: whichever is seen first.
    message = rf"[xy] could not be read at steps.*data\.h5.*({what}|changed)"
    with pytest.raises(fs.ReadError, match=message):
        estimator(loss=loss).fit(x, y)


def test_predictions_may_go_into_the_file_that_is_read(tmp_path):
    x, y = files(tmp_path)
    with h5py.File(tmp_path / "data.h5", "r+") as file:
        file.create_dataset("yhat", data=np.zeros_like(Y))
    est = estimator().fit(x, y)
    out = est.predict(x, out=fs.h5mmap(tmp_path / "data.h5", "yhat", mode="r+"))
    np.testing.assert_allclose(out, est.predict(X), rtol=1e-5, atol=1e-6)


def test_damage_within_compressed_chunks_is_an_error_that_says_where(tmp_path):
    x, y = files(tmp_path, **LAYOUTS["gzip"])
    with h5py.File(tmp_path / "data.h5") as file:
        info = file["x"].id.get_chunk_info(9)
    with (tmp_path / "data.h5").open("r+b") as file:
        file.seek(info.byte_offset)
        file.write(b"\x00" * info.size)
    with pytest.raises(fs.ReadError, match=r"x could not be read at steps .*data\.h5"):
        estimator().fit(x, y)


def read_there(x, path):
    data = Sequences(x, dtype=torch.float32)
    slabs = [batch.xs.numpy().copy() for _, batch in data.batches(ChunkPlan(T, N, N, 9).chunks())]
    np.save(path, np.concatenate(slabs))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_maps_go_into_other_processes(layout, method, tmp_path):
    x, _ = files(tmp_path, **LAYOUTS[layout])
    read_there(x, tmp_path / "here.npy")  # as a whole and in part, before
    path = tmp_path / "there.npy"
    process = multiprocessing.get_context(method).Process(target=read_there, args=(x, path))
    process.start()
    process.join(200)
    assert process.exitcode == 0
    np.testing.assert_array_equal(np.load(path), X)


def test_a_fork_in_the_middle_of_a_pass_hangs_neither_side(tmp_path):
    x, _ = files(tmp_path)
    data = Sequences(x, dtype=torch.float32)
    plan = ChunkPlan(T, N, N, 5)
    ahead = data.batches(plan.chunks())
    next(ahead)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            again = torch.cat([batch.xs for _, batch in data.batches(plan.chunks())])
            os._exit(0 if np.array_equal(again, X) else 1)
        os._exit(2)
    rest = [batch.xs for _, batch in ahead]
    assert len(rest) == 11
    ended = []
    until(lambda: ended.append(os.waitpid(pid, os.WNOHANG)) or ended[-1][0] != 0)
    assert os.waitstatus_to_exitcode(ended[-1][1]) == 0


@pytest.mark.parametrize("dtype", ["f4", "f2", "i2", "?", ">f8", "u4"])
def test_large_arrays_in_memory_are_gathered_by_another_thread(dtype):
    a = (np.random.default_rng(0).standard_normal((50, 300, 40)) * 9).astype(dtype)
    to = "f8" if dtype == "u4" else "f4"  # fp32 would round these
    data = Sequences(a, dtype=torch.float64 if to == "f8" else torch.float32)
    for chunk, batch in data.batches(ChunkPlan(50, 300, 200, 40).chunks()):
        want = a[chunk.t0 : chunk.t1, chunk.n0 : chunk.n1].astype(to)
        np.testing.assert_array_equal(batch.xs, want)


def test_half_precision_tensors():
    a = torch.randn(50, 300, 40).bfloat16()
    for array in (a, a[:9, :7]):
        data = Sequences(array, dtype=torch.float32)
        for chunk, batch in data.batches(ChunkPlan(*array.shape[:2], 200, 40).chunks()):
            want = array[chunk.t0 : chunk.t1, chunk.n0 : chunk.n1].float()
            assert torch.equal(batch.xs, want)


def test_zarr_arrays(tmp_path):
    x = zarr.open(str(tmp_path / "x"), mode="w", shape=X.shape, chunks=(7, 3, 3), dtype="f4")
    x[:] = X
    torch.manual_seed(0)
    found = chain()
    torch.manual_seed(0)
    wanted = chain()
    estimator(found).fit(x, Y)
    estimator(wanted).fit(X, Y)
    assert_same_parameters(found, wanted, rtol=0)


@pytest.mark.parametrize("chunks", [(7, 3, 3), (40, 2, 1), (T, N, 3), (1, 1, 1)])
def test_chunks_of_other_libraries_are_read_once_per_block(chunks):
    class Chunked:
        """Stored as zarr does it."""

        shape, dtype = X.shape, X.dtype
        read = 0

        def __getitem__(self, box):
            ends = [-(-s.stop // c) - s.start // c for s, c in zip(box, self.chunks, strict=True)]
            self.read += math.prod(ends)
            return X[box]

    x = Chunked()
    x.chunks = chunks
    data = Sequences(x, dtype=torch.float32)
    plan = ChunkPlan(T, N, N, 4)
    for chunk, batch in data.batches(plan.chunks()):
        torch.testing.assert_close(batch.xs, torch.from_numpy(X[chunk.t0 : chunk.t1]).float())
    assert x.read == math.prod(-(-n // c) for n, c in zip(X.shape, chunks, strict=True))


def test_virtual_datasets_whose_files_are_missing(tmp_path):
    layout = h5py.VirtualLayout((T, N, 3), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "part.h5"), "x", (T, N, 3))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
        file["y"] = Y
    with pytest.raises((ValueError, FileNotFoundError), match=r"part\.h5"):
        fs.h5mmap(tmp_path / "all.h5", "x")
    with (
        h5py.File(tmp_path / "all.h5") as file,
        pytest.raises((ValueError, FileNotFoundError), match=r"part\.h5"),
    ):
        estimator().fit(file["x"], file["y"])


def test_objects_and_complex_numbers_are_refused(tmp_path):
    for bad in (X.astype(complex), X.astype(object), np.full((T, N, 3), "a")):
        with pytest.raises(TypeError, match="x must hold floats, integers or booleans, got dtype"):
            estimator().fit(bad, Y)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["z"] = X.astype(np.complex64)
        file["s"] = np.full((T, N, 3), b"abc")
        file["g/x"] = X
        for name in "zs":
            with pytest.raises(TypeError, match="x must hold floats, integers or booleans"):
                estimator().fit(file[name], Y)
    assert Path(tmp_path / "a.h5").exists()
