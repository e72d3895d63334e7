"""`SequenceForecaster.save` and `load`: the same bits afterwards, and clear errors."""

from __future__ import annotations

import datetime
import pickle
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from forecasting import LEVELS, NAN, Fixed, quick, wave
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

import fastseq as fs
from fastseq import CheckpointError
from fastseq.callbacks import Schedule
from fastseq.sklearn import SequenceForecaster

CUSTOM = pd.offsets.CustomBusinessDay(holidays=["2024-01-01"])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same(f, g, y, x=None):
    """Two forecasters do the same with what follows: `y`, of 20 steps, and `x`, of 24."""

    def known(begin, end):
        return None if x is None else x[begin:end]

    def part(begin, end):
        return [one[begin:end] for one in y] if isinstance(y, list) else y[begin:end]

    def same(call):
        for a, b in zip(*map(np.atleast_1d, map(call, (f, g))), strict=True):
            np.testing.assert_array_equal(a, b)

    same(lambda one: one.predict(X=known(0, 4)))
    same(lambda one: one.predict(X=known(0, 9), horizon=9))
    same(lambda one: one.predict(part(0, 20), known(0, 24)))
    same(lambda one: one.backtest(part(0, 20), known(0, 20), stride=3))
    same(lambda one: one.evaluate(part(0, 20), known(0, 20)))
    same(lambda one: one.partial_fit(part(0, 7), known(0, 7)).predict(X=known(7, 11)))
    same(lambda one: one.update(part(7, 10), known(7, 10)).predict(X=known(10, 14)))
    same(lambda one: one.partial_fit(part(10, 20), known(10, 20)).predict(X=known(20, 24)))
    assert f.n_iter_ == g.n_iter_ == len(g.history_)
    schedules = [
        [one.state_dict() for one in each.estimator_.callbacks if isinstance(one, Schedule)]
        for each in (f, g)
    ]
    assert schedules[0] == schedules[1]


def saved(f, tmp_path, *args, **kw):
    f.save(tmp_path / "f.safetensors")
    return SequenceForecaster.load(tmp_path / "f.safetensors", *args, **kw)


@pytest.mark.parametrize(
    "kw",
    [
        {},
        {"season": 6, "quantiles": LEVELS, "variables": "together"},
        {"module": "lstm", "season": 6, "scale": "series"},
        {"module": "gru", "strategy": "recursive", "quantiles": np.array(LEVELS)},
        {"module": "mlp", "lags": 5, "scale": None, "loss": "huber", "optimizer": "rmsprop"},
        {"validation": 8, "fold": 2, "weight_decay": 0.1, "decay_biases": False},
        {
            "ensemble": 2,
            "quantiles": LEVELS,
            "conformal": "adaptive",
            "validation": 12,
            "horizon_weights": [1, 2, 0, 1],
            "module": "gru",
        },
        {"transform": "log1p", "loss": "mse", "half_life": 30, "scale": "series"},
    ],
)
@pytest.mark.parametrize("panel", [False, True])
def test_what_is_loaded_does_the_same(tmp_path, kw, panel):
    whole, x = wave(80, 4), np.random.default_rng(0).standard_normal((84, 2))
    whole[:, 40] = NAN
    if "transform" in kw:
        whole = np.abs(whole)
    if panel:
        y, later, x, after = list(whole[:, :55]), list(whole[:, 60:]), None, list(whole[:, 55:60])
        y[1] = y[1][20:]
        f = quick(**kw).fit(y).update(after)
    else:
        f = quick(**kw).fit(whole[:2, :55].T, x[:55]).update(whole[:2, 55:60].T, x[55:60])
        later, x = whole[:2, 60:].T, x[60:]
    g = saved(f, tmp_path)
    assert g.get_params().keys() == f.get_params().keys()
    assert g.history_[-1] == f.history_[-1]
    assert g.repeats_ == f.repeats_
    assert_same(f, g, later, x)
    twice = saved(g, tmp_path)
    np.testing.assert_array_equal(*(
        one.predict(X=None if x is None else x[20:24]) for one in (g, twice)
    ))  # fmt: skip


