"""What a forecaster learns: transformed values, weighted losses, several models at once."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from forecasting import LEVELS, NAN, Fixed, Weights, assert_same_training, quick, wave
from torch import nn

from fastseq.sklearn import SequenceForecaster

TRANSFORMS = {
    "log": (np.log, np.exp),
    "log1p": (np.log1p, np.expm1),
    "sqrt": (np.sqrt, np.square),
}


def counts(steps, count=1, seed=0):
    """Positive series, ``(count, steps)``."""
    return np.exp(0.3 * wave(steps, count, noise=1, seed=seed) % 3) + 0.5


# --- transforms


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("more", [{}, {"module": "gru"}, {"strategy": "recursive", "season": 5}])
@pytest.mark.parametrize("quantiles", [None, LEVELS])
def test_a_transform_is_applied_before_and_undone_after(name, more, quantiles):
    apply, undo = TRANSFORMS[name]
    y, more = counts(80)[0], {**more, "quantiles": quantiles, "loss": "mae"}
    if quantiles is not None and more.get("strategy"):
        return  # quantiles of drawn futures are interpolated between them
    f = quick(transform=name, **more).fit(y[:60])
    plain = quick(**more).fit(apply(y[:60]))
    np.testing.assert_allclose(f.predict(), undo(plain.predict()), rtol=1e-9)
    np.testing.assert_allclose(f.predict(y), undo(plain.predict(apply(y))), rtol=1e-9)
    np.testing.assert_allclose(
        f.backtest(y[60:], stride=1), undo(plain.backtest(apply(y[60:]), stride=1)), rtol=1e-9
    )
    f.update(y[60:])
    np.testing.assert_allclose(f.predict(), undo(plain.update(apply(y[60:])).predict()), rtol=1e-9)


def test_the_score_is_that_of_the_values_themselves():
    y = counts(100)[0]
    f = quick(transform="log").fit(y[:80])
    found = f.backtest(y[80:]).reshape(-1)[:20]
    wanted = 1 - np.sum((y[80:] - found) ** 2) / np.sum((y[80:] - y[80:].mean()) ** 2)
    assert f.score(y[80:]) == pytest.approx(wanted)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("form", ["series", "variables", "panel"])
def test_means_are_made_by_smearing(name, form):
    """Duan's formula, with errors of forecasts made from each step of the held-out part."""
    apply, undo = TRANSFORMS[name]
    y = counts(90, 3)
    y = {"series": y[0], "variables": y.T, "panel": y[:, :, None]}[form]
    past = [y[:, :n] if form == "panel" else y[:n] for n in range(91)]
    more = {"loss": "mse", "validation": 20}
    plain = quick(**more).fit(apply(y))
    f = quick(transform=name, **more).fit(y)
    steps = np.abs(np.diff(apply(past[70]), axis=-2 if form != "series" else 0)).mean(
        -2 if form != "series" else 0
    )
    found = f.predict()
    for h in range(4):
        at = {"panel": (slice(None), h)}.get(form, (h,))
        errors = []
        for n in range(70, 90 - h):
            actual = past[n + h + 1][(slice(None), -1)] if form == "panel" else past[n + h + 1][-1]
            errors.append((apply(actual) - plain.predict(apply(past[n]))[at]) / steps)
        errors = np.array(errors)
        if form == "panel":
            errors = errors.reshape(-1, 1, 1)  # of all series
        center = plain.predict()[at]
        wanted = undo(np.maximum(center + errors * steps, 0 if name != "log" else -np.inf)).mean(0)
        np.testing.assert_allclose(found[at], wanted, rtol=1e-6)


@pytest.mark.parametrize("validation", [None, 100])
def test_smeared_means_are_means_and_medians_are_medians(validation):
    rng = np.random.default_rng(0)
    y = np.exp(1 + 0.8 * rng.standard_normal((20, 300)))
    more = {"module": "linear", "epochs": 10, "horizon": 3, "validation": validation or 0}
    mean = quick(**more, transform="log", loss="mse", lr=0.02).fit(list(y))
    assert mean.predict().mean() == pytest.approx(np.exp(1 + 0.32), rel=0.06)
    median = quick(**more, transform="log", loss="mae", lr=0.02).fit(list(y))
    assert median.predict().mean() == pytest.approx(np.exp(1), rel=0.06)


