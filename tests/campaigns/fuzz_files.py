"""Hostile files of data and settings: HDF5, YAML, CSV and Parquet."""

from __future__ import annotations

import collections
import contextlib
import gzip
import io
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml  # noqa: F401  # imported on use otherwise, as code would be
from campaign import Campaign, main
from hostile_h5 import ARRAY, WHOLE
from mutations import HOSTILE, havoc
from watched import Watch, each, error_of

import fastseq as fs
from fastseq.__main__ import main as program
from fastseq.data.hdf5.commands import check_file, describe_file
from fastseq.sklearn.forecasting import forecast_commands as commands

torch.set_num_threads(1)
warnings.simplefilter("ignore")


def _few(mapped: Any) -> Any:
    """Read one element, and all of them if there are few."""
    np.asarray(mapped[(slice(0, 1),) * len(mapped.shape)])
    if np.prod([float(n) for n in mapped.shape]) < 1e6:
        np.asarray(mapped[:])


H5_WAYS: dict[str, Any] = {
    "h5mmap": lambda path, name: _few(fs.h5mmap(path, name)),
    "h5load": lambda path, _: fs.h5load(path),
    "h5load, mapped": lambda path, _: fs.h5load(path, mmap=True),
    "h5concat": lambda path, _: fs.h5concat("all.h5", [path, path], progress=False),
    "h5concat, copied": lambda path, _: fs.h5concat(
        "all.h5", [path, "whole.h5"], virtual=False, progress=False
    ),
    "h5 info": lambda path, _: describe_file(path),
    "h5 check": lambda path, _: check_file(path),
}
_NAMES = ["x", "y", "g/y", "z", "out", "self/x", "a", "gone", "list/0", "..", "/", "x/x"]


def _h5_folder(folder: Path, watch: Watch) -> tuple[Path, Watch]:
    (folder / "whole.h5").write_bytes(WHOLE["contiguous"])
    return folder, watch


def _h5(rng: Random, folder: Path, watch: Watch) -> str:
    kind = rng.choice(list(WHOLE))
    whole = WHOLE[kind]
    other = WHOLE[rng.choice(list(WHOLE))]
    same = rng.random() < 0.03
    data = whole if same else havoc(rng, whole, other, front=3000)
    path = folder / "hostile.h5"
    path.unlink(missing_ok=True)  # HDF5 tells files apart by their inodes
    path.write_bytes(data)
    way = rng.choice(list(H5_WAYS))
    name = rng.choice(_NAMES)
    # What is packed unpacks to a thousand times as much; h5load returns all that a file says.
    # HDF5 asks for as much as a text's place says that it has, up to 4 GiB, before it looks there.
    room = 2 * 1032 * len(data)
    if way == "h5load" or (b"GCOL" in data and way != "h5mmap"):
        room = 16 << 30
    writes = "concat" in way
    with contextlib.redirect_stdout(io.StringIO()):
        found, error = watch.run(
            lambda: H5_WAYS[way](path, name),
            named=[path.name, "whole.h5", *(["all.h5"] if writes else [])],
            acts=("os.remove", "os.rename", "os.mkdir", "glob.glob", "shutil.", "open ")
            if writes
            else (),
            outside=True,  # links and raw data lead to other files, as the documentation says
            room=room,
        )
    if error is None:
        if same and way == "h5load" and "x" in found and kind in ("contiguous", "latest", "packed"):
            np.testing.assert_array_equal(found["x"], ARRAY)
        return f"{way}: read"
    if isinstance(error, MemoryError) and way == "h5load":
        assert path.name in str(error), f"the file is not named: {error}"
        return f"{way}: refused, as too large"
    return f"{way}: {error_of(error, path.name, 'whole.h5', 'outside/secret')}"


SETTINGS = """
horizon: 3
module: [gru, lstm]
lr: {low: 1e-3, high: 0.1, log: true}
hidden_size: {low: 4, high: 16, step: 4}
dropout: {low: 0.0, high: 0.5, step: 0.25}
clip_norm: [none, 1.0]
decay_biases: [true, "false"]
quantiles: {value: [0.1, 0.9]}
epochs: 10
loss: mae
"""
_BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
_YAML = ["&a", "*a", "!!python/object/apply:os.system [canary]", "!!python/name:os.system", "<<: *a",
         "? [a, b] : c", "- ", "| \n", "{", "[", "%YAML 1.1", "---", "!!binary aGk=", "2026-01-01",
         "1_000", "0x1f", ".inf", "1e999", "9" * 6000, "a" * 5000, "\t", "\0", "'", '"', ": ", "#",
         "\n" + _BOMB, "[" * 3000, "{a: " * 2000, "&a [*a]", "NO", "~", "null"]  # fmt: skip


def _settings(rng: Random, folder: Path, watch: Watch) -> str:
    """Read a changed file of settings, as a search space and as those of ``fastseq fit``."""
    text = SETTINGS.encode()
    if rng.random() < 0.5:
        lines = SETTINGS.split("\n")
        for _ in range(rng.choice((1, 2, 3))):
            line = lines[at := rng.randrange(len(lines))]
            cut = rng.randrange(len(line) + 1)
            lines[at] = line[:cut] + rng.choice(_YAML) + rng.choice((line[cut:], ""))
        text = "\n".join(lines).encode()
    if rng.random() < 0.7:
        text = havoc(rng, text, _BOMB.encode())
    path = folder / "settings.yaml"
    path.write_bytes(text)
    of = rng.choice((None, fs.SequenceForecaster, fs.SequenceRegressor))
    read = rng.choice((lambda: fs.SearchSpace(path, of=of), lambda: commands._settings(str(path))))
    found, error = watch.run(read, named=[path.name])
    if error is not None:
        return f"settings: {error_of(error, path.name)}"
    if isinstance(found, fs.SearchSpace):
        watch.run(lambda: repr(found))
    return "settings: read"


