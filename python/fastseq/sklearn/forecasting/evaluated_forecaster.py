"""How well a forecaster does on later data: backtests, errors, scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...training.spec import check_count
from .forecast_accuracy import accuracy, middle, outcomes
from .new_steps import NewSteps
from .predicting_forecaster import PredictingForecaster
from .series import Array
from .skill_score import skill

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EvaluatedForecaster"]


class EvaluatedForecaster(PredictingForecaster):
    """A forecaster that is evaluated; see `SequenceForecaster`."""

    def backtest(
        self,
        y: object,
        X: object = None,  # noqa: N803
        *,
        stride: int | None = None,
        refit: int | None = None,
    ) -> Any:
        """Forecast repeatedly as series continue; this forecaster does not change.

        Parameters
        ----------
        y, X
            Data that follow the training data, as in `update`; they are not kept.
        stride
            Forecasts are made at the end of the training data and every `stride` steps after it;
            None: every `horizon` steps.
        refit
            After every `refit` forecasts, train a model from scratch on the training data and all
            of `y` before the next forecast: the same as `fit` of a clone. None: learn nothing.

        Returns
        -------
        numpy.ndarray, dict, pandas.DataFrame or polars.DataFrame
            Of arrays: forecasts at these times along the first axis, each as `predict` returns it.
            Of tables: a long frame of ids (of a panel), "variable" (of DataFrames), times,
            "cutoff" (the last time known to a forecast), actual values, and "forecast" or
            quantiles. The last forecasts may reach beyond `y`: there, covariates are assumed
            average, except those of the calendar.

            Each series of a panel is forecast as long as it has steps in `y`: frames have no rows
            of other times, or of series without steps. Dictionaries of arrays have as many
            forecasts of each series as were made; the array of a list has all times, and NaN where
            a series has no steps left.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        ValueError, TypeError
            The data, `stride` or `refit` are invalid; or `refit` is given after `update`,
            `partial_fit`, loading or unpickling: the training data are only in memory, and only up
            to the end that `fit` saw.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from fastseq.sklearn import SequenceForecaster
        >>> y = pd.Series(np.sin(np.arange(90) / 4), pd.date_range("2024-01-01", periods=90))
        >>> f = SequenceForecaster(5, epochs=2, random_state=0).fit(y[:60])
        >>> table = f.backtest(y[60:], stride=10)
        >>> table.columns.tolist(), len(table)
        (['ds', 'cutoff', 'y', 'forecast'], 15)
        """
        self._check_fitted()
        stride = self.horizon if stride is None else stride
        check_count("stride", stride)
        new = self._following(y, X)
        if refit is None:
            found = self._rolled(new, stride)
        else:
            check_count("refit", refit)
            found = self._refitted(y, X, new, stride, refit)
        return self._tested(new, found, stride)

    def evaluate(
        self,
        y: object,
        X: object = None,  # noqa: N803
        *,
        stride: int | None = None,
        per_series: bool = False,
    ) -> pd.DataFrame:
        """Compare this forecaster's accuracy with that of simple forecasts from the same times.

        These are the naive forecast (the last known value), the seasonal naive one (the values of
        the last season, if there is a `season`), and drift (the line through the first and the last
        known value). Forecasts are made as by `backtest`; steps whose value is missing, or beyond
        the end of a series, do not count, nor do series without steps in `y`. `utilsforecast`
        computes the measures: a series' value is the mean over all its forecasts, and each variable
        counts as a series.

        Parameters
        ----------
        y, X, stride
            As in `backtest`.
        per_series
            Return rows for each series, instead of the means over series.

        Returns
        -------
        pandas.DataFrame
            A row for each model; with `per_series` for each series (and variable) and model.

            - MAE, RMSE.
            - sMAPE: 200 |y - f| / (|y| + |f|), in percent.
            - MASE: the MAE divided by the mean absolute change of the training series over a season
              (without a season, from step to step); NaN for a constant one. These two are as in the
              M4 competition.

            With quantiles, errors are those of the median, and there are further columns; those of
            the simple forecasts take their value for all quantiles:

            - pinball: mean of the pinball losses of all quantiles.
            - CRPS: the continuous ranked probability score, approximated by twice the pinball
              loss, divided by the mean size of the values; NaN if all are 0.
            - coverage: share of values from the lowest to the highest quantile; NaN for the simple
              forecasts.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        ValueError, TypeError
            The data or `stride` are invalid.
        MissingFeatureError
            `utilsforecast` or `pandas` is not installed.

        Examples
        --------
        >>> import numpy as np
        >>> y = np.sin(np.arange(240) / 4)
        >>> from fastseq.sklearn import SequenceForecaster
        >>> f = SequenceForecaster(12, epochs=2, random_state=0).fit(y[:180])
        >>> table = f.evaluate(y[180:])
        >>> table.index.tolist(), table.columns.tolist()
        (['SequenceForecaster', 'naive', 'drift'], ['MAE', 'RMSE', 'sMAPE', 'MASE'])
        """
        self._check_fitted()
        stride = self.horizon if stride is None else stride
        check_count("stride", stride)
        own, levels = type(self).__name__, self._levels
        new = self._following(y, X)
        values, _ = new.padded()
        found = np.stack(self._rolled(new, stride))
        simple = self._baselines.taken(new.rows)
        points = middle(found, levels)
        actual = outcomes(values, self.horizon, stride)
        table = accuracy(
            np.where(np.isnan(points), np.nan, actual),
            {own: points, **simple.forecasts_of(values, self.horizon, stride)},
            simple.scale, {} if levels is None else {own: found}, levels,
        )  # fmt: skip
        if not per_series:
            return table.groupby(level="model", sort=False).mean()
        ids = self._like.ids
        names = dict(enumerate(new.rows.tolist() if ids is None else [ids[n] for n in new.rows]))
        table = table.rename(index=names, level="series")
        if ids is not None:
            table = table.rename_axis(index={"series": self.id_col})
        return table.droplevel("variable") if values.shape[2] == 1 else table

    def score(self, y: object, X: object = None) -> float:  # noqa: N803
        """Return the score of forecasts of the steps after the training data; 1 is perfect.

        Forecasts are made every `horizon` steps, as by `backtest`. For points the score is R²; for
        quantiles D² of the pinball loss, as in `sklearn.metrics.d2_pinball_score`. The best
        constant gets 0. The mean over variables is returned.

        Parameters
        ----------
        y, X
            As in `update`. Without `X`, data with times may begin later than at the next step, as
            with ``TimeSeriesSplit(gap=2)``: the steps between are missing values.

        Returns
        -------
        float
            At most 1; below 0 for forecasts that are worse than the best constant.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        ValueError, TypeError
            The data are invalid, or a variable has fewer than two known values.

        Examples
        --------
        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceForecaster
        >>> y = np.sin(np.arange(96) * np.pi / 6)
        >>> f = SequenceForecaster(4, season=12, epochs=2, random_state=0).fit(y[:72])
        >>> bool(f.score(y[72:]) > 0.99)
        True
        """
        self._check_fitted()
        with self._columns.split_by_rows(y):
            new = self._following(y, X, gaps=True)
        values, _ = new.padded()
        found = np.concatenate(self._rolled(new, self.horizon), axis=1)
        steps = values.shape[1]
        found = found[:, :steps]
        values = np.where(np.isnan(found[..., 0]), np.nan, values)
        flat = found.reshape(-1, *found.shape[2:])
        return skill(flat, values.reshape(-1, values.shape[2]), self._levels)

    def _tested(self, new: NewSteps, found: list[Array], stride: int) -> Any:
        """Return forecasts ``(M, horizon, K, Q)`` of each time in the form of a backtest."""
        rows = new.rows
        like, form = self._like.take(rows), self._like.form.take(rows)
        parts = [self._forecasts(like, one, [self._times[row] for row in rows]) for one in found]
        steps = np.arange(len(found)) * stride
        made = steps < new.lengths[:, None]
        if form.tabular:
            names = None if like.flat else form.labels[0]
            return form.backtest(parts, steps, new.padded()[0], names, rows, made)
        values = np.stack([one.values for one in parts])
        values = values.squeeze(3) if like.flat else values
        if form.kind == "dict":
            return {key: values[made[n], n] for n, key in enumerate(form.ids)}
        whole = np.full((len(found), len(self._times), *values.shape[2:]), np.nan, like.dtype)
        whole[:, rows] = values
        return whole.squeeze(1) if like.single else whole
