"""Views of memory maps: right values, and an error where their file has been cut short."""

import os
import pickle

import h5py
import numpy as np
import pytest
import torch

import fastseq as fs
from fastseq.data import mapped_arrays
from fastseq.data.chunk_plan import ChunkPlan
from fastseq.data.hdf5 import LazyDataset
from fastseq.data.samples_first import SamplesFirst
from fastseq.data.sequences import Sequences
from fastseq.inference.destinations import check_destination

STEPS, COUNT, FEATURES = 300, 6, 8

VIEWS = {
    "batch first": lambda a: (a.transpose(1, 0, 2), lambda m: m.transpose(1, 0, 2), "r"),
    "Fortran": lambda a: (np.asfortranarray(a), lambda m: m, "r"),
    "features": lambda a: (np.concatenate([a, a], 2), lambda m: m[:, :, :FEATURES], "r"),
    "backwards": lambda a: (a[::-1], lambda m: m[::-1], "r"),
    "private": lambda a: (a, lambda m: m, "c"),
    "plain view": lambda a: (a, np.asarray, "r"),
}


def load(x):
    """Return all that is read of x."""
    data = x if isinstance(x, Sequences) else Sequences(x, dtype=torch.float32)
    lengths = data.lengths
    plan = ChunkPlan(
        steps=data.steps, sequences=data.count, batchsize=4, seqsize=50, rank=0, size=1,
        by_time=False, lengths=lengths,
    )  # fmt: skip
    out = torch.zeros(data.steps, data.count, FEATURES)
    for c, batch in data.batches(plan.chunks()):
        out[c.t0 : c.t1, c.n0 : c.n1, : batch.xs.shape[2]] = batch.xs
    return out


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_views(view, ragged, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_arrays, "_READ_BYTES", 100 if ragged else 2**16)
    x = np.random.default_rng(0).standard_normal((STEPS, COUNT, FEATURES)).astype(np.float32)
    stored, seen, mode = VIEWS[view](x)
    path = tmp_path / "x.npy"
    np.save(path, stored)
    mapped = seen(np.load(path, mmap_mode=mode))
    data = [mapped[:, n] for n in range(COUNT)] if ragged else mapped
    np.testing.assert_array_equal(load(data), x)
    os.truncate(path, 5000)
    with pytest.raises(fs.ReadError, match=r"x\.npy"):  # it would be SIGBUS
        load(data)


def write(path, value):
    """Make a file, or replace it, as programs do that write files safely."""
    x = np.full((STEPS, COUNT, FEATURES), value, np.float32)
    if path.suffix == ".npy":
        np.save(path.with_name("new.npy"), x)
        os.replace(path.with_name("new.npy"), path)
    else:
        with h5py.File(path.with_name("new.h5"), "w") as file:
            file["x"] = x
        os.replace(path.with_name("new.h5"), path)
    return path


def mapping(path):
    return np.load(path, mmap_mode="r+") if path.suffix == ".npy" else fs.h5mmap(path, "x", "r+")


USES = {
    "array": lambda m: m,
    "list": lambda m: [m[:, n : n + 1, 0] for n in range(COUNT)],
    "rows of a list": lambda m: [m[t] for t in range(3)],
    "features": lambda m: m[:, :, ::2],
    "samples": lambda m: SamplesFirst(m),
}


@pytest.mark.parametrize("change", ["replaced", "removed"])
@pytest.mark.parametrize("name", ["x.npy", "x.h5"])
@pytest.mark.parametrize("use", USES)
def test_a_map_whose_file_another_one_replaced(use, name, change, tmp_path):
    path = write(tmp_path / name, 1)
    data = USES[use](mapping(path))
    read = Sequences(data, dtype=torch.float32)
    chunk = ChunkPlan(read.steps, read.count, 4, 50).chunks()
    (_, batch), *_ = read.batches(chunk)
    assert (batch.xs == 1).any()
    if change == "replaced":
        write(path, 2)  # the map still has the old values
    else:
        path.unlink()
    with pytest.raises((fs.ReadError, FileNotFoundError), match=name):
        list(Sequences(data, dtype=torch.float32).batches(ChunkPlan(2, 2, 4, 50).chunks()))


