"""How datasets may be stored: other drivers, odd element types, filters, raw data, writers."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

import fastseq as fs
from fastseq.data.hdf5 import LazyDataset
from fastseq.data.hdf5.filters import raw_files
from fastseq.inference.destinations import place_of

A = np.random.default_rng(0).standard_normal((40, 6, 3)).astype("f4")


def estimator():
    torch.manual_seed(0)
    spec = {"epochs": 1, "batchsize": 3, "seqsize": 10}
    loss = fs.seqloss(torch.nn.functional.mse_loss)
    return fs.Estimator(torch.nn.Linear(3, 1), loss, torch.optim.SGD, spec, progress=False)


def predicted(file):
    """What is predicted of the dataset "x", and of the group "g" that has the same."""
    return estimator().predict(file["x"]), np.stack(estimator().predict(file["g"]), 1)


def put(file, array, **options):
    file.create_dataset("x", data=array, **(options and {"chunks": (9, 6, 3), **options}))
    for i in range(6):
        values = array[:, i]
        file.create_dataset(f"g/{i}", data=values, **(options and {"chunks": (9, 3), **options}))


def check(file):
    wanted = estimator().predict(A)
    for found in predicted(file):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
@pytest.mark.parametrize("driver", ["core", "fileobj", "split", "family", "stdio"])
def test_files_of_other_drivers_are_read(driver, options, tmp_path):
    path = tmp_path / ("a%d.h5" if driver == "family" else "a.h5")
    if driver == "fileobj":
        memory = io.BytesIO()
        with h5py.File(memory, "w") as file:
            put(file, A, **options)
            check(file)
        return
    with h5py.File(path, "w", driver=driver) as file:
        put(file, A, **options)
        check(file)
    with h5py.File(path, "r", driver=driver) as file:
        check(file)


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_a_file_that_was_changed_in_memory_only(options, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        put(file, A * 0, **options)
    with h5py.File(tmp_path / "a.h5", "r+", driver="core", backing_store=False) as file:
        file["x"][...] = A
        for i in range(6):
            file[f"g/{i}"][...] = A[:, i]
        check(file)


def bfloat16():
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_precision(16)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def float24():
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(23, 15, 8, 0, 15)
    kind.set_precision(24)
    kind.set_size(3)
    return kind


def shifted():
    kind = h5py.h5t.STD_I16LE.copy()
    kind.set_precision(9)
    kind.set_offset(4)
    return kind


def create(file, name, kind, array):
    space = h5py.h5s.create_simple(array.shape)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    made = h5py.h5d.create(file.id, name.encode(), kind, space, lcpl=links)
    h5py.Dataset(made)[...] = array


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("kind", [bfloat16, float24, shifted])
def test_types_that_numpy_lacks_are_converted(kind, mode, tmp_path):
    array = np.round(A * 20) if kind is shifted else A
    with h5py.File(tmp_path / "a.h5", "w") as file:
        create(file, "x", kind(), array)
        for i in range(6):
            create(file, f"g/{i}", kind(), array[:, i])
    with h5py.File(tmp_path / "a.h5", mode) as file:
        truth = file["x"][()].astype("f4")
        np.testing.assert_allclose(truth, array, rtol=2**-8)
        wanted = estimator().predict(truth)
        for found in predicted(file):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_predictions_are_converted_to_types_that_numpy_lacks(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        create(file, "out", bfloat16(), np.zeros((40, 600, 3), "f4"))
        assert place_of(file["out"]) is None
        model = torch.nn.Linear(3, 3)
        spec = {"epochs": 1, "batchsize": 3, "seqsize": 10}
        loss = fs.seqloss(torch.nn.functional.mse_loss)
        est = fs.Estimator(model, loss, torch.optim.SGD, spec, progress=False)
        x = np.tile(A, (1, 100, 1))
        est.predict(x, out=file["out"])
        wanted = model(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(file["out"][()], wanted, rtol=2**-7, atol=1e-6)


def test_a_filter_without_a_plugin_is_named(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(A.shape)
        plist.set_filter(471, h5py.h5z.FLAG_OPTIONAL)  # a number that is free for tests
        space = h5py.h5s.create_simple(A.shape)
        made = h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist)
        assert np.asarray(fs.h5mmap(path, "x")).shape == A.shape, "nothing is packed yet"
        made.write_direct_chunk((0, 0, 0), A.tobytes())
    said = r"'/?x' in .*a\.h5 cannot be read: it is packed with filter 471 .*import hdf5plugin"
    with pytest.raises(ValueError, match=said):
        fs.h5mmap(path, "x")
    with pytest.raises(ValueError, match=said):
        fs.h5load(path)
    with pytest.raises(ValueError, match=said):
        fs.h5concat(tmp_path / "b.h5", [path], progress=False)
    for mode in ("r", "r+"):
        with h5py.File(path, mode) as file, pytest.raises(ValueError, match=said):
            estimator().predict(file["x"])
    layout = h5py.VirtualLayout(A.shape, "f4")
    layout[...] = h5py.VirtualSource("a.h5", "x", A.shape)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    with pytest.raises(ValueError, match=r"sources cannot be read: .* packed with filter 471"):
        fs.h5mmap(tmp_path / "v.h5", "x")


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_raw_data_that_were_cut_short(mode, tmp_path):
    path, raw = tmp_path / "a.h5", [str(tmp_path / "1.bin"), str(tmp_path / "2.bin")]
    external = [(raw[0], 0, 1440), (raw[1], 8, h5py.h5f.UNLIMITED)]
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", A.shape, "f4", external=external)
        x[...] = A
        assert raw_files(x) == {raw[0]: 1440, raw[1]: 1448}
    with h5py.File(path, mode) as file:
        np.testing.assert_array_equal(estimator().predict(file["x"]), estimator().predict(A))
    os.truncate(raw[1], 1447)
    said = r"2\.bin, which holds its raw data, has been cut short: it has 1447 bytes of 1448"
    with pytest.raises(ValueError, match=said):
        fs.h5mmap(path, "x")
    with h5py.File(path, mode) as file, pytest.raises(ValueError, match=said):
        estimator().predict(file["x"])
    check = subprocess.run(
        [sys.executable, "-m", "fastseq", "h5", "check", str(path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert check.returncode == 1
    assert "has been cut short" in check.stdout
    os.unlink(raw[1])
    with pytest.raises(ValueError, match=r"there is no file .*2\.bin, which holds its raw data"):
        fs.h5mmap(path, "x")


def test_raw_data_that_are_cut_short_while_they_are_read(tmp_path):
    raw = str(tmp_path / "raw.bin")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=A, external=[(raw, 0, A.nbytes)])
    x = fs.h5mmap(tmp_path / "a.h5", "x").watched()
    np.testing.assert_array_equal(np.asarray(x[:20]), A[:20])
    os.truncate(raw, A.nbytes // 2)
    with pytest.raises(fs.FastseqError, match=r"raw\.bin changed while it was read"):
        np.asarray(x[20:])


def test_raw_data_beside_the_file(tmp_path):
    (tmp_path / "raw").mkdir()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        x = file.create_dataset(
            "x", data=A, external=[("raw.bin", 0, A.nbytes)], efile_prefix="${ORIGIN}/raw"
        )
        assert raw_files(x) == {str(tmp_path / "raw/raw.bin"): A.nbytes}
        np.testing.assert_array_equal(estimator().predict(x), estimator().predict(A))


def test_datasets_without_a_dataspace_are_called_empty(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = h5py.Empty("f4")
    with pytest.raises(ValueError, match=r"'x' in .*a\.h5 is empty: it has a type, but no elem"):
        fs.h5mmap(tmp_path / "a.h5", "x")
    with h5py.File(tmp_path / "a.h5") as file:
        said = "x is the dataset /x, which is empty: it has a type, but no elements"
        with pytest.raises(ValueError, match=said):
            estimator().predict(file["x"])
        with pytest.raises(ValueError, match=said):
            estimator().fit(file["x"], A[..., :1])
        for wrapper in (fs.SequenceRegressor(), fs.SequenceClassifier()):
            with pytest.raises(ValueError, match=said.replace("x is", "X is")):
                wrapper.fit(file["x"], np.zeros(4, int))
            with pytest.raises(ValueError, match=said.replace("x is", "y is")):
                wrapper.fit(A, file["x"])
        with pytest.raises(ValueError, match=said.replace("x is", "y is")):
            fs.SequenceForecaster().fit(file["x"])
    assert fs.h5load(tmp_path / "a.h5") == {"x": None}


_WRITER = """
import h5py, numpy as np, sys
path, swmr = sys.argv[1], sys.argv[2] == "swmr"
file = h5py.File(path, "w", libver="latest")
array = np.load(path + ".npy")
x = file.create_dataset("x", data=array, maxshape=(None, 6, 3), chunks=(8, 6, 3))
file["whole"] = array
file.flush()
if swmr:
    file.swmr_mode = True
