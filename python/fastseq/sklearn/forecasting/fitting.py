"""Training of a forecaster: makes an `Estimator` and its data from hyperparameters and series."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor
from torch.optim.lr_scheduler import MultiplicativeLR

from ..._util.seeding import seeded
from ...callbacks import RestoreBest, Schedule
from ...callbacks.best_weights import weights_copy
from ...estimator import Estimator
from ...training.run import Callback
from ...training.spec import Spec
from ..base import SequenceEstimator, Start, Task
from ..named_modules import Sizes, make_module
from ..shuffling import Shuffler
from .automatic_settings import AutomaticSettings
from .covariate_encoder import NO_COVARIATES, CovariateSizes
from .covariate_rows import CovariateRows
from .ensemble import Ensemble, ensemble_of
from .forecast_losses import LOSSES, ForecastLoss, pinball_loss
from .forecast_net import ForecastNet, check_steps_apart
from .last_steps import LastSteps
from .new_steps import NewSteps
from .rollout import PATH_LEVELS, Origin, Rollout
from .segment_rnn import SegmentRNN
from .series import Array, split_variables
from .target_weights import normalised, weigh
from .training_series import TrainingSeries
from .windows import SeriesScaling, Windows

__all__ = ["ForecastTraining", "all_or_nothing"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_SIZES = ("n_in", "n_out", "steps", "covariates")  # of a task, from which the model is made
# What forecasts depend on besides the model.
_OF_FORECASTS = ("horizon", "quantiles", "strategy", "transform", "conformal")
_FALLS = 5  # how often the learning rate of a `SegmentRNN` falls by half


def all_or_nothing(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a method that leaves the attributes of its object as they were if it raises."""

    @functools.wraps(method)
    def run(*args: _P.args, **kw: _P.kwargs) -> _R:
        attributes: dict[str, Any] = args[0].__dict__
        before = dict(attributes)
        try:
            return method(*args, **kw)
        except BaseException:
            attributes.clear()
            attributes.update(before)
            raise

    return run


@dataclasses.dataclass
class _Forecasting(Task):
    """A training problem of series that end; see `Task`.

    Parameters
    ----------
    covariates
        Columns of covariates.
    lengths
        Lengths of the series in time steps, ``(N,)``; None: all T.
    segments
        The data as segments to train in a new order each epoch; None: series in their order.
    drawn
        How many of the segments to train in an epoch; None: all.
    """

    covariates: CovariateSizes = NO_COVARIATES
    lengths: Array | None = None
    segments: Windows | None = None
    drawn: int | None = None
    validation: tuple[Any, Any, Tensor | None] | None = None


