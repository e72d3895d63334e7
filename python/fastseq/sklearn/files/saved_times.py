"""Times of series as plain values, which a file can hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..forecasting.times import Times

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["index_of", "times_from", "times_state"]


def times_state(times: Sequence[Times | None]) -> dict[str, Any]:
    """Return the last time of each series, None where there is none, as plain values.

    Raises
    ------
    TypeError
        A frequency or a time zone has no name by which pandas finds it again.

    Examples
    --------
    >>> import pandas as pd
    >>> days = pd.date_range("2024-01-01", periods=3, tz="Europe/Berlin")
    >>> ends = [Times(days, days.freq).end, None]
    >>> times_from(times_state(ends))[0].following(1)[0]
    Timestamp('2024-01-04 00:00:00+0100', tz='Europe/Berlin')
    """
    kinds: dict[tuple[Any, ...], int] = {}
    texts: dict[Any, str] = {}  # of frequencies
    which = np.full(len(times), -1, np.int64)
    values: list[list[Any]] = []
    for number, one in enumerate(times):
        if one is None:
            continue
        if (type(one.freq), one.freq) not in texts:
            texts[type(one.freq), one.freq] = json.dumps(_freq_state(one.freq))
        index = one.index[-1:]
        clock = None if one.clock is None else str(one.clock)
        key = str(index.dtype), index.name, texts[type(one.freq), one.freq], clock
        if key not in kinds:
            kinds[key] = len(kinds)
            values.append([])
        which[number] = kinds[key]
        values[kinds[key]].append((index.asi8 if hasattr(index, "asi8") else index.to_numpy())[0])
    state = {
        "which": which, "kinds": [list(key) for key in kinds],
        "values": [np.array(own) for own in values],
    }  # fmt: skip
    for number, (one, again) in enumerate(zip(times, times_from(state), strict=True)):
        if one is not None and (
            again is None
            or again.index.dtype != one.index.dtype
            or not again.index.equals(one.index[-1:])
            or again.clock != one.clock
        ):
            raise TypeError(
                f"the time {one.index[-1]!r} of series {number} would not be read back as it is"
            )
    return state


def times_from(state: Mapping[str, Any]) -> list[Times | None]:
    """Return what was given to `times_state`."""
    import pandas as pd

    found: list[Times | None] = [None] * len(state["which"])
    for kind, (key, values) in enumerate(zip(state["kinds"], state["values"], strict=True)):
        dtype, name, freq, clock = key
        index = index_of(values, dtype).rename(name)
        distance = _freq_from(json.loads(freq))
        of_day = None if clock is None else pd.Timedelta(clock)
        for place, number in enumerate(np.flatnonzero(state["which"] == kind)):
            found[number] = Times(index[place : place + 1], distance, clock=of_day)
    return found


def index_of(values: np.ndarray, text: str) -> pd.Index:
    """Return an index of times, periods or numbers from its integers or numbers, and its dtype."""
    import pandas as pd

    dtype: Any = pd.api.types.pandas_dtype(text)
    if isinstance(dtype, pd.PeriodDtype):
        return pd.PeriodIndex.from_ordinals(values, freq=dtype.freq)
    if isinstance(dtype, pd.DatetimeTZDtype):
        utc = pd.DatetimeIndex(values.astype(np.int64).view(f"M8[{dtype.unit}]"))
        return utc.tz_localize("UTC").tz_convert(dtype.tz)
    if dtype.kind in "mM":
        return pd.Index(values.astype(np.int64).view(dtype))
    return pd.Index(values, dtype=dtype)


def _freq_state(freq: Any) -> Any:
    import pandas as pd

    if freq is None or isinstance(freq, int | float):
        return freq
    if isinstance(freq, pd.Timedelta):
        return {"timedelta": freq.value, "unit": freq.unit}
    if type(freq) is pd.DateOffset:
        return {"offset": freq.n, "normalize": freq.normalize, "parts": freq.kwds}
    try:
        same = pd.tseries.frequencies.to_offset(freq.freqstr) == freq
    except ValueError:
        same = False
    if not same:
        raise TypeError(f"the frequency {freq!r} has no name by which pandas finds it again")
    return freq.freqstr


def _freq_from(state: Any) -> Any:
    import pandas as pd

    if isinstance(state, str):
        return pd.tseries.frequencies.to_offset(state)
    if not isinstance(state, dict):
        return state
    if "timedelta" in state:
        return pd.Timedelta(state["timedelta"], unit="ns").as_unit(state["unit"])
    return pd.DateOffset(state["offset"], state["normalize"], **state["parts"])
