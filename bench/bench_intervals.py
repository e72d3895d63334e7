"""How often intervals of `SequenceForecaster` hold what comes, on the sets of `bench_forecast.py`.

python bench/bench_intervals.py --data FOLDER [--quick] [--set NAME] [--results FOLDER]

Intervals of 80 and 90 %, without calibration and with both kinds of it, on what follows the
training part: forecasts from every 24th hour of the test part of ETTh1 and ETTh2, and those of the
competition for the M4 sets. There, adaptive intervals are the split ones, as there is one origin
only. One thread; medians of three seeds.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from bench_forecast import COMPARED, M4, Transformer
from harness import RESULTS, circumstances

import fastseq as fs

LEVELS = (0.05, 0.1, 0.5, 0.9, 0.95)
NOMINAL = {"80": (1, 3), "90": (0, 4)}  # percent, and places of its ends in LEVELS
MARK = 3  # percentage points
STRIDE = 24
Row = dict[str, float]


def forecasts(
    data: Transformer | M4, conformal: str | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return quantiles ``(..., horizon, K, Q)`` and what came, ``(..., horizon, K)``."""
    if isinstance(data, M4):
        f = fs.SequenceForecaster(
            data.horizon, season=data.season if data.season > 1 else None, scale="series",
            quantiles=LEVELS, conformal=conformal, comm=None, random_state=seed,
        )  # fmt: skip
        found = np.stack(f.fit(data.known).predict())
        return found.reshape(*data.actual.shape, len(LEVELS)), data.actual
    f = fs.SequenceForecaster(
        data.horizon, season=24, quantiles=LEVELS, conformal=conformal, comm=None,
        random_state=seed,
    )  # fmt: skip
    actual = np.lib.stride_tricks.sliding_window_view(data.coming, data.horizon, axis=0)
    actual = actual.swapaxes(1, 2)[::STRIDE]
    return f.fit(data.known).backtest(data.coming, stride=STRIDE)[: len(actual)], actual


def measure(data: Transformer | M4, conformal: str | None, seed: int) -> Row:
    """Return how many percent of what came lies within, and seconds."""
    begin = time.perf_counter()
    found, actual = forecasts(data, conformal, seed)
    seconds = time.perf_counter() - begin
    inside = {
        name: 100 * float(np.mean((found[..., low] <= actual) & (actual <= found[..., high])))
        for name, (low, high) in NOMINAL.items()
    }
    return {**inside, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="the folder with the sets")
    parser.add_argument("--quick", action="store_true", help="one seed, no file without --results")
    parser.add_argument("--set", default="", help="part of the name of the sets to run")
    parser.add_argument("--results", type=Path, help=f"folder to write to, not {RESULTS}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = [
        M4(options.data, "weekly", 13, 1), Transformer(options.data, "ETTh1", COMPARED),
        M4(options.data, "hourly", 48, 24), Transformer(options.data, "ETTh2", COMPARED),
    ]  # fmt: skip
    cases = []
    for data in sets:
        if options.set not in data.name:
            continue
        print(f"\n{data.name}")
        rows: dict[str, dict[str, object]] = {}
        kinds = ("split",) if isinstance(data, M4) else ("split", "adaptive")
        for conformal in (None, *kinds):
            seeds = [measure(data, conformal, seed) for seed in range(1 if options.quick else 3)]
            row = {key: statistics.median(one[key] for one in seeds) for key in seeds[0]}
            off = max(abs(row[name] - float(name)) for name in NOMINAL)
            met = "met" if off <= MARK else f"NOT within {MARK} points"
            name = conformal or "uncalibrated"
            print(
                f"  {name:13}" + "  ".join(f"{key} {row[key]:.1f}" for key in row), met, flush=True
            )
            rows[name] = {**row, "within": off <= MARK, "seeds": seeds}
        cases.append({"case": data.name, "contenders": rows})
    folder = options.results or (None if options.quick or options.set else RESULTS)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        about = {**circumstances(), "threads": 1}
        path = folder / "intervals.json"
        path.write_text(
            json.dumps({"bench": "intervals", "circumstances": about, "cases": cases}, indent=1)
            + "\n"
        )
        print(path)


if __name__ == "__main__":
    main()
