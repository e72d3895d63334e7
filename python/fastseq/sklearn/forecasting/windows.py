"""Training data of a forecaster: windows of series, as views without copies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ...data.scaling.moments import Moments
from .series import Array, by_length, carried, filled, first_known

__all__ = [
    "SeriesScaling",
    "Windows",
    "center_and_scale",
    "changes",
    "over_seasons",
    "window_view",
]


def window_view(rows: Tensor, first: int, steps: int, width: int) -> Tensor:
    """Return windows over rows as a view: at step t, `width` rows from ``first + t`` on.

    Parameters
    ----------
    rows
        Contiguous, ``(N, R, C)``.
    first, steps, width
        Start of the first window, number of windows, and rows of each.

    Returns
    -------
    Tensor
        ``(steps, N, width · C)``, sharing the memory of `rows`.

    Examples
    --------
    >>> window_view(torch.arange(5.0).reshape(1, 5, 1), 1, 3, 2)[:, 0]
    tensor([[1., 2.],
            [2., 3.],
            [3., 4.]])
    """
    count, length, features = rows.shape
    if not rows.is_contiguous() or first < 0 or first + steps + width - 1 > length:
        raise ValueError(f"{steps} windows of {width} do not fit into {length} rows")
    strides = (features, length * features, 1)
    return rows.as_strided((steps, count, width * features), strides, first * features)


def over_seasons(values: Array, season: int) -> Array:
    """Return values ``(…, T, K)`` with gaps filled by the last value known whole seasons before.

    NaN where there is none.

    Examples
    --------
    >>> over_seasons(np.array([[1.0], [np.nan], [np.nan], [4.0], [np.nan], [np.nan]]), 2).T
    array([[ 1., nan,  1.,  4.,  1.,  4.]])
    """
    if not np.isnan(values).any():
        return values
    *many, steps, width = values.shape
    count = -(-steps // season)
    whole = np.full((*many, count * season, width), np.nan)
    whole[..., :steps, :] = values
    seasons = whole.reshape(*many, count, season * width)
    rows = np.where(np.isnan(seasons), 0, np.arange(count)[:, None])
    rows = np.maximum.accumulate(rows, axis=-2)
    known = np.take_along_axis(seasons, rows, axis=-2).reshape(whole.shape)
    return np.asarray(known[..., :steps, :])


def changes(values: Array, before: Array, lag: int) -> Array:
    """Return the changes of values ``(…, T, K)`` from those `lag` before; the first are NaN.

    Examples
    --------
    >>> values = np.array([[1.0], [4.0], [6.0]])
    >>> changes(values, values, 2).T
    array([[nan, nan,  5.]])
    """
    found = np.full_like(values, np.nan)
    found[..., lag:, :] = values[..., lag:, :] - before[..., :-lag, :]
    return found


def center_and_scale(arrays: list[Array]) -> tuple[Array, Array]:
    """Return mean and standard deviation of all rows of arrays ``(T_i, K)``, ignoring NaN.

    The deviation is 1 if values differ only by rounding, the mean 0 if there are none.

    Examples
    --------
    >>> center_and_scale([np.array([[1.0, 0.1], [3.0, 0.1]]), np.array([[np.nan, 0.1]])])
    (array([2. , 0.1]), array([1., 1.]))
    """
    center, deviation = _mean_and_deviation(arrays)
    return center, _above(deviation, _ROUNDING * np.abs(center), 1)


_ROUNDING = 8 * np.finfo(np.float64).eps
_TOGETHER = 2**9  # values to sum over
_SERIES = 2**14  # at once


def _mean_and_deviation(arrays: list[Array]) -> tuple[Array, Array]:
    largest = np.max([np.nanmax(np.abs(one), axis=0, initial=0) for one in arrays], axis=0)
    unit = np.ldexp(1.0, np.frexp(largest)[1] - 1)  # so that no square overflows fp64
    moments = Moments(arrays[0].shape[1:])
    for array in arrays:
        moments.update(torch.from_numpy(array / unit)[:, None])
    return np.where(moments.count > 0, moments.mean, 0) * unit, moments.deviation() * unit


@np.errstate(invalid="ignore", over="ignore")
def _each_mean_and_deviation(values: Array) -> tuple[Array, Array]:
    """Return those of each series ``(N, T, K)``, with the same bits as for it alone."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    largest = np.abs(values).max(axis=1, initial=0, where=known)
    unit = np.ldexp(1.0, np.frexp(largest)[1] - 1)
    shift, values = np.zeros_like(unit), values / unit[:, None]
    for _ in range(2):  # as `Moments` does
        d = np.where(known, values - shift[:, None], 0)
        s, q = _sums(d), _sums(np.square(d))
        mean = s / count.clip(1)
        m2 = np.maximum(q - s * mean, 0)
        center = shift + mean
        far = (count * mean * mean > 4 * m2).any(axis=1, keepdims=True)
        shift = np.where(far & (count > 0), center, shift)
    return np.where(count > 0, center, 0) * unit, np.sqrt(m2 / count.clip(1)) * unit


