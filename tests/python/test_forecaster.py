"""`SequenceForecaster` against what is known in closed form, and against itself by another way."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from forecasting import LEVELS, NAN, Fixed, quick, wave
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import d2_pinball_score, r2_score
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from torch import nn

import fastseq as fs
from fastseq.callbacks import Callback
from fastseq.sklearn import SequenceForecaster

# --- what forecasts must be, whatever is learnt


@pytest.mark.parametrize("horizon", [1, 3, 9])
@pytest.mark.parametrize("strategy", ["direct", "recursive"])
def test_no_change_is_the_last_value_or_the_last_season(strategy, horizon):
    y = np.random.default_rng(0).standard_normal(40) + 5
    outputs = 1 if strategy == "recursive" else horizon
    last = quick(module=Fixed(np.ones((outputs, 1))), strategy=strategy, horizon=horizon).fit(y)
    np.testing.assert_allclose(last.predict(), np.full(horizon, y[-1]), rtol=1e-5)
    same = Fixed(np.zeros((outputs, 2)))
    naive = quick(module=same, strategy=strategy, horizon=horizon, season=4).fit(y)
    lag = 4 if strategy == "recursive" or horizon <= 4 else 12  # that is known for 9 steps
    season = np.tile(y[-lag:], 3)[:horizon]
    np.testing.assert_allclose(naive.predict(), season, rtol=1e-5)


@pytest.mark.parametrize("scale", ["standard", "series", None])
def test_a_straight_line_goes_on(scale):
    lines = [np.arange(20.0), 100 - 2 * np.arange(15.0)]
    by_two = SequenceForecaster(6, strategy="recursive", lags=2, module=Fixed([[-1.0, 2.0]]),
                                scale=scale, epochs=1).fit(lines)  # fmt: skip
    wanted = [20 + np.arange(6.0), 70 - 2 * np.arange(6.0)]
    np.testing.assert_allclose(by_two.predict(), wanted, rtol=1e-4)
    steps = 1 + np.arange(6.0)
    direct = SequenceForecaster(6, lags=2, module=Fixed(np.stack([-steps, 1 + steps], 1)),
                                scale=scale, epochs=1).fit(lines)  # fmt: skip
    np.testing.assert_allclose(direct.predict(), wanted, rtol=1e-4)


def test_two_variables_swap():
    swap = Fixed(np.array([[0.0, 1.0], [1.0, 0.0]]))
    y = np.stack([np.arange(10.0), -np.arange(10.0) * 3], 1)
    f = SequenceForecaster(3, strategy="recursive", module=swap, scale=None, epochs=1).fit(y)
    np.testing.assert_allclose(f.predict(), [[-27, 9], [9, -27], [-27, 9]])


# --- what is learnt


def test_an_autoregression_is_found():
    rng = np.random.default_rng(0)
    a, noise = (1.2, -0.5), rng.standard_normal(3000)
    y = noise.copy()
    for t in range(2, len(y)):
        y[t] += a[0] * y[t - 1] + a[1] * y[t - 2]
    f = SequenceForecaster(2, module="linear", lags=2, scale=None, epochs=20, lr=0.02,
                           fold=4, random_state=0).fit(y)  # fmt: skip
    w = f.estimator_.model.body[0].weight.detach().numpy()
    two = [a[0] * a[1], a[0] ** 2 + a[1]]  # a step further, in closed form
    np.testing.assert_allclose(w, [[a[1], a[0]], two], atol=0.06)


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
def test_a_wave_goes_on(strategy):
    y = wave(400, noise=0.02)[0]
    f = SequenceForecaster(12, strategy=strategy, epochs=60, random_state=0).fit(y[:360])
    assert f.score(y[360:]) > 0.95


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
def test_what_only_covariates_tell_is_learnt_from_them(strategy):
    x = np.random.default_rng(0).standard_normal((500, 2))
    y = np.abs(x[:, 0]) - x[:, 1]
    f = SequenceForecaster(5, strategy=strategy, epochs=40, lr=0.01, random_state=0)
    assert f.fit(y[:450], x[:450]).score(y[450:], x[450:]) > 0.9
    assert clone(f).fit(y[:450]).score(y[450:]) < 0.3


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
def test_forecasts_see_no_covariates_of_later_steps(strategy):
    x = np.random.default_rng(0).standard_normal((105, 2))
    y = x.sum(1)[:100]
    f = quick(horizon=5, strategy=strategy).fit(y, x[:100])
    before = f.predict(X=x[100:])
    other = x[100:].copy()
    other[2, 1] += 1
    after = f.predict(X=other)
    np.testing.assert_array_equal(after[:2], before[:2])
    assert after[2] != before[2]


@pytest.mark.parametrize("season", [None, 5])
def test_quantiles_of_noise(season):
    y = 3 + 2 * np.random.default_rng(0).standard_normal(4000)
    f = SequenceForecaster(3, quantiles=LEVELS, season=season, module="linear", epochs=20, lr=0.02,
                           fold=4, random_state=0).fit(y)  # fmt: skip
    found = f.predict()
    # With a season it is the difference of two values, of which the model sees neither.
    spread = 2 if season is None else 2 * np.sqrt(2)
    np.testing.assert_allclose(found[:, 2] - found[:, 0], 2 * 1.2816 * spread, rtol=0.06)
    if season is None:
        np.testing.assert_allclose(found[:, 1], 3, atol=0.2)


def test_drawn_futures_of_a_random_walk_widen_as_they_should():
    y = np.cumsum(np.random.default_rng(0).standard_normal(4000))
    f = SequenceForecaster(16, strategy="recursive", season=1, quantiles=LEVELS, module="linear",
                           epochs=30, lr=0.02, fold=4, random_state=0).fit(y)  # fmt: skip
    found = f.predict()
    width = found[:, 2] - found[:, 0]
    wanted = 2 * 1.2816 * np.sqrt(np.arange(1, 17))
    assert np.abs(np.log(width / wanted)).max() < 0.25
    assert f.fit(list(y.reshape(2, -1))).predict().shape == (2, 16, 3)


def test_drawn_futures_of_a_series_do_not_depend_on_others():
    y = wave(60, 3)
    f = quick(quantiles=LEVELS, strategy="recursive", module="gru").fit(list(y))
    found = f.predict(list(y))
    for n in range(3):
        np.testing.assert_allclose(f.predict([y[n]])[0], found[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
def test_quantiles_do_not_cross(strategy):
    levels = tuple(np.linspace(0.05, 0.95, 19))
    f = quick(quantiles=levels, strategy=strategy).fit(wave(60, 3)[..., None])
    found = f.predict()
    assert found.shape == (3, 4, 1, 19)
    assert (np.diff(found, axis=-1) >= 0).all()


# --- as scikit-learn's


def test_the_score_is_that_of_forecasts_one_after_the_other():
    y = wave(90, 2).T
    for levels in (None, LEVELS):
        f = quick(quantiles=levels, epochs=5).fit(y[:70])
        found = np.concatenate(list(f.backtest(y[70:])))
        if levels is None:
            wanted = r2_score(y[70:], found)
        else:
            wanted = np.mean([
                d2_pinball_score(y[70:, k], found[:, k, q], alpha=level)
                for k in range(2) for q, level in enumerate(levels)
            ])  # fmt: skip
        np.testing.assert_allclose(f.score(y[70:]), wanted)
    assert np.isfinite(f.score(y[70:73]))  # less than a horizon


def test_clone_pickle_and_parameters():
    f = quick(quantiles=LEVELS, strategy="recursive", callbacks=[Callback()])
    names = f.get_params()
    assert clone(f).get_params(deep=False).keys() == names.keys()
    f.fit(wave(40)[0])
    assert f.get_params() == names
    again = pickle.loads(pickle.dumps(f))  # noqa: S301
    np.testing.assert_array_equal(again.predict(), f.predict())
    with pytest.raises(NotFittedError, match="call fit first"):
        clone(f).predict()


def test_a_forecaster_is_not_saved_without_its_scales(tmp_path):
    f = quick().fit(wave(40)[0])
    with pytest.raises(TypeError, match=r"save: a forecaster's estimator_ .* save the forecaster"):
        f.estimator_.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_bits():
    y, x = wave(60)[0], np.random.default_rng(0).standard_normal((64, 1))
    for kw in ({}, {"strategy": "recursive", "quantiles": LEVELS, "dropout": 0.2}):
        forecasts = []
        for seed in (1, 1, 2):
            torch.rand(7)  # whatever the global generator has done
            f = quick(**{**kw, "random_state": seed}).fit(y, x[:60])
            forecasts.append(f.predict(X=x[60:]))
        a, b, c = forecasts
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_searches_and_splits_of_scikit_learn():
    y = wave(300, noise=0.02)[0]
    folds = TimeSeriesSplit(3, test_size=24)
    search = GridSearchCV(quick(horizon=8, season=19), {"epochs": [1, 15]}, cv=folds).fit(y)
    assert search.best_params_ == {"epochs": 15}
    assert search.best_estimator_.predict().shape == (8,)
    scores = cross_val_score(search.best_estimator_, y, cv=folds)
    np.testing.assert_allclose(scores.mean(), search.best_score_)


def test_a_warm_start_goes_on_to_the_bit():
    y, x = wave(60, 2).T, np.random.default_rng(0).standard_normal((60, 2))
    once = quick(epochs=8).fit(y, x)
    twice = quick(epochs=3, warm_start=True).fit(y, x)
    twice.set_params(epochs=8).fit(y, x)
    assert twice.continued_
    for a, b in zip(
        once.estimator_.model.parameters(), twice.estimator_.model.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not twice.set_params(hidden_size=4).fit(y, x).continued_


class CountEpochs(Callback):
    def __init__(self) -> None:
        self.epochs = 0

    def on_epoch_end(self, run) -> None:
        run.row["forecasts"] = self.epochs = run.epoch
        if run.epoch == 2:
            run.stop("enough")


def test_callbacks_are_called():
    given = CountEpochs()
    f = quick(epochs=5, callbacks=[given]).fit(wave(40)[0])
    assert [row["forecasts"] for row in f.history_] == [1, 2]
    assert given.epochs == 0  # a copy was


def small(n_in, n_out, rng):
    return fs.nn.Chain(nn.GRU(n_in, 4), nn.Linear(4, n_out))


@pytest.mark.parametrize("kw", [{"optimizer": "sgd", "weight_decay": 0.1, "decay_biases": False},
                                {"loss": "mae"}, {"loss": nn.functional.smooth_l1_loss},
                                {"fold": 3, "clip_value": 1.0, "accumulate": 2}, {"seqsize": 5},
                                {"dropout": 0.1, "num_layers": 2}, {"module": small}])  # fmt: skip
def test_parameters_are_taken(kw):
    assert np.isfinite(quick(**kw).fit(wave(50)[0]).predict()).all()


@pytest.mark.parametrize("strategy", ["direct", "recursive"])
def test_modules_in_double_precision(strategy):
    y, x = wave(60)[0], np.random.default_rng(0).standard_normal((64, 1))

    def build(n_in, n_out, rng):
        return small(n_in, n_out, rng).double()

    def forecast(module):
        f = quick(module=module, strategy=strategy, epochs=3).fit(y[:50], x[:50])
        return f.update(y[50:], x[50:60]).predict(X=x[60:])

    torch.testing.assert_close(forecast(build), forecast(small), rtol=1e-4, atol=1e-4)


# --- modules that look at other steps


class Causal(nn.Module):
    """Looks back, and carries no state."""

    def __init__(self, n_in, n_out, width=3, dilation=1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, width, dilation=dilation)
        self.reach = (width - 1) * dilation

    def forward(self, x):
        padded = nn.functional.pad(x.permute(1, 2, 0), (self.reach, 0))
        return self.conv(padded).permute(2, 0, 1)


class Centred(nn.Linear):
    """Takes the mean of all steps off."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


