"""What a forecaster chooses, from horizon, season and data, where a parameter is None."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from .conformal import steps_to_hold_out
from .forecast_parameters import season_lag
from .series import Array, unknown_variables

__all__ = ["SEGMENT_RNN", "AutomaticSettings", "least_steps"]

SEGMENT_RNN = "segrnn"  # the name of the default module
_PLAIN: dict[str, Any] = {
    "lags": 1, "seqsize": 64, "batchsize": 32, "fold": 1, "epochs": 30, "validation": 0,
    "loss": "mse", "hidden_size": 32, "dropout": 0.0,
}  # fmt: skip

# Of the segment model; docs/forecasting.md has what was measured.
_SEGMENT = 48  # at most
_LAGS = 336  # at most
SEASON = 168  # the longest whose values the model compares itself
_STEPS = 8  # of a series in an update: the fewer, the more series and times it sees
_COPIED = 1e8  # values, at most: each segment has a copy of the values before it
_WINDOWS = 64, 256  # of an update
_HALF_LIFE = 400  # updates, at least; it does not depend on when training ends
_DRAWN = 750_000  # windows of an epoch, at most: about a minute for all epochs
_UPDATES_PER_EPOCH, _UPDATES, _EPOCHS = 150, 1500, (6, 100)


@dataclasses.dataclass(frozen=True)
class AutomaticSettings:
    """Parameters of a forecaster, chosen where they were None.

    Parameters
    ----------
    segments
        Whether the model is a `SegmentRNN`.
    segment
        Steps of its segments.
    lag
        Steps of as many seasons as cover the horizon; None: there is no season.
    compared
        Whether the model sees and forecasts changes over the lag.
    apart
        Whether variables are forecast apart from each other.
    season
        Steps of a season; None: there is none.
    scale
        How series are scaled, see `SeriesScaling.measure`.
    drawn
        How many windows an epoch of a `SegmentRNN` draws at random; None: all.
    half_life
        Updates in which the learning rate of a `SegmentRNN` falls by half.
    lags, seqsize, batchsize, fold, epochs, validation, loss, hidden_size, dropout
        See `SequenceForecaster`; a validation of 0 is none. A fold of None: segments of `seqsize`.

    Examples
    --------
    >>> import fastseq as fs
    >>> given = fs.SequenceForecaster(96, season=24).get_params()
    >>> c = AutomaticSettings.of(given, np.array([8640]), variables=7)
    >>> c.segment, c.lags, c.seqsize, c.batchsize, c.fold, c.epochs, c.validation
    (24, 336, 8, 32, None, 6, 864)
    """

    segments: bool
    segment: int
    lag: int | None
    compared: bool
    apart: bool
    season: int | None
    scale: str | None
    drawn: int | None
    half_life: int
    lags: int
    seqsize: int
    batchsize: int
    fold: int | None
    epochs: int
    validation: int
    loss: Any
    hidden_size: int
    dropout: float

    @property
    def takes_short(self) -> bool:
        """Whether some series may have too few steps to learn from: they are forecast only."""
        return self.segments and not self.compared

    @property
    def left(self) -> int:
        """How many steps of a series must be left to learn from if some are held out."""
        return 2 if self.takes_short else 2 + (self.lag or 0)

    def held_out(self, arrays: list[Array]) -> Array:
        """Return how many last steps of each series ``(T_i, K)`` are held out, ``(N,)``.

        0 of a series of which too little is known before them, unless that is so of all.

        Examples
        --------
        >>> import fastseq as fs
        >>> given = fs.SequenceForecaster(4, validation=12).get_params()
        >>> AutomaticSettings.of(given, np.array([60, 5]), 1).held_out([
        ...     np.ones((60, 1)), np.ones((5, 1))
        ... ])
        array([12,  0])
        """
        if not self.validation:
            return np.zeros(len(arrays), np.int64)
        learnt = [one[: max(len(one) - self.validation, 0)] for one in arrays]
        enough = np.array([len(one) >= self.left for one in learnt])
        enough &= ~unknown_variables(learnt).any(axis=1)
        return np.where(enough | ~enough.any(), self.validation, 0)

    @classmethod
    def of(
        cls,
        given: Mapping[str, Any],
        lengths: Array,
        variables: int,
        season: int | None = None,
        covariates: int = 0,
    ) -> AutomaticSettings:
        """Choose for series of `lengths` ``(N,)``; `given` are the forecaster's parameters.

        `season` is that of the series' frequency; it is used if the parameter is "auto" and series
        are long enough for it: all, or half of them if the model needs no earlier season of each.
        `covariates` is the number of covariates that change with time.
        """
        if given["season"] != "auto":
            return cls._of(given, lengths, variables, covariates)
        found = cls._of({**given, "season": season}, lengths, variables, covariates)
        long = np.median(lengths) if found.takes_short else lengths.min()
        if season is None or long >= max(least_steps(found), 2 * season):
            return found
        return cls._of({**given, "season": None}, lengths, variables, covariates)

    @classmethod
    def _of(
        cls, given: Mapping[str, Any], lengths: Array, variables: int, covariates: int
    ) -> AutomaticSettings:
        own: dict[str, Any] = {name: given[name] for name in _PLAIN if given[name] is not None}
        season = given["season"]
        lag = season_lag(season, given["horizon"], given["strategy"])
        segments = isinstance(given["module"], str) and given["module"] == SEGMENT_RNN
        apart = given["variables"] or ("independent" if segments else "together")
        scale = given["scale"]
        if scale == "auto":
            scale = "series" if segments and len(lengths) > 1 else "standard"
        if segments and scale == "series":
            scale = "changes"
        compared = season is not None and not (segments and season <= SEASON)
        found: dict[str, Any] = {
            "season": season, "scale": scale, "lag": lag, "compared": compared,
            "apart": variables > 1 and apart == "independent",
        }  # fmt: skip
        chosen = {"segment": 1, "drawn": None, "half_life": 0, **_PLAIN, **own}
        if segments:
            count = len(lengths) * (variables if found["apart"] else 1)
            width = covariates + (1 if found["apart"] else variables)
            chosen = _for_segments(own, given["horizon"], season, lengths, count, width)
        if given["conformal"] is not None and given["validation"] is None:
            left = cls(segments=segments, **found, **chosen).left
            least = steps_to_hold_out(given["quantiles"], given["horizon"], lengths, left)
            chosen["validation"] = max(chosen["validation"], least)
        return cls(segments=segments, **found, **chosen)


def least_steps(settings: AutomaticSettings) -> int:
    """Return how many steps the longest of the series needs."""
    return 2 + (settings.lag or 0) + settings.validation


def _for_segments(
    own: dict[str, Any],
    horizon: int,
    season: int | None,
    lengths: Array,
    count: int,
    width: int,
) -> dict[str, Any]:
    longest, shortest = int(lengths.max()), int(lengths.min())
    segment = min(horizon, _SEGMENT // 2)
    lags = min(4 * horizon, _LAGS)
    if season is not None:
        segment = -(-season // -(-season // _SEGMENT))  # a nearly equal part of a season
        lags = max(lags, min(2 * season, _LAGS))
    lags = own.get("lags", min(lags, longest // 2))
    lags = max(lags, segment, season if season is not None and season <= SEASON else 0)
    windows = count * float(np.mean(lengths))
    seqsize = own.get("seqsize", max(_STEPS, round(windows * lags * width / _COPIED)))
    together = min(max(windows / _UPDATES_PER_EPOCH, _WINDOWS[0]), _WINDOWS[1])
    batchsize = own.get("batchsize", max(1, round(together / seqsize)))
    drawn = None if windows <= _DRAWN else _DRAWN
    updates = max(1.0, min(windows, _DRAWN) / (batchsize * seqsize))
    epochs = own.get("epochs", min(max(round(_UPDATES / updates), _EPOCHS[0]), _EPOCHS[1]))
    validation = 0
    typical = int(np.median(lengths))
    if typical >= 20 * horizon + 500 and shortest >= 5 * horizon:
        validation = min(max(horizon, typical // 10), shortest // 4)
    return {
        "segment": segment, "lags": lags, "seqsize": seqsize, "batchsize": batchsize,
        "drawn": drawn,
        "half_life": max(round(updates), _HALF_LIFE), "fold": own.get("fold"), "epochs": epochs,
        "validation": own.get("validation", validation), "loss": own.get("loss", "mae"),
        "hidden_size": own.get("hidden_size", 64), "dropout": own.get("dropout", 0.3),
    }  # fmt: skip
