"""HDF5 datasets read and written by slices: as NumPy does it, in any process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastseq as fs
from fastseq.data.hdf5 import LazyDataset

SHAPE = 12, 7, 3
A = np.arange(np.prod(SHAPE), dtype="f4").reshape(SHAPE)


def write(path, array=A, name="x", **options):
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=array, **{"chunks": True, **options})
    return path


def stored(path, name="x"):
    with h5py.File(path) as file:
        return file[name][:]


def bitfield(path, array):
    """As Julia stores Bool."""
    with h5py.File(path, "w") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((3,) * array.ndim)
        space = h5py.h5s.create_simple(array.shape)
        dataset = h5py.h5d.create(file.id, b"x", h5py.h5t.STD_B8LE, space, plan)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array.astype(np.uint8), mtype=h5py.h5t.NATIVE_B8)
    return path


def indices(shape):
    def of(n):
        bounds = st.one_of(st.none(), st.integers(-n - 2, n + 2))
        slices = st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 1, 2, 5, -1, -3]))
        return st.one_of(slices, slices, st.integers(-n, n - 1))

    full = st.tuples(*map(of, shape))
    return st.one_of(full, full.map(lambda i: i[:2]), full.map(lambda i: (..., *i[1:])))


@given(st.data())
def test_any_index_gives_what_numpy_gives(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "lazy.h5"
    if not path.exists():
        write(path, chunks=(5, 3, 2), compression="gzip")
    lazy, expected = fs.h5mmap(path, "x"), A
    for _ in range(2):
        index = data.draw(indices(expected.shape))
        lazy, expected = lazy[index], expected[index]
        assert lazy.shape == expected.shape
        np.testing.assert_array_equal(np.asarray(lazy), expected)
        if not isinstance(lazy, LazyDataset) or 0 in lazy.shape:
            break


def test_slices_read_nothing_and_the_rest_no_more_than_it_needs(tmp_path, monkeypatch):
    lazy = fs.h5mmap(write(tmp_path / "a.h5"), "x")
    read = []
    into = LazyDataset.read_into

    def remember(self, out):
        read.append(self.selection())
        into(self, out)

    monkeypatch.setattr(LazyDataset, "read_into", remember)
    view = lazy[2:, 1:][..., :2]
    assert isinstance(view, LazyDataset)
    assert read == []
    np.testing.assert_array_equal(view[3], A[5, 1:, :2])
    np.testing.assert_array_equal(view[8:2:-2, 0], A[10:4:-2, 1, :2])
    np.testing.assert_array_equal(view[:, [4, 0]], A[2:, [5, 1], :2])
    np.testing.assert_array_equal(view[1, None], A[3, None, 1:, :2])
    assert read[:2] == [
        (slice(5, 6), slice(1, 7), slice(0, 2)),
        (slice(6, 11), slice(1, 2), slice(0, 2)),
    ]
    mask = A[:, :, 0] % 2 == 0
    np.testing.assert_array_equal(lazy[mask], A[mask])


def test_wrong_indices(tmp_path):
    lazy = fs.h5mmap(write(tmp_path / "a.h5"), "x")
    with pytest.raises(IndexError, match="too many indices"):
        lazy[0, 0, 0, 0]
    with pytest.raises(IndexError, match="index 12 is out of bounds in axis 0"):
        lazy[12]
    with pytest.raises(TypeError):
        lazy["a"]
    with pytest.raises(TypeError):
        lazy[0.5]


def test_scalars_and_strings_can_be_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["text"] = ["some", "words"]
        file["empty"] = np.empty((0, 3), "f4")
    words = fs.h5mmap(tmp_path / "a.h5", "text")
    assert isinstance(words, LazyDataset)
    assert list(np.asarray(words)) == [b"some", b"words"]
    assert np.asarray(fs.h5mmap(tmp_path / "a.h5", "empty")).shape == (0, 3)


@given(st.data())
def test_assigning_slices_equals_numpy(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "written.h5"
    array = A.copy()
    write(path, chunks=(5, 3, 2), compression="gzip")
    lazy = fs.h5mmap(path, "x", mode="r+")[1:, :6]
    expected = array[1:, :6]
    for value in (-1, -2):
        pieces = [
            data.draw(st.one_of(st.integers(-n, n - 1), st.slices(n))) for n in expected.shape
        ]
        index = tuple(slice(p.start, p.stop) if isinstance(p, slice) else p for p in pieces)
        index = index[: data.draw(st.integers(1, 3))]
        values = np.full(expected[index].shape, value, data.draw(st.sampled_from(["f4", "i8"])))
        values = np.cumsum(values).reshape(values.shape) if values.size else values
        lazy[index] = values
        expected[index] = values
        np.testing.assert_array_equal(np.asarray(lazy), expected)
    np.testing.assert_array_equal(stored(path), array)


def test_values_broadcast_and_must_fit(tmp_path):
    lazy = fs.h5mmap(write(tmp_path / "a.h5"), "x", mode="r+")
    lazy[2:4] = 5
    lazy[5, :, 1:] = [7, 8]
    array = A.copy()
    array[2:4] = 5
    array[5, :, 1:] = [7, 8]
    np.testing.assert_array_equal(stored(tmp_path / "a.h5"), array)
    with pytest.raises(ValueError, match="broadcast"):
        lazy[0:2] = np.ones((3, 7, 3))
    with pytest.raises(IndexError, match="integers and slices of step 1"):
        lazy[::2] = 0


def test_what_is_mapped_for_reading_is_not_written(tmp_path):
    lazy = fs.h5mmap(write(tmp_path / "a.h5"), "x")
    with pytest.raises(ValueError, match=r'mapped for reading.*mode="r\+"'):
        lazy[0] = 0
    np.testing.assert_array_equal(stored(tmp_path / "a.h5"), A)


def test_reading_goes_on_while_the_same_file_is_written(tmp_path):
    path = write(tmp_path / "a.h5", compression="gzip")
    with h5py.File(path, "r+") as file:
        file.create_dataset("out", SHAPE, "f8", chunks=(2, 7, 3))
    x = fs.h5mmap(path, "x")
    np.testing.assert_array_equal(x[3], A[3])  # opens the file
    out = fs.h5mmap(path, "out", mode="r+")
    wrong = []

    def read():
        wrong.extend(t for t in list(range(12)) * 20 if not np.array_equal(x[t], A[t]))

    reader = threading.Thread(target=read)
    reader.start()
    for t in range(12):
        out[t] = A[t] * 2
    reader.join()
    assert wrong == []
    np.testing.assert_array_equal(np.asarray(out), A * 2)
    np.testing.assert_array_equal(stored(path, "out"), A * 2)


def test_bitfields_are_bool(tmp_path):
    array = A % 3 == 0
    lazy = fs.h5mmap(bitfield(tmp_path / "a.h5", array), "x", mode="r+")
    assert lazy.dtype == bool
    np.testing.assert_array_equal(np.asarray(lazy), array)
    lazy[2:4] = ~array[2:4]
    array[2:4] = ~array[2:4]
    np.testing.assert_array_equal(np.asarray(lazy), array)
    np.testing.assert_array_equal(stored(tmp_path / "a.h5"), array.astype(np.uint8))


def test_what_is_pickled_is_small_and_opens_anew(tmp_path):
    lazy = fs.h5mmap(write(tmp_path / "a.h5"), "x")
    np.testing.assert_array_equal(lazy[2], A[2])
    kept = pickle.dumps(lazy[3:])
    assert len(kept) < 1000
    np.testing.assert_array_equal(pickle.loads(kept)[0], A[3])  # noqa: S301


def _sum(lazy):
    return float(np.asarray(lazy).sum())


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_other_processes_read_what_this_one_has_open(tmp_path, method):
    lazy = fs.h5mmap(write(tmp_path / "a.h5", compression="gzip"), "x")
    expected = _sum(lazy)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_sum, [lazy] * 4) == [expected] * 4
    assert _sum(lazy) == expected


def test_a_child_reads_through_a_handle_of_its_own_and_leaves_its_parents(tmp_path):
    path = write(tmp_path / "a.h5")
    lazy = fs.h5mmap(path, "x", mode="r+")
    lazy[0] = -1
    files = lazy._file
    child = os.fork()
    if child == 0:
        try:
            same = float(lazy[0].sum()) == -21 and lazy[1:]._file is not files
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lazy[1] = -2
    assert stored(path)[:2].sum() == -63


def test_a_fork_while_another_thread_reads_does_not_hang(tmp_path):
    noise = np.random.default_rng(0).standard_normal((400, 500, 3))
    lazy = fs.h5mmap(write(tmp_path / "a.h5", noise, compression="gzip"), "x")
    reader = threading.Thread(target=lambda: [lazy[t : t + 50][::2] for t in range(0, 400, 50)])
    reader.start()
    children = []
    for _ in range(5):
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if np.array_equal(lazy[7], noise[7]) else 1)
            finally:
                os._exit(2)
        children.append(child)
    reader.join()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * 5


def test_datasets_that_grow_read_as_they_were_and_shrunk_ones_are_errors(tmp_path):
    path = write(tmp_path / "a.h5", maxshape=(None, 7, 3))
    lazy = fs.h5mmap(path, "x")
    with h5py.File(path, "r+") as file:
        file["x"].resize(20, 0)
        file["x"][12:] = 9
    np.testing.assert_array_equal(np.asarray(lazy), A)
    del lazy
    lazy = fs.h5mmap(path, "x")
    with h5py.File(path, "r+") as file:
        file["x"].resize(5, 0)
    np.testing.assert_array_equal(lazy[:5], A[:5])
    with pytest.raises(ValueError, match=r"a\.h5: 'x' has changed .* shape \(5, 7, 3\).* map it"):
        np.asarray(lazy)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = A.astype("f8")


def test_a_file_that_takes_the_name_of_an_open_one(tmp_path):
    path = write(tmp_path / "a.h5")
    old, unread = fs.h5mmap(path, "x"), pickle.dumps(fs.h5mmap(path, "x"))
    np.testing.assert_array_equal(old[2], A[2])
    os.replace(write(tmp_path / "b.h5", A.astype("f8") + 1), path)
    new = fs.h5mmap(path, "x")
    np.testing.assert_array_equal(new, A + 1)
    np.testing.assert_array_equal(old, A)
    with pytest.raises(ValueError, match="dtype float64 now"):
        np.asarray(pickle.loads(unread))  # noqa: S301


def test_views_share_one_handle(tmp_path, monkeypatch):
    lazy = fs.h5mmap(write(tmp_path / "a.h5"), "x")
    opened = []

    class File(h5py.File):
        def __init__(self, path, mode):
            opened.append(path)
            super().__init__(path, mode)

    monkeypatch.setattr(h5py, "File", File)
    for t in range(3):
        np.testing.assert_array_equal(lazy[t:][0], A[t])
    assert len(opened) == 1


def test_files_that_vanish_or_change_before_they_are_read(tmp_path):
    path = write(tmp_path / "a.h5")
    lazy = fs.h5mmap(path, "x")
    path.rename(tmp_path / "b.h5")
    with pytest.raises(FileNotFoundError, match=r"a\.h5"):
        np.asarray(lazy)
    path.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"a\.h5 cannot be read as HDF5"):
        np.asarray(lazy)
    write(path, name="other")
    with pytest.raises(ValueError, match=r"'x' is not there.*other \(12, 7, 3\)"):
        np.asarray(lazy)
