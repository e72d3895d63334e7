"""Several ranks that predict into what they are given: files, arrays, datasets, lists."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from models import TwoInputs, adamw, chain
from torch.nn.functional import mse_loss

import fastseq as fs

LOSS = fs.seqloss(mse_loss)
T, N = 21, 13
LENGTHS = np.array([3, 21, 0, 7, 21, 1, 5, 5, 12, 9, 0, 14, 2])


def data(steps=T, count=N):
    return torch.randn(steps, count, 3, generator=torch.Generator().manual_seed(1))


def estimators(model):
    """Return one of all ranks, and one of this process alone."""
    spec = fs.Spec(1, 2, 5)
    options = {"progress": False}
    return (
        fs.Estimator(model, LOSS, adamw, spec, **options),
        fs.Estimator(model, LOSS, adamw, spec, comm=None, **options),
    )


def same(got, expected):
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def written(monkeypatch):
    """Which sequences this rank has written, and to what."""
    from fastseq.inference import destinations as targets

    found = []
    for kind in (targets.ArrayTarget, targets.FileTarget, targets.RaggedTarget):

        def write(self, chunk, values, kind=kind, original=kind.write):
            found.append((kind.__name__, chunk.n0, chunk.n1))
            original(self, chunk, values)

        monkeypatch.setattr(kind, "write", write)
    return found


def shared_out(written, comm):
    """Each rank has written its part, behind the array's back, and nothing twice."""
    begin, end = N * comm.rank // comm.size, N * (comm.rank + 1) // comm.size
    assert {kind for kind, _, _ in written} <= {"FileTarget"}
    assert all(begin <= n0 < n1 <= end for _, n0, n1 in written)
    assert bool(written) == (end > begin)


@pytest.mark.parametrize("where", ["every rank", "rank 0"])
def test_memory_map(comm, folder, written, where):
    model, x = chain(), data()
    many, one = estimators(model)
    expected = one.predict(x)
    written.clear()
    out = None
    if comm.rank == 0:
        out = np.memmap(folder / "out", np.float32, "w+", 12, (T, N, 1))
    comm.barrier()
    if where == "every rank" and comm.rank:
        out = np.memmap(folder / "out", np.float32, "r+", 12, (T, N, 1))
    assert many.predict(x, out=out) is out
    if comm.size > 1:
        shared_out(written, comm)
    same(np.memmap(folder / "out", np.float32, "r", 12, (T, N, 1)), expected)
    if out is not None:
        same(out, expected)


def test_a_memory_map_of_its_own_on_each_rank(comm, folder):
    model, x = chain(), data()
    many, one = estimators(model)
    out = np.memmap(folder / f"out{comm.rank}", np.float32, "w+", shape=(T, N, 1))
    many.predict(x, out=out)
    same(out, one.predict(x))


@pytest.mark.parametrize("steps", [T, 3000])  # the smaller one fits into a buffer of HDF5's
@pytest.mark.parametrize("before", ["nothing", "written", "read"])
def test_contiguous_dataset(comm, folder, written, steps, before):
    model, x = chain(), data(steps)
    many, one = estimators(model)
    many.spec = one.spec = fs.Spec(1, 4, 500)
    expected = one.predict(x)
    written.clear()
    path = folder / "out.h5"
    if comm.rank == 0:
        with h5py.File(path, "w") as file:
            file.create_dataset("other", data=np.arange(5.0))
            out = file.create_dataset("y", (steps, N, 1), np.float32)
            if before == "written":
                out[:] = 3
                out[5, 5] = 4
            if before == "read":
                out[0, 1] = 3
                assert out[0, 0, 0] == 0
            assert many.predict(x, out=out) is out
            for n in range(N):  # small pieces, which HDF5 reads through its buffer
                same(out[0, n], expected[0, n])
            same(out[...], expected)
        if comm.size > 1 and steps > T:
            shared_out(written, comm)
    else:
        assert many.predict(x, out=None) is None
        if steps > T:
            shared_out(written, comm)
        else:
            assert not written
    comm.barrier()
    with h5py.File(path) as file:
        same(file["y"][...], expected)
        assert file["other"][...].tolist() == [0, 1, 2, 3, 4]
    comm.barrier()


@pytest.mark.parametrize("given", ["h5py", "LazyDataset on all", "LazyDataset on rank 0"])
def test_chunked_dataset_is_written_by_rank_0(comm, folder, written, given):
    model, x = chain(), data()
    many, one = estimators(model)
    expected = one.predict(x)
    written.clear()
    path = folder / "out.h5"
    if comm.rank == 0:
        with h5py.File(path, "w") as file:
            file.create_dataset("y", (T, N, 1), np.float32, chunks=(4, 3, 1), compression="gzip")
    comm.barrier()
    out = None
    if given == "h5py" and comm.rank == 0:
        out = h5py.File(path, "r+")["y"]
    if given != "h5py" and (comm.rank == 0 or given.endswith("all")):
        out = fs.h5mmap(path, "y", mode="r+")
    assert many.predict(x, out=out) is out
    assert bool(written) == (comm.rank == 0)
    if out is not None and given == "h5py":
        out.file.close()
    elif out is not None:
        same(out, expected)
    comm.barrier()
    with h5py.File(path) as file:
        same(file["y"][...], expected)
    comm.barrier()


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_memory(comm, kind):
    model, x = chain(), data()
    many, one = estimators(model)
    make = np.empty if kind == "array" else torch.empty
    dtype = np.float64 if kind == "array" else torch.float64
    out = make((T, N, 1), dtype=dtype)
    assert many.predict(x, out=out) is out
    same(out, one.predict(x))
    out = make((T, N, 1), dtype=dtype) if comm.rank == 0 else None
    assert many.predict(x, out=out) is out
    if comm.rank == 0:
        same(out, one.predict(x))


