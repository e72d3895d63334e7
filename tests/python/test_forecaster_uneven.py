"""Panels whose series do not all go on equally, in `SequenceForecaster`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from forecasting import LEVELS, NAN, quick, wave
from sklearn.base import clone
from sklearn.metrics import r2_score
from torch import nn

from fastseq.sklearn import SequenceForecaster

IDS = ("a", "b", "c", "d")
KNOWN, MORE = 50, 20
COUNTS = (20, 7, 0, 11)  # new steps of each series
DAYS = pd.date_range("2024-01-01", periods=80)
Y = wave(80, 4)
X = np.random.default_rng(1).standard_normal((4, 80, 2))

MODELS = [
    {},
    {"quantiles": LEVELS, "conformal": "adaptive"},
    {"module": "gru", "season": 5, "scale": "series"},
    {"module": "lstm", "quantiles": LEVELS, "conformal": "adaptive"},
    {"strategy": "recursive", "quantiles": LEVELS, "module": "gru"},
]


def fitted(**kw):
    return quick(**kw).fit(list(Y[:, :KNOWN]), list(X[:, :KNOWN]))


def uneven(a, begin=KNOWN, counts=COUNTS):
    return [one[begin : begin + count] for one, count in zip(a, counts, strict=True)]


def long_frame(begin, ends, covariates=True):
    parts = []
    for n, (key, end) in enumerate(zip(IDS, ends, strict=True)):
        part = pd.DataFrame({"unique_id": key, "ds": DAYS[begin:end], "y": Y[n, begin:end]})
        if covariates:
            part[["p", "q"]] = X[n, begin:end]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


# --- backtests, evaluations, scores


@pytest.mark.parametrize("kw", MODELS)
@pytest.mark.parametrize("stride", [1, 4])
def test_a_series_that_ends_early_is_forecast_as_if_it_went_on(kw, stride):
    """Bit for bit, as long as covariates of the horizon are known: later values do not matter."""
    f = fitted(**kw)
    counts = (20, 7, 1, 11)
    found = f.backtest(uneven(Y, counts=counts), uneven(X, counts=counts), stride=stride)
    whole = f.backtest(
        list(Y[:, KNOWN : KNOWN + MORE]), list(X[:, KNOWN : KNOWN + MORE]), stride=stride
    )
    assert found.shape == whole.shape
    for n, count in enumerate(counts):
        known = len(range(0, count - 3, stride))
        np.testing.assert_allclose(found[:known, n], whole[:known, n], rtol=1e-6)
        made = len(range(0, count, stride))
        assert np.isfinite(found[:made, n]).all()
        assert np.isnan(found[made:, n]).all()


@pytest.mark.parametrize("kw", [*MODELS[:4], {"strategy": "recursive", "module": "gru"}])
def test_backtests_of_some_series_are_those_of_predict_and_update(kw):
    f = fitted(**kw)
    found = f.backtest(uneven(Y), uneven(X), stride=4)
    assert np.isnan(found[:, 2]).all()
    g = fitted(**kw)
    for number, end in enumerate(range(KNOWN, KNOWN + MORE, 4)):
        wanted = g.predict(X=list(X[:, end : end + 4]))
        for n, count in enumerate(COUNTS):
            if KNOWN + count >= end + 4:
                np.testing.assert_allclose(found[number, n], wanted[n], rtol=1e-4, atol=1e-5)
        g.update(list(Y[:, end : end + 4]), list(X[:, end : end + 4]))


@pytest.mark.parametrize("polars", [False, True])
@pytest.mark.parametrize("stride", [1, 4])
def test_long_frames_have_rows_of_what_there_is(polars, stride):
    f = fitted()
    wanted = f.backtest(uneven(Y), uneven(X), stride=stride)
    make = pl.from_pandas if polars else pd.DataFrame
    f = quick().fit(make(long_frame(0, [KNOWN] * 4)))
    new = long_frame(KNOWN, [KNOWN + count for count in COUNTS])
    found = f.backtest(make(new.sample(frac=1, random_state=0)), stride=stride)
    if polars:
        found = found.to_pandas()
    rows = [
        (key, DAYS[end + h], DAYS[end - 1], Y[n, end + h] if end + h < KNOWN + count else NAN,
         wanted[(end - KNOWN) // stride, n, h])
        for n, (key, count) in enumerate(zip(IDS, COUNTS, strict=True))
        for end in range(KNOWN, KNOWN + count, stride)
        for h in range(4)
    ]  # fmt: skip
    expected = pd.DataFrame(rows, columns=["unique_id", "ds", "cutoff", "y", "forecast"])
    for name in ("unique_id", "ds", "cutoff", "y"):
        assert found[name].tolist() == expected[name].tolist() or name == "y"
    np.testing.assert_array_equal(found["y"], expected["y"])
    np.testing.assert_allclose(found["forecast"], expected["forecast"], rtol=1e-6)


def test_each_form_has_its_result():
    early, late = Y[:, :KNOWN], uneven(Y)
    wanted = quick().fit(list(early)).backtest(late, stride=3)
    assert wanted.shape == (7, 4, 4)
    some = [key for key, count in zip(IDS, COUNTS, strict=True) if count]

    f = quick().fit(dict(zip(IDS, early, strict=True)))
    new = dict(zip(IDS, late, strict=True))
    present = {key: new[key] for key in reversed(some)}
    for given in (new, present):  # with an empty series, or without it
        found = f.backtest(given, stride=3)
        assert list(found) == some
        for n, key in enumerate(IDS):
            if key in some:
                made = ~np.isnan(wanted[:, n, 0])
                np.testing.assert_allclose(found[key], wanted[made, n], rtol=1e-6)

    def tables(a, begin):
        return [pd.Series(one, DAYS[begin : begin + len(one)]) for one in a]

    f = quick().fit(tables(early, 0))
    found = f.backtest(tables(late, KNOWN), stride=3)
    assert found["unique_id"].drop_duplicates().tolist() == [0, 1, 3]
    values = np.moveaxis(wanted, 0, 1)
    np.testing.assert_allclose(found["forecast"], values[~np.isnan(values)], rtol=1e-6)
    assert (found["ds"] > found["cutoff"]).all()

    wide = quick().fit([one[:, None] * [1, 2] for one in early])
    found = wide.backtest([one[:, None] * [1, 2] for one in late], stride=3)
    assert found.shape == (7, 4, 4, 2)
    assert (np.isnan(found[..., 1]) == np.isnan(wanted)).all()


@pytest.mark.parametrize("kw", MODELS[:3])
def test_measures_of_each_series_are_those_of_it_alone(kw):
    f = fitted(**kw)
    table = f.evaluate(uneven(Y), uneven(X), per_series=True)
    assert table.index.get_level_values("series").unique().tolist() == [0, 1, 3]
    own = f.backtest(uneven(Y), uneven(X))
    point = own[..., 1] if "quantiles" in kw else own
    for n in (0, 1, 3):
        errors = []
        for number, begin in enumerate(range(0, COUNTS[n], 4)):
            came = Y[n, KNOWN + begin : KNOWN + min(begin + 4, COUNTS[n])]
            errors += list(np.abs(point[number, n, : len(came)] - came))
        np.testing.assert_allclose(table.loc[(n, "SequenceForecaster"), "MAE"], np.mean(errors))
        assert len(errors) == COUNTS[n]
        alone = [one if i == n else one[:0] for i, one in enumerate(uneven(Y))]
        plans = [one if i == n else one[:0] for i, one in enumerate(uneven(X))]
        own_table = f.evaluate(alone, plans, per_series=True)
        pd.testing.assert_frame_equal(own_table, table.loc[[n]], rtol=1e-4)
    means = f.evaluate(uneven(Y), uneven(X))
    np.testing.assert_allclose(
        means.loc["naive"].astype(float), table.xs("naive", level="model").mean()
    )


def test_measures_of_long_frames_go_by_id():
    f = quick().fit(long_frame(0, [KNOWN] * 4))
    new = long_frame(KNOWN, [KNOWN + count for count in COUNTS])
    table = f.evaluate(new, per_series=True)
    assert table.index.get_level_values("unique_id").unique().tolist() == ["a", "b", "d"]
    wanted = fitted().evaluate(uneven(Y), uneven(X), per_series=True)
    np.testing.assert_allclose(table, wanted, rtol=1e-5)


def test_a_score_is_over_all_that_came():
    f = fitted()
    found = f.backtest(uneven(Y), uneven(X))  # (origins, N, horizon)
    pairs = [
        (Y[n, KNOWN + t], found[t // 4, n, t % 4])
        for n, count in enumerate(COUNTS) for t in range(count)
    ]  # fmt: skip
    np.testing.assert_allclose(f.score(uneven(Y), uneven(X)), r2_score(*zip(*pairs, strict=True)))


def test_nothing_new_is_told():
    f = fitted()
    empty = [one[:0] for one in Y]
    for call in (f.backtest, f.evaluate, f.score, f.update, f.partial_fit):
        with pytest.raises(ValueError, match="y has no steps that follow: each of its series is"):
            call(empty, [one[:0] for one in X])
    with pytest.raises(ValueError, match=r"X\[1\] must cover the steps of y: 7 steps, got 6"):
        f.backtest(uneven(Y), uneven(X, counts=(20, 6, 0, 11)))
    with pytest.raises(ValueError, match=r"y\[1\] holds no values"):
        f.predict([Y[0], Y[1, :0]], list(X[:2, : KNOWN + 4]))
    dated = quick().fit([pd.Series(one[:KNOWN], DAYS[:KNOWN]) for one in Y])
    late = [pd.Series(one[KNOWN:60], DAYS[KNOWN:60]) for one in Y]
    late[1], late[3] = late[1][:0], late[3][2:]
    with pytest.raises(ValueError, match=r"y\[3\] must have the times .*, add rows of NaN"):
        dated.backtest(late)
    plain = quick().fit(list(Y[:, :KNOWN]))
    gap = uneven(Y, counts=(10, 0, 10, 10))
    gap[3] = np.concatenate([[NAN, NAN], gap[3][2:]])
    np.testing.assert_allclose(dated.score(late), plain.score(gap))


@pytest.mark.parametrize("form", ["list", "dict", "long", "dated"])
def test_training_again_takes_what_each_series_has(form):
    def given(begin, ends):
        if form == "long":
            return (long_frame(begin, ends),)
        parts = [[one[begin:e] for one, e in zip(a, ends, strict=True)] for a in (Y, X)]
        if form == "dated":
            parts = [
                [make(one, DAYS[begin : begin + len(one)]) for one in part]
                for part, make in zip(parts, (pd.Series, pd.DataFrame), strict=True)
            ]
        if form == "dict":
            parts = [
                {key: one for key, one in zip(IDS, part, strict=True) if len(one)} for part in parts
            ]
        return parts

    ends = [KNOWN + count for count in COUNTS]
    f = quick(epochs=1).fit(*given(0, [KNOWN] * 4))
    found = f.backtest(*given(KNOWN, ends), stride=4, refit=2)
    for number, end in enumerate(range(KNOWN, KNOWN + MORE, 4)):
        trained = end - 4 * (number % 2)
        g = clone(f).fit(*given(0, [min(trained, e) for e in ends]))
        if end > trained:
            g.update(*given(trained, [min(end, max(trained, e)) for e in ends]))
        for n, key in enumerate(IDS):
            if end + 4 > ends[n]:
                continue  # beyond, covariates are not known
            own = found[key][number] if form == "dict" else found
            if form == "list":
                own = found[number, n]
            elif form != "dict":
                mine = (found["unique_id"] == (key if form == "long" else n)).to_numpy()
                own = found[mine & (found["cutoff"] == DAYS[end - 1])]["forecast"]
            ahead = dict.fromkeys(IDS, np.zeros((4, 2))) | {key: X[n, end : end + 4]}
            if form == "long":
                ahead = pd.concat(
                    pd.DataFrame(x, columns=["p", "q"]).assign(
                        unique_id=k, ds=pd.date_range(DAYS[min(end, e)], periods=4)
                    )
                    for (k, x), e in zip(ahead.items(), ends, strict=True)
                )
                wanted = g.predict(X=ahead)[lambda t, key=key: t["unique_id"] == key]["forecast"]
            elif form == "dict":
                wanted = g.predict(X=ahead)[key]
            else:
                wanted = g.predict(X=list(ahead.values()))[n]
            np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-5)
    if form == "list":
        np.testing.assert_array_equal(np.isnan(found[:, :, 0]), [
            [step >= count for count in COUNTS] for step in range(0, MORE, 4)
        ])  # fmt: skip
    elif form == "dict":
        assert [len(found[key]) for key in "abd"] == [5, 2, 3]
    else:
        assert len(found) == (5 + 2 + 3) * 4


# --- updates


@pytest.mark.parametrize("form", ["list", "dict"])
@pytest.mark.parametrize("kw", MODELS[:4])
def test_updates_of_some_series_do_not_depend_on_the_others(kw, form):
    """However they are cut, each series ends where it would if all had gone on together."""

    def given(counts, begins):
        parts = [
            [one[KNOWN + b : KNOWN + c] for one, b, c in zip(a, begins, counts, strict=True)]
            for a in (Y, X)
        ]
        if form == "list":
            return parts
        return [{k: one for k, one in zip(IDS, part, strict=True) if len(one)} for part in parts]

    def ahead(counts):
        plans = [X[n, KNOWN + c : KNOWN + c + 4] for n, c in enumerate(counts)]
        return plans if form == "list" else dict(zip(IDS, plans, strict=True))

    def values(found):
        return np.stack(list(found.values()) if form == "dict" else found)

    start = [[one[:KNOWN] for one in a] for a in (Y, X)]
    if form == "dict":
        start = [dict(zip(IDS, a, strict=True)) for a in start]
    f = quick(**kw).fit(*start)
    before = (0, 0, 0, 0)
    unmoved = values(f.predict(X=ahead(before)))
    for now in ((3, 0, 0, 3), (9, 7, 0, 4), COUNTS):
        f.update(*given(now, before))
        before = now
    found = values(f.predict(X=ahead(COUNTS)))
    np.testing.assert_array_equal(found[2], unmoved[2])
    g = quick(**kw).fit(*start)
    for number, end in enumerate(sorted(set(COUNTS) - {0})):
        last = sorted(set(COUNTS))[number]
        g.update(*given([end] * 4, [last] * 4))
        wanted = values(g.predict(X=ahead([end] * 4)))
        n = COUNTS.index(end)
        np.testing.assert_allclose(found[n], wanted[n], rtol=1e-4, atol=1e-5)


def test_a_state_that_series_share_needs_all_of_them():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 4)

        def forward(self, x, state=None):
            before = x.new_zeros(1) if state is None else state
            steps = before + torch.arange(len(x))
            return self.linear(x) + 0.01 * steps[:, None, None], steps[-1:] + 1

    y = list(Y[:2, :KNOWN])
    f = quick(module=Counting, batchsize=2).fit(y)
    for call in (f.update, f.backtest):
        with pytest.raises(ValueError, match="a state that all series share: y must have the same"):
            call([Y[0, KNOWN:60], Y[1, KNOWN:58]])


def test_few_steps_of_many_variables_are_not_taken_for_many_series():
    y = Y.T
    f = quick().fit(y[:KNOWN])
    assert f.backtest(y[KNOWN : KNOWN + 2]).shape == (1, 4, 4)
    f.update(y[KNOWN : KNOWN + 2])


# --- series too short to hold steps out


def held_out_errors(plain, y, held, horizon):
    """Return actual values less quantiles, ``(M, H, Q)``, in units of each series' mean change."""
    errors = []
    for one in y:
        unit = np.abs(np.diff(one[:-held])).mean()
        for end in range(len(one) - held, len(one)):
            found = plain.predict(one[:end])
            came = np.append(one, np.full(horizon, NAN))[end : end + horizon]
            errors.append((came[:, None] - found) / unit)
    return np.array(errors)


