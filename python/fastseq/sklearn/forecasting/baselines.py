"""Forecasts to compare with: the last value, the last season, and a straight line."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .series import Array
from .windows import changes, over_seasons

__all__ = ["Baselines"]

_AT_ONCE = 1000  # series


@dataclasses.dataclass(frozen=True)
class Baselines:
    """What simple forecasts need to know of N series of K variables.

    Parameters
    ----------
    first, last
        The first and the last known value, ``(N, K)``; NaN: there is none.
    span, since
        Steps between them, and steps since the last one, ``(N, K)``.
    seasonal
        The last season, ``(N, season, K)``: missing values are replaced by the last one known whole
        seasons before, NaN if there is none. None: there is no season.
    scale
        Mean absolute change of the training series over a season, or from step to step, ``(N, K)``,
        by which MASE divides; NaN: no change is known.

    Examples
    --------
    >>> known = Baselines.measure([np.array([[1.0], [2.0], [np.nan], [4.0]])], season=2)
    >>> {name: f.ravel().tolist() for name, f in known.forecasts(3).items()}
    {'naive': [4.0, 4.0, 4.0], 'seasonal naive': [1.0, 4.0, 1.0], 'drift': [5.0, 6.0, 7.0]}
    >>> known.scale
    array([[2.]])
    """

    first: Array
    last: Array
    span: Array
    since: Array
    seasonal: Array | None
    scale: Array

    @classmethod
    def measure(cls, arrays: list[Array], season: int | None) -> Baselines:
        """Measure training series ``(T_i, K)``; NaN marks missing values."""
        parts = [
            cls._of_block(arrays[begin : begin + _AT_ONCE], season)
            for begin in range(0, len(arrays), _AT_ONCE)
        ]
        found: dict[str, Any] = {
            f.name: np.concatenate([getattr(one, f.name) for one in parts])
            for f in dataclasses.fields(cls)
            if getattr(parts[0], f.name) is not None
        }
        return cls(**{"seasonal": None, **found})

    @classmethod
    def _of_block(cls, arrays: list[Array], season: int | None) -> Baselines:
        count, width = len(arrays), arrays[0].shape[1]
        values = np.full((count, max(map(len, arrays)), width), np.nan)
        for own, one in zip(values, arrays, strict=True):
            own[len(own) - len(one) :] = one
        unknown, none = np.full((count, width), np.nan), np.zeros((count, width), np.int64)
        seasonal = None if season is None else np.full((count, season, width), np.nan)
        flat = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
        scale = _mean_change(flat, season or 1).reshape(count, width)
        return cls(unknown, unknown, none, none, seasonal, scale).advance(values)

    def taken(self, rows: Array) -> Baselines:
        """Return some of the series."""
        found: dict[str, Any] = {
            f.name: None if getattr(self, f.name) is None else getattr(self, f.name)[rows]
            for f in dataclasses.fields(self)
        }
        return Baselines(**found)

    def put(self, rows: Array, part: Baselines) -> Baselines:
        """Return all series, with some of them replaced."""
        found: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            own = getattr(self, f.name)
            if own is not None:
                own = own.copy()
                own[rows] = getattr(part, f.name)
            found[f.name] = own
        return Baselines(**found)

    def advance(self, values: Array) -> Baselines:
        """Advance by the next values, ``(N, n, K)``."""
        count, steps, width = values.shape
        flat = np.moveaxis(values, 1, 0).reshape(steps, -1)
        first, last, span, since = (part.reshape(count, width) for part in _ends(flat))
        new, old = ~np.isnan(last), ~np.isnan(self.last)
        both = new & old
        seasonal = self.seasonal
        if seasonal is not None:
            season = seasonal.shape[1]
            longer = np.concatenate([seasonal, values], axis=1)
            seasonal = over_seasons(longer, season)[:, -season:]
        return Baselines(
            np.where(old, self.first, first), np.where(new, last, self.last),
            np.where(both, self.span + self.since + steps - since, np.where(new, span, self.span)),
            np.where(new, since, self.since + steps), seasonal, self.scale,
        )  # fmt: skip

    def forecasts_of(self, values: Array, horizon: int, stride: int) -> dict[str, Array]:
        """Return each model's forecasts at this origin and every `stride` of the next steps.

        Each is ``(origins, N, horizon, K)``; values are ``(N, n, K)``.
        """
        found: list[dict[str, Array]] = []
        now = self
        for begin in range(0, values.shape[1], stride):
            if begin:
                now = now.advance(values[:, begin - stride : begin])
            found.append(now.forecasts(horizon))
        return {name: np.stack([one[name] for one in found]) for name in found[0]}

    def forecasts(self, horizon: int) -> dict[str, Array]:
        """Return each model's forecasts of the next steps, ``(N, horizon, K)``."""
        last = np.repeat(self.last[:, None], horizon, axis=1)
        found = {"naive": last}
        if self.seasonal is not None:
            seasons = self.seasonal[:, np.arange(horizon) % self.seasonal.shape[1]]
            found["seasonal naive"] = np.where(np.isnan(seasons), last, seasons)
        slope = (self.last - self.first) / np.maximum(self.span, 1)
        steps = self.since[:, None] + np.arange(1, horizon + 1)[:, None]
        return {**found, "drift": last + slope[:, None] * steps}


def _ends(values: Array) -> tuple[Array, Array, Array, Array]:
    """Return the first and last known value of each column, the steps between, and those since."""
    known = ~np.isnan(values)
    begin, since = known.argmax(axis=0), known[::-1].argmax(axis=0)
    end = len(values) - 1 - since
    columns = np.arange(values.shape[1])
    found = known.any(axis=0)
    return values[begin, columns], values[end, columns], np.where(found, end - begin, 0), since


def _mean_change(values: Array, lag: int) -> Array:
    size = np.abs(changes(values, values, lag))
    known = ~np.isnan(size)
    count = known.sum(axis=0)
    total = np.where(known, size, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
