"""Chunks that are decoded outside of HDF5, beside what h5py reads."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import pickle
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastseq as fs
from fastseq import _reader
from fastseq._util.threads import cores
from fastseq.data.hdf5 import lazy_dataset, stored_chunks
from fastseq.data.hdf5.stored_chunks import StoredChunks
from fastseq.errors import ReadError

MAPS = Path("/proc/self/maps")
DTYPES = ("u1", "i1", "<i2", ">i2", "<u4", "<i4", ">i8", "<f2", "<f4", ">f4", "<f8", ">f8", "?")


@pytest.fixture(autouse=True, scope="module")
def _small_chunks_too() -> Iterator[None]:
    """Let the chunks of these tests be small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_chunks, "LEAST_BYTES", 1)
        patch.setattr(lazy_dataset, "_CACHE_BYTES", 0)
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chunks") / "x.h5"


@st.composite
def stored(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a dataset: its shape, its chunks, its filters, and which chunks are written."""
    ndim = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(ndim))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    filters: dict[str, Any] = {
        "compression": draw(st.sampled_from([None, "gzip", "gzip", "gzip", "lzf"])),
        "shuffle": draw(st.booleans()), "fletcher32": draw(st.booleans()),
    }  # fmt: skip
    if dtype.kind in "iu" and draw(st.booleans()):
        filters["scaleoffset"] = draw(st.sampled_from([0, 8 * dtype.itemsize]))
        filters["fletcher32"] = False  # the sums would be of other bytes: h5py refuses it
    fill = draw(st.sampled_from([None, 0, 1, 100]))
    chunks = tuple(draw(st.integers(1, n + 2)) for n in shape)
    growing = tuple(max(n, c) for n, c in zip(shape, chunks, strict=True))
    return {
        "shape": shape, "dtype": dtype, "chunks": chunks, "maxshape": growing,
        "fillvalue": None if fill is None else dtype.type(fill), **filters,
    }  # fmt: skip


def boxes(shape: tuple[int, ...], draw: st.DrawFn) -> tuple[slice, ...]:
    ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    return tuple(
        slice(a, b) if a < b else slice(0, n) for (a, b), n in zip(ends, shape, strict=True)
    )


def read(dataset: h5py.Dataset, box: tuple[slice, ...], threads: int = 1) -> np.ndarray:
    """Read a box of a dataset whose filters are known."""
    chunks = StoredChunks.of(dataset)
    assert chunks is not None
    out = np.empty(tuple(b.stop - b.start for b in box), dataset.dtype)
    lock = threading.RLock()

    @contextlib.contextmanager
    def opened() -> Any:
        with lock:
            yield dataset

    chunks.read_into(out, box, opened, lambda: threads)
    return out


@settings(max_examples=400)
@given(data=st.data(), made=stored())
def test_what_is_decoded_is_what_h5py_reads(path: Path, data: st.DataObject, made: Any) -> None:
    draw = data.draw
    dtype = made["dtype"]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", **made)
        for number in itertools.product(
            *map(range, [-(-n // c) for n, c in zip(x.shape, x.chunks, strict=True)])
        ):
            start = tuple(n * c for n, c in zip(number, x.chunks, strict=True))
            if draw(st.integers(0, 3)):
                there = tuple(slice(a, a + c) for a, c in zip(start, x.chunks, strict=True))
                x[there] = rng.integers(0, 100, x[there].shape).astype(dtype)
            elif draw(st.integers(0, 9)):  # without any filter
                values = rng.integers(0, 2, x.chunks).astype(dtype)
                every = (1 << x.id.get_create_plist().get_nfilters()) - 1
                x.id.write_direct_chunk(start, values.tobytes(), every)
        count = math.prod(-(-n // c) for n, c in zip(x.shape, x.chunks, strict=True))
    with h5py.File(path) as file:
        x = file["x"]
        box = boxes(x.shape, draw)
        known = x.id.get_create_plist().get_nfilters() and x.compression != "lzf"
        if not known or x.id.get_num_chunks() < count:
            assert StoredChunks.of(x) is None or x.compression == "lzf"
            return
        expected = x[box]
        found = read(x, box, draw(st.integers(1, 4)))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [0, 1, 7, 359, 360, 361, 719, 4095, 4096, 100_003])
@pytest.mark.parametrize("item", [1, 2, 3, 4, 8, 16])
def test_unshuffle_is_a_transposition(size: int, item: int) -> None:
    rng = np.random.default_rng(size)
    data = rng.integers(0, 256, size, np.uint8)
    whole = size // item * item
    shuffled = np.concatenate([data[:whole].reshape(-1, item).T.reshape(-1), data[whole:]])
    out = np.empty_like(data)
    _reader.unshuffle(shuffled, item, out)
    np.testing.assert_array_equal(out, data)


def test_buffers_that_do_not_fit_are_refused() -> None:
    four = np.zeros(4, np.uint8)
    with pytest.raises(ValueError, match="4 bytes do not fill 3"):
        _reader.unshuffle(four, 2, np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="contiguous"):
        _reader.unshuffle(np.zeros(8, np.uint8)[::2], 2, four)
    with pytest.raises((ValueError, BufferError)):
        _reader.unshuffle(four, 2, bytes(4))


@pytest.mark.parametrize("digits", [0, 2, 5])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", ">f8"])
def test_floats_kept_to_some_digits_are_those_of_hdf5(path: Path, dtype: str, digits: int) -> None:
    rng = np.random.default_rng(digits)
    values = rng.normal(3, 20, (50, 7)).astype(dtype)
    values[3] = -1e30 if digits == 5 else 7
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", data=values, chunks=(8, 3), scaleoffset=digits)
        np.testing.assert_array_equal(read(x, (slice(0, 50), slice(0, 7))), x[()])


@given(
    data=st.data(),
    parameters=st.lists(st.integers(0, 2**32 - 1), min_size=18, max_size=21),
    size=st.integers(0, 64),
)
def test_hostile_parameters_of_scale_offset_are_refused(
    data: st.DataObject, parameters: list[int], size: int
) -> None:
    known = [
        data.draw(st.sampled_from([0, 2])),
        0,
        size,
        0,
        data.draw(st.sampled_from([1, 2, 4, 8])),
    ]
    if data.draw(st.booleans()):
        parameters[:5] = known
        parameters[3] = data.draw(st.sampled_from([0, 1]))
    stored = data.draw(st.binary(max_size=80))
    out = np.zeros(size * 4, np.uint8)
    with contextlib.suppress(ValueError):
        _reader.undo_scale_offset(stored, parameters, out)


def made(path: Path, **more: Any) -> np.ndarray:
    """Write a dataset of 4 x 2 chunks; return its values."""
    values = np.round(np.random.default_rng(0).normal(size=(40, 12, 3)), 1).astype("f4")
    with h5py.File(path, "w") as file:
        settings = {"chunks": (10, 6, 3), "compression": "gzip", **more}
        file.create_dataset("x", data=values, **settings)
    return values


@pytest.mark.parametrize("more", [{}, {"shuffle": True}, {"fletcher32": True}])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_damaged_chunk_is_an_error_that_names_it_once(
    tmp_path: Path, more: dict[str, Any], threads: int
) -> None:
    values = made(tmp_path / "x.h5", **more)
    with h5py.File(tmp_path / "x.h5") as file:
        info = file["x"].id.get_chunk_info_by_coord((20, 6, 0))
    with (tmp_path / "x.h5").open("r+b") as raw:
        raw.seek(info.byte_offset + info.size // 2)
        old = raw.read(1)
        raw.seek(-1, 1)
        raw.write(bytes([old[0] ^ 0x55]))
    x = fs.h5mmap(tmp_path / "x.h5", "x")
    box = x[10:40]
    with pytest.raises(ReadError, match=r"'x'\[10:40, 0:12, 0:3\] cannot be read.*\(20, 6, 0\)"):
        box.read_into(np.empty(box.shape, "f4"), lambda: threads)
    np.testing.assert_array_equal(x[:20], values[:20])
    np.testing.assert_array_equal(x[:, :6], values[:, :6])


@pytest.mark.parametrize(
    "stored",
    [b"x", zlib.compress(b"short"), zlib.compress(bytes(720))[:-1]],
    ids=["no gzip", "short", "cut"],
)
def test_a_chunk_of_another_size_is_an_error(tmp_path: Path, stored: bytes) -> None:
    made(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["x"].id.write_direct_chunk((10, 0, 0), stored)
    with pytest.raises(ReadError, match=r"\(10, 0, 0\)"):
        np.asarray(fs.h5mmap(tmp_path / "x.h5", "x"))


def test_a_chunk_that_is_too_large_is_left_to_hdf5(tmp_path: Path) -> None:
    values = made(tmp_path / "x.h5")
    packed = zlib.compress(values[10:20, :6].tobytes())
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["x"].id.write_direct_chunk((10, 0, 0), packed + bytes(10**6))
    np.testing.assert_array_equal(np.asarray(fs.h5mmap(tmp_path / "x.h5", "x")), values)


def with_plain_edges(file: h5py.File, plist: h5py.h5p.PropDCID, values: np.ndarray) -> h5py.Dataset:
    """Write a dataset whose chunks at the edge have no filters; h5py cannot make one."""
    loaded = (line.split()[-1] for line in MAPS.read_text().splitlines())
    hdf5 = ctypes.CDLL(next(path for path in loaded if Path(path).name.startswith("libhdf5-")))
    hdf5.H5Pset_chunk_opts.argtypes = [ctypes.c_int64, ctypes.c_uint]
    assert hdf5.H5Pset_chunk_opts(plist.id, 2) >= 0  # H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS
    space = h5py.h5s.create_simple(values.shape)
    kind = h5py.h5t.py_create(values.dtype)
    x = h5py.Dataset(h5py.h5d.create(file.id, b"x", kind, space, plist))
    x[...] = values
    return x


@pytest.mark.parametrize("kind", ["shuffle", "gzip", "both", "scale-offset"])
def test_chunks_at_the_edge_may_have_no_filters(tmp_path: Path, kind: str) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4, 4))
    if kind in ("shuffle", "both"):
        plist.set_shuffle()
    if kind in ("gzip", "both"):
        plist.set_deflate(4)
    if kind == "scale-offset":
        plist.set_scaleoffset(h5py.h5z.SO_INT, 0)
    values = np.arange(42).reshape(6, 7) * 1000
    values[4, 0] = 0  # which looks like a scale-offset of no bits
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        x = with_plain_edges(file, plist, values)
        np.testing.assert_array_equal(read(x, (slice(0, 6), slice(0, 7))), values)
    np.testing.assert_array_equal(np.asarray(fs.h5mmap(tmp_path / "x.h5", "x")), values)


def test_codecs_may_hold_more_than_a_chunk(path: Path) -> None:
    ends = [-(2**31), 2**31 - 1, 0, 1]
    values = np.tile(np.array(ends, "i4"), 2500).reshape(100, 100)
    with h5py.File(path, "w") as file:
        layout = {"chunks": (50, 50), "scaleoffset": 0, "compression": "lzf"}
        x = file.create_dataset("x", data=values, **layout)
        np.testing.assert_array_equal(read(x, (slice(0, 100), slice(0, 100))), values)


def test_writes_meanwhile_are_read_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(64, 64, 64)).astype("f4")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=noise, chunks=(4, 64, 64), compression="gzip")
    written, read = (fs.h5mmap(tmp_path / "x.h5", "x", mode="r+") for _ in range(2))
    found: list[bool] = []
    done = threading.Event()

    def reader() -> None:
        while not done.is_set():
            difference = np.asarray(read) - noise
            found.append(bool(np.ptp(difference) < 1e-3))

    thread = threading.Thread(target=reader)
    thread.start()
    for k in range(20):
        written[:] = noise + np.float32(k)
    done.set()
    thread.join()
    assert found
    assert all(found)


def test_the_program_can_end_while_chunks_are_decoded(tmp_path: Path) -> None:
    program = """
import sys, time, torch, fastseq as fs
from fastseq.data.hdf5.stored_windows import WindowReader
from fastseq.data.spare_cores import SpareCores
torch.set_num_threads(1)
SpareCores.some, SpareCores.threads = lambda self: True, lambda self: 2
reader = WindowReader(fs.h5mmap(sys.argv[1], "x"))
reader.read(0, 200, 0, 64)
time.sleep(0.003)
"""
    values = np.random.default_rng(0).normal(size=(1000, 64, 32)).astype("f4")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(10, 64, 32), compression="gzip")
    for _ in range(3):
        command = [sys.executable, "-c", program, str(tmp_path / "x.h5")]
        subprocess.run(command, check=True, timeout=60)


def test_filters_that_are_unknown_are_left_to_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((4,))
        plist.set_filter(h5py.h5z.FILTER_NBIT, 0)
        plist.set_deflate(4)
        space = h5py.h5s.create_simple((10,))
        x = h5py.Dataset(h5py.h5d.create(file.id, b"x", h5py.h5t.STD_I32LE, space, plist))
        assert StoredChunks.of(x) is None
        assert StoredChunks.of(file.create_dataset("plain", (10,), "f4", chunks=(3,))) is None
        assert StoredChunks.of(file.create_dataset("whole", (10,), "f4")) is None
        text = file.create_dataset("t", data=["a"], chunks=(1,), compression="gzip")
        assert StoredChunks.of(text) is None


def test_several_readers_share_the_threads(tmp_path: Path) -> None:
    values = made(tmp_path / "x.h5", shuffle=True)
    x = fs.h5mmap(tmp_path / "x.h5", "x")
    found: list[bool] = []

    def work() -> None:
        for _ in range(20):
            out = np.empty(x.shape, "f4")
            x.read_into(out, lambda: 3)
            found.append(bool((out == values).all()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80


def test_a_file_is_the_same_by_whatever_link(tmp_path: Path) -> None:
    """Else a virtual dataset would hold its source open when that is to be written."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    made(tmp_path / "real" / "part.h5")
    fs.h5concat(tmp_path / "real" / "all.h5", [tmp_path / "real" / "part.h5"], axis=0)
    x = fs.h5mmap(tmp_path / "link" / "all.h5", "x")
    np.asarray(x)
    part = fs.h5mmap(tmp_path / "link" / "part.h5", "x", mode="r+")
    part[:] = 5
    np.testing.assert_array_equal(np.asarray(x), 5)


def test_a_small_part_is_kept_by_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = made(tmp_path / "x.h5")
    x = fs.h5mmap(tmp_path / "x.h5", "x")
    monkeypatch.setattr(StoredChunks, "read_into", None)
    monkeypatch.setattr(lazy_dataset, "_CACHE_BYTES", 2**23)
    np.testing.assert_array_equal(x[3], values[3])


def test_virtual_datasets_are_read_from_their_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 20, 2)).astype("f4")
    layout = h5py.VirtualLayout(values.shape, "f4", maxshape=values.shape)
    cuts = [(0, 20, 0, 20), (20, 50, 0, 7), (20, 45, 7, 20)]
    for number, (t0, t1, n0, n1) in enumerate(cuts):
        more = {} if number == 1 else {"chunks": (10, 5, 2), "compression": "gzip"}
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            whole = np.pad(values[t0:t1, n0:n1], ((3, 2), (1, 0), (0, 0)))
            x = file.create_dataset("x", data=whole, **more)
            layout[t0:t1, n0:n1] = h5py.VirtualSource(x)[3:-2, 1:]
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("x", layout, fillvalue=7)
    values[45:, 7:] = 7  # no source has them
    x = fs.h5mmap(tmp_path / "all.h5", "x")
    read = []
    once = StoredChunks.read_into
    monkeypatch.setattr(
        StoredChunks, "read_into", lambda self, *args: (read.append(1), once(self, *args))
    )
    np.testing.assert_array_equal(np.asarray(x), values)
    assert len(read) == 2
    for t0, t1, n0, n1 in rng.integers(0, 21, (50, 4)):
        np.testing.assert_array_equal(
            x[t0 : t0 + t1, n0 : n0 + n1], values[t0 : t0 + t1, n0 : n0 + n1]
        )
    (tmp_path / "2.h5").write_bytes(b"")
    other = pickle.loads(pickle.dumps(x))  # noqa: S301
    np.testing.assert_array_equal(np.asarray(other[:20]), values[:20])


def test_errors_in_sources_name_both_files(tmp_path: Path) -> None:
    made(tmp_path / "part.h5")
    with h5py.File(tmp_path / "part.h5", "r+") as file:
        file["x"].id.write_direct_chunk((10, 0, 0), b"damaged")
    fs.h5concat(tmp_path / "all.h5", [tmp_path / "part.h5", tmp_path / "part.h5"], axis=0)
    x = fs.h5mmap(tmp_path / "all.h5", "x")
    with pytest.raises(ReadError, match=r"all.h5: 'x'.*part.h5: '/?x'.*\(10, 0, 0\)"):
        np.asarray(x)


def test_cores_are_those_of_the_process() -> None:
    assert cores() >= 1
