"""Forecast electricity demand a day ahead, from an HDF5 file, on one rank or under mpirun.

The series is the half-hourly demand of England and Wales from Monday 5 June to Sunday 27 August
2000 [1]_; its last two weeks are held out. What is known at any time is the demand up to 24 hours
before. The model learns how demand will differ from the same half-hour a week before.

.. [1] J. W. Taylor, "Short-term electricity demand forecasting using double seasonal exponential
   smoothing", Journal of the Operational Research Society 54 (2003).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.nn.functional import huber_loss

import fastseq as fs

DAY, WEEK = 48, 336  # half-hours
HELD_OUT = 2 * WEEK
FIRST = DAY + WEEK  # the first step for which all inputs are known


def write_data(path: Path) -> None:
    """Write inputs ``x`` (T, 1, F), targets ``y`` (T, 1, 1) and ``demand`` (T,) in GW.

    Inputs at a step: demand a day and a week before, how demand a day before differed from a week
    earlier, and the time of day and of the week as sines and cosines.
    """
    from pmdarima.datasets import load_taylor

    demand = load_taylor().astype(np.float32) / 1000
    steps = np.arange(FIRST, len(demand))
    day, week = demand[steps - DAY], demand[steps - WEEK]
    change = day - demand[steps - DAY - WEEK]
    calendar = [
        wave(2 * np.pi * k * steps / period)
        for period, harmonics in ((DAY, (1, 2, 3)), (WEEK, (1, 2)))
        for k in harmonics
        for wave in (np.sin, np.cos)
    ]
    x = np.stack([day, week, change, *calendar], axis=1)
    y = demand[steps] - week
    known = slice(0, len(steps) - HELD_OUT)
    unfinished = path.with_suffix(".part")
    with h5py.File(unfinished, "w") as file:
        file["demand"] = demand
        file["x"] = ((x - x[known].mean(0)) / x[known].std(0))[:, None].astype(np.float32)
        file["y"] = y[:, None, None]
    os.replace(unfinished, path)


def train(path: Path, epochs: int) -> tuple[fs.Estimator, np.ndarray]:
    """Train on all but the held-out steps and forecast those; returns the forecast in GW."""
    x, y = fs.h5mmap(path, "x"), fs.h5mmap(path, "y")
    known = len(x) - HELD_OUT
    model = fs.nn.Chain(fs.nn.LSTM(x.shape[2], 32), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # One long series: under mpirun the ranks split its time.
    spec = fs.Spec(epochs=epochs, batchsize=1, seqsize=DAY, clip_norm=1.0, shard="time")
    est = fs.Estimator(model, fs.seqloss(huber_loss), optimizer, spec)
    est.fit(x[:known], y[:known])
    est.predict(x[:known])  # warms the state up to where the held-out part begins
    change = est.predict(x[known:], reset=False)[:, 0, 0]
    week_before = fs.h5mmap(path, "demand")[-HELD_OUT - WEEK : -WEEK]
    return est, week_before + change


def score(forecasts: dict[str, np.ndarray], actual: np.ndarray) -> dict[str, float]:
    """Print a table of errors; returns the mean absolute ones in MW."""
    print(f"\n{'forecast':28}{'MAE (MW)':>10}{'RMSE (MW)':>11}{'MAPE (%)':>10}")
    means = {}
    for name, values in forecasts.items():
        error = 1000 * (values - actual)
        means[name] = float(np.abs(error).mean())
        rmse = float(np.sqrt((error**2).mean()))
        mape = float(np.abs(error / (10 * actual)).mean())
        print(f"{name:28}{means[name]:10.0f}{rmse:11.0f}{mape:10.2f}")
    return means


def draw(path: Path, demand: np.ndarray, forecasts: dict[str, np.ndarray]) -> None:
    """Draw the held-out part, the days before it, and the errors."""
    import matplotlib.dates as mdates
    from matplotlib.figure import Figure

    times = np.datetime64("2000-06-05") + np.arange(len(demand)) * np.timedelta64(30, "m")
    recent, held_out = slice(-HELD_OUT - 4 * DAY, None), slice(-HELD_OUT, None)
    colors = {"LSTM": "tab:blue", "same half-hour, last week": "tab:orange"}

    figure = Figure(figsize=(11, 6), dpi=120, layout="constrained")
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot(times[recent], demand[recent], color="black", lw=1.6, label="demand")
    for name, color in colors.items():
        top.plot(times[held_out], forecasts[name], color=color, lw=1.2, label=name, alpha=0.9)
        error = np.abs(forecasts[name] - demand[held_out])
        low.plot(times[held_out], error, color=color, lw=1)
    for ax in (top, low):
        ax.axvspan(times[-HELD_OUT], times[-1], color="tab:gray", alpha=0.12, lw=0)
        ax.grid(alpha=0.3)
        ax.margins(x=0)
        ax.spines[["top", "right"]].set_visible(False)
    top.set_title("Electricity demand of England and Wales, forecast 24 hours ahead", loc="left")
    top.set_ylabel("demand (GW)")
    top.set_ylim(top=1.17 * float(demand[recent].max()))
    top.legend(loc="upper right", ncols=3, frameon=False)
    box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none"}
    top.text(times[-HELD_OUT + 8], top.get_ylim()[1] * 0.955, "held out", style="italic", bbox=box)
    low.set_ylabel("|error| (GW)")
    low.set_ylim(bottom=0)
    low.set_xlabel("2000")
    low.xaxis.set_major_locator(mdates.DayLocator(interval=2))
    low.xaxis.set_major_formatter(mdates.DateFormatter("%a %d %b"))
    figure.savefig(path)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the model's first weights")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    ranks = fs.distributed.world()
    path = args.out / "demand.h5"
    if ranks.rank == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        write_data(path)
    ranks.barrier()

    est, forecast = train(path, args.epochs)
    if ranks.rank != 0:
        return
    demand = np.asarray(fs.h5mmap(path, "demand"))
    forecasts = {
        "LSTM": forecast,
        "same half-hour, last week": demand[-HELD_OUT - WEEK : -WEEK],
        "same half-hour, yesterday": demand[-HELD_OUT - DAY : -DAY],
    }
    mae = score(forecasts, demand[-HELD_OUT:])
    better = 1 - mae["LSTM"] / mae["same half-hour, last week"]
    draw(args.out / "forecast.png", demand, forecasts)
    est.history_.plot().figure.savefig(args.out / "history.png", dpi=120)
    print(f"\nThe LSTM's mean absolute error is {better:.0%} below the seasonal-naive forecast's.")
    print(f"Pictures: {args.out / 'forecast.png'}, {args.out / 'history.png'}")
    if better <= 0:
        raise SystemExit("The model does not beat the seasonal-naive forecast.")


if __name__ == "__main__":
    main()
