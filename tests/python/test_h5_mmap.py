"""Datasets mapped where they lie in one piece, opened lazily elsewhere, refused with a reason."""

from __future__ import annotations

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from test_h5_lazy import bitfield, stored

import fastseq as fs
from fastseq.data.hdf5 import LazyDataset

A = np.arange(84.0).reshape(7, 4, 3)


def contiguous(path, array=A, **options):
    with h5py.File(path, "w", **options) as file:
        file["pad"] = np.ones(3, np.int8)  # an odd offset for what follows
        file["g/x"] = array
    return path


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", ">f8", "i1", "u2", ">i8", "?", "c8", "S5"])
@pytest.mark.parametrize("options", [{}, {"libver": "latest"}, {"userblock_size": 1024}])
def test_what_lies_in_one_piece_is_mapped(dtype, options, tmp_path):
    array = A.astype(dtype)
    mapped = fs.h5mmap(contiguous(tmp_path / "a.h5", array, **options), "g/x")
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype == array.dtype
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, array)


def test_a_single_number_is_mapped(tmp_path):
    assert float(fs.h5mmap(contiguous(tmp_path / "a.h5", np.float32(2.5)), "g/x")) == 2.5


@pytest.mark.parametrize(
    "layout", ["chunked", "gzip", "compact", "virtual", "external", "unwritten"]
)
def test_everything_else_is_read_lazily(layout, tmp_path):
    array = A
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if layout in ("chunked", "gzip"):
            compression = "gzip" if layout == "gzip" else None
            file.create_dataset("x", data=A, chunks=(2, 4, 1), compression=compression)
        elif layout == "compact":
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple(A.shape)
            h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_DOUBLE, space, plan)
            file["x"][:] = A
        elif layout == "virtual":
            file["y"] = A
            virtual = h5py.VirtualLayout(A.shape, "f8")
            virtual[:] = h5py.VirtualSource(".", "y", A.shape)
            file.create_virtual_dataset("x", virtual)
        elif layout == "external":
            external = [(tmp_path / "raw.bin", 0, A.nbytes)]
            file.create_dataset("x", data=A, external=external)
        else:
            file.create_dataset("x", A.shape, "f8", fillvalue=3)
            array = np.full(A.shape, 3.0)
    for mode in ("r", "r+") if layout != "unwritten" else ("r",):
        lazy = fs.h5mmap(tmp_path / "a.h5", "x", mode)
        assert isinstance(lazy, LazyDataset)
        assert (lazy.shape, lazy.dtype, lazy.mode) == (A.shape, A.dtype, mode)
        np.testing.assert_array_equal(lazy, array)