@pytest.mark.parametrize("name", ["log1p", "sqrt"])
@pytest.mark.parametrize("loss", ["mae", "mse"])
def test_forecasts_are_never_negative(name, loss):
    falling = np.maximum(50.0 - np.arange(50), 0)
    steep = Fixed([[-5.0, 4.0], [-9.0, 8.0]])
    f = quick(transform=name, loss=loss, horizon=2, lags=2, module=steep, scale=None).fit(falling)
    assert (f.predict() >= 0).all()
    assert (f.predict(falling[:40]) >= 0).all()
    assert (quick(transform=name, loss=loss).fit(falling).predict() >= 0).all()


@pytest.mark.parametrize(("name", "bad"), [("log", 0.0), ("log1p", -0.5), ("sqrt", -2.0)])
def test_values_outside_a_transforms_domain_are_refused(name, bad):
    y = counts(40, 2)
    f = quick(transform=name).fit(list(y))
    before = f.predict()
    y[1, 7] = bad
    with pytest.raises(ValueError, match=rf'y\[1\] is {bad:g} at step 7, but transform="{name}"'):
        quick(transform=name).fit(list(y))
    for call in (f.predict, f.update, f.backtest):
        with pytest.raises(ValueError, match="choose another transform"):
            call(list(y))
    np.testing.assert_array_equal(f.predict(), before)
    y[1, 7] = NAN  # is missing
    assert np.isfinite(quick(transform=name).fit(list(y)).predict()).all()
    with pytest.raises(ValueError, match="transform must be one of"):
        quick(transform="exp").fit(y[0])


# --- weights


class Start(nn.Linear):
    """A linear layer that starts with given weights."""

    def __init__(self, n_in, n_out) -> None:
        super().__init__(n_in, n_out)
        with torch.no_grad():
            self.weight.copy_(0.1 * torch.arange(n_in * n_out).view(n_out, n_in) - 0.2)
            self.bias.fill_(0.05)


def weighted_loss(module, arrays, weights, steps, loss, horizon=3, lags=2):
    """Return Σ w·l / Σ w over all windows, in loops."""
    total = torch.zeros((), dtype=torch.float64)
    sums = 0.0
    for y, w in zip(arrays, weights, strict=True):
        padded = np.concatenate([np.zeros((lags - 1, y.shape[1])), y])
        for t in range(len(y) - 1):
            seen = torch.tensor(padded[t : t + lags].ravel())
            out = module(seen).view(horizon, -1)
            for h in range(horizon):
                if t + 1 + h < len(y):
                    for k in range(y.shape[1]):
                        own = w[t + 1 + h, k] * steps[h]
                        total = total + own * loss(out[h, k], torch.tensor(y[t + 1 + h, k]))
                        sums += own
    return total / sums


FORMS = ["series", "steps", "values", "age", "horizon", "all"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_loss_and_gradient_are_those_of_the_weighted_mean(form, loss):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((n, 2)) for n in (12, 9, 7)]
    shapes = [one.shape for one in arrays]
    given, half_life, steps = None, None, None
    weights = [np.ones(shape) for shape in shapes]
    if form == "series":
        given = np.array([3.0, 0.5, 1.0])
        weights = [np.full(s, w) for s, w in zip(shapes, given, strict=True)]
    if form in ("steps", "all"):
        given = [rng.random(s[0]) * (rng.random(s[0]) > 0.3) for s in shapes]
        weights = [np.repeat(w[:, None], 2, 1) for w in given]
    if form == "values":
        given = weights = [rng.random(s) for s in shapes]
    if form in ("age", "all"):
        half_life = 2.5
        weights = [w * (0.5 ** (np.arange(len(w))[::-1] / half_life))[:, None] for w in weights]
    if form in ("horizon", "all"):
        steps = [1.0, 0.0, 3.0]
    fn = {"mse": torch.nn.functional.mse_loss, "mae": torch.nn.functional.l1_loss}[loss]
    module = Start(4, 6).double()
    wanted = weighted_loss(module, arrays, weights, steps or [1, 1, 1], fn)
    wanted.backward()
    more = {"horizon": 3, "lags": 2, "scale": None, "module": Start, "epochs": 1,
            "loss": loss, "half_life": half_life, "horizon_weights": steps, "clip_norm": None,
            "optimizer": "sgd", "variables": "together"}  # fmt: skip
    f = quick(**more, lr=0.5).fit(arrays, weights=given)
    assert f.history_[-1]["loss"] == pytest.approx(wanted.item(), rel=1e-5)
    moved = f.estimator_.model.body.weight.detach().double()
    start = Start(4, 6).double()
    torch.testing.assert_close(start.weight - 0.5 * module.weight.grad, moved, rtol=1e-4, atol=1e-6)
    cut = quick(**more, lr=0.0, seqsize=3, batchsize=1).fit(arrays, weights=given)
    assert cut.history_[-1]["loss"] == pytest.approx(wanted.item(), rel=1e-5)


