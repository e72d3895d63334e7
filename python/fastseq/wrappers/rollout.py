"""Forecasts from where series have got to, and going on from there."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..predicting.state_rows import take_rows
from ..stateful import batch_dims
from ..tree import Tree, tree_map
from .series import Array, filled
from .windows import SeriesScaling, Windows

if TYPE_CHECKING:
    from ..estimator import Estimator

__all__ = ["PATH_LEVELS", "Origin", "Rollout"]

# What a recursive forecaster of quantiles learns about the next step; its futures are drawn from
# the distribution that these describe.
PATH_LEVELS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_PATHS = 200


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where series have got to.

    Parameters
    ----------
    state
        The model's state before their last step, which it sees when covariates of the next are
        known. None: series begin there.
    recent
        The last values, ``(N, R, K)``, without gaps.
    starts
        How many of those rows lie before the series, ``(N,)``.
    scaling
        How the series are scaled.
    """

    state: Tree
    recent: Array
    starts: Array
    scaling: SeriesScaling


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Runs a trained `ForecastNet`.

    Parameters
    ----------
    est
        The estimator that trained it.
    horizon, lags, lag
        Steps of a forecast, values seen at once, and how far back the season lies, None without.
    recursive
        Whether the model forecasts one step, and is fed with it, rather than all steps.
    levels
        The quantiles of forecasts; None: points.
    seed
        Of the futures that are drawn.
    """

    est: Estimator
    horizon: int
    lags: int
    lag: int | None
    recursive: bool
    levels: tuple[float, ...] | None
    seed: int

    def begin(
        self, arrays: list[Array], covariates: list[Array] | None, scaling: SeriesScaling
    ) -> Origin:
        """Go through series ``(T_i, K)``, with their covariates ``(T_i, F)``, from their start."""
        windows = self._windows(arrays, covariates, scaling)
        steps = windows.lengths - 1
        self.est.reset_state()
        if windows.longest > 1:
            equal = bool((steps == steps[0]).all())
            self._pass(windows.inputs(0, windows.longest - 1), None if equal else steps)
        rows = self.lags + (self.lag or 0)
        recent = np.zeros((len(arrays), rows, arrays[0].shape[1]))
        for n, array in enumerate(arrays):
            recent[n, max(rows - len(array), 0) :] = filled(array)[-rows:]
        starts = np.maximum(rows - windows.lengths, 0)
        return Origin(self.est.get_state(), recent, starts, scaling)

    def advance(self, origin: Origin, values: Array, covariates: Array | None) -> Origin:
        """Go on with values ``(N, n, K)``, and their covariates ``(N, n, F)``."""
        known, new = origin.recent.shape[1], values.shape[1]
        whole = np.stack([
            np.concatenate([old, filled(one, old[-1])])
            for old, one in zip(origin.recent, values, strict=True)
        ])  # fmt: skip
        windows = self._windows(
            list(whole), _behind(covariates, known), origin.scaling, origin.starts
        )
        self._restore(origin.state)
        self._pass(windows.inputs(known - 1, known - 1 + new), None)
        starts = np.maximum(origin.starts - new, 0)
        return Origin(self.est.get_state(), whole[:, -known:], starts, origin.scaling)

    def forecast(self, origin: Origin, covariates: Array | None) -> Array:
        """Return forecasts ``(N, horizon, K, Q)``, Q = 1 for points, of what follows.

        `covariates` are those of the horizon, ``(N, horizon, F)``; the state stays as it is.
        """
        if self.recursive:
            return self._one_after_the_other(origin, covariates)
        known, count = origin.recent.shape[1], len(origin.recent)
        windows = self._windows(
            list(origin.recent), _behind(covariates, known), origin.scaling, origin.starts
        )
        self._restore(origin.state)
        outputs = self.est.step(tree_map(lambda a: a[0], windows.inputs(known - 1, known)))
        found = outputs.double().cpu().numpy().reshape(count, self.horizon, -1, self._outputs)
        found = np.sort(found, axis=-1)
        if self.lag is None:
            center, scale = origin.scaling.center, origin.scaling.scale
            return np.asarray(found * scale[:, None, :, None] + center[:, None, :, None])
        change = origin.scaling.change
        assert change is not None
        before = origin.recent[:, known - self.lag :][:, : self.horizon]
        return np.asarray(found * change[:, None, :, None] + before[..., None])

    def forecasts(
        self, origin: Origin, values: Array, covariates: Array | None, stride: int
    ) -> list[Array]:
        """Return forecasts at `origin` and every `stride` steps of what follows, ``(N, n, K)``.

        Covariates ``(N, n, F)`` are taken as average behind the last.
        """
        found = []
        for begin in range(0, values.shape[1], stride):
            if begin:
                new = slice(begin - stride, begin)
                known = None if covariates is None else covariates[:, new]
                origin = self.advance(origin, values[:, new], known)
            ahead = None
            if covariates is not None:
                ahead = covariates[:, begin : begin + self.horizon]
                ahead = np.pad(ahead, ((0, 0), (0, self.horizon - ahead.shape[1]), (0, 0)))
            found.append(self.forecast(origin, ahead))
        return found

    @property
    def _outputs(self) -> int:
        return 1 if self.levels is None else len(self.levels)

    def _windows(
        self,
        arrays: list[Array],
        covariates: list[Array] | None,
        scaling: SeriesScaling,
        starts: Array | None = None,
    ) -> Windows:
        return Windows.of(
            arrays, covariates, scaling, lag=self.lag, lags=self.lags,
            horizon=1 if self.recursive else self.horizon, starts=starts,
        )  # fmt: skip

    def _pass(self, inputs: Any, lengths: Array | None) -> None:
        """Go on with the state alone."""
        net: Any = self.est.model
        net.brief = True
        try:
            self.est.predict(inputs, lengths=lengths, reset=False)
        finally:
            net.brief = False

    def _restore(self, state: Tree) -> None:
        self.est.reset_state()
        if state is not None:
            self.est.set_state(state)

    def _one_after_the_other(self, origin: Origin, covariates: Array | None) -> Array:
        """Forecast step by step; quantiles are those of futures that are drawn."""
        count, known, width = origin.recent.shape
        copies = 1 if self.levels is None else _PATHS
        which = np.repeat(np.arange(count), copies)
        windows = self._windows(
            list(origin.recent), _behind(covariates, known), origin.scaling, origin.starts
        )
        first = windows.inputs(known - 1, known)
        self._restore(self._copied(origin.state, first, which))
        generator = np.random.default_rng(self.seed)
        scaling = origin.scaling.take(which)
        futures = np.empty((count * copies, self.horizon, width))
        recent = origin.recent[which]
        seen = windows.values[torch.from_numpy(which), -self.lags :]
        for step in range(self.horizon):
            x: Any = seen.flatten(1)
            if covariates is not None:
                ahead = covariates[:, step].astype(np.float32)[which]
                x = (x, torch.from_numpy(ahead))
            found = self.est.step(x).double().cpu().numpy()
            scaled = _drawn(found.reshape(count * copies, width, -1), generator)
            if self.lag is None:
                value = scaled * scaling.scale + scaling.center
            else:
                value = scaled * scaling.change + recent[:, -self.lag]
            row = (value - scaling.center) / scaling.scale
            if self.lag is not None:
                row = np.concatenate([row, np.broadcast_to(scaled, row.shape)], axis=1)
            seen = torch.cat([seen[:, 1:], torch.from_numpy(row.astype(np.float32))[:, None]], 1)
            recent = np.concatenate([recent[:, 1:], value[:, None]], axis=1)
            futures[:, step] = value
        if self.levels is None:
            return futures[..., None]
        paths = futures.reshape(count, copies, self.horizon, width)
        return np.moveaxis(np.quantile(paths, self.levels, axis=1), 0, -1)

    def _copied(self, state: Tree, x: Any, which: Array) -> Tree:
        """Return the state with a row for each future."""
        if state is None or len(which) == len(np.unique(which)):
            return state
        dims = batch_dims(self.est.model, tree_map(lambda a: a.to(self.est.device), x))
        return take_rows(state, dims, torch.from_numpy(which))


def _behind(covariates: Array | None, known: int) -> list[Array] | None:
    """Return covariates of steps that follow, with room before them."""
    if covariates is None:
        return None
    return [np.concatenate([np.zeros((known, one.shape[1])), one]) for one in covariates]


def _drawn(found: Array, generator: np.random.Generator) -> Array:
    """Return points ``(R, K)``, or draw from the quantiles at `PATH_LEVELS`, ``(R, K, G)``."""
    if found.shape[-1] == 1:
        return np.asarray(found[..., 0])
    found = np.sort(found, axis=-1)
    place = generator.random(found.shape[:-1])
    levels = np.array(PATH_LEVELS)
    place = place.clip(levels[0], levels[-1])
    high = np.searchsorted(levels, place).clip(1)[..., None]
    share = (place[..., None] - levels[high - 1]) / (levels[high] - levels[high - 1])
    low, up = (np.take_along_axis(found, index, -1) for index in (high - 1, high))
    return np.asarray((low + share * (up - low))[..., 0])
