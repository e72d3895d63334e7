"""Files of checkpoints: what they hold, what comes of damaged ones, and what is refused."""

from __future__ import annotations

import collections
import errno
import fcntl
import io
import json
import math
import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch

import fastseq as fs
from fastseq.checkpoint import format as files
from fastseq.checkpoint.encoding import decode, encode
from fastseq.checkpoint.folder import Generations
from fastseq.checkpoint.format import Image, read, write


def write_one(path, tensors, text="{}"):
    image = Image()
    image.take(tensors, text)
    write(path, image)


def same(a, b):
    """Compare trees with tensors, to the bit and with all types."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        return all(same(p, q) for p, q in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor | np.ndarray):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        return bool((a == b).all())
    return a == b or (math.isnan(a) and math.isnan(b))


TREE = {
    "numbers": [1, True, 2**80, -0.1, 1e-310, math.inf, -math.inf, math.nan, "ä\n", None],
    "nested": {0: (torch.ones(2, 3), [torch.tensor(4)]), 1: {"a": {}, "b": (), "c": []}},
    "keys": {1: "a", "1": "b", (1, "x"): "c", 1.5: "d", None: "e", True.__class__.__name__: "f"},
    "counter": collections.Counter({3: 2}),
    "array": np.arange(5, dtype=np.uint32),
    "a.b": torch.zeros(0, 3),
    "a": {"b": torch.full((), 2.0, dtype=torch.float64)},
}


def test_trees_come_back_from_a_file(tmp_path):
    path = tmp_path / "x"
    write_one(path, *encode(TREE))
    tensors, text = read(path)
    assert same(decode(text, tensors), TREE)


def test_all_dtypes_and_views(tmp_path):
    dtypes = [
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
        torch.bfloat16, torch.float32, torch.float64, torch.uint16, torch.uint32, torch.uint64,
    ]  # fmt: skip
    tensors = {str(d): torch.arange(7).to(d)[1:] for d in dtypes}
    tensors["transposed"] = torch.arange(6.0).view(2, 3).T
    tensors["expanded"] = torch.ones(1).expand(3)
    write_one(tmp_path / "x", tensors)
    found, _ = read(tmp_path / "x")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(found[name], tensor)
        assert same(safetensors.torch.load_file(tmp_path / "x")[name], tensor)


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"a": [1, {"b": object()}]}, r"a\.1\.b is a builtins\.object"),
        ({"a": {object: 1}}, "a has <class 'object'>"),
        ({"a": {"b": torch.ones(2).to_sparse()}}, r"a\.b is torch\.sparse_coo"),
        ({"a": np.array(["x"])}, r"a is a numpy\.ndarray"),
        (lambda: 0, "it is a builtins.function"),
    ],
)
def test_what_is_no_data_is_told_with_its_place(tree, where):
    with pytest.raises(TypeError, match=where):
        encode(tree)


@pytest.mark.parametrize(
    "text",
    ['{"tensor": "none"}', '{"eval": "1+1"}', '{"a": 1, "b": 2}', '{"dict": [1]}', "[", "{}"],
)
def test_texts_of_others(text):
    with pytest.raises(ValueError, match=r"not written by fastseq|Expecting|not enough values|too"):
        decode(text, {})


def test_an_image_is_a_copy_and_its_memory_is_used_again(tmp_path):
    image, a = Image(), torch.zeros(1000)
    image.take({"a": a}, "1")
    memory = image.parts()[1].obj.__array_interface__["data"]
    a += 1
    write(tmp_path / "x", image)
    assert read(tmp_path / "x")[0]["a"].sum() == 0
    image.take({"a": a}, "2")
    assert image.parts()[1].obj.__array_interface__["data"] == memory
    image.take({"a": a, "b": torch.ones(2, dtype=torch.float64)}, "3")
    write(tmp_path / "x", image)
    assert read(tmp_path / "x")[0]["a"].sum() == 1000


class Watched(io.FileIO):
    """A file that counts the bytes past the page cache; and that fails somewhere."""

    def __init__(self, path, end, error):
        super().__init__(path, "wb")
        self.direct, self.end, self.error = 0, end, error

    def write(self, data):
        direct = bool(fcntl.fcntl(self, fcntl.F_GETFL) & os.O_DIRECT)
        if self.tell() >= self.end and (direct or self.error != errno.EINVAL):
            raise OSError(self.error, os.strerror(self.error))
        written = super().write(data)
        self.direct += written if direct else 0
        return written


def watch(monkeypatch, end, error):
    opened = []

    def watched(path, mode, buffering):
        assert (mode, buffering) == ("wb", 0)
        opened.append(Watched(path, end, error))
        return opened[0]

    monkeypatch.setattr(files, "open", watched, raising=False)
    monkeypatch.setattr(files, "_AT_ONCE", 8192)
    return opened


def can_write_directly(folder):
    try:
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 5 * 4096, (1 << 20) + 4100])
@pytest.mark.parametrize("most", [0, 16384, 1 << 40])
def test_whole_blocks_go_past_the_page_cache(tmp_path, monkeypatch, length, most):
    data = torch.arange(length).to(torch.uint8)
    with monkeypatch.context() as patched:
        opened = watch(patched, 4096 + most, errno.EINVAL)  # behind the header
        write_one(tmp_path / "x", {"a": data}, "text")
    found, text = read(tmp_path / "x")
    assert text == "text"
    assert torch.equal(found["a"], data)
    if can_write_directly(tmp_path):
        assert opened[0].direct == min(length // 4096 * 4096, most)


def test_a_disk_that_is_full_in_the_middle(tmp_path, monkeypatch):
    write_one(tmp_path / "x", {"a": torch.ones(2)}, "before")
    with monkeypatch.context() as patched:
        watch(patched, 4096 + 8192, errno.ENOSPC)
        with pytest.raises(OSError, match="No space left"):
            write_one(tmp_path / "x", {"a": torch.ones(9999)}, "after")
    assert read(tmp_path / "x")[1] == "before"
    assert names(tmp_path) == ["x"]


def generation(folder, *values, keep=2):
    generations = Generations(folder, keep)
    for value in values:
        generations.write({"a": torch.full((50,), float(value))}, str(value))
    generations.finish()
    return generations


def names(folder):
    return sorted(os.listdir(folder))


def test_last_ones_are_kept(tmp_path):
    generations = generation(tmp_path, 1, 2, 3, 4)
    assert names(tmp_path) == ["checkpoint-000003.safetensors", "checkpoint-000004.safetensors"]
    assert generations.newest()[1] == "4"
    assert generation(tmp_path, 5, keep=3).newest()[1] == "5"  # another process goes on
    assert len(names(tmp_path)) == 3


def test_those_that_killed_runs_have_not_removed(tmp_path, monkeypatch):
    """A run that is killed while it writes or removes leaves one too many, however many are."""
    generation(tmp_path, 1, 2, 3, 4, keep=4)
    there = []

    def watched(path, image):
        write(path, image)
        there.extend(names(tmp_path))

    monkeypatch.setattr("fastseq.checkpoint.folder.write", watched)
    generation(tmp_path, 5, keep=2)
    assert there == [f"checkpoint-00000{n}.safetensors" for n in (3, 4, 5)]
    assert names(tmp_path) == there[1:]


def cut(path):
    os.truncate(path, path.stat().st_size - 3)


def cut_to_nothing(path):
    os.truncate(path, 0)


def cut_in_header(path):
    os.truncate(path, 30)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def flip_text(path):
    path.write_bytes(path.read_bytes().replace(b'"fastseq": "2"', b'"fastseq": "7"'))


def replace_by_pickle(path):
    torch.save({"a": 1}, path)


def replace_by_text(path):
    path.write_text("hello")


@pytest.mark.parametrize(
    "damage",
    [cut, cut_to_nothing, cut_in_header, flip, flip_text, replace_by_pickle, replace_by_text],
)
def test_damaged_ones_are_told_and_the_one_before_is_used(tmp_path, damage):
    generation(tmp_path, 1, 2)
    damage(tmp_path / "checkpoint-000002.safetensors")
    generations = Generations(tmp_path)
    with pytest.warns(UserWarning, match=r"checkpoint-000002.* the previous checkpoint is used"):
        tensors, text = generations.newest()
    assert text == "1"
    assert tensors["a"][0] == 1
    generations.write({"a": torch.zeros(1)}, "3")
    generations.finish()
    assert names(tmp_path) == ["checkpoint-000001.safetensors", "checkpoint-000003.safetensors"]


def test_one_that_cannot_be_read_now_is_not_removed(tmp_path, monkeypatch):
    generation(tmp_path, 1, 2)
    generations = Generations(tmp_path)

    def read_but_2(path):
        if path.name == "checkpoint-000002.safetensors":
            raise OSError(5, "Input/output error")
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr("fastseq.checkpoint.folder.read", read_but_2)
        with pytest.warns(UserWarning, match=r"Input/output error.*the previous checkpoint"):
            assert generations.newest()[1] == "1"
    generations.write({"a": torch.zeros(1)}, "3")
    generations.finish()
    assert names(tmp_path) == ["checkpoint-000002.safetensors", "checkpoint-000003.safetensors"]
    assert read(tmp_path / "checkpoint-000002.safetensors")[1] == "2"


def test_two_that_write_the_same_file_do_not_meet(tmp_path, monkeypatch):
    path, flush, ended = tmp_path / "x", os.fsync, []

    def flush_later(handle):
        flush(handle)
        if not ended:  # the other one begins and ends before the first one's renaming
            ended.append(True)
            write_one(path, {"a": torch.zeros(3)}, "2")
            assert read(path)[1] == "2"

    monkeypatch.setattr(os, "fsync", flush_later)
    write_one(path, {"a": torch.ones(9)}, "1")
    assert read(path)[1] == "1"
    assert names(tmp_path) == ["x"]


def test_none_is_whole(tmp_path):
    assert Generations(tmp_path / "none").newest() is None
    generation(tmp_path, 1)
    cut(tmp_path / "checkpoint-000001.safetensors")
    with pytest.warns(UserWarning, match="incomplete"):
        assert Generations(tmp_path).newest() is None


def test_pickles_are_refused_unopened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "x").write_bytes(pickle.dumps(Bomb(), protocol))
        with pytest.raises(fs.CheckpointError, match=r"looks like a pickle.* could run code"):
            read(tmp_path / "x")
    for zipped in (True, False):
        torch.save({"a": 1}, tmp_path / "x", _use_new_zipfile_serialization=zipped)
        with pytest.raises(fs.CheckpointError, match="looks like a pickle"):
            read(tmp_path / "x")
    (tmp_path / "x").write_bytes(pickle.dumps(Bomb(), 0))
    with pytest.raises(fs.CheckpointError, match="was not written by fastseq"):
        read(tmp_path / "x")
    assert not (tmp_path / "exploded").exists()


def test_headers_of_any_length_are_no_pickles(tmp_path):
    """The first byte is the length's lowest, which may be what pickles begin with."""
    for length in range(0, 3000, 61):
        write_one(tmp_path / "x", {"a": torch.ones(1)}, json.dumps("x" * length))
        assert read(tmp_path / "x")[0]["a"] == 1


