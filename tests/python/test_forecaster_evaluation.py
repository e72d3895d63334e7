"""Accuracy against formulas written out, longer horizons, training again, learning on."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from forecasting import LEVELS, NAN, quick, wave
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score

from fastseq import MissingFeatureError


def with_holes(y, share=0.1, seed=1):
    y = y.copy()
    y[np.random.default_rng(seed).random(y.shape) < share] = NAN
    return y


# --- the simple forecasts, and what they are compared by


def known(past):
    return [(t, value) for t, value in enumerate(past) if not np.isnan(value)]


def naive(past, h, season):
    return known(past)[-1][1]


def seasonal(past, h, season):
    at = len(past) + h - season
    while at >= len(past):
        at -= season
    while at >= 0 and np.isnan(past[at]):
        at -= season
    return past[at] if at >= 0 else naive(past, h, season)


def drift(past, h, season):
    (t0, y0), (t1, y1) = known(past)[0], known(past)[-1]
    return y1 + (len(past) + h - t1) * (y1 - y0) / max(t1 - t0, 1)


def forecasts(past, future, stride, horizon, model, season=None):
    """Yield forecasts with what came, from each origin; model: a function, or its forecasts."""
    whole = np.concatenate([past, future])
    for number, begin in enumerate(range(0, len(future), stride)):
        for h in range(horizon):
            if begin + h < len(future) and not np.isnan(future[begin + h]):
                if callable(model):
                    found = model(whole[: len(past) + begin], h, season)
                else:
                    found = model[number, h]
                yield found, future[begin + h]


def measures(pairs, train, season):
    f, y = (np.array(part) for part in zip(*pairs, strict=True))
    changes = np.abs(train[season or 1 :] - train[: -(season or 1)])
    mae = np.abs(f - y).mean()
    return [mae, np.sqrt(((f - y) ** 2).mean()),
            np.mean(200 * np.abs(f - y) / (np.abs(f) + np.abs(y))), mae / np.nanmean(changes)]  # fmt: skip


@pytest.mark.parametrize("season", [None, 5])
@pytest.mark.parametrize("stride", [1, 3, 9])
def test_measures_are_those_of_the_formulas(season, stride):
    whole = with_holes(wave(70, 3))
    y, later = list(whole[:, :50]), list(whole[:, 50:])
    f = quick(season=season, module="linear", epochs=1).fit(y)
    table = f.evaluate(later, stride=stride, per_series=True)
    own = f.backtest(later, stride=stride)
    models = {
        "SequenceForecaster": None,
        "naive": naive,
        "seasonal naive": seasonal,
        "drift": drift,
    }
    if season is None:
        del models["seasonal naive"]
    assert table.columns.tolist() == ["MAE", "RMSE", "sMAPE", "MASE"]
    assert table.index.tolist() == [(n, name) for n in range(3) for name in models]
    for n in range(3):
        for name, model in models.items():
            pairs = list(forecasts(y[n], later[n], stride, 4, model or own[:, n], season))
            wanted = measures(pairs, y[n], season)
            np.testing.assert_allclose(table.loc[(n, name)], wanted, err_msg=name)
    means = f.evaluate(later, stride=stride)
    assert means.index.tolist() == list(models)
    for name in models:
        np.testing.assert_allclose(means.loc[name], table.xs(name, level="model").mean())


def test_smape_and_mase_are_those_of_m4():
    f = quick(horizon=2, module="linear", epochs=1).fit(np.array([1.0, 2.0, 4.0, 7.0]))
    found = f.evaluate(np.array([8.0, 10.0])).loc["naive"]
    np.testing.assert_allclose(found, [2, np.sqrt(5), 100 * (1 / 15 + 3 / 17), 1])


def test_variables_count_as_series():
    y = wave(60, 2).T
    f = quick(variables="together").fit(y[:50])
    table = f.evaluate(y[50:], per_series=True)
    assert table.index.names == ["series", "variable", "model"]
    alone = quick().fit(y[:50, 1]).evaluate(y[50:, 1], per_series=True)
    np.testing.assert_allclose(table.loc[(0, 1, "drift")], alone.loc[(0, "drift")])


@pytest.mark.parametrize("levels", [LEVELS, (0.2, 0.6), (0.9,)])
def test_quantiles_are_measured(levels):
    whole = with_holes(wave(70, 2))
    y, later = list(whole[:, :50]), list(whole[:, 50:])
    f = quick(quantiles=levels).fit(y)
    table = f.evaluate(later, stride=2, per_series=True)
    own = f.backtest(later, stride=2)  # (origins, N, H, Q)
    for n in range(2):
        pairs = [list(forecasts(y[n], later[n], 2, 4, own[:, n, :, q])) for q in range(len(levels))]
        at, came = np.array(pairs).transpose(2, 1, 0)  # (M, Q)
        loss = np.where(came > at, levels * (came - at), (1 - np.array(levels)) * (at - came))
        middle = at @ {LEVELS: [0, 1, 0], (0.2, 0.6): [0.25, 0.75], (0.9,): [1]}[levels]
        found = table.loc[(n, "SequenceForecaster")]
        np.testing.assert_allclose(found["MAE"], np.abs(middle - came[:, 0]).mean())
        np.testing.assert_allclose(found["pinball"], loss.mean())
        np.testing.assert_allclose(found["CRPS"], 2 * loss.mean() / np.abs(came[:, 0]).mean())
        inside = (at[:, 0] <= came[:, 0]) & (came[:, 0] <= at[:, -1])
        if len(levels) > 1:
            np.testing.assert_allclose(found["coverage"], inside.mean())
        else:
            assert "coverage" not in found
    naive = table.xs("naive", level="model")  # its value is all quantiles, so no interval
    assert "coverage" not in naive or naive["coverage"].isna().all()
    if abs(np.mean(levels) - 0.5) < 1e-9:
        np.testing.assert_allclose(naive["pinball"], naive["MAE"] / 2)
    assert naive[["pinball", "CRPS"]].notna().all(axis=None)


def test_what_cannot_be_measured_does_not_count():
    y = [np.arange(20.0), np.full(20, 3.0), np.zeros(20)]
    f = quick(quantiles=LEVELS, module="linear", epochs=1).fit(y)
    later = [np.full(4, NAN), np.full(4, 3.0), np.zeros(4)]
    table = f.evaluate(later, per_series=True)
    assert table.loc[0].isna().all(axis=None)
    assert table["MASE"].isna().all()  # no changes to divide by
    assert np.isnan(table.loc[(2, "SequenceForecaster"), "CRPS"])
    np.testing.assert_array_equal(table.loc[(1, "naive"), ["MAE", "RMSE", "sMAPE"]], 0)
    np.testing.assert_allclose(f.evaluate(later)["MAE"], table["MAE"].groupby("model").mean()[
        f.evaluate(later).index])  # fmt: skip


def test_simple_forecasts_continue_after_updates():
    whole = with_holes(wave(80, 2), 0.4)
    y = list(whole[:, :30])
    f = quick(season=7, module="linear", epochs=1).fit(y)
    for begin in range(30, 60, 5):
        f.update(list(whole[:, begin : begin + 5]))
    g = quick(season=7, module="linear", epochs=1).fit(list(whole[:, :60]))
    later = list(whole[:, 60:])
    found, wanted = (one.evaluate(later)[["MAE", "RMSE", "sMAPE"]].iloc[1:] for one in (f, g))
    pd.testing.assert_frame_equal(found, wanted)


def test_evaluate_says_which_package_is_missing(monkeypatch):
    f = quick().fit(wave(40)[0])
    for name in [name for name in sys.modules if name.partition(".")[0] == "utilsforecast"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "utilsforecast", None)
    with pytest.raises(MissingFeatureError, match="evaluate needs the package utilsforecast"):
        f.evaluate(wave(8)[0])


# --- training again


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "kw",
    [
        {"transform": "log1p"},
        {"module": "lstm", "season": 6},
        {"strategy": "recursive", "quantiles": LEVELS, "ensemble": 2},
    ],
)
@pytest.mark.parametrize("stride", [2, 5])
def test_backtests_that_train_again_equal_clones(one_thread, kw, stride):
    x = np.random.default_rng(0).standard_normal((74, 2))
    y = np.abs(wave(70)[0] + x[:70].sum(1))
    f = quick(**kw).fit(y[:50], x[:50])
    before = f.predict(X=x[50:54]), f.evaluate(y[50:], x[50:70])
    found = f.backtest(y[50:], x[50:70], stride=stride, refit=2)
    assert len(found) == len(range(0, 20, stride))
    for number, end in enumerate(range(50, 70, stride)):
        trained = end - stride * (number % 2)
        g = clone(f).fit(y[:trained], x[:trained])
        if end > trained:
            g.update(y[trained:end], x[trained:end])
        if end + 4 <= 70:  # beyond, covariates are not known
            np.testing.assert_array_equal(found[number], g.predict(X=x[end : end + 4]))
    np.testing.assert_array_equal(f.predict(X=x[50:54]), before[0])
    pd.testing.assert_frame_equal(f.evaluate(y[50:], x[50:70]), before[1])


DAYS = pd.date_range("2024-01-30", periods=60, freq="D", tz="Europe/Berlin")
SHUFFLED = np.random.default_rng(0).permutation(20)


def dated(values, begin):
    make = pd.Series if values.ndim == 1 else pd.DataFrame
    return make(values, DAYS[begin : begin + len(values)])


@pytest.mark.parametrize(
    "form",
    [
        lambda y, x, begin: (dated(y, begin), dated(x, begin)),
        lambda y, x, begin: (dated(y, begin).iloc[SHUFFLED[: len(y)] if begin else slice(None)],
                             dated(x, begin)),
        lambda y, x, begin: (y if begin else dated(y, begin), x),
        lambda y, x, begin: (dated(y, begin) if begin else y, x),
        lambda y, x, begin: (pd.Series(y), pd.DataFrame(x, columns=["a", "b"])),
        lambda y, x, begin: (torch.tensor(y), torch.tensor(x)),
        lambda y, x, begin: (np.ma.MaskedArray(np.nan_to_num(y), np.isnan(y)), x),
        lambda y, x, begin: (pd.DataFrame({"y": y}),
                             pd.DataFrame(x, columns=None if begin else ["a", "b"])),
    ],
)  # fmt: skip
def test_every_form_is_trained_again(one_thread, form):
    x = np.random.default_rng(0).standard_normal((60, 2))
    y = with_holes(wave(60)[0])
    f = quick(module="linear").fit(y[:40], x[:40])
    wanted = f.backtest(y[40:], x[40:], stride=6, refit=2)
    g = quick(module="linear").fit(*form(y[:40], x[:40], 0))
    found = g.backtest(*form(y[40:], x[40:], 40), stride=6, refit=2)
    if isinstance(found, pd.DataFrame):
        found = found["forecast"]
    np.testing.assert_array_equal(np.asarray(found).reshape(wanted.shape), wanted)
    assert (f.backtest(y[40:], x[40:], stride=6) != wanted)[2:].all()


@pytest.mark.parametrize("dated", [False, True])
def test_panels_are_trained_again(one_thread, dated):
    whole, x = wave(60, 3), np.random.default_rng(0).standard_normal((60, 2))
    starts = (0, 5, 0)

    def panel(begin, end):
        rows = [row[max(begin, n) : end] for n, row in zip(starts, whole, strict=True)]
        if dated:
            return [pd.Series(row, DAYS[end - len(row) : end]) for row in rows]
        return rows

    def known(begin, end):
        return [x[max(begin, n) : end] for n in starts]

    f = quick(scale="series", module="gru").fit(panel(0, 40), known(0, 40))
    found = f.backtest(panel(40, 60), known(40, 60), stride=7, refit=1)
    for number, end in enumerate((47, 54), 1):
        g = clone(f).fit(panel(0, end), known(0, end))
        own = found[found["cutoff"] == DAYS[end - 1]]["forecast"] if dated else found[number]
        wanted = np.concatenate(g.predict(X=[x[end : end + 4]] * 3))
        np.testing.assert_array_equal(np.ravel(own), wanted)
    same = quick(module="gru").fit(whole[:, :40, None], x[:40])
    other = quick(module="gru").fit(list(whole[:, :40]), [x[:40]] * 3)
    a = same.backtest(whole[:, 40:, None], x[40:], stride=7, refit=1)
    b = other.backtest(list(whole[:, 40:]), [x[40:]] * 3, stride=7, refit=1)
    np.testing.assert_array_equal(a[..., 0], b)


def test_later_changes_of_the_callers_array_do_not_matter():
    whole = wave(60)[0]
    y = whole[:40].copy()
    f = quick().fit(y)
    wanted = f.backtest(whole[40:], stride=10, refit=1)
    y[:] = 0
    np.testing.assert_array_equal(f.backtest(whole[40:], stride=10, refit=1), wanted)


@pytest.mark.parametrize("polars", [False, True])
def test_weights_are_those_of_all_steps_when_training_again(one_thread, polars):
    weights, days = np.random.default_rng(0).random((2, 60)), DAYS.tz_localize(None)
    frame = pd.concat(
        pd.DataFrame({"unique_id": n, "ds": days, "y": y, "w": w})
        for n, (y, w) in enumerate(zip(wave(60, 2), weights, strict=True))
    ).sample(frac=1, random_state=0)
    make = pl.from_pandas if polars else pd.DataFrame
    early, late = frame[frame["ds"] < days[50]], frame[frame["ds"] >= days[50]]
    f = quick().fit(make(early), weights="w")
    found = f.backtest(make(late), stride=5, refit=1)
    found = np.asarray(found["forecast"]).reshape(2, 2, 4)
    again = quick().fit(frame[frame["ds"] < days[55]], weights="w").predict()
    np.testing.assert_array_equal(found[:, 1].ravel(), again["forecast"])
    with pytest.raises(ValueError, match="y must be a long frame with the column 'w' of weights"):
        f.backtest(make(late.drop(columns="w")), refit=1)
    plain = f.backtest(make(late))
    assert plain.equals(f.backtest(make(late.drop(columns="w"))))
    ahead = make(late).drop("w") if polars else late.drop(columns="w")
    wanted = quick().fit(make(early), weights="w").update(ahead).predict()
    assert f.update(make(late)).predict().equals(wanted)


def test_weights_of_the_training_steps_do_not_suffice_to_train_again():
    y = wave(60, 2)
    f = quick().fit(list(y[:, :50]), weights=[np.ones(50)] * 2)
    with pytest.raises(ValueError, match="refit= needs weights of the later steps, too"):
        f.backtest(list(y[:, 50:]), refit=1)
    f = quick().fit(list(y[:, :50]), weights=[1.0, 3.0])
    assert len(f.backtest(list(y[:, 50:]), refit=1)) == 3
    assert len(f.backtest(list(y[:, 50:]))) == 3


def test_training_again_needs_the_training_data():
    y = wave(60)[0]
    f = quick().fit(y[:40])
    with pytest.raises(ValueError, match="refit must be positive"):
        f.backtest(y[40:], refit=0)
    again = pickle.loads(pickle.dumps(f))  # noqa: S301
    for other in (again, clone(f).fit(y[:35]).update(y[35:40])):
        with pytest.raises(ValueError, match="backtest with refit= needs the training data"):
            other.backtest(y[40:], refit=1)
        assert len(other.backtest(y[40:])) == 5


# --- horizons


@pytest.mark.parametrize("kw", [{}, {"season": 3, "module": "gru"}, {"strategy": "recursive"},
                                {"strategy": "recursive", "quantiles": LEVELS}])  # fmt: skip
def test_shorter_horizons_are_the_first_steps(kw):
    y, x = wave(40, 2).T, np.random.default_rng(0).standard_normal((44, 2))
    f = quick(**kw).fit(y, x[:40])
    whole = f.predict(X=x[40:])
    np.testing.assert_allclose(f.predict(X=x[40:43], horizon=3), whole[:3], rtol=1e-5)
    np.testing.assert_allclose(f.predict(y, x[:41], horizon=1), whole[:1], rtol=1e-5)
    np.testing.assert_array_equal(f.predict(X=x[40:], horizon=4), whole)


@pytest.mark.parametrize("kw", [{}, {"quantiles": LEVELS}, {"season": 3, "module": "gru"}])
def test_longer_horizons_continue_from_forecasts(kw):
    y, x = wave(40, 2).T, np.random.default_rng(0).standard_normal((50, 2))
    f = quick(**kw).fit(y, x[:40])
    found = f.predict(X=x[40:], horizon=10)
    parts = []
    g = clone(f).fit(y, x[:40])
    for begin in (40, 44, 48):
        if begin > 40:
            points = parts[-1][..., 1] if "quantiles" in kw else parts[-1]
            g.update(points, x[begin - 4 : begin])
        ahead = np.zeros((4, 2))  # of which only the first steps are asked for
        ahead[: len(x[begin : begin + 4])] = x[begin : begin + 4]
        parts.append(g.predict(X=ahead))
    np.testing.assert_allclose(found, np.concatenate(parts)[:10], rtol=1e-5)
    np.testing.assert_allclose(f.predict(y, x, horizon=10), found, rtol=1e-4, atol=1e-5)


def test_longer_horizons_keep_what_is_known_of_the_past():
    y, x = wave(40)[0], np.random.default_rng(0).standard_normal((50, 2))
    x[40:, 1] = np.nan
    for past, ahead in (((1,), x[40:]), ((0, 1), None)):
        f = quick(past=past, module="gru").fit(y, x[:40])
        found = f.predict(X=ahead, horizon=10)
        unknown = x.copy()
        unknown[40:, list(past)] = np.nan
        g = clone(f).fit(y, x[:40]).update(found[:4], unknown[40:44])
        np.testing.assert_allclose(g.predict(X=unknown[44:48]), found[4:8], rtol=1e-5)
        whole = f.predict(y, unknown, horizon=10)
        np.testing.assert_allclose(whole, found, rtol=1e-4, atol=1e-5)


def test_a_recursive_forecaster_forecasts_as_far_as_asked():
    y = wave(60)[0]
    kw = {"strategy": "recursive", "quantiles": LEVELS, "module": "gru"}
    np.testing.assert_array_equal(
        quick(**kw).fit(y).predict(horizon=11), quick(**kw, horizon=11).fit(y).predict()
    )


def test_horizons_are_checked():
    f = quick().fit(wave(40)[0], np.zeros((40, 1)))
    with pytest.raises(ValueError, match="horizon must be positive"):
        f.predict(X=np.zeros((4, 1)), horizon=0)
    with pytest.raises(ValueError, match=r"X must cover the horizon.*: 9 steps, got 4"):
        f.predict(X=np.zeros((4, 1)), horizon=9)


# --- learning on


def test_learning_on_is_a_step_over_windows_that_reach_into_the_new_steps():
    y = wave(60)[0]
    f = quick(horizon=3, module="linear", lags=2, scale=None, optimizer="sgd", lr=0.01,
              clip_norm=None, seqsize=100).fit(y[:50])  # fmt: skip
    layer = f.estimator_.model.body[0]
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    end = f.predict(y)
    f.partial_fit(y[50:52])
    losses = []
    for t in range(47, 51):  # windows end here, and forecast t + 1 … t + 3
        out = torch.tensor(y[t - 1 : t + 1], dtype=torch.float32) @ weight.T + bias
        known = min(3, 51 - t)
        came = torch.tensor(y[t + 1 : t + 1 + known], dtype=torch.float32)
        losses.append((out[:known] - came) ** 2)
    torch.cat(losses).mean().backward()
    torch.testing.assert_close(layer.weight, weight - 0.01 * weight.grad)
    torch.testing.assert_close(layer.bias, bias - 0.01 * bias.grad)
    assert (f.predict(y) != end).all()


@pytest.mark.parametrize("kw", [{}, {"module": "lstm", "fold": 2, "season": 5}, {"quantiles": LEVELS},
                                {"strategy": "recursive"}])  # fmt: skip
def test_learning_on_follows_what_changes(kw):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 1))
    y = x[:, 0] + 0.1 * rng.standard_normal(400)
    y[100:] = -y[100:]
    f = quick(**{**kw, "epochs": 15, "lr": 0.03}).fit(y[:100], x[:100])
    g = clone(f).fit(y[:100], x[:100])
    for begin in range(100, 340, 6):
        new = slice(begin, begin + 6)
        f.partial_fit(y[new], x[new])
        g.update(y[new], x[new])
    assert f.n_iter_ == 55
    errors = [one.evaluate(y[340:], x[340:]).iloc[0]["MAE"] for one in (f, g)]
    assert errors[0] < 0.6 * errors[1]


def test_learning_on_advances_like_update():
    y = wave(60, 2).T
    f, g = quick(lr=1e-30).fit(y[:50]), quick(lr=1e-30).fit(y[:50])
    weights = [p.clone() for p in f.estimator_.model.parameters()]
    np.testing.assert_allclose(
        f.partial_fit(y[50:]).predict(), g.update(y[50:]).predict(), rtol=1e-6
    )
    assert g.n_iter_ == 2
    f.set_params(lr=0.1).partial_fit(np.full((3, 2), NAN))  # nothing to learn
    for a, b in zip(f.estimator_.model.parameters(), weights, strict=True):
        torch.testing.assert_close(a, b)
    f.partial_fit(y[:3])
    assert any(
        (a != b).any() for a, b in zip(f.estimator_.model.parameters(), weights, strict=True)
    )


def test_learning_on_before_fit_is_fit():
    y = wave(40)[0]
    np.testing.assert_array_equal(quick().partial_fit(y).predict(), quick().fit(y).predict())
    f = quick().fit(y)
    with pytest.raises(ValueError, match="y must have 1 variables, as in fit, got 2"):
        f.partial_fit(wave(9, 2).T)
    with pytest.raises(ValueError, match="partial_fit cannot continue: hidden_size changed"):
        f.set_params(hidden_size=5).partial_fit(y)


# --- scikit-learn's searches


def test_searches_with_dates_and_covariates():
    hours = pd.date_range("2024-03-30", periods=160, freq="h", tz="Europe/Berlin")
    x = pd.DataFrame({"a": np.random.default_rng(0).standard_normal(160)}, hours)
    y = pd.Series(x["a"].to_numpy() * 3 + wave(160)[0], hours, name="y")
    folds = TimeSeriesSplit(2, test_size=12)
    search = GridSearchCV(quick(), {"epochs": [1, 15]}, cv=folds).fit(y, x)
    assert search.best_params_ == {"epochs": 15}
    best = search.best_estimator_
    np.testing.assert_allclose(cross_val_score(best, y, x, cv=folds).mean(), search.best_score_)
    (train, test), *_ = folds.split(y)
    one = clone(best).fit(y.iloc[train], x.iloc[train]).score(y.iloc[test], x.iloc[test])
    np.testing.assert_allclose(cross_val_score(best, y, x, cv=folds)[0], one)


# --- the network alone


@pytest.mark.parametrize("kw", [{}, {"module": "lstm"}])
def test_the_network_is_exported(tmp_path, kw):
    y, x = wave(40)[0], np.random.default_rng(0).standard_normal((40, 2))
    f = quick(**kw).fit(y, x)
    path = tmp_path / "net.pt2"
    f.estimator_.export(path)
    program = torch.export.load(path).module()
    inputs = tuple(torch.randn(7, 3, a.shape[-1]) for a in f.estimator_._learner.example)
    wanted = f.estimator_.predict(inputs)
    if kw:
        state = tuple(torch.zeros(1, 3, 8) for _ in range(2))
        found, _ = program(inputs, state)
    else:
        found = program(inputs)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)