class Pairs(nn.Linear):
    """Takes whole pairs of steps only."""

    def forward(self, x):
        assert len(x) % 2 == 0, "an even number of steps is needed"
        return super().forward(x)


class Late(nn.GRU):
    """Carries a state, but looks at the next step of a chunk, too."""

    def forward(self, x, state=None):
        return super().forward(x + torch.cat([x[1:], x[-1:]]), state)


class Last(nn.Linear):
    """Returns the last step alone."""

    def forward(self, x):
        return super().forward(x)[-1]


@pytest.mark.parametrize(
    "module",
    [
        lambda a, b, _: Causal(a, b),
        lambda a, b, _: Causal(a, b, 2, 500),  # which no chunk of 64 steps shows
        lambda a, b, _: Centred(a, b),
        lambda a, b, _: fs.nn.Chain(Late(a, 4), nn.Linear(4, b)),
        lambda a, b, _: fs.nn.Chain(nn.GRU(a, 4, bidirectional=True), nn.Linear(8, b)),
    ],
)
@pytest.mark.parametrize("covariates", [None, np.zeros((1201, 1))])
def test_modules_that_look_at_other_steps_are_refused(module, covariates):
    y = wave(1201)[0]
    with pytest.raises(ValueError, match="module looks at other time steps than the current one"):
        quick(module=module, epochs=1).fit(y, covariates)


