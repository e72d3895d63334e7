"""Series that go on, that come in many kinds, and that have gaps, in `SequenceForecaster`."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from forecasting import LEVELS, NAN, Fixed, Weights, assert_same_training, quick, wave

from fastseq.sklearn import SequenceForecaster

# --- series that go on


CASES = [
    {},
    {"quantiles": LEVELS},
    {"lags": 3, "season": 5},
    {"strategy": "recursive", "lags": 3, "season": 2},
    {"strategy": "recursive", "quantiles": LEVELS},
    {"strategy": "recursive", "quantiles": LEVELS, "scale": "series", "season": 3},
    {"module": "gru", "num_layers": 2, "scale": "series", "season": 3},
]


@pytest.mark.parametrize("kw", CASES)
@pytest.mark.parametrize("covariates", [False, True])
def test_going_on_is_as_if_all_had_been_given(kw, covariates):
    panel = list(wave(70, 3))
    plans = [np.random.default_rng(n).standard_normal((74, 2)) for n in range(3)]

    def known(*parts):
        return [np.concatenate([p[a:b] for a, b in parts]) for p in plans] if covariates else None

    f = quick(**kw).fit([s[:50] for s in panel], known((0, 50)))
    more = [s[50:] for s in panel]
    tests = f.backtest(more, known((50, 70)), stride=7)
    assert tests.shape[:3] == (3, 3, 4)
    for number, end in enumerate((50, 57, 64)):
        g = pickle.loads(pickle.dumps(f))  # noqa: S301
        if end > 50:
            g.update([s[50:52] for s in panel], known((50, 52)))
            g.update([s[52:end] for s in panel], known((52, end)))
        found = g.predict(X=known((end, end + 4)))
        np.testing.assert_allclose(tests[number], found, rtol=1e-4, atol=1e-4)
        if kw.get("scale") != "series":  # which is measured on what is given
            whole = f.predict([s[:end] for s in panel], known((0, end + 4)))
            np.testing.assert_allclose(whole, found, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(f.backtest(more, known((50, 70)), stride=7), tests)


@pytest.mark.parametrize("kw", CASES[:4])
def test_series_of_different_lengths_are_as_each_alone(kw):
    series = [s[:length] for s, length in zip(wave(60, 3), (20, 60, 7), strict=True)]
    f = quick(batchsize=2, **kw).fit(series)
    together = f.predict()
    np.testing.assert_allclose(f.predict(series), together, rtol=1e-5, atol=1e-5)
    for one, found in zip(series, together, strict=True):
        np.testing.assert_allclose(f.predict(one), found, rtol=1e-5, atol=1e-5)
    f.update([s[:3] for s in wave(60, 3)])
    whole = [np.concatenate([s, w[:3]]) for s, w in zip(series, wave(60, 3), strict=True)]
    np.testing.assert_allclose(f.predict(), f.predict(whole), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", ["standard", "series"])
def test_order_of_series_does_not_matter(scale):
    series = [s[:length] for s, length in zip(wave(60, 3), (20, 60, 40), strict=True)]
    plans = [
        np.random.default_rng(n).standard_normal((len(s) + 4, 1)) for n, s in enumerate(series)
    ]

    def forecasts(order):
        f = quick(epochs=5, batchsize=3, scale=scale)
        f.fit([series[n] for n in order], [plans[n][:-4] for n in order])
        return f.predict(X=[plans[n][-4:] for n in order])

    np.testing.assert_allclose(forecasts([0, 1, 2]), forecasts([2, 1, 0])[::-1], rtol=1e-4)


def test_shapes_are_those_that_were_given():
    y = wave(30, 3)
    shapes = {
        (4,): y[0], (4, 3): y.T, (3, 4): list(y), (3, 4, 1): y[..., None],
        (2, 4, 3): [y.T, y.T[:20]], (1, 4): [y[0]],
    }  # fmt: skip
    for shape, given in shapes.items():
        assert quick().fit(given).predict().shape == shape
        assert quick(quantiles=LEVELS).fit(given).predict().shape == (*shape, 3)
    assert quick().fit(y[0]).predict(list(y)).shape == (3, 4)
    assert quick().fit(y[0]).predict().dtype == np.float64
    assert quick().fit(y[0].astype(np.float32)).predict().dtype == np.float32
    assert quick().fit(np.arange(30)).predict().dtype == np.float64


def test_tables_and_tensors_are_arrays():
    y, x = wave(34, 2).T, np.random.default_rng(0).standard_normal((34, 2))
    wanted = quick().fit(y[:30], x[:30]).predict(X=x[30:])
    times = pd.date_range("2024-01-01", periods=34, freq="h")
    y_table, x_table = (pd.DataFrame(a, times, ["a", "b"]) for a in (y, x))
    f = quick().fit(y_table[:30], x_table[:30])
    np.testing.assert_array_equal(f.predict(X=x_table[30:]), wanted)
    np.testing.assert_array_equal(f.predict(X=x[30:]), wanted)
    np.testing.assert_array_equal(f.predict(X=x_table[30:][["b", "a"]]), wanted)
    f = quick().fit(torch.tensor(y[:30]), torch.tensor(x[:30]))
    np.testing.assert_array_equal(f.predict(X=torch.tensor(x[30:])), wanted)
    series = quick().fit(y_table["a"]).predict()
    np.testing.assert_array_equal(series, quick().fit(y[:, 0]).predict())


def test_a_panel_may_share_covariates():
    y, x = list(wave(34, 3)), np.random.default_rng(0).standard_normal((34, 2))
    first = [s[:30] for s in y]
    shared = quick().fit(first, x[:30]).predict(X=x[30:])
    np.testing.assert_array_equal(quick().fit(first, [x[:30]] * 3).predict(X=[x[30:]] * 3), shared)


# --- what is missing, and what is not learnt


def test_missing_values_are_not_learnt():
    rng = np.random.default_rng(0)
    y = wave(600, noise=0.02)[0]
    gaps = y.copy()
    gaps[rng.random(600) < 0.2] = NAN
    gaps[100:140] = NAN
    f = SequenceForecaster(12, epochs=60, random_state=0).fit(gaps[:560])
    assert f.score(y[560:]) > 0.9
    assert np.isfinite(f.backtest(gaps[560:])).all()
    assert np.isfinite(f.update(np.full(5, NAN)).predict()).all()


@pytest.mark.parametrize("season", [None, 3])
def test_going_on_with_gaps_is_as_if_all_had_been_given(season):
    y = 5 + wave(60)[0]
    y[[18, 19, 31, 40, 41, 58]] = NAN
    f = quick(season=season).fit(y[:40])
    f.update(y[40:58]).update(y[58:])
    np.testing.assert_allclose(f.predict(), f.predict(y), rtol=1e-4)


def test_units_do_not_matter():
    y, x = wave(64)[0], np.random.default_rng(0).standard_normal((64, 2))
    f = quick(scale="series", season=5).fit(y[:60], x[:60])
    g = quick(scale="series", season=5).fit(100 * y[:60] + 7, 1000 * x[:60] + 500)
    other = g.predict(X=1000 * x[60:] + 500)
    np.testing.assert_allclose(other, 100 * f.predict(X=x[60:]) + 7, rtol=1e-3)
    np.testing.assert_allclose(f.predict(100 * y[:60] + 7, x), other, rtol=1e-3)


def test_the_part_to_validate_on_is_not_learnt():
    y = wave(80, 2)
    other = y.copy()
    other[:, -10:] = np.random.default_rng(1).standard_normal((2, 10))
    f, g = (
        quick(validation=10, season=3, epochs=3, callbacks=[Weights()]).fit(list(s))
        for s in (y, other)
    )
    assert_same_training(f, g)
    assert f.history_[-1]["loss"] == g.history_[-1]["loss"]
    assert f.history_[-1]["validation_loss"] != g.history_[-1]["validation_loss"]


def test_validation_is_on_forecasts_of_the_last_steps():
    y, held, horizon = np.random.default_rng(0).standard_normal(50), 8, 3
    y[20] = 30  # much loss in one chunk
    last = Fixed(np.ones((horizon, 1)))
    f = quick(module=last, validation=held, horizon=horizon, scale=None).fit(y)
    errors = [
        (y[t + h] - y[t]) ** 2
        for t in range(49) for h in range(1, horizon + 1) if 50 - held <= t + h < 50
    ]  # fmt: skip
    np.testing.assert_allclose(f.history_[-1]["validation_loss"], np.mean(errors), rtol=1e-5)
    errors = [
        (y[t + h] - y[t]) ** 2
        for t in range(49) for h in range(1, horizon + 1) if t + h < 50 - held
    ]  # fmt: skip
    f = quick(module=last, validation=held, horizon=horizon, scale=None, seqsize=5).fit(y)
    np.testing.assert_allclose(f.history_[-1]["loss"], np.mean(errors), rtol=1e-5)


@pytest.mark.parametrize(
    ("module", "count", "as_if"),
    [("segrnn", 1, "standard"), ("segrnn", 3, "series"), ("gru", 3, "standard")],
)
def test_series_of_a_panel_are_scaled_each_by_itself(module, count, as_if):
    y = list(wave(60, count) * 10.0 ** np.arange(count)[:, None])
    found, expected = (
        quick(module=module, scale=scale).fit(y).predict() for scale in ("auto", as_if)
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kw", [{}, {"season": 7}, {"transform": "log1p", "loss": "mse"}])
def test_a_series_that_has_just_begun_is_forecast_and_changes_no_other(kw):
    days = pd.date_range("2024-01-01", periods=80)
    shops = {
        name: pd.Series(10 * (n + 1) + wave(80, 1, seed=n)[0], days) for n, name in enumerate("abc")
    }
    begun = {"new": shops["b"][:1], **shops}
    old, f = (
        SequenceForecaster(7, epochs=2, random_state=0, **kw).fit(panel) for panel in (shops, begun)
    )
    assert f.season_ == 7
    found, wanted = f.predict(), old.predict()
    for name in shops:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6)
    level = shops["b"].iloc[0]  # with the scale of the others it stays near the only value
    assert (np.abs(found["new"] - level) < 5).all()
    assert f.update({"new": shops["b"][1:20]}).predict()["new"].index[0] == days[20]
    alone = old.predict({"new": shops["b"][:1]})
    np.testing.assert_allclose(alone["new"], found["new"], rtol=1e-6)


def test_the_season_is_dropped_if_most_series_are_too_short_for_it():
    days = pd.date_range("2024-01-01", periods=60)
    panel = {n: pd.Series(wave(60, 1)[0], days)[: 60 if n == 0 else 10] for n in range(5)}
    assert SequenceForecaster(3, epochs=1).fit(panel).season_ is None


def test_series_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match=r"y\[0\] has 13 steps, but .* needs 14 \(and 1 others"):
        SequenceForecaster(4, validation=12).fit([np.zeros(13), np.zeros(5)])
    with pytest.raises(ValueError, match=r"y\[1\] has 1 step, but horizon=4"):
        SequenceForecaster(4, module="gru").fit([np.zeros(9), np.zeros(1)])


def test_a_list_of_covariates_does_not_follow_moved_series():
    y, x = (dict(zip("abc", values, strict=True)) for values in (wave(40, 3), wave(40, 3, seed=1)))

    def cut(series, begin, end, order="abc"):
        return {key: series[key][begin:end] for key in order}

    f = quick().fit(cut(y, 0, 30), list(cut(x, 0, 30).values()))
    moved, covariates = cut(y, 30, 40, "cab"), list(cut(x, 30, 40).values())
    for call in (f.update, f.partial_fit, f.backtest, f.evaluate, f.score):
        for refused in (covariates, np.stack(covariates)[..., None]):
            with pytest.raises(ValueError, match="X has no ids, but y has its series in another"):
                call(moved, refused)
    found, wanted = f.backtest(moved, cut(x, 30, 40)), f.backtest(cut(y, 30, 40), covariates)
    assert all(np.array_equal(found[key], wanted[key]) for key in "abc")
    f.update(cut(y, 30, 35, "c"), [x["c"][30:35]])  # one alone


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (
            {"target_col": "forecast"},
            "target_col is 'forecast', but forecasts get a column of that name",
        ),
        ({"time_col": "cutoff"}, "time_col is 'cutoff', but"),
        ({"id_col": "ds"}, "id_col and time_col are the same column, 'ds'"),
    ],
)
def test_columns_of_results_do_not_hide_those_of_data(columns, match):
    f = quick(**columns)
    frame = pd.DataFrame({f.id_col: "a", f.time_col: np.arange(30), f.target_col: wave(30)[0]})
    with pytest.raises(ValueError, match=match):
        f.fit(frame)
