"""Series that go on: their next steps are read, followed, and forecast from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone

from .alignment import after_gaps, check_by_id, check_going_on, check_ids, joined, rows_of_ids
from .all_covariates import AllCovariates
from .baselines import Baselines
from .conformal import ShiftTracker
from .forecast_parameters import check_lengths
from .forecaster_files import ForecasterFiles
from .frequencies import offset_of
from .held_out import Correction
from .joined_data import Before
from .last_steps import LastSteps
from .long_frames import Columns
from .new_steps import NewSteps
from .rollout import Origin
from .series import Array, Series, read_series, refuse_identifiers
from .target_weights import check_later_weights
from .times import Spacing, Times
from .transforms import applied, check_domain
from .windows import SeriesScaling

__all__ = ["PositionedForecaster"]


class PositionedForecaster(ForecasterFiles):
    """A forecaster with the current position of its series; see `SequenceForecaster`."""

    freq: object
    id_col: str
    time_col: str
    target_col: str

    _known: AllCovariates
    _scaling: SeriesScaling  # of the training series
    _origin: Origin  # the current position of the series
    _correction: Correction
    _tracker: ShiftTracker | None  # of adaptive conformal quantiles
    _times: list[Times | None]  # its times
    _last: LastSteps  # up to it
    _baselines: Baselines
    _like: Series
    _weight_column: str | None
    _data: dict[str, Any] | None = None  # the training data, unless series advanced

    def _needs(self) -> str:
        apart = "" if self.conformal is None else f", {self._settings.validation} steps held out"
        return f"horizon={self.horizon}, season={self._settings.season}{apart}"

    @property
    def _columns(self) -> Columns:
        return Columns(self.id_col, self.time_col, self.target_col, self._weight_column)

    @property
    def _spacing(self) -> Spacing:
        given = None if self.freq is None else offset_of(self.freq)
        return Spacing.as_of(self._times, given)

    def _read(self, y: object, least: int, *, known: bool = True) -> Series:
        series = read_series(y, "y", self._like.names, self._spacing, empty=not least)
        refuse_identifiers(series, "y")
        if series.variables != self.n_features_in_:
            raise ValueError(
                f"y must have {self.n_features_in_} variables, as in fit, got {series.variables}"
            )
        together = not self._settings.apart
        check_lengths(series, least, self._needs(), known=known, together=together)
        check_domain(series, self.transform, "y")
        return series

    def _read_with_horizon(
        self, y: object, X: object, horizon: int  # noqa: N803
    ) -> tuple[Series, Series | None]:  # fmt: skip
        """Read series to forecast, and covariates of their steps and of the horizon."""
        spacing, columns, known = self._spacing, self._columns, self._known
        ahead = columns.covariates(X, spacing, known.names)
        in_y = columns.is_long(y)
        y, before = columns.split(y, None, spacing)
        series = self._read(y, self._compared or 1)
        if not in_y or known.x is None:
            what = "the steps of y and of the horizon"
            given = ahead if before is None else before
            lengths = series.lengths + horizon
            return series, known.read(given, series, lengths, what, spacing, ahead=horizon)
        read = known.read(before, series, series.lengths, "the steps of y", spacing)
        then = known.read_ahead(ahead, series, horizon, "the horizon", spacing)
        return series, read if read is None or then is None else joined(read, then)

    def _following(self, y: object, X: object, *, gaps: bool = False) -> NewSteps:  # noqa: N803
        """Read the steps after the series that `fit` got; some may have none.

        `gaps`: without covariates, they may start later; steps between are missing values.
        """
        y, X = self._columns.split(y, X, self._spacing)  # noqa: N806
        series, count = self._read(y, 0, known=False), len(self._like.arrays)
        given, rows = series.ids, np.arange(count)
        check_ids(series, self._like, "y")
        if given is not None:
            rows = rows_of_ids(series, self._like.ids, "y")
            series, rows = series.take(rows.argsort()), np.sort(rows)
        if len(series.arrays) != len(rows):
            raise ValueError(
                f"y must continue the {count} series that fit got, got {len(series.arrays)}"
            )
        before = [self._times[row] for row in rows.tolist()]
        series = after_gaps(series, before) if gaps and self._known.x is None else series
        read = self._known.read(X, series, series.lengths, "the steps of y", self._spacing)
        check_by_id(read, given, series.ids)
        ends = check_going_on(series, read, before)
        some = np.flatnonzero(series.lengths)
        if not some.size:
            raise ValueError("y has no steps that follow: each of its series is empty")
        if len(some) < len(rows):
            series, rows, ends = series.take(some), rows[some], [ends[n] for n in some]
            read = None if read is None else read.take(some)
        steps = int(series.lengths.max()) + self.horizon
        before = [self._times[row] for row in rows.tolist()]
        covariates = self._known.rows(
            read, series.lengths, before, lambda own: own.following(steps)
        )
        return NewSteps(rows, series.arrays, covariates, ends)

    def _seen(self, new: NewSteps) -> NewSteps:
        """Return steps as the model sees them: transformed."""
        return dataclasses.replace(new, arrays=[applied(one, self.transform) for one in new.arrays])

    def _woken(self, origin: Origin, rows: Array, arrays: Sequence[Array]) -> Origin:
        """Return an origin that scales series of which the first value has come now.

        They are scaled as series of that single value, however many come at once.

        Parameters
        ----------
        origin
            The position of series.
        rows, arrays
            Which of them have next steps, and these, ``(n_i, K)``.
        """
        each = self._rollout.rows_of(rows)
        unknown = origin.unknown[each]
        first = [one[(~np.isnan(one)).argmax(axis=0), np.arange(one.shape[1])][None]
                 for one in arrays]  # fmt: skip
        found = self._measure(first, self._scaling)
        found = found.apart(len(rows)) if self._settings.apart else found
        own = origin.scaling.take(each)
        now = unknown & ~np.isnan(np.concatenate(first)).reshape(unknown.shape)
        scaling = SeriesScaling(
            np.where(now, found.center, own.center), np.where(now, found.scale, own.scale),
            None if own.change is None else np.where(now, found.scale, own.change),
        )  # fmt: skip
        return dataclasses.replace(origin, scaling=origin.scaling.put(each, scaling))

    def _awake(self, new: NewSteps) -> tuple[Origin, ShiftTracker | None]:
        """Return the position of all series, and the tracker's, ready for their next steps."""
        origin, tracker = self._origin, self._tracker
        if not self._scales_each or not origin.unknown.any():
            return origin, tracker
        origin = self._woken(origin, new.rows, self._seen(new).arrays)
        if tracker is not None:
            behind = dataclasses.replace(tracker.behind, scaling=origin.scaling)
            tracker = dataclasses.replace(tracker, behind=behind)
        return origin, tracker

    def _advance(self, new: NewSteps) -> None:
        (origin, tracker), baselines = self._awake(new), self._baselines
        rollout, times = self._rollout, list(self._times)
        for part in new.by_length():
            rows, (values, covariates) = part.rows, part.stacked()
            some, correct = len(rows) < len(times), self._correction
            later = baselines.taken(rows) if some else baselines
            later = later.advance(values)
            baselines = baselines.put(rows, later) if some else later
            values = applied(values, self.transform)
            if tracker is not None:
                follow = correct.taken(rows).follow if some else correct.follow
                own = tracker.taken(rollout, rows) if some else tracker
                own = follow(own, rollout, values, covariates)[0]
                tracker = tracker.put(rollout, rows, own) if some else own
            here = rollout.taken(origin, rows) if some else origin
            here = rollout.advance(here, values, covariates)
            origin = rollout.put(origin, rows, here) if some else here
        for row, end in zip(new.rows.tolist(), new.ends, strict=True):
            times[row] = end
        self._last = self._last.advance(self._seen(new), self._rows())
        self._origin, self._tracker, self._baselines = origin, tracker, baselines
        self._times, self._data = times, None

    def _rolled(self, new: NewSteps, stride: int, *, in_turn: bool = False) -> list[Array]:
        """Return forecasts at the current position and every `stride` of the next steps.

        NaN of a series from the end of its next steps on.

        Parameters
        ----------
        new
            The next steps.
        stride
            Steps from one forecast to the next.
        in_turn
            Forecast exactly as `predict` and `update` do, which takes longer.
        """
        correct, rollout = self._correction, self._rollout
        origin, tracker = self._awake(new)
        if len(new.rows) < len(self._times):
            correct, origin = correct.taken(new.rows), rollout.taken(origin, new.rows)
            tracker = None if tracker is None else tracker.taken(rollout, new.rows)
        lengths = new.lengths
        if lengths.min() < lengths.max():
            rollout.check_apart(origin)
        values, covariates = new.padded()
        values = applied(values, self.transform)
        if tracker is None:
            forecasts = rollout.forecasts_in_turn if in_turn else rollout.forecasts
            every = forecasts(origin, values, covariates, stride)
            found = [correct(one, correct.units) for one in every]
        else:
            _, each, shifts = correct.follow(tracker, rollout, values, covariates)
            pairs = zip(each[::stride], shifts[::stride], strict=True)
            found = [correct(one, correct.units, shift) for one, shift in pairs]
        for step, one in zip(range(0, values.shape[1], stride), found, strict=True):
            one[lengths <= step] = np.nan
        return found

    def _refitted(
        self, y: Any, X: object, new: NewSteps, stride: int, refit: int  # noqa: N803
    ) -> list[Array]:  # fmt: skip
        """Return what `_rolled` does, of models that are trained again; `new` is y, read."""
        if self._data is None:
            raise ValueError(
                "backtest with refit= needs the training data, which update and partial_fit drop, "
                "and files and pickles lack: call fit on all data up to the first forecast"
            )
        check_later_weights(self._data["weights"], y, self._like, self._columns)
        before = Before(tuple(self._times), self._like.ids, self._columns)
        found: list[Array] = []
        for begin in range(0, int(new.lengths.max()), stride * refit):
            model, rest = self, {"y": y, "X": X}
            if begin:
                parts = {name: before.cut(later, begin) for name, later in rest.items()}
                rest = {name: part[1] for name, part in parts.items()}
                longer = {name: before.appended(self._data[name], part[0])
                         for name, part in parts.items()}  # fmt: skip
                model = clone(self).fit(**{**self._data, **longer})
            steps = model._following(**rest)
            mine = np.searchsorted(new.rows, steps.rows)
            for one in model._rolled(steps.first(stride * refit), stride, in_turn=True):
                every = np.full((len(new.rows), *one.shape[1:]), np.nan)
                every[mine] = one
                found.append(every)
        return found