@pytest.mark.parametrize("module", ["segrnn", "gru"])
def test_short_series_get_the_shifts_of_the_others(module):
    """Which come from the held-out steps of these alone."""
    held, short = 15, Y[3, :6]
    panel = [*Y[:3, :60], short]
    kw = {"module": module, "quantiles": LEVELS, "validation": held}
    plain, f = quick(**kw).fit(panel), quick(**kw, conformal="split").fit(panel)
    errors = held_out_errors(plain, Y[:3, :60], held, 4)
    shift = np.empty((4, 3))
    for h in range(4):
        known = np.sort(errors[np.isfinite(errors[:, h, 0]), h], axis=0)
        count = len(known)
        assert count == 3 * (held - h)
        shift[h] = (
            known[int((count + 1) * 0.1) - 1, 0],
            np.median(known[:, 1]),
            known[int(np.ceil((count + 1) * 0.9)) - 1, 2],
        )
    units = [np.abs(np.diff(one[:45])).mean() for one in panel[:3]]
    units.append(np.abs(np.diff(short)).mean())
    wanted = np.sort(plain.predict() + shift * np.array(units)[:, None, None], axis=-1)
    np.testing.assert_allclose(f.predict(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conformal", ["split", "adaptive"])
def test_a_series_that_has_just_begun_changes_no_interval_of_the_others(conformal):
    kw = {"quantiles": LEVELS, "conformal": conformal, "scale": "series"}
    f = quick(**kw).fit([*Y[:3, :60], Y[3, :1]])
    g = quick(**kw).fit(list(Y[:3, :60]))
    found = f.predict()
    np.testing.assert_allclose(found[:3], g.predict(), rtol=1e-6)
    np.testing.assert_allclose(found[3], g.predict([Y[3, :1]])[0], rtol=1e-5)
    assert (np.diff(found, axis=-1) > 0).all()


@pytest.mark.parametrize(
    "kw", [{}, {"module": "gru"}, {"module": "linear", "lags": 2, "season": 2}]
)
@pytest.mark.parametrize("cut", [[1] * 9, [2, 5, 2], [9]])
def test_adaptive_shifts_of_short_series_follow_forecasts_that_were_made(kw, cut):
    """Against a loop over all forecasts that were made from each step of each series."""
    horizon, first = 6, 6 if "season" in kw else 1  # a forecast needs so many steps
    starts = (60, first + (2 if kw else 0), first + 3)
    kw = {"quantiles": LEVELS, "horizon": horizon, "validation": 20, **kw}
    panel = [one[:n] for one, n in zip(Y, starts, strict=False)]
    plain = quick(**kw).fit(panel)
    split = quick(**kw, conformal="split").fit(panel)
    f = quick(**kw, conformal="adaptive").fit(panel)
    np.testing.assert_array_equal(f.predict(), split.predict())
    correction = f._correction
    shift, spread = correction.conformal.shift[:, 0], correction.conformal.spread[:, 0]
    levels, ahead = np.array(LEVELS), np.arange(horizon)
    done = 0
    for steps in cut:
        done += steps
        new = [one[n + done - steps : n + done] for one, n in zip(Y, starts, strict=False)]
        f.update([*new[:2], new[2][:0]]).update([new[0][:0], new[1][:0], new[2]])
    for n, start in enumerate(starts):
        own, unit = shift.copy(), correction.units[n, 0]
        made = {
            end: plain.predict([Y[n, :end]])[0]
            for end in range(max(start - horizon + 1, first), start + 9)
        }
        for t in range(start, start + 9):
            moved = own.copy()
            for h in ahead:
                if t - h in made:
                    above = (Y[n, t] - made[t - h][h]) / unit > own[h]
                    moved[h] += 0.1 * spread[h] / (1 + h) * (levels - 1 + above)
            own = moved
        wanted = np.sort(plain.predict([Y[n, : start + 9]])[0] + own * unit, axis=-1)
        np.testing.assert_allclose(f.predict()[n], wanted, rtol=1e-4, atol=1e-4)
        assert n == 0 or np.abs(own - shift).max() > 0


def test_adaptive_backtests_of_short_series_are_updates(tmp_path):
    kw = {"quantiles": LEVELS, "conformal": "adaptive", "horizon": 6, "module": "gru"}
    starts = (60, 2, 50, 4)
    panel = [one[:n] for one, n in zip(Y, starts, strict=True)]
    plans = [one[:n] for one, n in zip(X, starts, strict=True)]
    f = quick(**kw).fit(panel, plans)
    f.save(tmp_path / "f.safetensors")
    g = SequenceForecaster.load(tmp_path / "f.safetensors")
    counts = (12, 12, 9, 3)

    def new(a, begin, end):
        return [
            one[n + begin : n + max(begin, min(end, count))]
            for one, n, count in zip(a, starts, counts, strict=True)
        ]

    found = f.backtest(new(Y, 0, 12), new(X, 0, 12), stride=2)
    for number, begin in enumerate(range(0, 12, 2)):
        ahead = [one[n + begin : n + begin + 6] for one, n in zip(X, starts, strict=True)]
        for n, count in enumerate(counts):
            if begin + 6 <= count:
                wanted = g.predict(X=ahead)[n]
                np.testing.assert_allclose(found[number, n], wanted, rtol=1e-4, atol=1e-5)
        g.update(new(Y, begin, begin + 2), new(X, begin, begin + 2))


def test_enough_series_must_be_long():
    kw = {"quantiles": LEVELS, "conformal": "split"}
    f = quick(**kw, epochs=1).fit([Y[0, :60], *(one[:1] for one in Y)])
    assert f._settings.validation == 15  # a quarter of the long one
    with pytest.raises(ValueError, match="conformal: 10 steps held out of 1 series have 7 forec"):
        quick(**kw, validation=10).fit([Y[0, :60], Y[1, :8]])
    means = quick(transform="log1p", loss="mse", validation=12)
    assert np.isfinite(means.fit([10 + Y[0, :60], 10 + Y[1, :3]]).predict()).all()


def test_what_short_series_hold_does_not_matter_to_validation():
    """They are trained on whole; the others' last steps are not."""
    f = quick(validation=10, lags=2).fit([Y[0, :60], Y[1, :9]])
    other = np.append(Y[0, :50], np.random.default_rng(0).standard_normal(10))
    g = quick(validation=10, lags=2).fit([other, Y[1, :9]])
    assert f.history_[-1]["loss"] == g.history_[-1]["loss"]
    h = quick(validation=10, lags=2).fit([Y[0, :60], np.append(Y[1, :8], 30)])
    assert f.history_[-1]["loss"] != h.history_[-1]["loss"]


def test_adaptive_intervals_are_trained_again_with_covariates_known_ahead():
    f = quick(epochs=1, quantiles=(0.2, 0.8), conformal="adaptive", validation=8)
    f.fit(list(Y[:, :KNOWN]), list(X[:, :KNOWN]))
    found = f.backtest(uneven(Y), uneven(X), stride=2, refit=1)
    y, x = (
        [one[: KNOWN + min(count, 2)] for one, count in zip(a, COUNTS, strict=True)] for a in (Y, X)
    )
    wanted = (
        clone(f).fit(y, x).predict(X=[x[n : n + 4] for x, n in zip(X, map(len, y), strict=True)])
    )
    long = np.array(COUNTS) >= 2 + 4
    np.testing.assert_allclose(found[1, long], np.array(wanted)[long], rtol=1e-4, atol=1e-5)
