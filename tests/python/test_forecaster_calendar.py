"""Features of the calendar in `SequenceForecaster`, against pandas and the package holidays."""

from __future__ import annotations

import datetime
import sys

import numpy as np
import pandas as pd
import pytest
from forecasting import quick, wave

from fastseq.sklearn import SequenceForecaster
from fastseq.sklearn.forecasting.calendar_features import FEATURES, Calendar
from fastseq.sklearn.forecasting.times import Times

STEPS = 60
SERIES = pd.Series(wave(STEPS)[0], pd.date_range("2024-02-20", periods=STEPS, tz="Europe/Berlin"))


INDICES = {
    "hours of two zones": pd.date_range("2024-03-30", periods=60, freq="h", tz="Europe/Berlin"),
    "other hours": pd.date_range("2024-03-30", periods=60, freq="h", tz="Asia/Kolkata"),
    "minutes": pd.date_range("2023-12-31 22:00", periods=50, freq="7min"),
    "days": pd.date_range("2023-12-20", periods=90),
    "months": pd.period_range("2023-11", periods=30, freq="M"),
}


@pytest.mark.parametrize("name", INDICES)
def test_features_are_what_clocks_and_calendars_show(name):
    index = INDICES[name]
    dates = index.to_timestamp() if isinstance(index, pd.PeriodIndex) else index
    calendar = Calendar(FEATURES, None)
    (found,) = calendar.rows_of_all([Times(index, index.freq)], lambda own: own.index)
    assert found.shape == (len(index), len(calendar.sizes))

    def turn(place):
        return np.sin(2 * np.pi * place), np.cos(2 * np.pi * place)

    for row, day in zip(found, dates, strict=True):
        start = day.tz_localize(None).normalize()
        hours = (day.tz_localize(None) - start) / pd.Timedelta("1h")
        year = 366 if day.is_leap_year else 365
        month = (start + pd.offsets.MonthEnd(0)).day
        wanted = [
            *turn((day.minute + day.second / 60) / 60),
            *turn(hours / 24),
            *(float(day.weekday() == d) for d in range(7)),
            1 + 24 * day.weekday() + day.hour,
            *turn((day.day - 1 + hours / 24) / month),
            *turn((day.isocalendar()[1] - 1) / 52.1775),
            *turn((int(day.strftime("%j")) - 1 + hours / 24) / year),
            *turn((day.month - 1) / 12),
            *(float((day.month - 1) // 3 == q) for q in range(4)),
        ]
        np.testing.assert_allclose(row, np.concatenate([_by_name(wanted)[f] for f in FEATURES]))


def _by_name(values):
    names = {"minute_of_hour": 2, "hour_of_day": 2, "day_of_week": 7, "hour_of_week": 1,
             "day_of_month": 2, "week_of_year": 2, "day_of_year": 2, "month": 2, "quarter": 4}  # fmt: skip
    ends = np.cumsum(list(names.values()))
    return {n: values[end - names[n] : end] for n, end in zip(names, ends, strict=True)}


@pytest.mark.parametrize(
    ("code", "free"),
    [
        ("DE", ["2023-12-25", "2023-12-26", "2024-01-01"]),
        ("DE-BY", ["2023-12-25", "2023-12-26", "2024-01-01", "2024-01-06"]),
        ("US", ["2023-12-25", "2024-01-01"]),
    ],
)
def test_holidays_are_marked_and_the_days_around_them(code, free):
    days = pd.date_range("2023-12-20", "2024-01-08", freq="12h", tz="Pacific/Auckland")
    (found,) = Calendar((), code).rows_of_all([Times(days, days.freq)], lambda own: own.index)
    known = {datetime.date.fromisoformat(day) for day in free}
    one = datetime.timedelta(days=1)
    for row, day in zip(found, days.date, strict=True):
        assert row.tolist() == [day in known, day + one in known, day - one in known]


@pytest.mark.parametrize(
    ("freq", "steps", "wanted"),
    [
        ("15min", 400, {"hour_of_day"}),
        ("h", 400, {"hour_of_day", "day_of_week", "hour_of_week"}),
        ("h", 20000, {"hour_of_day", "day_of_week", "hour_of_week", "day_of_year"}),
        ("D", 200, {"day_of_week", "day_of_month"}),
        ("D", 800, {"day_of_week", "day_of_month", "day_of_year"}),
        ("B", 600, {"day_of_week", "day_of_month", "day_of_year"}),
        ("W", 60, {"day_of_year"}),
        ("MS", 20, {"month"}),
        ("QS", 20, {"month"}),
    ],
)
def test_features_are_chosen_by_steps_and_length(freq, steps, wanted):
    index = pd.date_range("2020-01-01", periods=steps, freq=freq)
    assert set(Calendar.of(True, None, [Times(index, index.freq)]).features) == wanted


def test_a_calendar_alone_needs_no_covariates():
    hours = pd.date_range("2024-01-01", periods=24 * 20, freq="h", tz="Europe/Berlin")
    busy = (hours.day_of_week < 5) & (hours.hour >= 8) & (hours.hour < 18)
    y = pd.Series(5.0 * busy, hours)
    cut_at, errors = 24 * 15, []
    for calendar in (False, ["hour_of_week"]):
        f = SequenceForecaster(
            24, season=None, calendar=calendar, epochs=20, random_state=0, lr=0.01
        )
        found = f.fit(y[:cut_at]).backtest(y[cut_at:-12])
        errors.append((found["forecast"] - found["y"]).abs().mean())
        f.update(y[cut_at:-24])
        last = found["forecast"].iloc[-24:]  # half of it after the last step of y
        np.testing.assert_allclose(f.predict(), last, rtol=1e-4, atol=1e-4)
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize(
    ("y", "kw", "match"),
    [
        (wave(STEPS)[0], {"calendar": True}, "need dates, but y has none"),
        (list(wave(STEPS, 2)), {"calendar": ["month"]}, r"need dates, but y\[0\] has none"),
        (pd.Series(wave(STEPS)[0]), {"holidays": "DE"}, "need dates, but y has none"),
        (SERIES, {"holidays": "NARNIA"}, "a country's code, such as 'DE', got 'NARNIA'"),
        (SERIES, {"holidays": "DE-XX"}, "DE has no part 'XX', but BB, BE"),
        (SERIES, {"calendar": ["weekday"]}, 'got \'weekday\': did you mean "'),
        (SERIES, {"past": ("was",)}, r"past names columns of X, \('was',\), but X is None"),
        (SERIES, {"past": ("was",), "strategy": "recursive"}, "past needs strategy=\"direct\""),
        (
            pd.Series(wave(STEPS)[0], pd.date_range("2000", periods=STEPS, freq="W")),
            {"holidays": "DE"}, "needs steps of at most a day, got about 7 days",
        ),
        (
            pd.Series(wave(STEPS)[0], pd.date_range("1950", periods=STEPS, freq="YS")),
            {"calendar": True}, "calendar=True has no features for steps of about 365",
        ),
    ],
)  # fmt: skip
def test_calendars_that_are_wrong_are_told(y, kw, match):
    with pytest.raises(ValueError, match=match):
        quick(**kw).fit(y)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "holidays", None)
    with pytest.raises(ImportError, match="holidays='DE' needs the package holidays"):
        quick(holidays="DE").fit(SERIES)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("refit", [None, 1])
def test_features_stay_those_of_the_time_zone_of_fit(long, refit):
    hours = pd.date_range("2024-03-30 20:00", periods=60, freq="h", tz="Europe/Berlin", name="ds")
    y = pd.Series(wave(60)[0], hours, name="y")

    def of(part):
        return part.reset_index().assign(unique_id="a") if long else part

    f, g = (quick(calendar=["hour_of_day"]).fit(of(y[:50])) for _ in range(2))
    found = f.backtest(of(y[50:].tz_convert("UTC")), refit=refit)
    pd.testing.assert_frame_equal(found, g.backtest(of(y[50:]), refit=refit))
    f.update(of(y[50:56].tz_convert("UTC"))).update(of(y[56:].tz_convert("Asia/Tokyo")))
    g.update(of(y[50:]))
    found, wanted = f.predict(), g.predict()
    check = pd.testing.assert_frame_equal if long else pd.testing.assert_series_equal
    check(found, wanted, check_exact=False, rtol=1e-6)
    dates = found["ds"].dt if long else found.index
    assert str(dates.tz) == "Europe/Berlin"