def test_segments_are_weighted_too():
    """The first forecasts of "segrnn" are means of what it sees."""
    y, weights = wave(40)[0], np.random.default_rng(1).random(40)
    f = quick(horizon=2, lags=3, lr=0.0, dropout=0.0, scale=None, epochs=1, validation=9,
              half_life=20, horizon_weights=[1, 2]).fit(y, weights=weights)  # fmt: skip
    weights *= 0.5 ** (np.arange(40)[::-1] / 20)
    padded = np.concatenate([np.full(2, y[0]), y])
    sums = np.zeros((2, 2))
    for t in range(39):
        for h in range(2):
            if t + 1 + h < 40:
                own = weights[t + 1 + h] * (1, 2)[h]
                error = abs(y[t + 1 + h] - padded[t : t + 3].mean())
                sums[int(t + 1 + h >= 31)] += own * error, own
    row = f.history_[-1]
    assert row["loss"] == pytest.approx(sums[0, 0] / sums[0, 1], rel=1e-5)
    assert row["validation_loss"] == pytest.approx(sums[1, 0] / sums[1, 1], rel=1e-5)


@pytest.mark.parametrize("more", [{}, {"module": "gru", "seqsize": 7}])
def test_equal_weights_change_nothing(more):
    y = wave(60, 3)
    plain = quick(**more, callbacks=[Weights()]).fit(list(y))
    for weights in ([0.3] * 3, np.full((3, 60), 7.7), list(np.full((3, 60), 1e-3))):
        f = quick(**more, callbacks=[Weights()]).fit(list(y), weights=weights)
        assert_same_training(f, plain)
    f = quick(**more, horizon_weights=[0.2] * 4, callbacks=[Weights()]).fit(list(y))
    assert_same_training(f, plain)


@pytest.mark.parametrize("more", [{}, {"module": "gru", "seqsize": 7}, {"quantiles": LEVELS}])
def test_a_weight_of_0_is_a_missing_target(more):
    y, weights = wave(60, 2), np.ones((2, 60))
    holes = np.random.default_rng(0).random((2, 60)) < 0.2
    holes[:, 0] = False
    for n, t in np.argwhere(holes):
        y[n, t] = y[n, t - 1]  # what the model sees in place of a missing value
    missing = np.where(holes, NAN, y)
    weights[holes] = 0
    more = {**more, "scale": None}
    f = quick(**more, callbacks=[Weights()]).fit(list(y), weights=weights)
    assert_same_training(f, quick(**more, callbacks=[Weights()]).fit(list(missing)))
    weights[1] = NAN
    with pytest.raises(ValueError, match=r"weights\[1\] must be finite"):
        quick(**more).fit(list(y), weights=weights)