def test_modules_that_take_no_single_step_are_refused():
    with pytest.raises(ValueError, match=r"module must take single time steps, .*: an even number"):
        quick(module=lambda a, b, _: Pairs(a, b)).fit(wave(61)[0])


def test_modules_that_do_not_return_each_step_are_refused():
    with pytest.raises(ValueError, match=r"module must return \(steps, series, 4\)"):
        quick(module=lambda a, b, _: Last(a, b)).fit(wave(60)[0])
    with pytest.raises(ValueError, match=r"module must return \(steps, series, 4\)"):
        quick(module=nn.Linear(1, 3)).fit(wave(60)[0])


def test_modules_that_draw_numbers_or_carry_what_they_look_at_are_taken():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(x.shape[:2])[..., None]

    class Change(nn.Linear):  # whose state is the last step
        def forward(self, x, state=None):
            before = torch.cat([torch.zeros_like(x[:1]) if state is None else state, x])
            return super().forward(x - before[:-1]), x[-1:]

    for kind in (Noisy, Change):
        made = quick(module=lambda a, b, _, kind=kind: kind(a, b)).fit(wave(60)[0])
        assert np.isfinite(made.predict()).all()


# --- bad input


@pytest.mark.parametrize(
    ("kw", "error", "match"),
    [
        ({"horizon": 0}, ValueError, "horizon must be positive"),
        ({"horizon": 2.5}, TypeError, "horizon must be an integer"),
        ({"lags": 0}, ValueError, "lags"),
        ({"season": -1}, ValueError, "season"),
        ({"validation": 1.5}, TypeError, "validation"),
        ({"strategy": "both"}, ValueError, "strategy must be one of"),
        ({"scale": "minmax"}, ValueError, "scale must be one of"),
        ({"loss": "rmse"}, ValueError, "loss must be one of"),
        ({"loss": 3}, TypeError, "loss must be one of"),
        ({"quantiles": (0.5, 0.1)}, ValueError, "quantiles must be increasing"),
        ({"quantiles": (0.0, 0.5)}, ValueError, "quantiles must be increasing"),
        ({"quantiles": ()}, ValueError, "quantiles must be increasing"),
        ({"quantiles": 0.5}, TypeError, "quantiles must be a list"),
        ({"season": 50}, ValueError, r"y has 30 steps, but horizon=4, season=50 needs 52"),
        ({"validation": 29}, ValueError, "y has 30 steps, but"),
        ({"horizon": 30}, ValueError, "y has 30 steps to learn from, too few for a horizon of 30"),
    ],
)
def test_bad_parameters_are_told(kw, error, match):
    with pytest.raises(error, match=match):
        quick(**kw).fit(np.arange(30.0))


