"""Files in pieces that change while they are read: an error, as with files in one piece."""

import os

import h5py
import numpy as np
import pytest
import torch

import fastseq as fs
from fastseq.data import source_kinds
from fastseq.data.chunk_plan import ChunkPlan
from fastseq.data.hdf5 import heaps
from fastseq.data.sequences import Sequences

T, N, F = 40, 8, 3
X = np.random.default_rng(0).standard_normal((T, N, F)).astype("f4")
KINDS = ["chunked", "packed", "two dimensions", "group", "virtual"]


def make(folder, name="x.h5"):
    with h5py.File(folder / name, "w") as file:
        file.create_dataset("chunked", data=X, chunks=(10, 4, 3))
        file.create_dataset("packed", data=X, chunks=(10, 4, 3), compression="gzip")
        file.create_dataset("two dimensions", data=X[:, :, 0], chunks=(10, 4))
        for n in range(N):
            file.create_dataset(f"group/{n}", data=X[:, n], chunks=(10, 3))
    return folder / name


def opened(path, kind, strict=True):
    """Open a file, as inputs, or as targets that lack an axis."""
    if kind == "group":
        with h5py.File(path) as file:
            return Sequences(file["group"], dtype=torch.float32, strict=strict)
    if kind == "two dimensions":
        return Sequences(X, fs.h5mmap(path, kind), dtype=torch.float32, strict=strict)
    if kind == "virtual":
        whole = path.with_name("all.h5")
        layout = h5py.VirtualLayout(X.shape, "f4")
        layout[:] = h5py.VirtualSource(path.name, "packed", X.shape)
        with h5py.File(whole, "w") as file:
            file.create_virtual_dataset("virtual", layout)
        path = whole
    return Sequences(fs.h5mmap(path, kind), dtype=torch.float32, strict=strict)


def read(data):
    for _ in data.batches(ChunkPlan(T, N, 4, 10).chunks()):
        pass


