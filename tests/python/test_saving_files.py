"""Files of estimators: written whole or not at all; what is no such file is refused."""

from __future__ import annotations

import copy
import json
import os
import pickle

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import chain
from safetensors import safe_open
from safetensors.torch import save_file
from saved import data, fitted, load
from torch import nn

import fastseq as fs
from fastseq.checkpoint.encoding import decode, encode
from fastseq.checkpoint.format import Image, read, write


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_a_failure_leaves_the_old_file(path, monkeypatch):
    est = fitted()
    est.save(path)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
        with pytest.raises(OSError, match="no space"):
            est.save(path)
    est.model.register_buffer("odd", torch.eye(2).to_sparse())
    with pytest.raises(TypeError, match=r"odd"):
        est.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_where_nothing_can_be_written(tmp_path):
    est = fitted()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        est.save(tmp_path / "nowhere" / "model")
    with pytest.raises(IsADirectoryError):
        est.save(tmp_path)
    for bad in (None, 3):
        with pytest.raises(TypeError):
            est.save(bad)


def test_where_nothing_can_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(TypeError):
        load(None)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("writer", ["torch", "torch, old", "pickle", "pickle 0", "joblib"])
def test_pickles_are_refused(writer, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if writer == "torch":
        torch.save(Evil(), path)
    elif writer == "torch, old":
        torch.save(Evil(), path, _use_new_zipfile_serialization=False)
    elif writer == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif writer == "pickle 0":
        path.write_bytes(pickle.dumps(Evil(), protocol=0))
    else:
        __import__("joblib").dump(Evil(), path)
    with pytest.raises(
        fs.CheckpointError, match="pickle" if writer != "pickle 0" else "incomplete"
    ):
        load(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\0" * 100, b"{}" * 20, b"some text\n" * 10, b"\xff" * 50]
)
def test_other_files_are_refused(content, path):
    path.write_bytes(content)
    with pytest.raises(fs.CheckpointError):
        load(path)


def test_files_of_tensors_that_are_no_estimators(path):
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(fs.CheckpointError, match="not written by"):
        load(path)
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)
    with pytest.raises(fs.CheckpointError):
        load(path)
    rewritten(path, {"kind": "something else"})
    with pytest.raises(fs.CheckpointError, match=r"not written by Estimator\.save"):
        load(path)


def test_checkpoints_and_saved_estimators_are_told_apart(path, tmp_path):
    x, y = data()
    est = fitted()
    est.fit(x, y, checkpoint=tmp_path / "run")
    newest = max((tmp_path / "run").glob("*.safetensors"))
    with pytest.raises(fs.CheckpointError, match=r"not written by Estimator\.save"):
        load(newest)
    est.save(path)
    with pytest.raises(fs.CheckpointError, match="is not a checkpoint of fit"):
        est.fit(x, y, resume=path)


def rewritten(path, content):
    image = Image()
    image.take(*encode(content))
    write(path, image)


def edited(path, edit):
    """Change what a file holds, with a checksum that fits."""
    tensors, text = read(path)
    content = decode(text, tensors)
    edit(content)
    rewritten(path, content)


def test_other_versions_are_refused(path):
    fitted().save(path)
    edited(path, lambda content: content.update(format=2))
    with pytest.raises(
        fs.CheckpointError, match="format 2, but this version of fastseq reads format 1"
    ):
        load(path)


@pytest.mark.parametrize("key", ["layers", "spec", "options", "fitted", "model", "state", "frozen"])
def test_files_that_lack_something(key, path):
    fitted().save(path)
    edited(path, lambda content: content.pop(key))
    with pytest.raises(fs.CheckpointError, match="lacks a part of what this version"):
        load(path)


def test_a_file_that_names_code_runs_none(path):
    fitted().save(path)
    edited(path, lambda content: content.update(layers={"layer": "os.system", "command": "true"}))
    with pytest.raises(ValueError, match=r"'os\.system' is not a layer"):
        load(path)


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (lambda: chain(hidden=5), r"0\.weight_ih_l0 is float32 \(20, 3\) in the model, but .*\(16, 3\)"),
        (lambda: chain().double(), r"0\.weight_ih_l0 is float64 \(16, 3\) in the model, but float32"),
        (lambda: nn.GRU(3, 4), r"weight_ih_l0, float32 \(12, 3\) in the model, is missing from the file"),
        (lambda: fs.nn.Chain(nn.LSTM(3, 4)), r"1\.weight, float32 \(1, 4\) in the file, is missing"),
    ],
)  # fmt: skip
def test_the_first_difference_to_another_model_is_named(model, difference, path):
    fitted().save(path)
    other = model()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(fs.CheckpointError, match="another model: " + difference):
        load(path, other)
    for name, a in other.state_dict().items():
        assert torch.equal(a, before[name])  # nothing was changed


def test_a_description_that_does_not_fit_its_weights(path):
    fitted().save(path)
    edited(path, lambda content: content["model"].update({"1.weight": torch.ones(2, 4)}))
    with pytest.raises(
        fs.CheckpointError, match=r"1\.weight is float32 \(1, 4\) in the model, but"
    ):
        load(path)
    edited(path, lambda content: content["model"].pop("1.weight"))
    with pytest.raises(
        fs.CheckpointError, match=r"1\.weight, float32 \(1, 4\) in the model, is missing"
    ):
        load(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a file with all there can be holds."""
    path = tmp_path_factory.mktemp("whole") / "model"
    torch.manual_seed(0)
    est = fitted(chain(hidden=2), scale_x="standard", scale_y="standard")
    est.predict(data()[0])
    est.save(path, state=True)
    return path.read_bytes()


def test_truncated_files_are_refused(whole, path):
    for length in {*range(0, len(whole), 97), 7, 8, 9, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(fs.CheckpointError):
            load(path)


@settings(max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(place, bit, whole, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "flipped"
    flipped = bytearray(whole)
    index = int(place * len(whole))
    flipped[index] ^= 1 << bit
    path.write_bytes(flipped)
    with pytest.raises(fs.CheckpointError):
        load(path)


def test_the_header_is_text(whole, path):
    path.write_bytes(whole)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    json.loads(header["fastseq"])
