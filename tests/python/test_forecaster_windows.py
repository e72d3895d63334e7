"""What a forecaster is trained on: windows that are views, losses of what is known, scaling."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import d2_pinball_score, mean_pinball_loss, r2_score
from torch.nn.functional import l1_loss, mse_loss

import fastseq as fs
from fastseq.sklearn import SequenceForecaster, pinball_loss
from fastseq.sklearn.forecasting.forecast_losses import ForecastLoss
from fastseq.sklearn.forecasting.series import carried, filled, read_series
from fastseq.sklearn.forecasting.skill_score import skill
from fastseq.sklearn.forecasting.windows import (
    SeriesScaling,
    Windows,
    changes,
    over_seasons,
    window_view,
)

NAN = np.nan


def series(rng, lengths, variables):
    return [rng.standard_normal((length, variables)) for length in lengths]


@pytest.mark.parametrize("lags", [1, 3])
@pytest.mark.parametrize("lag", [None, 2])
@pytest.mark.parametrize("horizon", [1, 4])
def test_windows_are_what_slicing_gives(lags, lag, horizon):
    rng = np.random.default_rng(0)
    lengths, width, known = [9, 6], 2, 3
    arrays = series(rng, lengths, width)
    arrays[0][4, 1] = NAN
    covariates = series(rng, lengths, known)
    scaling = SeriesScaling.measure(arrays, "series", lag, lag)
    w = Windows.of(arrays, covariates, scaling, lag=lag, season=lag, lags=lags, horizon=horizon)
    seen, ahead = w.inputs(0, 8)
    outcomes, weights = w.outcomes(0, 8), w.weights(0, 8)
    for n, array in enumerate(arrays):
        center, scale = np.nanmean(array, 0), np.nanstd(array, 0)
        past = pd.DataFrame(array).ffill().bfill().to_numpy()
        rows, target = (past - center) / scale, (array - center) / scale
        if lag is not None:
            target, change = np.full_like(array, NAN), np.zeros_like(array)
            season = array.copy()
            if n == 0:
                season[4, 1] = array[2, 1]  # a season before the gap
            target[lag:] = array[lag:] - season[:-lag]
            deviation = np.nanstd(target, 0)
            target /= deviation
            change[lag:] = (season[lag:] - season[:-lag]) / deviation
            rows = np.concatenate([rows, change], 1)
        for t in range(lengths[n] - 1):
            of_past = np.zeros((lags, rows.shape[1]))
            have = rows[max(t - lags + 1, 0) : t + 1]
            of_past[lags - len(have) :] = have
            np.testing.assert_allclose(seen[t, n].reshape(lags, -1), of_past, rtol=1e-5, atol=1e-6)
            wanted = np.full((horizon, width), NAN)
            wanted[: lengths[n] - t - 1] = target[t + 1 : t + 1 + horizon]
            np.testing.assert_allclose(
                outcomes[t, n].reshape(horizon, -1), wanted, rtol=1e-5, atol=1e-6
            )
            plan = np.zeros((horizon, known))
            plan[: lengths[n] - t - 1] = covariates[n][t + 1 : t + 1 + horizon]
            np.testing.assert_allclose(ahead[t, n].reshape(horizon, -1), plan, rtol=1e-6)
            np.testing.assert_allclose(weights[t, n], np.isfinite(wanted).mean(), atol=1e-6)


def test_windows_are_views_of_one_memory():
    arrays = [np.arange(100.0)[:, None]]
    w = Windows.of(
        arrays,
        arrays,
        SeriesScaling.measure(arrays, None, None),
        lag=None,
        season=None,
        lags=8,
        horizon=24,
    )
    seen, ahead = w.inputs(0, 99)
    pairs = ((seen, w.values), (ahead, w.covariates), (w.outcomes(0, 99), w.targets))
    for view, memory in pairs:
        assert view.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
        assert view.numel() > 5 * memory.numel()


def test_views_do_not_reach_past_the_memory():
    rows = torch.zeros(2, 5, 3)
    assert window_view(rows, 2, 2, 2).shape == (2, 2, 6)
    with pytest.raises(ValueError, match="do not fit into 5 rows"):
        window_view(rows, 2, 3, 2)


def test_weights_are_left_out_where_all_is_known():
    arrays = [np.arange(10.0)[:, None]] * 2
    scaling = SeriesScaling.measure(arrays, "standard", None)
    assert (
        Windows.of(arrays, None, scaling, lag=None, season=None, lags=1, horizon=1).weights(0, 9)
        is None
    )
    assert (
        Windows.of(arrays, None, scaling, lag=None, season=None, lags=1, horizon=2).weights(0, 9)
        is not None
    )


def test_gaps_hold_the_last_known_value():
    a = np.array([[NAN, 1.0], [2.0, NAN], [NAN, NAN], [3.0, 4.0]])
    np.testing.assert_array_equal(filled(a), [[2, 1], [2, 1], [2, 1], [3, 4]])
    np.testing.assert_array_equal(carried(a), [[NAN, 1], [2, 1], [2, 1], [3, 4]])
    np.testing.assert_array_equal(carried(a[:1], np.array([7.0, 8.0])), [[7, 1]])
    np.testing.assert_array_equal(changes(a, over_seasons(a, 1), 1)[:, 0], [NAN, NAN, NAN, 1])


def test_scaling_of_all_and_of_each():
    rng = np.random.default_rng(0)
    arrays = [100 + 10 * rng.standard_normal((50, 2)), rng.standard_normal((30, 2))]
    arrays[1][:, 1] = 5.0  # constant
    both = np.concatenate(arrays)
    scaling = SeriesScaling.measure(arrays, "standard", None)
    np.testing.assert_allclose(scaling.center, both.mean(0)[None])
    np.testing.assert_allclose(scaling.scale, both.std(0)[None])
    each = SeriesScaling.measure(arrays, "series", 3, 3)
    np.testing.assert_allclose(each.center, [a.mean(0) for a in arrays])
    np.testing.assert_allclose(each.scale, [arrays[0].std(0), [arrays[1][:, 0].std(), 1]])
    np.testing.assert_allclose(each.change[0], (arrays[0][3:] - arrays[0][:-3]).std(0))
    assert each.take(np.array([1, 0, 1])).center.shape == (3, 2)


@pytest.mark.parametrize(
    ("levels", "shape", "reduction", "what"),
    [
        ((0.1, 0.9), (4, 2), "sum", 'reduction must be "mean" or "none", got \'sum\''),
        ((0.1, 1.0), (4, 2), "mean", r"quantiles must be between 0 and 1, got \[0.1, 1.0\]"),
        ((0.5,), (4, 2), "mean", r"output must be \(4, 1\), .* got \(4, 2\)"),
    ],
)
def test_pinball_loss_refuses_what_it_would_misread(levels, shape, reduction, what):
    with pytest.raises(ValueError, match=what):
        pinball_loss(torch.zeros(shape), torch.zeros(4), levels, reduction)


def test_pinball_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    target, levels = rng.standard_normal(40), (0.05, 0.5, 0.8)
    output = rng.standard_normal((40, 3))
    mean = pinball_loss(torch.tensor(output), torch.tensor(target), levels)
    wanted = [mean_pinball_loss(target, output[:, q], alpha=a) for q, a in enumerate(levels)]
    np.testing.assert_allclose(mean, np.mean(wanted))


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_unknown_has_no_loss_and_no_gradient(weighted):
    rng = np.random.default_rng(0)
    target = torch.tensor(rng.standard_normal((4, 3, 5)))
    unknown = torch.tensor(rng.random((4, 3, 5)) < 0.3)
    unknown[1, 2] = True
    output = torch.tensor(rng.standard_normal((4, 3, 5)), requires_grad=True)
    ys = target.masked_fill(unknown, NAN)
    ws = (~unknown).double().mean(-1) if weighted else None
    if weighted:
        ys = ys.masked_fill((ws == 0)[..., None], 0)  # as what trains does
    args = (ys, ws) if weighted else (ys,)
    loss = ForecastLoss(mse_loss, None)(lambda x: x, output, *args)
    loss.backward()
    torch.testing.assert_close(loss, ((output - target) ** 2)[~unknown].mean())
    assert not output.grad[unknown].any()
    assert output.grad[~unknown].all()


def test_the_loss_of_quantiles_is_the_mean_of_theirs():
    levels = (0.2, 0.9)
    output, target = torch.randn(2, 3, 4 * 2), torch.randn(2, 3, 4)

    def fn(o, y, reduction):
        return pinball_loss(o, y, levels, reduction)

    found = ForecastLoss(fn, 2)(lambda x: x, output, target)
    torch.testing.assert_close(found, pinball_loss(output.reshape(2, 3, 4, 2), target, levels))
    assert ForecastLoss(l1_loss, None)(lambda x: x, target, target * NAN) == 0


def test_skill_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    actual = rng.standard_normal((60, 2))
    forecast = actual[..., None] + rng.standard_normal((60, 2, 3))
    wanted = r2_score(actual, forecast[..., 0])
    np.testing.assert_allclose(skill(forecast[..., :1], actual, None), wanted)
    levels = (0.1, 0.5, 0.9)
    wanted = np.mean([
        d2_pinball_score(actual[:, k], forecast[:, k, q], alpha=level)
        for k in range(2) for q, level in enumerate(levels)
    ])  # fmt: skip
    np.testing.assert_allclose(skill(forecast, actual, levels), wanted)
    unknown = actual.copy()
    unknown[:7] = NAN
    wanted = r2_score(actual[7:], forecast[7:, :, 0])
    np.testing.assert_allclose(skill(forecast[..., :1], unknown, None), wanted)


@pytest.mark.parametrize(
    ("given", "lengths", "variables", "single", "flat"),
    [
        ([1, 2, 3], [3], 1, True, True),
        (np.zeros((4, 2), np.float32), [4], 2, True, False),
        (np.zeros((3, 4, 2)), [4, 4, 4], 2, False, False),
        ([np.zeros(3), torch.zeros(2)], [3, 2], 1, False, True),
        ([[1, 2], [3, 4, 5]], [2, 3], 1, False, True),
        (pd.Series([1, None, 3], dtype="Int64"), [3], 1, True, True),
        (pd.DataFrame({"a": [1.0, 2.0], "b": [1, 2]}), [2], 2, True, False),
        (torch.zeros(3, 5, 1, requires_grad=True), [5, 5, 5], 1, False, False),
        (np.ma.masked_equal([1, 2, 3], 2), [3], 1, True, True),
    ],
)
def test_series_of_all_kinds_are_read(given, lengths, variables, single, flat):
    read = read_series(given, "y")
    assert read.lengths.tolist() == lengths
    assert (read.variables, read.single, read.flat) == (variables, single, flat)
    assert all(a.dtype == np.float64 for a in read.arrays)


def test_missing_values_of_tables_are_nan():
    for given in (pd.Series([1, None, 3], dtype="Int64"), np.ma.masked_equal([1, 2, 3], 2)):
        np.testing.assert_array_equal(read_series(given, "y").arrays[0][:, 0], [1, NAN, 3])


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (np.array(["a", "b"]), TypeError, "y must hold floats"),
        (np.zeros(3, complex), TypeError, "y must hold floats"),
        (pd.Series(["a", "b"]), TypeError, "y must hold numbers"),
        (3.0, TypeError, "series of numbers"),
        (np.zeros((2, 3, 4, 5)), ValueError, "shape"),
        (np.zeros(0), ValueError, "no values"),
        (np.zeros((0, 3, 1)), ValueError, "no series"),
        ([np.zeros(3), np.zeros((3, 2))], ValueError, r"y\[1\] must have as many variables"),
        ([np.zeros(3), np.zeros(0)], ValueError, r"y\[1\] holds no values"),
        (np.array([1, np.inf]), ValueError, "infinite at step 1"),
        ([], ValueError, "no values"),
    ],
)
def test_what_is_no_series_is_refused(given, error, match):
    with pytest.raises(error, match=match):
        read_series(given, "y")


def test_an_epoch_of_very_many_windows_draws_others_each_time(monkeypatch):
    monkeypatch.setattr("fastseq.sklearn.forecasting.automatic_settings._DRAWN", 200)
    seen = []

    class Looks(fs.callbacks.Callback):
        def on_epoch_begin(self, _):
            seen.append([])

    def loss(output, target, reduction):
        if torch.is_grad_enabled():
            seen[-1] += target[target != 0].tolist()  # steps before the first are 0
        return l1_loss(output, target, reduction=reduction)

    y = [np.arange(1000 * n, 1000 * n + 80.0) for n in range(10)]  # 100 segments of 8 steps
    f = SequenceForecaster(
        1, lags=3, loss=loss, scale=None, epochs=4, callbacks=[Looks()], random_state=0
    ).fit(y)
    assert [row["updates"] for row in f.history_] == [4] * 4  # 25 segments, 8 together
    assert all(len(set(epoch)) == len(epoch) for epoch in seen)
    assert 195 <= len(seen[0]) <= 200  # first segments may lack a step
    assert all(len(set(one) & set(other)) < 150 for one, other in pairwise(seen))
    later = [one[-1] + np.arange(1.0, 81.0) for one in y]
    f.partial_fit(later)
    assert set(np.ravel(later)) <= set(seen[-1])  # all of them
