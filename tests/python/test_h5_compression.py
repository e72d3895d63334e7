"""Compressed files of h5save, h5concat and predict hold what uncompressed ones hold."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastseq as fs
from fastseq.data.hdf5 import compression, copying
from fastseq.data.hdf5.chunk_writing import ChunkWriter
from fastseq.data.hdf5.compression import chunk_shape

SHAPES = st.lists(st.integers(1, 10**6), min_size=1, max_size=4).map(tuple)


@given(shape=SHAPES, itemsize=st.sampled_from([1, 2, 4, 8, 16]))
def test_chunks_are_of_at_most_a_megabyte(shape: tuple[int, ...], itemsize: int) -> None:
    chunk = chunk_shape(shape, itemsize)
    assert all(1 <= c <= n for c, n in zip(chunk, shape, strict=True))
    assert math.prod(chunk) * itemsize <= 2**20
    if math.prod(shape[2:]) * itemsize <= 2**20:
        assert chunk[2:] == shape[2:]
    if 2**18 <= math.prod(shape) * itemsize < 2**40 and max(shape[2:], default=1) < 1000:
        assert math.prod(chunk) * itemsize >= 2**16  # neither are they small


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((100_000, 1000, 32), (128, 64, 32)), ((50, 10**6, 1), (50, 4096, 1)),
        ((10**6, 1, 8), (32259, 1, 8)), ((3, 2, 1), (3, 2, 1)), ((10**7,), (256411,)),
        ((10, 10, 10**6), (1, 1, 250_000)),
    ],
)  # fmt: skip
def test_chunks_balance_steps_and_sequences(shape: Any, expected: Any) -> None:
    assert chunk_shape(shape, 4) == expected


def test_h5save(tmp_path: Path) -> None:
    x = np.round(np.random.default_rng(0).normal(size=(300, 150, 16)), 2).astype(">f4")
    tree = {
        "x": x, "flags": [x[0] > 0, np.float64(3), 7, "text", None], "empty": np.empty((0, 3)),
        "point": np.array(2.5), "half": torch.ones(30, 4, dtype=torch.bfloat16), "every": x[::2, 1],
    }  # fmt: skip
    fs.h5save(tmp_path / "x.h5", tree, compression="gzip")
    fs.h5save(tmp_path / "plain.h5", tree)
    found, plain = (fs.h5load(tmp_path / name) for name in ("x.h5", "plain.h5"))
    assert repr(found) == repr(plain)
    np.testing.assert_array_equal(found["x"], x)
    assert found["x"].dtype == x.dtype
    with h5py.File(tmp_path / "x.h5") as file:
        for name in ("x", "flags/0", "half", "every"):
            dataset = file[name]
            assert (dataset.compression, dataset.compression_opts) == ("gzip", 4)
            assert dataset.shuffle
        assert file["x"].chunks == (100, 128, 16)
        assert file["x"].id.get_storage_size() < 0.7 * x.nbytes
        np.testing.assert_array_equal(file["x"][()], x)
    with h5py.File(tmp_path / "plain.h5") as file:
        assert file["x"].chunks is None
    np.testing.assert_array_equal(fs.h5mmap(tmp_path / "x.h5", "x"), x)


@settings(max_examples=40)
@given(data=st.data())
def test_h5concat_joins_as_numpy_does(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder, draw = tmp_path_factory.mktemp("join"), data.draw
    axis = draw(st.integers(0, 2))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = [draw(st.integers(1, 9)) for _ in range(3)]
    arrays = []
    for i in range(draw(st.integers(1, 4))):
        shape[axis] = draw(st.integers(0, 9))
        dtype = draw(st.sampled_from(["f4", ">f4", "f8", "i2", "u1", "?"]))
        arrays.append((rng.standard_normal(shape) * 50).astype(dtype))
        chunked = 0 not in shape and draw(st.booleans())
        with h5py.File(folder / f"{i}.h5", "w") as file:
            options = {"chunks": tuple(-(-n // 2) for n in shape), "compression": "gzip"}
            file.create_dataset("g/x", data=arrays[-1], **(options if chunked else {}))
            file["g/scalar"] = 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastseq.data.hdf5.chunk_writing.LEAST_BYTES", 0)
        chunk = draw(st.sampled_from([16, 100, 2**20]))
        patch.setattr(compression, "_CHUNK_BYTES", chunk)
        tile = chunk * draw(st.integers(1, 9))
        patch.setattr(copying, "_TILE_BYTES", tile)
        patch.setattr(copying, "_CHUNKS_BYTES", tile * draw(st.integers(1, 2)))
        # Whatever the tiles, no chunk is written in parts.
        patch.setattr(ChunkWriter, "_write_by_hdf5", None)
        fs.h5concat(
            folder / "all.h5", str(folder / "?.h5"), axis, virtual=False, compression="gzip",
            progress=False,
        )  # fmt: skip
    expected = np.concatenate(arrays, axis)
    with h5py.File(folder / "all.h5") as file:
        found = file["g/x"]
        assert found.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[()], expected)
        assert file["g/scalar"][()] == 3
        assert (found.compression == "gzip") == (expected.size > 0)


@pytest.mark.parametrize("value", ["lzf", "", True, 4, np.array(["gzip", "gzip"])])
def test_other_compression_is_refused(tmp_path: Path, value: Any) -> None:
    fs.h5save(tmp_path / "a.h5", {"x": np.ones((2, 2, 1))})
    message = re.escape(f"compression must be None or 'gzip', got {value!r}")
    with pytest.raises(ValueError, match=f"^h5save: {message}$"):
        fs.h5save(tmp_path / "b.h5", {"x": np.ones(3)}, compression=value)
    with pytest.raises(ValueError, match=f"^h5concat: {message}$"):
        fs.h5concat(tmp_path / "b.h5", [tmp_path / "a.h5"], virtual=False, compression=value)
    assert os.listdir(tmp_path) == ["a.h5"]


def test_virtual_files_cannot_be_compressed(tmp_path: Path) -> None:
    fs.h5save(tmp_path / "a.h5", {"x": np.ones((2, 2, 1))})
    with pytest.raises(ValueError, match=r"a virtual dataset holds no data: copy with virtual"):
        fs.h5concat(tmp_path / "b.h5", [tmp_path / "a.h5"], compression="gzip")
    assert os.listdir(tmp_path) == ["a.h5"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """Where files may not grow beyond a limit, writing fails as on a full disk."""
    fs.h5save(tmp_path / "p.h5", {"x": np.random.default_rng(0).normal(size=(400, 100, 8))})
    (tmp_path / "all.h5").write_bytes(b"old")
    code = """
        import resource, fastseq as fs
        x = fs.h5load("p.h5")["x"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        for run in (
            lambda: fs.h5concat("all.h5", "p.h5", virtual=False, compression="gzip"),
            lambda: fs.h5save("all.h5", {"x": x}, compression="gzip"),
        ):
            try:
                run()
            except OSError as error:
                print(type(error).__name__, error)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no space left for the new file") == 2, done.stdout + done.stderr
    assert (tmp_path / "all.h5").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["all.h5", "p.h5"]
