"""Whatever is passed to `SequenceForecaster`: what the ordered array of it gives, or an error of ours.

A forecast of a series that is offset and scaled is the forecast, offset and scaled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anything import NONSENSE, in_file, mapped, outcome, refused_by_checks
from forecasting import quick
from hypothesis import given
from hypothesis import strategies as st

STEPS, MORE, HORIZON = 24, 6, 3


def days(steps: int, start: int = 0) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(list(pd.date_range("2024-01-01", periods=steps + start)[start:]))


def frame(v: np.ndarray, index: Any = None) -> pd.DataFrame | pd.Series:
    if v.ndim == 1:
        return pd.Series(v, index)
    return pd.DataFrame(v, index, [*"abc"[: v.shape[1]]])


# What holds one series (T,) or (T, K) that starts at a step of time, and whether it is one.
HOLDERS = {
    "array": lambda v, _: v,
    "fortran": lambda v, _: np.asfortranarray(v),
    "backwards": lambda v, _: v[::-1].copy()[::-1],
    "big endian": lambda v, _: v.astype(">f8"),
    "tensor": lambda v, _: torch.from_numpy(v),
    "list": lambda v, _: v.tolist() if v.ndim == 1 else v,
    "dataset": lambda v, _: in_file(v),
    "mapped": lambda v, _: mapped(v),
    "objects with None": lambda v, _: v,
    "frame": lambda v, _: frame(v),
    "steps": lambda v, t: frame(v, np.arange(t, t + len(v))),
    "days": lambda v, t: frame(v, days(len(v), t)),
    "months": lambda v, t: frame(v, pd.period_range("2000-01", periods=t + len(v), freq="M")[t:]),
    "years": lambda v, t: frame(v, 1900 + 5 * np.arange(t, t + len(v))),
    "shuffled days": lambda v, t: frame(v, days(len(v), t)).sample(frac=1, random_state=3),
    "last day first": lambda v, t: frame(v, days(len(v), t))[::-1],
    "nullable": lambda v, t: frame(v, days(len(v), t)).astype("Float64"),
}
FAULTS = {
    "two days": lambda v: frame(v, days(len(v))[[0, 0, *range(1, len(v) - 1)]]),
    "last year first": lambda v: frame(v, 1900 + 5 * np.arange(len(v)))[::-1],
    "two years": lambda v: frame(v, np.repeat(np.arange(len(v)), 2)[: len(v)]),
    "no time": lambda v: frame(v, [pd.NaT, *days(len(v))[1:]]),
    "text as times": lambda v: frame(v, days(len(v)).astype(str)),
    "levels": lambda v: frame(v, pd.MultiIndex.from_product([[0], range(len(v))])),
    "text": lambda v: frame(v).astype(str),
    "objects": lambda v: frame(v).astype(object),
    "column of days": lambda v: pd.DataFrame({"a": v.reshape(len(v), -1)[:, 0], "t": days(len(v))}),
    "column of text": lambda v: pd.DataFrame({"a": v.reshape(len(v), -1)[:, 0], "t": "x"}),
    "column ds": lambda v: pd.DataFrame({"ds": np.arange(len(v)), "y": v.reshape(len(v), -1)[:, 0]}),
    "infinite": lambda v: np.concatenate([v[:-1], np.full_like(v[-1:], np.inf)]),
    "all NaN": lambda v: v * np.nan,
    "empty": lambda v: v[:0],
    "empty frame": lambda v: frame(v)[:0],
    "no columns": lambda v: frame(v)[[]] if v.ndim == 2 else pd.DataFrame(index=days(len(v))),
    "one step": lambda v: v[:1],
    "four axes": lambda v: v.reshape(1, len(v), -1, 1),
    "number": lambda _: 3.0,
    "nothing": lambda _: None,
    "string": lambda _: "series",
    "dict of text": lambda v: {"a": v, "b": "text"},
    "empty dict": lambda _: {},
    "list of text": lambda _: ["a", "b"] * 12,
    "ragged": lambda v: [v, v[:, None, None]],
    "list with empty": lambda v: [v, v[:0]],
}  # fmt: skip
FAULTS |= {
    name: lambda v, name=name: NONSENSE[name](v.reshape(len(v), 1, -1))
    for name in [
        "complex",
        "text",
        "bytes",
        "dates",
        "spans",
        "records",
        "missing",
        "function",
        "set",
        "generator",
        "sparse",
        "packed",
        "meta",
    ]
}
FAULTS |= {"nested tensor": NONSENSE["nested tensor"], "empty list": NONSENSE["empty list"]}


@st.composite
def series(draw: Any) -> tuple[np.ndarray, float, float]:
    """Draw values ``(T,)`` or ``(T, K)``, of mean 0 and size 1, and what they are to be."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = (STEPS + MORE, *draw(st.sampled_from([(), (1,), (2,)])))
    v = rng.standard_normal(shape)
    kind = draw(st.sampled_from(["plain"] * 4 + ["NaN", "integers", "constant"]))
    if kind == "NaN":
        v[rng.integers(0, STEPS + MORE, 4)] = np.nan
    elif kind == "integers":
        v = np.round(v * 5)
    elif kind == "constant":
        v[:STEPS] = 0.0
    if kind == "integers":
        return v, 0.0, draw(st.sampled_from([1.0, 4.0, 2.0**-40]))
    if kind == "constant":  # which has no scale
        return v, draw(st.sampled_from([0.0, 0.1, 14.62, 1e6])), 1.0
    return (
        v,
        draw(st.sampled_from([0.0, -7.0, 1e6, 1.7e9])),
        draw(st.sampled_from([1.0, 1e-3, 1e12])),
    )


