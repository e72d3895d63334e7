"""The adapter for sktime gives `SequenceForecaster`'s own forecasts, and passes sktime's tests."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from forecasting import LEVELS, NAN, quick, wave
from sktime.forecasting.base import ForecastingHorizon
from sktime.forecasting.model_selection import ForecastingGridSearchCV
from sktime.split import SingleWindowSplitter
from sktime.utils.estimator_checks import check_estimator

import fastseq as fs
from fastseq.sktime import SktimeForecaster

DAYS = pd.date_range("2024-01-01", periods=60, freq="D")


def series(count=1, steps=60):
    values = wave(60, count).T[:steps]
    if count == 1:
        return pd.Series(values[:, 0], DAYS[:steps], name="load")
    return pd.DataFrame(values, DAYS[:steps], columns=list("ab")[:count])


def plain(y, X=None, **more):  # noqa: N803
    tables = [y.to_frame() if y.ndim == 1 else y]
    return quick(**more).fit(tables, None if X is None else [X])


@pytest.mark.parametrize("count", [1, 2])
def test_forecasts_are_the_forecaster_s_own(count):
    y = series(count)
    fh = ForecastingHorizon([2, 5])
    found = SktimeForecaster(quick()).fit(y, fh=fh).predict()
    (expected,) = plain(y, horizon=5).predict()
    assert type(found) is type(y)
    np.testing.assert_array_equal(
        np.asarray(found).reshape(2, -1), expected.to_numpy()[[1, 4]].reshape(2, -1)
    )
    assert found.index.tolist() == [DAYS[-1] + pd.Timedelta(n, "D") for n in (2, 5)]
    if count == 1:
        assert found.name == "load"
    else:
        assert found.columns.tolist() == ["a", "b"]


@pytest.mark.filterwarnings("ignore:Converting to Period:UserWarning")  # sktime's
@pytest.mark.parametrize(
    "index", [pd.RangeIndex(60), pd.RangeIndex(5, 65), DAYS.to_period("D"), DAYS.tz_localize("UTC")]
)
def test_horizons_may_be_absolute_and_later_than_trained(index):
    y = series().set_axis(index)
    f = SktimeForecaster(quick(horizon=3)).fit(y[:50])
    relative = f.predict([1, 8])
    found = f.predict(ForecastingHorizon(index[[50, 57]], is_relative=False))
    pd.testing.assert_series_equal(found, relative, check_freq=False)
    one = [y[:50].to_frame().reset_index(drop=True)]
    (expected,) = quick(horizon=3).fit(one).predict(horizon=8)
    np.testing.assert_array_equal(found, np.ravel(expected)[[0, 7]])
    with pytest.raises(NotImplementedError, match="in-sample"):
        f.predict([0, 1])


@pytest.mark.parametrize("learn", [False, True])
def test_update_appends_only_new_steps_and_fills_gaps(learn):
    y = series()
    f = SktimeForecaster(quick()).fit(y[:40], fh=[1, 2, 3, 4])
    f.update(y[30:45], update_params=learn)  # ten steps of it are known
    f.update(y[47:50], update_params=learn)
    own = plain(y[:40])
    step = own.partial_fit if learn else own.update
    hole = y[45:50].copy()
    hole.iloc[:2] = NAN
    for part in (y[40:45], hole):
        step([part.to_frame()])
    np.testing.assert_array_equal(f.predict(), np.ravel(own.predict()[0]))
    assert f.predict().index[0] == DAYS[50]
    before = f.predict()
    f.update(y[:20], update_params=learn)  # nothing new
    same = ForecastingHorizon(before.index, is_relative=False)
    pd.testing.assert_series_equal(f.predict(same), before, check_freq=False)
    with pytest.raises(NotImplementedError, match="must be after 2024-02-19"):
        f.predict([1, 2])


def test_covariates_known_ahead():
    y = series()
    X = pd.DataFrame({"price": np.arange(60.0), "kind": list("uvw") * 20}, DAYS)  # noqa: N806
    f = SktimeForecaster(quick()).fit(y[:50], X[:50], fh=[1, 4])
    found = f.predict(X=X[50:])
    own = plain(y[:50], X[:50])
    expected = np.ravel(own.predict(X=[X[50:54]])[0])
    np.testing.assert_array_equal(found, expected[[0, 3]])
    moved = f.predict(X=X[50:].assign(price=-20.0))
    assert not np.allclose(found, moved)
    with pytest.raises(ValueError, match=r"X must have all steps up to the last .* 2024-02-21"):
        f.predict(X=X.iloc[[50, 53]])
    f.update(y[50:54], X[50:54], update_params=False)
    own.update([y[50:54].to_frame()], [X[50:54]])
    np.testing.assert_array_equal(
        f.predict(X=X[54:]), np.ravel(own.predict(X=[X[54:58]])[0])[[0, 3]]
    )


def panel(lengths):
    parts = {
        key: pd.DataFrame({"load": row[:n]}, DAYS[:n].rename("day"))
        for (key, n), row in zip(lengths.items(), wave(60, len(lengths)), strict=True)
    }
    return pd.concat(parts, names=["region", "shop", "day"])


def test_one_model_for_a_hierarchy_whose_series_end_at_different_times():
    lengths = {("north", "a"): 50, ("north", "b"): 46, ("south", "a"): 50}
    y = panel(lengths)
    f = SktimeForecaster(quick()).fit(y, fh=[1, 3])
    tables = [y.loc[key].reindex(DAYS[:50]) for key in lengths]
    own = quick(horizon=3).fit(tables)
    found = f.predict()
    assert found.index.names == y.index.names
    for key, expected in zip(lengths, own.predict(), strict=True):
        np.testing.assert_array_equal(found.loc[key], expected.to_numpy()[[0, 2]])
        assert found.loc[key].index.tolist() == [DAYS[50], DAYS[52]]
    # One series has no new steps: they are missing.
    new = panel(dict.fromkeys(lengths, 53)).drop(index=[("north", "b")])
    f.update(new, update_params=False)
    later = [new.loc[key].reindex(DAYS[50:53]) if key in new.index.droplevel(2)
             else tables[n][:0].reindex(DAYS[50:53]) for n, key in enumerate(lengths)]  # fmt: skip
    own.update(later)
    for key, expected in zip(lengths, own.predict(), strict=True):
        np.testing.assert_array_equal(f.predict().loc[key], expected.to_numpy()[[0, 2]])
    with pytest.raises(ValueError, match=r"instances that y of fit did not have, such as \('east'"):
        f.update(panel({("east", "a"): 55}))


def test_quantiles_are_those_that_are_learnt_or_between_them():
    y = series(2)
    f = SktimeForecaster(quick(quantiles=LEVELS)).fit(y, fh=[1, 2])
    (own,) = plain(y, quantiles=LEVELS, horizon=2).predict()
    found = f.predict_quantiles(alpha=[0.1, 0.3, 0.9])
    for name in "ab":
        low, middle, high = (own[name, f"q{level}"] for level in LEVELS)
        np.testing.assert_array_equal(found[name, 0.1], low)
        np.testing.assert_allclose(found[name, 0.3], (low + middle) / 2, rtol=1e-6)
        np.testing.assert_array_equal(found[name, 0.9], high)
        np.testing.assert_array_equal(f.predict()[name], middle)
        interval = f.predict_interval(coverage=0.8)
        np.testing.assert_array_equal(interval[name, 0.8, "lower"], low)
    with pytest.raises(ValueError, match=r"quantile 0\.05 is not between .* 0\.1 to 0\.9"):
        f.predict_quantiles(alpha=0.05)


def test_points_have_no_quantiles():
    f = SktimeForecaster(quick()).fit(series(), fh=[1])
    assert not f.get_tag("capability:pred_int")
    with pytest.raises(NotImplementedError):
        f.predict_interval()
    f.set_params(forecaster__quantiles=LEVELS).fit(series(), fh=[1])
    assert f.predict_interval(coverage=0.5).shape == (1, 2)


def test_rows_between_steps_are_refused():
    y = series()
    moved = y.rename(index={DAYS[47]: DAYS[47] + pd.Timedelta(1, "h")})
    with pytest.raises(ValueError, match="not equally far apart"):
        SktimeForecaster(quick()).fit(moved, fh=[1])
    f = SktimeForecaster(quick()).fit(y[:40], fh=[1])
    with pytest.raises(ValueError, match="y has a row for 2024-02-17 01:00:00, which is not among"):
        f.update(moved[40:], update_params=False)


def test_clones_train_alike():
    f = SktimeForecaster(quick())
    g = f.clone().set_params(forecaster__epochs=3)
    assert f.forecaster.epochs == 2
    assert g.fit(series(), fh=[1]).forecaster_.history_[-1]["epoch"] == 3
    pd.testing.assert_series_equal(
        f.fit(series(), fh=[1, 2]).predict(), f.clone().fit(series(), fh=[1, 2]).predict()
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default of config:FutureWarning")  # of the search
def test_sktime_tunes_it():
    f = SktimeForecaster(quick())
    search = ForecastingGridSearchCV(
        f, SingleWindowSplitter(fh=[1, 2, 3], window_length=50), {"forecaster__epochs": [1, 4]}
    )
    search.fit(series(), fh=[1, 2])
    assert search.best_params_["forecaster__epochs"] in (1, 4)
    assert search.best_forecaster_.forecaster_.horizon == 2
    assert f.forecaster.epochs == 2  # unchanged


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "fastseq.sktime")
    monkeypatch.setitem(sys.modules, "sktime.forecasting.base", None)
    with pytest.raises(fs.MissingFeatureError, match="needs the package sktime"):
        import fastseq.sktime  # noqa: F401


@pytest.mark.filterwarnings("ignore")
def test_passes_some_of_sktime_s_tests():
    tests = ["test_constructor", "test_object_tags", "test_update_predict_single",
             "test_unequal_length_hierarchical_fit_predict"]  # fmt: skip
    done = check_estimator(SktimeForecaster, verbose=False, tests_to_run=tests)
    assert len(done) > 10
    assert set(done.values()) == {"PASSED"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_passes_all_of_sktime_s_tests():
    done = check_estimator(SktimeForecaster, verbose=False)
    assert len(done) > 500
    assert not {name: found for name, found in done.items() if found != "PASSED"}
