"""Compressed chunks read in training's order: right, once per block, ahead, within bounds."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import threading
import time
import weakref
from collections import Counter

import h5_filter
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

import fastseq as fs
from fastseq._util import threads
from fastseq.data.hdf5 import LazyDataset
from fastseq.data.hdf5.commands import check_file
from fastseq.data.hdf5.stored_rows import StoredRows
from fastseq.data.hdf5.stored_windows import WindowReader
from fastseq.data.spare_cores import SpareCores

T, N, F = 60, 12, 2
A = np.arange(T * N * F, dtype="f8").reshape(T, N, F)


@pytest.fixture(autouse=True)
def _threads_end(monkeypatch):
    monkeypatch.setattr(SpareCores, "some", lambda self: True)  # else nothing is read ahead
    yield
    assert not threads.waited_for


def write(path, array=A, name="x", **options):
    options = {"chunks": (10, 5, 2), "compression": h5_filter.NUMBER, **options}
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=array, **options)
    h5_filter.decoded.clear()
    return path


def blocks(steps, count, batchsize):
    return [(0, steps, n, min(n + batchsize, count)) for n in range(0, count, batchsize)]


def boxes(block, seqsize):
    t0, t1, n0, n1 = block
    return [(t, min(t + seqsize, t1), n0, n1) for t in range(t0, t1, seqsize)]


def firsts(array, chunks, block):
    """Return the first elements of the chunks that a block of an array touches."""
    t0, t1, n0, n1 = block
    starts = [range(0, n, c) for n, c in zip(array.shape, chunks, strict=True)]
    return [
        float(array[t, n, f])
        for t, n, f in itertools.product(*starts)
        if t < t1 and t + chunks[0] > t0 and n < n1 and n + chunks[1] > n0
    ]


@pytest.mark.filterwarnings("ignore:.*compressed chunks hold")
@given(st.data())
def test_every_box_is_right_and_every_chunk_decoded_once_per_block(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("windows") / "a.h5"
    shape = tuple(data.draw(st.integers(1, most), label="size") for most in (40, 9, 4))
    chunks = tuple(data.draw(st.integers(1, n), label="chunk") for n in shape)
    array = np.arange(np.prod(shape), dtype="f8").reshape(shape)
    write(path, array, chunks=chunks)
    shift = tuple(data.draw(st.integers(0, n - 1), label="view") for n in shape[:2])
    view, expected = fs.h5mmap(path, "x")[shift[0] :, shift[1] :], array[shift[0] :, shift[1] :]
    batchsize = data.draw(st.integers(1, len(expected[0])), label="batchsize")
    seqsize = data.draw(st.integers(1, len(expected)), label="seqsize")
    order = data.draw(st.permutations(blocks(*expected.shape[:2], batchsize)), label="order")
    row_bytes = batchsize * shape[2] * 8 * chunks[0]
    reader = WindowReader(view, data.draw(st.integers(1, 6)) * row_bytes)
    if data.draw(st.booleans(), label="expected"):
        reader.expect(order)
    try:
        for block in order:
            for t0, t1, n0, n1 in boxes(block, seqsize):
                read = reader.read(t0, t1, n0, n1)
                np.testing.assert_array_equal(read, expected[t0:t1, n0:n1])
                assert read.dtype == array.dtype
    finally:
        reader.close()
    by_t, by_n = shift
    stored = [(a + by_t, b + by_t, c + by_n, d + by_n) for a, b, c, d in order]
    wanted = Counter(first for block in stored for first in firsts(array, chunks, block))
    assert Counter(h5_filter.decoded) == wanted


@pytest.mark.filterwarnings("ignore:.*compressed chunks")
@settings(max_examples=30)
@given(st.data())
def test_any_boxes_in_any_order(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.h5"
    if not path.exists():
        write(path)
    reader = WindowReader(fs.h5mmap(path, "x")[2:, 1:], 5000)
    reader.expect([(3, 20, 0, 4), (9, 9, 0, 1), (20, 58, 0, 4), (0, 58, 4, 11)])
    seen = A[2:, 1:]
    for _ in range(data.draw(st.integers(1, 8))):
        t0, t1 = sorted(data.draw(st.tuples(st.integers(0, 58), st.integers(0, 58))))
        n0, n1 = sorted(data.draw(st.sampled_from([(0, 4), (4, 11), (0, 11), (3, 3), (2, 9)])))
        np.testing.assert_array_equal(reader.read(t0, t1, n0, n1), seen[t0:t1, n0:n1])
    reader.close()


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("f4", {"compression": "gzip", "shuffle": True}),
        (">i2", {"compression": "gzip", "fletcher32": True}),
        ("?", {"compression": "lzf"}),
        ("f2", {"compression": None}),
        ("u8", {"compression": None, "maxshape": (None, None, None)}),
    ],
)
def test_other_filters_and_dtypes(dtype, options, tmp_path):
    array = (A % 251).astype(dtype)
    path = write(tmp_path / "a.h5", array, chunks=(7, 5, 1), **options)
    reader = WindowReader(fs.h5mmap(path, "x"))
    for block in blocks(T, N, 5):
        for t0, t1, n0, n1 in boxes(block, 9):
            read = reader.read(t0, t1, n0, n1)
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, array[t0:t1, n0:n1])
    reader.close()


def test_two_dimensions_will_do_but_not_one(tmp_path):
    path = write(tmp_path / "a.h5", A[:, :, 0], chunks=(7, 5))
    reader = WindowReader(fs.h5mmap(path, "x"))
    np.testing.assert_array_equal(reader.read(3, 20, 2, 6), A[3:20, 2:6, 0])
    reader.close()
    path = write(tmp_path / "b.h5", A[:, 0, 0], chunks=(7,))
    with pytest.raises(ValueError, match="two dimensions"):
        WindowReader(fs.h5mmap(path, "x"))


@pytest.mark.parametrize("gap", [0, 3])
def test_virtual_datasets_are_read_in_their_sources_chunks(tmp_path, gap):
    """Chunks begin where sources do; of a source some steps at its beginning are not used."""
    layout = h5py.VirtualLayout((50, 8, 2), "f8")
    wanted, begin = Counter(), 0
    for part, (steps, length) in enumerate([(23, 10), (27, 7)]):
        stored = np.arange((steps + gap) * 8 * 2.0).reshape(-1, 8, 2) + 10000 * part
        write(tmp_path / f"{part}.h5", stored, chunks=(length, 4, 2))
        source = h5py.VirtualSource(f"{part}.h5", "x", stored.shape)
        layout[begin : begin + steps] = source[gap:]
        for n in (0, 4):
            wanted.update(firsts(stored, (length, 4, 2), (gap, steps + gap, n, n + 4)))
        begin += steps
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    with h5py.File(tmp_path / "all.h5") as file:
        array = file["x"][:]
    h5_filter.decoded.clear()
    reader = WindowReader(fs.h5mmap(tmp_path / "all.h5", "x"), 2 * 11 * 4 * 2 * 8)
    for block in blocks(50, 8, 4):
        for t0, t1, n0, n1 in boxes(block, 6):
            np.testing.assert_array_equal(reader.read(t0, t1, n0, n1), array[t0:t1, n0:n1])
    reader.close()
    assert Counter(h5_filter.decoded) == wanted


def test_sources_whose_names_hold_percent_signs(tmp_path):
    for part in (0, 1):
        with h5py.File(tmp_path / f"{part} %.h5", "w") as file:
            file.create_dataset("x%", data=A + part, chunks=(7, 5, 2), compression="gzip")
    names = [tmp_path / "0 %.h5", tmp_path / "1 %.h5"]
    fs.h5concat(tmp_path / "all.h5", names)
    with h5py.File(tmp_path / "all.h5") as file:
        rows = StoredRows.of(file["x%"])
        assert [rows.boundary(t, 0, N) for t in (1, T + 1)] == [7, T + 7]
    reader = WindowReader(fs.h5mmap(tmp_path / "all.h5", "x%"))
    np.testing.assert_array_equal(reader.read(0, 2 * T, 0, N), np.concatenate([A, A + 1]))
    reader.close()


def grow(path, printf):
    """Make a virtual dataset of which nobody said how many steps it has."""
    unlimited = h5py.h5s.UNLIMITED
    placed = h5py.h5s.create_simple((T, N, F), (unlimited, N, F))
    source = h5py.h5s.create_simple((T, N, F), (unlimited, N, F))
    if printf:  # one file after the other, as many as there are
        placed.select_hyperslab((0, 0, 0), (unlimited, 1, 1), (T, 1, 1), (T, N, F))
    else:  # one file that becomes longer
        for space in (placed, source):
            space.select_hyperslab((0, 0, 0), (1, 1, 1), (1, 1, 1), (unlimited, N, F))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_virtual(placed, b"p%b.h5" if printf else b"p0.h5", b"x", source)
    with h5py.File(path, "w", libver="latest") as file:
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F64LE, placed, properties)


@pytest.mark.parametrize("printf", [True, False])
def test_virtual_datasets_without_an_end(tmp_path, printf, capsys):
    parts = [A, A + 1000, A + 2000] if printf else [A]
    for i, part in enumerate(parts):
        write(tmp_path / f"p{i}.h5", part, maxshape=(None, N, F), compression="gzip")
    grow(tmp_path / "v.h5", printf)
    reader = WindowReader(fs.h5mmap(tmp_path / "v.h5", "x"))
    whole = np.concatenate(parts)
    np.testing.assert_array_equal(reader.read(0, len(whole), 2, 7), whole[:, 2:7])
    reader.close()
    assert check_file(str(tmp_path / "v.h5"))
    assert f"x: {whole.size} values" in capsys.readouterr().out
    os.remove(tmp_path / "p0.h5")
    with pytest.raises(ValueError, match=r"there is no file p0\.h5"):
        fs.h5mmap(tmp_path / "v.h5", "x")


ROW = 5 * F * 8 * 10  # bytes of a row of chunks, of 5 sequences


def test_the_next_window_is_read_ahead_and_no_more(tmp_path):
    reader = WindowReader(fs.h5mmap(write(tmp_path / "a.h5"), "x"), 2 * ROW)
    reader.read(0, 4, 0, 5)
    until(lambda: len(h5_filter.decoded) == 2)
    time.sleep(0.05)
    assert h5_filter.decoded == [A[0, 0, 0], A[10, 0, 0]]
    reader.read(4, 8, 0, 5)
    assert len(h5_filter.decoded) == 2
    reader.read(8, 12, 0, 5)  # of both
    until(lambda: len(h5_filter.decoded) == 3)
    reader.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("expected", [[(0, 10, 0, 5)], [(0, 10, 0, 5), (20, 30, 0, 5)]])
@pytest.mark.parametrize("steps", [5, 10, 12])
def test_reading_goes_on_behind_what_is_expected(tmp_path, expected, steps):
    reader = WindowReader(fs.h5mmap(write(tmp_path / "x.h5"), "x"), 2000)
    reader.expect(expected)
    for t in range(0, 60, steps):
        np.testing.assert_array_equal(reader.read(t, t + steps, 0, 5), A[t : t + steps, :5])
    reader.close()


def test_the_next_block_is_read_ahead_if_it_is_expected(tmp_path):
    reader = WindowReader(fs.h5mmap(write(tmp_path / "a.h5"), "x"), 2 * ROW)
    reader.expect([(0, 10, 5, 10), (20, 25, 0, 5)])
    reader.read(0, 10, 5, 10)
    until(lambda: len(h5_filter.decoded) == 2)
    assert h5_filter.decoded == [A[0, 5, 0], A[20, 0, 0]]
    assert reader.read(20, 25, 0, 5)[0, 0, 0] == A[20, 0, 0]
    time.sleep(0.05)
    assert len(h5_filter.decoded) == 2, "what lies behind the block was read, or read again"
    reader.close()


def test_without_room_for_two_windows_chunks_are_still_decoded_once(tmp_path):
    reader = WindowReader(fs.h5mmap(write(tmp_path / "a.h5"), "x"), ROW)
    reader.expect([(0, 25, 0, 5)])
    for t0, t1, n0, n1 in boxes((0, 25, 0, 5), 4):
        np.testing.assert_array_equal(reader.read(t0, t1, n0, n1), A[t0:t1, n0:n1])
    assert h5_filter.decoded == [A[0, 0, 0], A[10, 0, 0], A[20, 0, 0]]
    reader.close()


def test_windows_keep_to_their_bound(tmp_path):
    reader = WindowReader(fs.h5mmap(write(tmp_path / "a.h5"), "x"), 5 * ROW // 2)
    for t0, t1, n0, n1 in boxes((0, T, 0, 5), 7) + boxes((0, T, 5, 8), 7):
        reader.read(t0, t1, n0, n1)
        held = [window for window in (reader._current, reader._ahead) if window is not None]
        assert sum(window.buffer.nbytes for window in held) <= 5 * ROW // 2
    reader.close()


def test_rows_larger_than_the_bound_are_read_in_parts_with_one_warning(tmp_path):
    reader = WindowReader(fs.h5mmap(write(tmp_path / "a.h5"), "x"), ROW // 2)
    first, *others = boxes((0, T, 0, 5), 4)
    with pytest.warns(
        UserWarning, match=r"a\.h5: compressed chunks are 10 steps .* 5 seq.*smaller batchsize"
    ):
        reader.read(*first)
    for t0, t1, n0, n1 in others:  # without a warning: that would be an error here
        np.testing.assert_array_equal(reader.read(t0, t1, n0, n1), A[t0:t1, n0:n1])
    assert max(Counter(h5_filter.decoded).values()) == 2
    reader.close()


def test_chunks_much_wider_than_a_block_are_told_of(tmp_path):
    path = write(tmp_path / "a.h5", chunks=(2, 12, 2))
    reader = WindowReader(fs.h5mmap(path, "x"), 4000)
    with pytest.warns(UserWarning, match="hold 12 sequences, of which 4 .* larger batchsize"):
        reader.read(0, 4, 0, 4)
    reader.close()


def test_closing_in_the_middle_ends_the_thread_and_frees_the_windows(tmp_path):
    reader = WindowReader(fs.h5mmap(write(tmp_path / "a.h5"), "x"), 2 * ROW)
    read = reader.read(0, 4, 0, 5)
    buffers = [weakref.ref(reader._current.buffer), weakref.ref(reader._ahead.buffer)]
    del read
    reader.close()
    reader.close()
    assert not threads.waited_for
    gc.collect()
    assert [buffer() for buffer in buffers] == [None, None]
    with pytest.raises(ValueError, match="closed"):
        reader.read(0, 1, 0, 1)


def test_readers_go_on_after_fork_and_pickle(tmp_path):
    reader = WindowReader(fs.h5mmap(write(tmp_path / "a.h5"), "x"), 2 * ROW)
    reader.read(0, 4, 0, 5)
    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301
    np.testing.assert_array_equal(copy.read(4, 30, 0, 5), A[4:30, :5])
    copy.close()
    child = os.fork()
    if child == 0:
        try:
            same = all((reader.read(t, t + 4, 0, 5) == A[t : t + 4, :5]).all() for t in (4, 8, 12))
            reader.close()
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(reader.read(4, 8, 0, 5), A[4:8, :5])
    reader.close()


def test_a_fork_in_the_middle_of_a_window(tmp_path, monkeypatch):
    """In the child nobody fills what its parent's thread had begun to fill."""
    reader = WindowReader(fs.h5mmap(write(tmp_path / "a.h5"), "x"), 2 * ROW)
    go_on = threading.Event()
    into = LazyDataset.read_into

    def wait(self, out, *more):
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(60)
        into(self, out, *more)

    monkeypatch.setattr(LazyDataset, "read_into", wait)
    reader.read(0, 10, 0, 5)
    child = os.fork()
    if child == 0:
        try:
            go_on.set()
            os._exit(0 if np.array_equal(reader.read(10, 20, 0, 5), A[10:20, :5]) else 1)
        finally:
            os._exit(2)
    go_on.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(reader.read(10, 20, 0, 5), A[10:20, :5])
    reader.close()


