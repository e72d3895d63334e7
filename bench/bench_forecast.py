"""Accuracy and seconds of `SequenceForecaster` on public sets, beside others if they are installed.

python bench/bench_forecast.py --data FOLDER [--quick] [--results FOLDER] [--set NAME] [--only NAME]

The folder holds

- ``ETTh1.csv`` and ``ETTh2.csv`` from https://github.com/zhouhaoyi/ETDataset (ETT-small),
- ``m4-weekly-train.csv``, ``m4-weekly-test.csv``, ``m4-hourly-train.csv``, ``m4-hourly-test.csv``:
  ``Weekly-train.csv`` and so on from https://github.com/Mcompetitions/M4-methods (Dataset).

ETTh1 and ETTh2 are set up as in papers: 8640 hours to train on, 2880 to validate on, 2880 to test
on; a forecast from every hour; errors of all 7 variables, each divided by its deviation in the
first part. The M4 sets as in the competition: one forecast for each series (13 weeks of 359, 48
hours of 414), after the training part.

The forecaster's defaults were found on ETTh1 and M4 Weekly; ETTh2 and M4 Hourly were not looked at
before it was finished.

The others run on the M4 sets and at 96 hours on the other two, at their defaults, as
`peer_forecasters.py` says; those that take hours run only with ``--only``. Everything runs on one
thread, fits and forecasts timed apart. fastseq runs with three seeds, and marks are those of their
median; the others run once, and so does fastseq on sets that were not looked at.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

import argparse
import csv
import functools
import importlib.metadata
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, circumstances
from peer_forecasters import Contender, Panel, Predict, peers

import fastseq as fs

TRAIN, VALIDATION, TEST = 8640, 2880, 2880
MARKS = {"ETTh1 96": 0.370, "ETTh1 192": 0.405, "ETTh1 336": 0.430, "ETTh1 720": 0.450}
COMPARED = 96  # hours: the horizon at which others run, too
FASTER = 5  # than NHITS, at least
UNSEEN = 1.05  # times the best of the others, at most, on sets that were not looked at
Errors = dict[str, float]


def read_series(path: Path) -> list[np.ndarray]:
    with path.open() as file:
        rows = list(csv.reader(file))[1:]
    return [np.array([float(v) for v in row[1:] if v not in ("", "NA")]) for row in rows]


class Transformer:
    """Hours of an electricity transformer (ETTh1 or ETTh2) at one horizon."""

    score = "mse"

    def __init__(self, folder: Path, name: str, horizon: int) -> None:
        path = folder / f"{name}.csv"
        table = np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(1, 8), dtype=np.float64)
        end = TRAIN + VALIDATION
        self.horizon, self.known, self.coming = horizon, table[:end], table[end : end + TEST]
        self.center, self.scale = table[:TRAIN].mean(0), table[:TRAIN].std(0)
        self.name = f"{name} {horizon}"
        self.mark = {"mse": MARKS[self.name]} if self.name in MARKS else {}

    def errors(self, found: np.ndarray, stride: int) -> Errors:
        """Return errors of forecasts from every `stride`-th hour, ``(n, horizon, 7)``."""
        actual = np.lib.stride_tricks.sliding_window_view(self.coming, self.horizon, axis=0)
        actual = actual.swapaxes(1, 2)[::stride]
        error = (found[: len(actual)] - actual) / self.scale
        return {"mse": float(np.mean(error**2)), "mae": float(np.mean(np.abs(error)))}

    def seasonal_naive(self, seed: int) -> Predict:  # noqa: ARG002
        whole = np.concatenate([self.known, self.coming])
        step = np.arange(self.horizon) % 24 - 24
        return lambda: np.stack([whole[len(self.known) + t + step] for t in range(TEST)])

    def fastseq(self, seed: int) -> Predict:
        f = fs.SequenceForecaster(
            self.horizon, season=24, validation=VALIDATION, comm=None, random_state=seed
        )
        f.fit(self.known)
        return lambda: f.backtest(self.coming, stride=1)

    def variants(self) -> dict[str, Contender]:
        return {}

    def peers(self) -> dict[str, Contender]:
        """Return others; they get variables scaled as in papers, and all hours to learn from."""
        if self.horizon != COMPARED:
            return {}
        known, coming = ((part - self.center) / self.scale for part in (self.known, self.coming))
        panel = Panel(list(known.T), self.horizon, season=24, coming=list(coming.T))
        return peers(panel, lambda found: np.moveaxis(found, 0, -1) * self.scale + self.center)


class M4:
    """A part of the M4 competition: ``"weekly"`` or ``"hourly"``."""

    score = "mase"

    def __init__(self, folder: Path, name: str, horizon: int, season: int) -> None:
        self.known = read_series(folder / f"m4-{name}-train.csv")
        self.horizon, self.season = horizon, season
        self.actual = np.stack([
            one[:horizon] for one in read_series(folder / f"m4-{name}-test.csv")
        ])  # fmt: skip
        self.change = np.array([np.abs(y[season:] - y[:-season]).mean() for y in self.known])
        self.name = f"M4 {name.title()}"
        self.mark = {"mase": 2.10, "smape": 6.6} if name == "weekly" else {}

    def errors(self, found: np.ndarray, stride: int) -> Errors:  # noqa: ARG002
        """Return errors of forecasts ``(N, horizon)``."""
        error = np.abs(found - self.actual)
        size = np.abs(found) + np.abs(self.actual)
        return {
            "mase": float(np.mean(error.mean(1) / self.change)),
            "smape": float(np.mean(200 * error / size)),
        }

    def seasonal_naive(self, seed: int) -> Predict:  # noqa: ARG002
        step = np.arange(self.horizon) % self.season - self.season
        return lambda: np.stack([one[step] for one in self.known])

    def fastseq(self, seed: int, transform: str | None = None) -> Predict:
        f = fs.SequenceForecaster(
            self.horizon, season=self.season if self.season > 1 else None, scale="series",
            transform=transform, comm=None, random_state=seed,
        )  # fmt: skip
        f.fit(self.known)
        return f.predict

    def variants(self) -> dict[str, Contender]:
        """Return other settings of fastseq's: all values are positive here."""
        return {'fastseq, "log1p"': Contender(functools.partial(self.fastseq, transform="log1p"))}

    def peers(self) -> dict[str, Contender]:
        return peers(Panel(self.known, self.horizon, self.season), lambda found: found[:, 0])


