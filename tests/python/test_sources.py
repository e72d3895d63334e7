"""Every kind of array gives the slabs that NumPy's slicing gives."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastseq as fs
from fastseq.data.chunk_reader import Reader
from fastseq.data.hdf5 import LazyDataset
from fastseq.data.source_kinds import open_source
from fastseq.data.sources import Box, StridedSource, TensorSource

T, N, F = 17, 9, 3


def read(source, t0, t1, n0, n1):
    """Read a slab as a pass over the data does."""
    reader = Reader()
    plan = (None, [Box(t0, t1, n0, n1)], (t1 - t0, n1 - n0))
    ((_, slabs),) = reader.run([source], [plan])
    return slabs[0].data


A = np.random.default_rng(0).standard_normal((T, N, F)) * 100


def make(kind: str, dtype: np.dtype, folder: Path):
    a = A.astype(dtype)
    if kind == "array":
        return a, a
    if kind == "read-only":
        b = a.copy()
        b.flags.writeable = False
        return b, a
    if kind == "reversed":
        return a[::-1, :, ::-1], a[::-1, :, ::-1]
    if kind == "transposed":
        b = np.ascontiguousarray(a.transpose(1, 0, 2)).transpose(1, 0, 2)
        return b, a
    if kind in ("npy", "sliced npy", "strided npy"):
        np.save(folder / "a.npy", a)
        mapped = np.load(folder / "a.npy", mmap_mode="r")
        cut = {"npy": np.s_[:], "sliced npy": np.s_[2:, 1:8], "strided npy": np.s_[::2, :, ::2]}[
            kind
        ]
        return mapped[cut], a[cut]
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        file["pad"] = np.ones(3, np.int8)  # an odd offset for what follows
        options = {"chunks": (4, 4, 2), "compression": "gzip"} if "chunked" in kind else {}
        file.create_dataset("g/a", data=a, **options)
    if kind.startswith("open"):
        return h5py.File(path, "r")["g/a"], a
    mapped = fs.h5mmap(path, "g/a")
    return (mapped[3:, 2:], a[3:, 2:]) if "sliced" in kind else (mapped, a)


KINDS = [
    "array", "read-only", "reversed", "transposed", "npy", "sliced npy", "strided npy", "h5",
    "sliced h5", "chunked h5", "sliced chunked h5", "open h5", "open chunked h5",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", "f8", "i2", "u2", "u4", "u1", "?", "i8"])
def test_slabs(kind, dtype, tmp_path):
    array, expected = make(kind, np.dtype(dtype), tmp_path)
    source = open_source(array, "x", torch.float32)
    assert source.shape == expected.shape
    for t0, t1, n0, n1 in [(0, T, 0, N), (1, 5, 2, 3), (3, 4, 0, N), (5, 9, 1, 7), (2, 2, 0, 1)]:
        t1, n1 = min(t1, source.shape[0]), min(n1, source.shape[1])
        slab = read(source, t0, t1, n0, n1)
        want = expected[t0:t1, n0:n1].astype(np.float32)
        assert slab.dtype == torch.float32
        assert slab.is_contiguous()
        np.testing.assert_array_equal(slab.numpy(), want)
    if hasattr(array, "file"):
        array.file.close()


def test_what_lies_in_a_file_in_one_piece_is_read_by_pread(tmp_path):
    for kind in ("npy", "sliced npy", "h5", "sliced h5", "open h5"):
        array, _ = make(kind, np.dtype("f4"), tmp_path)
        assert isinstance(open_source(array, "x", torch.float32), StridedSource), kind
        if hasattr(array, "file"):
            array.file.close()
    strided, _ = make("strided npy", np.dtype("f4"), tmp_path)
    assert not isinstance(open_source(strided, "x", torch.float32), StridedSource)
    private = np.load(tmp_path / "a.npy", mmap_mode="c")
    private[:] = 7  # seen by this process only
    source = open_source(private, "x", torch.float32)
    assert float(read(source, 0, 1, 0, 1).mean()) == 7


@given(st.data())
def test_any_slab_of_any_view_of_a_file(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "view"
    folder.mkdir(exist_ok=True)
    if not (folder / "a.npy").exists():
        np.save(folder / "a.npy", A)

    def cut(length):
        begin = data.draw(st.integers(0, length))
        return begin, data.draw(st.integers(begin, length))

    view = np.load(folder / "a.npy", mmap_mode="r")
    expected = A
    (a, b), (c, d) = cut(T), cut(N)
    view, expected = view[a:b, c:d], expected[a:b, c:d]
    (t0, t1), (n0, n1) = cut(b - a), cut(d - c)
    slab = read(open_source(view, "x", torch.float64), t0, t1, n0, n1)
    np.testing.assert_array_equal(slab.numpy(), expected[t0:t1, n0:n1])


def test_tensors_and_integers():
    t = torch.arange(24).reshape(4, 3, 2)
    assert open_source(t, "x", torch.float32).read(0, 2, 1, 3).dtype == torch.float32
    labels = open_source(t.to(torch.int16), "y", torch.float32, keep_integers=True)
    assert read(labels, 0, 4, 0, 3).dtype == torch.int64
    half = open_source(torch.ones(4, 3, 2, dtype=torch.bfloat16), "x", torch.float32)
    assert read(half, 0, 1, 0, 1).dtype == torch.float32
    assert isinstance(open_source(t.numpy(), "x", torch.float32), TensorSource)
    nested = open_source([[[1.0, 2.0]]], "x", torch.float64)
    assert read(nested, 0, 1, 0, 1).tolist() == [[[1, 2]]]


def test_objects_may_have_a_dtype_of_torch():
    class Sliced:
        def __init__(self, data):
            self.data, self.shape, self.dtype = data, data.shape, data.dtype

        def __getitem__(self, index):
            return self.data[index]

    t = torch.arange(24).reshape(4, 3, 2)
    for stored, kept in ((t.double(), torch.float32), (t, torch.int64), (t % 2 > 0, torch.int64)):
        source = open_source(Sliced(stored), "x", torch.float32, keep_integers=True)
        slab = read(source, 0, 4, 0, 3)
        assert slab.dtype == kept
        assert torch.equal(slab, stored.to(kept))
    with pytest.raises(TypeError, match=r"x must hold floats.*complex64"):
        open_source(Sliced(t * 1j), "x", torch.float32)


def test_a_file_cut_short_is_an_error_with_its_name(tmp_path):
    np.save(tmp_path / "a.npy", A)
    source = open_source(np.load(tmp_path / "a.npy", mmap_mode="r"), "x", torch.float32)
    os.truncate(tmp_path / "a.npy", 2000)
    read(source, 0, 1, 0, 4)
    with pytest.raises(fs.ReadError, match=r"a\.npy ends at byte 2000"):
        read(source, 10, 12, 0, N)


def test_lazy_datasets_slice_lazily_and_pickle(tmp_path):
    lazy, expected = make("chunked h5", np.dtype("f4"), tmp_path)
    assert isinstance(lazy, LazyDataset)
    view = lazy[2:][1:9, 3:]
    assert isinstance(view, LazyDataset)
    np.testing.assert_array_equal(np.asarray(view), expected[3:11, 3:])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(view)), expected[3:11, 3:])  # noqa: S301
    np.testing.assert_array_equal(lazy[5], expected[5])
    np.testing.assert_array_equal(lazy[::2, -1], expected[::2, -1])
    assert (len(lazy), lazy.ndim) == (T, 3)
    assert "chunked" not in repr(lazy)
    assert "g/a" in repr(lazy)
    with pytest.raises(ValueError, match="copy=False is impossible"):
        lazy.__array__(copy=False)


def test_maps_pickle_and_are_read_only(tmp_path):
    mapped, expected = make("h5", np.dtype("f4"), tmp_path)
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mapped)), expected)  # noqa: S301


def test_training_from_a_file_equals_training_from_memory(tmp_path):
    from models import adamw, assert_same_parameters, chain
    from torch.nn.functional import mse_loss

    model_a, model_b = chain(), chain()
    fs.vec2net(model_b, fs.net2vec(model_a).detach())
    y = A.mean(2, keepdims=True)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["x"] = A
        file.create_dataset("y", data=y, chunks=(4, 4, 1))
    spec = fs.Spec(2, 4, 5)
    loss = fs.seqloss(mse_loss)
    fs.Estimator(model_a, loss, adamw, spec, progress=False).fit(A, y)
    path = tmp_path / "d.h5"
    est = fs.Estimator(model_b, loss, adamw, spec, progress=False)
    est.fit(fs.h5mmap(path, "x"), fs.h5mmap(path, "y"))
    assert_same_parameters(model_b, model_a, rtol=0)
    np.testing.assert_array_equal(est.predict(fs.h5mmap(path, "x")), est.predict(A))


def test_small_chunks_of_tensors_are_new_memory_each_time():
    """Several are copied at once: what happens to one must not show in another, or come twice."""
    values = torch.arange(40.0 * 6).reshape(40, 6, 1)
    kept = values.clone()
    source = open_source(values, "x", torch.float32)
    boxes = [(t, min(t + 7, 40), n, n + 3) for n in (0, 3) for t in range(0, 40, 7)]
    boxes += [
        (0, 7, 0, 3),
        (7, 14, 0, 3),
        (7, 14, 0, 3),
        (0, 7, 3, 6),
        (14, 21, 3, 6),
        (7, 8, 0, 3),
    ]
    for t0, t1, n0, n1 in boxes * 2:
        slab = read(source, t0, t1, n0, n1)
        assert slab.is_contiguous()
        assert torch.equal(slab, kept[t0:t1, n0:n1])
        slab.fill_(-1)
    assert torch.equal(values, kept)


def test_a_chunk_may_change_between_forward_and_backward_of_another():
    """As a mask is written into weights by the reader, while another chunk is trained on."""
    source = open_source(torch.ones(20, 3, 1), "w", torch.float32)
    first, second = read(source, 0, 10, 0, 3), read(source, 10, 20, 0, 3)
    weight = torch.ones(1, requires_grad=True)
    loss = (weight * first).sum()
    second.fill_(0)
    loss.backward()
    assert weight.grad == 30
