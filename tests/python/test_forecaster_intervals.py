"""Quantiles that hold: conformal shifts against NumPy, and how often actual values are inside."""

from __future__ import annotations

import math

import numpy as np
import pytest
from forecasting import LEVELS, NAN, quick, wave

BANDS = (0.05, 0.1, 0.5, 0.9, 0.95)
HORIZON = 3


def conformal_quantile(scores, level):
    """The k-th smallest of n scores, k = ⌈(n + 1) q⌉ above the median, ⌊(n + 1) q⌋ below."""
    scores = np.sort(scores[~np.isnan(scores)])
    if level == 0.5:
        return np.median(scores)
    rank = (len(scores) + 1) * level
    return scores[(math.ceil(round(rank, 6)) if level > 0.5 else math.floor(round(rank, 6))) - 1]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"module": "gru"},
        {"module": "linear", "season": 6},
        {"transform": "log1p", "ensemble": 2},
        {"variables": "together", "module": "mlp"},
    ],
)
def test_split_shifts_are_quantiles_of_held_out_errors(more):
    """Of all series of a panel, in units of their mean change."""
    held, steps, lag = 15, 70, more.get("season", 1)
    y = np.abs(np.stack([wave(steps, 2, 0.3, seed) for seed in range(3)], 0)).transpose(0, 2, 1)
    y[1, 60, 1] = NAN
    more = {**more, "horizon": HORIZON, "quantiles": LEVELS, "validation": held}
    plain, f = quick(**more).fit(y), quick(**more, conformal="split").fit(y)
    if "transform" in more:
        y = np.log1p(y)
        plain = [
            np.log1p(plain.predict(np.expm1(y[:, :n]))) for n in range(steps - held, steps + 1)
        ]
    else:
        plain = [plain.predict(y[:, :n]) for n in range(steps - held, steps + 1)]
    before = y[:, : steps - held]
    unit = np.nanmean(np.abs(before[:, lag:] - before[:, :-lag]), axis=1)  # (3, 2)
    wanted = plain[-1].copy()
    for h in range(HORIZON):
        for k in range(2):
            for q, level in enumerate(LEVELS):
                scores = np.array([
                    (y[:, steps - held + i + h, k] - plain[i][:, h, k, q]) / unit[:, k]
                    for i in range(held - h)
                ])  # fmt: skip
                wanted[:, h, k, q] += unit[:, k] * conformal_quantile(scores.ravel(), level)
    wanted = np.sort(wanted, -1)
    wanted = np.expm1(np.maximum(wanted, 0)) if "transform" in more else wanted
    np.testing.assert_allclose(f.predict(), wanted, rtol=1e-4, atol=1e-5)


def test_a_weight_of_0_does_not_count_in_shifts():
    y, weights = wave(80)[0], np.ones(80)
    y[79], weights[79] = 1e4, 0
    missing = np.where(weights > 0, y, NAN)
    more = {"quantiles": LEVELS, "validation": 20, "lr": 0.0, "scale": None}

    def shifts(y, weights):
        f, plain = (quick(**more, conformal=c).fit(y, weights=weights) for c in ("split", None))
        return f.predict() - plain.predict()

    np.testing.assert_allclose(shifts(y, weights), shifts(missing, None), atol=1e-2)
    assert shifts(y, None).max() > 1e3


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"conformal": "split"},
        {"conformal": "adaptive"},
        {"ensemble": 3, "transform": "sqrt", "conformal": "adaptive"},
        {"ensemble": 2, "module": "gru"},
    ],
)
def test_quantiles_never_cross(more):
    rng = np.random.default_rng(0)
    y = rng.gamma(0.3, 5, (3, 120))
    f = quick(**more, quantiles=BANDS, lr=0.05).fit(list(y[:, :80]))
    for found in (f.predict(), f.backtest(list(y[:, 80:]), stride=1), f.predict(list(y))):
        assert (np.diff(found, axis=-1) >= 0).all()
    if "transform" in more:
        assert (f.backtest(list(y[:, 80:])) >= 0).all()


def inside(found, actual):
    """Return how often actual values lie in the 80 and in the 90 % interval."""
    out = []
    for low, high in ((1, 3), (0, 4)):
        out.append(np.mean((found[..., low] <= actual) & (actual <= found[..., high])))
    return np.array(out)


def ahead(f, later):
    """Return backtests from each step, and the actual values."""
    found = np.moveaxis(f.backtest(list(later), stride=1), 0, 1)  # (N, origins, H, Q)
    origins = later.shape[1] - HORIZON + 1
    rows = np.arange(origins)[:, None] + np.arange(HORIZON)
    return found[:, :origins], later[:, rows]