class WindowEstimator(Estimator):
    """The estimator inside a forecaster: it sees scaled windows of series, and does not scale."""

    def save(self, path: str | os.PathLike[str], *, state: bool = False) -> None:  # noqa: ARG002
        """Refuse: save the forecaster instead.

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError(
            "save: a forecaster's estimator_ has neither the scaling of the series nor their "
            "states: save the forecaster; for the weights alone, save "
            "estimator_.model.state_dict()"
        )


class ForecastTraining(SequenceEstimator):
    """Base of `SequenceForecaster`, which stores the hyperparameters."""

    horizon: int
    quantiles: Sequence[float] | None
    strategy: str
    season: int | str | None
    transform: str | None
    half_life: float | None
    horizon_weights: Sequence[float] | None
    ensemble: int
    conformal: str | None
    scale: str | None
    lags: int | None
    loss: str | Callable[..., Tensor] | None
    fold: int | None
    hidden_size: int | None  # type: ignore[assignment]  # None: chosen
    dropout: float | None  # type: ignore[assignment]
    epochs: int | None
    batchsize: int | None  # type: ignore[assignment]
    validation: int | None
    variables: str | None

    n_features_in_: int
    repeats_: bool
    _settings: AutomaticSettings
    _sizes: dict[str, Any]

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        for name in _OF_FORECASTS:
            now, before = getattr(self, name), self._fitted_with[name]
            if not np.array_equal(now, before):
                raise ValueError(
                    f"{name} is {now!r}, but was {before!r} in fit: call fit again, or set it back"
                )

    def _make_rollout(self, seed: int) -> Rollout:
        return Rollout(
            self.estimator_, self.horizon, self._settings.lags, self._settings.season,
            self._compared,
            self._settings.segments, self.n_features_in_ if self._settings.apart else 1,
            self.strategy == "recursive", self._levels, seed,
        )  # fmt: skip

    def _all_epochs(self, est: Estimator, task: Task, done: int) -> int:  # noqa: ARG002
        return self._settings.epochs if self.epochs is None else self.epochs

    @property
    def _compared(self) -> int | None:
        """The lag at which values are compared; None: the model compares them itself."""
        return self._settings.lag if self._settings.compared else None

    def _measure(self, arrays: list[Array], typical: SeriesScaling | None = None) -> SeriesScaling:
        """Measure the scaling of series; of single values as is `typical`, see there."""
        settings = self._settings
        found = SeriesScaling.measure(arrays, settings.scale, self._compared, settings.season)
        if not self._scales_each:
            return found
        logs = self.transform in ("log", "log1p")  # changes of logarithms have no level
        return found.of_single_values(arrays, typical, relative=not logs)

    @property
    def _scales_each(self) -> bool:
        return self._settings.scale in ("series", "changes")

    @property
    def _levels(self) -> tuple[float, ...] | None:
        return None if self.quantiles is None else tuple(map(float, self.quantiles))

    def _task(self, data: TrainingSeries, sizes: CovariateSizes) -> _Forecasting:
        """Return the training problem of series, with covariates of these `sizes`."""
        settings, series, apart = self._settings, data.series, data.apart
        arrays, covariates, static = series.arrays, data.covariates, data.static
        scaling, weights = data.scaling, data.weights
        steps = int((series.lengths - apart).max())
        if settings.apart:
            scaling = scaling.apart(len(arrays))
            arrays = split_variables(arrays)
            covariates = None if covariates is None else covariates.repeated(series.variables)
            static = None if static is None else np.repeat(static, series.variables, axis=0)
            weights = None if weights is None else split_variables(weights)
            apart = np.repeat(apart, series.variables)
        # Similar lengths are trained together.
        order = np.argsort([-len(one) for one in arrays], kind="stable")
        recursive = self.strategy == "recursive"
        if not recursive and steps <= self.horizon:
            some = f"{steps} step{'s' * (steps != 1)}"
            raise ValueError(
                f"y has {some} to learn from, too few for a horizon of {self.horizon}: pass "
                'longer series, or choose a smaller horizon or strategy="recursive"'
            )
        windows = self._windows(
            [arrays[n] for n in order], None if covariates is None else covariates.taken(order),
            scaling.take(order), None if static is None else static[order],
        )  # fmt: skip
        weights = None if weights is None else [weights[n] for n in order]
        windows = weigh(windows, weights, self._step_weights, apart[order])
        held = windows.held_out(apart[order]) if settings.validation else None
        if settings.segments:
            steps = settings.seqsize if settings.fold is None else -(-steps // settings.fold)
            if held is not None:
                held = held.segments(settings.validation + self.horizon)
            windows = windows.segments(steps)
        task = self._task_of(windows, held, sizes, settings.fold or 1)
        drawn = None if settings.drawn is None else -(-settings.drawn // steps)
        return dataclasses.replace(task, drawn=drawn)

    def _task_of_later(
        self, known: LastSteps, new: NewSteps, origin: Origin
    ) -> _Forecasting | None:
        """Return the training problem of windows that forecast any of the next steps.

        Earlier windows only warm up a model's state. Returns None if no new value is known.

        Parameters
        ----------
        known
            The last steps before, of all series; `_rows` says how many.
        new
            The next steps.
        origin
            The position of all series.
        """
        if all(np.isnan(one).all() for one in new.arrays):
            return None
        later = known.advance(new).taken(new.rows)
        variables = self.n_features_in_ if self._settings.apart else 1
        rows = (new.rows[:, None] * variables + np.arange(variables)).ravel()
        origin = origin.take(rows)
        arrays, covariates = later.values, later.covariates
        steps = np.repeat([len(one) for one in new.arrays], variables)
        if variables > 1:
            arrays = split_variables(arrays)
            covariates = None if covariates is None else covariates.repeated(variables)
        windows = self._windows(arrays, covariates, origin.scaling, origin.static)
        before = torch.from_numpy(windows.lengths - steps) - windows.horizon
        skipped = before.clamp_min(0)
        if windows.skipped is not None:
            skipped = torch.maximum(skipped, windows.skipped)
        windows = dataclasses.replace(windows, skipped=skipped)
        windows = weigh(windows, None, self._step_weights, 0)
        if self._settings.segments:
            windows = windows.segments(self._settings.seqsize)
        return self._task_of(windows, None, self._sizes["covariates"], 1)

    def _rows(self) -> int:
        """Return how many last steps `_task_of_later` needs."""
        settings = self._settings
        before = 0 if settings.segments else settings.seqsize
        return before + settings.lags + (self._compared or 0) + self.horizon

    def _windows(
        self, arrays: list[Array], covariates: CovariateRows | None, scaling: SeriesScaling,
        static: Array | None,
    ) -> Windows:  # fmt: skip
        settings, ahead, past = self._settings, None, None
        if covariates is not None:
            lengths = np.array([len(one) for one in arrays])
            ahead, past = covariates.ahead, covariates.seen(lengths, lagged=settings.segments)
        return Windows.of(
            arrays, ahead, scaling, past=past, static=static, lag=self._compared,
            season=settings.season, lags=settings.lags,
            horizon=1 if self.strategy == "recursive" else self.horizon, levelled=settings.segments,
        )  # fmt: skip

    def _task_of(
        self, windows: Windows, held: Windows | None, sizes: CovariateSizes, fold: int
    ) -> _Forecasting:
        """Return the training problem of windows; `held` are to validate on."""
        settings = self._settings
        loss = self._make_loss(windows.step_weights)
        begin = 0
        if not settings.segments:  # leave out the first steps rather than the last
            begin = (windows.longest - 1) % fold
        lengths = (windows.lengths - 1 - begin).clip(0)
        windows, held = normalised(windows, begin), None if held is None else normalised(held)
        return _Forecasting(
            *windows.training_data(begin),
            n_in=settings.lags * windows.values.shape[2],
            n_out=windows.targets.shape[2] * (loss.outputs or 1),
            dtype=torch.float32, loss=loss, steps=settings.seqsize,
            validation=None if held is None else held.training_data(), covariates=sizes,
            segments=windows if settings.segments else None,
            lengths=None if bool((lengths == lengths[0]).all()) else lengths,
        )  # fmt: skip

    def _learn_on(self, known: LastSteps, new: NewSteps, origin: Origin, start: Start) -> None:
        """Train for an epoch on `_task_of_later`."""
        task = self._task_of_later(known, new, origin)
        if task is None:
            return
        est = self.estimator_
        fold = est.spec.fold
        est.spec = dataclasses.replace(est.spec, fold=1)
        try:
            self._train(task, start)
        finally:
            est.spec = dataclasses.replace(est.spec, fold=fold)

    @property
    def _step_weights(self) -> Array | None:
        return None if self.horizon_weights is None else np.array(self.horizon_weights, float)

    def _make_loss(self, step_weights: tuple[float, ...] | None = None) -> ForecastLoss:
        recursive, loss = self.strategy == "recursive", self._settings.loss
        levels = PATH_LEVELS if recursive and self.quantiles is not None else self._levels
        if levels is None:
            fn = LOSSES[loss] if isinstance(loss, str) else loss
        else:
            fn = functools.partial(pinball_loss, quantiles=levels)
        return ForecastLoss(fn, None if levels is None else len(levels), step_weights)

    def _make_again(self, sizes: dict[str, Any], seed: int) -> Estimator:
        """Return an estimator like one that `_make` made, for its weights."""
        sizes = dict(sizes)
        loss = self._make_loss(sizes.pop("step_weights"))
        given: dict[str, Any] = {**sizes, "dtype": torch.float32, "loss": loss}
        return self._make(_Forecasting(None, None, None, **given), seed)

    def _make(self, task: Task, seed: int) -> Estimator:
        assert isinstance(task, _Forecasting)
        settings, loss = self._settings, task.loss
        assert isinstance(loss, ForecastLoss)
        sizes = {name: getattr(task, name) for name in _SIZES}
        self._sizes = {**sizes, "step_weights": loss.step_weights}
        net = ensemble_of(
            functools.partial(self._make_net, task), seed, self.ensemble, loss.outputs or 1
        )
        spec = Spec(
            epochs=settings.epochs, batchsize=settings.batchsize, seqsize=task.steps, shuffle=True,
            clip_norm=self.clip_norm, clip_value=self.clip_value, accumulate=self.accumulate,
            fold=1 if settings.segments else settings.fold or 1, nan="keep",
        )  # fmt: skip
        return WindowEstimator(
            net, task.loss, self._make_optimizer(net), spec, device=self.device, comm=self.comm,
            callbacks=self._own_callbacks(seed), amp=self.amp, compile=self.compile, seed=seed,
            progress=self.verbose == 1,
        )  # fmt: skip

    def _make_net(self, task: _Forecasting, seed: int) -> ForecastNet:
        horizon = 1 if self.strategy == "recursive" else self.horizon
        settings = self._settings
        if settings.segments:
            with seeded(seed):
                return ForecastNet(self._make_segment_rnn(task, horizon))
        net = ForecastNet.make(
            lambda n_in, n_out: make_module(
                self.module, n_in, n_out,
                Sizes(settings.hidden_size, self.num_layers, settings.dropout), seed=seed,
            ),
            seen=task.n_in, lags=settings.lags, covariates=task.covariates,
            outputs=task.n_out, horizon=horizon, width=settings.hidden_size, seed=seed,
        )  # fmt: skip
        if task.x is not None and not isinstance(self.module, str):  # named modules pass
            check_steps_apart(net, task.x, task.n_out * horizon)
        return net

    def _make_segment_rnn(self, task: _Forecasting, horizon: int) -> SegmentRNN:
        loss, settings = task.loss, self._settings
        assert isinstance(loss, ForecastLoss)
        outputs = loss.outputs or 1
        return SegmentRNN(
            horizon=horizon, variables=task.n_out // outputs, outputs=outputs, lags=settings.lags,
            segment=settings.segment,
            season=None if settings.compared else settings.season, covariates=task.covariates,
            hidden_size=settings.hidden_size, num_layers=Sizes(num_layers=self.num_layers).layers,
            dropout=settings.dropout,
        )  # fmt: skip

    def _fit(self, est: Estimator, task: Task, epochs: int) -> None:
        assert isinstance(task, _Forecasting)
        x, y, w = task.x, task.y, task.w
        shuffler = next((c for c in est.callbacks if isinstance(c, Shuffler)), None)
        if task.segments is not None and shuffler is not None:
            parts = task.segments.mapped(lambda part: shuffler.shuffled(part, 0, task.drawn))
            x, y = (of(0, parts.longest - 1) for of in (parts.inputs, parts.outcomes))
            w = None if w is None else shuffler.shuffled(w, 1, task.drawn)
        naive = self._naive(est, task)
        try:
            est.fit(x, y, w, lengths=task.lengths, validation=task.validation, epochs=epochs)
            self.repeats_ = naive is not None and not _best(est) <= naive[0]
            if naive is not None and self.repeats_:
                est.model.load_state_dict(naive[1])
        finally:
            if shuffler is not None:
                shuffler.clear()

    def _naive(self, est: Estimator, task: _Forecasting) -> tuple[float, dict[str, Tensor]] | None:
        """Return a `SegmentRNN`'s weights that repeat the last season, and their loss.

        None if there is no validation, training continues, or quantiles are wanted: all would be
        the same.
        """
        body = est.model.body
        bodies = [net.body for net in body.members] if isinstance(body, Ensemble) else [body]
        rnns = [one for one in bodies if isinstance(one, SegmentRNN)]
        if not rnns or task.validation is None or len(est.history_):
            return None
        if self.quantiles is not None:
            return None
        before = weights_copy(est.model)
        for one in rnns:
            one.repeat(mean=False)
        weights = weights_copy(est.model)
        loss = est.evaluate(*task.validation)
        est.model.load_state_dict(before)
        return loss, weights

    def _own_callbacks(self, seed: int) -> list[Any]:
        own: list[Any] = []
        if self._settings.segments:
            own.append(Shuffler(seed))
            slower = functools.partial(_slower, half_life=self._settings.half_life)
            falling = functools.partial(MultiplicativeLR, lr_lambda=slower)
            own.append(Schedule(falling, per="update"))
            if self._settings.validation:
                own.append(RestoreBest())
        return own + [copy.deepcopy(c) if isinstance(c, Callback) else c for c in self.callbacks]


def _best(est: Estimator) -> float:
    return float(min(row["validation_loss"] for row in est.history_))


def _slower(update: int, half_life: int) -> float:
    """Return the factor of the learning rate."""
    return 0.5 ** (1 / half_life) if update < _FALLS * half_life else 1.0