def test_several_outputs_of_several_kinds(comm, folder):
    x = data(), data()[..., :2]
    model = TwoInputs()
    many, one = estimators(model)
    expected = one.predict(x)
    out = None
    if comm.rank == 0:
        with h5py.File(folder / "out.h5", "w") as file:
            file.create_dataset("level", (T, N, 1), np.float32, chunks=True)
        level = fs.h5mmap(folder / "out.h5", "level", mode="r+")
        hidden = np.memmap(folder / "hidden", np.float32, "w+", shape=(T, N, 4))
        out = {"level": level, "hidden": hidden}
    assert many.predict(x, out=out) is out
    same(np.memmap(folder / "hidden", np.float32, "r", shape=(T, N, 4)), expected["hidden"])
    with h5py.File(folder / "out.h5") as file:
        same(file["level"][...], expected["level"])


@pytest.mark.parametrize("given", ["nothing", "map", "chunked"])
def test_lengths(comm, folder, written, given):
    model, x = chain(), data()
    many, one = estimators(model)
    expected = one.predict(x, lengths=LENGTHS)
    written.clear()
    out = None
    if given == "map" and comm.rank == 0:
        out = np.memmap(folder / "out", np.float32, "w+", shape=(T, N, 1))
    if given == "chunked" and comm.rank == 0:
        out = h5py.File(folder / "out.h5", "w").create_dataset("y", (T, N, 1), "f4", chunks=True)
    got = many.predict(x, lengths=LENGTHS, out=out)
    if given == "map":  # each sequence by one rank
        writers = torch.zeros(N)
        for _, n0, n1 in written:
            writers[n0:n1] = 1
        assert (comm.allreduce_(writers, "sum") == 1).all()
    if given == "nothing" or comm.rank == 0:
        same(got[...], expected)
    torch.testing.assert_close(many.get_state(), one.get_state())
    more = many.predict(x[:3], reset=False)
    same(more, one.predict(x[:3], reset=False))
    if given == "chunked" and comm.rank == 0:
        out.file.close()


@pytest.mark.parametrize("given", ["nothing", "arrays", "arrays on rank 0", "hdf5"])
@pytest.mark.parametrize("count", [1, 2, N])
def test_lists(comm, folder, given, count):
    x = [a[:length] for a, length in zip(data().unbind(1), np.sort(LENGTHS)[-count:], strict=False)]
    model = chain()
    many, one = estimators(model)
    expected = one.predict(x)
    out = None
    if given.startswith("arrays") and (comm.rank == 0 or not given.endswith("0")):
        out = [np.empty((len(a), 1)) for a in x]
    file = h5py.File(folder / "out.h5", "w") if comm.rank == 0 else None
    if given == "hdf5" and comm.rank == 0:
        out = [file.create_dataset(str(n), (len(a), 1), np.float32) for n, a in enumerate(x)]
    got = many.predict(x, out=out)
    assert given == "nothing" or got is out
    for n, wanted in enumerate(expected if got is not None else []):
        same(got[n], wanted)
    torch.testing.assert_close(many.get_state(), one.get_state())
    if file is not None:
        file.close()


def fails_everywhere(comm, failing, own, message, action):
    if comm.rank == failing:
        with pytest.raises(own, match=message):
            action()
    else:
        with pytest.raises(fs.RemoteError, match=f"rank {failing} failed: .*{message}"):
            action()
    comm.barrier()


def test_one_rank_that_was_given_what_does_not_fit(comm, folder):
    many, _ = estimators(chain())
    x, last = data(), comm.size - 1
    out = np.memmap(folder / f"out{comm.rank}", np.float32, "w+", shape=(T, N, 1))
    out[...] = 5
    mine = out[1:] if comm.rank == last else out
    action = lambda: many.predict(x, out=mine)  # noqa: E731
    fails_everywhere(comm, last, ValueError, "out must have the shape", action)
    assert (out == 5).all()  # not even a token is left
    if comm.size == 1:
        return
    with h5py.File(folder / "out.h5", "w") if comm.rank == 0 else np.nditer([0]) as file:
        mine = file.create_dataset("y", (T, N, 1), "f4", chunks=True) if comm.rank == 0 else None
        mine = out if comm.rank == 1 else mine
        action = lambda: many.predict(x, out=mine)  # noqa: E731
        message = "of one kind on all ranks, or None on all but rank 0: rank 0 was given a dataset"
        fails_everywhere(comm, 1, TypeError, message, action)


def test_a_failure_to_write_on_rank_0_is_raised_on_all(comm):
    class Full:
        shape, dtype = (T, N, 1), np.float32

        def __setitem__(self, box, values):
            if box[0].start:
                raise OSError(28, "No space left on device")

    many, _ = estimators(chain())
    out = Full() if comm.rank == 0 else None
    message = "out could not be written at steps 5 to 10, sequences 0 to"
    fails_everywhere(comm, 0, OSError, message, lambda: many.predict(data(), out=out))
