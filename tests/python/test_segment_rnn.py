"""The default model of `SequenceForecaster`, against loops by hand; what is chosen and learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from forecasting import LEVELS, NAN, Weights, assert_same_training, quick, wave
from torch import nn

import fastseq as fs
from fastseq.sklearn import SequenceForecaster
from fastseq.sklearn.forecasting.automatic_settings import AutomaticSettings
from fastseq.sklearn.forecasting.covariate_encoder import CovariateSizes
from fastseq.sklearn.forecasting.segment_rnn import SegmentRNN
from fastseq.sklearn.forecasting.series import join_variables, split_variables
from fastseq.sklearn.forecasting.windows import SeriesScaling, Windows

# --- the network


def sizes(ahead, past, static):
    """Return columns of numbers."""
    return CovariateSizes((0,) * ahead, (0,) * past, (0,) * static)


def drawn(**more):
    """Return a network with weights that are not those it starts with."""
    torch.manual_seed(0)
    given = {"horizon": 5, "variables": 1, "outputs": 1, "lags": 11, "segment": 3, "season": 4}
    net = SegmentRNN(**{**given, "hidden_size": 6, **more})
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p) / 3)
    return net.eval()


def by_hand(net, window, ahead=None, past=None, static=None):
    """Forecast from one window ``(lags, K)`` in double precision, value by value."""
    horizon, variables, outputs = net._shape
    p = {name: a.detach().double().numpy() for name, a in net.named_parameters()}
    lags = len(window)
    effects = [np.zeros(variables)] * (lags + horizon)
    if ahead is not None:  # what covariates of a step add to its values
        rows = [*past[:, : ahead.shape[1]], *ahead]
        effects = [4 * p["effect.weight"] @ row for row in rows]
        window = window - effects[:lags]
    level = window[-1]
    gru = nn.GRU(net.embed.out_features, net.mix.in_features, net.recurrent.num_layers).double()
    gru.load_state_dict({k: a.double() for k, a in net.recurrent.state_dict().items()})
    size = net._segment
    inputs, before = [], None
    for begin in range(lags % size, lags, size):
        own = window[begin : begin + size]
        before = own[0] if before is None else before
        seen = np.concatenate([(own - own[-1]).ravel(), own[-1] - before])
        embedded = p["embed.weight"] @ seen + p["embed.bias"]
        if past is not None:
            embedded = embedded + p["embed_past.weight"] @ past[begin : begin + size].ravel()
        inputs.append(np.maximum(embedded, 0))
        before = own[-1]
    with torch.no_grad():
        last = gru(torch.tensor(np.stack(inputs))[:, None])[0][-1, 0].numpy()
    mixed = p["mix.weight"] @ last + p["mix.bias"]
    if static is not None:
        mixed = mixed + p["static.weight"] @ static
    hidden = np.maximum(mixed, 0)
    changes = (p["out.weight"] @ hidden + p["out.bias"]).reshape(horizon, variables, outputs)
    found = np.empty((horizon, variables, outputs))
    for h in range(horizon):
        for k in range(variables):
            for q in range(outputs):
                row = h * outputs + q
                straight = p["linear.bias"][row]
                for i in range(lags):
                    change = window[i, k] - level[k]
                    straight += p["linear.weight"][row, i] * change / np.sqrt(lags)
                found[h, k, q] = level[k] + straight + changes[h, k, q]
        if ahead is not None:
            at = p["known.weight"] @ ahead[h] + p["known.bias"] + p["context.weight"] @ hidden
            at = np.maximum(at, 0)
            more = p["known_out.weight"] @ at + p["known_out.bias"]
            found[h] += more.reshape(variables, outputs) + effects[lags + h][:, None]
    if "delayed.weight" in p:
        own = past[:, 0 if ahead is None else ahead.shape[1] :].ravel()
        found += (p["delayed.weight"] @ own).reshape(found.shape) / np.sqrt(lags)
    return found.ravel()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"lags": 12},
        {"lags": 3},
        {"variables": 2, "outputs": 3},
        {"variables": 3, "outputs": 2, "covariates": sizes(2, 0, 0), "num_layers": 2, "segment": 2},
        {"segment": 1, "horizon": 1, "covariates": sizes(1, 2, 1)},
        {"covariates": sizes(0, 1, 0), "outputs": 2},
        {"covariates": sizes(0, 0, 3)},
        {"covariates": sizes(1, 1, 2), "variables": 2},
    ],
)
def test_forecasts_are_those_by_hand(more):
    net = drawn(**more)
    rng, (horizon, variables, _) = np.random.default_rng(0), net._shape
    lags, known = net._lags, more.get("covariates", sizes(0, 0, 0))
    x = 100 + rng.standard_normal((4, 3, lags, variables))
    seen = len(known.ahead) + len(known.past)
    shapes = [(horizon, len(known.ahead)), (lags, seen), (len(known.static),)]
    parts = [rng.standard_normal((4, 3, *shape)) if shape[-1] else None for shape in shapes]
    inputs = tuple(
        torch.tensor(part, dtype=torch.float32).reshape(4, 3, -1)
        for part in (x, *parts)
        if part is not None
    )
    y = net(inputs if known else inputs[0]).detach()
    for t in range(4):
        for n in range(3):
            of_step = [None if part is None else part[t, n] for part in parts]
            wanted = by_hand(net, x[t, n], *of_step)
            np.testing.assert_allclose(y[t, n], wanted, rtol=1e-5, atol=1e-4)


def test_a_level_is_put_back_and_steps_are_apart():
    net, x = drawn(), torch.randn(6, 2, 11)
    y = net(x)
    torch.testing.assert_close(net(x + 16), y + 16, rtol=1e-5, atol=1e-5)
    for t in range(6):
        torch.testing.assert_close(net(x[t : t + 1]), y[t : t + 1])


@pytest.mark.parametrize(("season", "lags"), [(None, 7), (1, 7), (4, 8), (4, 11), (4, 4), (3, 5)])
def test_it_starts_at_means_over_seasons(season, lags):
    net = SegmentRNN(horizon=6, variables=1, outputs=2, lags=lags, segment=2, season=season)
    x, each = np.random.default_rng(0).standard_normal(lags), season or 1
    found = net(torch.tensor(x, dtype=torch.float32).view(1, 1, -1)).detach().view(6, 2)
    phases = [[x[i] for i in range(lags) if (i - lags - h) % each == 0] for h in range(6)]
    wanted = np.array([np.mean(values) for values in phases])
    np.testing.assert_allclose(found, np.stack([wanted, wanted], 1), rtol=1e-5, atol=1e-6)
    net.repeat(mean=False)
    found = net(torch.tensor(x, dtype=torch.float32).view(1, 1, -1)).detach().view(6, 2)
    np.testing.assert_allclose(found[:, 1], [values[-1] for values in phases], rtol=1e-5)


# --- its data


@pytest.mark.parametrize("steps", [1, 3, 8, 20])
def test_segments_hold_each_window_once(steps):
    rng, lags, horizon = np.random.default_rng(0), 4, 3
    arrays = [rng.standard_normal((length, 1)) for length in (9, 2, 14)]
    covariates = [rng.standard_normal((len(a), 2)) for a in arrays]
    scaling = SeriesScaling.measure(arrays, None, None)
    whole = Windows.of(arrays, covariates, scaling, lag=None, season=None, lags=lags,
                       horizon=horizon, levelled=True)  # fmt: skip

    def rows(windows):
        (seen, known), outcomes, weights = windows.training_data()
        every = torch.cat([seen, known, outcomes], -1)
        return sorted(map(repr, every[weights > 0].numpy()))

    cut = whole.segments(steps)
    assert cut.inputs(0, steps)[0].shape == (steps, len(cut.lengths), lags)
    assert rows(cut) == rows(whole)
    first = whole.inputs(0, 1)[0][0, 0]
    np.testing.assert_allclose(first, np.full(lags, arrays[0][0, 0]), rtol=1e-6)


def test_variables_are_split_and_joined():
    arrays = [np.arange(6.0).reshape(3, 2), 10 + np.arange(6.0).reshape(3, 2)]
    apart = split_variables(arrays)
    assert [a.shape for a in apart] == [(3, 1)] * 4
    np.testing.assert_array_equal(join_variables(np.stack(apart), 2), np.stack(arrays))
    scaling = SeriesScaling(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), None)
    np.testing.assert_array_equal(scaling.apart(2).center, [[1], [2], [1], [2]])
    each = SeriesScaling(np.array([[1.0, 2], [3, 4]]), np.ones((2, 2)), np.ones((2, 2)))
    np.testing.assert_array_equal(each.apart(2).center, [[1], [2], [3], [4]])


def test_series_are_scaled_by_their_changes():
    y = [np.array([0.0, 1, 3, 0, NAN, 5])[:, None], np.full((4, 1), 7.0)]
    scaling = SeriesScaling.measure(y, "changes", None)
    np.testing.assert_allclose(scaling.center[:, 0], [9 / 5, 7])
    np.testing.assert_allclose(scaling.scale[:, 0], [(1 + 2 + 3 + 5) / 4, 1])
    seasonal = SeriesScaling.measure(y, "changes", None, 2)
    np.testing.assert_allclose(seasonal.scale[0], (3 + 1 + 5) / 3)


# --- what is chosen


def test_what_is_given_is_not_chosen():
    given = SequenceForecaster(
        7, season=7, lags=9, seqsize=5, batchsize=3, fold=2, epochs=4, validation=6, loss="mse",
        hidden_size=11, dropout=0.2, variables="together",
    ).get_params()  # fmt: skip
    c = AutomaticSettings.of(given, np.array([900, 1000]), 3)
    names = "lags", "seqsize", "batchsize", "fold", "epochs", "validation", "loss", "hidden_size"
    assert [getattr(c, name) for name in names] == [9, 5, 3, 2, 4, 6, "mse", 11]
    assert (c.dropout, c.apart, c.segment) == (0.2, False, 7)
    lstm = AutomaticSettings.of(
        {**SequenceForecaster(7, module="lstm").get_params()}, np.array([900]), 3
    )
    assert (lstm.segments, lstm.lag, lstm.compared, lstm.apart) == (False, None, False, False)
    assert (lstm.lags, lstm.epochs, lstm.batchsize, lstm.validation) == (1, 30, 32, 0)


@pytest.mark.parametrize("season", [None, 1, 2, 7, 24, 52, 53, 168, 336, 365])
@pytest.mark.parametrize("length", [3, 30, 1000])
def test_choices_fit_the_data(season, length):
    for horizon in (1, 4, 96):
        given = SequenceForecaster(horizon, season=season).get_params()
        c = AutomaticSettings.of(given, np.array([length]), 1)
        assert 1 <= c.segment <= min(48, c.lags)
        assert c.compared or season is None or c.lags >= season
        assert c.validation <= length // 4
        assert 6 <= c.epochs <= 100


# --- forecasts


CASES = {
    "one": {},
    "season": {"season": 6},
    "long season": {"season": 170, "horizon": 3},
    "quantiles": {"quantiles": LEVELS, "season": 6},
    "together": {"variables": "together"},
    "recursive": {"strategy": "recursive", "season": 6},
    "series": {"scale": "series"},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("covariates", [False, True])
def test_backtests_are_predictions_from_each_origin(name, covariates):
    rng = np.random.default_rng(0)
    y = wave(420, 2).T
    y[[30, 31, 410, 411], [0, 1, 0, 0]] = NAN
    x = rng.standard_normal((440, 2)) if covariates else None
    f = quick(epochs=1, **CASES[name])
    f.fit(y[:400], None if x is None else x[:400])
    horizon = f.horizon
    found = f.backtest(y[400:], None if x is None else x[400:420], stride=1)
    assert found.shape[:3] == (20, horizon, 2)
    for origin in range(20 - horizon if covariates else 20):  # later ones see average covariates
        ahead = None if x is None else x[400 + origin : 400 + origin + horizon]
        wanted = f.predict(X=ahead)
        np.testing.assert_allclose(found[origin], wanted, rtol=1e-4, atol=1e-5)
        now = slice(400 + origin, 401 + origin)
        f.update(y[now], None if x is None else x[now])


def test_what_comes_later_changes_no_forecast():
    y = wave(60, 2).T
    other = y.copy()
    other[45:] += np.random.default_rng(0).standard_normal((15, 2))
    for kw in CASES.values():
        f = quick(**{**kw, "season": kw.get("season") and 6}).fit(y[:40])
        for stride in (1, 5):
            one, two = (f.backtest(a[40:], stride=stride) for a in (y, other))
            upto = 6 if stride == 1 else 2
            np.testing.assert_array_equal(one[:upto], two[:upto])
            assert (one[-1] != two[-1]).any()


@pytest.mark.parametrize("scale", ["standard", "series"])
@pytest.mark.parametrize("validation", [None, 40])
def test_nothing_of_the_validation_part_is_learnt(scale, validation):
    y = np.stack([*wave(800, 2)])
    other = y.copy()
    other[:, -40:] = 100 * np.random.default_rng(0).standard_normal((2, 40))
    runs = []
    for given in (y, other):
        f = quick(scale=scale, season=6, epochs=3, validation=validation, callbacks=[Weights()])
        runs.append(f.fit(list(given)))
    assert runs[0]._settings.validation >= 40  # a part is held out unasked
    assert_same_training(*runs)
    losses = [run.history_[-1]["validation_loss"] for run in runs]
    assert losses[0] != losses[1]


def test_the_best_epoch_is_kept():
    f = quick(epochs=6, validation=50, lr=0.05, callbacks=[Weights()]).fit(wave(300)[0])
    best = int(np.argmin([row["validation_loss"] for row in f.history_]))
    kept = f.estimator_.callbacks[-1].epochs[best]
    for a, b in zip(kept, f.estimator_.model.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("season", [None, 6])
def test_it_is_never_worse_than_repeating_the_last_season(season):
    """If all epochs are worse on the validation part, it repeats the last season, or value."""
    y = np.tile(np.random.default_rng(0).standard_normal(6), 50) if season else np.full(300, 3.0)
    y = np.repeat(np.cumsum(np.random.default_rng(0).standard_normal(100)), 3) if not season else y
    f = quick(season=season, epochs=2, lr=50.0, clip_norm=None, validation=30).fit(y)
    assert f.repeats_
    wanted = y[-6:-2] if season else np.full(4, y[-1])
    np.testing.assert_allclose(f.predict(), wanted, rtol=1e-5)


def test_quantiles_are_not_all_the_same_where_repeating_is_better():
    y = np.repeat(np.cumsum(np.random.default_rng(0).standard_normal(100)), 3)
    f = quick(epochs=2, lr=50.0, clip_norm=None, validation=30, quantiles=(0.1, 0.5, 0.9)).fit(y)
    assert (np.diff(f.predict()) > 0).all()


def test_variables_apart_are_a_panel():
    y = wave(60, 3)
    together = quick(scale=None, season=5).fit(y.T[:50])
    apart = quick(scale=None, season=5).fit(list(y[:, :50]))
    np.testing.assert_allclose(together.predict(), apart.predict().T, rtol=1e-6)
    found = together.backtest(y.T[50:], stride=3)
    np.testing.assert_allclose(found, apart.backtest(list(y[:, 50:]), stride=3).swapaxes(1, 2))
    other = y.copy()
    other[1:] *= 2
    changed = quick(scale=None, season=5, epochs=1, lr=1e-9, validation=0)
    one, two = (changed.fit(a.T[:50]).predict()[:, 0] for a in (y, other))
    np.testing.assert_allclose(one, two, atol=1e-6)  # a variable is forecast from itself
    both = quick(scale=None, variables="together", epochs=20).fit(y.T[:50])
    first = both.predict(y.T[:50])[:, 0]
    assert (first != both.predict(other.T[:50])[:, 0]).any()


def test_rows_of_a_panel_may_have_one_step_to_learn_from():
    series = [s[:length] for s, length in zip(wave(60, 3), (60, 2, 7), strict=True)]
    f = quick(scale="series", epochs=1).fit(series)
    assert np.isfinite(f.predict()).all()


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_a_seasonal_series_is_learnt_better_than_its_naive_forecast(seed):
    """With a trend and noise, over a week; errors over twenty weeks: in four, they vary by 10 %."""
    rng, t = np.random.default_rng(0), np.arange(1200)
    y = 0.01 * t + 3 * np.sin(2 * np.pi * t / 7) + rng.standard_normal(1200)
    known, actual = y[:-140], y[-140:]
    naive = np.abs(actual - y[-147:-7]).mean()
    f = fs.SequenceForecaster(7, season=7, random_state=seed).fit(known)
    error = np.abs(f.backtest(actual).ravel() - actual).mean()
    assert not f.repeats_
    assert error < 0.85 * naive