DAYS = pd.date_range("2024-01-01", periods=30, freq="D")
ROWS = pd.DataFrame(
    {
        "unique_id": np.repeat(["007", "NA"], 30),
        "ds": [*DAYS, *DAYS],
        "y": np.arange(60) % 7 + 0.5,
        "price": np.arange(60.0),
        "kind": ["u", "v", "w"] * 20,
    }
)


def _tables() -> dict[str, bytes]:
    csv = ROWS.to_csv(index=False).encode()
    steps = ROWS.assign(ds=[*range(30)] * 2).to_csv(index=False).encode()
    found = {
        "a.csv": csv,
        "steps.csv": steps,
        "one.csv": ROWS[:30].drop(columns="unique_id").to_csv(index=False).encode(),
    }
    found["a.csv.gz"] = gzip.compress(csv, mtime=0)
    found["bomb.csv.gz"] = gzip.compress(csv + b"007,2024-02-01,1,1," + b"u" * (8 << 20), mtime=0)
    for name, rows in (("a.parquet", ROWS), ("one.parquet", ROWS[:30].drop(columns="unique_id"))):
        buffer = io.BytesIO()
        rows.to_parquet(buffer, index=False)
        found[name] = buffer.getvalue()
    return found


TABLES = _tables()
FORECASTER = fs.SequenceForecaster(3, lags=8, epochs=1, hidden_size=4, validation=0, random_state=0)
FORECASTER.fit(ROWS)


def _table(rng: Random, folder: Path, watch: Watch) -> str:
    """Forecast with a changed file of series on the command line, or train on it."""
    name = rng.choice(list(TABLES))
    data = havoc(rng, TABLES[name], TABLES[rng.choice(list(TABLES))], front=400)
    if ".csv" in name and rng.random() < 0.5:  # a field
        lines = (
            TABLES[name].split(b"\n") if not name.endswith("gz") else [b"unique_id,ds,y", b"a,1,2"]
        )
        at = rng.randrange(len(lines))
        fields = lines[at].split(b",")
        fields[rng.randrange(len(fields))] = str(rng.choice(HOSTILE)).encode(errors="replace")
        lines[at] = b",".join(fields)
        data = b"\n".join(lines)
        data = gzip.compress(data) if name.endswith("gz") else data
    path = folder / f"hostile-{name}"
    path.write_bytes(data)
    model = folder / "model.safetensors"
    if not model.exists():
        FORECASTER.save(model)
    way = rng.random()
    if way < 0.8:
        work = lambda: commands._Table.read(str(path), FORECASTER)  # noqa: E731
        _, error = watch.run(work, named=[path.name], room=2 * 1032 * len(data))
        return f"table: {'read' if error is None else error_of(error, path.name)}"
    words = ["predict", str(model), str(path), "--out", str(folder / "out.csv")]
    if way > 0.98:
        words = ["fit", str(path), str(folder / "new.safetensors"), "--horizon", "3", "--epochs", "1",
                 "--lags", "8", "--hidden-size", "4", "--validation", "0", "--verbose", "0"]  # fmt: skip
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code, error = watch.run(
            lambda: program(words),
            named=[path.name, "model.safetensors", "out.csv", "new.safetensors"],
            acts=("os.remove", "os.rename", "open ", "glob.glob"), outside=True,
            room=2 * 1032 * len(data),
        )  # fmt: skip
    if error is not None:
        raise error
    assert code in (0, 1), code
    assert code == 0 or said.getvalue().startswith("fastseq: error: "), said.getvalue()
    return f"fastseq {words[0]}: {'done' if code == 0 else 'refused'}"


PREPARED = {"_h5": _h5_folder}


def hdf5(number: int, folder: Path) -> dict[str, int]:
    """Read changed HDF5 files in each way that there is."""
    watched = _h5_folder(folder, Watch(folder))
    kinds: collections.Counter[str] = collections.Counter()
    for _, rng in each(number, 100):
        kinds[_h5(rng, *watched)] += 1
    return kinds


def settings(number: int, folder: Path) -> dict[str, int]:
    """Read changed files of settings."""
    watch = Watch(folder)
    kinds: collections.Counter[str] = collections.Counter()
    for _, rng in each(number, 200):
        kinds[_settings(rng, folder, watch)] += 1
    return kinds


def tables(number: int, folder: Path) -> dict[str, int]:
    """Read changed tables."""
    watch = Watch(folder)
    kinds: collections.Counter[str] = collections.Counter()
    for _, rng in each(number, 100):
        kinds[_table(rng, folder, watch)] += 1
    return kinds


CAMPAIGNS = [
    Campaign(
        "fuzz-hdf5", hdf5, 3000, 120,
        "Damaged and malicious HDF5 files are read, or refused with an error that names the file, "
        "without a crash, a hang, or more memory than was asked for.",
    ),
    Campaign(
        "fuzz-settings", settings, 1500, 120,
        "Damaged and malicious YAML files of settings and search spaces are read, or refused with "
        "an error that names the file.",
    ),
    Campaign(
        "fuzz-tables", tables, 2000, 120,
        "CSV and Parquet files that are damaged or hold other values are read by fastseq fit and "
        "predict, or refused with a one-sentence error.",
    ),
]  # fmt: skip

if __name__ == "__main__":
    main(CAMPAIGNS)