def test_numbers_that_only_hdf5_understands_are_converted_by_it(tmp_path):
    """16 bits of which 12 count, from the fifth on."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        kind = h5py.h5t.STD_I16LE.copy()
        kind.set_precision(12)
        kind.set_offset(4)
        dataset = h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((3,)))
        values = np.array([1, -2, 3], "i2")
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values, mtype=h5py.h5t.NATIVE_INT16)
    np.testing.assert_array_equal(fs.h5mmap(tmp_path / "a.h5", "x"), values)


def test_bitfields_in_one_piece_are_mapped_as_bool(tmp_path):
    array = A % 3 == 0
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple(array.shape)
        dataset = h5py.h5d.create(file.id, b"x", h5py.h5t.STD_B8LE, space)
        values = array.astype(np.uint8)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values, mtype=h5py.h5t.NATIVE_B8)
    mapped = fs.h5mmap(tmp_path / "a.h5", "x")
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype == bool
    np.testing.assert_array_equal(mapped, array)
    assert fs.h5mmap(bitfield(tmp_path / "b.h5", array), "x").dtype == bool


def test_maps_are_written_to_the_file(tmp_path):
    path = contiguous(tmp_path / "a.h5")
    mapped = fs.h5mmap(path, "g/x", mode="r+")
    mapped[2:4, 1] = -1
    mapped.flush()
    array = A.copy()
    array[2:4, 1] = -1
    np.testing.assert_array_equal(stored(path, "g/x"), array)


@pytest.mark.parametrize("fill", [None, 0.5])
def test_what_was_not_written_yet_is_given_its_place(fill, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", A.shape, "f8", fillvalue=fill)
    mapped = fs.h5mmap(tmp_path / "a.h5", "x", mode="r+")
    assert isinstance(mapped, np.memmap)
    mapped[3] = A[3]
    mapped.flush()
    expected = np.full(A.shape, fill or 0)
    expected[3] = A[3]
    np.testing.assert_array_equal(stored(tmp_path / "a.h5"), expected)


def test_files_cut_short(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = A
        file.flush()
        end = file["x"].id.get_offset() + A.nbytes
    original = path.read_bytes()
    content = bytearray(original)
    path.write_bytes(content[: end - 100])
    with pytest.raises(ValueError, match=r"a\.h5 cannot be read as HDF5.*truncated"):
        fs.h5mmap(path, "x")
    content[40:48] = (end - 100).to_bytes(8, "little")  # where the superblock says the file ends
    for mode in ("r", "r+"):
        path.write_bytes(content[: end - 100])
        with pytest.raises(ValueError, match=r"a\.h5.*'x'"):  # HDF5 2 sees it first
            fs.h5mmap(path, "x", mode)
        assert path.stat().st_size == end - 100
    with monkeypatch.context() as patch:
        path.write_bytes(original)
        patch.setattr(os.path, "getsize", lambda _: end - 100)
        text = rf"a\.h5 .*'x' of shape \(7, 4, 3\).* {end}, the file at byte {end - 100}"
        with pytest.raises(ValueError, match=text):
            fs.h5mmap(path, "x")
    content[40:48] = (end - 600).to_bytes(8, "little")
    path.write_bytes(content[:600])
    with pytest.raises(ValueError, match=r"a\.h5"):
        fs.h5mmap(path, "x")


def test_sources_of_virtual_datasets_must_be_there_when_mapped_and_when_opened(tmp_path):
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["x"] = A
    layout = h5py.VirtualLayout(A.shape, "f8")
    layout[:] = h5py.VirtualSource("part.h5", "x", A.shape)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    lazy = fs.h5mmap(tmp_path / "all.h5", "x")
    (tmp_path / "part.h5").unlink()
    with pytest.raises(ValueError, match=r"no file part\.h5"):
        np.asarray(lazy)
    with pytest.raises(ValueError, match=r"'/?x' in .*all\.h5 is virtual.*no file part\.h5"):
        fs.h5mmap(tmp_path / "all.h5", "x")


def test_errors_name_what_is_wrong(tmp_path):
    path = contiguous(tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError, match=r"no\.h5"):
        fs.h5mmap(tmp_path / "no.h5", "x")
    with pytest.raises(FileNotFoundError):
        fs.h5mmap(tmp_path, "x")
    with pytest.raises(ValueError, match=r"'z' is not there in .*a\.h5; .* g/x \(7, 4, 3\)"):
        fs.h5mmap(path, "z")
    with pytest.raises(ValueError, match="'g' is a group"):
        fs.h5mmap(path, "g")
    with pytest.raises(ValueError, match=r'mode must be "r" or "r\+", got \'w\''):
        fs.h5mmap(path, "g/x", mode="w")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"text\.h5 cannot be read as HDF5"):
        fs.h5mmap(tmp_path / "text.h5", "x")


def test_files_that_may_not_be_written(tmp_path, monkeypatch):
    path = contiguous(tmp_path / "a.h5")

    def refuse(path, mode):
        raise PermissionError(13, "Unable to synchronously open file")  # as root sees it never

    with h5py.File(path, "r") as file:
        lazy = LazyDataset(str(path), "g/x", A.shape, A.dtype, mode="r+")
        with pytest.raises(BlockingIOError, match="this process has it open for reading"):
            lazy[0] = 0
        assert file["g/x"][0, 0, 1] == 1
    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(PermissionError, match=r"no permission to write the file.*a\.h5"):
        lazy[0] = 0


def test_files_that_another_process_writes(tmp_path):
    path = contiguous(tmp_path / "a.h5")
    script = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(flush=True); input()"
    environment = {k: v for k, v in os.environ.items() if k != "HDF5_USE_FILE_LOCKING"}
    writer = subprocess.Popen(
        [sys.executable, "-c", script, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        assert writer.stdout.readline()
        with pytest.raises(BlockingIOError, match=r"another process.*LOCKING=FALSE.*a\.h5"):
            fs.h5mmap(path, "g/x")
    finally:
        writer.communicate(b"\n")
    np.testing.assert_array_equal(fs.h5mmap(path, "g/x"), A)
