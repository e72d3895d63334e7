"""Damaged files give errors, never a crash, a hang, or memory without end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import fastseq as fs
from fastseq.data.hdf5.heaps import check_heaps

CASES = 150  # of each layout
SECONDS = 20  # per case
ALLOWED = ("ValueError", "TypeError", "FileNotFoundError", "OSError", "MemoryError", "EOFError",
           "UnicodeDecodeError", "ReadError")  # fmt: skip

# Reads the numbers of cases to do, and says of each what has become of it, before the next begins.
CHILD = """
import contextlib, json, os, pathlib, resource, signal, sys
import numpy as np
import fastseq as fs
from fastseq.data.hdf5.commands import check_file, describe_file
from test_h5_fuzz import SECONDS, damaged

resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30,) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
source, mode = sys.argv[1:]
path = os.path.join(os.path.dirname(source), "damaged.h5")

def mapped():
    for name in ("x", "g/y"):
        np.asarray(fs.h5mmap(path, name)).sum()

WAYS = {
    "h5mmap": mapped,
    "h5load": lambda: fs.h5load(path),
    "h5load mapped": lambda: fs.h5load(path, mmap=True),
    "copy": lambda: fs.h5concat("all.h5", [path, source], virtual=False, progress=False),
    "concat": lambda: fs.h5concat("all.h5", [path]),
    "check": lambda: check_file(path),
    "info": lambda: describe_file(path),
}
whole = pathlib.Path(source).read_bytes()
for line in sys.stdin:
    case = int(line)
    pathlib.Path(path).write_bytes(damaged(whole, mode, case))
    came = {}
    for way, run in WAYS.items():
        print(json.dumps(way), flush=True)
        signal.alarm(SECONDS)  # ends the process
        with contextlib.redirect_stdout(None):
            try:
                run()
                came[way] = "done"
            except Exception as error:
                came[way] = f"{type(error).__name__}: {error}"
    print(json.dumps(came), flush=True)
"""


def damaged(whole: bytes, mode: str, case: int) -> bytes:
    rng = np.random.default_rng([case, len(mode)])
    if mode == "truncated":
        return whole[: rng.integers(0, len(whole))]
    cut = bytearray(whole)
    # most of a file is data: half of the damage goes to its first 3000 bytes, the structure
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, len(cut) if rng.random() < 0.5 else min(3000, len(cut))))
        cut[at] = int(rng.integers(0, 256)) if mode == "bytes" else cut[at] ^ (1 << rng.integers(8))
    return bytes(cut)


def make(folder: Path, layout: str) -> Path:
    x = np.random.default_rng(0).standard_normal((20, 6, 3)).astype("f4")
    options = {"gzip": {"chunks": (8, 4, 2), "compression": "gzip", "shuffle": True},
               "chunked": {"chunks": (8, 4, 2)}}.get(layout, {})  # fmt: skip
    target = folder / "whole.h5"
    path = folder / "part.h5" if layout == "virtual" else target
    with h5py.File(path, "w", libver="latest" if layout == "latest" else None) as file:
        file.create_dataset("x", data=x, **options)
        file.create_dataset("g/y", data=x[:, :, :2], **options)
        file["g/y"].attrs["unit"] = "V"
        file["g/names"] = ["one", "two"]
        file["n"] = 3
    if layout == "virtual":
        fs.h5concat(target, [path, path])
    return target


DAMAGE = [
    ("truncated", "contiguous"),
    ("truncated", "virtual"),
    ("bits", "gzip"),
]


@pytest.mark.parametrize(
    ("mode", "layout"),
    [
        pytest.param(mode, layout, marks=() if (mode, layout) in DAMAGE else pytest.mark.slow)
        for mode in ("truncated", "bits", "bytes")
        for layout in ("contiguous", "chunked", "gzip", "virtual", "latest")
    ],
)
def test_damage(tmp_path, layout, mode):
    source = make(tmp_path, layout)
    left = list(range(CASES // 3))
    counts = {"done": 0, "error": 0}
    wrong = []
    while left:
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(source), mode], cwd=tmp_path, text=True, check=False,
            input="\n".join(map(str, left)), capture_output=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )  # fmt: skip
        said = [json.loads(line) for line in child.stdout.splitlines()]
        finished = [came for came in said if isinstance(came, dict)]
        for case, came in zip(left, finished, strict=False):
            for way, what in came.items():
                counts["done" if what == "done" else "error"] += 1
                if what != "done" and not what.startswith(ALLOWED):
                    wrong.append((case, way, what))
        left = left[len(finished) :]
        if left:  # the process has died
            assert said, child.stderr
            wrong.append(
                (left.pop(0), said[-1], f"ended with {child.returncode}", child.stderr[-300:])
            )
    assert not wrong, "\n".join(map(str, wrong))
    assert counts["error"] > 20
    assert mode == "truncated" or counts["done"] > 20
    left_behind = {path.name for path in tmp_path.iterdir()}
    assert left_behind <= {"whole.h5", "part.h5", "damaged.h5", "all.h5"}


def test_whole_heaps_are_taken_for_whole(tmp_path):
    for layout in ("contiguous", "virtual", "latest"):
        folder = tmp_path / layout
        folder.mkdir()
        check_heaps(make(folder, layout))
    for lengths, userblock in ((8, 0), (4, 0), (8, 2048)):
        path = tmp_path / "other.h5"
        plist = h5py.h5p.create(h5py.h5p.FILE_CREATE)
        plist.set_sizes(8, lengths)
        plist.set_userblock(userblock)
        with h5py.File(h5py.h5f.create(bytes(path), h5py.h5f.ACC_TRUNC, fcpl=plist)) as file:
            file["names"] = ["one", "three" * 50, ""]
            layout = h5py.VirtualLayout((6,), "f4")
            for i in range(6):
                layout[i : i + 1] = h5py.VirtualSource(f"part{i}.h5", "x" * i or "y", (1,))
            file.create_virtual_dataset("x", layout)
            file["gone"] = ["a" * 300] * 50
            del file["gone"]
            file["more"] = ["b" * 100] * 50
        check_heaps(path)
        whole = path.read_bytes()
        # a byte of a source's name, which the checksum guards
        path.write_bytes(whole.replace(b"part3.h5", b"part4.h5"))
        if lengths == 8:
            with pytest.raises(ValueError, match=r"other\.h5 is damaged: its heap at byte \d+"):
                check_heaps(path)


def test_a_damaged_heap_is_no_crash(tmp_path):
    """In the first, HDF5 writes beyond its memory; in the second, it never ends."""
    source = make(tmp_path, "virtual")
    for case in (29, 76):
        path = tmp_path / "damaged.h5"
        path.write_bytes(damaged(source.read_bytes(), "bits", case))
        with pytest.raises(ValueError, match=r"damaged\.h5 is damaged: its heap"):
            fs.h5load(path)