def write_to(path):
    with open(path, "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(range(100)))


def replace(path):
    os.replace(make(path.parent, "other.h5"), path)


CHANGES = {
    "it was written to": write_to,
    "its size changed": lambda path: os.truncate(path, os.path.getsize(path) + 1),
    "another file replaced it": replace,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", CHANGES)
def test_changes_are_errors(kind, what, tmp_path):
    path = make(tmp_path)
    data = opened(path, kind)
    read(data)
    read(data)  # nothing has changed
    CHANGES[what](path)
    message = rf"[xy](\[\d\])? could not be read at steps 0 to .*x\.h5 changed .*: {what}"
    for _ in range(2):
        with pytest.raises(fs.ReadError, match=message) as caught:
            read(data)
    name = {"group": "/group/", "virtual": "virtual"}.get(kind, kind)
    assert name in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_removed(kind, tmp_path):
    path = make(tmp_path)
    data = opened(path, kind)
    read(data)
    os.remove(path)
    with pytest.raises(fs.ReadError, match=r"x\.h5"):
        read(data)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_may_change_if_that_is_wanted(kind, tmp_path):
    path = make(tmp_path)
    data = opened(path, kind, strict=False)
    read(data)
    os.utime(path, ns=(0, 0))
    read(data)


def test_changes_between_opening_and_reading_are_none(tmp_path):
    path = make(tmp_path)
    mapped = fs.h5mmap(path, "packed", mode="r+")
    mapped[:] = X + 1
    read(Sequences(mapped, dtype=torch.float32))
    mapped[:] = X
    read(Sequences(mapped, dtype=torch.float32))


def test_predicting_into_the_file_that_is_read(tmp_path):
    path = make(tmp_path)
    with h5py.File(path, "a") as file:
        file.create_dataset("out", (T, N, F), "f4", chunks=(10, 4, 3))
    model = torch.nn.Linear(F, F)
    spec = {"epochs": 1, "batchsize": 4, "seqsize": 10}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    est = fs.Estimator(model, fs.seqloss(torch.nn.functional.mse_loss), optimizer, spec)
    x, out = fs.h5mmap(path, "packed"), fs.h5mmap(path, "out", mode="r+")
    est.predict(x, out=out)
    np.testing.assert_array_equal(np.asarray(out), est.predict(X))


def test_what_is_cut_short_is_never_read_as_zeros(tmp_path):
    path = make(tmp_path)
    mapped = fs.h5mmap(path, "chunked")
    first = mapped[:1]  # holds the file open
    assert np.asarray(first).any()
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(fs.ReadError, match=r"x\.h5: 'chunked'\[.*\] cannot be read"):
        np.asarray(mapped)


def test_what_was_read_before_another_file_replaced_it(tmp_path):
    path = make(tmp_path)
    mapped = fs.h5mmap(path, "packed")
    first = np.asarray(mapped[:1])  # holds the file open
    with h5py.File(tmp_path / "new.h5", "w") as file:
        file.create_dataset("packed", data=X + 1, chunks=(10, 4, 3), compression="gzip")
    os.replace(tmp_path / "new.h5", path)
    (_, batch), *_ = Sequences(mapped, dtype=torch.float32).batches(ChunkPlan(T, N, N, T).chunks())
    np.testing.assert_array_equal(batch.xs[:1], first)


def test_a_file_replaced_while_it_is_opened_by_its_path(tmp_path, monkeypatch):
    path = make(tmp_path)
    opening = source_kinds.h5mmap

    def late(*place):
        with h5py.File(tmp_path / "new.h5", "w") as file:
            file.create_dataset("packed", data=X + 1, chunks=(10, 4, 3))
        os.replace(tmp_path / "new.h5", path)
        return opening(*place)

    monkeypatch.setattr(source_kinds, "h5mmap", late)
    with h5py.File(path) as file:
        data = Sequences(file["packed"], dtype=torch.float32)
        (_, batch), *_ = data.batches(ChunkPlan(T, N, N, T).chunks())
    np.testing.assert_array_equal(batch.xs, X)


def test_a_group_of_a_file_that_was_damaged_after_it_was_opened(tmp_path):
    path = make(tmp_path)
    with h5py.File(path, locking=False) as file:
        group = file["group"]
        path.write_bytes(b"0" * path.stat().st_size)
        with pytest.raises(fs.ReadError, match=r"x is a group of .*x\.h5 that cannot be read"):
            Sequences(group, dtype=torch.float32)


def test_a_file_cut_short_while_its_heaps_are_looked_at(tmp_path, monkeypatch):
    path = make(tmp_path)
    wide = heaps._wide

    def late(data):
        os.truncate(path, 1000)
        return wide(data)

    monkeypatch.setattr(heaps, "_wide", late)
    heaps.check_heaps(str(path))  # the read of a mapped file would be SIGBUS


def mapped(path, kind):
    """Return views of a NumPy map that are no rows at equal distances in its file."""
    x = np.load(path, mmap_mode="c" if kind == "private" else "r")
    views = {
        "private": x,
        "columns": x[:, :, ::2],
        "list": [x[:, n, ::2] for n in range(N)],
        "one feature": x[:, :, 0],
    }
    return views[kind]


@pytest.mark.parametrize("kind", ["private", "columns", "list", "one feature"])
@pytest.mark.parametrize("strict", [True, False])
def test_maps_that_are_written_to(kind, strict, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    os.utime(path, ns=(0, 0))  # else its time may not tell
    x = mapped(path, kind)
    given = (X, x) if kind == "one feature" else (x,)
    data = Sequences(*given, dtype=torch.float32, strict=strict)
    read(data)
    read(data)
    write_to(path)
    if not strict:
        read(data)
        return
    with pytest.raises(fs.ReadError, match=r"x\.npy changed while it was read: it was written to"):
        read(data)


@pytest.mark.parametrize("kind", ["chunked", "columns"])
def test_predictions_are_of_files_that_do_not_change_unless_they_go_there(kind, tmp_path):
    path = make(tmp_path) if kind == "chunked" else tmp_path / "x.npy"
    if kind == "columns":
        np.save(path, X)
    x = fs.h5mmap(path, kind) if kind == "chunked" else mapped(path, kind)

    class Writes(torch.nn.Linear):
        def forward(self, a):
            write_to(path)
            return a

    os.utime(path, ns=(0, 0))  # else its time may not tell

    spec = {"epochs": 1, "batchsize": 4, "seqsize": 10}
    loss = fs.seqloss(torch.nn.functional.mse_loss)
    est = fs.Estimator(Writes(1, 1), loss, torch.optim.SGD, spec, progress=False, device="cpu")
    with pytest.raises(fs.ReadError, match="changed while it was read"):
        est.predict(x)
    est.predict(x, out=np.empty(x.shape, "f4"))


def test_a_group_that_is_written_to_before_it_is_read(tmp_path):
    path = make(tmp_path)
    with h5py.File(path) as file:
        place = h5py.h5o.get_info(file["group/3"].id).addr
    with h5py.File(path) as file:
        group = file["group"]
        with open(path, "r+b") as changed:
            changed.seek(place)
            changed.write(b"\xff" * 64)
        with pytest.raises(fs.ReadError, match=r"x\.h5 that cannot be read: the file is damaged"):
            Sequences(group, dtype=torch.float32)


def test_a_group_whose_file_another_one_replaces_before_it_is_read(tmp_path):
    """Its datasets would be at other places in the file."""

    def written(name, more):
        with h5py.File(tmp_path / name, "w") as file:
            file["before"] = np.full(more, np.inf)
            for n in range(N):
                file[f"x/{n}"] = X[:, n]
        return tmp_path / name

    path = written("x.h5", 1)
    with h5py.File(path, locking=False) as file:
        data = Sequences(file["x"], dtype=torch.float32)
        os.replace(written("new.h5", 10_000), path)
        with pytest.raises(
            fs.ReadError, match=r"x\.h5 is another file than the one that was opened"
        ):
            read(data)