def measure(data: Transformer | M4, contender: Contender, seed: int) -> dict[str, float]:
    """Return errors and seconds of one seed."""
    importlib.import_module(contender.package)
    begin, cpu = time.perf_counter(), time.process_time()
    predict = contender.fit(seed)
    fitted = time.perf_counter()
    found = predict()
    end = time.perf_counter()
    return {
        **data.errors(found, contender.stride), "fit_seconds": fitted - begin,
        "predict_seconds": end - fitted, "seconds": end - begin,
        "cpu": time.process_time() - cpu,
    }  # fmt: skip


def compare(data: Transformer | M4, contenders: dict[str, Contender], seeds: int) -> dict[str, Any]:
    """Run contenders in turn, fastseq with all seeds; return medians and all rows."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for seed in range(seeds):
        for name in contenders:
            if seed == 0 or name.startswith("fastseq"):
                row = measure(data, contenders[name], seed)
                rows[name].append(row)
                print(f"  seed {seed}  {name:26}{in_words(row)}", flush=True)
    return {
        name: {
            **{key: statistics.median(one[key] for one in own) for key in own[0]},
            "stride": contenders[name].stride, "seeds": own,
        }
        for name, own in rows.items()
    }  # fmt: skip


def in_words(row: dict[str, Any]) -> str:
    return "  ".join(f"{key} {row[key]:.4g}" for key in row if key not in ("seeds", "stride"))


def marks(data: Transformer | M4, rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what fastseq must reach, alone and against the others that ran."""
    own, most = rows["fastseq"], [(key, key, most) for key, most in data.mark.items()]
    naive, nhits = rows.get("seasonal naive"), rows.get("NeuralForecast NHITS")
    others = [
        row[data.score] for name, row in rows.items()
        if not name.startswith("fastseq") and name != "seasonal naive"
    ]  # fmt: skip
    scores = list(data.mark) or [data.score]
    if naive is not None:
        most += [(f"{key}, seasonal naive", key, naive[key]) for key in scores]
    if not data.mark and others:
        best = UNSEEN * min(others)
        most.append((f"{data.score}, {UNSEEN} times the best of the others", data.score, best))
    if nhits is not None:
        most += [(f"{key}, NHITS", key, nhits[key]) for key in data.mark]
        most += [("a fifth of NHITS's seconds", "seconds", nhits["seconds"] / FASTER)]
    return [{"of": of, "at_most": at, "met": own[key] <= at} for of, key, at in most]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="the folder with the sets")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, and no file without --results"
    )
    parser.add_argument("--set", default="", help="part of the name of the sets to run")
    parser.add_argument("--only", default="", help="part of the name of the contenders to run")
    parser.add_argument("--results", type=Path, help=f"folder to write to, not {RESULTS}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = [
        M4(options.data, "weekly", 13, 1),
        *(Transformer(options.data, "ETTh1", h) for h in (96, 192, 336, 720)),
        M4(options.data, "hourly", 48, 24),
        Transformer(options.data, "ETTh2", COMPARED),
    ]
    folder = options.results or (None if options.quick or options.only else RESULTS)
    met = []
    for data in sets:
        contenders = {
            "fastseq": Contender(data.fastseq),
            **data.variants(),
            "seasonal naive": Contender(data.seasonal_naive),
            **data.peers(),
        }
        slow = [name for name, one in contenders.items() if one.slow and not options.only]
        contenders = {
            name: one for name, one in contenders.items()
            if options.only in name and name not in slow
        }  # fmt: skip
        if options.set not in data.name or not contenders:
            continue
        print(f"\n{data.name}")
        seeds = 3 if data.mark and not options.quick else 1
        rows = compare(data, contenders, seeds)
        for name, row in rows.items():
            every = f"  a forecast every {row['stride']} hours" if row["stride"] > 1 else ""
            print(f"  median  {name:26}{in_words(row)}{every}")
        if "fastseq" in rows:
            rows["fastseq"]["marks"] = found = marks(data, rows)
            met += [mark["met"] for mark in found]
            for mark in found:
                state = "met" if mark["met"] else "NOT MET"
                print(f"  mark  {mark['of']}: at most {mark['at_most']:.4g}  {state}")
        if folder is not None:
            packages = {one.package for one in contenders.values()} - {"fastseq"}
            about = {
                **circumstances(), "threads": 1, "stride": "hours from a forecast to the next",
                **{name: importlib.metadata.version(name) for name in sorted(packages)},
            }  # fmt: skip
            case = {"case": data.name, "circumstances": about, "contenders": rows}
            record(folder, {**case, "left_out_as_slow": slow} if slow else case)
    print(f"\nbench_forecast: {sum(met)} of {len(met)} marks met")


def record(folder: Path, case: dict[str, Any]) -> None:
    """Put a set's case into the file of all, in place of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "forecast.json"
    known = json.loads(path.read_text())["cases"] if path.exists() else []
    cases = [one for one in known if one["case"] != case["case"]] + [case]
    path.write_text(json.dumps({"bench": "forecast", "cases": cases}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
