"""Chunks that are compressed outside of HDF5, beside what h5py writes."""

from __future__ import annotations

import ctypes
import threading
import tracemalloc
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseq.data.hdf5 import chunk_writing
from fastseq.data.hdf5.chunk_writing import ChunkWriter

DTYPES = ("u1", "i1", "<i2", ">i2", "<u4", ">i4", "<i8", ">u8", "<f2", "<f4", ">f4", "<f8", ">f8")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chunks") / "x.h5"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_writing, "LEAST_BYTES", 0)


def writer_of(dataset: h5py.Dataset) -> ChunkWriter:
    return ChunkWriter(lambda: nullcontext(dataset))


def whole(dataset: h5py.Dataset) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in dataset.shape)


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    shape = tuple(draw(st.integers(1, 9)) for _ in range(draw(st.integers(1, 4))))
    dtype = np.dtype(draw(st.sampled_from([*DTYPES, "?"])))
    chunks = tuple(draw(st.integers(1, n + 2)) for n in shape)
    fill = draw(st.sampled_from([None, 0, 1, 100]))
    filters: dict[str, Any] = {
        "compression": draw(st.sampled_from(["gzip", "gzip", "gzip", "lzf", None])),
        "shuffle": draw(st.booleans()), "fletcher32": draw(st.booleans()),
    }  # fmt: skip
    if filters["compression"] == "gzip":
        filters["compression_opts"] = draw(st.integers(0, 9))
    return {
        "shape": shape, "dtype": dtype, "chunks": chunks, "maxshape": (None,) * len(shape),
        "fillvalue": None if fill is None else dtype.type(fill), **filters,
    }  # fmt: skip


@settings(max_examples=300)
@given(data=st.data(), made=layouts())
def test_h5py_reads_what_it_would_have_written(path: Path, data: Any, made: dict[str, Any]) -> None:
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = made["shape"]
    with pytest.MonkeyPatch.context() as patch, h5py.File(path, "w") as file:
        patch.setattr(chunk_writing, "LEAST_BYTES", 0)
        patch.setattr(chunk_writing, "_PENDING_BYTES", draw(st.sampled_from([0, 100, 2**20])))
        ours, theirs = (file.create_dataset(name, **made) for name in ("ours", "theirs"))
        with writer_of(ours) as writer:
            assert writer.threaded == (made["compression"] == "gzip")
            for _ in range(draw(st.integers(1, 4))):
                ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
                box = tuple(slice(a, max(a, b)) for a, b in ends)
                dtype = (
                    made["dtype"] if made["dtype"].kind == "b" else draw(st.sampled_from(DTYPES))
                )
                values = rng.integers(0, 3, [b.stop - b.start for b in box]) * 100
                values = values.astype(draw(st.sampled_from([dtype, made["dtype"]])))
                writer.write(box, values)
                if values.size:
                    theirs[box] = values
        if draw(st.booleans()):  # what fills chunks at the edge up shows where it moves
            for dataset in (ours, theirs):
                dataset.resize([n + 3 for n in shape])
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["ours"][()], file["theirs"][()])


@pytest.mark.usefixtures("small_chunks")
def test_both_may_write_to_one_chunk(path: Path) -> None:
    expected = np.zeros((8, 6), "f4")
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", (8, 6), "f4", chunks=(4, 6), compression="gzip")
        other = file["x"]
        with writer_of(x) as writer:
            for number, (a, b) in enumerate([(0, 8), (1, 3), (0, 4), (2, 8), (4, 8), (3, 5)], 1):
                expected[a:b] = number
                writer.write((slice(a, b), slice(0, 6)), np.full((b - a, 6), number, "f4"))
                writer.close()
                other[7, number - 1] = expected[7, number - 1] = -number  # stays in HDF5's cache
                np.testing.assert_array_equal(x[()], expected)
                np.testing.assert_array_equal(other[()], expected)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["x"][()], expected)


def test_a_dataset_that_grows_has_its_fill_value_there(path: Path) -> None:
    with h5py.File(path, "w") as file:
        x = file.create_dataset(
            "x", (5,), "f4", chunks=(9000,), maxshape=(None,), compression="gzip", fillvalue=7
        )
        with writer_of(x) as writer:
            writer.write((slice(0, 5),), np.ones(5, "f4"))
        x.resize((8,))
        assert x[()].tolist() == [1] * 5 + [7] * 3


