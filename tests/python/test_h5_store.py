"""What h5save saves, h5load loads; files of other writers; nothing is ever run."""

from __future__ import annotations

import math
import os

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastseq as fs
from fastseq.data.hdf5 import LazyDataset
from fastseq.data.hdf5.save_load import decode

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
NUMBERS = hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.unsigned_integer_dtypes()
ARRAYS = hnp.arrays(
    NUMBERS | hnp.floating_dtypes(sizes=(16, 32, 64)), hnp.array_shapes(min_dims=0, min_side=0)
)
TENSORS = st.builds(
    lambda a, dtype: torch.from_numpy(a.astype("f4")).to(dtype),
    hnp.arrays("i1", hnp.array_shapes(min_dims=0, min_side=0)),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]),
)
LEAVES = (
    ARRAYS | TENSORS | TEXTS | st.none() | st.booleans() | st.floats()
    | st.integers(-(2**63), 2**63 - 1)
)  # fmt: skip
KEYS = TEXTS.filter(lambda key: key not in ("", ".") and "/" not in key)
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES,
        lambda part: (
            st.lists(part, max_size=3)
            | st.lists(part, max_size=3).map(tuple)
            | st.dictionaries(KEYS, part, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


def assert_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            assert_equal(one, two)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(found, expected)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, strict=True)
    elif isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(found)
    else:
        assert found == expected


@given(TREES)
def test_round_trip(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "tree.h5"
    fs.h5save(path, tree)
    assert_equal(fs.h5load(path), tree)


def test_mapped(tmp_path):
    x = np.arange(24.0, dtype="f4").reshape(4, 3, 2)
    half = torch.arange(6).to(torch.bfloat16)
    fs.h5save(tmp_path / "a.h5", {"x": x, "t": torch.ones(3), "half": half, "g": [x, 1, "s"]})
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.create_dataset("z", data=x, chunks=True)
        made = file.create_dataset("h", data=np.ones(6, "u2") * 0x3F80, chunks=True)
        made.attrs["fastseq"] = "bfloat16"
    found = fs.h5load(tmp_path / "a.h5", mmap=True)
    assert isinstance(found["x"], np.memmap)
    assert isinstance(found["z"], LazyDataset)
    assert isinstance(found["t"], np.memmap)
    assert isinstance(found["g"][0], np.memmap)
    assert found["g"][1:] == [1, "s"]
    np.testing.assert_array_equal(found["x"], x)
    assert torch.equal(found["half"].read(), half)
    assert found["h"].read().tolist() == [1] * 6
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["x"].id.get_offset() % 64 == 0
    # what is mapped may be saved under the same name: the file is replaced, not overwritten
    fs.h5save(tmp_path / "a.h5", {"x": found["x"]})
    np.testing.assert_array_equal(fs.h5load(tmp_path / "a.h5")["x"], x)
    np.testing.assert_array_equal(found["x"], x)


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (object(), TypeError, r"'x' in '/a' is builtins\.object"),
        (1j, TypeError, "complex"),
        (np.array([1j]), TypeError, "dtype complex128"),
        (np.array(["a", None]), TypeError, "dtype object"),
        (np.array(["a"]), TypeError, "dtype <U1"),
        (torch.ones(2, dtype=torch.complex64), TypeError, r"torch\.complex64"),
        (torch.ones(2, 2).to_sparse(), TypeError, "sparse"),
        (lambda: 0, TypeError, "function"),
        (b"bytes", TypeError, "bytes"),
        ({1, 2}, TypeError, "set"),
        (2**63, ValueError, "64 bits"),
        ("a\0b", ValueError, "NUL"),
        ("\ud800", ValueError, "surrogates"),
        ({1: 2}, ValueError, "keys must be non-empty strings"),
        ({"a/b": 2}, ValueError, "'a/b' in '/a/x'"),
        ({"": 2}, ValueError, "non-empty"),
        ({".": 2}, ValueError, "keys"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_leaves_the_old_file(tmp_path, value, error, match):
    fs.h5save(tmp_path / "a.h5", {"old": 1})
    with pytest.raises(error, match=match):
        fs.h5save(tmp_path / "a.h5", {"a": {"x": value}})
    assert fs.h5load(tmp_path / "a.h5") == {"old": 1}
    assert os.listdir(tmp_path) == ["a.h5"]


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="saves dicts, got list"):
        fs.h5save(tmp_path / "a.h5", [1])
    with pytest.raises(FileNotFoundError, match=r"no\.h5"):
        fs.h5load(tmp_path / "no.h5")
    (tmp_path / "bad.h5").write_bytes(b"PK" * 500)
    with pytest.raises(ValueError, match=r"bad\.h5 cannot be read as HDF5"):
        fs.h5load(tmp_path / "bad.h5")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["pairs"] = np.zeros(3, [("a", "f4"), ("b", "i4")])
    with pytest.raises(TypeError, match=r"'/pairs' in .*a\.h5 has dtype"):
        fs.h5load(path)
    with h5py.File(path, "w") as file:
        file["gone"] = h5py.SoftLink("/nowhere")
    with pytest.raises(ValueError, match=r"'gone' in '/' .* link"):
        fs.h5load(path)
    with h5py.File(path, "w") as file:
        file["g/again"] = file["/"]
    with pytest.raises(ValueError, match="contains itself"):
        fs.h5load(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (2**40, 2**10), "f8", chunks=(2**10, 2**10))
    with pytest.raises(MemoryError, match="mmap=True"):
        fs.h5load(path)
    assert fs.h5load(path, mmap=True)["x"].shape == (2**40, 2**10)
    with h5py.File(path, "w") as file:
        file["l/0"] = 1
        file["l/2"] = 1
        file["l"].attrs["fastseq"] = "list"
    with pytest.raises(ValueError, match="an item is missing in the list '/l'"):
        fs.h5load(path)
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("part.h5", "x", (2,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)
    for mmap in (False, True):
        with pytest.raises(ValueError, match=r"there is no file part\.h5"):
            fs.h5load(path, mmap=mmap)


def julia_file(path, fields):
    """As HDF5Utils.jl saves an object: arrays as datasets, what else it has as source text."""
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(6.0).reshape(3, 2, 1)
        space = h5py.h5s.create_simple((3, 2))
        mask = h5py.h5d.create(file.id, b"mask", h5py.h5t.NATIVE_B8.copy(), space)
        bits = np.array([[1, 0], [1, 1], [0, 0]], np.uint8)
        mask.write(h5py.h5s.ALL, h5py.h5s.ALL, bits, mtype=h5py.h5t.NATIVE_B8)
        # "grün" and "größe" in four bytes: padded with NUL, and cut within a character
        file.create_dataset("names", data=np.array([b"gr", "größe".encode()[:3]], "S4"))
        for name, text in fields.items():
            file[f"nonarray/{name}"] = text


def test_files_of_julia(tmp_path):
    fields = {"rate": "1.5", "sizes": "[1, 2]", "title": '"a "b" $(run(`ls`))"', "none": "nothing"}
    fields |= {"opts": "Dict(:lr => 1.0f-3, :on => true)", "kind": ":lstm"}
    julia_file(tmp_path / "a.h5", fields)
    found = fs.h5load(tmp_path / "a.h5")
    assert_equal(found["mask"], np.array([[True, False], [True, True], [False, False]]))
    assert found["names"].tolist() == ["gr", "gr�"]
    assert_equal(found["rate"], 1.5)
    assert_equal(found["sizes"], np.array([1, 2]))
    assert found["title"] == 'a "b" $(run(`ls`))'
    assert found["none"] is None
    assert found["opts"] == {"lr": 1e-3, "on": True}
    assert found["kind"] == "lstm"
    assert "nonarray" not in found
    assert fs.h5load(tmp_path / "a.h5", mmap=True)["mask"].dtype == bool

    julia_file(tmp_path / "b.h5", {"when": "now()"})
    with pytest.raises(ValueError, match=r"'when' in .*b\.h5 .*not run: 'now\(\)' is not a Julia"):
        fs.h5load(tmp_path / "b.h5")
    assert fs.h5load(tmp_path / "b.h5", literals=False)["when"] == "now()"


def test_our_own_texts_are_never_parsed(tmp_path):
    tree = {"nonarray": {"a": "1.5", "b": "now()"}}
    fs.h5save(tmp_path / "a.h5", tree)
    assert fs.h5load(tmp_path / "a.h5") == tree


def test_files_of_others(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["count"] = 3
        file["text"] = "1.5"
        file["words"] = ["ä", "bc"]
        file["z"] = np.array([1j])
        file["none"] = h5py.Empty("f4")
        file["big"] = np.arange(3, dtype=">i4")
        file["link"] = file["count"]
        file["type"] = np.dtype("f4")  # a named type, which is no data
    found = fs.h5load(tmp_path / "a.h5")
    assert found.pop("words").tolist() == ["ä", "bc"]
    assert found.pop("z").tolist() == [1j]
    assert found.pop("big").tolist() == [0, 1, 2]
    assert found == {"count": 3, "text": "1.5", "none": None, "link": 3}


def test_half_a_character_is_replaced_only_at_the_end():
    whole = "a€😀"
    for length in range(len(whole.encode()) + 1):
        cut = decode(whole.encode()[:length] + b"\0\0")
        kept = cut.removesuffix("�")
        assert whole.startswith(kept)
        assert cut == kept or whole.encode()[:length] != kept.encode()
    with pytest.raises(UnicodeDecodeError):
        decode(b"a\xe2b")