@pytest.mark.parametrize(
    ("y", "x", "match"),
    [
        (np.zeros(1), None, "y has 1 step, but"),
        ([np.zeros(9), np.zeros(0)], None, r"y\[1\] holds no values"),
        (np.zeros((5, 30)), None, r"for 5 series of 30 steps pass list\(y\)"),
        ([np.full(9, NAN)] * 2, None, r"y\[0\] has no known values of variable 0 \(and 1 others"),
        (np.zeros(9), np.zeros((8, 2)), "X must cover the steps of y: 9 steps, got 8"),
        (np.zeros(9), np.zeros((10, 2)), "X must have exactly the steps of y: 9 steps, got 10; l"),
        (np.zeros(9), np.full((9, 1), NAN), "X is NaN at step 0"),
        (
            [np.zeros(9), np.zeros(8)],
            np.zeros((9, 1)),
            "2 series of different lengths: pass a list",
        ),
        ([np.zeros(9)] * 2, [np.zeros((9, 1))] * 3, "X must be covariates of 2 series, got 3"),
    ],
)
def test_bad_series_are_told(y, x, match):
    with pytest.raises(ValueError, match=match):
        quick().fit(y, x)


def test_bad_calls_are_told():
    y, x = wave(30)[0], np.zeros((30, 2))
    f, g = quick().fit(y), quick(season=6).fit(y, x)
    with pytest.raises(ValueError, match="fit got no covariates"):
        f.predict(X=x[:4])
    with pytest.raises(
        ValueError, match="X must cover the horizon, the steps that follow, got None"
    ):
        g.predict()
    with pytest.raises(ValueError, match=r"X must have exactly the horizon.*: 4 steps, got 5"):
        g.predict(X=x[:5])
    with pytest.raises(ValueError, match="the steps of y and of the horizon: 34 steps, got 30"):
        g.predict(y, x)
    with pytest.raises(ValueError, match="the 2 covariates that fit got, got 1"):
        g.predict(X=x[:4, :1])
    with pytest.raises(ValueError, match="1 variables, as in fit, got 2"):
        f.predict(x)
    assert np.isfinite(g.predict(y[:1], x[:5])).all()
    compared = quick(season=6, module="gru").fit(y)
    with pytest.raises(ValueError, match="y has 5 steps, but horizon=4, season=6 needs 6"):
        compared.predict(y[:5])
    with pytest.raises(ValueError, match="y must continue the 1 series"):
        f.update([y, y])
    with pytest.raises(ValueError, match="y has no steps that follow: each of its series is empty"):
        quick().fit([y, y]).update([y[:0], y[:0]])
    with pytest.raises(ValueError, match="stride must be positive"):
        f.backtest(y, stride=0)
    with pytest.raises(ValueError, match="at least 2"):
        f.score(y[:1])