def forecasts(given: Any, more: Any, **options: Any) -> list[np.ndarray]:
    f = quick(**{"module": "linear", "horizon": HORIZON, "epochs": 1, **options}).fit(given)
    tests = f.backtest(more, stride=2)
    if isinstance(tests, pd.DataFrame):
        tests = tests["forecast"].to_numpy().reshape(MORE // 2, -1, HORIZON).swapaxes(1, 2)
        tests = tests[..., 0] if given.ndim == 1 else tests
    found = [f.predict(), f.predict(given), tests, np.float64(f.score(more))]
    return [*found, f.update(more).predict()]


@given(
    st.data(),
    series(),
    st.sampled_from([{}, {"season": 4}, {"strategy": "recursive"}, {"scale": "series"}]),
)
def test_series(drawn, given_series, options):
    """Forecasts are those of the array, whatever holds it."""
    v, offset, size = given_series
    values = v * size + offset
    past, more = values[:STEPS], values[STEPS:]
    holder = drawn.draw(st.sampled_from(list(HOLDERS)))
    make = HOLDERS[holder]
    found = forecasts(make(past, 0), make(more, STEPS), **options)
    wanted = forecasts(past, more, **options)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    z, z_more = v[:STEPS], v[STEPS:]
    unit = np.nanstd(z) or 1.0
    for one, other in zip(wanted, forecasts(z, z_more, **options), strict=True):
        assert np.isfinite(one).all()
        if one.ndim:
            bound = (1e-4 * unit + np.abs(other).max() * 1e-4) * size + 1e-12 * abs(offset)
            np.testing.assert_allclose(one, other * size + offset, rtol=0, atol=bound)


@given(st.data(), series())
def test_faults(drawn, given_series):
    """What is no series is refused, in all calls, and nothing has changed."""
    values = given_series[0]
    past, more = values[:STEPS], values[STEPS:]
    name = drawn.draw(st.sampled_from(list(FAULTS)))
    wrong = FAULTS[name](past)
    f = quick(module="linear", horizon=HORIZON, epochs=1)
    _, error = outcome(lambda: f.fit(wrong))
    assert error is not None, "y taken without a word"
    assert refused_by_checks(error, r"y(\[\d+\])?")
    f.fit(past)
    before = f.predict()
    for call in (f.predict, f.update, f.backtest, f.score):
        _, error = outcome(lambda call=call: call(wrong))
        fine = (
            name == "one step"
            or (name == "nothing" and call == f.predict)
            or (name == "all NaN" and call in (f.update, f.backtest))
        )
        if error is None:
            assert fine, f"{call.__name__} took y without a word"
            if call == f.update:
                return
        else:
            assert refused_by_checks(error, r"y(\[\d+\])?|variable"), call
    np.testing.assert_array_equal(f.predict(), before)
    f.update(more)
