"""Errors of the system, which HDF5 tells of in words, are not taken for damaged or missing data."""

from __future__ import annotations

import errno
import os
import resource

import h5py
import numpy as np
import pytest

import fastseq as fs

EIO = "Unable to synchronously open object (file read failed: errno = 5, error message = '...')"


@pytest.fixture
def path(tmp_path):
    fs.h5save(tmp_path / "data.h5", {"x": np.arange(6.0).reshape(3, 2)})
    return tmp_path / "data.h5"


def test_too_many_open_files(tmp_path):
    path = tmp_path / "large.h5"  # small ones are searched for damage before HDF5 opens them
    fs.h5save(path, {"x": np.zeros(600_000, "f4")})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            fs.h5mmap(path, "x")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert caught.value.errno == errno.EMFILE
    assert caught.value.filename == str(path)
    assert len(fs.h5mmap(path, "x")) == 600_000


@pytest.fixture
def unreadable(monkeypatch):
    get = h5py.Group.__getitem__

    def fails(group, name):
        if name == "x" and group.file.filename.endswith("data.h5"):
            raise KeyError(EIO)
        return get(group, name)

    monkeypatch.setattr(h5py.Group, "__getitem__", fails)


@pytest.mark.usefixtures("unreadable")
@pytest.mark.parametrize(
    "read",
    [
        lambda path: fs.h5mmap(path, "x"),
        fs.h5load,
        lambda path: fs.h5concat(path.with_name("all.h5"), [path, path]),
    ],
)
def test_a_dataset_that_cannot_be_read_is_not_missing(path, read):
    with pytest.raises(OSError, match="Input/output error") as caught:
        read(path)
    assert caught.value.errno == errno.EIO


def test_a_source_that_cannot_be_read_is_not_missing(path, request):
    fs.h5concat(path.with_name("all.h5"), [path, path])
    request.getfixturevalue("unreadable")
    with pytest.raises(OSError, match="Input/output error"):
        fs.h5mmap(path.with_name("all.h5"), "x")


def test_a_file_that_cannot_be_closed_does_not_replace_the_old_one(path, monkeypatch):
    before = path.read_bytes()
    close = h5py.File.close

    def fails(file):
        close(file)
        raise RuntimeError("Can't decrement id ref count (unable to close file, errno = 5, ...)")

    monkeypatch.setattr(h5py.File, "close", fails)
    with pytest.raises(
        OSError, match=r"h5save: the new file cannot be written.*unchanged"
    ) as caught:
        fs.h5save(path, {"x": np.zeros(1)})
    assert caught.value.errno == errno.EIO
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_new_file_is_on_the_disk_before_it_has_its_name(path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(os.fstat(fd).st_ino) or sync(fd))
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("renamed") or replace(*names))
    fs.h5save(path, {"x": np.zeros(1)})
    assert calls == [path.stat().st_ino, "renamed", path.parent.stat().st_ino]
