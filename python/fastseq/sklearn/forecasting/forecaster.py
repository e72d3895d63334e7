"""`SequenceForecaster`: forecasts of series over a horizon, the scikit-learn way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn, optim

from .alignment import (
    check_together,
)  # fmt: skip
from .all_covariates import choose, first_read
from .automatic_settings import SEGMENT_RNN, least_steps
from .baselines import Baselines
from .conformal import check_held_out
from .evaluated_forecaster import EvaluatedForecaster
from .fitting import all_or_nothing
from .forecast_parameters import check_lengths, check_parameters
from .frequencies import common_season, offset_of
from .held_out import Correction
from .joined_data import data_copy
from .last_steps import LastSteps
from .series import Array, Series, read_series, refuse_identifiers
from .target_weights import column_of_weights, read_series_weights, with_age
from .times import Spacing, ends_of
from .training_series import TrainingSeries
from .transforms import check_domain, transformed

if TYPE_CHECKING:
    pass

__all__ = ["SequenceForecaster"]


class SequenceForecaster(EvaluatedForecaster):
    """Forecast series over a horizon, from their past and from covariates.

    One model serves all series. `horizon` and `season` are all it needs: parameters that are None
    are chosen from them and from the data.

    Pass one series ``(T,)`` or ``(T, K)`` (K variables), or a panel: an array
    ``(N, T, K)``, or a list or dictionary of ``(T_i,)`` or ``(T_i, K)`` of any lengths (turn an
    array ``(N, T)`` into a list by ``list(y)``). NaN marks missing values: they are not learnt, and
    the model sees the last known value in their place. A series of a panel without any known value
    is not forecast (NaN) until one has come; then it is as a series that has just begun.

    The index of a pandas Series or DataFrame is the time. Dates may be in any order, but must be
    equally far apart; missing dates are missing values. Covariates must have the same times, and
    later data must follow directly. Columns are matched by name, in the order of `fit`. Arrays,
    lists and an index 0, 1, 2, … carry no times: later data are then assumed to follow.

    A long frame, of pandas or polars, has rows of all series, in any order, with their ids in the
    column `id_col`, times in `time_col` and values in `target_col`; all other columns are
    covariates. Series are sorted by id.

    Forecasts have the form of the data: arrays for arrays, tables with the times that follow for
    tables, a long frame for a long frame.

    Columns of tables of covariates may hold categories (strings, booleans, objects, categorical):
    they are embedded. Categories that were not seen in `fit`, and missing ones, share one
    embedding, which has no effect.

    scikit-learn's searches take series as their data, and covariates as their targets,
    ``GridSearchCV(f, grid, cv=TimeSeriesSplit(3)).fit(y, X)``: the data of one series (or a table,
    a column for each) are split by time. They would split a list by series, and a long frame
    between any rows: for it, `cv` must be pairs of rows, earlier and later ones. ``cv=5`` does not
    split by time. ``TimeSeriesSplit(gap=2)`` needs data with times: arrays are assumed to follow
    directly, so scores would be those of forecasts shifted by the gap.

    Parameters
    ----------
    horizon
        Number of steps of a forecast.
    quantiles
        Levels to forecast, increasing, such as ``(0.1, 0.5, 0.9)``; None: points.
    strategy
        ``"direct"``: the model forecasts all steps of the horizon at once, at every step of the
        series. ``"recursive"``: it forecasts the next step, and its forecasts are fed back; its
        quantiles are computed from 200 futures drawn from the learnt distributions.
    season
        Steps of a season. "segrnn" starts from the mean of the last seasons and learns what differs
        from it. With a season of more than 168 steps, and for other models, changes from the values
        a season before (direct: as many seasons before as are known for the whole horizon) are
        learnt instead of the values. A missing value is replaced by the one a season earlier; if
        none was ever known, by the last known value. "auto": that of the frequency, such as 24 of
        hours, 7 of days, 52 of weeks, 12 of months; none if there are no dates, or series are
        shorter than two seasons ("segrnn": half of them; others: one). See `season_`.
    freq
        How far apart steps are: a frequency of pandas such as "15min", or a number. None: inferred
        from the times; at least half of them must then follow each other directly, and at least
        half of all steps must be there.
    id_col
        Column of a long frame that holds the series' ids.
    time_col
        Column of a long frame that holds times.
    target_col
        Column of a long frame that holds the values to forecast.
    past
        Names of those columns of X, for arrays their positions, that are not known ahead: their
        values may have gaps, in which the model sees the last known one, and values after the
        origin of a forecast are never read. Not for ``strategy="recursive"``.
    calendar
        Features of the dates of steps, which X does not have to contain: True chooses some by the
        length of steps and of series; or a list of "minute_of_hour", "hour_of_day", "day_of_week",
        "hour_of_week", "day_of_month", "day_of_year", "week_of_year", "month", "quarter". Days and
        hours are those of the index's time zone, so series given to `predict` must be in that of
        `fit`; `update` converts.
    holidays
        A country's code, such as "DE", or "DE-BY" for a part of it: marks holidays, the days before
        them, and the days after them. Needs the package holidays, and steps of at most a day.
    transform
        "log1p", "log" or "sqrt", for counts and other values that are never negative: the model
        learns transformed values, and its forecasts are transformed back, so they are never
        negative either. Quantiles stay quantiles. Points become medians for the losses "mae" and
        "huber". For "mse" they are means, by smearing: over the errors of each step of the horizon
        in the held-out part or, without one, in the last training steps.
    half_life
        Number of steps before the end of each series over which weights in the loss fall by half;
        None: old steps count as much as new ones.
    horizon_weights
        Weights of the steps of the horizon in the loss, ``(horizon,)``; a step of weight 0 is not
        learnt. They are relative to each other, and are multiplied by those given to `fit`.
    ensemble
        Number of models with different seeds, trained together, whose forecasts (each quantile's)
        are averaged. Each learns as if alone, with gradients clipped by its own norm, but all share
        the best epoch: the one whose average does best on the held-out part.
    conformal
        "split": quantiles are shifted so that they hold on the held-out part: for each step of the
        horizon by the empirical quantile of actual values less forecasts, in units of each series'
        mean change over a season, or a step. Shifts are those of all series together, so series
        too short to hold steps out have them, too. "adaptive": from there on, the shifts of each
        series follow how often its quantiles miss, as `update` and `backtest` bring actual values;
        other series, given to `predict`, get the shifts of "split". None: quantiles are those
        learnt.
    lags
        Number of last values the model sees at each step. Recurrent models remember earlier values;
        a model without state needs as many as matter. None: 1; for "segrnn" 4 horizons or 2
        seasons, at most 336 or half of the longest series.
    scale
        ``"standard"``: by mean and standard deviation of all series; ``"series"``: of each series
        ("segrnn": by its mean and its mean absolute change over a season, or a step), for panels of
        different levels; ``"auto"``: "series" for panels and "segrnn", else "standard"; or None.
        Covariates are scaled too, unless None.
    module
        The model. "segrnn" forecasts changes from the last value, by a linear path from the last
        `lags` values and a recurrent one over segments of them. Others, which carry a state through
        the series, are "lstm", "gru", "rnn", "mlp", "linear", an `nn.Module` or its class, or a
        builder ``(n_in, n_out, rng) -> nn.Module``.
    variables
        ``"independent"``: one model forecasts each variable from its own past, as if it were a
        series of the panel; ``"together"``: all variables from the past of all. None: independent
        for "segrnn", else together.
    hidden_size
        Number of units of a layer, if `module` is a name. None: 32; for "segrnn" 64.
    num_layers
        Number of layers, if `module` is a name.
    dropout
        Dropout in training, from 0 to 1, if `module` is a name. None: 0; for "segrnn" 0.3.
    loss
        Loss of points: "mse", "mae", "huber", or ``loss(output, target, reduction="none")``, on
        scaled values. Quantiles are learnt by the pinball loss. None: "mae" for "segrnn", else
        "mse".
    optimizer
        "adam", "adamw", "sgd", "rmsprop", or a callable.
    lr
        Its learning rate. For "segrnn" it falls: by half in each epoch, or in 400 updates if an
        epoch has fewer, down to 3 %.
    weight_decay
        Its weight decay.
    decay_biases
        Whether biases decay, too.
    epochs
        Passes over the data. None: 30; for "segrnn" as many as suit the amount of data. If all
        series have more than 750,000 steps, each of its epochs draws that many at random.
    batchsize
        Series trained together. None: 32; for "segrnn", which is trained on segments of `seqsize`
        steps in a new order each epoch, as many segments as suit the amount of data.
    seqsize
        Time steps that gradients reach back. None: 64; for "segrnn" 8.
    fold
        Number of segments, trained together, to cut a long series into. None: 1.
    clip_norm
        Scale gradients down together so that their 2-norm is at most this.
    clip_value
        Clip each gradient element to ± this, before `clip_norm`.
    accumulate
        Chunks whose gradients are averaged for one update.
    validation
        Number of last steps of each series to hold out: the loss of their forecasts goes into the
        history after each epoch, for callbacks such as early stopping. "segrnn" keeps the weights
        of the best epoch, or repeats the last season if that is better. Of series of a panel that
        are too short, or of which nothing is known before these steps, none are held out. 0: none.
        None: none; for "segrnn" a tenth of long series; with `conformal` as many as quantiles need,
        or up to a quarter of the shortest series that is long enough.
    random_state
        Seed of weights, order and drawn futures: an integer, a generator, or None.
    device
        Where to compute.
    callbacks, amp, compile, comm
        See `Estimator`.
    warm_start
        Whether `fit` continues training, up to `epochs` in all; see `continued_`.
    verbose
        0: `fit` says nothing. 1: it shows a progress bar, and prints whether it continues or starts
        from scratch. 2: a line for each epoch with all its figures instead of the bar.

    Attributes
    ----------
    estimator_
        The trained `Estimator`.
    history_
        The `History` of training.
    n_features_in_
        Number of variables.
    season_
        Steps of the season; None: none.
    repeats_
        Whether "segrnn" repeats the last season, because that was better on the held-out part.

    Raises
    ------
    MissingFeatureError
        scikit-learn is not installed (when it is imported). Parameters are checked in `fit`.

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

    A long frame:

    >>> import pandas as pd
    >>> days = pd.date_range("2024-01-01", periods=60)
    >>> shops = pd.concat(
    ...     pd.DataFrame({"unique_id": shop, "ds": days, "y": np.sin(np.arange(60.0) / size)})
    ...     for shop, size in (("north", 2), ("south", 3))
    ... )
    >>> f = SequenceForecaster(horizon=2, epochs=5, random_state=0).fit(shops)
    >>> f.predict()[["unique_id", "ds"]]
      unique_id         ds
    0     north 2024-03-01
    1     north 2024-03-02
    2     south 2024-03-01
    3     south 2024-03-02
    """

    def __init__(
        self,
        horizon: int = 1,
        *,
        quantiles: Sequence[float] | None = None,
        strategy: str = "direct",
        season: int | str | None = "auto",
        freq: object = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        past: Sequence[str | int] = (),
        calendar: bool | Sequence[str] = False,
        holidays: str | None = None,
        transform: str | None = None,
        half_life: float | None = None,
        horizon_weights: Sequence[float] | None = None,
        ensemble: int = 1,
        conformal: str | None = None,
        lags: int | None = None,
        scale: str | None = "auto",
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
        verbose: bool | int = 0,
    ) -> None:
        self.horizon = horizon
        self.quantiles = quantiles
        self.strategy = strategy
        self.season = season
        self.freq = freq
        self.id_col = id_col
        self.time_col = time_col
        self.target_col = target_col
        self.past = past
        self.calendar = calendar
        self.holidays = holidays
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

    @all_or_nothing
    def fit(
        self,
        y: object,
        X: object = None,  # noqa: N803 (as in scikit-learn)
        *,
        static: object = None,
        weights: object = None,
    ) -> SequenceForecaster:
        """Train on all steps of series.

        Parameters
        ----------
        y
            The series; see above.
        X
            Covariates of the same steps, ``(T, F)``, for a panel ``(N, T, F)``, a list or
            dictionary of ``(T_i, F)``, or ``(T, F)`` for all series; None if `y` is a long frame,
            which has them. Those not in `past` must be known for the whole horizon when
            forecasting (prices, plans, promotions).
        static
            Covariates of each series that do not change, ``(N, S)``. The rows of a table go by the
            series' ids, which are its index or its column `id_col`; without ids by their order.
            Tables may hold categories.
        weights
            How much values count in the loss: a number for each series of a panel, ``(N,)``, by id
            if there are ids (a dictionary or a Series), or for each time step or each value, in the
            form of `y`; of a long frame the name of a column, which later frames may have, too
            (only a backtest with `refit=` looks at it). None: all count alike.
            They are relative to each other. A value of weight 0 is not learnt, but seen as the past
            of others. The loss of a validation part is weighted, too.

        Returns
        -------
        SequenceForecaster
            This estimator.

        Raises
        ------
        ValueError, TypeError
            A parameter or the data are invalid, or series are too short; what was fitted before
            stays as it was.
        NonFiniteError
            The loss became NaN or infinite.
        MissingFeatureError
            `holidays` are asked for, but the package holidays is not installed.

        Examples
        --------
        A panel, with a covariate of each step, which is known ahead, and one of each series:

        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceForecaster
        >>> sales = {"north": np.sin(np.arange(80) / 3), "south": np.cos(np.arange(60) / 3)}
        >>> prices = {shop: np.ones((len(y), 1)) for shop, y in sales.items()}
        >>> f = SequenceForecaster(4, epochs=2, random_state=0)
        >>> f = f.fit(sales, prices, static=[[120.0], [80.0]], weights={"north": 1, "south": 2})
        >>> ahead = {shop: np.ones((4, 1)) for shop in sales}
        >>> {shop: found.shape for shop, found in f.predict(X=ahead).items()}
        {'north': (4,), 'south': (4,)}
        """
        self._check_types()
        params = self.get_params(deep=False)
        check_parameters(params)
        spacing = Spacing(None if self.freq is None else offset_of(self.freq))
        given = {"y": y, "X": X, "static": static, "weights": weights}
        self._weight_column = None
        if isinstance(weights, str):
            self._weight_column = weights
            y, weights = column_of_weights(y, weights, self._columns, spacing)
        y, X = self._columns.split(y, X, spacing)  # noqa: N806
        series = read_series(y, "y", spacing=spacing)
        refuse_identifiers(series, "y")
        check_domain(series, self.transform, "y")
        of_values = None if weights is None else read_series_weights(weights, series, spacing)
        of_values = with_age(of_values, series, self.half_life)
        raw = series.arrays
        series = transformed(series, self.transform)
        start = self._begin((series.variables, series.names, X is not None, static is not None))
        goes_on = start.why is None  # with the same scaling, too
        known = self._known if goes_on else None
        x, read = first_read(X, series, self.past, None if known is None else known.x, spacing)
        times = check_together(series, read)
        if known is None:
            season = common_season([spacing.given] if spacing.given else series.freqs)
            self._settings, known = choose(params, series, season, x, times)
        apart, scaled = self._held_out(series), self.scale is not None
        if not goes_on:
            known, read = known.measured(read, apart=apart, scaled=scaled)
        known, fixed = known.of_series(static, series, self.id_col, scaled=scaled)
        covariates = known.rows(read, series.lengths, times, lambda own: own.index)
        if goes_on and not self._scales_each:
            scaling = self._scaling
        else:
            ends = zip(series.arrays, apart.tolist(), strict=True)
            scaling = self._measure([one[: len(one) - steps] for one, steps in ends])
        data = TrainingSeries(series, covariates, fixed, scaling, of_values, apart)
        task = self._task(data.taken(data.known), known.sizes)
        # Callbacks may write into them.
        given |= {"y": data_copy(given["y"]), "X": data_copy(given["X"])}
        self._train(task, start)
        self.n_features_in_ = series.variables
        self._known, self._scaling = known, scaling
        self._rollout = self._make_rollout(start.seed)
        self._correct(data)
        self._origin = self._rollout.begin(series.arrays, covariates, scaling, fixed)
        self._last = LastSteps.of(series.arrays, covariates, self._rows())
        self._baselines = Baselines.measure(raw, self._settings.season)
        self._times = ends_of(times)
        self._like = dataclasses.replace(
            series, arrays=[one[:0].copy() for one in series.arrays], indices=(), moved=(),
            freqs=(), gap=None,
        )  # fmt: skip
        self.season_: int | None = self._settings.season
        self._data = given
        return self

    def update(self, y: object, X: object = None) -> SequenceForecaster:  # noqa: N803
        """Append new data; `predict` then forecasts from their end. Nothing is learnt.

        Parameters
        ----------
        y
            The next steps of the series that `fit` got, in their form; of a panel any number of
            each. A long frame or a dictionary may have some of the series; in a list, series
            without new steps are empty.
        X
            Covariates of these steps, if `fit` got some.

        Returns
        -------
        SequenceForecaster
            This estimator.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        ValueError, TypeError
            The data are invalid, such as steps that do not follow; nothing has been changed.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from fastseq.sklearn import SequenceForecaster
        >>> y = pd.Series(np.sin(np.arange(90) / 4), pd.date_range("2024-01-01", periods=90))
        >>> f = SequenceForecaster(2, epochs=2, random_state=0).fit(y[:60])
        >>> f.update(y[60:]).predict().index.strftime("%d %B").tolist()
        ['31 March', '01 April']
        """
        self._check_fitted()
        self._advance(self._following(y, X))
        return self

    def partial_fit(self, y: object, X: object = None) -> SequenceForecaster:  # noqa: N803
        """Learn from new data; `predict` then forecasts from their end.

        The model is trained for one epoch, with the learning rate at which `fit` ended, on all
        forecasts that reach into the new steps; nothing else of the training data is seen. Then the
        series advance, as by `update`. Scaling stays as in `fit`. Called before any `fit`, this
        does the same as `fit`.

        Parameters
        ----------
        y, X
            As in `update`.

        Returns
        -------
        SequenceForecaster
            This estimator.

        Raises
        ------
        ValueError, TypeError
            The data are invalid, or a parameter that matters was changed after `fit`; nothing has
            been changed.
        NonFiniteError
            The loss became NaN or infinite.

        Examples
        --------
        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceForecaster
        >>> y = np.sin(np.arange(90) / 4)
        >>> f = SequenceForecaster(2, epochs=2, random_state=0).fit(y[:60])
        >>> f.partial_fit(y[60:75]).partial_fit(y[75:]).n_iter_  # epochs in all
        4
        """
        if not self.__sklearn_is_fitted__():
            return self.fit(y, X)
        self._check_types()
        check_parameters(self.get_params(deep=False))
        start = self._begin(self._form, partial=True)
        new = self._following(y, X)
        self._learn_on(self._last, self._seen(new), self._awake(new)[0], start)
        self._advance(new)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave the training data out."""
        return {**super().__getstate__(), "_data": None}

    def _held_out(self, series: Series) -> Array:
        """Return how many last steps of each series to hold out; raise if too little is left."""
        settings = self._settings
        apart = settings.held_out(series.arrays)
        if self.conformal is not None:
            count = int((apart > 0).sum())
            check_held_out(self._levels or (), self.horizon, settings.validation, count)
        check_lengths(
            series, least_steps(settings), self._needs(),
            shortest=1 if settings.takes_short else settings.left, apart=apart,
            together=not settings.apart,
        )  # fmt: skip
        return apart

    def _correct(self, data: TrainingSeries) -> None:
        """Measure the corrections of the model's forecasts."""
        self._correction = Correction.measure(
            self._rollout, data, transform=self.transform,
            means=self._levels is None and self._settings.loss == "mse",
            conformal=self.conformal is not None,
        )  # fmt: skip
        self._tracker = None
        if self.conformal == "adaptive":
            self._tracker = self._correction.tracker(self._rollout, data)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_origin")