print(flush=True)
sys.stdin.readline()
x.resize(80, 0)
x[40:] = array
x.flush()
print(flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def writer(tmp_path):
    path = str(tmp_path / "a.h5")
    np.save(path + ".npy", A)
    processes = []

    def start(mode):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, path, mode],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        processes.append(process)
        process.stdout.readline()
        return path, process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_file_that_its_single_writer_has_open_is_read(writer):
    path, process = writer("swmr")
    x, whole = fs.h5mmap(path, "x"), fs.h5mmap(path, "whole")
    assert isinstance(whole, LazyDataset)
    np.testing.assert_array_equal(np.asarray(x), A)
    wanted = estimator().predict(A)
    for array in (x, whole):
        np.testing.assert_array_equal(estimator().predict(array), wanted)
    with h5py.File(path, swmr=True) as file:
        np.testing.assert_array_equal(estimator().predict(file["x"]), wanted)
        np.testing.assert_array_equal(estimator().predict(file["whole"]), wanted)
    watched = x.watched()
    np.testing.assert_array_equal(np.asarray(watched[:20]), A[:20])
    process.stdin.write("\n")
    process.stdin.flush()
    process.stdout.readline()
    np.testing.assert_array_equal(np.asarray(watched[20:]), A[20:])
    np.testing.assert_array_equal(estimator().predict(x), wanted)
    del x, whole, watched
    np.testing.assert_array_equal(np.asarray(fs.h5mmap(path, "x")), np.concatenate([A, A]))


def test_a_file_that_another_process_writes_to_or_left_open(writer):
    path, process = writer("plain")
    with pytest.raises(BlockingIOError, match="another process has it open for writing"):
        fs.h5mmap(path, "x")
    process.kill()
    process.communicate()
    with pytest.raises(BlockingIOError, match=r"marked as open for writing.*h5clear --status"):
        fs.h5mmap(path, "x")
