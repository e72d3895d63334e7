"""Data as users of pandas, polars and scikit-learn have them, given to `SequenceForecaster`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from forecasting import quick
from sklearn.metrics import r2_score
from sklearn.model_selection import TimeSeriesSplit, cross_val_score

BERLIN, CAIRO = "Europe/Berlin", "Africa/Cairo"


def fast(**more):
    return quick(**{"module": "linear", "epochs": 1, "horizon": 3, **more})


def series(index, seed=0):
    values = np.random.default_rng(seed).standard_normal(len(index))
    return pd.Series(values, pd.DatetimeIndex(list(index)), name="y")


def long(y, name="a"):
    return y.rename_axis("ds").reset_index().assign(unique_id=name)


# --- few dates mean months, quarters and years, not equally many days


@pytest.mark.parametrize(
    ("dates", "following"),
    [
        (["2024-01-31", "2024-02-29"], ["2024-03-31", "2024-04-30"]),
        (["2023-02-01", "2023-03-01"], ["2023-04-01", "2023-05-01"]),
        (["2024-01-15", "2024-02-15"], ["2024-03-15", "2024-04-15"]),
        (["2024-03-31", "2024-06-30"], ["2024-09-30", "2024-12-31"]),
        (["2023-12-31", "2024-12-31"], ["2025-12-31", "2026-12-31"]),
        (["2024-05-31", "2024-06-28"], ["2024-07-31", "2024-08-30"]),  # business months
        (["2023-07-01", "2023-08-01", "2023-09-01"], ["2023-10-01", "2023-11-01"]),
        (["2024-01-01", "2024-04-01", "2024-07-01"], ["2024-10-01", "2025-01-01"]),
        (["2021-01-01", "2022-01-01", "2023-01-01", "2024-01-01"], ["2025-01-01", "2026-01-01"]),
        (["2024-01-31", "2024-02-01"], ["2024-02-02", "2024-02-03"]),
        (["2024-01-05", "2024-02-02"], ["2024-03-01", "2024-03-29"]),  # every four weeks
        (["2024-01-26", "2024-02-02"], ["2024-02-09", "2024-02-16"]),
    ],
)
@pytest.mark.parametrize("form", [lambda y: y, long])
def test_few_dates_are_read_as_a_calendar_is(dates, following, form):
    f = fast(horizon=2, strategy="recursive").fit(form(series(pd.to_datetime(dates))))
    found = f.predict()
    found = found["ds"] if isinstance(found, pd.DataFrame) else found.index
    assert list(found) == list(pd.to_datetime(following))


# --- clocks that are put forward


def clock(begin, count, zone, freq="D"):
    """Return times as clocks show them; those that clocks skip are the next there is."""
    index = pd.date_range(begin, periods=count, freq=freq)
    return index.tz_localize(zone, nonexistent="shift_forward")


@pytest.mark.parametrize("form", [lambda y: y, long])
@pytest.mark.parametrize(
    ("index", "late"),
    [
        (clock("2024-04-01", 40, CAIRO), 25),  # midnight of 26 April does not exist
        (clock("2024-03-10 02:30", 40, BERLIN), 21),  # 31 March 02:30
        (clock("2024-03-01", 20, CAIRO, "W-FRI"), 8),
        (clock("2022-10-31 02:30", 28, BERLIN, "ME"), 17),
    ],
)
def test_a_step_that_a_clock_skips_moves_no_later_step(index, late, form, tmp_path):
    assert index[late].time() != index[0].time()
    y = series(index)

    def times(found):
        return list(found["ds"] if isinstance(found, pd.DataFrame) else found.index)

    for end in range(late - 1, late + 3):  # the skipped one is ahead, the last, or behind
        f = fast().fit(form(y[:end]))
        f.save(tmp_path / "f.safetensors")
        for g in (f, type(f).load(tmp_path / "f.safetensors")):
            assert times(g.predict()) == list(index[end : end + 3])
            g.update(form(y[end : end + 1]))
            assert times(g.predict()) == list(index[end + 1 : end + 4])
            g.update(form(y[end + 1 : end + 3]))
            assert times(g.predict()) == list(index[end + 3 : end + 6])
    assert times(fast().fit(form(y[late:])).predict())[0] > index[-1]  # as the first step
    whole = fast().fit(form(y[: late - 1])).backtest(form(y[late - 1 :]), stride=1)
    assert list(whole["cutoff"].unique()) == list(index[late - 2 : -1])


@pytest.mark.parametrize("form", [lambda y: y, long])
@pytest.mark.parametrize("freq", [None, "D"])
def test_local_days_in_utc_are_told(form, freq):
    y = series(pd.date_range("2024-01-01", periods=140, tz=BERLIN))
    with pytest.raises(ValueError, match=r"changes by an hour.* tz_convert"):
        fast(freq=freq).fit(form(y.tz_convert("UTC")))


@pytest.mark.parametrize("kw", [{"calendar": True}, {"holidays": "DE"}])
def test_days_in_utc_that_begin_in_the_evening_are_warned_of(kw):
    y = series(pd.date_range("2024-01-01", periods=40, tz=BERLIN))
    with pytest.warns(UserWarning, match=r"begin at 23:00:00 in UTC.* tz_convert"):
        fast(**kw).fit(y.tz_convert("UTC"))
    fast(**kw).fit(y)
    fast(**kw).fit(y.tz_convert("UTC").shift(freq="h"))  # at midnight
    fast(**kw).fit(y.shift(freq="6h"))  # days of the gas market


@pytest.mark.parametrize("form", [lambda y: y, long])
def test_clocks_of_other_series_are_those_of_fit(form):
    y = series(pd.date_range("2024-03-28", periods=60, freq="h", tz=BERLIN))
    f = fast(calendar=["hour_of_day"]).fit(form(y))
    f.predict(form(series(pd.date_range("2024-05-01", periods=60, freq="h", tz=BERLIN))))
    for other in (y.tz_convert("UTC"), y.tz_convert("Asia/Tokyo"), y.tz_localize(None)):
        with pytest.raises(ValueError, match=r"y.* has times in .* but fit got Europe/Berlin"):
            f.predict(form(other))
    fast().fit(form(y)).predict(form(y.tz_convert("UTC")))  # no clock matters


# --- columns and their types


def panel(steps=36, **columns):
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=steps)
    rows = [pd.DataFrame({"unique_id": one, "ds": days, "y": rng.random(steps), "p": rng.random(steps)})
            for one in ("a", "b")]  # fmt: skip
    return pd.concat(rows, ignore_index=True).assign(**columns)


@pytest.mark.parametrize("polars", [False, True])
def test_a_target_that_is_missing_in_the_future_is_no_covariate(polars):
    whole = panel()
    future = whole["ds"] > "2024-02-02"
    known, ahead = whole[~future], whole[future]
    f = fast().fit(known)
    wanted = f.predict(X=ahead.drop(columns="y"))
    for missing in (np.nan, None, pd.NA):
        given = ahead.assign(y=missing)
        given = pl.DataFrame(given.drop(columns="y")).with_columns(y=None) if polars else given
        pd.testing.assert_frame_equal(f.predict(X=given), wanted)
        pd.testing.assert_frame_equal(f.predict(known, given), wanted, check_exact=False, rtol=1e-5)
    given = pl.DataFrame(ahead) if polars else ahead
    for y in (None, known):
        with pytest.raises(
            ValueError, match=r"X has values of the target, 'y'.* leave this column"
        ):
            f.predict(y, given)


def test_covariates_of_later_steps_than_the_horizon_are_ignored():
    whole = panel()
    known, ahead = whole[whole["ds"] <= "2024-01-30"], whole[whole["ds"] > "2024-01-30"]
    ahead = ahead.drop(columns="y")
    f = fast().fit(known)
    soon = ahead[ahead["ds"] <= "2024-02-02"]
    wanted = f.predict(X=soon)
    later = ahead.assign(p=ahead["p"].where(ahead["ds"] <= "2024-02-02"))  # even if unknown
    for x in (ahead, ahead[::-1], later):
        pd.testing.assert_frame_equal(f.predict(X=x), wanted)
        pd.testing.assert_frame_equal(f.predict(known, x), wanted, check_exact=False, rtol=1e-5)
    pd.testing.assert_frame_equal(f.predict(X=soon, horizon=2), f.predict(X=ahead, horizon=2))
    with pytest.raises(ValueError, match=r"X\['a'\] must have the times of the steps that follow"):
        f.predict(X=ahead[ahead["ds"] > "2024-01-31"])
    table = known[known["unique_id"] == "a"].set_index("ds")
    g = fast().fit(table["y"], table[["p"]])
    x = ahead[ahead["unique_id"] == "a"].set_index("ds")[["p"]]
    pd.testing.assert_series_equal(g.predict(X=x), g.predict(X=x[:3]))
    every = pd.concat([table[["p"]], x])
    wanted = g.predict(table["y"], every[:-3])
    pd.testing.assert_series_equal(g.predict(table["y"], every), wanted)
    short = {"a": table["y"][:-2], "b": table["y"]}
    pd.testing.assert_series_equal(
        g.predict(short, {"b": every, "a": every[:-4]})["b"], wanted, check_exact=False, rtol=1e-5
    )
    for rows in (x.to_numpy(), x.reset_index(drop=True)):  # they may be of other steps
        with pytest.raises(ValueError, match="3 steps, got 6"):
            g.predict(X=rows)


def test_a_covariate_may_have_the_name_of_the_target():
    y = {one: part.set_index("ds")["y"] for one, part in panel().groupby("unique_id")}
    f = fast().fit(y, panel().rename(columns={"y": "z", "p": "y"}))
    ahead = panel(39).rename(columns={"y": "z", "p": "y"}).query("ds > '2024-02-05'")
    found, other = f.predict(X=ahead), f.predict(X=ahead.assign(y=0.0))
    assert not found["a"].equals(other["a"])


@pytest.mark.parametrize("name", ["y", "X", "static"])
def test_frames_without_rows_yet_are_named(name):
    given = {"y": panel()[["unique_id", "ds", "y"]], "X": None, "static": None}
    more = pd.DataFrame({"unique_id": ["a", "b"], "ds": 0, "s": [1.0, 2.0]})
    f = fast()
    for frame, match in (
        (pl.DataFrame(more).lazy(), rf"{name} is a LazyFrame .* pass {name}.collect\(\)"),
        (pa.Table.from_pandas(more), rf"{name} is a table of pyarrow: pass {name}.to_pandas\(\)"),
    ):
        given = given | ({"y": [1.0, 2.0], name: frame} if name == "X" else {name: frame})
        with pytest.raises(TypeError, match=match):
            f.fit(given["y"], given["X"], static=given["static"])


def test_wide_frames_of_polars_go_by_the_names_of_columns():
    rng = np.random.default_rng(0)
    values, price = rng.random((60, 2)), rng.random(63)
    kind = np.array(["u", "v"])[rng.integers(0, 2, 63)]
    y = pl.DataFrame(values, ["a", "b"])
    x = pl.DataFrame({"price": price, "kind": kind})
    f = fast().fit(y, x[:60])
    wanted = fast().fit(pd.DataFrame(values, columns=["a", "b"]), x[:60].to_pandas())
    wanted = wanted.predict(X=x[60:].to_pandas()).to_numpy()
    np.testing.assert_array_equal(f.predict(X=x[60:]), wanted)
    np.testing.assert_array_equal(f.predict(X=x[60:][["kind", "price"]]), wanted)
    again = f.predict(y[["b", "a"]], x[["kind", "price"]])
    np.testing.assert_allclose(again, wanted, rtol=1e-5)
    with pytest.raises(TypeError, match=r"column 'day' of y holds times, but .* column of ids"):
        fast().fit(y.with_columns(day=pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 2, 29))))
    with pytest.raises(TypeError, match=r"column 'day' of y\['a'\] holds times"):
        fast().fit({"a": y.with_columns(day=pl.datetime(2024, 1, 1))})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda f: f.set_index("ds"), r"has 'ds' in its index.* pass y.reset_index\(\)"),
        (lambda f: f.set_index("unique_id"), "has 'unique_id' in its index"),
        (lambda f: f.set_index(["unique_id", "ds"]), "has 'unique_id' and 'ds' in its index"),
        (lambda f: f.set_index(["unique_id", "ds"])["y"], "has 'unique_id' and 'ds' in its index"),
        (lambda f: f.rename(columns={"ds": "day"}), "but not 'ds', that of times"),
        (lambda f: f.drop(columns="unique_id"), r"but not 'unique_id'.* times the index by set_i"),
        (
            lambda f: pl.DataFrame(f.drop(columns="unique_id")),
            "but not 'unique_id', that of ids.* add such a column",
        ),
        (lambda f: f.assign(ds=f["ds"].dt.strftime("%Y%m%d").astype(int)), 'format="%Y%m%d"'),
        (lambda f: f[:3].assign(ds=[202011, 202012, 202101]), 'format="%Y%m"'),
    ],
)  # fmt: skip
def test_frames_that_are_almost_long_are_told(change, match):
    with pytest.raises(ValueError, match=match):
        fast().fit(change(panel().drop(columns="p")))


def test_numbers_that_could_be_months_are_times():
    table = pd.DataFrame({"unique_id": "a", "ds": np.arange(200001, 200013), "y": np.arange(12.0)})
    assert fast().fit(table).predict()["ds"].tolist() == [200013, 200014, 200015]
    years = table.assign(ds=table["ds"] - 200001 + 1990)
    assert fast().fit(years).predict()["ds"].tolist() == [2002, 2003, 2004]


def test_an_index_of_arrow_is_a_time():
    days = pd.date_range("2024-01-01", periods=40)
    y = series(days)
    wanted = fast().fit(y).predict()
    for kind in ("timestamp[us][pyarrow]", "timestamp[ns][pyarrow]"):
        found = fast().fit(y.set_axis(pd.Index(days.astype(kind)))).predict()
        pd.testing.assert_series_equal(found, wanted, check_freq=False, check_index_type=False)


def test_what_is_not_a_covariate_is_named():
    f = fast().fit(panel().drop(columns="p"))
    for call in (f.update, f.predict, lambda x: f.predict(X=x.drop(columns="y"))):
        with pytest.raises(ValueError, match="fit got no covariates: leave out the columns 'p'"):
            call(panel())
    with pytest.raises(TypeError, match=r"id_col must be the name of one column.* join"):
        fast(id_col=["region", "shop"]).fit(panel())
    with pytest.raises(ValueError, match="the id '1', which none of the 2 series has, such as 1"):
        fast().fit({1: np.ones(20), 2: np.ones(20)}).update({"1": np.ones(2), "2": np.ones(2)})


def test_results_have_the_labels_of_wide_tables():
    days = pd.date_range("2024-01-01", periods=40)
    values = np.random.default_rng(0).random((40, 2))
    for columns in (
        pd.Index([2, 1]),
        pd.MultiIndex.from_tuples([("x", 1), ("z", 2)], names=["k", "n"]),
    ):
        y = pd.DataFrame(values, days, columns)
        tests = fast().fit(y[:34]).backtest(y[34:])
        assert set(tests["variable"]) == set(columns)
        first = tests[tests["cutoff"] == days[33]].set_index("ds")
        for column in columns:
            mine = first[[one == column for one in first["variable"]]]["y"]
            assert mine.tolist() == y[column][34:37].tolist()
        found = fast(quantiles=(0.1, 0.9)).fit(y).predict()
        assert found.columns.nlevels == columns.nlevels + 1
        assert list(found.columns.names) == [*columns.names, None]
        for column in columns:
            assert list(found[column].columns) == ["q0.1", "q0.9"]
    # Other series have their columns in another order: labels stay with their values.
    y = pd.DataFrame(values, days, ["a", "b"])
    f = fast().fit(y)
    pd.testing.assert_frame_equal(f.predict(y[["b", "a"]]), f.predict(y))


def test_few_dates_of_many_series_are_a_wide_table():
    values = np.random.default_rng(0).random((12, 30))
    months = pd.date_range("2024-01-01", periods=12, freq="MS")
    assert fast().fit(pd.DataFrame(values, months)).predict().shape == (3, 30)
    with pytest.raises(ValueError, match=r"for 12 series of 30 steps pass y\.T"):
        fast().fit(pd.DataFrame(values))
    assert fast().fit(pd.DataFrame(values).T).predict().shape == (3, 12)
    with pytest.raises(ValueError, match=r"for 12 series of 30 steps pass list\(y\)"):
        fast().fit(values)


# --- searches of scikit-learn


def test_rows_of_a_long_frame_are_split_by_time():
    table = panel().drop(columns="p")
    with pytest.raises(ValueError, match=r"between any rows, so pass cv=\[\(rows, later rows\)"):
        cross_val_score(fast(), table, cv=TimeSeriesSplit(2), error_score="raise")
    cuts = pd.to_datetime(["2024-01-20", "2024-01-28"])
    rows = [np.flatnonzero((table["ds"] > a) & (table["ds"] <= b))
            for a, b in ((pd.Timestamp(0), cuts[0]), (cuts[0], cuts[1]))]  # fmt: skip
    order = np.random.default_rng(0).permutation(len(table))
    mixed = [np.flatnonzero(np.isin(order, one)) for one in rows]
    wanted = fast().fit(table.iloc[rows[0]]).score(table.iloc[rows[1]])
    for given, cv in (
        (table, rows),
        (table.iloc[order], mixed),
        (pl.DataFrame(table), rows),
    ):
        found = cross_val_score(fast(), given, cv=[tuple(cv)], error_score="raise")
        assert found == pytest.approx([wanted])


@pytest.mark.parametrize(
    "index",
    [
        pd.date_range("2024-01-01", periods=60),
        pd.date_range("2024-01-01", periods=60, tz=BERLIN),
        pd.RangeIndex(60),
        pd.period_range("2024-01", periods=60, freq="M"),
    ],
)
def test_a_gap_between_splits_is_missing(index):
    y = pd.Series(np.sin(np.arange(60) / 4), index)
    cv = TimeSeriesSplit(2, gap=4, test_size=6)
    found = cross_val_score(fast(), y, cv=cv, error_score="raise")
    wanted = []
    for train, test in cv.split(y):
        f = fast().fit(y.iloc[train].to_numpy())
        values = np.concatenate([np.full(4, np.nan), y.iloc[test]])
        forecasts = []
        for step in range(0, 10, 3):
            forecasts.append(f.predict())
            f.update(values[step : step + 3])
        made = np.concatenate(forecasts)[4:10]
        wanted.append(r2_score(values[4:], made))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="the steps that follow"):  # covariates lack the gap
        cross_val_score(fast(), y, y.to_frame("x"), cv=cv, error_score="raise")


def test_a_gap_may_be_in_another_time_zone_but_not_decades_long():
    y = series(pd.date_range("2024-01-01", periods=60, freq="h", tz=BERLIN))
    f = fast().fit(y[:40])
    assert f.score(y[45:].tz_convert("UTC")) == f.score(y[45:])
    with pytest.raises(ValueError, match="steps of y are missing before"):
        f.score(y[45:].shift(freq="9000h"))
    with pytest.raises(ValueError, match="the steps that follow"):
        f.score(y[45:].shift(freq="20min"))
    with pytest.raises(ValueError, match="the steps that follow"):
        f.update(y[45:])


def test_weights_to_train_again_are_asked_for():
    y = series(pd.date_range("2024-01-01", periods=40))
    f = fast().fit(y[:34], weights=pd.Series(1.0, y.index[:34]))
    with pytest.raises(ValueError, match="with a column of weights"):
        f.backtest(y[34:], refit=1)
    table = long(y).assign(w=1.0)
    found = fast().fit(table[:34], weights="w").backtest(table[34:], refit=1)  # what it advises
    wanted = fast().fit(y[:34]).backtest(y[34:], refit=1)
    np.testing.assert_allclose(found["forecast"], wanted["forecast"], rtol=1e-5)
