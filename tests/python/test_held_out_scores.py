"""Scores on data that were held out, of real series, beside stated baselines: by how much better.

Errors are mean absolute ones. Of three seeds none may be worse than the baseline, and their mean
must be better by the margin. What was found when this was written:

===================================  =======  ==============  =====================  ==============
what                                 fastseq  seasonal-naive  linear autoregression  another
===================================  =======  ==============  =====================  ==============
demand, half-hours, a day ahead, GW  0.340    0.514           0.412
CO2, weeks, half a year ahead, ppm   0.483    1.541           0.687 (53 weeks)       0.481 (79)
Seattle's warmest, a day ahead, °C   2.067    3.770           2.136                  2.314 (linear)
digits, row by row, share of errors  0.039                                           0.258 (linear)
===================================  =======  ==============  =====================  ==============
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

import fastseq as fs

SEEDS = (0, 1, 2)
HALF_HOURS, WEEK = 48, 336


def autoregression(y, steps, horizon, lags: Iterable[int]):
    """Forecasts of the last steps, made every `horizon` steps, by least squares, fed back."""
    lags = list(lags)
    most, known = max(lags), y[:-steps]
    rows = np.stack([known[most - lag : len(known) - lag] for lag in lags], 1)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
    coefficients = np.linalg.lstsq(rows, known[most:], rcond=None)[0]
    found = []
    for origin in range(len(known), len(y), horizon):
        series = list(y[:origin])
        for _ in range(horizon):
            series.append(coefficients[:-1] @ [series[-lag] for lag in lags] + coefficients[-1])
        found += series[origin:]
    return np.array(found[:steps])


def error(found, actual):
    return float(np.nanmean(np.abs(found - actual)))


def assert_better(errors, baseline, factor):
    """Each seed is better than the baseline, and their mean at most `factor` of it."""
    assert max(errors) < baseline, f"{errors} beside {baseline}"
    assert np.mean(errors) < factor * baseline, f"{errors} beside {factor} of {baseline}"


@pytest.fixture(scope="module")
def demand():
    from pmdarima.datasets import load_taylor

    return load_taylor() / 1000


@pytest.mark.slow
def test_demand_a_day_ahead(demand):
    steps = 2 * WEEK
    actual = demand[-steps:]
    errors = []
    for seed in SEEDS:
        f = fs.SequenceForecaster(
            HALF_HOURS, season=WEEK, loss="mae", hidden_size=64, epochs=20, random_state=seed
        ).fit(demand[:-steps])
        errors.append(error(f.backtest(actual).ravel(), actual))
    naive = error(demand[-steps - WEEK : -WEEK], actual)
    around_a_week = [*range(1, HALF_HOURS + 1), *range(WEEK - 2, WEEK + 3)]
    linear = min(
        error(autoregression(demand, steps, HALF_HOURS, lags), actual)
        for lags in (around_a_week, range(1, WEEK + 2))
    )
    assert_better(errors, naive, 0.75)
    assert_better(errors, linear, 0.93)


@pytest.mark.slow
def test_quantiles_of_demand(demand):
    """Beside the quantiles of how demand differed from a week before."""
    steps, levels = 2 * WEEK, np.array([0.1, 0.5, 0.9])
    actual, known = demand[-steps:, None], demand[:-steps]

    def pinball(found):
        e = actual - found
        return float(np.maximum(levels * e, (levels - 1) * e).mean())

    losses, covered = [], []
    for seed in SEEDS:
        f = fs.SequenceForecaster(
            HALF_HOURS, season=WEEK, quantiles=levels, hidden_size=64, epochs=20, random_state=seed
        ).fit(known)
        found = f.backtest(actual[:, 0]).reshape(-1, 3)
        losses.append(pinball(found))
        covered.append(np.mean((actual[:, 0] > found[:, 0]) & (actual[:, 0] < found[:, 2])))
    naive = demand[-steps - WEEK : -WEEK, None]
    naive = pinball(naive + np.quantile(known[WEEK:] - known[:-WEEK], levels))
    assert_better(losses, naive, 0.8)
    assert 0.65 < np.mean(covered) < 0.95


@pytest.mark.slow
def test_co2_half_a_year_ahead():
    """Weekly, with gaps; the autoregression sees a season and a week, of interpolated values.

    One that sees half a season more is better than both.
    """
    import statsmodels.api as sm

    y = sm.datasets.co2.load_pandas().data["co2"].to_numpy()
    steps, horizon, year = 520, 26, 52
    actual, known = y[-steps:], np.isfinite(y)
    whole = np.interp(np.arange(len(y)), np.flatnonzero(known), y[known])
    assert (~known).sum() == 59
    errors = []
    for seed in SEEDS:
        f = fs.SequenceForecaster(
            horizon, season=year, loss="mae", dropout=0.2, epochs=40, random_state=seed
        )
        errors.append(error(f.fit(y[:-steps]).backtest(actual).ravel(), actual))
    assert_better(errors, error(whole[-steps - year : -year], actual), 0.5)
    linear = autoregression(whole, steps, horizon, range(1, year + 2))
    assert_better(errors, error(linear, actual), 0.93)


def test_regression_of_tomorrow_s_warmest():
    """From the last 30 days of weather, beside the autoregression, and a linear one of all that."""
    from vega_datasets import data

    weather = data.seattle_weather()
    y, held, days = weather["temp_max"].to_numpy(), 365, 30
    season = 2 * np.pi * weather["date"].dt.day_of_year.to_numpy() / 365.25
    features = np.stack(
        [np.log1p(weather["precipitation"]), y, weather["temp_min"], weather["wind"],
         np.sin(season), np.cos(season)], 1,
    )  # fmt: skip
    windows = np.stack([features[t - days : t] for t in range(days, len(y))])
    x, x_held = windows[:-held], windows[-held:]
    actual, today, change = y[-held:], y[-held - 1 : -1], np.diff(y)[days - 1 :]
    errors = []
    for seed in SEEDS:
        m = fs.SequenceRegressor(
            "gru", hidden_size=16, dropout=0.2, loss="mae", lr=3e-3, schedule=None, epochs=20,
            scale_x="standard", scale_y="standard", random_state=seed,
        ).fit(x, change[:-held])  # fmt: skip
        errors.append(error(today + m.predict(x_held), actual))
    assert_better(errors, error(y[-held - 365 : -365], actual), 0.6)
    assert_better(errors, error(autoregression(y, held, 1, range(1, days + 1)), actual), 0.98)
    flat = np.concatenate([windows.reshape(len(windows), -1), np.ones((len(windows), 1))], 1)
    linear = flat @ np.linalg.lstsq(flat[:-held], change[:-held], rcond=None)[0]
    assert_better(errors, error(today + linear[-held:], actual), 0.93)


def test_digits_row_by_row():
    """Beside logistic regression on each column's mean, deviation, least and greatest value."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    flat, y = load_digits(return_X_y=True)
    x = flat.reshape(-1, 8, 8) / 16
    summary = np.concatenate([x.mean(1), x.std(1), x.min(1), x.max(1)], 1)
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(y))
        known, held = order[:1200], order[1200:]
        m = fs.SequenceClassifier("lstm", hidden_size=32, lr=0.01, epochs=15, random_state=seed)
        wrong = 1 - m.fit(x[known], y[known]).score(x[held], y[held])
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        baseline = 1 - linear.fit(summary[known], y[known]).score(summary[held], y[held])
        assert wrong < 0.3 * baseline, f"{wrong} beside {baseline}"