@pytest.mark.parametrize(
    "index",
    [
        pd.date_range("2024-03-20", periods=80, freq="h", tz="Europe/Berlin", name="when"),
        pd.date_range("2024-03-20", periods=80, freq="D", tz="UTC"),
        pd.date_range("2024-03-20", periods=80, freq="min", tz=datetime.timezone(
            datetime.timedelta(hours=2))),
        pd.date_range("2000-01-31", periods=80, freq="BME", unit="s"),
        pd.date_range("2000-01-17", periods=80, freq=pd.DateOffset(months=2)),
        pd.date_range("2000-01-17", periods=80, freq="WOM-3MON"),
        *[
            pd.date_range("2000-01-17", periods=80, freq=pd.offsets.LastWeekOfMonth(1, weekday=4))
        ][: int(pd.__version__.split(".")[0]) > 2],  # pandas 2 cannot read its name
        pd.date_range("2000-01-17", periods=80, freq="QE-NOV"),
        pd.bdate_range("2000-01-17", periods=80),
        pd.period_range("2000-01", periods=80, freq="Q-NOV"),
        pd.timedelta_range("1 day", periods=80, freq="90min"),
        pd.RangeIndex(100, 260, 2),
        pd.Index(0.1 * np.arange(80) + 3),
        None,
    ],
    ids=lambda index: "none" if index is None else f"{index.dtype} {getattr(index, 'freqstr', '')}",
)  # fmt: skip
def test_times_are_loaded(tmp_path, index):
    y = pd.Series(wave(80)[0], index)
    f = quick(module="linear", epochs=1).fit(y.iloc[:60])
    g = saved(f, tmp_path)
    np.testing.assert_array_equal(g.backtest(y.iloc[60:]), f.backtest(y.iloc[60:]))
    g.update(y.iloc[60:70]).update(y.iloc[70:])
    if index is not None:
        with pytest.raises(ValueError, match="must have the times of the steps that follow"):
            g.update(y.iloc[60:62])
        again = saved(g, tmp_path)
        with pytest.raises(ValueError, match="must have the times of the steps that follow"):
            again.update(y.iloc[60:62])


def test_series_with_missing_steps(tmp_path):
    y = pd.Series(wave(80)[0], pd.date_range("2024-01-01", periods=80))
    f = quick(epochs=1).fit(y.iloc[:60].drop(y.index[[20, 30]]))
    np.testing.assert_array_equal(saved(f, tmp_path).backtest(y.iloc[60:]), f.backtest(y.iloc[60:]))


def test_frequencies_without_a_name_are_told(tmp_path):
    y = pd.Series(wave(40)[0], pd.date_range("2024-01-01", periods=40, freq=CUSTOM))
    f = quick(module="linear", epochs=1).fit(y)
    with pytest.raises(TypeError, match=r"save: the frequency <CustomBusinessDay> has no name"):
        f.save(tmp_path / "f.safetensors")
    assert not list(tmp_path.iterdir())


def test_series_of_other_lengths_and_times(tmp_path):
    days = pd.date_range("2024-01-01", periods=30, freq="D", tz="Europe/Berlin")
    whole = np.random.default_rng(0).standard_normal((40, 30))
    starts = np.arange(40) % 7
    y = [pd.Series(row[n : 20 - n], days[n : 20 - n]) for n, row in zip(starts, whole, strict=True)]
    y[7] = y[7].to_numpy()
    f = quick(module="gru", epochs=1, scale="series").fit(y)
    g = saved(f, tmp_path)
    np.testing.assert_array_equal(g.predict(), f.predict())
    later = [pd.Series(row[20 - n : 25 - n], days[20 - n : 25 - n])
             for n, row in zip(starts, whole, strict=True)]  # fmt: skip
    np.testing.assert_array_equal(g.update(later).predict(), f.update(later).predict())
    later[0] = pd.Series(whole[0, 26:], days[26:])
    with pytest.raises(ValueError, match=r"y\[0\] must have the times of the steps that follow"):
        saved(g, tmp_path).update([one[-4:] for one in later])


def test_thousands_of_series(tmp_path):
    whole = np.random.default_rng(0).standard_normal((3000, 30, 1))
    f = quick(module="linear", lags=5, epochs=1, scale=None).fit(whole[:, :24])
    g = saved(f, tmp_path)
    np.testing.assert_array_equal(g.predict(), f.predict())
    later = whole[:, 24:]
    np.testing.assert_array_equal(g.update(later).predict(), f.update(later).predict())
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def shops():
    """Return a long frame with every kind of covariate, of three series that end apart, static
    covariates, and a function that cuts the frame after so many more of the last 15 steps."""
    rng, days = np.random.default_rng(0), pd.date_range("2024-01-01", periods=60)
    rows = [
        (name, days[t], wave(60, 3)[n, t], *rng.standard_normal(2), "xyz"[rng.integers(3)])
        for n, name in enumerate("cab") for t in range(3 * n, 60 - n)
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["unique_id", "ds", "y", "price", "visits", "kind"])
    frame.loc[[5, 17], ["y", "visits"]] = NAN
    static = pd.DataFrame({"size": [1.0, 2, 3], "type": ["u", "v", "u"]}, list("abc"))
    last = frame["unique_id"].map({name: days[44 - n] for n, name in enumerate("cab")})

    def cut(steps):
        known = frame["ds"] <= last + pd.Timedelta(days=steps)
        return frame[known].sample(frac=1, random_state=0), frame[~known]

    return cut, static