def test_weights_follow_their_series():
    """Tables are sorted by time, and so are their weights; others are refused."""
    days = pd.date_range("2024-01-01", periods=40)
    y = pd.Series(wave(40)[0], days)
    weights = pd.Series(np.random.default_rng(0).random(40), days)
    f = quick(callbacks=[Weights()]).fit(y, weights=weights)
    mixed = np.random.default_rng(1).permutation(40)
    g = quick(callbacks=[Weights()]).fit(y.iloc[mixed], weights=weights.iloc[mixed[::-1]])
    assert_same_training(f, g)
    assert_same_training(f, quick(callbacks=[Weights()]).fit(y.to_numpy(), weights=weights.array))
    with pytest.raises(ValueError, match="may be in another order than y"):
        quick().fit(y.iloc[mixed], weights=weights.to_numpy())
    with pytest.raises(ValueError, match="must have the index of y"):
        quick().fit(y, weights=weights.shift(freq="D"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "must be of 3 series, got"),
        (np.ones((3, 39)), r"weights\[0\] must be of 40 time steps of 1 variables"),
        ([1.0, -2.0, 0.0], "weights must be finite and not negative, got -2.0 at 1"),
        ([np.ones(40), np.ones(40), np.full(40, np.inf)], "infinite"),
        ([0.0, 0.0, 0.0], "weights are all 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(list(wave(40, 3)), weights=weights)


def test_weights_of_nothing_to_learn_or_to_validate_on_are_refused():
    y, weights = wave(40)[0], np.ones(40)
    weights[30:] = 0
    with pytest.raises(ValueError, match="no known value of the last 10 steps"):
        quick(validation=10).fit(y, weights=weights)
    with pytest.raises(ValueError, match="no known value of y to learn from"):
        quick(validation=10).fit(y, weights=1 - weights)
    for more, error, message in (
        ({"half_life": 0}, ValueError, "half_life must be above 0"),
        ({"half_life": "2"}, TypeError, "half_life must be a number"),
        ({"horizon_weights": [1, 2]}, ValueError, "one number for each of 4 steps"),
        ({"horizon_weights": [0, 0, 0, 0]}, ValueError, "not all 0"),
        ({"horizon_weights": [1] * 4, "strategy": "recursive"}, ValueError, "need strategy"),
    ):
        with pytest.raises(error, match=message):
            quick(**more).fit(y)


# --- ensembles


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"optimizer": "sgd", "lr": 0.1, "clip_norm": 0.05},
        {"module": "lstm", "seqsize": 9, "clip_norm": 0.05},
        {"module": "gru", "quantiles": LEVELS, "accumulate": 2},
    ],
)
def test_a_member_learns_as_if_alone(more):
    y = list(wave(60, 3))
    alone = quick(**more, dropout=0.0, validation=0, epochs=3).fit(y)
    f = quick(**more, dropout=0.0, validation=0, epochs=3, ensemble=3).fit(y)
    members = f.estimator_.model.body.members
    own, other = members[0].state_dict(), members[1].state_dict()
    for name, value in alone.estimator_.model.state_dict().items():
        torch.testing.assert_close(own[name], value, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"quantiles": LEVELS},
        {"module": "lstm"},
        {"module": "gru", "quantiles": LEVELS, "season": 6},
        {"module": "linear", "variables": "together"},
    ],
)
def test_an_ensembles_forecast_is_the_mean_of_its_members(more):
    y = wave(60, 2, noise=3).T
    x = np.random.default_rng(0).standard_normal((64, 2))
    f = quick(**more, ensemble=3).fit(y, x[:60])
    single = quick(**more).fit(y, x[:60])
    found = []
    for member in f.estimator_.model.body.members:
        one = copy.deepcopy(single)
        one.estimator_.model.load_state_dict(member.state_dict())
        found.append(one.predict(y, x))
    np.testing.assert_allclose(f.predict(y, x), np.mean(found, 0), rtol=1e-5)
    np.testing.assert_allclose(f.predict(X=x[60:]), f.predict(y, x), rtol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-3


def test_the_validation_loss_of_an_ensemble_is_that_of_its_mean():
    y = wave(80, noise=3)[0]
    f = quick(ensemble=3, validation=8).fit(y)
    assert not f.repeats_
    errors = [abs(y[n + h] - f.predict(y[:n])[h]) for n in range(69, 80) for h in range(4)
              if 72 <= n + h < 80]  # fmt: skip
    best = min(row["validation_loss"] for row in f.history_)
    assert best == pytest.approx(np.mean(errors) / y[:72].std(), rel=1e-4)


def test_recursive_ensembles_and_what_ensembles_cannot_be():
    y = wave(60)[0]
    f = quick(ensemble=2, strategy="recursive", quantiles=LEVELS, module="gru").fit(y[:50])
    assert (np.diff(f.backtest(y[50:]), axis=-1) >= 0).all()
    with pytest.raises(ValueError, match="an ensemble needs models with different weights"):
        quick(ensemble=2, module=nn.Linear(1, 4)).fit(y)
    with pytest.raises(ValueError, match="ensemble"):
        quick(ensemble=0).fit(y)
    assert isinstance(f, SequenceForecaster)


# --- together with frames and covariates


def shops(steps=60, seed=0):
    """A long frame of two series, rows in any order, with a weight and a covariate."""
    rng, days = np.random.default_rng(seed), pd.date_range("2024-01-01", periods=steps)
    frames = [
        pd.DataFrame({"unique_id": shop, "ds": days, "y": np.exp(wave(steps, seed=n)[0]),
                      "w": rng.random(steps), "price": rng.random(steps)})
        for n, shop in enumerate(("south", "north"))
    ]  # fmt: skip
    return pd.concat(frames).sample(frac=1, random_state=seed)


@pytest.mark.parametrize("polars", [False, True])
def test_a_column_of_a_long_frame_is_its_weights(polars):
    frame = shops()
    series = {key: one.set_index("ds").sort_index() for key, one in frame.groupby("unique_id")}
    arrays = {key: one[["y"]].to_numpy() for key, one in series.items()}
    more = {"callbacks": [Weights()], "season": None}
    plain = quick(**more).fit(
        [arrays["north"], arrays["south"]],
        [series[key][["price"]].to_numpy() for key in ("north", "south")],
        weights=[series[key]["w"].to_numpy() for key in ("north", "south")],
    )
    given = pl.from_pandas(frame) if polars else frame
    assert_same_training(quick(**more).fit(given, weights="w"), plain)
    by_id = {key: one["y"] for key, one in series.items()}
    price = {key: one[["price"]] for key, one in series.items()}
    weights = {"south": series["south"]["w"], "north": series["north"]["w"]}
    assert_same_training(quick(**more).fit(by_id, price, weights=weights), plain)
    of_series = quick(**more).fit(frame.drop(columns="w"), weights={"south": 3.0, "north": 1.0})
    again = quick(**more).fit(by_id, price, weights=pd.Series({"north": 1.0, "south": 3.0}))
    assert_same_training(of_series, again)


def test_weights_of_frames_that_could_be_anothers_are_refused():
    frame = shops()
    rest = frame.drop(columns="w")
    for weights, message in (
        ([3.0, 1.0], "y has ids, so weights must be a dictionary"),
        (np.ones((2, 60)), "y has ids, so weights must be a dictionary"),
    ):
        with pytest.raises(TypeError, match=message):
            quick().fit(rest, weights=weights)
    for weights, message in (
        ({"south": 1.0}, "only one of them has 'north'"),
        ("y", "must name a separate column of y"),
        ("weight", "must name a separate column of y"),
    ):
        with pytest.raises(ValueError, match=message):
            quick().fit(rest, weights=weights)
    with pytest.raises(TypeError, match="y is not a long frame"):
        quick().fit(wave(40)[0], weights="w")


def test_gaps_of_frames_need_no_weights():
    frame = shops().drop(columns="price")
    holes = frame["ds"].isin(pd.to_datetime(["2024-01-05", "2024-02-01"]))
    missing = frame.assign(y=frame["y"].mask(holes))
    f = quick(callbacks=[Weights()]).fit(frame[~holes], weights="w")
    assert_same_training(f, quick(callbacks=[Weights()]).fit(missing, weights="w"))


def test_all_of_it_at_once():
    """Backtests equal predictions, with every kind of covariate, in an ensemble."""
    frame, later = shops(100), shops(100)
    static = pd.DataFrame({"size": [1.0, 2.0]}, index=["north", "south"])
    cut = pd.Timestamp("2024-03-20")
    frame, later = frame[frame["ds"] <= cut], later[later["ds"] > cut].drop(columns="w")
    f = quick(transform="log", half_life=20, horizon_weights=[1, 1, 2, 2], ensemble=2, season=7,
              quantiles=LEVELS, conformal="adaptive", calendar=["day_of_week"], past=["price"],
              ).fit(frame, weights="w", static=static)  # fmt: skip
    found = f.backtest(later, stride=1)
    columns = ["q0.1", "q0.5", "q0.9"]
    assert (np.diff(found[columns], axis=1) >= 0).all()
    assert (found[columns] > 0).all().all()
    actual = later.set_index(["unique_id", "ds"])["y"]
    given = found.dropna().set_index(["unique_id", "ds"])["y"]
    np.testing.assert_array_equal(given, actual.loc[given.index])
    f.update(later[later["ds"] <= cut + pd.Timedelta(days=6)])
    wanted = found[found["cutoff"] == cut + pd.Timedelta(days=6)]
    np.testing.assert_allclose(f.predict()[columns], wanted[columns], rtol=1e-4)
    f.update(later[(later["ds"] == cut + pd.Timedelta(days=7)) & (later.unique_id == "north")])
    wanted = wanted[wanted["unique_id"] == "south"]  # stays where it was
    found = f.predict()[lambda t: t["unique_id"] == "south"]
    np.testing.assert_allclose(found[columns], wanted[columns], rtol=1e-4)