def test_what_cannot_be_compressed_is_valid(path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 70_000), np.uint8)
    with h5py.File(path, "w") as file:
        x = file.create_dataset(
            "x", values.shape, "u1", chunks=(2, 70_000), compression="gzip", fletcher32=True
        )
        with writer_of(x) as writer:
            writer.write(whole(x), values)
        assert x.id.get_chunk_info(0).size > 140_000
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["x"][()], values)


def test_numbers_that_do_not_fit_are_clipped_as_by_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", (20_000,), "i1", chunks=(20_000,), compression="gzip")
        with writer_of(x) as writer:
            writer.write(whole(x), np.full(20_000, 1000.5))
        assert set(x[()]) == {127}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("chunk", [(4, 3), (1, 2), (5, 7)])
def test_chunks_at_the_edge_may_be_stored_without_filters(path: Path, chunk: Any) -> None:
    """An option of HDF5 that h5py neither sets nor tells."""
    loaded = Path("/proc/self/maps").read_text().splitlines()
    library = ctypes.CDLL(next(line.split()[-1] for line in loaded if "libhdf5-" in line))
    library.H5Pset_chunk_opts.argtypes = [ctypes.c_int64, ctypes.c_uint]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(chunk)
    plist.set_deflate(4)
    assert library.H5Pset_chunk_opts(plist.id, 2) == 0
    values = np.arange(19 * 11, dtype="f4").reshape(19, 11)
    with h5py.File(path, "w", libver="latest") as file:
        space = h5py.h5s.create_simple(values.shape)
        made = h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist)
        with writer_of(h5py.Dataset(made)) as writer:
            assert writer.threaded
            writer.write((slice(0, 19), slice(0, 11)), values)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["x"][()], values)


def test_few_chunks_are_in_memory_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_writing, "_PENDING_BYTES", 2**21)
    values = np.broadcast_to(np.float32(1), (64, 2**18))
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", values.shape, "f4", chunks=(1, 2**18), compression="gzip")
        with writer_of(x) as writer:
            tracemalloc.start()
            writer.write(whole(x), values)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert peak < 8 * 2**20


@pytest.mark.parametrize("pending", [0, 2**25], ids=["at once", "on closing"])
def test_an_error_in_a_thread_ends_the_writing(
    path: Path, monkeypatch: pytest.MonkeyPatch, pending: int
) -> None:
    def fail(data: object, level: int) -> bytes:
        raise MemoryError("there is none")

    monkeypatch.setattr(chunk_writing, "_PENDING_BYTES", pending)
    monkeypatch.setattr(chunk_writing.deflate, "zlib_compress", fail)
    before = threading.active_count()
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", (3, 5000), "f4", chunks=(1, 5000), compression="gzip")
        with pytest.raises(MemoryError, match="there is none"), writer_of(x) as writer:
            writer.write(whole(x), np.ones(x.shape, "f4"))
        assert x.id.get_num_chunks() == 0
    assert threading.active_count() == before


def test_other_filters_and_small_chunks_are_left_to_hdf5(path: Path) -> None:
    gzip = {"compression": "gzip"}
    with h5py.File(path, "w") as file:
        assert writer_of(file.create_dataset("x", (9000,), "f4", chunks=(9000,), **gzip)).threaded
        for number, options in enumerate((
            {"dtype": "f4", "chunks": (9000,)},
            {"dtype": "f4", "chunks": (100,), **gzip},
            {"dtype": "i4", "chunks": (9000,), "scaleoffset": 3, **gzip},
            {"dtype": h5py.string_dtype(), "chunks": (9000,), **gzip},
            {"dtype": "c8", "chunks": (9000,), **gzip},
            {"dtype": "f4"},
        )):  # fmt: skip
            dataset = file.create_dataset(str(number), (9000,), **options)
            with writer_of(dataset) as writer:
                assert not writer.threaded
                writer.write((slice(0, 10),), dataset[10:20])