def test_other_safetensors(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "x")
    with pytest.raises(fs.CheckpointError, match=r"was not written by fastseq"):
        read(tmp_path / "x")


def test_a_folder_that_is_gone_has_no_previous_one(tmp_path):
    (tmp_path / "run").mkdir()
    generations = generation(tmp_path / "run", 1)
    shutil.rmtree(tmp_path / "run")
    generations.write({"a": torch.ones(2)}, "2")
    with pytest.raises(FileNotFoundError, match=r"could not be written to .*; the folder is gone$"):
        generations.finish()


def test_a_failed_write_leaves_the_ones_before(tmp_path, monkeypatch):
    generations = generation(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        generations.write({"a": torch.ones(2)}, "2")
        with pytest.raises(OSError, match=r"could not be written to .*: No space left"):
            generations.finish()
        generations.write({"a": torch.ones(2)}, "3")
        generations._writing.join()
        with pytest.raises(OSError, match="No space left"):
            generations.raise_if_failed()
    assert names(tmp_path) == ["checkpoint-000001.safetensors"]
    assert generations.newest()[1] == "1"
    generations.raise_if_failed()
    generations.write({"a": torch.ones(2)}, "4")
    generations.finish()
    assert generations.newest()[1] == "4"


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none"):
        with pytest.raises(OSError, match=r"checkpoint: the folder .* cannot be written"):
            Generations(folder).take()
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / ".checkpoint-000002.safetensors.a0.tmp").write_text("left")
    (tmp_path / "a" / "b" / "other.tmp").write_text("somebody's")
    generations = Generations(tmp_path / "a" / "b")
    generations.take()
    generations.release()
    assert names(tmp_path / "a" / "b") == ["other.tmp"]


def test_nothing_is_told_of_whole_ones(tmp_path):
    generation(tmp_path, 1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Generations(tmp_path).newest()[1] == "2"
