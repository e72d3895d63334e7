"""Forecast the daily sales of many shop articles, with planned promotions and the calendar.

The sales are drawn: a level and a weekly shape of each article, a trend, and promotions that are
planned ahead and raise sales. One model learns all of them, and forecasts four weeks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import fastseq as fs
from fastseq.sklearn import plot_forecast

DAYS, HORIZON = 240, 28


def draw_sales(articles: int) -> pd.DataFrame:
    """Return a long frame: article, day, sold, promotion."""
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=DAYS)
    week = 1 + 0.4 * np.sin(
        2 * np.pi * (days.day_of_week.to_numpy() + rng.uniform(0, 7, (articles, 1))) / 7
    )
    trend = 1 + rng.normal(0, 0.3, (articles, 1)) * np.linspace(0, 1, DAYS)
    promoted = rng.random((articles, DAYS)) < 0.08
    mean = rng.lognormal(3, 0.7, (articles, 1)) * week * trend * np.where(promoted, 1.8, 1)
    return pd.DataFrame({
        "article": np.repeat([f"a{i:03}" for i in range(articles)], DAYS),
        "day": np.tile(days, articles),
        "sold": rng.poisson(np.maximum(mean, 0.1)).ravel(),
        "promotion": promoted.ravel().astype(float),
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--articles", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("retail.png"))
    options = parser.parse_args()

    sales = draw_sales(options.articles)
    cut = sales["day"].max() - pd.Timedelta(days=HORIZON)
    known, held_out = sales[sales["day"] <= cut], sales[sales["day"] > cut]
    forecaster = fs.SequenceForecaster(
        horizon=HORIZON, id_col="article", time_col="day", target_col="sold",
        calendar=["day_of_week"], quantiles=(0.1, 0.5, 0.9), hidden_size=32, lags=56,
        epochs=options.epochs, random_state=0,
    )  # fmt: skip
    forecaster.fit(known)
    table = forecaster.evaluate(held_out)
    print(table.round(3))
    forecast = forecaster.predict(X=held_out.drop(columns="sold"))
    draw(known, held_out, forecast, options.out)
    error = table["MASE"]
    if not error["SequenceForecaster"] < 0.9 * error.drop("SequenceForecaster").min():
        raise SystemExit("the forecasts are hardly better than naive ones")


def draw(known: pd.DataFrame, held_out: pd.DataFrame, forecast: pd.DataFrame, path: Path) -> None:
    """Draw four articles with their forecasts, and what was sold."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    names = sorted(forecast["article"].unique())[:4]
    recent = known.groupby("article").tail(56)
    for ax, name in zip(figure.subplots(2, 2).flat, names, strict=True):
        plot_forecast(
            recent, forecast, series=name, actual=held_out, ax=ax,
            id_col="article", time_col="day", target_col="sold",
        )  # fmt: skip
        ax.set_title(name, loc="left")
        ax.set_ylabel("sold in a day")
        ax.get_legend().remove()
    figure.legend(
        *ax.get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False
    )
    figure.savefig(path, dpi=100)
    print(f"Picture: {path} (promotions, which are planned, are peaks of the forecasts, too)")


if __name__ == "__main__":
    main()
