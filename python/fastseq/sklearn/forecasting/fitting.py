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

from ...estimator import Estimator
from ...training.run import Callback
from ...training.spec import Spec
from ..base import SequenceEstimator, Task
from .forecast_losses import ForecastLoss, pinball_loss
from .forecast_net import ForecastNet, check_steps_apart
from .forecast_parameters import LOSSES
from .rollout import PATH_LEVELS
from .series import Array, Series
from .windows import SeriesScaling, Windows

__all__ = ["ForecastTraining"]

_SEQSIZE = 64


@dataclasses.dataclass
class _Forecasting(Task):
    """A training problem of series that end; see `Task`.

    Parameters
    ----------
    covariates
        Number of covariates.
    lengths
        Lengths of the series in time steps, ``(N,)``; None: all T.
    """

    covariates: int = 0
    lengths: Array | None = None


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
    season: int | None
    lags: int
    loss: str | Callable[..., Tensor]
    fold: int
    validation: int | None

    @property
    def _levels(self) -> tuple[float, ...] | None:
        return None if self.quantiles is None else tuple(map(float, self.quantiles))

    def _task(
        self,
        series: Series,
        covariates: list[Array] | None,
        scaling: SeriesScaling,
        lag: int | None,
    ) -> _Forecasting:
        """Return the training problem of series."""
        order = np.argsort(-series.lengths, kind="stable")  # similar lengths are trained together
        recursive = self.strategy == "recursive"
        steps = int(series.lengths.max()) - (self.validation or 0)
        if not recursive and steps <= self.horizon:
            raise ValueError(
                f"y has {steps} steps to learn from, too few for a horizon of {self.horizon}: pass "
                'longer series, or choose a smaller horizon or strategy="recursive"'
            )
        windows = Windows.of(
            [series.arrays[n] for n in order],
            None if covariates is None else [covariates[n] for n in order],
            scaling.take(order), lag=lag, season=self.season, lags=self.lags,
            horizon=1 if recursive else self.horizon,
        )  # fmt: skip
        apart = None if self.validation is None else windows.held_out(self.validation)
        levels = PATH_LEVELS if recursive and self.quantiles is not None else self._levels
        if levels is None:
            fn = LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
            loss = ForecastLoss(fn, None)
        else:
            loss = ForecastLoss(functools.partial(pinball_loss, quantiles=levels), len(levels))
        end = windows.longest - 1
        begin = end % self.fold  # leave out the first steps rather than the last
        lengths = windows.lengths - 1
        known = 0 if covariates is None else covariates[0].shape[1]
        return _Forecasting(
            windows.inputs(begin, end), windows.outcomes(begin, end), windows.weights(begin, end),
            n_in=self.lags * windows.values.shape[2], n_out=series.variables * (loss.outputs or 1),
            dtype=torch.float32, loss=loss, steps=self.seqsize or _SEQSIZE, validation=apart,
            covariates=known,
            lengths=None if bool((lengths == lengths[0]).all()) else lengths,
        )  # fmt: skip

    def _make(self, task: Task, seed: int) -> Estimator:
        assert isinstance(task, _Forecasting)
        horizon = 1 if self.strategy == "recursive" else self.horizon
        net = ForecastNet.make(
            lambda n_in, n_out: self._make_model(n_in, n_out, seed),
            seen=task.n_in, covariates=task.covariates, outputs=task.n_out, horizon=horizon,
            width=self.hidden_size, seed=seed,
        )  # fmt: skip
        if not isinstance(self.module, str):  # named modules pass
            check_steps_apart(net, task.x, task.n_out * horizon)
        spec = Spec(
            epochs=self.epochs, batchsize=self.batchsize, seqsize=task.steps, shuffle=True,
            clip_norm=self.clip_norm, clip_value=self.clip_value, accumulate=self.accumulate,
            fold=self.fold, nan="keep",
        )  # fmt: skip
        return WindowEstimator(
            net, task.loss, self._make_optimizer(net), spec, device=self.device, comm=self.comm,
            callbacks=self._own_callbacks(seed), amp=self.amp, compile=self.compile, seed=seed,
            progress=bool(self.verbose),
        )  # fmt: skip

    def _fit(self, est: Estimator, task: Task, epochs: int) -> None:
        assert isinstance(task, _Forecasting)
        est.fit(
            task.x, task.y, task.w,
            lengths=task.lengths, validation=task.validation, epochs=epochs,
        )  # fmt: skip

    def _own_callbacks(self, seed: int) -> list[Any]:  # noqa: ARG002 (blocks are shuffled alone)
        return [copy.deepcopy(c) if isinstance(c, Callback) else c for c in self.callbacks]
