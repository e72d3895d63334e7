"""Frames, ids and times in and out of `SequenceForecaster`."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from forecasting import LEVELS, quick, wave
from hypothesis import assume, given
from hypothesis import strategies as st

HORIZON, MORE = 3, 4
IDS, LENGTHS, STARTS = ("a", "b", "c"), (30, 24, 40), (0, 5, 2)
DAYS = pd.date_range("2024-02-01", periods=60)


def fast(**more):
    return quick(**{"module": "linear", "epochs": 1, "horizon": HORIZON, **more})


def panel(width=0, seed=0):
    """Return random values of each series, and of the steps that follow."""
    rng = np.random.default_rng(seed)
    more = () if not width else (width,)
    return [rng.standard_normal((n + MORE + HORIZON, *more)) for n in LENGTHS]


Y, X = panel(), panel(2, 1)


def part(arrays, begin, end):
    """Return steps of series, counted from the ends of what is learnt."""
    return [one[(n + begin if begin is not None else 0) : n + end] for one, n in
            zip(arrays, LENGTHS, strict=True)]  # fmt: skip


def stamps(times, begin, end):
    return [
        times[s + (n + begin if begin is not None else 0) : s + n + end]
        for s, n in zip(STARTS, LENGTHS, strict=True)
    ]


def long_frame(begin, end, *, covariates=False, target=True, times=DAYS, seed=None):
    """Return a long frame of steps of series, its rows and columns shuffled by a seed."""
    rows = []
    for key, y, x, when in zip(
        IDS, part(Y, begin, end), part(X, begin, end), stamps(times, begin, end), strict=True
    ):
        columns = {"unique_id": key, "ds": when}
        columns |= {"y": y} if target else {}
        columns |= {"p": x[:, 0], "q": x[:, 1]} if covariates else {}
        rows.append(pd.DataFrame(columns))
    frame = pd.concat(rows, ignore_index=True)
    if seed is None:
        return frame
    shuffled = frame.sample(frac=1, random_state=seed)
    return shuffled[np.random.default_rng(seed).permutation(shuffled.columns)]


def to_polars(frame):
    return pl.DataFrame({
        name: column.to_list() if column.dtype.kind == "O" or name == "unique_id"
        else column.to_numpy() for name, column in frame.items()
    })  # fmt: skip


def numbers(found):
    """Return forecasts ``(N, horizon)`` of any form."""
    if isinstance(found, pl.DataFrame | pd.DataFrame):
        return np.asarray(found["forecast"]).reshape(len(IDS), -1)
    found = list(found.values()) if isinstance(found, dict) else found
    return np.stack([np.asarray(one).reshape(HORIZON) for one in found])


# --- every form of input gives the same numbers


def tables(begin, end):
    return [
        pd.Series(y, when)
        for y, when in zip(part(Y, begin, end), stamps(DAYS, begin, end), strict=True)
    ]


FORMS = {
    "tables": tables,
    "dictionary": lambda begin, end: dict(zip(IDS, tables(begin, end), strict=True)),
    "dictionary of arrays": lambda begin, end: dict(zip(IDS, part(Y, begin, end), strict=True)),
    "groupby": lambda begin, end: long_frame(begin, end).set_index("ds").groupby("unique_id")["y"],
    "groupby of rows": lambda begin, end: long_frame(begin, end).groupby("unique_id"),
    "levels": lambda begin, end: (
        long_frame(begin, end).set_index(["unique_id", "ds"])["y"].groupby(level=0)
    ),
    "long": long_frame,
    "long, shuffled": lambda begin, end: long_frame(begin, end, seed=1),
    "long, categories": lambda begin, end: long_frame(begin, end, seed=1).astype(
        {"unique_id": pd.CategoricalDtype(["c", "a", "b"])}
    ),
    "long, periods": lambda begin, end: long_frame(
        begin, end, times=pd.period_range("2000-01", periods=60, freq="M"), seed=2
    ),
    "long, numbers": lambda begin, end: long_frame(
        begin, end, times=pd.Index(np.arange(7, 600, 7)), seed=3
    ),
    "long, zone": lambda begin, end: long_frame(
        begin, end, times=pd.date_range("2024-03-30", periods=60, freq="h", tz="Europe/Paris")
    ),
    "polars": lambda begin, end: to_polars(long_frame(begin, end, seed=4)),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_give_the_numbers_of_a_list_of_arrays(name):
    form = FORMS[name]
    f, g = fast().fit(form(None, 0)), fast().fit(part(Y, None, 0))
    wanted = g.predict()
    np.testing.assert_array_equal(numbers(f.predict()), wanted)
    np.testing.assert_array_equal(numbers(f.predict(form(None, 0))), g.predict(part(Y, None, 0)))
    tests, wanted = f.backtest(form(0, MORE), stride=2), g.backtest(part(Y, 0, MORE), stride=2)
    if isinstance(tests, dict):
        tests = np.stack(list(tests.values()))
    else:
        tests = np.asarray(tests["forecast"]).reshape(len(IDS), -1, HORIZON)
    np.testing.assert_array_equal(tests, wanted.swapaxes(0, 1))
    assert f.score(form(0, MORE)) == g.score(part(Y, 0, MORE))
    f.update(form(0, MORE))
    g.update(part(Y, 0, MORE))
    np.testing.assert_array_equal(numbers(f.predict()), g.predict())


@pytest.mark.parametrize("polars", [False, True])
@pytest.mark.parametrize("seed", [None, 1])
def test_other_columns_of_long_frames_are_covariates(seed, polars):
    def given(begin, end, target=True):
        frame = long_frame(begin, end, covariates=True, target=target, seed=seed)
        return to_polars(frame) if polars else frame

    f = fast().fit(given(None, 0))
    names = list(given(None, 0).columns)
    columns = [("p", "q").index(name) for name in names if name in ("p", "q")]
    x = [one[:, columns] for one in X]
    g = fast().fit(part(Y, None, 0), part(x, None, 0))
    wanted = g.predict(X=part(x, 0, HORIZON))
    np.testing.assert_array_equal(numbers(f.predict(X=given(0, HORIZON, False))), wanted)
    assert f.score(given(0, MORE)) == g.score(part(Y, 0, MORE), part(x, 0, MORE))
    f.update(given(0, MORE))
    g.update(part(Y, 0, MORE), part(x, 0, MORE))
    ahead = MORE, MORE + HORIZON
    wanted = g.predict(X=part(x, *ahead))
    np.testing.assert_array_equal(numbers(f.predict(X=given(*ahead, False))), wanted)
    found = f.predict(given(None, MORE), given(*ahead, False))
    wanted = g.predict(part(Y, None, MORE), part(x, None, MORE + HORIZON))
    np.testing.assert_array_equal(numbers(found), wanted)


def test_new_series_of_a_long_frame_are_forecast_from_their_start():
    f, g = fast().fit(long_frame(None, 0)), fast().fit(part(Y, None, 0))
    new = pd.DataFrame({"unique_id": "z", "ds": DAYS[:9], "y": Y[0][:9]})
    found = f.predict(pd.concat([long_frame(None, 0)[30:54], new]))
    assert found["unique_id"].tolist() == ["b"] * HORIZON + ["z"] * HORIZON
    assert found["ds"].tolist() == [*DAYS[29:32], *DAYS[9:12]]
    np.testing.assert_array_equal(
        found["forecast"].to_numpy().reshape(2, -1), g.predict([Y[1][:24], Y[0][:9]])
    )


# --- updates of some of the series


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"module": "segrnn", "lags": 6, "seqsize": 4},
        {"module": "gru", "num_layers": 2, "season": 5},
        {"module": "lstm", "scale": "series"},
        {"strategy": "recursive", "lags": 2},
        {"lags": 35},  # longer than series
    ],
)
@pytest.mark.parametrize("width", [1, 2])
def test_series_are_updated_by_different_numbers_of_steps(options, width):
    y = [one.reshape(len(one), 1) * np.linspace(1, 2, width) for one in panel(seed=5)]

    def frames(steps):
        return {
            key: pd.DataFrame(one[n : n + count], DAYS[s + n : s + n + count])
            for key, one, n, s, count in zip(IDS, y, LENGTHS, STARTS, steps, strict=True)
            if count
        }

    known = {
        key: pd.DataFrame(one[:n], DAYS[s : s + n])
        for key, one, n, s in zip(IDS, y, LENGTHS, STARTS, strict=True)
    }
    f = fast(**options).fit(known)
    alone = {key: fast(**options).fit(known) for key in IDS}
    f.update(frames((3, 0, 1)))
    for key, count in (("a", 3), ("c", 1)):  # equally many of all
        alone[key].update(frames((count, count, count)))
    found = f.predict()
    for key in IDS:
        wanted = alone[key].predict()[key]
        np.testing.assert_allclose(found[key], wanted, rtol=1e-5, atol=1e-6)
        assert found[key].index.equals(wanted.index)


def test_updates_of_long_frames_go_by_id():
    f = fast().fit(long_frame(None, 0))
    new = long_frame(0, 2)
    g = fast().fit(long_frame(None, 0)).update(new)
    f.update(new[new["unique_id"] == "c"]).update(new[new["unique_id"] != "c"][::-1])
    pd.testing.assert_frame_equal(f.predict(), g.predict())
    tests = f.backtest(long_frame(2, MORE)[::-1], stride=1)
    for key, start, steps in zip(IDS, STARTS, LENGTHS, strict=True):
        own = tests[tests["unique_id"] == key]
        end = start + steps + 2
        assert own["cutoff"].tolist() == [*[DAYS[end - 1]] * 3, *[DAYS[end]] * 3]
        assert own["ds"].tolist() == [*DAYS[end : end + 3], *DAYS[end + 1 : end + 4]]
        assert f.predict().groupby("unique_id")["ds"].first()[key] == DAYS[end]
    for wrong, match in [
        (new[:2].assign(unique_id="d"), "y has the id 'd', which none of the 3 series has"),
        (new[1:], r"y\['a'\] must have the times of the steps that follow: that of step 0 is"),
    ]:
        with pytest.raises(ValueError, match=match):
            fast().fit(long_frame(None, 0)).update(wrong)
    own = fast().fit(long_frame(None, 0)).backtest(new[2:])
    assert own["unique_id"].drop_duplicates().tolist() == ["b", "c"]
    with pytest.raises(ValueError, match="y has ids, such as 'a', but the series have none"):
        fast().fit(part(Y, None, 0)).update(new)


def test_dictionaries_go_by_key():
    def moved(arrays):
        series = dict(zip(IDS, arrays, strict=True))
        return {key: series[key] for key in "bca"}

    f = fast().fit(dict(zip(IDS, part(Y, None, 0), strict=True)), part(X, None, 0))
    g = fast().fit(part(Y, None, 0), part(X, None, 0))
    wanted = g.predict(X=part(X, 0, HORIZON))
    np.testing.assert_array_equal(numbers(f.predict(X=moved(part(X, 0, HORIZON)))), wanted)
    new = part(Y, 0, MORE), part(X, 0, MORE)
    tests = f.backtest(*map(moved, new))
    assert list(tests) == list(IDS)
    np.testing.assert_array_equal(np.stack(list(tests.values()), 1), g.backtest(*new))
    f.update(*map(moved, new))
    wanted = g.update(*new).predict(X=part(X, MORE, MORE + HORIZON))
    found = f.predict(X=moved(part(X, MORE, MORE + HORIZON)))
    np.testing.assert_array_equal(numbers(found), wanted)


def test_covariates_of_the_horizon_go_by_id_and_time():
    f = fast().fit(long_frame(None, 0, covariates=True))
    ahead = long_frame(0, HORIZON, covariates=True, target=False)
    wanted = f.predict(X=ahead)
    pd.testing.assert_frame_equal(f.predict(X=ahead[::-1]), wanted)
    for wrong, match in [
        (ahead[HORIZON:], "X lacks the series 'a'"),
        (ahead[1:], r"X\['a'\] must cover the horizon"),
        (ahead.drop(1), r"X\['a'\] has no row for 2024-03-03 00:00:00: covariates known ahead"),
        (ahead.assign(ds=ahead["ds"] + pd.Timedelta("1D")), r"X\['a'\] must have the times of the"),
        (ahead.assign(y=1.0), "X has values of the target"),
        (ahead[["unique_id", "ds"]], "X has no columns besides ids and times"),
        (None, "fit got covariates: X must cover the horizon"),
    ]:
        with pytest.raises(ValueError, match=match):
            f.predict(X=wrong)


def test_numbers_in_a_column_of_times_are_times_even_if_they_count_from_0():
    frame = long_frame(None, 0, covariates=True)[:30].assign(ds=np.arange(30))
    f = fast().fit(frame)
    with pytest.raises(ValueError, match=r"that of step 0 is 30, got 0"):
        f.update(frame[:5])
    with pytest.raises(ValueError, match=r"that of step 0 is 30, got 0"):
        f.predict(X=frame[:HORIZON].drop(columns="y"))


def test_values_and_dates_that_are_objects_as_from_sql():
    frame = long_frame(None, 0)
    values = [Decimal(str(one)) for one in frame["y"].round(6)]
    objects = frame.assign(y=values, ds=frame["ds"].dt.date)
    objects["y"] = objects["y"].astype(object).where(frame.index != 9, None)
    known = frame.assign(y=frame["y"].round(6).where(frame.index != 9))
    found, want = fast().fit(objects).predict(), fast().fit(known).predict()
    pd.testing.assert_frame_equal(found.astype({"ds": want["ds"].dtype}), want)  # in seconds


# --- what is refused


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda d: pd.concat([d, d[4:5]]), ValueError, "two rows for 2024-02-05.* of 'a'"),
        (lambda d: d.assign(ds=d["ds"].where(d.index != 7)), ValueError, "no time in row 7"),
        (lambda d: d.assign(unique_id=d["unique_id"].where(d.index != 7)), ValueError, "no id in row 7"),
        (lambda d: d.assign(ds=d["ds"].astype(str)), TypeError, "'ds' of y holds string.*to_datetime"),
        (lambda d: d.assign(y="text"), TypeError, "y must hold numbers, got .*: convert it"),
        (lambda d: d.rename(columns={"y": "z"}), ValueError, "not the target, 'y': name it by"),
        (lambda d: d[:0], ValueError, "y has no series: it is empty"),
        (lambda d: d.assign(y=d["y"].where(d.index != 40, np.inf)), ValueError, "infinite at 2024-02-16.* of 'b'"),
        (lambda d: d.assign(ds=d["ds"].where(d.index != 40, d["ds"] + pd.Timedelta("1h"))), ValueError, r"steps of y\['c'\] are 'D', but y\['b'\] has the time 2024-02-16 01:00"),
        (lambda d: pd.concat([d[:30], d[30:54:2], d[54:]]), ValueError, r"y\['b'\] are 2 times as far apart"),
        (lambda d: d.assign(unique_id=[1, "x"] * 47), TypeError, "of several types, such as 1 and 'x'"),
        (lambda d: d.set_axis(["unique_id", "ds", "ds"], axis=1), ValueError, "two columns 'ds'"),
    ],
)  # fmt: skip
def test_long_frames_that_are_wrong_are_told(change, error, match):
    with pytest.raises(error, match=match):
        fast().fit(change(long_frame(None, 0)))


def test_covariates_of_a_long_frame_are_in_it():
    frame = long_frame(None, 0)
    with pytest.raises(ValueError, match=r"y is a long frame.*X must be None"):
        fast().fit(frame, X[0])
    holes = long_frame(None, 0, covariates=True).drop(35)
    with pytest.raises(ValueError, match=r"X\['b'\] has no row for 2024-02-11"):
        fast().fit(holes)


def test_parts_of_a_groupby_whose_index_is_no_time():
    rows = pd.Series(np.zeros(40), np.sort(np.random.default_rng(0).permutation(90)[:40]) / 7)
    with pytest.raises(ValueError, match="in the place of a groupby pass"):
        fast().fit(rows.groupby(np.arange(40) % 2))


# --- gaps


def test_missing_steps_are_missing_values():
    holes = [one.copy() for one in part(Y, None, 0)]
    holes[0][[3, 4, 11]] = holes[2][7] = np.nan
    wanted = fast().fit(holes).predict()
    frame = long_frame(None, 0).drop([3, 4, 11, 54 + 7])
    found = fast().fit(frame.sample(frac=1, random_state=0)).predict()
    np.testing.assert_array_equal(numbers(found), wanted)
    found = fast().fit([one.drop(one.index[np.isnan(hole)]) for one, hole in
                        zip(tables(None, 0), holes, strict=True)]).predict()  # fmt: skip
    np.testing.assert_array_equal(numbers(found), wanted)


@pytest.mark.filterwarnings("ignore:.* is deprecated:FutureWarning")  # of names, by pandas 2
def test_a_given_frequency_says_what_is_missing():
    y = Y[0][:28]
    series = pd.Series(y[::7], DAYS[:28:7])
    assert fast().fit(series).predict().index[0] == DAYS[28]
    filled = np.full(22, np.nan)
    filled[::7] = y[::7]
    found = fast(freq="D").fit(series).predict()
    np.testing.assert_array_equal(found, fast().fit(filled).predict())
    assert found.index[0] == DAYS[22]
    frame = pd.DataFrame({"unique_id": "a", "ds": series.index, "y": series.to_numpy()})
    np.testing.assert_array_equal(fast(freq="D").fit(frame).predict()["forecast"], found)
    for freq, given_y, match in [
        ("ME", series, "freq='ME', but y has 2024-02-01 00:00:00, which does not fit it"),
        ("2D", series, "freq='2D', but y has 2024-02-08"),
        (1, series, "freq=1, but the index of y has dates"),
        ("h", series.set_axis([3, 4, 5, 6]), "freq='h', but the index of y has numbers"),
        ("M", series.to_period("W"), "freq='ME', but the periods of y are W-SUN"),
        ("ME", frame, r"freq='ME', but y\['a'\] has the time 2024-02-01"),
        ("nonsense", series, "freq is not a frequency of pandas"),
        (-1, series, "freq must go forward"),
    ]:
        with pytest.raises(ValueError, match=match):
            fast(freq=freq).fit(given_y)


def test_two_rows_of_a_panel_have_its_frequency():
    short = pd.Series([1.0, 2.0], DAYS[[0, 3]])
    found = fast().fit([short, *tables(None, 0)]).predict()
    assert found[0].index[0] == DAYS[4]
    frame = pd.DataFrame({"unique_id": "0", "ds": short.index, "y": short.to_numpy()})
    frame = pd.concat([frame, long_frame(None, 0)])
    assert fast().fit(frame).predict()["ds"][0] == DAYS[4]


def test_series_of_a_long_frame_may_start_on_other_days_of_the_week():
    weeks = [pd.date_range(start, periods=12, freq="7D") for start in ("2024-01-01", "2024-01-03")]
    frame = pd.concat(
        pd.DataFrame({"unique_id": key, "ds": when, "y": Y[0][:12]})
        for key, when in zip("ab", weeks, strict=True)
    )
    found = fast().fit(frame.drop(5)).predict()
    assert found["ds"].tolist() == [
        when[-1] + pd.Timedelta(weeks=n) for when in weeks for n in (1, 2, 3)
    ]


# --- times of results: calendars known by heart


@pytest.mark.parametrize(
    ("index", "following"),
    [
        (pd.date_range("2023-03-31", periods=12, freq="ME"), ["2024-03-31", "2024-04-30", "2024-05-31"]),
        (pd.date_range("2024-01-01", periods=12, freq="B"), ["2024-01-17", "2024-01-18", "2024-01-19"]),
        (pd.date_range("2024-01-04", periods=12, freq="B"), ["2024-01-22", "2024-01-23", "2024-01-24"]),
        (pd.date_range("2021-01-01", periods=12, freq="QS"), ["2024-01-01", "2024-04-01", "2024-07-01"]),
        (pd.date_range("2024-03-30 15:00", periods=11, freq="h", tz="Europe/Paris"),
         ["2024-03-31 03:00+02:00", "2024-03-31 04:00+02:00", "2024-03-31 05:00+02:00"]),
        (pd.date_range("2024-10-26 15:00", periods=12, freq="h", tz="Europe/Paris"),
         ["2024-10-27 02:00+01:00", "2024-10-27 03:00+01:00", "2024-10-27 04:00+01:00"]),
        (pd.date_range("2024-03-20", periods=11, tz="Europe/Paris"),
         ["2024-03-31 00:00+01:00", "2024-04-01 00:00+02:00", "2024-04-02 00:00+02:00"]),
        (pd.period_range("2023-02", periods=12, freq="M"), ["2024-02", "2024-03", "2024-04"]),
        (pd.Index(np.arange(10, 70, 5)), [70, 75, 80]),
        (pd.RangeIndex(12), [12, 13, 14]),
        (pd.Index(0.1 * np.arange(3, 15)), [1.5, 1.6, 1.7]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("given_freq", [False, True])
def test_forecasts_have_the_times_that_follow(index, following, given_freq):
    if isinstance(index, pd.DatetimeIndex) and not given_freq:
        index = pd.DatetimeIndex(list(index))
    y = pd.Series(Y[0][: len(index)], index.rename("when"), name="sales")
    f = fast(season=None).fit(y)
    found = f.predict()
    assert (found.name, found.index.name) == ("sales", "when")
    if index.dtype.kind == "f":
        np.testing.assert_allclose(found.index, following)
        return
    kind = {"M": pd.DatetimeIndex, "O": pd.DatetimeIndex}.get(index.dtype.kind, pd.Index)
    if isinstance(index, pd.PeriodIndex):
        wanted = pd.PeriodIndex(following, freq="M")
    elif getattr(index, "tz", None) is not None:
        wanted = pd.DatetimeIndex(pd.to_datetime(following, utc=True)).tz_convert(index.tz)
    else:
        wanted = kind(following)
    assert found.index.tolist() == wanted.tolist()
    whole = index.append(wanted)
    frame = pd.DataFrame({"unique_id": 7, "ds": index, "y": y.to_numpy()})
    long = fast(season=None).fit(frame).predict()
    assert long["ds"].tolist() == wanted.tolist()
    assert long["ds"].dtype == frame["ds"].dtype
    np.testing.assert_array_equal(long["forecast"], found)
    tests = fast(season=None).fit(y[:-2]).backtest(y[-2:], stride=1)
    assert tests["cutoff"].tolist() == [*[whole[-6]] * 3, *[whole[-5]] * 3]
    assert tests["ds"].tolist() == [*whole[-5:-2], *whole[-4:-1]]
    np.testing.assert_array_equal(tests["y"], [*y[-2:], np.nan, y.iloc[-1], np.nan, np.nan])


def test_a_time_of_day_that_a_clock_skips_is_the_next():
    days = pd.date_range("2024-03-15 02:30", periods=20)
    index = days.tz_localize("Europe/Paris", nonexistent="shift_forward")
    assert index[16] == pd.Timestamp("2024-03-31 03:00+02:00")
    y = pd.Series(Y[0][:20], index)
    assert fast().fit(y[:15]).predict().index.tolist() == index[15:18].tolist()
    assert fast().fit(y).predict().index[0] == pd.Timestamp("2024-04-04 02:30+02:00")


@pytest.mark.parametrize(
    "kind", ["Int64", "uint8", "float32", "int64[pyarrow]", "timestamp[us][pyarrow]", "date32[day][pyarrow]"]
)  # fmt: skip
def test_columns_of_times_may_be_of_any_type(kind):
    dates = kind.startswith(("date", "time"))
    times = pd.Series(DAYS[:24] if dates else np.arange(24)).astype(kind)
    found = fast().fit(pd.DataFrame({"unique_id": "a", "ds": times[:20], "y": Y[0][:20]})).predict()
    assert found["ds"].tolist() == (DAYS[20:23].tolist() if dates else [20, 21, 22])


def test_results_have_the_columns_of_what_came_in():
    wide = pd.DataFrame(panel(2)[0][:30], DAYS[:30], ["north", "south"])
    f = fast().fit(wide)
    assert f.predict().columns.tolist() == ["north", "south"]
    assert f.predict(wide[["south", "north"]]).columns.tolist() == ["north", "south"]
    g = fast(quantiles=LEVELS).fit(wide)
    found, names = g.predict(), ["q0.1", "q0.5", "q0.9"]
    assert found.columns.tolist() == [(v, q) for v in ("north", "south") for q in names]
    h = fast(quantiles=LEVELS).fit(wide.to_numpy())
    np.testing.assert_array_equal(found.to_numpy().reshape(HORIZON, 2, 3), h.predict())
    more = wide[:5].set_axis(DAYS[30:35])
    tests, wanted = g.backtest(more, stride=2), h.backtest(more.to_numpy(), stride=2)
    assert tests.columns.tolist() == ["variable", "ds", "cutoff", "y", *names]
    assert tests["cutoff"].unique().tolist() == [*DAYS[[29, 31, 33]]]
    for number, cutoff in enumerate(DAYS[[29, 31, 33]]):
        for k, variable in enumerate(wide.columns):
            rows = tests[(tests["cutoff"] == cutoff) & (tests["variable"] == variable)]
            np.testing.assert_array_equal(rows[names], wanted[number, :, k])
            assert rows["ds"].tolist() == pd.date_range(cutoff, periods=4)[1:].tolist()
            there = more[variable].reindex(rows["ds"])
            np.testing.assert_array_equal(rows["y"], there)
    series = fast(quantiles=LEVELS).fit(wide["north"]).predict()
    assert series.columns.tolist() == names
    several = fast().fit(tables(None, 0)).backtest(tables(0, 3))
    assert several.columns.tolist() == ["unique_id", "ds", "cutoff", "y", "forecast"]
    assert several["unique_id"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    names = {"id_col": "shop", "time_col": "day", "target_col": "sold"}
    frame = long_frame(None, 0).set_axis(list(names.values()), axis=1)
    found = fast(quantiles=LEVELS, **names).fit(frame).predict()
    assert found.columns.tolist() == ["shop", "day", "q0.1", "q0.5", "q0.9"]


def test_polars_columns_keep_their_types():
    frame = long_frame(None, 0)
    kinds = {"unique_id": pl.Enum(["a", "b", "c"]), "ds": pl.Date}
    found = fast().fit(to_polars(frame).cast(kinds)).predict()
    assert isinstance(found, pl.DataFrame)
    assert found.schema == {**kinds, "forecast": pl.Float64}
    zone = pl.Datetime("us", "Europe/Paris")
    given_y = to_polars(frame).with_columns(
        pl.col("ds").dt.cast_time_unit("us").dt.replace_time_zone("Europe/Paris")
    )
    f = fast().fit(given_y)
    assert f.predict().schema["ds"] == zone
    assert f.predict()["ds"].dt.hour().to_list() == [0] * 9
    new = to_polars(long_frame(0, 2)).with_columns(
        pl.col("ds").dt.cast_time_unit("us").dt.replace_time_zone("Europe/Paris")
    )
    tests = f.backtest(new)
    assert tests.columns == ["unique_id", "ds", "cutoff", "y", "forecast"]
    assert tests.schema["cutoff"] == zone
    assert tests["y"].is_nan().sum() == 3


# --- season


@pytest.mark.parametrize(
    ("freq", "steps", "season"),
    [
        ("15min", 250, 96), ("30min", 100, 48), ("h", 60, 24), ("D", 30, 7), ("B", 30, 5), ("W", 110, 52),
        ("MS", 30, 12), ("QE", 30, 4), ("YS", 30, None), ("MS", 20, None),
    ],
)  # fmt: skip
def test_the_season_is_that_of_the_frequency(freq, steps, season):
    y = np.random.default_rng(0).standard_normal(steps)
    series = pd.Series(y, pd.date_range("2020-01-01", periods=steps, freq=freq))
    f = fast(season="auto").fit(series)
    assert f.season_ == season
    np.testing.assert_array_equal(f.predict(), fast(season=season).fit(y).predict())
    assert fast(season="auto").fit(y).season_ is None
    assert fast(season="auto", freq=freq).fit(y).season_ == season
    assert fast(season="auto").fit(series.set_axis(range(steps))).season_ is None


# --- any index


def test_series_of_different_seasons_have_none_together():
    y = [pd.Series(one, pd.date_range("2024-01-01", periods=60, freq=freq))
         for one, freq in zip(wave(60, 2), ("h", "D"), strict=True)]  # fmt: skip
    for panel in (y, y[::-1]):
        assert quick(season="auto", epochs=1).fit(panel).season_ is None
    assert quick(season="auto", epochs=1).fit(y[:1]).season_ == 24


@given(st.data())
def test_any_index_gives_what_arrays_give_or_an_error(data):
    """Draw frequency, zone, gaps, doubles and order; the truth is built from the whole range."""
    freq = data.draw(
        st.sampled_from(["h", "15min", "D", "B", "W-TUE", "MS", "ME", "QE", "BME", "YS"])
    )
    zone = data.draw(
        st.sampled_from([None, "Europe/Paris", "America/New_York", "Australia/Lord_Howe"])
    )
    start = data.draw(st.datetimes(pd.Timestamp("1999-01-01"), pd.Timestamp("2026-01-01")))
    steps = data.draw(st.integers(14, 26))
    whole = pd.date_range(
        pd.Timestamp(start).normalize(), periods=steps + HORIZON, freq=freq, tz=zone
    )
    assume(whole.is_unique)
    y = np.random.default_rng(steps).standard_normal(steps)
    lost = data.draw(st.lists(st.integers(1, steps - 2), max_size=5, unique=True))
    kept = np.setdiff1d(np.arange(steps), lost)
    double = data.draw(st.sampled_from([False, False, False, True]))
    rows = [*kept, kept[3]] if double else list(kept)
    order = data.draw(st.permutations(rows))
    long, given_freq = data.draw(st.booleans()), data.draw(st.booleans())
    index = pd.DatetimeIndex([whole[n] for n in order])
    series = pd.Series(y[list(order)], index)
    frame = pd.DataFrame({"unique_id": "a", "ds": index, "y": series.to_numpy()})
    f = fast(freq=freq if given_freq else None)
    given_y = frame if long else series
    if double:
        with pytest.raises(ValueError, match="y has two rows for"):
            f.fit(given_y)
        return
    try:
        f.fit(given_y)
    except ValueError as error:
        assert not given_freq, error  # noqa: PT017
        assert lost
        assert "most steps" in str(error) or "no frequency" in str(error)  # noqa: PT017
        return
    found = f.predict()
    times = found["ds"].tolist() if long else found.index.tolist()
    holes = y.copy()
    holes[lost] = np.nan
    if times == whole[steps:].tolist():
        np.testing.assert_array_equal(
            found["forecast"] if long else found, fast().fit(holes).predict()
        )
    else:  # gaps at regular places: there is another frequency with fewer
        assert lost
        assert not given_freq
        assert times[0] > whole[steps - 1]