def damage(path, time_step):
    """Flip bits in the middle of the chunk that begins at a step, sequence 0."""
    with h5py.File(path) as file:
        info = file["x"].id.get_chunk_info_by_coord((time_step, 0, 0))
    with open(path, "r+b") as file:
        file.seek(info.byte_offset + info.size // 2)
        here = file.read(4)
        file.seek(-4, 1)
        file.write(bytes(255 - b for b in here))


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"fletcher32": True}])
def test_damaged_chunks_are_errors_that_say_where(tmp_path, options):
    noise = np.random.default_rng(0).standard_normal(A.shape)
    path = write(tmp_path / "a.h5", noise, **options)
    damage(path, 20)
    reader = WindowReader(fs.h5mmap(path, "x"), 2 * ROW)
    for t in (0, 5, 10, 15):
        np.testing.assert_array_equal(reader.read(t, t + 5, 0, 5), noise[t : t + 5, :5])
    until(lambda: reader._ahead is not None)
    for _ in range(2):
        with pytest.raises(fs.ReadError, match=r"a\.h5: 'x'\[20:30, 0:5, 0:2\] cannot be read"):
            reader.read(20, 25, 0, 5)
    np.testing.assert_array_equal(reader.read(30, 35, 0, 5), noise[30:35, :5])
    reader.close()


