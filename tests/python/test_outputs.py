from __future__ import annotations

import os
import resource
import sys

import h5py
import numpy as np
import pytest
import torch
from models import TwoInputs, adamw, chain
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs

T, N = 23, 11
X = torch.randn(T, N, 3, generator=torch.Generator().manual_seed(2))
LENGTHS = np.array([23, 5, 0, 12, 5, 1, 23, 10, 9, 11, 4])


def estimator(model, batchsize=4, seqsize=5):
    spec = fs.Spec(epochs=1, batchsize=batchsize, seqsize=seqsize)
    return fs.Estimator(model, fs.seqloss(mse_loss), adamw, spec, progress=False)


def dataset(path, dtype=np.float32, shape=(T, N, 1), **options):
    """Make a dataset, of which nothing is written yet."""
    with h5py.File(path, "w") as file:
        file.create_dataset("group/y", shape, dtype, fillvalue=7, **options)
    return path


LAYOUTS = {
    "contiguous": {},
    "big-endian": {"dtype": ">f8"},
    "chunked": {"chunks": (4, 3, 1)},
    "gzip": {"chunks": (5, 11, 1), "compression": "gzip"},
    "gzip, chunks as predicted": {"chunks": (5, 4, 1), "compression": "gzip", "shuffle": True},
    "gzip, others": {"chunks": (5, 3, 1), "compression": "gzip", "fletcher32": True},
    "resizable": {"maxshape": (None, N, 1)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("opened", ["h5py", "h5mmap", "written"])
def test_hdf5(tmp_path, monkeypatch, layout, opened):
    monkeypatch.setattr("fastseq.data.hdf5.chunk_writing.LEAST_BYTES", 0)
    path = dataset(tmp_path / "out.h5", **LAYOUTS[layout])
    model = chain()
    expected = estimator(model).predict(X)
    if opened == "h5mmap":
        out = fs.h5mmap(path, "group/y", mode="r+")
        assert estimator(model).predict(X, out=out) is out
        np.testing.assert_array_equal(np.asarray(out), expected)
    else:
        with h5py.File(path, "r+") as file:
            out = file["group/y"]
            if opened == "written":
                out[...] = -1
            assert estimator(model).predict(X, out=out) is out
            np.testing.assert_array_equal(out[...], expected)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["group/y"][...], expected)


def test_chunks_as_predicted_are_compressed_in_threads(tmp_path, monkeypatch):
    """Also in a part of a dataset, opened by `h5mmap`."""
    monkeypatch.setattr("fastseq.data.hdf5.chunk_writing.LEAST_BYTES", 0)
    by_hdf5 = "fastseq.data.hdf5.chunk_writing.ChunkWriter._write_by_hdf5"
    model = chain()
    expected = estimator(model).predict(X)
    layout = {"chunks": (5, 4, 1), "compression": "gzip", "shape": (T + 5, N + 4, 1)}
    path = dataset(tmp_path / "out.h5", **layout)
    with monkeypatch.context() as patch:
        patch.setattr(by_hdf5, None)
        out = fs.h5mmap(path, "group/y", mode="r+")[5:, 4:]
        assert estimator(model).predict(X, out=out) is out
    with h5py.File(path) as file:
        y = file["group/y"]
        np.testing.assert_array_equal(y[5:, 4:], expected)
        assert (y[:5] == 7).all()
        assert (y[:, :4] == 7).all()


def test_a_part_of_a_memory_map(tmp_path):
    model = chain()
    expected = estimator(model).predict(X)
    whole = np.memmap(tmp_path / "whole", np.float64, "w+", 24, (T + 4, N + 3, 1))
    whole[...] = -1
    out = whole[3:-1, 1:-2]
    assert estimator(model).predict(X, out=out) is out
    wanted = np.full(whole.shape, -1.0)
    wanted[3:-1, 1:-2] = expected
    np.testing.assert_array_equal(whole, wanted)
    stored = np.fromfile(tmp_path / "whole", np.float64, offset=24).reshape(whole.shape)
    np.testing.assert_array_equal(stored, wanted)


def test_a_memory_map_in_another_order(tmp_path):
    model = chain()
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(N, T, 1)).transpose(1, 0, 2)
    expected = estimator(model).predict(X)
    np.testing.assert_array_equal(estimator(model).predict(X, out=out), expected)


class Recorder:
    """Takes slices, and remembers which."""

    def __init__(self, shape, fails_at=None):
        self.shape, self.dtype, self.fails_at = shape, np.float32, fails_at
        self.array, self.boxes = np.full(shape, np.nan, np.float32), []

    def __setitem__(self, box, values):
        if len(self.boxes) == self.fails_at:
            raise OSError(28, "No space left on device")
        self.boxes.append(box)
        self.array[box] = values