def test_outputs_to_a_map_whose_file_another_one_replaced(tmp_path):
    path = write(tmp_path / "x.npy", 1)
    out = mapping(path)
    check_destination("out", out, out.shape, torch.zeros(1))
    write(path, 2)
    with pytest.raises(ValueError, match="out is a map of a file that is gone, or that another"):
        check_destination("out", out, out.shape, torch.zeros(1))


def test_a_file_cut_short_between_a_check_and_the_read(tmp_path, monkeypatch):
    mapped = mapping(write(tmp_path / "x.npy", 1))
    data = Sequences(mapped[:, :, ::2], dtype=torch.float32)
    os.truncate(tmp_path / "x.npy", 5000)
    monkeypatch.setattr(os.path, "getsize", lambda _: 10**9)
    with pytest.raises(fs.ReadError, match=r"x\.npy"):  # it would be SIGBUS
        load(data)


HALF = torch.randn(STEPS, COUNT, FEATURES, generator=torch.Generator().manual_seed(1)).bfloat16()
LAYOUTS = {"one piece": {}, "chunked": {"chunks": (50, 2, 8), "compression": "gzip"}}


def save_half(path, **options):
    """Save it as h5save does, in chunks if these are given."""
    fs.h5save(path, {"x": HALF})
    if options:
        with h5py.File(path, "a") as file:
            marks = dict(file["x"].attrs)
            del file["x"]
            file.create_dataset("x", data=HALF.view(torch.uint16).numpy(), **options)
            file["x"].attrs.update(marks)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", ["all", "box", "features", "list"])
def test_bfloat16_of_a_file_that_is_cut_short(layout, part, tmp_path):
    path = save_half(tmp_path / "x.h5", **LAYOUTS[layout])
    x, expected = fs.h5load(path, mmap=True)["x"], HALF.float()
    if part == "box":
        x, expected = x[7:, 1:-1], expected[7:, 1:-1]
    elif part == "features":
        x, expected = x[:, :, 2:], torch.nn.functional.pad(expected[:, :, 2:], (0, 2))
    elif part == "list":
        parts = h5py.File(tmp_path / "list.h5", "w")
        for n in range(COUNT):
            parts[str(n)] = HALF[:, n].contiguous().view(torch.uint16).numpy()
            parts[str(n)].attrs["fastseq"] = "bfloat16"
        parts.close()
        path = tmp_path / "list.h5"
        x = list(fs.h5load(path, mmap=True).values())
    data = Sequences(x, dtype=torch.float32)
    assert torch.equal(load(data), expected)
    os.truncate(path, 2100 if part == "list" else 5000)
    with pytest.raises(fs.ReadError, match=path.name):  # it would be SIGBUS
        load(data)
    # ValueError: the file is opened again if nobody has it open
    with pytest.raises((fs.ReadError, ValueError), match=path.name):
        x[0].read() if part == "list" else x.read()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_reads_what_is_wanted(layout, tmp_path, monkeypatch):
    x = fs.h5load(save_half(tmp_path / "x.h5", **LAYOUTS[layout]), mmap=True)["x"]
    sizes = []
    into = LazyDataset.read_into
    monkeypatch.setattr(
        LazyDataset, "read_into", lambda s, out: [sizes.append(out.size), into(s, out)]
    )
    assert (x.shape, x.dtype, len(x[3:9, 2:]), sizes) == (HALF.shape, torch.bfloat16, 6, [])
    assert torch.equal(x[3:9, 2:].read(), HALF[3:9, 2:])
    assert torch.equal(x[5, :, 1], HALF[5, :, 1])
    assert x[5, 2, 1] == HALF[5, 2, 1]
    assert torch.equal(x[::50], HALF[::50])
    np.testing.assert_array_equal(np.asarray(x[:9]), HALF[:9].float())
    assert max(sizes) <= HALF[:251].numel()
    assert torch.equal(pickle.loads(pickle.dumps(x[3:])).read(), HALF[3:])  # noqa: S301
    fs.h5save(tmp_path / "again.h5", {"x": x})
    assert torch.equal(fs.h5load(tmp_path / "again.h5")["x"], HALF)
    with pytest.raises(ValueError, match="out is read-only"):
        check_destination("out", x, x.shape, HALF)


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_targets_in_bfloat16_without_an_axis(layout, mode, tmp_path):
    path = save_half(tmp_path / "x.h5", **LAYOUTS[layout])
    with h5py.File(path, "a") as file:
        y = file.create_dataset(
            "y", data=file["x"][:, :, 0], chunks=(50, 2) if "d" in layout else None
        )
        y.attrs["fastseq"] = "bfloat16"
    with h5py.File(path, mode) as file:
        data = Sequences(file["x"], file["y"], dtype=torch.float32)
        for c, batch in data.batches(ChunkPlan(STEPS, COUNT, 4, 50).chunks()):
            assert torch.equal(batch.ys, HALF[c.t0 : c.t1, c.n0 : c.n1, :1].float())


