"""The background reader against NumPy, and on files that change."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reads import Type, a_read, queue_much

import fastseq as fs
from fastseq import _reader

STORED = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64",
]  # fmt: skip
TARGETS = ["bool", "int64", "float16", "float32", "float64"]


def nonfinite(values: np.ndarray) -> int:
    return 0 if values.dtype.kind in "biu" else int((~np.isfinite(values)).sum())


@pytest.fixture
def reader() -> Iterator[Any]:
    reader = _reader.SlabReader()
    yield reader
    reader.close()


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    path = tmp_path / "floats"
    np.arange(500_000, dtype=np.float32).tofile(path)
    return path


def some_values(dtype: np.dtype, count: int, seed: int) -> np.ndarray:
    """Return values of every size that the type has, infinities and NaN among the floats."""
    rng = np.random.default_rng(seed)
    if dtype == np.bool_:
        return rng.integers(0, 2, count).astype(np.bool_)
    if dtype.kind in "iu":
        bits = rng.integers(0, 64, count).astype(np.uint64)
        return (rng.integers(0, 2**64 - 1, count, np.uint64) >> bits).astype(dtype)
    with np.errstate(over="ignore"):
        values = (rng.standard_normal(count) * 10.0 ** rng.integers(-9, 9, count)).astype(dtype)
    values[rng.random(count) < 0.02] = np.nan
    values[rng.random(count) < 0.02] = -np.inf
    return values


def converted(values: np.ndarray, name: str) -> np.ndarray:
    """Convert as the reader says it does: 16-bit floats by way of fp32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32).astype(name) if name == "float16" else values.astype(name)


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    stored = draw(st.sampled_from(STORED))
    targets = [t for t in TARGETS if t != "int64" or stored[0] in "biu"]
    return {
        "stored": stored,
        "target": draw(st.sampled_from(targets)),
        "swapped": draw(st.booleans()),
        "shape": draw(st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 9))),
        "header": draw(st.integers(0, 17)),
        "seed": draw(st.integers(0, 100)),
        "cuts": draw(st.lists(st.floats(0, 1), min_size=6, max_size=6)),
        "memory": draw(st.booleans()),
        "reverse": draw(st.booleans()),
    }


@given(layouts())
def test_slices_of_files_and_memory_are_those_of_numpy(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]
) -> None:
    t, n, f = case["shape"]
    dtype = np.dtype(case["stored"]).newbyteorder("S" if case["swapped"] else "=")
    values = some_values(np.dtype(case["stored"]), t * n * f, case["seed"]).astype(dtype)
    raw = b"x" * case["header"] + values.tobytes()
    path = tmp_path_factory.mktemp("files") / "data"
    path.write_bytes(raw)
    array = np.frombuffer(raw, dtype, offset=case["header"]).reshape(t, n, f)
    (t0, t1), (n0, n1), (f0, f1) = (
        sorted(int(c * size) for c in case["cuts"][2 * i : 2 * i + 2])
        for i, size in enumerate((t, n, f))
    )
    if f1 - f0 != f:
        f0, f1 = 0, f  # rows of whole features
    part = array[t0:t1, n0:n1, f0:f1][:: -1 if case["reverse"] else 1]
    steps, numel = t1 - t0, (n1 - n0) * f
    expected = converted(part, case["target"])

    reader = _reader.SlabReader()
    number = (
        reader.add_memory(np.frombuffer(raw, np.uint8).ctypes.data)
        if case["memory"]
        else reader.add_file(path, True)
    )
    step = n * f * dtype.itemsize
    first = case["header"] + t0 * step + n0 * f * dtype.itemsize
    if case["reverse"]:
        first, step = first + max(steps - 1, 0) * step, -step
    target = np.ones((t, n, f), case["target"])
    padded = [number, first, steps, step, numel, 0, n * f]
    contiguous = np.ones((steps, n1 - n0, f), case["target"])
    dense = [number, first, steps, step, numel, 0, numel]
    swapped = case["swapped"]
    reader.submit([
        a_read([padded], target, case["stored"], swapped),
        a_read([dense], contiguous, case["stored"], swapped),
    ])  # fmt: skip
    counts = reader.wait()
    reader.close()
    np.testing.assert_array_equal(contiguous, expected)
    np.testing.assert_array_equal(target[:steps, : n1 - n0], expected)
    assert not target[steps:].any()
    assert not target[:steps, n1 - n0 :].any()
    bad = nonfinite(part.astype(case["stored"])) if case["target"] == "bool" else None
    assert counts == [nonfinite(expected) if bad is None else bad] * 2


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    f=st.integers(1, 5),
    target=st.sampled_from(["float32", "float64", "float16"]),
    stored=st.sampled_from(["int16", "float32", "float64"]),
)
def test_many_arrays_gathered_and_scaled(
    lengths: list[int], f: int, target: str, stored: str
) -> None:
    rng = np.random.default_rng(len(lengths))
    arrays = [(rng.standard_normal((t, f)) * 30).astype(stored) for t in lengths]
    center, inverse = rng.standard_normal(f), rng.random(f) + 0.5
    s, b = max(lengths), len(lengths)
    out = np.full((s, b, f), 7, target)
    reader = _reader.SlabReader()
    item = np.dtype(stored).itemsize
    pieces = [
        [reader.add_memory(x.ctypes.data), 0, len(x), f * item, f, i * f, b * f]
        for i, x in enumerate(arrays)
    ]
    reader.submit([a_read(pieces, out, stored, features=f, center=center, inverse=inverse)])
    assert reader.wait() == [0]
    for i, x in enumerate(arrays):
        scaled = (x.astype(np.float64) - center) * inverse
        rounded = scaled.astype(np.float32).astype(target) if target == "float16" else scaled
        np.testing.assert_array_equal(out[: len(x), i], rounded.astype(target))
        assert not out[len(x) :, i].any()