def test_is_written_chunk_by_chunk_in_order():
    model = chain()
    out = Recorder((T, N, 1))
    estimator(model, 4, 10).predict(X, out=out)
    np.testing.assert_array_equal(out.array, estimator(model, 4, 10).predict(X))
    times = [(0, 10), (10, 20), (20, 23)]
    boxes = [(slice(*t), slice(n, min(n + 4, N))) for n in (0, 4, 8) for t in times]
    assert out.boxes == boxes


def test_a_failure_to_write_says_where():
    message = (
        r"out\['level'\] could not be written at steps 10 to 20, sequences 0 to 4: .*No space left "
        r".*out\['level'\] is incomplete"
    )
    out = {"level": Recorder((T, N, 1), 1), "hidden": Recorder((T, N, 4))}
    with pytest.raises(OSError, match=message) as failure:
        estimator(TwoInputs(), 4, 10).predict((X, X[..., :2]), out=out)
    assert failure.value.errno == 28
    assert len(out["level"].boxes) == 1


def test_a_full_disk_is_an_error(tmp_path):
    """A limit of the file's size stands for a full disk; under a map it would be a signal."""
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(T, N, 1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written at steps 15 to 20, sequences 0"):
            estimator(chain()).predict(X, out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_files_are_closed(tmp_path):
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(T, N, 1))
    model = chain()
    estimator(model).predict(X, out=out)
    before = os.listdir("/proc/self/fd")
    estimator(model).predict(X, out=out)
    with pytest.raises(RuntimeError):
        estimator(fs.nn.Chain(nn.Identity(), *chain(features=4))).predict(X, out=out)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_lengths_fill_all_with_nan_past_the_end(tmp_path):
    model = chain()
    path = dataset(tmp_path / "out.h5", chunks=(4, 3, 1))
    out = fs.h5mmap(path, "group/y", mode="r+")
    expected = estimator(model, 2, 5).predict(X, lengths=LENGTHS)
    estimator(model, 2, 5).predict(X, lengths=LENGTHS, out=out)
    np.testing.assert_array_equal(np.asarray(out), expected)
    assert np.isnan(expected[:, 2]).all()


@pytest.mark.parametrize("kind", ["arrays", "tensors", "maps", "hdf5"])
def test_lists(tmp_path, kind):
    x = [X[:length, n] for n, length in enumerate(LENGTHS)]
    model = chain()
    expected = estimator(model).predict(x)
    shapes = [(length, 1) for length in LENGTHS]
    file = h5py.File(tmp_path / "out.h5", "w")
    if kind == "arrays":
        out = [np.full(shape, -1.0) for shape in shapes]
    elif kind == "tensors":
        out = [torch.full(tuple(map(int, shape)), -1.0) for shape in shapes]
    elif kind == "maps":
        # An empty file cannot be mapped.
        out = [
            np.memmap(tmp_path / str(n), np.float32, "w+", shape=shape) if shape[0] else expected[n]
            for n, shape in enumerate(shapes)
        ]
    else:
        out = [file.create_dataset(str(n), shape, np.float32) for n, shape in enumerate(shapes)]
    assert estimator(model, 3, 4).predict(x, out=out) is out
    for got, wanted in zip(out, expected, strict=True):
        np.testing.assert_allclose(np.asarray(got), wanted, rtol=1e-5, atol=1e-6)
    file.close()


def test_lists_in_dicts():
    x = [X[:length, n] for n, length in enumerate(LENGTHS)]
    x = x, [a[:, :2] for a in x]
    model = TwoInputs()
    expected = estimator(model).predict(x)
    assert [a.shape for a in expected["hidden"]] == [(length, 4) for length in LENGTHS]
    out = {name: [np.empty_like(a) for a in arrays] for name, arrays in expected.items()}
    assert estimator(model, 5, 2).predict(x, out=out) is out
    for name, arrays in expected.items():
        for got, wanted in zip(out[name], arrays, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def make_groups(path, **groups):
    """Make groups of datasets, one for each sequence: of the names given, and widths."""
    file = h5py.File(path, "w")
    for name, (keys, width) in groups.items():
        for n, key in enumerate(keys):
            file.create_dataset(f"{name}/{key}", (LENGTHS[n], width), np.float32)
            if name == "x":
                file[f"x/{key}"][:] = X[: LENGTHS[n], n]
    return file


NAMES = [f"day{n}" for n in range(N)]  # day10 comes last


@pytest.mark.parametrize("from_group", [False, True])
def test_groups(from_group, tmp_path):
    x = [X[:length, n] for n, length in enumerate(LENGTHS)]
    model = chain()
    expected = estimator(model).predict(x)
    with make_groups(tmp_path / "a.h5", x=(NAMES, 3), out=(NAMES, 1)) as file:
        out = file["out"]
        assert estimator(model, 3, 4).predict(file["x"] if from_group else x, out=out) is out
        for key, wanted in zip(NAMES, expected, strict=True):
            np.testing.assert_allclose(out[key][()], wanted, rtol=1e-5, atol=1e-6)


def test_groups_that_do_not_fit(tmp_path):
    est = estimator(chain())
    others = [*NAMES[:-1], "day11"]
    with make_groups(
        tmp_path / "a.h5", x=(NAMES, 3), others=(others, 1), fewer=(NAMES[1:], 1), wide=(NAMES, 2)
    ) as file:
        x = file["x"]
        with pytest.raises(ValueError, match=r"out .* same names as in x; .* has day10, day11"):
            est.predict(x, out=file["others"])
        with pytest.raises(ValueError, match=r"out .* same names as in x; .* has day0"):
            est.predict(x, out=file["fewer"])
        with pytest.raises(ValueError, match=r"out\[\d+\] must have the shape \(\d+, 1\), got"):
            est.predict(x, out=file["wide"])
        with pytest.raises(ValueError, match=r"out must have the shape \(23, 11, 1\), got Group"):
            est.predict(X, out=file["wide"])
        with pytest.raises(ValueError, match="or a group of as many datasets, got 10"):
            est.predict([a[:] for a in X.unbind(1)], out=file["fewer"])
        closed = file["wide"]
    with pytest.raises(ValueError, match="group of a file that has been closed"):
        est.predict([a[:] for a in X.unbind(1)], out=closed)


def test_lists_that_do_not_fit():
    x = [X[:length, n] for n, length in enumerate(LENGTHS)]
    good = [np.empty((length, 1), np.float32) for length in LENGTHS]
    est = estimator(chain())
    with pytest.raises(ValueError, match=r"out must be a list of 11 arrays, one for each.* got 10"):
        est.predict(x, out=good[1:])
    with pytest.raises(ValueError, match=r"out must be a list of 11 arrays, .* got ndarray"):
        est.predict(x, out=np.empty((T, N, 1)))
    with pytest.raises(ValueError, match=r"out\[5\] must have the shape \(1, 1\), got \(5, 1\)"):
        est.predict(x, out=[*good[:5], good[1], *good[6:]])
    with pytest.raises(TypeError, match=r"out\[3\] must hold torch.float32, got int64"):
        est.predict(x, out=[*good[:3], good[3].astype(int), *good[4:]])


def test_checks_come_before_any_work(tmp_path):
    class Untouched(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            assert x.shape[1] < 4, "this is a block, not a probe"
            return x[..., :1]

    est = estimator(Untouched())
    path = dataset(tmp_path / "out.h5", chunks=True)
    whole = dataset(tmp_path / "whole.h5")
    with h5py.File(whole, "r+") as file:
        file["group/y"][...] = 0
    with pytest.raises(ValueError, match="out is read-only"):
        est.predict(X, out=fs.h5mmap(path, "group/y"))
    with pytest.raises(ValueError, match="out is read-only"):
        est.predict(X, out=fs.h5mmap(whole, "group/y"))
    with h5py.File(path) as file:
        with pytest.raises(ValueError, match="out is read-only"):
            est.predict(X, out=file["group/y"])
        with pytest.raises(OSError, match="has it open for reading"):
            est.predict(X, out=fs.h5mmap(path, "group/y", mode="r+"))
        out = file["group/y"]
    with pytest.raises(ValueError, match="out is a dataset of a file that has been closed"):
        est.predict(X, out=out)
    for dtype in (np.float16, np.int32, object, "S8", np.complex64):
        with pytest.raises(TypeError, match=r"out must hold torch.float32, got "):
            est.predict(X, out=np.empty((T, N, 1), dtype))
    with (
        h5py.File(dataset(tmp_path / "half.h5", np.float16), "r+") as file,
        pytest.raises(TypeError, match=r"out must hold torch.float32, got float16"),
    ):
        est.predict(X, out=file["group/y"])
    with pytest.raises(ValueError, match="output: out; got nothing"):
        est.predict(X, out=())


def test_a_failure_of_the_model_says_that_out_is_incomplete():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            if torch.equal(x, X[:5, 8:]):
                raise KeyError("in the last block")
            return x

    out = np.full((T, N, 3), np.nan, np.float32)
    with pytest.raises(KeyError, match="in the last block") as failure:
        estimator(Fails()).predict(X, out=out)
    np.testing.assert_array_equal(out[:, :8], X[:, :8].numpy())
    assert np.isnan(out[:, 8:]).all()
    if sys.version_info >= (3, 11):
        assert failure.value.__notes__ == ["predict stopped in the middle: out is incomplete"]
