"""Series of which nothing is known yet, in `SequenceForecaster`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from forecasting import LEVELS, NAN, quick, wave

from fastseq.sklearn import SequenceForecaster

Y = wave(80, 4)
DAYS = pd.date_range("2024-01-01", periods=80)
NOTHING = np.full(60, NAN)

MODELS = [
    {},
    {"scale": "series", "transform": "log1p"},
    {"module": "gru"},
    {"module": "gru", "season": 5, "scale": "series", "quantiles": LEVELS},
    {"quantiles": LEVELS, "conformal": "adaptive", "scale": "series"},
    {"module": "lstm", "quantiles": LEVELS, "conformal": "adaptive"},
    {"strategy": "recursive", "module": "linear", "lags": 2},
    {"transform": "sqrt", "loss": "mse", "season": 6, "ensemble": 2},
]


def panel(y, nothing=NOTHING):
    """Put a series without any value between others."""
    return [y[0], nothing, *y[1:]]


OTHERS = [0, 2, 3]


@pytest.mark.parametrize("kw", MODELS)
@pytest.mark.parametrize("steps", [60, 3])
def test_a_series_without_values_changes_no_other(kw, steps):
    y = list(np.abs(Y[:3, :50]))
    f, g = quick(**kw).fit(panel(y, NOTHING[:steps])), quick(**kw).fit(y)
    found, wanted = f.predict(), g.predict()
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[OTHERS], wanted, rtol=1e-5, atol=1e-6)
    later = list(np.abs(Y[:3, 50:60]))
    tests = f.backtest(panel(later, NOTHING[:10]), stride=3)
    assert np.isnan(tests[:, 1]).all()
    np.testing.assert_allclose(tests[:, OTHERS], g.backtest(later, stride=3), rtol=1e-5)
    table = f.evaluate(panel(later, later[1]), stride=1, per_series=True)
    assert (table.columns == g.evaluate(later).columns).all()
    assert np.isfinite(f.predict(horizon=9)[OTHERS]).all()
    assert np.isnan(f.predict(horizon=9)[1]).all()


@pytest.mark.parametrize("kw", MODELS)
def test_it_is_forecast_from_its_first_value_on(kw):
    """The same however updates are cut, and never from values that have not come yet."""
    y = list(np.abs(Y[:3, :50]))
    late = np.concatenate([[NAN] * 2, 1000 * np.abs(Y[3, 52:65])])
    new = panel(list(np.abs(Y[:3, 50:65])), late)
    f, g, h = (quick(**kw).fit(panel(y)) for _ in range(3))
    tests = f.backtest(new, stride=1)
    begun = 3 if "season" not in kw or "module" not in kw else 2 + 5  # which compares with a season
    assert np.isnan(tests[: min(begun, 3), 1]).all()
    assert np.isfinite(tests[begun:, 1]).all()
    for step in range(15):
        np.testing.assert_allclose(g.predict(), tests[step], rtol=1e-4, atol=1e-4)
        g.update([one[step : step + 1] for one in new])
    h.update([one[:9] for one in new]).update([one[9:] for one in new])
    np.testing.assert_allclose(h.predict(), g.predict(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(f.backtest(new, stride=5), tests[::5], rtol=1e-4, atol=1e-4)
    changed = [one.copy() for one in new]
    changed[1][6:] *= 7
    np.testing.assert_array_equal(f.backtest(changed, stride=1)[:7], tests[:7])


@pytest.mark.parametrize("kw", [MODELS[0], MODELS[1], MODELS[4], MODELS[7]])
def test_its_first_value_is_as_a_series_that_has_just_begun(kw):
    y = list(np.abs(Y[:3, :50]))
    f = quick(**kw).fit(panel(y))
    value = np.array([500.0])
    f.update([Y[0, :0], value, *(one[:0] for one in y[1:])])
    wanted = quick(**kw).fit(y).predict([value])[0]
    np.testing.assert_allclose(f.predict()[1], wanted, rtol=1e-4)
    if "scale" in kw:
        assert np.ptp(wanted) > 0
        assert (np.abs(wanted - 500) < 250).all()


def test_what_cannot_be_forecast_does_not_count():
    y, later = list(Y[:3, :50]), list(Y[:3, 50:60])
    f, g = quick(module="linear").fit(panel(y)), quick(module="linear").fit(y)
    came = np.concatenate([NOTHING[:4], Y[3, 54:60]])
    table = f.evaluate(panel(later, came), stride=2, per_series=True)
    wanted = g.evaluate(later, stride=2, per_series=True)
    np.testing.assert_allclose(table.loc[OTHERS], wanted, rtol=1e-5)
    tests = f.backtest(panel(later, came), stride=2)
    errors = [
        abs(tests[o, 1, h] - came[2 * o + h])
        for o in range(3, 5) for h in range(4) if 2 * o + h < 10
    ]  # fmt: skip
    np.testing.assert_allclose(table.loc[(1, "SequenceForecaster"), "MAE"], np.mean(errors))
    naive = [
        abs(came[2 * o - 1] - came[2 * o + h]) for o in (3, 4) for h in range(4) if 2 * o + h < 10
    ]
    np.testing.assert_allclose(table.loc[(1, "naive"), "MAE"], np.mean(naive))
    assert np.isfinite(f.score(panel(later, came)))
    np.testing.assert_allclose(f.score(panel(later, NOTHING[:10])), g.score(later), rtol=1e-5)


def test_long_frames_with_covariates_and_statics(tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 80))
    frame = pd.concat(
        pd.DataFrame({"unique_id": key, "ds": DAYS, "y": NAN if key == "new" else y, "p": p})
        for key, y, p in zip(("a", "b", "c", "new"), Y, x, strict=True)
    )
    frame["new"] = frame["unique_id"] == "new"
    static = pd.DataFrame({"kind": ["x", "y", "x", "y"]}, ["a", "b", "c", "new"])
    early = frame[frame["ds"] < DAYS[60]]
    f = SequenceForecaster(4, calendar=["day_of_week"], epochs=2, random_state=0, scale="series")
    f.fit(early, static=static)
    ahead = frame[(frame["ds"] >= DAYS[60]) & (frame["ds"] < DAYS[64])].drop(columns="y")
    found = f.predict(X=ahead)
    new = found["unique_id"] == "new"
    assert found.loc[new, "forecast"].isna().all()
    assert found.loc[~new, "forecast"].notna().all()
    assert found.loc[new, "ds"].tolist() == DAYS[60:64].tolist()
    f.save(tmp_path / "f.safetensors")
    g = SequenceForecaster.load(tmp_path / "f.safetensors")
    first = frame[(frame["ds"] == DAYS[60]) & (frame["unique_id"] == "new")].assign(y=30.0)
    ahead = ahead.assign(
        ds=np.where(ahead["unique_id"] == "new", ahead["ds"] + DAYS.freq, ahead["ds"])
    )
    for one in (f, g):
        found = one.update(first).predict(X=ahead)
        assert found.loc[new, "ds"].tolist() == DAYS[61:65].tolist()
        assert (abs(found.loc[new, "forecast"] - 30) < 30).all()
    pd.testing.assert_frame_equal(found, f.predict(X=ahead))


def test_one_variable_may_be_unknown_if_each_is_forecast_from_its_own_past():
    y = [Y[:2, :50].T, Y[2:, :50].T]
    gone = y[0].copy()
    gone[:, 1] = NAN
    f = quick(scale="series").fit([gone, y[1]])
    found = f.predict()
    assert np.isnan(found[0, :, 1]).all()
    assert np.isfinite(found[0, :, 0]).all()
    assert np.isfinite(found[1]).all()
    found = f.update([Y[:2, 50:55].T, Y[2:, 50:55].T]).predict()
    assert np.isfinite(found).all()
    with pytest.raises(ValueError, match=r"y\[0\] has no known values of variable 1: leave such"):
        quick(variables="together").fit([gone, y[1]])
    both = [np.where([True, False], one, NAN) for one in y]
    with pytest.raises(
        ValueError, match=r"y\[0\] has no known values of variable 1 \(and 1 others"
    ):
        quick().fit(both)


def test_learning_on_from_its_first_values():
    y = list(Y[:3, :50])
    f = quick(scale="series").fit(panel(y))
    f.partial_fit(panel([one[50:60] for one in Y[:3]], 1e4 + 1e3 * Y[3, 50:60]))
    assert np.isfinite(f.predict()).all()
    assert all(np.isfinite(p.detach().numpy()).all() for p in f.estimator_.model.parameters())


def test_other_panels_may_have_such_series():
    f = quick().fit(list(Y))
    found = f.predict(panel(list(Y)))
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2, 3, 4]], f.predict(list(Y)), rtol=1e-5)
    for wrong in (NOTHING, [NOTHING, NOTHING]):
        with pytest.raises(ValueError, match="has no known values of variable 0"):
            f.predict(wrong)
        with pytest.raises(ValueError, match="has no known values of variable 0"):
            quick().fit(wrong)


@pytest.mark.parametrize("kw", [{}, {"variables": "together", "loss": "mse", "validation": 4}])
def test_steps_before_the_first_value_are_as_if_they_were_not_there(kw):
    """They are not learnt from, and do not count in what is chosen by length."""
    late = [np.stack([one, one[::-1]], axis=1) for one in wave(40, 4)]
    longer = [np.concatenate([np.full((50, 2), NAN), one]) for one in late]
    f, g = (
        SequenceForecaster(4, season=5, epochs=3, random_state=0, **kw).fit(y)
        for y in (longer, late)
    )
    assert f._settings == g._settings
    np.testing.assert_allclose(f.predict(), g.predict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", ["gru", "mlp"])
@pytest.mark.parametrize("season", [None, 3])
def test_a_variable_that_begins_later_is_not_seen_before(module, season):
    y = [np.stack([one, one[::-1]], axis=1) for one in Y[:3, :50]]
    later = [np.stack([one, one[::-1]], axis=1) for one in Y[:, 50:60]]
    later[3][:1, 0] = later[3][:5, 1] = NAN
    f = quick(module=module, season=season, variables="together")
    f.fit([*y, np.full((50, 2), NAN)])
    changed = [*later[:3], np.where(np.arange(10)[:, None] < 5, later[3], 9 * later[3])]
    tests = f.backtest(later, stride=1)
    np.testing.assert_array_equal(f.backtest(changed, stride=1)[:6], tests[:6])
    assert np.isfinite(tests[8, 3]).all()
    f.update([one[:8] for one in later])
    np.testing.assert_allclose(f.predict(), tests[8], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("module", ["segrnn", "gru"])
def test_adaptive_intervals_of_a_series_that_is_known_since_a_moment_ago(module):
    y = [*Y[:3, :50], np.append(NOTHING[:48], [30.0, 33.0])]
    x = np.random.default_rng(0).standard_normal((4, 60, 2))
    f = quick(module=module, quantiles=LEVELS, conformal="adaptive", scale="series", validation=12,
              past=[1], lags=5)  # fmt: skip
    f.fit(y, list(x[:, :50]))
    new = [*Y[:3, 50:56], 30 + Y[3, 50:56]]
    tests = f.backtest(new, list(x[:, 50:56]), stride=2)
    np.testing.assert_allclose(f.predict(X=list(x[:, 50:54])), tests[0], rtol=1e-5)
    f.update([one[:2] for one in new], list(x[:, 50:52]))
    np.testing.assert_allclose(f.predict(X=list(x[:, 52:56])), tests[1], rtol=1e-5)
