"""Memory does not grow with the data: anonymous and mapped pages while files are read."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

N, F, B, S = 1000, 50, 250, 50
STEP_BYTES = N * F * 4
GROWN, MAPPED = 300, 500  # MB

# Samples what the kernel counts while a pass runs; a first pass over little data makes what any
# pass makes once (buffers of libraries, modules that are imported on first use).
SCRIPT = """
import json, sys, threading
import numpy as np, torch
from torch.nn.functional import mse_loss
import fastseq as fs

def sizes():
    lines = open("/proc/self/status").read().splitlines()
    return {l.split(":")[0]: int(l.split()[1]) / 1e3 for l in lines if l.startswith("Rss")}

def watch(highest, done):
    while not done.wait(0.002):
        for kind, size in sizes().items():
            highest[kind] = max(highest[kind], size)

def estimator(**more):
    model = torch.nn.Linear(x.shape[2], 1)
    spec = {"epochs": 1, "batchsize": 250, "seqsize": 50, **more}
    return fs.Estimator(
        model, fs.seqloss(mse_loss), lambda p: torch.optim.SGD(p, lr=0.01), spec, progress=False
    )

path, what = sys.argv[1:]
x, y = fs.h5mmap(path, "x"), fs.h5mmap(path, "y")
est = estimator()
first = slice(0, 100)
est.fit(x[first], y[first])
est.predict(x[first])
before = sizes()
highest, done = dict(before), threading.Event()
sampler = threading.Thread(target=watch, args=(highest, done), daemon=True)
sampler.start()
exec(what)
done.set()
sampler.join()
print(json.dumps({
    "grown": highest["RssAnon"] - before["RssAnon"],
    "mapped": highest["RssFile"],
    "updates": est.history_[-1]["updates"],
}))
"""


def contiguous(file: h5py.File, name: str, shape: tuple[int, ...]) -> None:
    """Make a dataset that has its place in the file, of which nothing is written: a sparse file."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, plist)


def compressed(file: h5py.File, name: str, shape: tuple[int, ...]) -> None:
    """Make a dataset of compressed chunks, all of which are the same bytes."""
    chunks = (100, 125, shape[2])
    dataset = file.create_dataset(name, shape, np.float32, chunks=chunks, compression=1)
    packed = zlib.compress(np.zeros(chunks, np.float32).tobytes(), 1)
    for t in range(0, shape[0], chunks[0]):
        for n in range(0, shape[1], chunks[1]):
            dataset.id.write_direct_chunk((t, n, 0), packed)


def measured(path: Path, make, megabytes: int, what: str) -> dict[str, float]:
    steps = megabytes * 10**6 // STEP_BYTES // 100 * 100
    with h5py.File(path, "w") as file:
        make(file, "x", (steps, N, F))
        make(file, "y", (steps, N, 1))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, what], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if what.startswith("est.fit"):
        assert found["updates"] == (steps // S) * (N // B)
    assert found["grown"] < GROWN, found
    assert found["mapped"] < MAPPED, found
    return found


@pytest.mark.parametrize("make", [pytest.param(contiguous, marks=pytest.mark.slow), compressed])
def test_a_pass_over_a_file(tmp_path, make):
    measured(tmp_path / "data.h5", make, 1000, "est.fit(x, y)")


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [
        "estimator(scale_x='standard', scale_y='robust').fit(x, y, validation={'time': 0.1})",
        "est.predict(x, out=fs.h5mmap(path, 'y', mode='r+'))",
    ],
)
def test_other_passes_over_a_file(tmp_path, what):
    measured(tmp_path / "data.h5", contiguous, 600, what)


@pytest.mark.slow
@pytest.mark.parametrize("make", [contiguous, compressed])
def test_a_pass_over_8_gb(tmp_path, make):
    measured(tmp_path / "data.h5", make, 8000, "est.fit(x, y)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "limit"), [("kept = np.array(x)", "grown"), ("float(x.max())", "mapped")]
)
def test_what_is_kept_would_be_seen(tmp_path, what, limit):
    with pytest.raises(AssertionError, match=f"'{limit}': [5-9]"):
        measured(tmp_path / "data.h5", contiguous, 600, what)


# Later epochs need no more memory.
PANEL = """
import resource, sys
import numpy as np, pandas as pd
import fastseq as fs

count, steps = 100_000, 100
rows = np.random.default_rng(0).standard_normal((count, steps), np.float32)
if sys.argv[1] == "list":
    y = list(rows)
else:
    y = pd.DataFrame({
        "unique_id": np.repeat([f"series {n}" for n in range(count)], steps),
        "ds": np.tile(pd.date_range("2024-01-01", periods=steps), count),
        "y": rows.ravel(),
    })
f = fs.SequenceForecaster(12, epochs=1, random_state=0, device="cpu").fit(y)
assert len(f.predict()) == (count if sys.argv[1] == "list" else 12 * count)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, f.history_[-1]["updates"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["list", "long frame"])
def test_a_panel_of_100_000_series(form):
    done = subprocess.run(
        [sys.executable, "-c", PANEL, form], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak, updates = map(float, done.stdout.split())
    assert updates >= 1000
    assert peak < 4000, peak
