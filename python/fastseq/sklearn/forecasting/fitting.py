"""Training of a forecaster: makes an `Estimator` and its data from hyperparameters and series."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import MultiplicativeLR

from ..._util.seeding import seeded
from ...callbacks import RestoreBest, Schedule
from ...callbacks.best_weights import copied
from ...estimator import Estimator
from ...training.run import Callback
from ...training.spec import Spec
from ..base import SequenceEstimator, Task
from ..hyperparameters import make_module
from ..shuffling import Shuffler
from .choices import Choices
from .covariate_encoder import NO_COVARIATES, CovariateSizes
from .covariate_rows import CovariateRows
from .ensemble import Ensemble, ensemble_of
from .forecast_losses import LOSSES, ForecastLoss, pinball_loss
from .forecast_net import ForecastNet, check_steps_apart
from .rollout import PATH_LEVELS
from .segment_rnn import SegmentRNN
from .series import Array, Series, split_variables
from .target_weights import normalised, weigh
from .windows import SeriesScaling, Windows

__all__ = ["ForecastTraining"]

_FALLS = 5  # how often the learning rate of a `SegmentRNN` falls by half


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
    """

    covariates: CovariateSizes = NO_COVARIATES
    lengths: Array | None = None
    segments: Windows | None = None
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
            "states: pickle the forecaster; for the weights alone, save "
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
    epochs: int | None  # type: ignore[assignment]
    batchsize: int | None  # type: ignore[assignment]
    validation: int | None
    variables: str | None

    repeats_: bool
    _choices: Choices

    @property
    def _all_epochs(self) -> int:
        return self._choices.epochs if self.epochs is None else self.epochs

    @property
    def _compared(self) -> int | None:
        """The lag at which values are compared; None: the model compares them itself."""
        return self._choices.lag if self._choices.compared else None

    def _measure(self, arrays: list[Array]) -> SeriesScaling:
        method = "changes" if self._choices.segments and self.scale == "series" else self.scale
        return SeriesScaling.measure(arrays, method, self._compared, self._choices.season)

    @property
    def _levels(self) -> tuple[float, ...] | None:
        return None if self.quantiles is None else tuple(map(float, self.quantiles))

    def _task(
        self,
        series: Series,
        covariates: CovariateRows | None,
        static: Array | None,
        sizes: CovariateSizes,
        scaling: SeriesScaling,
        weights: list[Array] | None = None,
    ) -> _Forecasting:
        """Return the training problem of series, with covariates of these `sizes`.

        `weights` are of the values of series.
        """
        choices, arrays = self._choices, series.arrays
        if choices.apart:
            scaling = scaling.apart(len(arrays))
            arrays = split_variables(arrays)
            covariates = None if covariates is None else covariates.repeated(series.variables)
            static = None if static is None else np.repeat(static, series.variables, axis=0)
            weights = None if weights is None else split_variables(weights)
        # Similar lengths are trained together.
        order = np.argsort([-len(one) for one in arrays], kind="stable")
        recursive = self.strategy == "recursive"
        steps = int(series.lengths.max()) - choices.validation
        if not recursive and steps <= self.horizon:
            raise ValueError(
                f"y has {steps} steps to learn from, too few for a horizon of {self.horizon}: pass "
                'longer series, or choose a smaller horizon or strategy="recursive"'
            )
        arrays = [arrays[n] for n in order]
        ahead = past = None
        if covariates is not None:
            covariates = covariates.taken(order)
            ahead, past = (
                covariates.ahead,
                covariates.seen(np.array([len(one) for one in arrays]), lagged=choices.segments),
            )
        windows = Windows.of(
            arrays, ahead, scaling.take(order), past=past,
            static=None if static is None else static[order], lag=self._compared,
            season=choices.season, lags=choices.lags, horizon=1 if recursive else self.horizon,
            levelled=choices.segments,
        )  # fmt: skip
        of_steps = None if self.horizon_weights is None else np.array(self.horizon_weights, float)
        weights = None if weights is None else [weights[n] for n in order]
        windows = weigh(windows, weights, of_steps, choices.validation)
        held = windows.held_out(choices.validation) if choices.validation else None
        if choices.segments:
            steps = choices.seqsize if choices.fold is None else -(-steps // choices.fold)
            if held is not None:
                held = held.segments(choices.validation + self.horizon)
            windows = windows.segments(steps)
        levels = PATH_LEVELS if recursive and self.quantiles is not None else self._levels
        if levels is None:
            fn = LOSSES[choices.loss] if isinstance(choices.loss, str) else choices.loss
        else:
            fn = functools.partial(pinball_loss, quantiles=levels)
        loss = ForecastLoss(fn, None if levels is None else len(levels), windows.step_weights)
        begin = 0
        if not choices.segments:  # leave out the first steps rather than the last
            begin = (windows.longest - 1) % (choices.fold or 1)
        lengths = (windows.lengths - 1 - begin).clip(0)
        windows, held = normalised(windows, begin), None if held is None else normalised(held)
        return _Forecasting(
            *windows.training_data(begin),
            n_in=choices.lags * windows.values.shape[2],
            n_out=arrays[0].shape[1] * (loss.outputs or 1),
            dtype=torch.float32, loss=loss, steps=choices.seqsize,
            validation=None if held is None else held.training_data(), covariates=sizes,
            segments=windows if choices.segments else None,
            lengths=None if bool((lengths == lengths[0]).all()) else lengths,
        )  # fmt: skip

    def _make(self, task: Task, seed: int) -> Estimator:
        assert isinstance(task, _Forecasting)
        choices, loss = self._choices, task.loss
        assert isinstance(loss, ForecastLoss)
        net = ensemble_of(
            functools.partial(self._make_net, task), seed, self.ensemble, loss.outputs or 1
        )
        spec = Spec(
            epochs=choices.epochs, batchsize=choices.batchsize, seqsize=task.steps, shuffle=True,
            clip_norm=self.clip_norm, clip_value=self.clip_value, accumulate=self.accumulate,
            fold=1 if choices.segments else choices.fold or 1, nan="keep",
        )  # fmt: skip
        return WindowEstimator(
            net, task.loss, self._make_optimizer(net), spec, device=self.device, comm=self.comm,
            callbacks=self._own_callbacks(seed), amp=self.amp, compile=self.compile, seed=seed,
            progress=bool(self.verbose),
        )  # fmt: skip

    def _make_net(self, task: _Forecasting, seed: int) -> ForecastNet:
        horizon = 1 if self.strategy == "recursive" else self.horizon
        choices = self._choices
        if choices.segments:
            with seeded(seed):
                return ForecastNet(self._make_segment_rnn(task, horizon))
        net = ForecastNet.make(
            lambda n_in, n_out: make_module(
                self.module, n_in, n_out, seed=seed, hidden_size=choices.hidden_size,
                num_layers=self.num_layers, dropout=choices.dropout,
            ),
            seen=task.n_in, lags=choices.lags, covariates=task.covariates,
            outputs=task.n_out, horizon=horizon, width=choices.hidden_size, seed=seed,
        )  # fmt: skip
        if not isinstance(self.module, str):  # named modules pass
            check_steps_apart(net, task.x, task.n_out * horizon)
        return net

    def _make_segment_rnn(self, task: _Forecasting, horizon: int) -> SegmentRNN:
        loss, choices = task.loss, self._choices
        assert isinstance(loss, ForecastLoss)
        outputs = loss.outputs or 1
        return SegmentRNN(
            horizon=horizon, variables=task.n_out // outputs, outputs=outputs, lags=choices.lags,
            segment=choices.segment,
            season=None if choices.compared else choices.season, covariates=task.covariates,
            hidden_size=choices.hidden_size, num_layers=self.num_layers, dropout=choices.dropout,
        )  # fmt: skip

    def _fit(self, est: Estimator, task: Task, epochs: int) -> None:
        assert isinstance(task, _Forecasting)
        x, y, w = task.x, task.y, task.w
        shuffler = next((c for c in est.callbacks if isinstance(c, Shuffler)), None)
        if task.segments is not None and shuffler is not None:
            parts = task.segments.mapped(lambda part: shuffler.shuffled(part, 0))
            x, y, _ = parts.training_data()
            w = None if w is None else shuffler.shuffled(w, 1)
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
        before = copied(est.model)
        for one in rnns:
            one.repeat(mean=False)
        weights = copied(est.model)
        loss = est.evaluate(*task.validation)
        est.model.load_state_dict(before)
        return loss, weights

    def _own_callbacks(self, seed: int) -> list[Any]:
        own: list[Any] = []
        if self._choices.segments:
            own.append(Shuffler(seed))
            slower = functools.partial(_slower, half_life=self._choices.half_life)
            falling = functools.partial(MultiplicativeLR, lr_lambda=slower)
            own.append(Schedule(falling, per="update"))
            if self._choices.validation:
                own.append(RestoreBest())
        return own + [copy.deepcopy(c) if isinstance(c, Callback) else c for c in self.callbacks]


def _best(est: Estimator) -> float:
    return float(min(row["validation_loss"] for row in est.history_))


def _slower(update: int, half_life: int) -> float:
    """Return by what to multiply the learning rate."""
    return 0.5 ** (1 / half_life) if update < _FALLS * half_life else 1.0
