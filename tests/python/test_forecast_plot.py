"""What is drawn of forecasts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
from matplotlib.figure import Figure

from fastseq.sklearn import plot_forecast

PAST = np.arange(20.0)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_points_follow_the_past():
    ax = plot_forecast(PAST, [20.0, 21, 22], actual=[20.5, 21.5])
    assert labels(ax) == ["past", "forecast", "actual"]
    past, forecast, actual = (line.get_xydata() for line in ax.lines[:3])
    np.testing.assert_array_equal(past, np.stack([PAST, PAST], 1))
    np.testing.assert_array_equal(forecast, [[20, 20], [21, 21], [22, 22]])
    np.testing.assert_array_equal(actual, [[20, 20.5], [21, 21.5]])
    assert ax.get_xlabel() == "step"


def test_past_and_forecast_are_joined():
    ax = plot_forecast(PAST, [20.5, 21, 22], actual=[20.5])
    np.testing.assert_array_equal(ax.lines[3].get_xydata(), [[19, 19], [20, 20.5]])


DAYS = pd.date_range("2024-01-01", periods=9)
NORTH = pd.DataFrame({"unique_id": "north", "ds": DAYS, "y": np.arange(9.0), "price": 1.0})
SHOPS = pd.concat([NORTH, NORTH.assign(unique_id="south", y=NORTH["y"] + 100)])
AHEAD = SHOPS[SHOPS["ds"] >= "2024-01-07"].drop(columns=["y", "price"])


def drawn(ax):
    """Return the values of each line, by its label."""
    return {str(line.get_label()): list(line.get_ydata()) for line in ax.lines}


@pytest.mark.parametrize("values", [{"forecast": 1.0}, {"q0.1": 0.0, "q0.5": 1.0, "q0.9": 2.0}])
def test_a_series_of_long_frames(values):
    known = SHOPS[SHOPS["ds"] < "2024-01-07"]
    forecast = AHEAD.assign(**values)
    ax = plot_forecast(known[::-1], forecast[::-1], series="south", actual=SHOPS[::-1])
    label = "forecast" if len(values) == 1 else "forecast (median)"
    found = drawn(ax)
    assert found["past"] == [100, 101, 102, 103, 104, 105]
    assert (found[label], found["actual"]) == ([1, 1, 1], [106, 107, 108])
    assert list(ax.lines[1].get_xdata()) == list(DAYS[6:].to_numpy())
    # All rows may be given as the past.
    assert drawn(plot_forecast(SHOPS, forecast, series="south"))["past"] == found["past"]


def test_the_only_series_that_long_frames_have_needs_no_choice():
    forecast = AHEAD.assign(forecast=1.0)
    for args in ((NORTH, forecast), (SHOPS, forecast[:3]), (NORTH[:6], [1, 1, 1])):
        assert drawn(plot_forecast(*args))["past"] == [0, 1, 2, 3, 4, 5]
    other = {"unique_id": "shop", "ds": "day", "y": "sales"}
    columns = {"id_col": "shop", "time_col": "day", "target_col": "sales"}
    frames = [one.rename(columns=other) for one in (SHOPS, forecast)]
    assert drawn(plot_forecast(*frames, series="north", **columns))["past"] == [0, 1, 2, 3, 4, 5]


def test_long_frames_of_polars():
    frames = [pl.DataFrame(one) for one in (SHOPS, AHEAD.assign(forecast=1.0))]
    assert drawn(plot_forecast(*frames, series="south"))["forecast"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("past", "more", "match"),
    [
        (SHOPS, {}, "past and forecast have 2 series: choose one by series='north'"),
        (SHOPS, {"series": "Nort"}, "past has no series 'Nort', but .*did you mean \"north\""),
        (NORTH, {"series": "south"}, "past has no series 'south', but 'north'"),
        (NORTH.assign(unique_id="x"), {}, "past and forecast have no series in common"),
        (PAST, {}, "forecast has 2 series: choose one"),
        (NORTH.drop(columns="y"), {}, "past is a long frame without the column 'y'; name it by t"),
        (pd.concat([NORTH, NORTH]), {}, "past has two rows for 2024-01-01 00:00:00 of 'north'"),
        (NORTH[7:], {}, "past has no rows of 'north' before 2024-01-07"),
        (NORTH, {"actual": NORTH[:3]}, "actual has no values of 'north' at the times"),
    ],
)
def test_wrong_choices_of_a_series(past, more, match):
    with pytest.raises(ValueError, match=match):
        plot_forecast(past, AHEAD.assign(forecast=1.0), **more)


def test_what_is_no_long_frame_has_no_series_to_choose():
    with pytest.raises(ValueError, match="series='a' chooses from long frames, but none"):
        plot_forecast(PAST, [1.0], series="a")
    with pytest.raises(ValueError, match="long frame without the column 'forecast', nor"):
        plot_forecast(PAST, NORTH)
    with pytest.raises(ValueError, match=r"the columns price, q0\.5, but must be one series"):
        plot_forecast(PAST, NORTH[["price"]].assign(**{"q0.5": 1.0}))
    with pytest.raises(ValueError, match="past has the columns unique_id, t, y, price, but"):
        plot_forecast(NORTH.rename(columns={"ds": "t"}), [1.0])
    plot_forecast(PAST, NORTH[["y"]].rename(columns={"y": "q0.5"}))


def test_intervals_are_pairs_of_quantiles():
    found = np.full((3, 5), 20.0) + np.array([-2, -1, 0, 1, 2])
    ax = plot_forecast(PAST, found, (0.05, 0.25, 0.5, 0.75, 0.95))
    assert labels(ax) == ["past", "90 % interval", "50 % interval", "forecast (median)"]
    for band, half in zip(ax.collections, (2, 1), strict=True):
        y = band.get_paths()[0].vertices[:, 1]
        assert (y.min(), y.max()) == (20 - half, 20 + half)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [20, 20, 20])
    assert labels(plot_forecast(PAST, found[:, [0, 4]], (0.05, 0.95)))[-1] == "forecast"


@pytest.mark.parametrize(
    ("index", "last"),
    [
        (pd.date_range("2024-01-01", periods=20, freq="h"), "2024-01-01T22:00"),
        (pd.DatetimeIndex(pd.date_range("2024-01-31", periods=20, freq="ME").values), None),
        (pd.date_range("2024-01-31", periods=20, freq="ME"), "2025-11-30"),
        (pd.period_range("2024-01", periods=20, freq="M"), "2025-11-01"),
    ],
)
def test_times_of_an_index_go_on(index, last):
    ax = plot_forecast(pd.Series(PAST, index), [20.0, 21, 22])
    times = ax.lines[1].get_xdata()
    assert np.asarray(times).dtype.kind == "M"
    assert (np.diff(np.concatenate([ax.lines[0].get_xdata(), times])) > np.timedelta64(0)).all()
    if last is not None:
        assert times[-1] == np.datetime64(last)


def test_numbers_and_names_of_an_index():
    ax = plot_forecast(pd.Series(PAST, 1900 + 2 * np.arange(20)), [20.0])
    assert ax.lines[1].get_xdata().tolist() == [1940]
    ax = plot_forecast(pd.Series(PAST, [f"s{i}" for i in range(20)]), [20.0])
    assert ax.lines[1].get_xdata().tolist() == [20]


def test_it_draws_where_it_is_told(tmp_path):
    ax = Figure().add_subplot()
    assert plot_forecast(PAST, [20.0], ax=ax) is ax
    ax.figure.savefig(tmp_path / "forecast.png")
    assert (tmp_path / "forecast.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((np.zeros((3, 2)), [1.0]), r"past must be one series \(T,\), got shape \(3, 2\)"),
        ((PAST, np.zeros((3, 2))), "forecast must be"),
        ((PAST, np.zeros((3, 2)), (0.1, 0.5, 0.9)), r"shape \(horizon, 3\) for 3 quantiles"),
        ((PAST, np.zeros(3), (0.5,)), r"shape \(horizon, 1\)"),
        ((PAST, []), "no steps"),
    ],
)
def test_bad_shapes_are_told(args, match):
    with pytest.raises(ValueError, match=match):
        plot_forecast(*args)
    with pytest.raises(ValueError, match="actual must have the shape"):
        plot_forecast(PAST, [1.0], actual=[1.0, 2.0])


def test_a_table_brings_its_levels_and_times():
    days = pd.date_range("2024-01-01", periods=24, freq="MS")
    past = pd.Series(np.arange(20.0), days[:20].copy(deep=True))
    past.index.freq = None  # months are not equally long
    table = pd.DataFrame({"q0.1": np.arange(4.0), "q0.5": 1.0, "q0.9": 2.0}, days[20:])
    ax = plot_forecast(past, table)
    line = next(line for line in ax.lines if line.get_label() == "forecast (median)")
    assert list(line.get_xdata()) == list(days[20:].to_numpy())
    assert [text.get_text() for text in ax.get_legend().get_texts()][1] == "80 % interval"


def test_a_table_that_counts_from_0_follows_the_past():
    ax = plot_forecast(pd.Series(np.zeros(20)), pd.Series(np.ones(3)))
    line = next(line for line in ax.lines if line.get_label() == "forecast")
    assert list(line.get_xdata()) == [20, 21, 22]