def heavy_panel(steps, count=40, seed=0):
    """Series of different sizes, each an autoregression with noise of 3 degrees of freedom."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_t(3, (count, steps)) * np.exp(rng.uniform(-2, 2, (count, 1)))
    y = noise.copy()
    for t in range(1, steps):
        y[:, t] += 0.6 * y[:, t - 1]
    return y


def test_intervals_hold_on_a_heteroscedastic_panel_with_heavy_tails():
    """After a training that is too long for so few values, as plain quantiles show."""
    y = heavy_panel(240)
    more = {"horizon": HORIZON, "quantiles": BANDS, "scale": "series", "epochs": 100, "lr": 0.015,
            "module": "mlp", "lags": 8, "hidden_size": 64, "batchsize": 64}  # fmt: skip
    off = {}
    for conformal in (None, "split", "adaptive"):
        f = quick(**more, conformal=conformal).fit(list(y[:, :40]))
        off[conformal] = np.abs(inside(*ahead(f, y[:, 40:])) - [0.8, 0.9])
    assert (off[None] > 0.03).all()
    assert (off["split"] < 0.03).all()
    assert (off["adaptive"] < 0.03).all()


def test_adaptive_intervals_follow_a_change_of_variance():
    y = heavy_panel(1100, 8)
    y[:, 300:] *= 1 + 2 * (np.arange(8) % 2)[:, None]  # of every second series
    more = {
        "horizon": HORIZON,
        "quantiles": BANDS,
        "scale": "series",
        "epochs": 3,
        "hidden_size": 8,
    }
    split = quick(**more, conformal="split").fit(list(y[:, :300]))
    f = quick(**more, conformal="adaptive").fit(list(y[:, :300]))
    late = slice(350, None)
    found, actual = ahead(split, y[:, 300:])
    assert (np.abs(inside(found[1::2, late], actual[1::2, late]) - [0.8, 0.9]) > 0.05).all()
    found, actual = ahead(f, y[:, 300:])
    for group in (slice(0, None, 2), slice(1, None, 2)):
        assert (np.abs(inside(found[group, late], actual[group, late]) - [0.8, 0.9]) < 0.03).all()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"module": "lstm"},
        {"module": "gru", "season": 5},
        {"horizon": 1},
        {"strategy": "recursive", "module": "linear"},
    ],
)
def test_adaptive_backtests_equal_updates_however_they_are_cut(more):
    rng = np.random.default_rng(0)
    y, x = wave(100, 2).T + rng.standard_t(3, (100, 2)), rng.standard_normal((104, 2))
    more = {"quantiles": LEVELS, "conformal": "adaptive", **more}
    f, g = (quick(**more).fit(y[:80], x[:80]) for _ in range(2))
    before = f.predict(X=x[80:][: f.horizon])
    found = f.backtest(y[80:], x[80:100], stride=1)
    np.testing.assert_array_equal(f.predict(X=x[80:][: f.horizon]), before)
    f.update(y[80:87], x[80:87]).update(y[87:95], x[87:95])
    for step in range(80, 95):
        ahead = g.predict(X=x[step : step + g.horizon])
        np.testing.assert_allclose(ahead, found[step - 80], rtol=1e-4, atol=1e-5)
        g.update(y[step : step + 1], x[step : step + 1])
    ahead = x[95 : 95 + g.horizon]
    np.testing.assert_allclose(f.predict(X=ahead), g.predict(X=ahead), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(f.predict(X=ahead), found[15], rtol=1e-4, atol=1e-5)
    split = quick(**{**more, "conformal": "split"}).fit(y[:80], x[:80])
    assert (
        np.abs(split.update(y[80:95], x[80:95]).predict(X=ahead) - g.predict(X=ahead)).max() > 0.01
    )


def test_enough_steps_are_held_out_or_it_is_said():
    y = wave(80, 4)
    f = quick(quantiles=LEVELS, conformal="split", epochs=1).fit(y[0])
    assert np.isfinite(f.predict()).all()
    with pytest.raises(ValueError, match="pass quantiles"):
        quick(conformal="split").fit(y[0])
    with pytest.raises(ValueError, match="validation is 0"):
        quick(quantiles=LEVELS, conformal="split", validation=0).fit(y[0])
    with pytest.raises(ValueError, match="have 8 forecasts whose last step is known"):
        quick(quantiles=LEVELS, conformal="split", validation=11).fit(y[0])
    quick(quantiles=LEVELS, conformal="split", validation=12, epochs=1).fit(y[0])
    quick(quantiles=LEVELS, conformal="split", validation=6, epochs=1).fit(list(y))
    with pytest.raises(ValueError, match=r"y has 13 steps, but .* 12 steps held out"):
        quick(quantiles=LEVELS, conformal="split").fit(y[0, :13])
    gap = y[0].copy()
    gap[-5:] = NAN
    with pytest.raises(ValueError, match="are known in the held-out part"):
        quick(quantiles=LEVELS, conformal="split", validation=12).fit(gap)


def test_series_without_any_change_have_intervals_of_the_usual_width():
    y = [*wave(60, 3), np.full(60, 5.0)]
    f = quick(quantiles=LEVELS, conformal="split", scale="series").fit(y)
    widths = np.ptp(f.predict(), axis=-1)
    assert np.isfinite(widths).all()
    assert (widths[3] < 10 * widths[:3].max()).all()
