"""`SequenceForecaster`: forecasts of series over a horizon, the scikit-learn way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn, optim

from ...training.spec import check_count
from ..alignment import check_ahead, check_going_on, check_together
from .all_covariates import AllCovariates, first_read
from .choices import SEGMENT_RNN, Choices
from .covariate_rows import CovariateRows
from .fitting import ForecastTraining
from .forecast_parameters import check_lengths, check_parameters
from .forecast_score import skill
from .rollout import Origin, Rollout
from .series import Array, Series, read_series, refuse_identifiers
from .times import Times
from .windows import SeriesScaling

__all__ = ["SequenceForecaster"]


class SequenceForecaster(ForecastTraining):
    """Forecast series over a horizon, from their past and from covariates.

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

    Columns of tables of covariates may hold categories (strings, booleans, objects, categorical):
    they are embedded. Categories that were not seen in `fit`, and missing ones, are all alike then,
    and have no effect of their own.

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
    past
        Names of those columns of X, for arrays their positions, that are not known ahead: their
        values may have gaps, in which the last known one is seen, and those after the origin of a
        forecast are never looked at. Not for ``strategy="recursive"``.
    calendar
        Features of the dates of steps, which need not be in X: True chooses some by the distance of
        steps, the season, and how long series are; or a list of "minute_of_hour", "hour_of_day",
        "day_of_week", "hour_of_week", "day_of_month", "day_of_year", "week_of_year", "month",
        "quarter". Days and hours are those of the index's time zone.
    holidays
        A country's code, such as "DE", or "DE-BY" for a part of it: whether days are holidays, the
        days before one, or after one. Needs the package holidays, and steps of at most a day.
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

    _known: AllCovariates
    _scaling: SeriesScaling  # of the training series
    _origin: Origin  # the current position of the series
    _times: list[Times | None]  # its times

    def __init__(
        self,
        horizon: int = 1,
        *,
        quantiles: Sequence[float] | None = None,
        strategy: str = "direct",
        season: int | None = None,
        past: Sequence[str | int] = (),
        calendar: bool | Sequence[str] = False,
        holidays: str | None = None,
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
        self.past = past
        self.calendar = calendar
        self.holidays = holidays
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

    def fit(self, y: object, X: object = None, *, static: object = None) -> SequenceForecaster:  # noqa: N803 (as in scikit-learn)
        """Train on all steps of series.

        Parameters
        ----------
        y
            The series; see above.
        X
            Covariates of the same steps, ``(T, F)``, for a panel ``(N, T, F)``, a list of
            ``(T_i, F)``, or ``(T, F)`` for all series. Those not in `past` must be known for the
            whole horizon when forecasting (prices, plans, promotions).
        static
            Covariates of each series that do not change, ``(N, S)``; tables may hold categories.

        Returns
        -------
        SequenceForecaster
            This estimator.

        Raises
        ------
        ValueError, TypeError
            A parameter or the data are invalid.
        """
        params = self.get_params(deep=False)
        check_parameters(params)
        series = read_series(y, "y")
        refuse_identifiers(series, "y")
        start = self._begin((series.variables, series.names, X is not None, static is not None))
        goes_on = start.why is None  # with the same scaling, too
        known = self._known if goes_on else None
        x, read = first_read(X, series, self.past, None if known is None else known.x)
        times = check_together(series, read)
        if known is None:
            known = AllCovariates.start(x, times, params)
        if not goes_on:
            columns = len(known.sizes.ahead) + len(known.sizes.past)
            self._choices = Choices.of(params, series.lengths, series.variables, columns)
        lag, apart = self._choices.lag, self._choices.validation
        check_lengths(series, 2 + (lag or 0) + apart, self._needs(), apart=apart)
        if not goes_on:
            known, read = known.measured(read, apart=apart, scaled=self.scale is not None)
        known, fixed = known.of_series(static, series, scaled=self.scale is not None)
        covariates = known.rows(read, series.lengths, times, lambda own: own.index)
        if goes_on and self.scale != "series":
            scaling = self._scaling
        else:
            scaling = self._measure([one[: len(one) - apart] for one in series.arrays])
        self._train(self._task(series, covariates, fixed, known.sizes, scaling), start)
        self.n_features_in_ = series.variables
        self._known, self._scaling = known, scaling
        self._rollout = Rollout(
            self.estimator_, self.horizon, self._choices.lags, self.season, self._compared,
            self._choices.segments, series.variables if self._choices.apart else 1,
            self.strategy == "recursive", self._levels, start.seed,
        )  # fmt: skip
        self._origin = self._rollout.begin(series.arrays, covariates, scaling, fixed)
        self._times = [None if one is None else one.end for one in times]
        self._like = dataclasses.replace(
            series, arrays=[one[:0] for one in series.arrays], indices=(), moved=()
        )
        return self

    def predict(self, y: object = None, X: object = None, *, static: object = None) -> Array:  # noqa: N803
        """Forecast the next `horizon` steps.

        Parameters
        ----------
        y
            Series to forecast, from their start, as in `fit`, with as many variables; they need
            not be the training series. None: continue the training data and what `update` has
            added since.
        X
            Covariates, if `fit` got some, of the steps of `y` and of the horizon,
            ``(T + horizon, F)``; without `y`, ``(horizon, F)``; for panels as in `fit`. In the
            horizon, columns not known ahead may be NaN, and without `y` they may be left out.
        static
            Static covariates of `y`, if `fit` got some.

        Returns
        -------
        numpy.ndarray
            ``(horizon,)``, ``(horizon, K)``, for a panel ``(N, horizon)`` or ``(N, horizon, K)``,
            in the form of the series. Quantiles add a last axis, along which they rise.
        """
        self._check_fitted()
        rollout, origin, form, known = self._rollout, self._origin, self._like, self._known
        if y is None:
            if static is not None:
                raise ValueError("static is given without y: that of the series is known from fit")
            what = "the horizon, the steps that follow"
            read = known.read_ahead(X, form, self.horizon, what)
            if read is not None:
                check_ahead(read, self._times)
            none, horizon = np.zeros(len(form.arrays), int), self.horizon
            ahead = known.rows(read, none, self._times, lambda own: own.following(horizon))
        else:
            form = self._read(y, self._compared or 1)
            what = "the steps of y and of the horizon"
            read = known.read(X, form, form.lengths + self.horizon, what, ahead=self.horizon)
            beyond = 0 if read is None else len(read.arrays[0]) - int(form.lengths[0])
            times = check_together(form, read, ahead=beyond, known=self._times)
            horizon = self.horizon
            covariates = known.rows(read, form.lengths, times, lambda own: own.reaching(horizon))
            _, fixed = known.of_series(static, form)
            scaling = self._scaling
            if self.scale == "series":
                scaling = self._measure(form.arrays).of_single_values(form.arrays, scaling)
            origin = rollout.begin(form.arrays, covariates, scaling, fixed)
            ahead = None if covariates is None else covariates.after(form.lengths)
        return self._result(form, rollout.forecast(origin, ahead))

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
        self._origin = self._rollout.advance(self._origin, values, covariates)
        self._times = times
        return self

    def backtest(self, y: object, X: object = None, *, stride: int | None = None) -> Array:  # noqa: N803
        """Forecast repeatedly as series continue, without learning.

        Parameters
        ----------
        y, X
            Data that follow the training data, as in `update`; they are not kept.
        stride
            Forecasts are made at the end of the training data and every so many steps after it;
            None: every `horizon` steps.

        Returns
        -------
        numpy.ndarray
            Forecasts at these times along the first axis, each as `predict` returns it. The last
            ones may reach beyond `y`: there, covariates but those of the calendar are assumed
            average.
        """
        self._check_fitted()
        stride = self.horizon if stride is None else stride
        check_count("stride", stride)
        values, covariates, _ = self._following(y, X)
        found = self._rollout.forecasts(self._origin, values, covariates, stride)
        return np.stack([self._result(self._like, one) for one in found])

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

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_origin")

    def _needs(self) -> str:
        return f"horizon={self.horizon}, season={self.season}"

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")

    def _read(self, y: object, least: int, *, known: bool = True) -> Series:
        series = read_series(y, "y", self._like.names)
        refuse_identifiers(series, "y")
        if series.variables != self.n_features_in_:
            raise ValueError(
                f"y must have {self.n_features_in_} variables, as in fit, got {series.variables}"
            )
        check_lengths(series, least, self._needs(), known=known)
        return series

    def _following(
        self, y: object, X: object  # noqa: N803
    ) -> tuple[Array, CovariateRows | None, list[Times | None]]:  # fmt: skip
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
        read = self._known.read(X, series, series.lengths, "the steps of y")
        times = check_going_on(series, read, self._times)
        steps = int(series.lengths[0]) + self.horizon
        covariates = self._known.rows(
            read, series.lengths, self._times, lambda own: own.following(steps)
        )
        return np.stack(series.arrays), covariates, times

    def _result(self, form: Series, found: Array) -> Array:
        return form.like(found if self.quantiles is not None else found[..., 0])