@pytest.mark.parametrize("chunks", [None, (50, 2, 8)])
def test_bfloat16_in_hdf5(chunks, tmp_path):
    x = torch.randn(STEPS, COUNT, FEATURES, generator=torch.Generator().manual_seed(0)).bfloat16()
    fs.h5save(tmp_path / "x.h5", {"x": x})
    with h5py.File(tmp_path / "x.h5", "r") as source, h5py.File(tmp_path / "c.h5", "w") as file:
        c = file.create_dataset("x", data=source["x"][()], chunks=chunks)
        c.attrs.update(source["x"].attrs)
        file["row"] = source["x"][:, 0]
        file["row"].attrs.update(source["x"].attrs)
    with h5py.File(tmp_path / "c.h5", "r") as file:
        assert torch.equal(load(file["x"]), x.float())
        with pytest.raises(TypeError, match="bfloat16"):
            load([file["row"]])
    with pytest.raises(TypeError, match="bfloat16, which NumPy lacks"):
        fs.h5mmap(tmp_path / "c.h5", "x")
    assert torch.equal(load(fs.h5load(tmp_path / "c.h5", mmap=True)["x"]), x.float())


def test_what_is_no_array_of_steps(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.zeros((5, 4, 3))
        file["inside/y"] = np.zeros((5, 4, 1))
        with pytest.raises(TypeError, match=r"group /, which holds inside/, x \(5, 4, 3\)"):
            load(file)
        with pytest.raises(TypeError, match=r"which holds y \(5, 4, 1\)"):
            load(file["inside"])
        closed = file["x"]
    with pytest.raises(ValueError, match="x is from a file that has been closed"):
        load(closed)
    with pytest.raises(TypeError, match="masked array"):
        load(np.ma.masked_greater(np.arange(12.0).reshape(2, 3, 2), 5))
    with pytest.raises(TypeError, match="dense"):
        load(torch.ones(5, 4, 3).to_sparse())
    with pytest.raises(TypeError, match=r"x\[0\] must be an array"):
        load(_Dicts())


class _Dicts(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"a": np.zeros((3, 2))}, np.zeros((3, 1))


def test_a_dataset_to_validate_on():
    x = torch.randn(6, 20, 3, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, x.mean(2, keepdim=True))
    losses = []
    for apart in (data, ([*x], [*x.mean(2, keepdim=True)])):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        spec = {"epochs": 1, "batchsize": 2, "seqsize": 5}
        est = fs.Estimator(model, fs.seqloss(torch.nn.functional.mse_loss), optimizer, spec)
        losses.append(est.fit(data, validation=apart).history_[-1]["validation_loss"])
    assert losses[0] == losses[1] > 0
