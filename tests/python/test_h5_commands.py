"""python -m fastseq h5 concat|info|check."""

from __future__ import annotations

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

import fastseq as fs
from fastseq.__main__ import main


@pytest.fixture
def h5(tmp_path, monkeypatch, capsys):
    """Run a command in a folder of some files; return exit code, output, messages."""
    monkeypatch.chdir(tmp_path)
    for i in (2, 10):
        with h5py.File(f"p{i}.h5", "w") as file:
            file.create_dataset("x", data=np.full((3, 2, 1), i, "f4"))
            file.create_dataset("z", data=np.full((4, 2), i), chunks=(2, 2), compression="gzip")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastseq", "h5", *arguments])
        code = main()
        return (code, *capsys.readouterr())

    return run


def test_concat(h5):
    assert h5("concat", "all.h5", "p*.h5", "--axis", "1") == (0, "", "")
    with h5py.File("all.h5") as file:
        assert file["x"].is_virtual
        assert file["x"][0, :, 0].tolist() == [2, 2, 10, 10]
    assert h5("concat", "all.h5", "p10.h5", "p2.h5", "--copy") == (0, "", "")
    with h5py.File("all.h5") as file:
        assert not file["x"].is_virtual
        assert file["x"][:, 0, 0].tolist() == [10, 10, 10, 2, 2, 2]
    assert h5("concat", "all.h5", "p10.h5", "p2.h5", "--copy", "--compress") == (0, "", "")
    with h5py.File("all.h5") as file:
        assert (file["x"].compression, file["x"].shuffle) == ("gzip", True)
        assert file["x"][:, 0, 0].tolist() == [10, 10, 10, 2, 2, 2]
    code, out, message = h5("concat", "all.h5", "p*.h5", "--compress")
    assert (code, out, message) == (1, "", "error: --compress is for copies; add --copy\n")
    code, out, message = h5("concat", "all.h5", "q*.h5")
    assert (code, out) == (1, "")
    assert message.startswith("error: ")
    assert "q*.h5" in message


def test_concat_along_two_axes(h5):
    groups = ["p2.h5", "p10.h5", ",", "p10.h5", "p2.h5"]
    assert h5("concat", "all.h5", *groups, "--axis", "0,1") == (0, "", "")
    with h5py.File("all.h5") as file:
        assert file["x"][:, :, 0].tolist() == [[2, 2, 10, 10]] * 3 + [[10, 10, 2, 2]] * 3
    assert h5("concat", "all.h5", "p*.h5", "--axis", "0,1")[0] == 0
    with h5py.File("all.h5") as file:
        assert file["x"].shape == (3, 4, 1)
    code, _, message = h5("concat", "all.h5", *groups)
    assert (code, "a list of lists needs two axes" in message) == (1, True)
    code, _, message = h5("concat", "all.h5", "p2.h5", ",", "--axis", "0,1")
    assert (code, "at least one file" in message) == (1, True)


def test_info_names_bfloat16(h5):
    fs.h5save("half.h5", {"x": torch.ones(4, dtype=torch.bfloat16), "n": np.ones(4, "u2")})
    lines = h5("info", "half.h5")[1].splitlines()
    assert [line.split()[2] for line in lines] == ["dtype", "uint16", "bfloat16"]


def test_info(h5):
    with h5py.File("p2.h5", "a") as file:
        file["g/names"] = ["a"]
        file["none"] = h5py.Empty("f4")
        file.create_dataset("sums", data=np.ones(4), chunks=(4,), shuffle=True, fletcher32=True)
        file.create_dataset("later", (5,), "i2")
    code, out, _ = h5("info", "p2.h5")
    assert code == 0
    rows = [[cell.strip() for cell in line.split("  ") if cell] for line in out.splitlines()]
    assert rows == [
        ["dataset", "shape", "dtype", "layout", "bytes", "mapped"],
        ["g/names", "(1,)", "string", "contiguous", "8", "no"],
        ["later", "(5,)", "int16", "contiguous", "10", "no"],
        ["none", "None", "float32", "empty", "0", "no"],
        ["sums", "(4,)", "float64", "chunked (4,), shuffle + fletcher32", "32", "no"],
        ["x", "(3, 2, 1)", "float32", "contiguous", "24", "yes"],
        ["z", "(4, 2)", "int64", "chunked (2, 2), gzip", "64", "no"],
    ]
    h5py.File("empty.h5", "w").close()
    assert h5("info", "empty.h5")[:2] == (0, "empty.h5 holds no dataset\n")
    code, out, message = h5("info", "no.h5")
    assert code == 1
    assert "no.h5" in message


def test_info_of_virtual_datasets(h5):
    with h5py.File("p2.h5", "a") as file:
        file["g/names"] = ["a"]
    with h5py.File("p10.h5", "a") as file:
        file["g/names"] = ["a"]
    h5("concat", "all.h5", *["p2.h5"] * 30, "p10.h5")
    os.rename("p10.h5", "gone.h5")
    lines = h5("info", "all.h5")[1].splitlines()
    assert sum(line == "  p2.h5: x" for line in lines) == 20
    assert lines.count("  and 11 more") == 2
    assert lines.count("  MISSING: there is no file p10.h5") == 2
    assert sum("virtual, 31 sources" in line for line in lines) == 2


def test_check(h5):
    with h5py.File("p2.h5", "a") as file:
        file["x"][1, :, 0] = [np.nan, np.inf]
        # only part of it was written: the rest is not read
        file.create_dataset("huge", (2**40, 8), "f8", chunks=(8, 8))[8:10] = np.nan
        file.create_dataset("later", (2**40,), "f8")
    h5("concat", "all.h5", "p10.h5")
    code, out, _ = h5("check", "p2.h5", "p10.h5", "all.h5")
    assert code == 0
    assert out.splitlines() == [
        "p2.h5", "  huge: 16 of 64 values are not finite", "  later: 0 values",
        "  x: 2 of 6 values are not finite", "  z: 8 values",
        "p10.h5", "  x: 6 values", "  z: 8 values",
        "all.h5", "  x: 6 values", "  z: 8 values",
        "3 files: nothing is damaged or missing",
    ]  # fmt: skip


def test_check_finds_what_is_damaged_or_missing(h5):
    with h5py.File("p2.h5") as file:
        chunk = file["z"].id.get_chunk_info(1)
    with open("p2.h5", "r+b") as file:
        file.seek(chunk.byte_offset + 2)
        file.write(b"\xff" * 8)
    h5("concat", "all.h5", "p10.h5")
    os.rename("p10.h5", "gone.h5")
    code, out, _ = h5("check", "p2.h5", "all.h5")
    assert code == 1
    lines = out.splitlines()
    assert lines[2].startswith("  z: WRONG; [2:4, 0:2] cannot be read")
    assert lines[4] == "  x: WRONG; there is no file p10.h5"
    assert "nothing is damaged" not in out
    with open("p2.h5", "r+b") as file:
        file.truncate(600)
    code, out, message = h5("check", "p2.h5")
    assert code == 1
    assert "p2.h5 cannot be read as HDF5" in message


def test_from_the_shell(h5):
    command = [sys.executable, "-m", "fastseq", "h5"]
    done = subprocess.run([*command, "check", "p2.h5"], capture_output=True, text=True, check=False)
    lines = "p2.h5", "  x: 6 values", "  z: 8 values", "1 file: nothing is damaged or missing"
    assert (done.returncode, done.stdout.splitlines()) == (0, [*lines])
    done = subprocess.run([*command, "check", "p3.h5"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
