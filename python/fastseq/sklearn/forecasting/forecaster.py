"""`SequenceForecaster`: what series will be over a horizon, in scikit-learn's manner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError

from ...training.spec import check_count
from ..alignment import check_ahead, check_going_on, check_together
from .covariates import Covariates
from .fitting import ForecastTraining
from .forecast_parameters import check_lengths, check_parameters, season_lag
from .forecast_score import skill
from .rollout import Origin, Rollout
from .series import Array, Series, read_series, refuse_identifiers
from .times import Times
from .windows import SeriesScaling

__all__ = ["SequenceForecaster"]


class SequenceForecaster(ForecastTraining):
    """Forecasts series over a horizon, from their past and from covariates that are known ahead.

    One model for all series. It is trained on all their steps, from the first to the last, with
    state carried along: no windows are cut out and copied.

    Series are one ``(T,)`` or ``(T, K)`` (K variables, forecast together), or a panel: an array
    ``(N, T, K)``, or a list of ``(T_i,)`` or ``(T_i, K)`` of any lengths (``list(y)`` makes one of
    an array ``(N, T)``). NaN marks missing values: they are not learnt, and the model sees the last
    known value in their place.

    Series and DataFrames of pandas are taken likewise; their index is the time. Dates may come in
    any order, but must be equally far apart (`asfreq` makes rows of missing ones); covariates must
    have the same times, and what follows must follow. Columns go by their names, in the order of
    `fit`. An index 0, 1, 2, … tells no time, as arrays and lists tell none: then what comes next is
    taken to follow.

    Parameters
    ----------
    horizon
        How many steps a forecast has.
    quantiles
        Levels to forecast, rising, such as ``(0.1, 0.5, 0.9)``; None: points.
    strategy
        ``"direct"``: the model forecasts all steps of the horizon at once, at every step of the
        series. ``"recursive"``: it forecasts the next step, and is fed with its forecasts; its
        quantiles are those of 200 futures that are drawn from the distributions it learns.
    season
        Steps of a season. The model then learns how values differ from those a season before
        (direct: as many seasons before as are known for the whole horizon) instead of the values.
        Where a value is missing, that of a season before it is compared with; where none was ever
        known there, the last one known before.
    lags
        How many of the last values the model sees at each step. Recurrent models remember; one
        without state needs as many as matter.
    scale
        ``"standard"``: by mean and standard deviation of all series; ``"series"``: of each its
        own, for panels of different levels; or None. Covariates are scaled too, unless None.
    module
        The model: "lstm", "gru", "rnn", "mlp", "linear", an `nn.Module` or its class, or a builder
        ``(n_in, n_out, rng) -> nn.Module``.
    hidden_size, num_layers, dropout
        Of the model, if `module` is a name.
    loss
        Of points: "mse", "mae", "huber", or ``loss(output, target, reduction="none")``, on scaled
        values. Quantiles are learnt by the pinball loss.
    optimizer, lr, weight_decay, decay_biases
        "adam", "adamw", "sgd", "rmsprop", or a callable; its learning rate and decay, and whether
        biases decay.
    epochs, batchsize, seqsize, fold
        See `Spec`: passes over the data; series trained together; steps that gradients reach back;
        64 if None; and into how many segments a long series is cut, which are trained together.
    clip_norm, clip_value, accumulate
        See `Spec`.
    validation
        How many of the last steps of each series are not trained on: the loss of forecasts of them
        goes into the history after each epoch, for callbacks such as early stopping.
    random_state
        Seeds weights, order and futures that are drawn: an integer, a generator, or None.
    device
        Where to compute.
    callbacks, amp, compile, comm
        See `Estimator`.
    warm_start
        Whether `fit` goes on from what was learnt, up to `epochs` in all; see `continued_`.
    verbose
        Show a progress bar.

    Attributes
    ----------
    estimator_
        The `Estimator` that was trained.
    history_
        What training did: a `History`.
    n_features_in_
        Number of variables.

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
    _origin: Origin  # where the series have got to
    _times: list[Times | None]  # when that is

    def __init__(
        self,
        horizon: int = 1,
        *,
        quantiles: Sequence[float] | None = None,
        strategy: str = "direct",
        season: int | None = None,
        lags: int = 1,
        scale: str | None = "standard",
        module: Any = "lstm",
        hidden_size: int = 32,
        num_layers: int = 1,
        dropout: float = 0.0,
        loss: Any = "mse",
        optimizer: Any = "adamw",
        lr: float = 3e-3,
        weight_decay: float = 0.0,
        decay_biases: bool = True,
        epochs: int = 30,
        batchsize: int = 32,
        seqsize: int | None = None,
        fold: int = 1,
        clip_norm: float | None = 1.0,
        clip_value: float | None = None,
        accumulate: int = 1,
        validation: int | None = None,
        callbacks: Any = (),
        amp: str | None = None,
        compile: bool = False,  # noqa: A002 (what PyTorch calls it)
        device: Any = "auto",
        comm: Any = None,
        random_state: Any = None,
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

    def fit(self, y: Any, X: Any = None) -> SequenceForecaster:  # noqa: N803 (as in scikit-learn)
        """Train on all steps of series.

        Parameters
        ----------
        y
            The series; see above.
        X
            Covariates of the same steps, ``(T, F)``, for a panel ``(N, T, F)``, a list of
            ``(T_i, F)``, or ``(T, F)`` for all series: what will be known for the whole horizon
            when forecasts are made (a calendar, prices, plans).

        Returns
        -------
        SequenceForecaster
            This one.

        Raises
        ------
        ValueError, TypeError
            A parameter or the data are not what they should be.
        """
        check_parameters(self.get_params(deep=False))
        series = read_series(y, "y")
        refuse_identifiers(series, "y")
        lag = season_lag(self.season, self.horizon, self.strategy)
        apart = self.validation or 0
        check_lengths(series, 2 + (lag or 0) + apart, self._needs(), apart=apart)
        start = self._begin((series.variables, series.names, X is not None))
        goes_on = start.why is None  # with what scales the data, too
        known = self._known if goes_on else None
        read = None
        if X is not None:
            read = Covariates.read(X, series, series.lengths, "the steps of y", known)
            known = known or Covariates.measure(read, scaled=self.scale is not None, apart=apart)
        times = check_together(series, read)
        covariates = None if read is None or known is None else known.scaled(read)
        if goes_on and self.scale != "series":
            scaling = self._origin.scaling
        else:
            arrays = [one[: len(one) - apart] for one in series.arrays]
            scaling = SeriesScaling.measure(arrays, self.scale, lag, self.season)
        self._train(self._task(series, covariates, scaling, lag), start)
        self.n_features_in_ = series.variables
        self._known = known
        self._rollout = Rollout(
            self.estimator_, self.horizon, self.lags, self.season, lag,
            self.strategy == "recursive", self._levels, start.seed,
        )  # fmt: skip
        self._origin = self._rollout.begin(series.arrays, covariates, scaling)
        self._times = [None if one is None else one.end for one in times]
        self._like = dataclasses.replace(
            series, arrays=[one[:0] for one in series.arrays], indices=(), moved=()
        )
        return self

    def predict(self, y: Any = None, X: Any = None) -> Array:  # noqa: N803
        """Forecast the next `horizon` steps.

        Parameters
        ----------
        y
            Series to forecast, from their start, as in `fit`, with as many variables; they need
            not be those that were trained on. None: what follows the training data and what
            `update` has brought since.
        X
            If `fit` got covariates: those of the steps of `y` and of the horizon,
            ``(T + horizon, F)``; without `y`, ``(horizon, F)``; for panels as in `fit`.

        Returns
        -------
        numpy.ndarray
            ``(horizon,)``, ``(horizon, K)``, for a panel ``(N, horizon)`` or ``(N, horizon, K)``,
            as the series came. With quantiles the last axis is theirs; they rise along it.
        """
        self._check_fitted()
        rollout, origin, form = self._rollout, self._origin, self._like
        past = ahead = None
        if y is None:
            count = len(form.arrays)
            what = "the horizon, the steps that follow"
            read = self._read_covariates(X, form, np.full(count, self.horizon), what)
            if read is not None and self._known is not None:
                check_ahead(read, self._times)
                ahead = self._known.scaled(read)
        else:
            form = self._read(y, rollout.lag or 1)
            what = "the steps of y and of the horizon"
            read = self._read_covariates(X, form, form.lengths + self.horizon, what)
            check_together(form, read, ahead=0 if read is None else self.horizon, known=self._times)
            if read is not None and self._known is not None:
                whole = self._known.scaled(read)
                past = [one[: -self.horizon] for one in whole]
                ahead = [one[-self.horizon :] for one in whole]
            scaling = origin.scaling
            if self.scale == "series":
                scaling = SeriesScaling.measure(
                    form.arrays, self.scale, rollout.lag, rollout.season
                )
            origin = rollout.begin(form.arrays, past, scaling)
        found = rollout.forecast(origin, None if ahead is None else np.stack(ahead))
        return self._result(form, found)

    def update(self, y: Any, X: Any = None) -> SequenceForecaster:  # noqa: N803
        """Go on with what has come since: `predict` forecasts from its end. Nothing is learnt.

        Parameters
        ----------
        y
            The next steps of the series that `fit` got, in their form; of a panel, equally many of
            each.
        X
            Covariates of these steps, if `fit` got some.

        Raises
        ------
        ValueError, TypeError
            They are not what they should be, such as steps that do not follow; nothing has been
            changed.
        """
        self._check_fitted()
        values, covariates, times = self._following(y, X)
        self._origin = self._rollout.advance(self._origin, values, covariates)
        self._times = times
        return self

    def backtest(self, y: Any, X: Any = None, *, stride: int | None = None) -> Array:  # noqa: N803
        """Forecast again and again while series go on, without learning from it.

        Parameters
        ----------
        y, X
            What came after the training data, as in `update`; it is not kept.
        stride
            Forecasts are made at the end of the training data and every so many steps after it;
            None: every `horizon` steps.

        Returns
        -------
        numpy.ndarray
            Forecasts, one for each of these times along the first axis, then as `predict` returns
            them. The last ones may reach beyond `y`: there, covariates are taken as average.
        """
        self._check_fitted()
        stride = self.horizon if stride is None else stride
        check_count("stride", stride)
        values, covariates, _ = self._following(y, X)
        found = self._rollout.forecasts(self._origin, values, covariates, stride)
        return np.stack([self._result(self._like, one) for one in found])

    def score(self, y: Any, X: Any = None) -> float:  # noqa: N803
        """Return how good forecasts of what came after the training data are; 1 is perfect.

        They are made every `horizon` steps, as by `backtest`. For points the score is R²; for
        quantiles it is D² of the pinball loss, as in `sklearn.metrics.d2_pinball_score`. 0 is what
        the best constant would get. The mean over variables is returned.

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

    def _read(self, y: Any, least: int, *, known: bool = True) -> Series:
        series = read_series(y, "y", self._like.names)
        refuse_identifiers(series, "y")
        if series.variables != self.n_features_in_:
            raise ValueError(
                f"y must have {self.n_features_in_} variables, as in fit, got {series.variables}"
            )
        check_lengths(series, least, self._needs(), known=known)
        return series

    def _following(
        self, y: Any, X: Any  # noqa: N803
    ) -> tuple[Array, Array | None, list[Times | None]]:  # fmt: skip
        """Read what comes after the series that `fit` got; return it, and its last times."""
        series = self._read(y, 1, known=False)
        count = len(self._like.arrays)
        if len(series.arrays) != count:
            raise ValueError(
                f"y must go on with the {count} series that fit got, got {len(series.arrays)}"
            )
        if len(set(series.lengths.tolist())) > 1:
            raise ValueError(
                f"y must have equally many steps of each series, got {series.lengths.tolist()}"
            )
        read = self._read_covariates(X, series, series.lengths, "the steps of y")
        times = check_going_on(series, read, self._times)
        covariates = None
        if read is not None and self._known is not None:
            covariates = np.stack(self._known.scaled(read))
        return np.stack(series.arrays), covariates, times

    def _read_covariates(
        self,
        X: Any,  # noqa: N803
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
