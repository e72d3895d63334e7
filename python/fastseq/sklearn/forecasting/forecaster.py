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
from .choices import SEGMENT_RNN, Choices
from .conformal import Tracker, check_held_out
from .covariates import Covariates
from .fitting import ForecastTraining
from .forecast_parameters import check_lengths, check_parameters
from .forecast_score import skill
from .held_out import Correction
from .rollout import Origin, Rollout
from .series import Array, Series, read_series, refuse_identifiers
from .target_weights import read_weights, with_age
from .times import Times
from .transforms import transformed, undone
from .windows import SeriesScaling

__all__ = ["SequenceForecaster"]


class SequenceForecaster(ForecastTraining):
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
    transform
        "log1p", "log" or "sqrt", for counts and other values that are never negative: the model
        learns transformed values, and its forecasts are transformed back, which are then never
        negative either. Quantiles stay quantiles. Points become medians for the losses "mae" and
        "huber". For "mse" they are means by smearing: over the errors, for each step of the
        horizon, of the held-out part, or without one of the last training steps.
    half_life
        Number of steps before the end of each series over which weights in the loss fall by half;
        None: old steps count as much as new ones.
    horizon_weights
        Weights of the steps of the horizon in the loss, ``(horizon,)``; a step of weight 0 is not
        learnt. They are relative to each other, and multiply with those given to `fit`.
    ensemble
        Number of models of different seeds, trained together, whose forecasts (each quantile's) are
        averaged. Each learns as if alone, with gradients clipped by its own norm, but the same
        epoch of all is the best: the one whose average does best on the held-out part.
    conformal
        "split": quantiles are shifted so that they hold on the held-out part: for each step of the
        horizon by the empirical quantile of actual values less forecasts, in units of each series'
        mean change over a season, or a step. "adaptive": from there on, the shifts of each series
        follow how often its quantiles miss, as `update` and `backtest` bring actual values; other
        series, given to `predict`, get the shifts of "split". None: quantiles are those learnt.
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
        "segrnn" a tenth of long series; with `conformal` at least as many as quantiles need.
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
    _correction: Correction
    _tracker: Tracker | None  # of adaptive conformal quantiles
    _times: list[Times | None]  # its times

    def __init__(
        self,
        horizon: int = 1,
        *,
        quantiles: Sequence[float] | None = None,
        strategy: str = "direct",
        season: int | None = None,
        transform: str | None = None,
        half_life: float | None = None,
        horizon_weights: Sequence[float] | None = None,
        ensemble: int = 1,
        conformal: str | None = None,
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
        self.transform = transform
        self.half_life = half_life
        self.horizon_weights = horizon_weights
        self.ensemble = ensemble
        self.conformal = conformal
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

    def fit(
        self,
        y: object,
        X: object = None,  # noqa: N803 (as in scikit-learn)
        *,
        weights: object = None,
    ) -> SequenceForecaster:
        """Train on all steps of series.

        Parameters
        ----------
        y
            The series; see above.
        X
            Covariates of the same steps, ``(T, F)``, for a panel ``(N, T, F)``, a list of
            ``(T_i, F)``, or ``(T, F)`` for all series. They must be known for the whole horizon
            when forecasting (a calendar, prices, plans).
        weights
            How much values count in the loss: a number for each series of a panel, ``(N,)``; or
            for each time step, or each value, in the form of `y`. They are relative to each other.
            A value of weight 0 is not learnt, but seen as the past of others. With a validation
            part, its loss is weighted, too.

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
        of_values = None if weights is None else read_weights(weights, series)
        of_values = with_age(of_values, series, self.half_life)
        series = transformed(series, self.transform, "y")
        start = self._begin((series.variables, series.names, X is not None))
        goes_on = start.why is None  # with the same scaling, too
        if not goes_on:
            params = self.get_params(deep=False)
            self._choices = Choices.of(params, series.lengths, series.variables)
        lag, apart = self._choices.lag, self._choices.validation
        if self.conformal is not None:
            check_held_out(self._levels or (), self.horizon, apart, len(series.arrays))
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
        self._train(self._task(series, covariates, scaling, of_values), start)
        self.n_features_in_ = series.variables
        self._known, self._scaling = known, scaling
        self._rollout = Rollout(
            self.estimator_, self.horizon, self._choices.lags, self.season, self._compared,
            self._choices.segments, series.variables if self._choices.apart else 1,
            self.strategy == "recursive", self._levels, start.seed,
        )  # fmt: skip
        self._origin = self._rollout.begin(series.arrays, covariates, scaling)
        self._correction = Correction.measure(
            self._rollout, series.arrays, covariates, scaling, transform=self.transform,
            means=self._levels is None and self._choices.loss == "mse",
            conformal=self.conformal is not None, validation=apart, weights=of_values,
        )  # fmt: skip
        self._tracker = None
        if self.conformal == "adaptive":
            self._tracker = self._correction.tracker(
                self._rollout, series.arrays, covariates, scaling
            )
        self._times = [None if one is None else one.end for one in times]
        self._like = dataclasses.replace(
            series, arrays=[one[:0] for one in series.arrays], indices=(), moved=()
        )
        return self

    def predict(self, y: object = None, X: object = None) -> Array:  # noqa: N803
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

        Returns
        -------
        numpy.ndarray
            ``(horizon,)``, ``(horizon, K)``, for a panel ``(N, horizon)`` or ``(N, horizon, K)``,
            in the form of the series. Quantiles add a last axis, along which they rise.
        """
        self._check_fitted()
        rollout, origin, form = self._rollout, self._origin, self._like
        per, tracker = self._correction.units, self._tracker
        past = ahead = None
        if y is None:
            count = len(form.arrays)
            what = "the horizon, the steps that follow"
            read = self._read_covariates(X, form, np.full(count, self.horizon), what)
            if read is not None and self._known is not None:
                check_ahead(read, self._times)
                ahead = self._known.scaled(read)
        else:
            form = self._read(y, self._choices.lag or 1)
            what = "the steps of y and of the horizon"
            read = self._read_covariates(X, form, form.lengths + self.horizon, what)
            check_together(form, read, ahead=0 if read is None else self.horizon, known=self._times)
            if read is not None and self._known is not None:
                whole = self._known.scaled(read)
                past = [one[: -self.horizon] for one in whole]
                ahead = [one[-self.horizon :] for one in whole]
            scaling = self._measure(form.arrays) if self.scale == "series" else self._scaling
            origin = rollout.begin(form.arrays, past, scaling)
            per, tracker = self._correction.units_of(form.arrays), None
        found = rollout.forecast(origin, None if ahead is None else np.stack(ahead))
        found = self._correction(found, per, None if tracker is None else tracker.shift)
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
        origin = self._rollout.advance(self._origin, values, covariates)
        if self._tracker is not None:
            self._tracker = self._correction.follow(
                self._tracker, self._rollout, values, covariates
            )[0]
        self._origin, self._times = origin, times
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
            ones may reach beyond `y`: there, covariates are assumed average.
        """
        self._check_fitted()
        stride = self.horizon if stride is None else stride
        check_count("stride", stride)
        values, covariates, _ = self._following(y, X)
        found = self._forecasts(values, covariates, stride)
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
        found = np.concatenate(self._forecasts(values, covariates, self.horizon), axis=1)
        values = undone(values, self.transform)
        steps = values.shape[1]
        flat = found[:, :steps].reshape(-1, *found.shape[2:])
        return skill(flat, values.reshape(-1, values.shape[2]), self._levels)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_origin")

    def _needs(self) -> str:
        apart = "" if self.conformal is None else f", {self._choices.validation} steps held out"
        return f"horizon={self.horizon}, season={self.season}{apart}"

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
        return transformed(series, self.transform, "y")

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

    def _forecasts(self, values: Array, covariates: Array | None, stride: int) -> list[Array]:
        """Return forecasts at the current position and every `stride` of the next steps."""
        correct, rollout = self._correction, self._rollout
        if self._tracker is None:
            found = rollout.forecasts(self._origin, values, covariates, stride)
            return [correct(one, correct.units) for one in found]
        _, every, shifts = correct.follow(self._tracker, rollout, values, covariates)
        pairs = zip(every[::stride], shifts[::stride], strict=True)
        return [correct(one, correct.units, shift) for one, shift in pairs]

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
