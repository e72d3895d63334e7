"""Forecast electricity demand a day ahead, with intervals, on one rank or under mpirun.

The series is the half-hourly demand of England and Wales from Monday 5 June to Sunday 27 August
2000 [1]_; its last two weeks are held out. `SequenceForecaster` gets a pandas Series, finds out
from its index that a day has 48 steps, learns the hours of the week, and shifts its quantiles so
that they hold on the last of the training data. It is compared with naive forecasts from the same
times: every 6 hours, for the next 24.

.. [1] J. W. Taylor, "Short-term electricity demand forecasting using double seasonal exponential
   smoothing", Journal of the Operational Research Society 54 (2003).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import fastseq as fs

DAY, WEEK = 48, 336  # half-hours
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MODEL, WEEKLY = "SequenceForecaster", "same half-hour, last week"


def read_demand() -> pd.Series:
    """Return the demand in GW, by local time."""
    from pmdarima.datasets import load_taylor

    values = load_taylor() / 1000
    times = pd.date_range("2000-06-05", periods=len(values), freq="30min")
    return pd.Series(values, times, name="demand")


def train(known: pd.Series, epochs: int, seed: int) -> fs.SequenceForecaster:
    """Train on all that is known; under mpirun, ranks share each update's work."""
    forecaster = fs.SequenceForecaster(
        horizon=DAY, quantiles=QUANTILES, calendar=["hour_of_week"], conformal="split",
        lags=WEEK + DAY, epochs=epochs, random_state=seed, comm="auto",
    )  # fmt: skip
    return forecaster.fit(known)


def with_naive(tests: pd.DataFrame, demand: pd.Series) -> dict[str, pd.Series]:
    """Return the model's forecasts and naive ones, from the same times; all in rows of `tests`."""

    def of(times: pd.Series) -> pd.Series:
        return pd.Series(demand[times].to_numpy(), tests.index)

    return {
        MODEL: tests["q0.5"],
        WEEKLY: of(tests.ds - pd.Timedelta(days=7)),
        "same half-hour, yesterday": of(tests.ds - pd.Timedelta(days=1)),
        "last known value": of(tests.cutoff),
    }


def score(forecasts: dict[str, pd.Series], actual: pd.Series) -> dict[str, float]:
    """Print a table of errors; returns the mean absolute ones in MW."""
    print(f"\n{'forecast':28}{'MAE (MW)':>10}{'RMSE (MW)':>11}{'MAPE (%)':>10}{'sMAPE (%)':>11}")
    means = {}
    for name, values in forecasts.items():
        error = np.abs(values - actual)
        means[name] = 1000 * float(error.mean())
        rmse = 1000 * float((error**2).mean() ** 0.5)
        mape = 100 * float((error / actual).mean())
        smape = 200 * float((error / (actual + values)).mean())
        print(f"{name:28}{means[name]:10.0f}{rmse:11.0f}{mape:10.2f}{smape:11.2f}")
    return means


def draw(path: Path, demand: pd.Series, daily: pd.DataFrame, weekly: pd.Series) -> None:
    """Draw each midnight's forecast for the day, and below how forecasts differ from demand."""
    import matplotlib.dates as mdates
    from matplotlib.figure import Figure

    times = daily.ds
    before = demand[: times.iloc[0]][-2 * DAY :]
    figure = Figure(figsize=(12, 7), dpi=120, layout="constrained")
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    top.plot(before.index, before, color="black", lw=1.2)
    for ax, less in ((top, 0), (low, daily.y)):
        for levels, share, alpha in ((("q0.05", "q0.95"), 90, 0.25), (("q0.25", "q0.75"), 50, 0.5)):
            below, above = (daily[level] - less for level in levels)
            ax.fill_between(
                times,
                below,
                above,
                color="tab:blue",
                lw=0,
                alpha=alpha,
                label=f"{share} % interval",
            )
        ax.plot(times, daily["q0.5"] - less, color="tab:blue", lw=1.2, label="forecast (median)")
        ax.plot(times, weekly - less, color="tab:orange", lw=1, label=WEEKLY)
        ax.plot(times, daily.y - less, color="black", lw=1.2, label="demand")
        ax.axvline(times.iloc[0], color="0.5", lw=1, ls=":")
        ax.grid(alpha=0.25)
        ax.margins(x=0)
        ax.spines[["top", "right"]].set_visible(False)
    top.set_title(
        "Electricity demand of England and Wales, forecast each midnight for the day", loc="left"
    )
    top.set_ylabel("GW")
    bottom, height = top.get_ylim()
    top.set_ylim(bottom, height + 0.1 * (height - bottom))  # room for the legend
    top.legend(loc="upper right", ncols=5, frameon=False)
    low.set_ylabel("forecast − demand (GW)")
    low.xaxis.set_major_locator(mdates.DayLocator(interval=2))
    low.xaxis.set_major_formatter(mdates.DateFormatter("%a %d %b"))
    figure.savefig(path)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the model's first weights")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the model is so small that more would mostly wait for each other

    demand = read_demand()
    known, held_out = demand[: -2 * WEEK], demand[-2 * WEEK :]
    forecaster = train(known, args.epochs, args.seed)
    if fs.distributed.world().rank != 0:
        return
    print(f"trained in {sum(row['seconds'] for row in forecaster.history_):.0f} s")
    tests = forecaster.backtest(held_out, stride=DAY // 4).dropna()  # what follows is not known
    forecasts = with_naive(tests, demand)
    mae = score(forecasts, tests.y)
    for low, high in (("q0.25", "q0.75"), ("q0.05", "q0.95")):
        inside = tests.y.between(tests[low], tests[high]).mean()
        share = float(high[1:]) - float(low[1:])
        print(f"{inside:.0%} of demand is in the {share:.0%} interval.")

    args.out.mkdir(parents=True, exist_ok=True)
    midnight = (tests.cutoff + pd.Timedelta(minutes=30)).dt.hour == 0
    draw(args.out / "forecast.png", demand, tests[midnight], forecasts[WEEKLY][midnight])
    forecaster.history_.plot().figure.savefig(args.out / "history.png", dpi=120)
    better = 1 - mae[MODEL] / mae[WEEKLY]
    print(f"\nIts mean absolute error is {better:.0%} below the seasonal-naive forecast's.")
    print(f"Pictures: {args.out / 'history.png'} (losses), {args.out / 'forecast.png'} ", end="")
    print("(below: how far off the forecasts are)")
    if better < 0.3:
        raise SystemExit("The error is not 30% below the seasonal-naive forecast's.")


if __name__ == "__main__":
    main()