# --- calls that fail, or come too early


@pytest.mark.parametrize(
    ("name", "value"),
    [("quantiles", None), ("horizon", 6), ("transform", "log1p"), ("conformal", "split")],
)
def test_parameters_changed_after_fit_are_told(tmp_path, name, value):
    y = np.abs(wave(60)[0])
    f = quick(quantiles=LEVELS).fit(y[:50])
    wanted = f.predict()
    before = f.get_params()[name]
    f.set_params(**{name: value})
    for call in (f.predict, lambda: f.update(y[50:]), lambda: f.backtest(y[50:]),
                 lambda: f.score(y[50:]), lambda: f.save(tmp_path / "f")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} is .*, but was .* in fit: call fit again"):
            call()
    np.testing.assert_array_equal(f.set_params(**{name: before}).predict(), wanted)
    f.set_params(lr=1.0, epochs=9, callbacks=(), verbose=0).predict()  # these do not matter


@pytest.mark.parametrize(
    ("more", "match"),
    [({"horizon": 60}, "y has 60 steps to learn from, too few for a horizon of 60"),
     ({"quantiles": LEVELS, "conformal": "split", "validation": 4}, "conformal: 4 steps held out"),
     ({"season": 80, "module": "gru"}, "y has 60 steps, but horizon=4, season=80 needs 82")],
)  # fmt: skip
def test_a_fit_that_fails_changes_nothing(more, match):
    y = wave(60)[0]
    f = quick(scale="series", epochs=1).fit(y)
    wanted, before = f.predict(y[:30]), f.get_params()
    with pytest.raises(ValueError, match=match):
        f.set_params(**more).fit(y)
    np.testing.assert_array_equal(f.set_params(**before).predict(y[:30]), wanted)
    new = clone(f).set_params(**more)
    with pytest.raises(ValueError, match=match):
        new.fit(y)
    with pytest.raises(NotFittedError):
        new.predict()
