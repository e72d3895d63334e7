"""A `SequenceForecaster` behind the server: forecasts by series' ids, and of new series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..sklearn import SequenceForecaster
from .json_values import listed
from .record_types import list_of, number

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ForecastRequest", "ServedForecaster"]

_FROM_UTC = r"(?:Z|[+-]\d{2}:?\d{2})$"
_KEPT = 8  # horizons whose forecasts are kept
_MOST_BITS = 1023  # of integers that floats can hold


class ForecastRequest(NamedTuple):
    """What a client wants forecasts of."""

    ids: list[Any] | None
    horizon: int
    future: list[Any] | None  # rows of covariates


class ServedForecaster:
    """Forecasts the training series by their ids, and new series.

    Parameters
    ----------
    forecaster
        A fitted forecaster. It must not be updated while it is served.
    """

    static_type = None
    probabilities = False

    def __init__(self, forecaster: SequenceForecaster) -> None:
        self._forecaster, self._form = forecaster, forecaster.form_
        form = self._form
        self.ids: list[Any] = [_plain_id(one) for one in form.ids]
        if len(set(self.ids)) < len(self.ids) or any(type(one) is bool for one in self.ids):
            raise ValueError(
                "make_app: the ids of series must be different texts or integers, got "
                f"{form.ids[:3]!r}: rename them before fit"
            )
        self._places = {name: place for place, name in enumerate(self.ids)}
        self._kept: dict[int, list[dict[str, Any]]] = {}
        self.horizon: int = forecaster.horizon
        self.future_type: Any = None
        if form.covariates and form.columns is not None:
            value: Any = str | bool | int | number(missing=True)
            self.future_type = list_of(dict[str, value])
        self.record_type: Any = None
        if form.only_values:
            one = number(missing=True)
            row = one if form.variables is None else list_of(one, form.variables)
            self.record_type = list_of(row)
        levels = forecaster.quantiles
        self.metadata: dict[str, Any] = {
            "horizon": self.horizon,
            "quantiles": None if levels is None else [float(level) for level in levels],
            "series": len(self.ids),
            "covariates": list(form.covariates),
            "trained_epochs": int(forecaster.n_iter_),
        }

    def run(self, pairs: Sequence[tuple[Any, None]]) -> list[Any]:
        """Return the forecasts of new series, given from their start."""
        found = self._forecaster.predict([np.array(record, float) for record, _ in pairs])
        return [listed(one) for one in found]

    def answer(self, found: Sequence[Any]) -> dict[str, Any]:
        """Return the answer to one request of whole series."""
        return {"predictions": list(found)}

    def run_forecasts(self, requests: Sequence[ForecastRequest]) -> list[list[dict[str, Any]]]:
        """Return the forecasts of each request's series."""
        answers = []
        for request in requests:
            places = self._places_of(request.ids)
            every = self._forecasts(request.horizon, request.future)
            answers.append([every[place] for place in places])
        return answers

    def _places_of(self, ids: list[Any] | None) -> Sequence[int]:
        if ids is None:
            return range(len(self.ids))
        for name in ids:
            if name not in self._places:
                raise ValueError(f"there is no series {name!r}: see /series")
        return [self._places[name] for name in ids]

    def _forecasts(self, horizon: int, future: list[Any] | None) -> list[dict[str, Any]]:
        """Return the forecasts of all series."""
        if future is None and horizon in self._kept:
            return self._kept[horizon]
        rows = None if future is None else self._rows(future)
        every = [
            {
                "id": name,
                "times": None if one.times is None else _plain_times(one.times),
                "values": {key: listed(values) for key, values in one.values.items()},
            }
            for name, one in zip(
                self.ids, self._forecaster.forecasts(None, rows, horizon=horizon), strict=True
            )
        ]
        if future is None:
            if len(self._kept) == _KEPT:
                self._kept.clear()
            self._kept[horizon] = every
        return every

    def _rows(self, future: list[Any]) -> pd.DataFrame:
        """Return the covariates of the horizon as a long frame."""
        import pandas as pd

        assert self._form.columns is not None
        own, when = self._form.columns
        for row in future:
            for name, value in row.items():
                if name not in (own, when, *self._form.covariates):
                    raise ValueError(f"future has a column {name!r}, which fit did not get")
                if isinstance(value, int) and value.bit_length() > _MOST_BITS:
                    raise ValueError(f"future has a number in {name!r} that is too large")
            for name in (own, when):
                if name not in row:
                    raise ValueError(f"each row of future needs {name!r}")
        frame = pd.DataFrame(future)
        unknown = [name for name in frame[own] if name not in self._places]
        if unknown:
            raise ValueError(f"there is no series {unknown[0]!r}: see /series")
        frame[own] = [self._form.ids[self._places[name]] for name in frame[own]]
        if self._form.zone is not None:
            frame[when] = _times_in(frame[when].astype(str), self._form.zone)
        return frame


def _times_in(texts: pd.Series, zone: Any) -> pd.Series:
    """Return texts as times; those of a time zone must say how far they are from UTC."""
    import pandas as pd

    if zone == "naive":
        return pd.to_datetime(texts, format="ISO8601")
    if not texts.str.contains(_FROM_UTC).all():
        raise ValueError(f"times in {zone} must have a UTC offset, as 2026-01-31T17:30:00+01:00")
    return pd.to_datetime(texts, format="ISO8601", utc=True).dt.tz_convert(zone)


def _plain_id(name: Any) -> Any:
    name = name.item() if isinstance(name, np.generic) else name
    return name if isinstance(name, str | int) else str(name)


def _plain_times(index: pd.Index) -> list[Any]:
    if hasattr(index, "asi8"):  # times or periods
        return [one.isoformat() if hasattr(one, "isoformat") else str(one) for one in index]
    return list(index.tolist())