def test_bfloat16_is_that_of_torch(reader: Any) -> None:
    x = torch.randn(1000, dtype=torch.float64) * 1e3
    half = torch.empty(1000, dtype=torch.bfloat16)
    count = _reader.convert(Type.float64, False, Type.bfloat16, x.data_ptr(), 1000, half.data_ptr())
    assert torch.equal(half, x.float().bfloat16())
    assert count == 0
    back = torch.empty(1000)
    _reader.convert(Type.bfloat16, False, Type.float32, half.data_ptr(), 1000, back.data_ptr())
    assert torch.equal(back, half.float())


def test_digits_that_centering_brings_forward_are_kept() -> None:
    seconds = 1.7e9 + np.arange(100.0)
    center, inverse = np.array([1.7e9]), np.array([0.5])
    out = np.empty(100, np.float32)
    _reader.convert(
        Type.float64, False, Type.float32, seconds.ctypes.data, 100, out.ctypes.data,
        features=1, center=center.ctypes.data, inverse=inverse.ctypes.data,
    )  # fmt: skip
    np.testing.assert_array_equal(out, np.arange(100) / 2)


def test_what_cannot_be_converted_is_refused(reader: Any) -> None:
    out = np.empty(3, np.int64)
    number = reader.add_memory(out.ctypes.data)
    with pytest.raises(ValueError, match="not converted to integers"):
        reader.submit([a_read([[number, 0, 1, 0, 3, 0, 0]], out, "float32")])
    with pytest.raises(ValueError, match="do not fit"):
        reader.submit([a_read([[number, 0, 1, 0, 4, 0, 0]], out, "int64")])
    with pytest.raises(ValueError, match="no source 5"):
        reader.submit([a_read([[5, 0, 1, 0, 3, 0, 0]], out, "int64")])
    with pytest.raises(TypeError, match="a read is"):
        reader.submit([(1, 2)])
    with pytest.raises(TypeError, match=r"shape \(P, 7\)"):
        reader.submit([(*a_read([], out, "int64")[:3], np.zeros((2, 6), np.int64), *[0] * 5)])
    with pytest.raises(RuntimeError, match="there is no pending request"):
        reader.wait()


def test_reads_of_no_elements_that_have_many_pieces(reader: Any, floats: Path) -> None:
    number = reader.add_file(floats, False)
    nothing = a_read([[number, 0, 0, 4, 1, 0, 1]] * 128, np.empty(0, np.float32), "float32")
    reader.submit([nothing])
    assert reader.wait() == [0]


def test_files_that_cannot_be_opened(reader: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        reader.add_file(tmp_path / "missing", True)
    with pytest.raises(IsADirectoryError):
        reader.add_file(str(tmp_path), False)
    (tmp_path / "a").write_bytes(b"1234")
    with pytest.raises(ValueError, match="NUL"):
        reader.add_file(f"{tmp_path}/a\0b", False)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):
        reader.add_file(tmp_path / "pipe", False)


def test_a_file_that_is_truncated_while_it_is_read(reader: Any, floats: Path) -> None:
    buffers = queue_much(reader, floats)
    reader.wait()
    os.truncate(floats, 2)
    # Which it is depends on where the read was: in its pieces, or at its end.
    short = "ends at byte 2, before byte 4 .* truncated|changed while it was read"
    with pytest.raises(fs.ReadError, match=f"{floats} ({short})"):
        for _ in buffers[1:]:
            reader.wait()
    reader.close()  # what is still queued would be read into buffers that are gone


def test_an_error_names_place_and_read(reader: Any, floats: Path) -> None:
    number = reader.add_file(floats, False)
    out = np.empty((3, 300), np.float32)
    os.truncate(floats, 900)

    def read(to: np.ndarray, numel: int) -> Any:
        return a_read([[number, 0, 1, 0, numel, 0, 0]], to, "float32")

    reader.submit([read(out[0], 10), read(out[1], 240)])
    reader.submit([read(out[2], 225)])
    message = "ends at byte 900, before byte 960 that was to be read: it was truncated after"
    with pytest.raises(fs.ReadError, match=message) as failed:
        reader.wait()
    assert failed.value.index == 1
    assert reader.wait() == [0]  # later requests are done all the same
    assert out[2, 224] == 224


@pytest.mark.parametrize("how", ["written", "replaced", "removed"])
def test_a_strict_file_that_changes(reader: Any, floats: Path, how: str) -> None:
    strict, lenient = reader.add_file(floats, True), reader.add_file(floats, False)
    out = np.empty(100, np.float32)
    if how == "written":
        os.utime(floats, (5, 5))
    elif how == "replaced":
        other = floats.with_name("other")
        other.write_bytes(floats.read_bytes())
        other.rename(floats)
    else:
        floats.unlink()
    reader.submit([a_read([[lenient, 0, 1, 0, 100, 0, 0]], out, "float32")])
    assert reader.wait() == [0]
    reader.submit([a_read([[lenient, 0, 1, 0, 100, 0, 0]], out, "float32"),
                   a_read([[strict, 0, 1, 0, 100, 0, 0]], out, "float32")])  # fmt: skip
    with pytest.raises(fs.ReadError, match="changed while it was read") as failed:
        reader.wait()
    assert failed.value.index == 1
    assert isinstance(failed.value, (fs.FastseqError, OSError))


def test_the_error_is_pickled() -> None:
    error = pickle.loads(pickle.dumps(fs.ReadError("the disk is gone", 3)))  # noqa: S301
    assert (str(error), error.index) == ("the disk is gone", 3)
