"""Datasets behind links: in other files, under other names, and not there at all."""

from __future__ import annotations

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

import fastseq as fs
from fastseq.inference.destinations import place_of

A = np.random.default_rng(0).standard_normal((40, 6, 3)).astype("f4")


def estimator():
    torch.manual_seed(0)
    spec = {"epochs": 1, "batchsize": 3, "seqsize": 10}
    loss = fs.seqloss(torch.nn.functional.mse_loss)
    return fs.Estimator(torch.nn.Linear(3, 1), loss, torch.optim.SGD, spec, progress=False)


def h5(*arguments):
    command = [sys.executable, "-m", "fastseq", "h5", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def linked(tmp_path):
    """A file whose own first bytes are something else than what its links lead to."""
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["pad"] = np.ones(3, np.int8)
        file["x"] = A
        file["packed"] = file.create_dataset("p", data=A, chunks=(9, 6, 3), compression="gzip")
        for i in range(6):
            file[f"g/{i}"] = A[:, i]
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["own"] = np.arange(9000.0)
        file["soft"] = h5py.SoftLink("/x")
        for name in ("x", "packed", "g"):
            file[name] = h5py.ExternalLink("part.h5", f"/{name}")
        for i in range(6):
            file[f"items/{i}"] = h5py.ExternalLink("part.h5", f"/g/{i}")
    return tmp_path / "all.h5"


@pytest.mark.parametrize("name", ["x", "soft", "packed"])
def test_links_are_followed(name, linked):
    np.testing.assert_array_equal(np.asarray(fs.h5mmap(linked, name)), A)
    np.testing.assert_array_equal(np.asarray(fs.h5load(linked, mmap=True)[name]), A)
    with h5py.File(linked) as file:
        wanted = estimator().predict(A)
        np.testing.assert_array_equal(estimator().predict(file[name]), wanted)


@pytest.mark.parametrize("name", ["x", "soft", "packed"])
def test_what_is_written_goes_where_the_link_leads(name, linked):
    mapped = fs.h5mmap(linked, name, "r+")
    mapped[...] = 7
    if isinstance(mapped, np.memmap):
        mapped.flush()
    del mapped
    with h5py.File(linked) as file:
        np.testing.assert_array_equal(file["own"][()], np.arange(9000.0))
        assert (file[name][()] == 7).all()


def test_predictions_are_written_where_the_link_leads(linked):
    with h5py.File(linked.parent / "part.h5", "r+") as file:
        file.create_dataset("out", (40, 60, 20), "f4")
    x = np.ones((40, 60, 3), "f4")
    with h5py.File(linked, "r+") as file:
        file["out"] = h5py.ExternalLink("part.h5", "/out")
        assert place_of(file["out"]).path == str(linked.parent / "part.h5")
        model = torch.nn.Linear(3, 20)
        spec = {"epochs": 1, "batchsize": 3, "seqsize": 10}
        loss = fs.seqloss(torch.nn.functional.mse_loss)
        est = fs.Estimator(model, loss, torch.optim.SGD, spec, progress=False)
        est.predict(x, out=file["out"])
        np.testing.assert_array_equal(file["own"][()], np.arange(9000.0))
        wanted = model(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(file["out"][()], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["g", "items"])
def test_groups_of_links(name, linked):
    with h5py.File(linked) as file:
        predicted = estimator().predict(file[name])
    np.testing.assert_allclose(np.stack(predicted, 1), estimator().predict(A), rtol=1e-5, atol=1e-6)


def test_a_file_that_another_one_replaced_is_still_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = A
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = A * 0
    with h5py.File(tmp_path / "a.h5") as file:
        os.replace(tmp_path / "b.h5", tmp_path / "a.h5")
        np.testing.assert_array_equal(estimator().predict(file["x"]), estimator().predict(A))


def test_a_file_opened_by_a_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("a.h5", "w") as file:
        file["x"] = A
    with h5py.File("a.h5") as file:
        monkeypatch.chdir("/")
        np.testing.assert_array_equal(estimator().predict(file["x"]), estimator().predict(A))


@pytest.mark.parametrize("virtual", [True, False])
def test_h5concat_follows_links(virtual, linked, tmp_path):
    for i in range(2):
        with h5py.File(tmp_path / f"s{i}.h5", "w") as file:
            file["raw/y"] = A + i
            file["y"] = h5py.SoftLink("/raw/y")
            file["again"] = h5py.SoftLink("/raw")
            file["x"] = h5py.ExternalLink("all.h5", "/x")
            file["soft"] = h5py.SoftLink("/x")
            file["label"] = h5py.ExternalLink("label.h5", "/label")
    with h5py.File(tmp_path / "label.h5", "w") as file:
        file["label"] = "a text"
    (tmp_path / "out").mkdir()
    out = tmp_path / "out/all.h5"
    sources = [tmp_path / "s0.h5", tmp_path / "s1.h5"]
    fs.h5concat(out, sources, virtual=virtual, progress=False)
    with h5py.File(out) as file:
        assert sorted(file) == ["again", "label", "raw", "soft", "x", "y"]
        np.testing.assert_array_equal(file["x"][()], np.concatenate([A, A]))
        np.testing.assert_array_equal(file["soft"][()], np.concatenate([A, A]))
        np.testing.assert_array_equal(file["y"][()], np.concatenate([A, A + 1]))
        assert file["y"] == file["raw/y"] == file["again/y"], "one dataset under three names"
        assert file["label"][()] == b"a text"


def test_names_that_mean_one_dataset_in_some_files_only(tmp_path):
    for i in range(2):
        with h5py.File(tmp_path / f"s{i}.h5", "w") as file:
            file["a"] = A
            file["b"] = h5py.SoftLink("/a") if i == 0 else A + 1
    fs.h5concat(tmp_path / "o.h5", [tmp_path / "s0.h5", tmp_path / "s1.h5"], progress=False)
    with h5py.File(tmp_path / "o.h5") as file:
        np.testing.assert_array_equal(file["a"][()], np.concatenate([A, A]))
        np.testing.assert_array_equal(file["b"][()], np.concatenate([A, A + 1]))


def test_h5concat_does_not_replace_what_it_reads(linked, tmp_path):
    with pytest.raises(ValueError, match=r"part\.h5.* is the target of a link in the sources"):
        fs.h5concat(tmp_path / "part.h5", [linked], progress=False)
    np.testing.assert_array_equal(np.asarray(fs.h5mmap(linked, "x")), A)


def test_links_that_lead_nowhere_are_named(linked, tmp_path):
    (tmp_path / "part.h5").unlink()
    said = r"a link to '/x' in part\.h5, which is not there"
    with pytest.raises(ValueError, match=rf"'x' in .*all\.h5 is {said}"):
        fs.h5mmap(linked, "x")
    with pytest.raises(ValueError, match=r"h5concat: .* is a link to .* in part\.h5, which"):
        fs.h5concat(tmp_path / "o.h5", [linked], progress=False)
    with pytest.raises(ValueError, match=r"h5load: 'g' in '/' of .* in part\.h5, which"):
        fs.h5load(linked)
    with h5py.File(linked) as file, pytest.raises(ValueError, match=r"in which '0' is a link to"):
        estimator().predict(file["items"])
    check = h5("check", linked)
    assert check.returncode == 1
    assert "x: WRONG; a link to '/x' in part.h5, which is not there" in check.stdout
    assert "own: 9000 values" in check.stdout
    info = h5("info", linked)
    assert info.returncode == 0
    assert info.stdout.count("MISSING: a link to ") == 10


def test_h5_check_reads_what_links_lead_to(linked, tmp_path):
    with h5py.File(linked, "r+") as file:
        file["self"] = h5py.SoftLink("/")
        file["same"] = h5py.SoftLink("/own")
        del file["soft"]
    check = h5("check", linked)
    assert check.returncode == 0, check.stdout
    assert "x: 720 values" in check.stdout
    assert "same: the same as own" in check.stdout
    with open(tmp_path / "part.h5", "r+b") as file:
        content = file.read()
        file.seek(content.index(b"x\x9c" if b"x\x9c" in content else b"x\x5e") + 5)
        file.write(b"\xff" * 40)
    check = h5("check", linked)
    assert check.returncode == 1
    assert "packed: WRONG" in check.stdout
