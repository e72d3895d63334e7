"""Forecasts from where the series are, or of new series, in the form of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from ...training.spec import check_count
from .alignment import (
    check_ahead,
    check_together,
)  # fmt: skip
from .longer_horizon import forecast_blocks
from .positioned_forecaster import PositionedForecaster
from .result_forms import Forecasts, SeriesForecast, SeriesForm
from .series import Array, Series
from .times import Times
from .transforms import applied

__all__ = ["PredictingForecaster"]


class PredictingForecaster(PositionedForecaster):
    """A forecaster that predicts; see `SequenceForecaster`."""

    def predict(
        self,
        y: object = None,
        X: object = None,  # noqa: N803
        *,
        static: object = None,
        horizon: int | None = None,
    ) -> Any:
        """Forecast the next `horizon` steps.

        Parameters
        ----------
        y
            Series to forecast, from their start, as in `fit`, with as many variables; not
            necessarily the training series. None: continue the training data and what `update` has
            added since.
        X
            Covariates, if `fit` got some, of the steps of `y` and of the horizon,
            ``(T + horizon, F)``; without `y`, ``(horizon, F)``; for panels as in `fit`. With long
            frames, a long frame of the horizon. In the horizon, columns not known ahead may be NaN,
            and without `y`, or with long frames, they may be left out; later steps are ignored, if
            tables have times.
        static
            Static covariates of `y`, if `fit` got some.
        horizon
            Number of steps to forecast; None: those the model was trained for. Further steps are
            forecast from earlier forecasts, for quantiles from the medians: their quantiles ignore
            that these are uncertain, too, and are too narrow (unless the strategy is recursive).

        Returns
        -------
        numpy.ndarray, pandas.Series, pandas.DataFrame, list, dict or polars.DataFrame
            ``(horizon,)``, ``(horizon, K)``, for a panel ``(N, horizon)`` or ``(N, horizon, K)``;
            in the form of the series. Quantiles add a last axis, along which they rise; in tables
            they are columns "q0.1", …. Long frames have a column of ids, of times, and "forecast"
            or quantiles, sorted by id and time.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        ValueError, TypeError
            The data or `horizon` are invalid; or covariates are missing that `fit` got.

        Examples
        --------
        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceForecaster
        >>> t = np.arange(120)
        >>> price = np.where(t % 5, 2.0, 1.5).reshape(-1, 1)  # is known ahead
        >>> y = np.sin(t / 4) - price[:, 0]
        >>> f = SequenceForecaster(4, epochs=2, random_state=0).fit(y[:100], price[:100])
        >>> f.predict(X=price[100:104]).shape  # what follows y[:100]
        (4,)
        >>> f.predict(y[:70], price[:80], horizon=10).shape  # of another series, further ahead
        (10,)
        """
        return self._result(*self._predicted(y, X, static, horizon))

    def forecasts(
        self,
        y: object = None,
        X: object = None,  # noqa: N803
        *,
        static: object = None,
        horizon: int | None = None,
    ) -> list[SeriesForecast]:
        """Forecast series by series, in one form for all data.

        Parameters
        ----------
        y, X, static, horizon
            As in `predict`.

        Returns
        -------
        list
            An object for each series, with its ``id`` (without ids its position), the ``times`` of
            the horizon, a pandas index (None: the data have none), and ``values``, a dictionary of
            arrays ``(horizon,)`` or ``(horizon, K)`` by name: "forecast", or quantiles "q0.1", ….

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        ValueError, TypeError
            As in `predict`.

        Examples
        --------
        >>> import fastseq as fs, numpy as np
        >>> f = fs.SequenceForecaster(3, epochs=2).fit([np.arange(40.0), np.arange(50.0)])
        >>> [(one.id, one.times, one.values["forecast"].shape) for one in f.forecasts()]
        [(0, None, (3,)), (1, None, (3,))]
        """
        form, found, ends = self._predicted(y, X, static, horizon)
        made = self._forecasts(form, found, ends)
        result = []
        ids = range(len(ends)) if form.ids is None else form.ids
        for name, values, end in zip(ids, made.values, ends, strict=True):
            own = values[:, 0] if form.flat else values
            parts = [own] if made.levels is None else np.moveaxis(own, -1, 0)
            times = None if end is None else end.following(len(own))
            result.append(SeriesForecast(name, times, dict(zip(made.names, parts, strict=True))))
        return result

    @property
    def form_(self) -> SeriesForm:
        """What is forecast: ids of the series, names of covariates and so on."""
        self._check_fitted()
        like, known = self._like, self._known
        end = next((one for one in self._times if one is not None), None)
        zone = None
        if end is not None and hasattr(end.index, "tz"):
            zone = end.index.tz or "naive"
        return SeriesForm(
            ids=tuple(range(len(like.arrays)) if like.ids is None else like.ids),
            variables=None if like.flat else like.arrays[0].shape[1],
            covariates=tuple(known.names or ()),
            only_values=not known.names and known.static is None and known.calendar is None,
            columns=(self.id_col, self.time_col) if like.form.kind == "long" else None,
            zone=zone,
        )

    def _predicted(
        self, y: object, X: object, static: object, horizon: int | None  # noqa: N803
    ) -> tuple[Series, Array, Sequence[Times | None]]:  # fmt: skip
        """Return series, their forecasts ``(N, horizon, K, Q)``, and the times of their ends."""
        self._check_fitted()
        steps = self.horizon if horizon is None else horizon
        check_count("horizon", steps)
        if isinstance(y, Integral):
            raise TypeError(f"y must be series, got {y}: to forecast {y} steps, pass horizon={y}")
        rollout, origin, form, known = self._rollout, self._origin, self._like, self._known
        ends, correct, tracker = self._times, self._correction, self._tracker
        per = correct.units
        if y is None:
            if static is not None:
                raise ValueError("static is given without y: leave it out, fit got it already")
            what = "the horizon, the steps that follow"
            X = self._columns.covariates(X, self._spacing, known.names)  # noqa: N806
            read = known.read_ahead(X, form, steps, what, self._spacing)
            if read is not None:
                check_ahead(read, self._times)
            seen = np.zeros(len(form.arrays), int)
            covariates = known.rows(read, seen, self._times, lambda own: own.following(steps))
        else:
            form, read = self._read_with_horizon(y, X, steps)
            arrays = [applied(one, self.transform) for one in form.arrays]
            beyond = 0 if read is None else len(read.arrays[0]) - int(form.lengths[0])
            ends = check_together(form, read, ahead=beyond)
            known.check_zones(ends, self._times)
            covariates = known.rows(read, form.lengths, ends, lambda own: own.reaching(steps))
            _, fixed = known.of_series(static, form, self.id_col)
            scaling = self._scaling
            if self._scales_each:
                scaling = self._measure(arrays, scaling)
            origin = rollout.begin(arrays, covariates, scaling, fixed)
            per, tracker, seen = correct.units_of(arrays), None, form.lengths
        ahead = None if covariates is None else covariates.after(seen)
        shift = None if tracker is None else tracker.shift
        blocks = [
            correct(one, per, shift) for one in forecast_blocks(rollout, origin, ahead, steps)
        ]
        return form, np.concatenate(blocks, axis=1)[:, :steps], ends

    def _forecasts(self, form: Series, found: Array, ends: Sequence[Times | None]) -> Forecasts:
        values = found if self.quantiles is not None else found[..., 0]
        return Forecasts(values.astype(form.dtype), ends, self._levels)

    def _result(self, form: Series, found: Array, ends: Sequence[Times | None]) -> Any:
        result = self._forecasts(form, found, ends)
        if form.form.kind == "arrays":
            return form.like(result.values)
        if form.flat:
            result = dataclasses.replace(result, values=result.values.squeeze(2))
        return form.form.forecasts(result)
