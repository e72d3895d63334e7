"""Data as users of pandas, polars and scikit-learn have them, given to `SequenceForecaster`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from forecasting import quick

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