def test_boxes_outside_are_refused(tmp_path):
    reader = WindowReader(fs.h5mmap(write(tmp_path / "a.h5"), "x"))
    for box in [(0, T + 1, 0, 1), (-1, 2, 0, 1), (0, 1, 0, N + 1), (3, 2, 0, 1)]:
        with pytest.raises(IndexError, match="is not inside"):
            reader.read(*box)
    assert reader.read(3, 3, 0, 5).shape == (0, 5, F)
    reader.close()


def test_without_a_spare_core_windows_are_large_and_read_when_they_are_needed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(SpareCores, "some", lambda self: False)
    waited = []
    monkeypatch.setattr(SpareCores, "wait", lambda self: waited.append(1))
    reader = WindowReader(fs.h5mmap(write(tmp_path / "a.h5"), "x"))
    reader.expect(blocks(len(A), A.shape[1], 5))
    for _, _, n0, n1 in blocks(len(A), A.shape[1], 5):
        for t0 in range(0, len(A), 4):
            found = reader.read(t0, min(t0 + 4, len(A)), n0, n1)
            np.testing.assert_array_equal(found, A[t0 : t0 + 4, n0:n1])
            assert reader._ahead is None
    assert len(waited) == -(-A.shape[1] // 5)  # once per block
    reader.close()
