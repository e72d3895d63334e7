"""Forecasts from the current position of series, and advancing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..._util.tree import Tree, tree_leaves, tree_map
from ...data.sequences import Sequences, to_device
from ...estimator import Estimator, learner_of
from ...inference import Predictor
from ...inference.state_rows import put_rows, take_rows
from ...nn.stateful import Stateful, batch_dims, in_mode, takes_state
from ...training.argument_checks import input_dtype
from .covariate_rows import CovariateRows, known_so_far
from .forecast_net import ForecastNet, StateOnly
from .series import Array, by_length, carried, filled, join_variables, split_variables
from .windows import SeriesScaling, Windows, over_seasons

__all__ = ["PATH_LEVELS", "Origin", "Rollout"]

# The levels that a recursive forecaster of quantiles learns for the next step; its futures are
# drawn from the distribution they describe.
PATH_LEVELS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_PATHS = 200
_FEW = 4  # steps from one forecast to the next, for which all are made in one pass


@dataclasses.dataclass(frozen=True)
class Origin:
    """The current position of series, from which to forecast.

    Parameters
    ----------
    state
        The model's state before their last step, which it sees when the next step's covariates are
        known. None: the series start at that step.
    recent
        The last values, ``(N, R, K)``, without gaps; NaN of series of which none is known yet.
    seasonal
        The same with gaps filled by `over_seasons`; None: there is no season.
    starts
        Number of those rows before the start of the series, ``(N,)``.
    scaling
        How the series are scaled.
    past
        Covariates of those rows, ``(N, R, G)``; None: the model sees none there.
    static
        Static covariates, ``(N, C)``; None: there are none.
    """

    state: Tree
    recent: Array
    seasonal: Array | None
    starts: Array
    scaling: SeriesScaling
    past: Array | None = None
    static: Array | None = None

    def take(self, rows: Array) -> Origin:
        """Return the origin of some of the series, without their states."""
        return Origin(
            None, self.recent[rows], None if self.seasonal is None else self.seasonal[rows],
            self.starts[rows], self.scaling.take(rows),
            None if self.past is None else self.past[rows],
            None if self.static is None else self.static[rows],
        )  # fmt: skip

    def put(self, rows: Array, part: Origin, state: Tree) -> Origin:
        """Return the origin with that of some of the series replaced, and with another state."""
        recent, starts, seasonal = self.recent.copy(), self.starts.copy(), self.seasonal
        recent[rows], starts[rows] = part.recent, part.starts
        if seasonal is not None:
            seasonal = seasonal.copy()
            seasonal[rows] = part.seasonal
        past = self.past
        if past is not None:
            past = past.copy()
            past[rows] = part.past
        scaling = self.scaling.put(rows, part.scaling)
        return Origin(state, recent, seasonal, starts, scaling, past, self.static)

    @property
    def unknown(self) -> Array:
        """Of which variables no value is known yet, ``(N, K)``: they cannot be forecast."""
        return np.asarray(np.isnan(self.recent[:, -1]))

    @property
    def season_before(self) -> Array:
        """Values to compare with a season later; where unknown, the last known value."""
        known = filled(self.recent)
        if self.seasonal is None:
            return known
        return np.where(np.isnan(self.seasonal), known, self.seasonal)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Run a trained `ForecastNet`.

    Parameters
    ----------
    est
        The estimator that trained it.
    horizon, lags
        Steps of a forecast, values seen at once.
    season, lag
        Steps of a season, and the lag at which values are compared; None: they are not.
    levelled
        What the model sees before a series' start, see `Windows.of`.
    variables
        Number of variables to forecast apart from each other: they are separate series here, in an
        `Origin` too. 1: all variables are forecast together.
    recursive
        Whether the model forecasts one step, which is fed back to it, rather than all steps.
    levels
        Quantile levels of forecasts; None: points.
    seed
        Seed of the drawn futures.
    """

    est: Estimator
    horizon: int
    lags: int
    season: int | None
    lag: int | None
    levelled: bool
    variables: int
    recursive: bool
    levels: tuple[float, ...] | None
    seed: int

    def begin(
        self,
        arrays: list[Array],
        covariates: CovariateRows | None,
        scaling: SeriesScaling,
        static: Array | None = None,
    ) -> Origin:
        """Run over series ``(T_i, K)``, with their covariates, from their start."""
        if self.variables > 1:
            scaling = scaling.apart(len(arrays))
            arrays = split_variables(arrays)
            static = None if static is None else np.repeat(static, self.variables, axis=0)
        covariates = self._for_each(covariates)
        lengths = np.array([len(one) for one in arrays], np.int64)
        past = None if covariates is None else covariates.seen(lengths, lagged=self.levelled)
        windows = self._windows(
            arrays, None if covariates is None else covariates.ahead, scaling, past, static
        )
        steps, state = windows.lengths - 1, None
        if windows.longest > 1:
            equal = bool((steps == steps[0]).all())
            state = self._run(
                windows.inputs(0, windows.longest - 1), None if equal else steps, None
            )
        rows = self.lags + (self.lag or 0)
        recent = np.zeros((len(arrays), rows, arrays[0].shape[1]))
        seasonal = None if self.season is None else np.full_like(recent, np.nan)
        seen = None if past is None else np.zeros((len(arrays), rows, past[0].shape[1]))
        for which, block in by_length(arrays):
            begin = max(rows - block.shape[1], 0)
            recent[which, begin:] = carried(block)[:, -rows:]
            if seasonal is not None and self.season is not None:
                seasonal[which, begin:] = over_seasons(block, self.season)[:, -rows:]
            if seen is not None and past is not None:
                seen[which, begin:] = np.stack([past[n][-rows:] for n in which])
        starts = np.maximum(rows - windows.lengths, 0)
        return Origin(state, recent, seasonal, starts, scaling, seen, static)

    def advance(self, origin: Origin, values: Array, covariates: CovariateRows | None) -> Origin:
        """Advance by values ``(N, n, K)`` and their covariates."""
        known, new = origin.recent.shape[1], values.shape[1]
        longer, inputs = self._going_on(origin, values, covariates)
        state = self._run(inputs, None, origin.state)
        seasonal, past = longer.seasonal, longer.past
        return Origin(
            state, longer.recent[:, -known:], None if seasonal is None else seasonal[:, -known:],
            np.maximum(longer.starts - new, 0), origin.scaling,
            None if past is None else past[:, -known:], origin.static,
        )  # fmt: skip

    def taken(self, origin: Origin, rows: Array) -> Origin:
        """Return the origin of some of the series, with their states."""
        each = self.rows_of(rows)
        part = origin.take(each)
        if origin.state is None:
            return part
        state = take_rows(origin.state, self._dims_apart(), torch.from_numpy(each))
        return dataclasses.replace(part, state=state)

    def put(self, origin: Origin, rows: Array, part: Origin) -> Origin:
        """Return the origin with that of some of the series replaced."""
        each, state = self.rows_of(rows), None
        if origin.state is not None:
            state = tree_map(torch.clone, origin.state)
            index = torch.from_numpy(each)
            put_rows(state, self._dims_apart(), index, part.state, len(origin.recent))
        return origin.put(each, part, state)

    def check_apart(self, origin: Origin) -> None:
        """Raise ValueError if a part of the model's state is that of all series together."""
        if origin.state is not None:
            self._dims_apart()

    def rows_of(self, rows: Array) -> Array:
        """Return the rows of an `Origin` that are those of some of the series."""
        return (rows[:, None] * self.variables + np.arange(self.variables)).ravel()

    def _dims_apart(self) -> Tree:
        dims = self._batch_dims()
        if any(dim < 0 for dim in tree_leaves(dims)):
            raise ValueError(
                "module has a state that all series share: y must have the same number of steps of "
                "each series"
            )
        return dims

    def _batch_dims(self) -> Tree:
        """Return the dimension of the series in each part of the state."""
        with in_mode(self._net, training=False):
            dtype = input_dtype(self._net)
            x = learner_of(self.est).example
            return batch_dims(self._net, tree_map(lambda a: a.to(self.est.device, dtype), x))

    def _going_on(
        self, origin: Origin, values: Array, covariates: CovariateRows | None
    ) -> tuple[Origin, Tensor | tuple[Tensor, ...]]:
        """Return an origin with the values before and after it, and the model's inputs from it."""
        values, covariates = self._apart(values), self._for_each(covariates)
        known, new = origin.recent.shape[1], values.shape[1]
        later = carried(values, origin.recent[:, -1])
        whole = np.concatenate([origin.recent, later], axis=1)
        seasonal = None
        if origin.seasonal is not None and self.season is not None:
            longer = np.concatenate([origin.seasonal, values], axis=1)
            seasonal = over_seasons(longer, self.season)
        going_on = dataclasses.replace(
            origin, recent=whole, seasonal=seasonal, past=self._past_of(origin, covariates, new),
        )  # fmt: skip
        windows = self._windows_of(going_on, _behind(covariates, known))
        return going_on, windows.inputs(known - 1, known - 1 + new)

    def _past_of(self, origin: Origin, covariates: CovariateRows | None, new: int) -> Array | None:
        """Return covariates of the rows before an origin and of `new` ones after it."""
        if origin.past is None:
            return None
        count, _, width = origin.past.shape
        rows = np.full((count, new, width), np.nan)
        if covariates is not None:
            column = 0
            if self.levelled and covariates.ahead is not None:
                column = covariates.ahead[0].shape[1]
                rows[..., :column] = np.stack([one[:new] for one in covariates.ahead])
            if covariates.past is not None:
                rows[..., column:] = np.stack([one[:new] for one in covariates.past])
        later = known_so_far(rows, origin.past[:, -1])
        return np.concatenate([origin.past, later], axis=1)

    def forecast(self, origin: Origin, covariates: CovariateRows | None) -> Array:
        """Return forecasts ``(N, horizon, K, Q)`` of the next steps, Q = 1 for points.

        `covariates` known ahead cover the horizon; the state stays unchanged.
        """
        covariates = self._for_each(covariates)
        if self.recursive:
            found = self._one_after_the_other(origin, covariates)
            return self._joined(_without(found, origin.unknown))
        known, count = origin.recent.shape[1], len(origin.recent)
        windows = self._windows_of(origin, _behind(covariates, known))
        stateful = self._going_on_from(origin.state)
        outputs = self._step(stateful, tree_map(lambda a: a[0], windows.inputs(known - 1, known)))
        before = None
        if self.lag is not None:
            before = origin.season_before[:, known - self.lag :][:, : self.horizon]
        return self._unscaled(outputs.reshape(count, -1), before, origin.scaling, origin.unknown)

    def forecasts(
        self, origin: Origin, values: Array, covariates: CovariateRows | None, stride: int
    ) -> list[Array]:
        """Return forecasts at `origin` and every `stride` of the next steps, ``(N, n, K)``.

        After their last step, covariates known ahead are assumed average.
        """
        if stride <= _FEW and self.lag is None and not self.recursive:
            return self._forecasts_of_all(origin, values, covariates)[::stride]
        return self.forecasts_in_turn(origin, values, covariates, stride)

    def forecasts_in_turn(
        self, origin: Origin, values: Array, covariates: CovariateRows | None, stride: int
    ) -> list[Array]:
        """Do the same by `forecast` and `advance`; covariates may reach beyond the values."""
        found = []
        for begin in range(0, values.shape[1], stride):
            if begin:
                known = None if covariates is None else covariates.steps(begin - stride, begin)
                origin = self.advance(origin, values[:, begin - stride : begin], known)
            ahead = None
            if covariates is not None:
                ahead = covariates.horizon(begin, self.horizon)
            found.append(self.forecast(origin, ahead))
        return found

    def _unscaled(
        self, outputs: Array, before: Array | None, scaling: SeriesScaling, unknown: Array
    ) -> Array:
        """Return forecasts ``(N, horizon, K, Q)``; `before` are the values to compare with."""
        found = np.sort(outputs.reshape(len(outputs), self.horizon, -1, self._outputs), axis=-1)
        if self.lag is None:
            center, scale = scaling.center, scaling.scale
            found = found * scale[:, None, :, None] + center[:, None, :, None]
            return self._joined(_without(found, unknown))
        change = scaling.change
        assert change is not None
        assert before is not None
        found = found * change[:, None, :, None] + before[..., None]
        return self._joined(_without(found, unknown))

    def _apart(self, values: Array) -> Array:
        """Return values ``(N, steps, K)`` with each variable as a separate series."""
        if self.variables == 1:
            return values
        return np.moveaxis(values, 2, 1).reshape(-1, values.shape[1], 1)

    def _for_each(self, covariates: CovariateRows | None) -> CovariateRows | None:
        """Repeat covariates of series for each of their variables."""
        if covariates is None or self.variables == 1:
            return covariates
        return covariates.repeated(self.variables)

    def _joined(self, found: Array) -> Array:
        return found if self.variables == 1 else join_variables(found, self.variables)

    def _forecasts_of_all(
        self, origin: Origin, values: Array, covariates: CovariateRows | None
    ) -> list[Array]:
        """Return forecasts at `origin` and each of the next steps in one pass."""
        _, inputs = self._going_on(origin, values, covariates)
        stateful = self._going_on_from(origin.state)
        known = np.logical_or.accumulate(~np.isnan(self._apart(values)), axis=1)
        found: list[Array] = []
        for begin in range(0, values.shape[1], self.est.spec.seqsize):
            end = min(begin + self.est.spec.seqsize, values.shape[1])
            outputs = self._step(stateful, tree_map(lambda a, b=begin, e=end: a[b:e], inputs))
            for one in outputs:
                unknown = origin.unknown
                if found:
                    unknown = unknown & ~known[:, len(found) - 1]
                found.append(self._unscaled(one, None, origin.scaling, unknown))
        return found

    @property
    def _outputs(self) -> int:
        return 1 if self.levels is None else len(self.levels)

    def _windows(
        self,
        arrays: list[Array],
        ahead: Sequence[Array] | Array | None,
        scaling: SeriesScaling,
        past: Sequence[Array] | Array | None,
        static: Array | None,
        starts: Array | None = None,
        seasonal: list[Array] | None = None,
    ) -> Windows:
        return Windows.of(
            arrays, ahead, scaling, past=past, static=static, lag=self.lag, season=self.season,
            lags=self.lags, horizon=1 if self.recursive else self.horizon,
            levelled=self.levelled, starts=starts, seasonal=seasonal,
        )  # fmt: skip

    def _windows_of(self, origin: Origin, ahead: list[Array] | None) -> Windows:
        seasonal = None if origin.seasonal is None else list(origin.seasonal)
        return self._windows(
            list(origin.recent), ahead, origin.scaling, origin.past, origin.static, origin.starts,
            seasonal,
        )  # fmt: skip

    # The methods below keep no state in the estimator: several threads may forecast at once.

    def _run(self, inputs: Tree, lengths: Array | None, state: Tree) -> Tree:
        """Run over steps from a state; return the final state."""
        if not takes_state(self._net.body):
            return None
        est, net = self.est, StateOnly(self._net)
        with learner_of(est).replicas.together("forecast"), in_mode(self._net, training=False):
            data = Sequences(
                inputs, lengths=lengths, dtype=input_dtype(net), nan="keep", device=est.device,
                strict=False,
            )  # fmt: skip
            learner_of(est).replicas.make_common(est.model)
            predictor = Predictor(Stateful(net), est.device, learner_of(est).replicas)
            predictor.state = state
            predictor.predict(data, est.spec, reset=False)
        return predictor.state

    def _going_on_from(self, state: Tree) -> Stateful:
        stateful = Stateful(self._net)
        stateful.set_state(state)
        return stateful

    def _step(self, stateful: Stateful, x: Tree) -> Array:
        """Run one step of all series, ``(N, F)``, or some; return the model's outputs, fp64."""
        with in_mode(self._net, training=False), torch.no_grad():
            dtype = input_dtype(self._net)
            found = stateful(to_device(tree_map(lambda a: a.to(dtype), x), self.est.device))
        return np.asarray(found.double().cpu().numpy())

    @property
    def _net(self) -> ForecastNet:
        net = self.est.model
        assert isinstance(net, ForecastNet)
        return net

    def _one_after_the_other(self, origin: Origin, covariates: CovariateRows | None) -> Array:
        """Forecast step by step; quantiles are computed from drawn futures."""
        count, known, width = origin.recent.shape
        copies = 1 if self.levels is None else _PATHS
        which = np.repeat(np.arange(count), copies)
        windows = self._windows_of(origin, _behind(covariates, known))
        stateful = self._going_on_from(self._copied(origin.state, which))
        generator = np.random.default_rng(self.seed)
        scaling = origin.scaling.take(which)
        futures = np.empty((count * copies, self.horizon, width))
        before = origin.season_before[which]
        copied = torch.from_numpy(which)
        seen = windows.values[copied, -self.lags :]
        ahead, rows = self._covariates_of(windows, covariates)
        for step in range(self.horizon):
            parts = [seen.flatten(1)]
            if ahead is not None:
                parts.append(ahead[copied, step])
            if rows is not None:
                parts.append(rows[copied, step : step + self.lags].flatten(1))
            if windows.static is not None:
                parts.append(windows.static[copied])
            x: Tree = parts[0] if len(parts) == 1 else tuple(parts)
            found = self._step(stateful, x)
            scaled = _drawn(found.reshape(count * copies, width, -1), copies, generator)
            if self.lag is None:
                value = scaled * scaling.scale + scaling.center
            else:
                value = scaled * scaling.change + before[:, -self.lag]
            row = (value - scaling.center) / scaling.scale
            if self.lag is not None:
                row = np.concatenate([row, np.broadcast_to(scaled, row.shape)], axis=1)
            seen = torch.cat([seen[:, 1:], torch.from_numpy(row.astype(np.float32))[:, None]], 1)
            before = np.concatenate([before[:, 1:], value[:, None]], axis=1)
            futures[:, step] = value
        if self.levels is None:
            return futures[..., None]
        paths = futures.reshape(count, copies, self.horizon, width)
        return np.moveaxis(np.quantile(paths, self.levels, axis=1), 0, -1)

    def _covariates_of(
        self, windows: Windows, covariates: CovariateRows | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return covariates of the horizon, and all that the model will have seen by its end."""
        if covariates is None or covariates.ahead is None:
            return None, None
        ahead = torch.from_numpy(np.stack(list(covariates.ahead)).astype(np.float32))
        if windows.past is None:
            return ahead, None
        return ahead, torch.cat([windows.past[:, -self.lags :], ahead], 1)

    def _copied(self, state: Tree, which: Array) -> Tree:
        """Return the state with a row for each future."""
        if state is None or len(which) == len(np.unique(which)):
            return state
        return take_rows(state, self._batch_dims(), torch.from_numpy(which))


def _without(found: Array, unknown: Array) -> Array:
    """Return forecasts ``(N, horizon, K, Q)``, NaN of variables ``(N, K)`` that are unknown."""
    if not unknown.any():
        return found
    return np.where(unknown[:, None, :, None], np.nan, found)


def _behind(covariates: CovariateRows | None, known: int) -> list[Array] | None:
    """Return covariates of the next steps, with `known` rows of zeros before them."""
    if covariates is None or covariates.ahead is None:
        return None
    before = np.zeros((known, covariates.ahead[0].shape[1]))
    return [np.concatenate([before, one]) for one in covariates.ahead]


def _drawn(found: Array, copies: int, generator: np.random.Generator) -> Array:
    """Return points ``(R, K)``, or draw from quantiles ``(R, K, G)`` at `PATH_LEVELS`.

    R are `copies` of each series. All series get the same random numbers: what others there are
    does not matter to one.
    """
    if found.shape[-1] == 1:
        return np.asarray(found[..., 0])
    found = np.sort(found, axis=-1)
    place = generator.random((copies, found.shape[1]))
    place = np.tile(place, (len(found) // copies, 1))
    levels = np.array(PATH_LEVELS)
    place = place.clip(levels[0], levels[-1])
    high = np.searchsorted(levels, place).clip(1)[..., None]
    share = (place[..., None] - levels[high - 1]) / (levels[high] - levels[high - 1])
    low, up = (np.take_along_axis(found, index, -1) for index in (high - 1, high))
    return np.asarray((low + share * (up - low))[..., 0])
