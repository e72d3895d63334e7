"""Tables in `SequenceForecaster`: their times and columns are followed, or refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from forecasting import quick
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseq.sklearn import SequenceForecaster
from fastseq.sklearn.forecasting.times import Spacing, read_index, regular

STEPS, HORIZON = 30, 4
FREQUENCIES = [
    "D", "2D", "h", "30min", "B", "W-WED", "MS", "ME", "BME", "QS", "QE-FEB", "YS", "WOM-3FRI",
    *(["LWOM-FRI"] if int(pd.__version__.split(".")[0]) > 2 else []),  # which 2 cannot read
]  # fmt: skip


def fast(**more):
    return quick(**{"module": "linear", "epochs": 1, "horizon": HORIZON, **more})


def random_tables(index, seed=0):
    """Return a series, covariates for it and the horizon, and the same as arrays."""
    rng = np.random.default_rng(seed)
    y, x = rng.standard_normal((len(index), 2)), rng.standard_normal((len(index), 2))
    tables = pd.DataFrame(y, index, ["a", "b"]), pd.DataFrame(x, index, ["p", "q"])
    return *tables, y, x


def without_freq(index):
    return pd.DatetimeIndex(list(index)) if isinstance(index, pd.DatetimeIndex) else index


DAYS = without_freq(pd.date_range("2024-02-20", periods=STEPS + 2 * HORIZON))
Y, X, Y_ARRAY, X_ARRAY = random_tables(DAYS)
WANTED = fast().fit(Y_ARRAY[:STEPS], X_ARRAY[:STEPS]).predict(X=X_ARRAY[STEPS:][:HORIZON])
AHEAD = slice(STEPS, STEPS + HORIZON)


# --- rows


@pytest.mark.parametrize("order", ["forward", "back", "shuffled"])
def test_rows_are_put_into_the_order_of_time(order):
    def moved(table):
        if order == "back":
            return table[::-1]
        return table.sample(frac=1, random_state=1) if order == "shuffled" else table

    f = fast().fit(moved(Y[:STEPS]), X[:STEPS])
    np.testing.assert_array_equal(f.predict(X=moved(X[AHEAD])), WANTED)
    f = fast().fit(Y[:STEPS], moved(X[:STEPS]))
    np.testing.assert_array_equal(f.predict(X=X[AHEAD]), WANTED)
    whole = X[: STEPS + HORIZON]
    np.testing.assert_allclose(f.predict(moved(Y[:STEPS]), moved(whole)), WANTED, rtol=1e-5)
    f.update(moved(Y[AHEAD]), X[AHEAD])
    g = fast().fit(Y_ARRAY[:STEPS], X_ARRAY[:STEPS]).update(Y_ARRAY[AHEAD], X_ARRAY[AHEAD])
    later = X[STEPS + HORIZON :]
    np.testing.assert_array_equal(f.predict(X=later), g.predict(X=later.to_numpy()))


@pytest.mark.parametrize(
    ("y", "x", "match"),
    [
        (Y[::-1], X_ARRAY, "rows of y are not in the order of time, and X has no times"),
        (Y[::-1], X.reset_index(drop=True), "rows of y are not in the order of time, and X has no"),
        (Y_ARRAY, X[::-1], "rows of X are not in the order of time, and y has no times"),
        (
            Y,
            X.drop(DAYS[7]),
            "X has no row for 2024-02-27.*: covariates known ahead must have no gaps",
        ),
        (Y[::5].drop(DAYS[[5, 15, 25]]), None, "most steps of y are missing if they are 5D apart"),
        (pd.concat([Y, Y[-1:]]), None, "y has two rows for 2024-03-28"),
        (Y.set_axis(DAYS + pd.to_timedelta(np.arange(38) ** 2, "s")), None, "not equally far"),
        (Y.set_axis([pd.NaT, *DAYS[1:]]), None, "index of y has no time in row 0"),
        (Y, X.set_axis(DAYS - pd.Timedelta("364D")), "X must have the times of y: that of step 0"),
        (Y, X.set_axis(DAYS.to_period("D")), "index of X has periods, but that of y has dates"),
        (Y, X.set_axis(np.arange(3, 41)), "index of X has numbers, but that of y has dates"),
        (Y, X.tz_localize("Asia/Tokyo"), "X has the time zone Asia/Tokyo, but .* none: drop"),
        (Y.tz_localize("UTC"), X, r"X has no time zone, .* UTC: add it by tz_localize\('UTC'\)"),
        (Y_ARRAY, X.drop(DAYS[3]), "X has no row for 2024-02-23"),
        (Y_ARRAY[1:], X.drop(DAYS[3]), "X has no row for 2024-02-23"),
        ([Y, Y], [X, X.drop(DAYS[9])], r"X\[1\] has no row for 2024-02-29"),
        ([Y, Y[::-1]], [X, X_ARRAY], r"rows of y\[1\] are not .* X\[1\] has no times"),
        ([Y, Y.set_axis(DAYS + pd.Timedelta("1D"))], X, r"X must have the times of y\[1\]"),
    ],
)
def test_times_that_are_wrong_are_told(y, x, match):
    with pytest.raises(ValueError, match=match):
        fast().fit(y, x)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (DAYS.astype(str), "index of y holds string values.*to_datetime"),
        (pd.MultiIndex.from_product([[0], DAYS]), "index of y has 2 levels.*groupby"),
        (pd.CategoricalIndex(np.arange(38) % 5), "index of y holds categorical values"),
    ],
)
def test_an_index_that_is_no_time_is_refused(index, match):
    with pytest.raises(TypeError, match=match):
        fast().fit(Y.set_axis(index))


# --- what follows


def following(start, count=HORIZON):
    return random_tables(pd.date_range(DAYS[STEPS] + pd.Timedelta(days=start), periods=count))[:2]


@pytest.mark.parametrize("start", [-STEPS, -1, 0, 1, 400])
@pytest.mark.parametrize("call", ["update", "backtest", "score", "predict"])
def test_what_follows_begins_right_after(start, call):
    f = fast().fit(Y[:STEPS], X[:STEPS])
    y, x = following(start)
    calls = {"predict": lambda: f.predict(X=x)}
    run = calls.get(call, lambda: getattr(f, call)(y, x))
    if start == 0:
        run()
        return
    with pytest.raises(ValueError, match="must have the times of the steps that follow: that of"):
        run()
    if call != "predict":  # one of them alone
        with pytest.raises(ValueError, match="X must have the times of the steps that follow"):
            getattr(f, call)(y.to_numpy(), x)
        with pytest.raises(ValueError, match="y must have the times of the steps that follow"):
            getattr(f, call)(y, x.to_numpy())
    np.testing.assert_array_equal(f.predict(X=X[AHEAD]), WANTED)  # nothing has been changed


def test_updates_follow_each_other():
    f = fast().fit(Y[:STEPS])
    f.update(Y[STEPS : STEPS + 2]).update(Y_ARRAY[STEPS + 2 : STEPS + 3])  # an array has no times
    with pytest.raises(ValueError, match="that of step 0 is 2024-03-24 00:00:00, got 2024-03-25"):
        f.update(Y[STEPS + 4 :])
    f.update(Y[STEPS + 3 :].drop(DAYS[STEPS + 4]))  # a missing step is a missing value
    later = Y_ARRAY[STEPS:].copy()
    later[4] = np.nan
    wanted = fast().fit(Y_ARRAY[:STEPS]).update(later).predict()
    np.testing.assert_array_equal(f.predict(), wanted)


def test_an_index_that_counts_from_0_has_no_times():
    y = pd.DataFrame(Y_ARRAY)
    f = fast().fit(y[:STEPS])
    wanted = fast().fit(Y_ARRAY[:STEPS]).score(Y_ARRAY[STEPS:])
    assert f.score(y[STEPS:]) == f.score(y[STEPS:].reset_index(drop=True)) == wanted
    assert fast().fit(Y[:STEPS]).score(y[STEPS:].reset_index(drop=True)) == wanted
    with pytest.raises(ValueError, match="that of step 0 is 30, got 31"):
        f.update(y[STEPS + 1 :])
    with pytest.raises(ValueError, match="that of step 0 is 30, got 5"):
        f.score(y[5:])
    f.update(y[STEPS:].reset_index(drop=True))
    with pytest.raises(ValueError, match="that of step 0 is 38, got 30"):
        f.update(y[STEPS:])
    with pytest.raises(ValueError, match="index of y is not in order, 11 comes after 28"):
        fast().fit(y[:STEPS].iloc[[28, 11, 5]])
    with pytest.raises(ValueError, match="most steps of y are missing if they are 2 apart"):
        fast().fit(y.iloc[[0, 2, 6, 10, 14, 18, 22, 26]])
    with pytest.raises(ValueError, match="X must have the times of y: that of step 0 is 0, got 4"):
        fast().fit(y[:STEPS], X.reset_index()[4:][["p", "q"]][:STEPS])


def test_other_series_may_be_of_other_times_but_not_of_other_frequencies():
    f = fast().fit(Y[:STEPS], X[:STEPS])
    index = pd.date_range("1990-05-01", periods=12)
    y, x = Y[:8].set_axis(index[:8]), X[:12].set_axis(index)
    wanted = f.predict(Y_ARRAY[:8], X_ARRAY[:12])
    np.testing.assert_array_equal(f.predict(y, x), wanted)
    with pytest.raises(ValueError, match="X must have the times of y and of the horizon: that of"):
        f.predict(y, x.set_axis(index + pd.Timedelta("1D")))
    with pytest.raises(ValueError, match="X has no row for 1990-05-09"):
        f.predict(y, pd.concat([x[:8], x[8:].shift(3, freq="D")]))
    with pytest.raises(ValueError, match="steps of y are h apart, but those that fit got D"):
        f.predict(y.set_axis(pd.date_range("2020", periods=8, freq="h")), X_ARRAY[:12])
    hole = Y_ARRAY[:8].copy()
    hole[3] = np.nan
    found = f.predict(y.drop(index[3]), x)
    np.testing.assert_array_equal(found, f.predict(hole, X_ARRAY[:12]))
    with pytest.raises(ValueError, match="X must cover the steps of y and of the horizon: 12"):
        f.predict(y.drop(index[3]), X_ARRAY[:11])
    with pytest.raises(ValueError, match="steps of y are 2D apart, but those that fit got D"):
        f.predict(y[::2], X_ARRAY[:8])


# --- all kinds of times


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(FREQUENCIES),
    st.sampled_from([None, "Europe/Paris", "America/New_York"]),
    st.dates(pd.Timestamp("1990-01-01").date(), pd.Timestamp("2030-01-01").date()),
    st.integers(9, 60),
    st.data(),
)
def test_frequencies_are_found_and_gaps_filled(freq, tz, start, steps, data):
    whole = pd.date_range(start, periods=steps + 5, freq=freq, tz=tz)
    index = without_freq(whole[:steps])
    order = data.draw(st.permutations(range(steps)))
    ordered, moved = read_index(index[list(order)], "y")
    assert ordered.equals(index)
    assert moved is None or (index[list(order)][moved] == index).all()
    times, rows = regular(index, "y")
    assert rows is None
    assert (times.following(5) == whole[steps:]).all()
    assert (times.then(3).end.index == whole[steps + 2 : steps + 3]).all()
    lost = data.draw(st.lists(st.integers(1, steps - 2), max_size=steps // 4, unique=True))
    left = index.delete(lost)
    same = regular(left, "y", Spacing(times.freq))
    assert same[0].index.equals(index)
    assert same[1] is None or (index[same[1]] == left).all()
    try:
        found, rows = regular(left, "y")
    except ValueError as error:
        assert "most steps" in str(error) or "no frequency" in str(error)  # noqa: PT017
        return
    assert (found.index if rows is None else found.index[rows]).equals(left)
    if found.freq == times.freq:
        assert found.index.equals(index)
    else:  # where Fridays are missing, all others could be every second day, and so on
        assert len(found.index) <= len(index)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["dates", "periods", "numbers", "floats", "durations"]),
    st.integers(12, 40),
    st.sampled_from(["as it is", "moved", "double", "hole", "late", "early", "swapped columns"]),
    st.sampled_from(["y", "X"]),
    st.integers(0, 2**31),
)
def test_tables_give_what_ordered_arrays_give_or_an_error(kind, steps, fault, which, seed):
    rng = np.random.default_rng(seed)
    total = steps + HORIZON
    index = {
        "dates": without_freq(pd.date_range("2024-01-29", periods=total, freq="B")),
        "periods": pd.period_range("2024-01", periods=total, freq="M"),
        "numbers": pd.Index(1900 + 5 * np.arange(total)),
        "floats": pd.Index(0.1 * np.arange(3, total + 3)),
        "durations": pd.timedelta_range("1h", periods=total, freq="15min"),
    }[kind]
    y, x, y_array, x_array = random_tables(index, seed)
    tables = {"y": y.iloc[:steps], "X": x.iloc[:steps]}
    table = tables[which]
    place = int(rng.integers(1, steps - 1))
    changed = {
        "as it is": table,
        "moved": table.sample(frac=1, random_state=seed % 1000),
        "double": table.iloc[[*range(place), place - 1, *range(place, steps - 1)]],
        "hole": table.drop(index[place]),
        "late": table.set_axis(index[1 : steps + 1]),
        "early": table.set_axis(index[: steps + 1].delete(place)),
        "swapped columns": table[table.columns[::-1]],
    }
    tables[which] = changed[fault]
    alone = which == "y" and fault in ("late", "swapped columns")
    fine = fault in ("as it is", "swapped columns") or (which, fault) == ("y", "hole")
    ordered = tables[which].index.is_monotonic_increasing
    fine |= fault == "moved" and (ordered or kind not in ("numbers", "floats"))
    f = fast()
    if fine:
        f.fit(tables["y"], tables["X"])
        found, names = f.predict(X=x[steps:]), list(tables["y"].columns)
        wanted = fast().fit(y_array[:steps], x_array[:steps]).predict(X=x_array[steps:])
        if which == "y" and fault == "swapped columns":
            assert names == ["b", "a"]  # the order is that of fit
            swapped = fast().fit(y_array[:steps, ::-1], x_array[:steps])
            wanted = swapped.predict(X=x_array[steps:])
        elif which == "y" and fault == "hole":
            y_array[place] = np.nan
            wanted = fast().fit(y_array[:steps], x_array[:steps]).predict(X=x_array[steps:])
        elif which == "X" and fault == "swapped columns":
            swapped = fast().fit(y_array[:steps], x_array[:steps, ::-1])
            wanted = swapped.predict(X=x_array[steps:, ::-1])
        np.testing.assert_array_equal(found, wanted)
        return
    with pytest.raises(ValueError, match=r"has two rows|no row for|must (have|cover)|not in order"):
        f.fit(tables["y"], tables["X"])
    assert alone or not hasattr(f, "estimator_")


# --- columns


def test_columns_go_by_their_names():
    f = fast().fit(Y[:STEPS], X[:STEPS])
    swapped = Y[["b", "a"]]
    np.testing.assert_array_equal(
        f.predict(swapped[:STEPS], X[: STEPS + HORIZON]), f.predict(Y[:STEPS], X[: STEPS + HORIZON])
    )
    g = fast().fit(Y[:STEPS], X[:STEPS]).update(swapped[AHEAD], X[AHEAD][["q", "p"]])
    f.update(Y[AHEAD], X[AHEAD])
    later = X[STEPS + HORIZON :]
    np.testing.assert_array_equal(f.predict(X=later), g.predict(X=later))
    with pytest.raises(ValueError, match="the columns a, b, got a, c: y lacks 'b'; leave out 'c'"):
        f.predict(Y.rename(columns={"b": "c"}), X)
    with pytest.raises(ValueError, match="X must have the columns p, q, got p: X lacks 'q'"):
        f.predict(X=later[["p"]])
    with pytest.raises(ValueError, match="the columns p, q, got p, q, r: leave out 'r'"):
        f.predict(X=later.assign(r=1.0))
    with pytest.raises(ValueError, match="X has two columns 'p'"):
        f.predict(X=later.rename(columns={"q": "p"}))
    panel = fast().fit([Y[:STEPS], swapped[:STEPS]])
    np.testing.assert_array_equal(panel.predict()[0], panel.predict()[1])
    unnamed = fast().fit(pd.DataFrame(Y_ARRAY[:STEPS]))
    wanted = unnamed.predict(Y_ARRAY)
    np.testing.assert_array_equal(unnamed.predict(pd.DataFrame(Y_ARRAY)[[1, 0]]), wanted)
    np.testing.assert_array_equal(unnamed.predict(Y.reset_index(drop=True)), wanted)


@pytest.mark.parametrize(
    ("column", "error", "match"),
    [
        (DAYS, TypeError, r"column 'c' of y must hold numbers, got datetime64.*set_index"),
        (
            DAYS.to_period("D"),
            TypeError,
            "column 'c' of y must hold numbers, got period.*set_index",
        ),
        (
            DAYS.astype(str),
            TypeError,
            "column 'c' of y must hold numbers, got (str|object)",
        ),  # pandas 3, 2
        (pd.Series(["1"] * 37 + [None], DAYS, dtype=object), TypeError, "column 'c' of y .*object"),
        (pd.Categorical(np.arange(38) % 3), TypeError, "column 'c' of y .*category"),
        (np.zeros(38, complex), TypeError, "column 'c' of y must hold numbers, got complex"),
    ],
)
def test_columns_that_are_no_numbers_are_named(column, error, match):
    with pytest.raises(error, match=match):
        fast().fit(Y.assign(c=column))
    if column.dtype.kind == "O" and not isinstance(column, pd.PeriodIndex):
        fast().fit(Y, X.assign(c=column))  # covariates may be categories
        return
    with pytest.raises(error, match=match.replace("of y", "of X").replace("y.", "X.")):
        fast().fit(Y, X.assign(c=column))


@pytest.mark.parametrize(
    "name", ["unique_id", "ID", "store_id", "ds", "timestamp", "year", "Unnamed: 0"]
)
def test_a_column_that_names_series_or_time_is_no_variable(name):
    match = f"'{name}' of (y does not look like a variable|ids, but not|times, but not)"
    with pytest.raises(ValueError, match=match):
        fast().fit(Y.assign(**{name: np.arange(38)}))
    fast().fit(Y, X.assign(**{name: np.arange(38)}))  # covariates may be anything


def test_numbers_of_all_kinds_are_columns():
    table = pd.DataFrame({
        "i": pd.array(np.arange(38), "Int64"), "b": np.arange(38) % 7 > 3,
        "f": pd.array([None, *np.arange(37.0)], "Float64"), "u": np.arange(38, dtype="u1"),
    })  # fmt: skip
    array = np.stack(
        [np.arange(38.0), np.arange(38) % 7 > 3, [np.nan, *np.arange(37.0)], np.arange(38)], 1
    )
    np.testing.assert_array_equal(fast().fit(table).predict(), fast().fit(array).predict())


def test_the_advice_to_set_a_frequency_of_numbers_works():
    y = pd.Series(np.arange(6.0), [0, 2, 5, 8, 9, 12])
    with pytest.raises(ValueError, match=r"most steps of y are missing .* pass freq=1 if"):
        fast().fit(y)
    assert fast(freq=1).fit(y).predict().index[0] == 13
    with pytest.raises(ValueError, match="freq=2, but y has 5"):
        fast(freq=2).fit(y)


@pytest.mark.parametrize(
    ("place", "day", "late"), [(29, "2124-03-20", "2124-03-20"), (0, "1970-01-01", "2024-02-21")]
)
def test_a_mistyped_date_does_not_add_decades_of_missing_steps(place, day, late):
    times = DAYS[:30].to_series().reset_index(drop=True)
    times[place] = pd.Timestamp(day)
    with pytest.raises(ValueError, match=f"most steps of y are missing .* those before {late}"):
        fast().fit(pd.Series(np.arange(30.0), pd.DatetimeIndex(times)))
    half = pd.DatetimeIndex([*DAYS[:10], *DAYS[20:30]])
    end = fast().fit(pd.Series(np.arange(20.0), half)).predict().index[0]
    assert end == DAYS[30]


@pytest.mark.parametrize("long", [False, True])
def test_a_mistyped_date_of_later_data_is_refused(long):
    days = pd.date_range("2024-01-01", periods=100)
    y = pd.Series(np.sin(np.arange(100.0)), days)

    def form(part):
        if not long:
            return part
        return pd.DataFrame({"unique_id": "a", "ds": part.index, "y": part.to_numpy()})

    f = SequenceForecaster(3, epochs=1, random_state=0).fit(form(y[:80]))
    wrong = y[80:90].copy()
    wrong.index = [*wrong.index[:-1], pd.Timestamp("2124-03-30")]
    gap = y.iloc[[80, 99]]  # 18 days without values are not refused
    for call in (f.update, f.predict, f.backtest, f.evaluate):
        with pytest.raises(ValueError, match="2124-03-30"):
            call(form(wrong))
    assert f.update(form(gap)).predict() is not None
    free = SequenceForecaster(3, freq="D", epochs=1).fit(form(y[:80]))
    assert len(free.predict(form(wrong))) == 3  # as it was said


def test_a_mistyped_date_of_a_short_series_of_a_panel_is_refused():
    days = pd.date_range("2024-01-01", periods=400)
    panel = {"a": pd.Series(np.sin(np.arange(400.0)), days), "b": pd.Series(np.ones(20), days[:20])}
    panel["b"].index = [*days[:19], pd.Timestamp("2025-01-20")]
    for y in (panel, pd.concat(panel, names=["unique_id", "ds"]).rename("y").reset_index()):
        with pytest.raises(ValueError, match=r"y\['b'\] are missing before 2025-01-20"):
            SequenceForecaster(3, epochs=1).fit(y)
