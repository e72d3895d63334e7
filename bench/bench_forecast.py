"""Accuracy and seconds of `SequenceForecaster` on public sets, beside others if they are installed.

python bench/bench_forecast.py --data FOLDER [--quick] [--results FOLDER] [--only NAME]

The folder holds

- ``ETTh1.csv`` from https://github.com/zhouhaoyi/ETDataset (ETT-small),
- ``m4-weekly-train.csv`` and ``m4-weekly-test.csv``: ``Weekly-train.csv`` and ``Weekly-test.csv``
  from https://github.com/Mcompetitions/M4-methods (Dataset).

ETTh1 is set up as in papers: 8640 hours to train on, 2880 to validate on, 2880 to test on; a
forecast from every hour; errors of all 7 variables, each divided by its deviation in the first
part. M4 Weekly as in the competition: one forecast of 13 weeks for each of 359 series, after the
training part. Everything runs on one thread. Marks are those of the median over seeds.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, circumstances

import fastseq as fs

TRAIN, VALIDATION, TEST = 8640, 2880, 2880
MARKS = {"ETTh1 96": 0.370, "ETTh1 192": 0.405, "ETTh1 336": 0.430, "ETTh1 720": 0.450}
WEEKS = 13
Errors = dict[str, float]


def read_series(path: Path) -> list[np.ndarray]:
    with path.open() as file:
        rows = list(csv.reader(file))[1:]
    return [np.array([float(v) for v in row[1:] if v not in ("", "NA")]) for row in rows]


class Hourly:
    """ETTh1 at one horizon."""

    def __init__(self, folder: Path, horizon: int) -> None:
        table = np.loadtxt(
            folder / "ETTh1.csv", delimiter=",", skiprows=1, usecols=range(1, 8), dtype=np.float64
        )
        end = TRAIN + VALIDATION
        self.horizon, self.known, self.coming = horizon, table[:end], table[end : end + TEST]
        self.scale = table[:TRAIN].std(0)
        self.name, self.mark = f"ETTh1 {horizon}", {"mse": MARKS[f"ETTh1 {horizon}"]}

    def errors(self, found: np.ndarray) -> Errors:
        """Return errors of forecasts from each hour, ``(TEST, horizon, 7)``."""
        count = TEST - self.horizon + 1
        actual = np.lib.stride_tricks.sliding_window_view(self.coming, self.horizon, axis=0)
        error = (found[:count] - actual.swapaxes(1, 2)) / self.scale
        return {"mse": float(np.mean(error**2)), "mae": float(np.mean(np.abs(error)))}

    def seasonal_naive(self, seed: int) -> np.ndarray:  # noqa: ARG002
        whole = np.concatenate([self.known, self.coming])
        step = np.arange(self.horizon) % 24 - 24
        return np.stack([whole[len(self.known) + t + step] for t in range(TEST)])

    def fastseq(self, seed: int) -> np.ndarray:
        f = fs.SequenceForecaster(
            self.horizon, season=24, validation=VALIDATION, comm=None, random_state=seed
        )
        return f.fit(self.known).backtest(self.coming, stride=1)


class Weekly:
    """M4 Weekly."""

    def __init__(self, folder: Path) -> None:
        self.known = read_series(folder / "m4-weekly-train.csv")
        actual = read_series(folder / "m4-weekly-test.csv")
        self.actual = np.stack([one[:WEEKS] for one in actual])
        self.change = np.array([np.abs(np.diff(one)).mean() for one in self.known])
        self.name, self.mark = "M4 Weekly", {"mase": 2.10, "smape": 6.6}

    def errors(self, found: np.ndarray) -> Errors:
        """Return errors of forecasts ``(N, 13)``."""
        error = np.abs(found - self.actual)
        size = np.abs(found) + np.abs(self.actual)
        return {
            "mase": float(np.mean(error.mean(1) / self.change)),
            "smape": float(np.mean(200 * error / size)),
        }

    def seasonal_naive(self, seed: int) -> np.ndarray:  # noqa: ARG002
        return np.stack([np.full(WEEKS, one[-1]) for one in self.known])

    def fastseq(self, seed: int) -> np.ndarray:
        f = fs.SequenceForecaster(WEEKS, scale="series", comm=None, random_state=seed)
        return f.fit(self.known).predict()


def peers(data: Any) -> dict[str, Callable[[int], np.ndarray]]:
    """Return forecasts of M4 Weekly by other packages, at their defaults, if installed."""
    found: dict[str, Callable[[int], np.ndarray]] = {}
    if not isinstance(data, Weekly):
        return found

    def frame() -> Any:
        import pandas as pd

        return pd.concat([
            pd.DataFrame({"unique_id": f"{n:04}", "ds": np.arange(len(y)), "y": y})
            for n, y in enumerate(data.known)
        ])  # fmt: skip

    def in_order(table: Any) -> np.ndarray:
        table = table.reset_index() if "unique_id" not in table.columns else table
        table = table.sort_values(["unique_id", "ds"])
        return np.asarray(table.iloc[:, -1], float).reshape(-1, WEEKS)

    if importlib.util.find_spec("neuralforecast"):

        def neural(kind: str) -> Callable[[int], np.ndarray]:
            def run(seed: int) -> np.ndarray:
                from neuralforecast import NeuralForecast, models

                model = getattr(models, kind)(h=WEEKS, input_size=4 * WEEKS, random_seed=seed)
                nf = NeuralForecast(models=[model], freq=1)
                nf.fit(frame())
                return in_order(nf.predict())

            return run

        found |= {f"NeuralForecast {kind}": neural(kind) for kind in ("NHITS", "LSTM", "DLinear")}
    if importlib.util.find_spec("statsforecast"):

        def statistical(kind: str) -> Callable[[int], np.ndarray]:
            def run(seed: int) -> np.ndarray:  # noqa: ARG001
                from statsforecast import StatsForecast, models

                sf = StatsForecast(models=[getattr(models, kind)(season_length=1)], freq=1)
                return in_order(sf.forecast(df=frame(), h=WEEKS))

            return run

        found |= {f"statsforecast {kind}": statistical(kind) for kind in ("AutoETS", "AutoTheta")}
    return found


def measure(data: Any, run: Callable[[int], np.ndarray], seeds: int) -> dict[str, Any]:
    """Return errors and seconds of each seed, and their medians."""
    rows = []
    for seed in range(seeds):
        begin, cpu = time.perf_counter(), time.process_time()
        found = run(seed)
        seconds = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
        rows.append({**data.errors(found), **seconds})
    return {
        **{key: statistics.median(row[key] for row in rows) for key in rows[0]},
        "seeds": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="the folder with the sets")
    parser.add_argument("--quick", action="store_true", help="one seed, and no file")
    parser.add_argument("--only", default="", help="part of the name of the sets to run")
    parser.add_argument("--results", type=Path, help=f"folder to write to, not {RESULTS}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    makers = [lambda: Weekly(options.data)]
    makers += [lambda h=h: Hourly(options.data, h) for h in (96, 192, 336, 720)]
    seeds = 1 if options.quick else 3
    cases, met = [], []
    for data in (make() for make in makers):
        if options.only not in data.name:
            continue
        contenders = {"fastseq": data.fastseq, "seasonal naive": data.seasonal_naive, **peers(data)}
        rows = {}
        print(f"\n{data.name}")
        for name, run in contenders.items():
            random = name.startswith(("fastseq", "Neural"))
            rows[name] = row = measure(data, run, seeds if random else 1)
            line = "  ".join(f"{key} {row[key]:.4g}" for key in row if key != "seeds")
            if name == "fastseq":
                row["marks"] = [
                    {"of": key, "at_most": most, "met": row[key] <= most}
                    for key, most in data.mark.items()
                ]
                met += [mark["met"] for mark in row["marks"]]
                line += f"  marks {data.mark}: " + (
                    "met" if all(met[-len(data.mark) :]) else "NOT MET"
                )
            print(f"  {name:26}{line}", flush=True)
        cases.append({"case": data.name, "threads": 1, "contenders": rows})
    print(f"\nbench_forecast: {sum(met)} of {len(met)} marks met")
    folder = options.results or (None if options.quick else RESULTS)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "bench_forecast.json"
        about = {**circumstances(), "seeds": seeds}
        found = {"bench": "bench_forecast", "circumstances": about, "cases": cases}
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