def test_long_frames_with_all_covariates(tmp_path, shops):
    cut, static = shops
    before, later = cut(0)
    f = quick(past=["visits"], calendar=True, scale="series").fit(before, static=static)
    g = saved(f, tmp_path)
    for call in (lambda one: one.backtest(later), lambda one: one.evaluate(later, per_series=True)):
        pd.testing.assert_frame_equal(call(f), call(g))
    assert f.evaluate(later, per_series=True).index[0] == ("a", "SequenceForecaster")
    found = f.backtest(later, stride=5, refit=1)
    for steps in (5, 10):
        whole, rest = cut(steps)
        one = clone(f).fit(whole, static=static)
        ahead = rest.groupby("unique_id").head(4)
        wanted = one.predict(X=ahead.drop(columns=["y", "visits"]))
        own = found.merge(wanted, on=["unique_id", "ds"])
        ends = whole.groupby("unique_id")["ds"].max()
        own = own[own["cutoff"] == own["unique_id"].map(ends)]
        assert len(own) == 12
        np.testing.assert_array_equal(own["forecast_x"], own["forecast_y"])
    some = later[later["unique_id"] != "b"].groupby("unique_id").head(3).iloc[:-1]
    rest = later.drop(some.index)
    for one in (f, g):
        one.partial_fit(some).update(rest.groupby("unique_id").head(2))
    rest = rest.drop(rest.groupby("unique_id").head(2).index).groupby("unique_id").head(7)
    pd.testing.assert_frame_equal(*(one.evaluate(rest, per_series=True) for one in (f, g)))


# --- what is not in the file


def small(n_in, n_out, rng):
    return fs.nn.Chain(nn.GRU(n_in, 4), nn.Linear(4, n_out))


def squared(output, target, reduction):
    return nn.functional.mse_loss(output, target, reduction=reduction)


@pytest.mark.parametrize(
    "ids",
    [
        pd.CategoricalIndex(["b", "a"], categories=["c", "b", "a"], ordered=True),
        pd.CategoricalIndex([7, 3]),
        pd.DatetimeIndex(["2024-01-02", "2023-01-02"], tz="Europe/Berlin"),
        pd.PeriodIndex(["2024-02", "2023-01"], freq="M"),
        pd.TimedeltaIndex(["2h", "90s"]),
        pd.Index([7, 3], dtype="Int64"),
        pd.Index(["b", "a"], dtype="string"),
        pd.Index([2.5, True], dtype=object),
    ],
    ids=lambda ids: str(ids.dtype),
)
@pytest.mark.parametrize("long", [True, False])
def test_ids_of_any_type(tmp_path, ids, long):
    days = pd.date_range("2024-01-01", periods=50)
    frame = pd.DataFrame({
        "unique_id": ids.repeat(50), "ds": days.append(days), "y": wave(50, 2).ravel()
    })  # fmt: skip
    early, late = frame[frame["ds"] < days[40]], frame[frame["ds"] >= days[40]]
    if not long:
        early, late = (
            {key: part["y"].to_numpy() for key, part in one.groupby("unique_id", observed=True)}
            for one in (early, late)
        )
    f = quick(epochs=1).fit(early)
    g = saved(f, tmp_path)
    for call in (lambda one: one.predict(), lambda one: one.backtest(late),
                 lambda one: one.update(late).predict()):  # fmt: skip
        found, wanted = call(g), call(f)
        if long:
            pd.testing.assert_frame_equal(found, wanted)
            continue
        assert list(found) == list(wanted)
        np.testing.assert_array_equal(list(found.values()), list(wanted.values()))


def test_modules_of_ones_own_are_given(tmp_path):
    y = wave(60)[0]
    f = quick(module=small).fit(y[:40])
    path = tmp_path / "f.safetensors"
    f.save(path)
    with pytest.raises(
        ValueError, match=r"has the weights of a module of your own, .*: pass module="
    ):
        SequenceForecaster.load(path)
    with pytest.raises(CheckpointError, match=r"is from another model: body\.0\."):
        SequenceForecaster.load(path, lambda a, b, _: fs.nn.Chain(nn.GRU(a, 5), nn.Linear(5, b)))
    assert_same(f, SequenceForecaster.load(path, small), y[40:])
    one = Fixed([[0.5, 1.0]])
    f = quick(horizon=1, lags=2, module=one, epochs=1).fit(y)
    np.testing.assert_array_equal(saved(f, tmp_path, module=one).predict(), f.predict())


