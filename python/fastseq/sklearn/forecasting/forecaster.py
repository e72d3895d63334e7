"""`SequenceForecaster`: forecasts of series over a horizon, the scikit-learn way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor, nn, optim

from ...training.spec import check_count
from ..alignment import check_ahead, check_going_on, check_together
from .baselines import Baselines
from .choices import SEGMENT_RNN, Choices
from .comparison import accuracy, middle, outcomes
from .covariates import Covariates
from .forecast_parameters import check_lengths, check_parameters
from .forecast_score import skill
from .forecaster_files import ForecasterFiles
from .joined_data import appended, copied, cut
from .last_steps import LastSteps
from .longer_horizon import forecast_steps
from .rollout import Origin
from .series import Array, Series, read_series, refuse_identifiers
from .times import Times
from .windows import SeriesScaling

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SequenceForecaster"]


class SequenceForecaster(ForecasterFiles):
    """Forecast series over a horizon, from their past and from covariates known ahead.

    One model serves all series. `horizon` and `season` are all it needs: parameters that are None
    are chosen from them and from the data.

    Pass one series ``(T,)`` or ``(T, K)`` (K variables), or a panel: an array
    ``(N, T, K)``, or a list of ``(T_i,)`` or ``(T_i, K)`` of any lengths (turn an array ``(N, T)``
    into a list by ``list(y)``). NaN marks missing values: they are not learnt, and the model sees
    the last known value in their place.

    The index of a pandas Series or DataFrame is the time. Dates may be in any order, but must be
    equally far apart (`asfreq` makes rows for missing ones); covariates must have the same times,
    and later data must follow directly. Columns are matched by name, in the order of `fit`. Arrays,
    lists and an index 0, 1, 2, … carry no times: later data are then assumed to follow.

    scikit-learn's searches take series as their data, and covariates as their targets,
    ``GridSearchCV(f, grid, cv=TimeSeriesSplit(3)).fit(y, X)``: the data of one series (or a table,
    a column for each) are split by time. They would split a list by series.

    Parameters
    ----------
    horizon
        Number of steps of a forecast.
    quantiles
        Levels to forecast, rising, such as ``(0.1, 0.5, 0.9)``; None: points.
    strategy
        ``"direct"``: the model forecasts all steps of the horizon at once, at every step of the
        series. ``"recursive"``: it forecasts the next step, and its forecasts are fed back; its
        quantiles are computed from 200 futures drawn from the learnt distributions.
    season
        Steps of a season. "segrnn" starts from the mean of the last seasons and learns what differs
        from it. With a season of more than 168 steps, and for other models, changes from the values
        a season before (direct: as many seasons before as are known for the whole horizon) are
        learnt instead of the values. A missing value is replaced by the one a season earlier; if
        none was ever known, by the last known value.
    lags
        Number of last values the model sees at each step. Recurrent models remember; one without
        state needs as many as matter. None: 1; for "segrnn" 4 horizons or 2 seasons, at most 336 or
        half of the longest series.
    scale
        ``"standard"``: by mean and standard deviation of all series; ``"series"``: of each series
        ("segrnn": by its mean and its mean absolute change over a season, or a step), for panels of
        different levels; or None. Covariates are scaled too, unless None.
    module
        The model. "segrnn" forecasts changes from the last value, by a linear path from the last
        `lags` values and a recurrent one over segments of them. Others, which carry a state through
        the series, are "lstm", "gru", "rnn", "mlp", "linear", an `nn.Module` or its class, or a
        builder ``(n_in, n_out, rng) -> nn.Module``.
    variables
        ``"independent"``: one model forecasts each variable from its own past, as if it were a
        series of the panel; ``"together"``: all variables from the past of all. None: independent
        for "segrnn", else together.
    hidden_size, num_layers, dropout
        Sizes and dropout of the model, if `module` is a name. None: 32 and 0; for "segrnn" 64 and
        0.3.
    loss
        Loss of points: "mse", "mae", "huber", or ``loss(output, target, reduction="none")``, on
        scaled values. Quantiles are learnt by the pinball loss. None: "mae" for "segrnn", else
        "mse".
    optimizer, lr, weight_decay, decay_biases
        "adam", "adamw", "sgd", "rmsprop", or a callable; its learning rate and weight decay, and
        whether biases decay. For "segrnn" the learning rate falls: by half in each epoch, or in 400
        updates if an epoch has fewer, down to 3 %.
    epochs, batchsize, seqsize, fold
        See `Spec`: passes over the data; series trained together; time steps that gradients reach
        back; and the number of segments, trained together, to cut a long series into. None: 30, 32,
        64, and 1. "segrnn" is trained on segments of `seqsize` steps (None: 8) in a new order each
        epoch; None: as many together, and for so many epochs, as suit the amount of data.
    clip_norm, clip_value, accumulate
        See `Spec`.
    validation
        Number of last steps of each series to hold out: the loss of their forecasts goes into the
        history after each epoch, for callbacks such as early stopping. "segrnn" keeps the weights
        of the best epoch, or repeats the last season if that is better. 0: none. None: none; for
        "segrnn" a tenth of long series.
    random_state
        Seed of weights, order and drawn futures: an integer, a generator, or None.
    device
        Where to compute.
    callbacks, amp, compile, comm
        See `Estimator`.
    warm_start
        Whether `fit` continues training, up to `epochs` in all; see `continued_`.
    verbose
        Show a progress bar.

    Attributes
    ----------
    estimator_
        The trained `Estimator`.
    history_
        The `History` of training.
    n_features_in_
        Number of variables.
    repeats_
        Whether "segrnn" repeats the last season, because that was better on the held-out part.

    Examples
    --------
    >>> import numpy as np
    >>> t = np.arange(200)
    >>> y = np.sin(t / 4)
    >>> f = SequenceForecaster(horizon=12, epochs=5, random_state=0).fit(y)
    >>> f.predict().shape
    (12,)
    >>> f.set_params(quantiles=(0.1, 0.5, 0.9)).fit(y[:150]).predict().shape
    (12, 3)
    >>> f.backtest(y[150:], stride=1).shape  # at the end of the training data and each step after
    (50, 12, 3)
    >>> f.update(y[150:]).predict().shape  # of what follows y
    (12, 3)
    """

    _known: Covariates | None
    _scaling: SeriesScaling  # of the training series
    _origin: Origin  # the current position of the series
    _times: list[Times | None]  # its times
    _last: LastSteps  # up to it
    _baselines: Baselines
    _data: dict[str, Any] | None = None  # the training data, unless series advanced

    def __init__(
        self,
        horizon: int = 1,
        *,
        quantiles: Sequence[float] | None = None,
        strategy: str = "direct",
        season: int | None = None,
        lags: int | None = None,
        scale: str | None = "standard",
        module: str | nn.Module | Callable[..., nn.Module] = SEGMENT_RNN,
        variables: str | None = None,
        hidden_size: int | None = None,
        num_layers: int = 1,
        dropout: float | None = None,
        loss: str | Callable[..., Tensor] | None = None,
        optimizer: str | Callable[..., optim.Optimizer] = "adamw",
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        decay_biases: bool = True,
        epochs: int | None = None,
        batchsize: int | None = None,
        seqsize: int | None = None,
        fold: int | None = None,
        clip_norm: float | None = 1.0,
        clip_value: float | None = None,
        accumulate: int = 1,
        validation: int | None = None,
        callbacks: Sequence[object] = (),
        amp: str | None = None,
        compile: bool = False,  # noqa: A002 (what PyTorch calls it)
        device: str | torch.device = "auto",
        comm: object = None,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: int = 0,
    ) -> None:
        self.horizon = horizon
        self.quantiles = quantiles
        self.strategy = strategy
        self.season = season
        self.lags = lags
        self.scale = scale
        self.module = module
        self.variables = variables
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = dropout
        self.loss = loss
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.decay_biases = decay_biases
        self.epochs = epochs
        self.batchsize = batchsize
        self.seqsize = seqsize
        self.fold = fold
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.accumulate = accumulate
        self.validation = validation
        self.callbacks = callbacks
        self.amp = amp
        self.compile = compile
        self.device = device
        self.comm = comm
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def fit(self, y: object, X: object = None) -> SequenceForecaster:  # noqa: N803 (as in scikit-learn)
        """Train on all steps of series.

        Parameters
        ----------
        y
            The series; see above.
        X
            Covariates of the same steps, ``(T, F)``, for a panel ``(N, T, F)``, a list of
            ``(T_i, F)``, or ``(T, F)`` for all series. They must be known for the whole horizon
            when forecasting (a calendar, prices, plans).

        Returns
        -------
        SequenceForecaster
            This estimator.

        Raises
        ------
        ValueError, TypeError
            A parameter or the data are invalid.
        """
        check_parameters(self.get_params(deep=False))
        series = read_series(y, "y")
        refuse_identifiers(series, "y")
        start = self._begin((series.variables, series.names, X is not None))
        goes_on = start.why is None  # with the same scaling, too
        if not goes_on:
            params = self.get_params(deep=False)
            self._choices = Choices.of(params, series.lengths, series.variables)
        lag, apart = self._choices.lag, self._choices.validation
        check_lengths(series, 2 + (lag or 0) + apart, self._needs(), apart=apart)
        known = self._known if goes_on else None
        read = None
        if X is not None:
            read = Covariates.read(X, series, series.lengths, "the steps of y", known)
            known = known or Covariates.measure(read, scaled=self.scale is not None, apart=apart)
        times = check_together(series, read)
        covariates = None if read is None or known is None else known.scaled(read)
        if goes_on and self.scale != "series":
            scaling = self._scaling
        else:
            scaling = self._measure([one[: len(one) - apart] for one in series.arrays])
        self._train(self._task(series, covariates, scaling), start)
        self.n_features_in_ = series.variables
        self._known, self._scaling = known, scaling
        self._rollout = self._make_rollout(start.seed)
        self._origin = self._rollout.begin(series.arrays, covariates, scaling)
        self._last = LastSteps.of(series.arrays, covariates, self._rows())
        self._baselines = Baselines.measure(series.arrays, self.season)
        self._times = [None if one is None else one.end for one in times]
        self._like = dataclasses.replace(
            series, arrays=[one[:0].copy() for one in series.arrays], indices=(), moved=()
        )
        self._data = {"y": copied(y), "X": copied(X)}
        return self

    def predict(
        self,
        y: object = None,
        X: object = None,  # noqa: N803
        *,
        horizon: int | None = None,
    ) -> Array:
        """Forecast the next `horizon` steps.

        Parameters
        ----------
        y
            Series to forecast, from their start, as in `fit`, with as many variables; they need
            not be the training series. None: continue the training data and what `update` has
            added since.
        X
            Covariates, if `fit` got some, of the steps of `y` and of the horizon,
            ``(T + horizon, F)``; without `y`, ``(horizon, F)``; for panels as in `fit`.
        horizon
            Number of steps to forecast; None: those the model was trained for. Further ones are
            forecast from the forecasts of those before, of quantiles from their medians: their
            quantiles do not show that these are uncertain, too, and are too narrow (unless the
            strategy is recursive).

        Returns
        -------
        numpy.ndarray
            ``(horizon,)``, ``(horizon, K)``, for a panel ``(N, horizon)`` or ``(N, horizon, K)``,
            in the form of the series. Quantiles add a last axis, along which they rise.
        """
        self._check_fitted()
        steps = self.horizon if horizon is None else horizon
        check_count("horizon", steps)
        rollout, origin, form = self._rollout, self._origin, self._like
        past = ahead = None
        if y is None:
            count = len(form.arrays)
            what = "the horizon, the steps that follow"
            read = self._read_covariates(X, form, np.full(count, steps), what)
            if read is not None and self._known is not None:
                check_ahead(read, self._times)
                ahead = self._known.scaled(read)
        else:
            form = self._read(y, self._choices.lag or 1)
            what = "the steps of y and of the horizon"
            read = self._read_covariates(X, form, form.lengths + steps, what)
            check_together(form, read, ahead=0 if read is None else steps, known=self._times)
            if read is not None and self._known is not None:
                whole = self._known.scaled(read)
                past = [one[:-steps] for one in whole]
                ahead = [one[-steps:] for one in whole]
            scaling = self._measure(form.arrays) if self.scale == "series" else self._scaling
            origin = rollout.begin(form.arrays, past, scaling)
        known = None if ahead is None else np.stack(ahead)
        found = forecast_steps(rollout, origin, known, steps)
        return self._result(form, found)

    def update(self, y: object, X: object = None) -> SequenceForecaster:  # noqa: N803
        """Append new data, from whose end `predict` then forecasts. Nothing is learnt.

        Parameters
        ----------
        y
            The next steps of the series that `fit` got, in their form; for a panel, equally many
            of each.
        X
            Covariates of these steps, if `fit` got some.

        Raises
        ------
        ValueError, TypeError
            The data are invalid, such as steps that do not follow; nothing has been changed.
        """
        self._check_fitted()
        values, covariates, times = self._following(y, X)
        self._advance(values, covariates, times)
        return self

    def partial_fit(self, y: object, X: object = None) -> SequenceForecaster:  # noqa: N803
        """Learn from new data, from whose end `predict` then forecasts.

        The model is trained for one epoch, with the learning rate at which `fit` ended, on all
        forecasts that reach into the new steps; nothing else of the training data is seen. Then
        the series advance, as by `update`. Scaling stays as in `fit`. Before any `fit`, this is
        `fit`.

        Parameters
        ----------
        y, X
            As in `update`.

        Raises
        ------
        ValueError, TypeError
            The data are invalid, or a parameter that matters was changed after `fit`; nothing has
            been changed.
        """
        if not self.__sklearn_is_fitted__():
            return self.fit(y, X)
        check_parameters(self.get_params(deep=False))
        start = self._begin(self._form, partial=True)
        values, covariates, times = self._following(y, X)
        self._learn_on(self._last, values, covariates, self._origin.scaling, start)
        self._advance(values, covariates, times)
        return self

    def backtest(
        self,
        y: object,
        X: object = None,  # noqa: N803
        *,
        stride: int | None = None,
        refit: int | None = None,
    ) -> Array:
        """Forecast repeatedly as series continue; this forecaster does not change.

        Parameters
        ----------
        y, X
            Data that follow the training data, as in `update`; they are not kept.
        stride
            Forecasts are made at the end of the training data and every so many steps after it;
            None: every `horizon` steps.
        refit
            After so many forecasts, and again after as many, train a model from scratch on the
            training data and all of `y` before the next forecast: the same as `fit` of a clone.
            None: learn nothing.

        Returns
        -------
        numpy.ndarray
            Forecasts at these times along the first axis, each as `predict` returns it. The last
            ones may reach beyond `y`: there, covariates are assumed average.

        Raises
        ------
        ValueError, TypeError
            The data are invalid; or `refit` is given after `update`, `partial_fit`, loading or
            unpickling: the training data are only in memory, and only up to the end that `fit` saw.
        """
        self._check_fitted()
        stride = self.horizon if stride is None else stride
        check_count("stride", stride)
        if refit is None:
            values, covariates, _ = self._following(y, X)
            found = self._rollout.forecasts(self._origin, values, covariates, stride)
        else:
            check_count("refit", refit)
            found = self._refitted(y, X, stride, refit)
        return np.stack([self._result(self._like, one) for one in found])

    def _refitted(self, y: object, X: object, stride: int, refit: int) -> list[Array]:  # noqa: N803
        """Return forecasts ``(N, horizon, K, Q)`` at each time."""
        if self._data is None:
            raise ValueError(
                "backtest with refit= needs the training data, which are forgotten in update, "
                "partial_fit, files and pickles: call fit on all data up to the first forecast"
            )
        values, _, _ = self._following(y, X)
        found: list[Array] = []
        for begin in range(0, values.shape[1], stride * refit):
            model, rest = self, {"y": y, "X": X}
            if begin:
                parts = {name: cut(later, begin, self._times) for name, later in rest.items()}
                rest = {name: part[1] for name, part in parts.items()}
                whole = {name: appended(self._data[name], part[0], self._times)
                         for name, part in parts.items()}  # fmt: skip
                model = clone(self).fit(**{**self._data, **whole})
            values, covariates, _ = model._following(**rest)
            block = values[:, : stride * refit]
            found += model._rollout.forecasts_in_turn(model._origin, block, covariates, stride)
        return found

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
        the end of `y`, do not count. `utilsforecast` computes the measures: a series' value is the
        mean over all its forecasts, and each variable counts as a series.

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

            With quantiles, errors are those of the median, and there are further columns, NaN for
            the simple forecasts:

            - pinball: mean of the pinball losses of all quantiles.
            - CRPS: the continuous ranked probability score, approximated by twice the pinball
              loss, divided by the mean size of the values; NaN if all are 0.
            - coverage: share of values from the lowest to the highest quantile.

        Raises
        ------
        MissingFeatureError
            `utilsforecast` or `pandas` is not installed.

        Examples
        --------
        >>> import numpy as np
        >>> y = np.sin(np.arange(240) / 4)
        >>> f = SequenceForecaster(12, epochs=2, random_state=0).fit(y[:180])
        >>> table = f.evaluate(y[180:])
        >>> table.index.tolist(), table.columns.tolist()
        (['SequenceForecaster', 'naive', 'drift'], ['MAE', 'RMSE', 'sMAPE', 'MASE'])
        """
        self._check_fitted()
        stride = self.horizon if stride is None else stride
        check_count("stride", stride)
        own, levels = type(self).__name__, self._levels
        values, covariates, _ = self._following(y, X)
        found = np.stack(self._rollout.forecasts(self._origin, values, covariates, stride))
        table = accuracy(
            outcomes(values, self.horizon, stride),
            {own: middle(found, levels),
             **self._baselines.forecasts_of(values, self.horizon, stride)},
            self._baselines.scale, {} if levels is None else {own: found}, levels,
        )  # fmt: skip
        if not per_series:
            return table.groupby(level="model", sort=False).mean()
        return table.droplevel("variable") if values.shape[2] == 1 else table

    def score(self, y: object, X: object = None) -> float:  # noqa: N803
        """Return the score of forecasts of the steps after the training data; 1 is perfect.

        Forecasts are made every `horizon` steps, as by `backtest`. For points the score is R²; for
        quantiles D² of the pinball loss, as in `sklearn.metrics.d2_pinball_score`. The best
        constant gets 0. The mean over variables is returned.

        Parameters
        ----------
        y, X
            As in `update`.
        """
        self._check_fitted()
        values, covariates, _ = self._following(y, X)
        found = np.concatenate(
            self._rollout.forecasts(self._origin, values, covariates, self.horizon), axis=1
        )
        steps = values.shape[1]
        flat = found[:, :steps].reshape(-1, *found.shape[2:])
        return skill(flat, values.reshape(-1, values.shape[2]), self._levels)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the training data out."""
        return {**super().__getstate__(), "_data": None}

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_origin")

    def _needs(self) -> str:
        return f"horizon={self.horizon}, season={self.season}"

    def _read(self, y: object, least: int, *, known: bool = True) -> Series:
        series = read_series(y, "y", self._like.names)
        refuse_identifiers(series, "y")
        if series.variables != self.n_features_in_:
            raise ValueError(
                f"y must have {self.n_features_in_} variables, as in fit, got {series.variables}"
            )
        check_lengths(series, least, self._needs(), known=known)
        return series

    def _advance(self, values: Array, covariates: Array | None, times: list[Times | None]) -> None:
        self._origin = self._rollout.advance(self._origin, values, covariates)
        self._last = self._last.advance(values, covariates, self._rows())
        self._baselines = self._baselines.advance(values)
        self._times, self._data = times, None

    def _following(
        self, y: object, X: object  # noqa: N803
    ) -> tuple[Array, Array | None, list[Times | None]]:  # fmt: skip
        """Read the steps after the series that `fit` got; return them, and their last times."""
        series = self._read(y, 1, known=False)
        count = len(self._like.arrays)
        if len(series.arrays) != count:
            raise ValueError(
                f"y must continue the {count} series that fit got, got {len(series.arrays)}"
            )
        if len(set(series.lengths.tolist())) > 1:
            raise ValueError(
                "y must have the same number of steps of each series, got "
                f"{series.lengths.tolist()}"
            )
        read = self._read_covariates(X, series, series.lengths, "the steps of y")
        times = check_going_on(series, read, self._times)
        covariates = None
        if read is not None and self._known is not None:
            covariates = np.stack(self._known.scaled(read))
        return np.stack(series.arrays), covariates, times

    def _read_covariates(
        self,
        X: object,  # noqa: N803
        like: Series,
        lengths: Array,
        what: str,
    ) -> Series | None:
        if self._known is not None:
            return Covariates.read(X, like, lengths, what, self._known)
        if X is not None:
            raise ValueError("X is given, but fit got no covariates")
        return None

    def _result(self, form: Series, found: Array) -> Array:
        return form.like(found if self.quantiles is not None else found[..., 0])
