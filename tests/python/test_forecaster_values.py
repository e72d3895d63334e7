"""Values that `SequenceForecaster` must take: constants, offsets, gaps over seasons, threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from forecasting import LEVELS, NAN, Fixed, Weights, assert_same_training, quick, wave
from sklearn.metrics import r2_score

from fastseq.sklearn.forecasting.windows import SeriesScaling, center_and_scale, over_seasons

# --- constants, and values that repeat


@pytest.mark.parametrize("value", [0.1, 14.62, -1e-9, 1e9 + 0.1, 0.0])
def test_a_constant_covariate_is_as_any_other(value):
    y = wave(104)[0][:100]

    def forecast(value, later):
        x = np.full((104, 1), value)
        x[100:] += later
        return quick(epochs=5).fit(y, x[:100]).predict(X=x[100:])

    for later in (0, 0.125):
        np.testing.assert_allclose(forecast(value, later), forecast(1.0, later), atol=1e-5)
    without = quick(epochs=5, module="linear").fit(y).predict()  # which learns of it what bias is
    assert np.abs(forecast(value, 0) - without).max() < 1


@pytest.mark.parametrize("value", [0.1, 14.62, 1e9 + 0.1])
def test_a_constant_variable_leaves_the_others_alone(value):
    def forecasts(value):
        y = np.stack([wave(120)[0], np.full(120, value)], 1)
        y[100:, 1] += 0.125
        return quick(epochs=5).fit(y[:100]).backtest(y[100:]) - [0, value]

    np.testing.assert_allclose(forecasts(value), forecasts(1.0), atol=1e-5)


def test_what_differs_by_rounding_alone_is_constant():
    rng = np.random.default_rng(0)
    for value in rng.standard_normal(200) * 10.0 ** rng.integers(-12, 12, 200):
        noise = value + rng.integers(-1, 2, (50, 1)) * np.spacing(value)
        assert center_and_scale([noise[:20], noise[20:]])[1] == 1
    year = np.sin(2 * np.pi * np.arange(240) / 12)[:, None]
    for offset in (0, 1e6):
        scaling = SeriesScaling.measure([year + offset], "standard", 12, 12)
        np.testing.assert_allclose(scaling.scale, year.std(), rtol=1e-6)
        np.testing.assert_array_equal(scaling.change, scaling.scale)


@pytest.mark.parametrize("unit", [1e-250, 1e-30, 1.0, 1e30, 1e250])
def test_scales_of_any_size_are_measured(unit):
    y = np.random.default_rng(0).standard_normal((60, 2)) + np.array([5, 0])
    center, scale = center_and_scale([unit * y[:20], unit * y[20:]])
    np.testing.assert_allclose(center / unit, y.mean(0))
    np.testing.assert_allclose(scale / unit, y.std(0))
    f, g = (quick(season=5).fit(factor * y) for factor in (1, unit))
    np.testing.assert_allclose(g.predict() / unit, f.predict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [1e9, -1e6])
@pytest.mark.parametrize(
    "kw",
    [
        {},
        {"season": 5},
        {"strategy": "recursive", "season": 5, "quantiles": LEVELS},
        {"strategy": "recursive", "lags": 2, "scale": "series"},
    ],
)
def test_an_offset_does_not_matter(offset, kw):
    y, x = wave(80)[0], np.random.default_rng(0).standard_normal((84, 1))
    f = quick(epochs=5, **kw).fit(y[:60], x[:60])
    g = quick(epochs=5, **kw).fit(y[:60] + offset, x[:60] + offset)
    wanted = f.predict(X=x[60:64])
    np.testing.assert_allclose(g.predict(X=x[60:64] + offset) - offset, wanted, atol=1e-4)
    np.testing.assert_allclose(
        g.score(y[60:] + offset, x[60:80] + offset), f.score(y[60:], x[60:80]), atol=1e-4
    )


def test_a_score_is_computed_in_double_precision():
    y = (1e6 + wave(80)[0]).astype(np.float32)  # in which squares would lose all
    f = quick(module="linear", epochs=5).fit(y[:60])
    found = np.concatenate(f._rollout.forecasts(f._origin, y[None, 60:, None], None, 4), 1)
    np.testing.assert_allclose(
        f.score(y[60:]), r2_score(y[60:].astype(float), found[0, :, 0, 0]), rtol=1e-9
    )


def test_what_single_precision_cannot_hold_is_told():
    y, x = wave(44)[0], np.random.default_rng(0).standard_normal((44, 1))
    with pytest.raises(ValueError, match="y has values that are too large for single precision"):
        quick(scale=None).fit(1e200 * y)
    f = quick().fit(y[:40], x[:40])
    with pytest.raises(ValueError, match="X has values that are too large for single precision"):
        f.predict(X=1e200 * x[40:])
    with pytest.raises(ValueError, match="y has values that are too large for single precision"):
        f.update(1e200 * y[40:], x[40:])
    np.testing.assert_array_equal(
        f.predict(X=x[40:]), quick().fit(y[:40], x[:40]).predict(X=x[40:])
    )


def test_half_precision_comes_back_in_single():
    y = (1000 + wave(40)[0]).astype(np.float16)  # whose numbers are 0.5 apart there
    found, wanted = quick().fit(y).predict(), quick().fit(y.astype(float)).predict()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_integers_are_floats():
    y = np.round(10 * wave(40)[0]).astype(np.int64)
    wanted = quick().fit(y.astype(float)).predict()
    for given in (y, y.tolist(), y.astype(np.int8), torch.tensor(y)):
        np.testing.assert_array_equal(quick().fit(given).predict(), wanted)
    assert wanted.dtype == np.float64


# --- gaps over seasons


def naive(y, horizon, season):
    """Return for each step to come the last known value of its phase."""
    last = np.full(season, NAN)
    for t, value in enumerate(y):
        if np.isfinite(value):
            last[t % season] = value
    return np.array([last[(len(y) + h) % season] for h in range(horizon)])


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
@pytest.mark.parametrize("cut", [1, 2, 3, 5, 9, 13])
def test_a_gap_a_season_ago_is_what_was_known_before(strategy, cut):
    season, horizon = 4, 4
    y = np.random.default_rng(0).standard_normal(40)
    y[-cut:] = NAN
    y[[20, 21]] = NAN
    f = quick(module=Fixed(np.zeros((1 if strategy == "recursive" else horizon, 2))),
              strategy=strategy, horizon=horizon, season=season)  # fmt: skip
    wanted = naive(y, horizon, season)
    np.testing.assert_allclose(f.fit(y).predict(), wanted, rtol=1e-6)
    np.testing.assert_allclose(f.predict(y), wanted, rtol=1e-6)
    f.fit(y[:25]).update(y[25:33]).update(y[33:])
    np.testing.assert_allclose(f.predict(), wanted, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
def test_a_phase_that_was_never_known_is_the_value_before_it(strategy):
    season = horizon = 4
    y = np.random.default_rng(0).standard_normal(33)
    y[2::4] = NAN
    f = quick(module=Fixed(np.zeros((1 if strategy == "recursive" else horizon, 2))),
              strategy=strategy, horizon=horizon, season=season)  # fmt: skip
    wanted = [y[29], y[29], y[31], y[32]]
    np.testing.assert_allclose(f.fit(y).predict(), wanted, rtol=1e-6)
    f.fit(y[:19]).update(y[19:26]).update(y[26:])
    np.testing.assert_allclose(f.predict(), wanted, rtol=1e-6)


def test_a_season_with_gaps_is_learnt():
    y = np.tile([0.0, 10, 20, 30], 60)
    gaps = y.copy()
    gaps[-3:] = NAN
    gaps[np.random.default_rng(0).random(len(y)) < 0.2] = NAN
    for given in (y, gaps):
        f = quick(season=4, epochs=40, lr=0.02).fit(given)
        np.testing.assert_allclose(f.predict(), [0, 10, 20, 30], atol=0.5)
        np.testing.assert_allclose(f.predict(gaps), [0, 10, 20, 30], atol=0.5)


@pytest.mark.parametrize("season", [1, 3, 7, 50])
def test_seasons_fill_gaps_as_a_loop_does(season):
    rng = np.random.default_rng(0)
    y = rng.standard_normal((40, 2))
    y[rng.random(y.shape) < 0.4] = NAN
    wanted = y.copy()
    for t in range(season, 40):
        wanted[t] = np.where(np.isnan(y[t]), wanted[t - season], y[t])
    np.testing.assert_array_equal(over_seasons(y, season), wanted)


# --- what is kept apart for validation


def test_covariates_to_validate_on_do_not_enter_the_training():
    rng = np.random.default_rng(0)
    y, x = wave(80)[0], rng.standard_normal((80, 2))
    other = x.copy()
    other[-10:] = 1e6 * rng.standard_normal((10, 2))
    for given in (lambda a: a, lambda a: [a, a[:60]]):
        series = [y, y[:60]] if isinstance(given(x), list) else y
        kw = {"validation": 10, "horizon": 1, "callbacks": [Weights()]}
        changed = given(other)
        if isinstance(changed, list):
            changed[1] = np.concatenate([x[:50], other[-10:]])
        f, g = quick(**kw).fit(series, given(x)), quick(**kw).fit(series, changed)
        assert_same_training(f, g)
        apart = x[:70] if series is y else np.concatenate([x[:70], x[:50]])
        np.testing.assert_allclose(g._known.x.coding.center, apart.mean(0))
        np.testing.assert_allclose(g._known.x.coding.scale, apart.std(0))


def test_a_variable_known_only_where_it_is_validated_is_told():
    y = wave(40, 2).T
    y[:-5, 1] = NAN
    with pytest.raises(ValueError, match="no known values of variable 1 before the steps to valid"):
        quick(validation=5).fit(y)


# --- calls at once


@pytest.mark.parametrize(
    "kw",
    [
        {"dropout": 0.3, "num_layers": 2},
        {"strategy": "recursive", "quantiles": LEVELS, "season": 3, "module": "gru"},
        {"module": "mlp", "lags": 4, "scale": "series"},
    ],
)
def test_threads_get_what_one_after_the_other_gets(kw):
    rng = np.random.default_rng(0)
    y, x = wave(90)[0], rng.standard_normal((94, 1))
    f = quick(seqsize=7, **kw).fit(y[:60], x[:60])
    panel = list(wave(30, 3))
    calls = [
        lambda: f.predict(X=x[60:64]),
        lambda: f.predict(y[:33], x[:37]),
        lambda: f.predict(panel, x[:34]),
        lambda: f.backtest(y[60:], x[60:90]),
        lambda: f.score(y[60:70], x[60:70]),
    ]
    wanted = [call() for call in calls]
    start = threading.Barrier(4)

    def work(thread):
        start.wait()
        return [calls[n % 5]() for n in range(thread, thread + 20)]

    with ThreadPoolExecutor(4) as pool:
        for thread, found in enumerate(pool.map(work, range(4))):
            for n, one in enumerate(found, thread):
                np.testing.assert_array_equal(one, wanted[n % 5])
    np.testing.assert_array_equal(f.predict(X=x[60:64]), wanted[0])