def test_losses_and_optimizers_of_ones_own_may_be_given(tmp_path):
    y = wave(60)[0]

    def optimizer(params, lr):
        return torch.optim.SGD(params, lr=lr, momentum=0.9)

    f = quick(loss=squared, optimizer=optimizer, random_state=np.random.RandomState(0)).fit(y[:40])
    alone = saved(f, tmp_path)
    np.testing.assert_array_equal(alone.predict(), f.predict())
    with pytest.raises(ValueError, match="pass optimizer= to load"):
        alone.partial_fit(y[40:])
    with pytest.raises(ValueError, match="pass loss= to load"):
        saved(f, tmp_path, optimizer=optimizer).partial_fit(y[40:])
    with pytest.raises(CheckpointError, match="with the optimizer SGD, not Adam"):
        saved(f, tmp_path, optimizer=torch.optim.Adam)
    assert_same(f, saved(f, tmp_path, loss=squared, optimizer=optimizer), y[40:])


def test_other_parameters_are_given_or_changed_later(tmp_path):
    f = quick(callbacks=[fs.callbacks.Callback()], device="cpu").fit(wave(40)[0])
    g = saved(f, tmp_path, device="cpu", callbacks=[fs.callbacks.NumberSinceBest(3)])
    assert len(g.callbacks) == 1
    assert saved(f, tmp_path).callbacks == ()
    with pytest.raises(ValueError, match=r"has horizon=4; change it .* by set_params"):
        saved(f, tmp_path, horizon=3)
    with pytest.raises(ValueError, match=r"has module='segrnn'"):
        saved(f, tmp_path, "lstm")
    with pytest.raises(TypeError, match="SequenceForecaster has no parameter horizons"):
        saved(f, tmp_path, horizons=3)
    np.testing.assert_array_equal(clone(g).fit(wave(40)[0]).predict(), f.predict())
    with pytest.raises(ValueError, match="needs the training data"):
        g.backtest(wave(10)[0], refit=1)


def test_a_warm_start_goes_on(tmp_path):
    y = wave(60)[0]
    f = quick(warm_start=True, epochs=3, validation=0).fit(y)
    g = saved(f, tmp_path)
    for one in (f, g):
        one.set_params(epochs=5).fit(y)
        assert one.continued_
    np.testing.assert_array_equal(f.predict(), g.predict())


class Named(NamedTuple):
    last: torch.Tensor


def test_states_that_are_no_plain_tensors_are_told(tmp_path):
    class Odd(nn.Linear):
        def forward(self, x, state=None):
            return super().forward(x if state is None else x + 0 * state.last), Named(x[-1])

    f = quick(module=lambda a, b, _: Odd(a, b), epochs=1).fit(wave(40)[0])
    with pytest.raises(TypeError, match="save: the state is a Named"):
        f.save(tmp_path / "f.safetensors")


# --- files


def test_nothing_is_saved_before_fit(tmp_path):
    with pytest.raises(NotFittedError):
        quick().save(tmp_path / "f.safetensors")
    f = quick(epochs=1).fit(wave(40)[0])
    with pytest.raises(FileNotFoundError):
        f.save(tmp_path / "no" / "f.safetensors")
    with pytest.raises(IsADirectoryError):
        f.save(tmp_path)


def test_damaged_files_are_told(tmp_path):
    f = quick(epochs=1).fit(wave(40)[0])
    path = tmp_path / "f.safetensors"
    f.save(path)
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(place) % 8
        path.write_bytes(damaged)
        try:
            g = SequenceForecaster.load(path)
        except CheckpointError:
            continue
        np.testing.assert_array_equal(g.predict(), f.predict())  # a byte of padding
    for end in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            SequenceForecaster.load(path)


def test_foreign_files_are_told(tmp_path):
    path = tmp_path / "f.safetensors"
    with pytest.raises(FileNotFoundError):
        SequenceForecaster.load(path)
    est = fs.Estimator(nn.GRU(1, 1), fs.seqloss(nn.MSELoss()), torch.optim.SGD,
                       {"epochs": 1, "batchsize": 1, "seqsize": 1}, progress=False)  # fmt: skip
    est.save(path)
    with pytest.raises(CheckpointError, match=r"was not written by SequenceForecaster\.save"):
        SequenceForecaster.load(path)
    f = quick(epochs=1).fit(wave(40)[0])
    f.save(path)
    with pytest.raises(CheckpointError, match=r"was not written by Estimator\.save"):
        fs.Estimator.load(path)
    path.write_bytes(pickle.dumps(f))
    with pytest.raises(CheckpointError):
        SequenceForecaster.load(path)