def _sums(values: Array) -> Array:
    """Return the sums of values ``(N, T, K)`` over steps: of few at once, so they are accurate."""
    count, steps, width = values.shape
    many = max(1, _TOGETHER // width)
    whole = steps // many * many
    sums = values[:, :whole].reshape(count, whole // many, many * width).sum(axis=1)
    sums = sums.reshape(count, many, width).sum(axis=1)
    return np.asarray(sums + values[:, whole:].sum(axis=1))


def _mean_size(values: Array) -> Array:
    """Return the mean absolute value of each series ``(N, T, K)``, 0 if nothing is known."""
    known = np.isfinite(values)
    count = known.sum(axis=1, keepdims=True).clip(1)
    return np.asarray((np.abs(np.where(known, values, 0)) / count).sum(axis=1))


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else 0.0


def _above(deviation: Array, least: Array, otherwise: Array | float) -> Array:
    return np.where(deviation > least, deviation, otherwise)


@dataclasses.dataclass
class SeriesScaling:
    """Scaling of series, ``(value - center) / scale``: common to all, or of each series.

    Parameters
    ----------
    center, scale
        ``(1, K)`` for all series, or ``(N, K)`` for each.
    change
        Divisor of changes over a season, of the same shape; None: there is no season.
    """

    center: Array
    scale: Array
    change: Array | None

    @classmethod
    def measure(
        cls,
        arrays: list[Array],
        method: str | None,
        lag: int | None,
        season: int | None = None,
    ) -> SeriesScaling:
        """Measure the scaling.

        Parameters
        ----------
        arrays
            Series ``(T_i, K)``; NaN marks missing values.
        method
            ``"standard"``: by mean and standard deviation of all; ``"series"``: of each;
            ``"changes"``: by the mean of each, and its mean absolute change over a season, or from
            step to step; or None.
        lag
            Steps back to the value of an earlier season to compare with; None: no season.
        season
            Steps of a season.
        """
        width = arrays[0].shape[1]
        if method not in ("series", "changes"):
            center, scale, step = np.zeros(width), np.ones(width), np.ones(width)
            if method is not None:
                center, scale = center_and_scale(arrays)
            if method is not None and lag is not None and season is not None:
                found = [changes(one, over_seasons(one, season), lag) for one in arrays]
                # Exactly periodic values differ only by rounding.
                least = _ROUNDING * np.abs(center) + 1e-9 * scale
                step = _above(_mean_and_deviation(found)[1], least, scale)
            return cls(center[None], scale[None], None if lag is None else step[None])
        centers, scales, steps = np.empty((3, len(arrays), width))
        for rows, block in by_length(arrays):
            center, deviation = _each_mean_and_deviation(block)
            scale = _above(deviation, _ROUNDING * np.abs(center), 1)
            if method == "changes":
                by = season or 1
                moved = changes(block, over_seasons(block, by), by)
                scale = _above(_mean_size(moved), _ROUNDING * np.abs(center) + 1e-9 * scale, scale)
            if lag is not None and season is not None:
                moved = changes(block, over_seasons(block, season), lag)
                least = _ROUNDING * np.abs(center) + 1e-9 * scale
                steps[rows] = _above(_each_mean_and_deviation(moved)[1], least, scale)
            centers[rows], scales[rows] = center, scale
        return cls(centers, scales, None if lag is None else steps)

    def of_single_values(
        self, arrays: list[Array], typical: SeriesScaling | None, *, relative: bool = True
    ) -> SeriesScaling:
        """Return the scaling with a typical scale for series of at most one known value.

        It is as large, compared to the value, as the median of the `typical` scalings; of a value
        of 0, and if not `relative`, it is their median. None: the other series are typical.

        Examples
        --------
        >>> typical = SeriesScaling(np.array([[10.0], [20.0]]), np.array([[1.0], [2.0]]), None)
        >>> arrays = [np.array([[50.0]]), np.array([[1.0], [5.0]])]
        >>> own = SeriesScaling.measure(arrays, "series", None)
        >>> own.of_single_values(arrays, typical).scale.T
        array([[5., 2.]])
        """
        count = np.empty((len(arrays), arrays[0].shape[1]), np.int64)
        for rows, block in by_length(arrays):
            count[rows] = np.isfinite(block).sum(axis=1)
        single = count < 2
        if typical is None:
            typical = self.take(np.flatnonzero(~single.any(axis=1)))
        if not single.any() or not len(typical.scale):
            return self
        size = np.abs(typical.center)
        share = typical.scale / np.where(size > 0, size, np.nan)
        scale = np.abs(self.center) * np.array([_median(column) for column in share.T])
        scale = np.where((scale > 0) & relative, scale, np.median(typical.scale, axis=0))
        return dataclasses.replace(self, scale=np.where(single, scale, self.scale))

    def apart(self, count: int) -> SeriesScaling:
        """Return the scaling of each variable of `count` series as a separate series."""
        rows = count if len(self.center) == 1 else 1

        def each(part: Array) -> Array:
            return np.tile(part, (rows, 1)).reshape(-1, 1)

        change = None if self.change is None else each(self.change)
        return SeriesScaling(each(self.center), each(self.scale), change)

    def put(self, index: Array, part: SeriesScaling) -> SeriesScaling:
        """Return the scaling with that of some of the series replaced."""
        if len(self.center) == 1:
            return self

        def put(own: Array, some: Array) -> Array:
            found: Array = own.copy()
            found[index] = some
            return found

        change = self.change
        if change is not None and part.change is not None:
            change = put(change, part.change)
        return SeriesScaling(put(self.center, part.center), put(self.scale, part.scale), change)

    def take(self, index: Array) -> SeriesScaling:
        """Return the scaling of some of the series."""
        if len(self.center) == 1:
            return self
        change = None if self.change is None else self.change[index]
        return SeriesScaling(self.center[index], self.scale[index], change)


@dataclasses.dataclass
class Windows:
    """Series and covariates as rows in memory; all windows are views of them.

    Parameters
    ----------
    values
        What the model sees of the past, ``(N, lags - 1 + T, P)``: scaled values and, with a
        `lag`, changes over it. Gaps hold the last known value, 0 before the first. Changes are of
        values filled by `over_seasons`, or by the last known value if no earlier season is known;
        with a season but no `lag`, so are the values.
    targets
        What is forecast, ``(N, T + horizon, K)``: scaled values, or changes; NaN where unknown.
    covariates
        Those known ahead, ``(N, T + horizon, F)``, scaled, 0 after the last; None: there are none.
    past
        Covariates the model sees besides values, ``(N, lags - 1 + T, G)``; None: there are none.
    static
        Static covariates, ``(N, C)``; None: there are none.
    lengths
        Lengths of the series in time steps, ``(N,)``.
    lags, horizon
        Number of values the model sees at once, and number it forecasts.
    skipped
        Number of first steps that do not count, ``(N,)``, such as those before the first known
        value; None: all count.
    target_weights
        Weights of the targets, of their shape; None: they count alike.
    step_weights
        Weights of the steps of the horizon, ``(horizon,)``; None: they count alike.
    """

    values: Tensor
    targets: Tensor
    covariates: Tensor | None
    lengths: Array
    lags: int
    horizon: int
    past: Tensor | None = None
    static: Tensor | None = None
    skipped: Tensor | None = None
    target_weights: Tensor | None = None
    step_weights: tuple[float, ...] | None = None

    @classmethod
    @np.errstate(over="ignore")  # overflow raises below
    def of(
        cls,
        arrays: list[Array],
        covariates: Sequence[Array] | Array | None,
        scaling: SeriesScaling,
        *,
        past: Sequence[Array] | Array | None = None,
        static: Array | None = None,
        lag: int | None,
        season: int | None,
        lags: int,
        horizon: int,
        levelled: bool = False,
        starts: Array | None = None,
        seasonal: list[Array] | None = None,
    ) -> Windows:
        """Scale series ``(T_i, K)`` and lay them out; covariates are scaled already.

        `past` are covariates without gaps, ``(T_i, G)``, and `static` ``(N, C)``.

        `levelled`: before a series' start the model sees its first row, rather than 0. `starts`
        ``(N,)`` is the number of rows before each series' start; `seasonal` is what `over_seasons`
        returns for series that continue earlier values.
        """
        lengths = np.array([len(one) for one in arrays], np.int64)
        count, longest, width = len(arrays), int(lengths.max()), arrays[0].shape[1]
        features = width if lag is None else 2 * width
        values = np.zeros((count, lags - 1 + longest, features), np.float32)
        targets = np.full((count, longest + horizon, width), np.nan, np.float32)
        begins = np.zeros(count, np.int64)
        for rows, array in by_length(arrays, starts):
            own = scaling.take(rows)
            center, scale = own.center[:, None], own.scale[:, None]
            change = None if own.change is None else own.change[:, None]
            start = 0 if starts is None else int(starts[rows[0]])
            array, end = array[:, start:], array.shape[1]
            begins[rows] = start + first_known(array)
            known, begin = (array - center) / scale, lags - 1 + start
            seen = slice(begin, lags - 1 + end)
            whole = filled(array) if levelled else carried(array)
            if season is not None:
                if seasonal is None:
                    before = over_seasons(array, season)
                else:
                    before = np.stack([seasonal[n][start:] for n in rows])
                whole = np.where(np.isnan(before), whole, before)
            if lag is None:
                values[rows, seen] = np.nan_to_num((whole - center) / scale)
            else:
                last = filled(known) if levelled else carried(known)
                values[rows, seen, :width] = np.nan_to_num(last)
                values[rows, seen, width:] = np.nan_to_num(changes(whole, whole, lag) / change)
                known = changes(array, before, lag) / change
            if levelled:
                values[rows, :begin] = values[rows, begin][:, None]
            targets[rows, start:end] = known
        laid = behind = None
        if past is not None:
            behind = np.zeros((count, lags - 1 + longest, past[0].shape[1]), np.float32)
            for rows, array in by_length(past, starts):
                start = 0 if starts is None else int(starts[rows[0]])
                begin = lags - 1 + start
                behind[rows, begin : lags - 1 + array.shape[1]] = array[:, start:]
                if levelled:
                    behind[rows, :begin] = behind[rows, begin][:, None]
        if covariates is not None:
            laid = np.zeros((count, longest + horizon, covariates[0].shape[1]), np.float32)
            for rows, array in by_length(covariates):
                laid[rows, : array.shape[1]] = array[:, : longest + horizon]
        constant = None if static is None else static.astype(np.float32)
        for name, part in (("y", values), ("X", laid), ("X", behind), ("static", constant)):
            if part is not None and np.isinf(part).any():
                raise ValueError(
                    f"{name} has values that are too large for single precision after scaling as "
                    "in fit: leave them out (NaN marks missing values of y), or scale them"
                )
        known, seen_past, fixed = (
            None if part is None else torch.from_numpy(part) for part in (laid, behind, constant)
        )
        return cls(
            torch.from_numpy(values), torch.from_numpy(targets), known, lengths, lags, horizon,
            seen_past, fixed, torch.from_numpy(begins) if begins.any() else None,
        )  # fmt: skip

    def segments(self, steps: int) -> Windows:
        """Return copies of segments of the series, as series of ``steps + 1`` steps.

        They are cut from the ends of the series backwards; an incomplete first one starts with
        steps that do not count. Segments of which no target is known, or no step counts, are left
        out.
        """
        counts = -(-(self.lengths - 1) // steps)
        of = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(of)) - (counts.cumsum() - counts)[of]
        series = torch.from_numpy(of)
        begins = torch.from_numpy(self.lengths[of] - 1 - (number + 1) * steps)
        skipped = (-begins if self.skipped is None else self.skipped[series] - begins).clamp_min(0)
        sums = pad(self.targets.isfinite().any(2).cumsum(1, dtype=torch.int32), (1, 0))
        known = (
            sums[series, begins + steps + self.horizon] > sums[series, (begins + 1).clamp_min(0)]
        )
        kept = known & (skipped < steps)
        series, begins = series[kept], begins[kept]
        cut = functools.partial(_cut, series=series, begins=begins)
        seen, forecast = self.lags - 1 + steps, steps + self.horizon
        targets = cut(self.targets, forecast)
        early = begins < 0
        before = torch.arange(forecast) < -begins[early, None]
        targets[early] = targets[early].masked_fill(before.unsqueeze(2), torch.nan)
        return Windows(
            cut(self.values, seen), targets,
            None if self.covariates is None else cut(self.covariates, forecast),
            np.full(len(series), steps + 1), self.lags, self.horizon,
            None if self.past is None else cut(self.past, seen),
            None if self.static is None else self.static[series], skipped[kept],
            None if self.target_weights is None else cut(self.target_weights, forecast),
            self.step_weights,
        )  # fmt: skip

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Windows:
        """Return windows of other tensors, ``fn`` of each."""
        return dataclasses.replace(
            self, values=fn(self.values), targets=fn(self.targets),
            covariates=None if self.covariates is None else fn(self.covariates),
            past=None if self.past is None else fn(self.past),
            static=None if self.static is None else fn(self.static),
            target_weights=None if self.target_weights is None else fn(self.target_weights),
        )  # fmt: skip

    @property
    def longest(self) -> int:
        """T."""
        return int(self.lengths.max())

    def inputs(self, begin: int, end: int) -> Tensor | tuple[Tensor, ...]:
        """Return what the model sees at steps ``[begin, end)``: a view ``(steps, N, lags · P)``.

        With covariates, a tuple that continues, where there are such, with views of those of the
        horizon ``(steps, N, horizon · F)``, of those of the last steps ``(steps, N, lags · G)``,
        and of static ones ``(steps, N, C)``.
        """
        steps = end - begin
        parts = [window_view(self.values, begin, steps, self.lags)]
        if self.covariates is not None:
            parts.append(window_view(self.covariates, begin + 1, steps, self.horizon))
        if self.past is not None:
            parts.append(window_view(self.past, begin, steps, self.lags))
        if self.static is not None:
            parts.append(self.static.expand(steps, -1, -1))
        return parts[0] if len(parts) == 1 else tuple(parts)

    def outcomes(self, begin: int, end: int) -> Tensor | tuple[Tensor, Tensor]:
        """Return the targets of steps ``[begin, end)``: a view ``(steps, N, horizon · K)``.

        If they have weights, a pair of it and one of the weights.
        """
        targets = window_view(self.targets, begin + 1, end - begin, self.horizon)
        if self.target_weights is None:
            return targets
        return targets, window_view(self.target_weights, begin + 1, end - begin, self.horizon)

    def weights(self, begin: int, end: int) -> Tensor | None:
        """Return the known share of each step's targets, ``(steps, N)``; None: all are known."""
        known = self.targets.isfinite()
        skipped = self.skipped is not None and bool(self.skipped.any())
        if not skipped and bool(known[:, begin + 1 : end + self.horizon].all()):
            return None
        shares = torch.empty(end - begin, len(known))
        for rows in _blocks(len(known)):
            shares[:, rows] = self._known_shares(known[rows], begin, end - begin).T
        if self.skipped is not None:
            shares[torch.arange(begin, end)[:, None] < self.skipped] = 0
        return shares

    def _known_shares(self, known: Tensor, begin: int, steps: int) -> Tensor:
        """Return which share of each step's targets is known, ``(N, steps)``."""
        each, width = known.double().mean(2), self.horizon
        if self.step_weights is None:
            sums = each.cumsum(1)  # (N, rows): up to and including each row
            last = sums[:, begin + width : begin + width + steps]
            share = (last - sums[:, begin : begin + steps]) / width
        else:
            share = each.new_zeros(len(each), steps)
            for h in np.flatnonzero(self.step_weights):
                share += each[:, begin + 1 + h : begin + 1 + h + steps] / width
        return share.clamp_min(0).float()

    def held_out(self, steps: Array) -> Windows:
        """Remove the last steps of each series, ``(N,)``, from training; return validation data.

        These are the series with targets of these steps alone.

        Raises
        ------
        ValueError
            Nothing is left to train on.
        """
        wrong = np.flatnonzero((steps > 0) & (steps > self.lengths - 2))
        if wrong.size:
            raise ValueError(
                f"validation={steps[wrong[0]]} leaves nothing to train on of a series of "
                f"{self.lengths[wrong[0]]} steps"
            )
        apart = self.targets.clone()
        ends = torch.from_numpy(self.lengths - steps)[:, None]
        known = torch.arange(apart.shape[1]) < ends
        self.targets[~known] = torch.nan
        apart[known] = torch.nan
        return dataclasses.replace(self, targets=apart)

    def training_data(self, begin: int = 0) -> tuple[Any, Any, Tensor | None]:
        """Return inputs, outcomes and weights of all steps from `begin` that have any outcome."""
        end = self.longest - 1
        return self.inputs(begin, end), self.outcomes(begin, end), self.weights(begin, end)


def _blocks(count: int) -> Iterator[slice]:
    for begin in range(0, count, _SERIES):
        yield slice(begin, begin + _SERIES)


def _cut(part: Tensor, width: int, *, series: Tensor, begins: Tensor) -> Tensor:
    """Return `width` rows of some series of ``(N, R, C)`` from a row of each on.

    Rows before the first repeat it.
    """
    found = part.new_empty(len(series), width, part.shape[2])
    for own in _blocks(len(series)):  # places of all rows would be larger than what they hold
        rows = (begins[own, None] + torch.arange(width)).clamp_min(0)
        found[own] = part[series[own, None], rows]
    return found
