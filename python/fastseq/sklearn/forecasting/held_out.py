"""Errors of forecasts on the last steps of series, and corrections computed from them."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np

from .conformal import Conformal, ShiftTracker
from .covariate_rows import CovariateRows, ends_together
from .rollout import Rollout
from .series import Array, by_length
from .training_series import TrainingSeries
from .transforms import smeared, smearing_terms, undone
from .windows import changes, over_seasons

__all__ = ["Correction", "units"]

_MOST = 2e7  # forecast values at most: beyond, series are drawn, then origins are left out
_LEAST = 200  # errors of each step at least, if there are as many


def units(arrays: list[Array], season: int | None, usual: Array | None = None) -> Array:
    """Return the unit of errors of each series, ``(N, K)``: its mean change over a season or step.

    A series without a known change gets the `usual` unit ``(K,)``; None: the median of all, or 1.

    Examples
    --------
    >>> units([np.array([[1.0], [3.0]]), np.array([[2.0], [2.0]])], None).T
    array([[2., 2.]])
    """
    lag = season or 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where nothing is known
        found = np.empty((len(arrays), arrays[0].shape[1]))
        for rows, block in by_length(arrays):
            moved = np.abs(changes(block, over_seasons(block, lag), lag))
            found[rows] = np.nanmean(moved, axis=1)
        found = np.where(found > 0, found, np.nan)
        if usual is None:
            usual = np.nan_to_num(np.nanmedian(found, axis=0), nan=1.0)
    return np.where(np.isnan(found), usual, found)


@dataclasses.dataclass(frozen=True)
class Correction:
    """Corrections of a model's forecasts, applied before they are returned.

    Parameters
    ----------
    transform
        The transform of the series, to be undone; None: there is none.
    season
        Steps of a season, for the units.
    units, usual
        The units of the training series ``(N, K)``, and the one for series without a known change;
        see `units`. None: they are not needed.
    terms
        Errors, in units, over which to take means, see `smeared`; None: forecasts are not means.
    conformal
        Shifts of quantiles; None: they are not shifted.
    """

    transform: str | None
    season: int | None
    units: Array | None = None
    usual: Array | None = None
    terms: tuple[Array, Array] | None = None
    conformal: Conformal | None = None

    @classmethod
    def measure(
        cls,
        rollout: Rollout,
        data: TrainingSeries,
        *,
        transform: str | None,
        means: bool,
        conformal: bool,
    ) -> Correction:
        """Measure the errors of a trained model on the steps that were held out.

        Parameters
        ----------
        rollout, data
            The model, and the series that it was trained on.
        transform
            Their transform.
        means
            Whether the model forecasts means; without a validation part, errors of the last
            training steps are used.
        conformal
            Whether to shift quantiles.
        """
        means = means and transform is not None
        if not means and not conformal:
            return cls(transform, rollout.season)
        rows, count = data.known, len(data.series.arrays)
        data = data.taken(rows)
        arrays, apart = data.series.arrays, data.apart
        learnt = [one[: len(one) - steps] for one, steps in zip(arrays, apart, strict=True)]
        each = units(learnt, rollout.season)
        usual = np.median(each, axis=0)
        of_all = np.repeat(usual[None], count, axis=0)
        of_all[rows] = each
        found = cls(transform, rollout.season, of_all, usual)
        chosen, steps = np.flatnonzero(apart), int(apart.max())
        if not steps:
            lengths = np.array([len(one) for one in arrays])
            chosen = np.flatnonzero(2 * lengths >= lengths.max())
            shortest = int(lengths[chosen].min())
            steps = max(1, min(4 * rollout.horizon, shortest // 3))
            steps = min(steps, shortest - 1 - (rollout.lag or 0))
        errors = _errors_of_last_steps(rollout, data.taken(chosen), each[chosen], steps)
        if conformal:
            assert rollout.levels is not None
            return dataclasses.replace(found, conformal=Conformal.measure(errors, rollout.levels))
        return dataclasses.replace(found, terms=smearing_terms(errors[..., 0]))

    def taken(self, rows: Array) -> Correction:
        """Return the correction of forecasts of some of the training series."""
        return dataclasses.replace(self, units=None if self.units is None else self.units[rows])

    def units_of(self, arrays: list[Array]) -> Array | None:
        """Return the units of series other than the training series."""
        return None if self.units is None else units(arrays, self.season, self.usual)

    def __call__(self, found: Array, per: Array | None, shift: Array | None = None) -> Array:
        """Correct a model's forecasts ``(N, h, K, Q)``.

        Parameters
        ----------
        found
            Forecasts of the transformed series.
        per
            The series' units.
        shift
            Shifts by a `ShiftTracker`; None: those of `conformal`.
        """
        if self.conformal is not None and per is not None:
            found = self.conformal.shifted(found, per, shift)
        if self.terms is None or per is None or self.transform is None:
            return undone(found, self.transform)
        steps = np.arange(found.shape[1]).clip(max=self.terms[0].shape[1] - 1)
        terms, shares = (part[:, None, steps, :, None] for part in self.terms)
        return smeared(found, terms * per[:, None, :, None], shares, self.transform)

    def tracker(self, rollout: Rollout, data: TrainingSeries) -> ShiftTracker:
        """Return a tracker of the series from their end on."""
        assert self.conformal is not None
        arrays, covariates = data.series.arrays, data.covariates
        back = rollout.horizon - 1
        cut = [max(len(one) - back, rollout.lag or 1) for one in arrays]
        before, after = (None, None) if covariates is None else covariates.split(cut, back)
        pairs = list(zip(arrays, cut, strict=True))
        origin = rollout.begin([one[:end] for one, end in pairs], before, data.scaling, data.static)
        shift = np.broadcast_to(
            self.conformal.shift, (len(arrays), *self.conformal.shift.shape)
        ).copy()
        late = np.array([back - len(one) + end for one, end in pairs])
        values = ends_together([one[end:] for one, end in pairs], back, np.nan)
        return ShiftTracker(shift, origin, values, after, late)

    def follow(
        self,
        tracker: ShiftTracker,
        rollout: Rollout,
        values: Array,
        covariates: CovariateRows | None,
    ) -> tuple[ShiftTracker, Array, Array]:
        """See `ShiftTracker.follow`."""
        assert self.conformal is not None
        assert self.units is not None
        return tracker.follow(self.conformal, rollout, values, covariates, self.units)


def _errors_of_last_steps(rollout: Rollout, data: TrainingSeries, per: Array, steps: int) -> Array:
    """Return actual values less their forecasts, made before each of the last steps, in units.

    ``(M, H, K, Q)``, NaN where unknown or of weight 0. If there are very many series, some are
    drawn.
    """
    arrays = data.series.arrays
    size = steps * rollout.horizon * data.series.variables
    size *= 200 if rollout.recursive else len(rollout.levels or (0,))
    count = int(min(len(arrays), max(_MOST // size, 1)))
    chosen = np.random.default_rng(rollout.seed).choice(len(arrays), count, replace=False)
    chosen.sort()
    enough = max((steps - rollout.horizon + 1) * count // _LEAST, 1)
    stride = min(-(-size * count // int(_MOST)), enough)
    data, per = data.taken(chosen), per[chosen]
    arrays, covariates, weights = data.series.arrays, data.covariates, data.weights
    before = known = None
    if covariates is not None:
        before, known = covariates.split([len(one) - steps for one in arrays], steps)
    values = np.stack([one[-steps:] for one in arrays])
    origin = rollout.begin([one[:-steps] for one in arrays], before, data.scaling, data.static)
    found = np.stack(rollout.forecasts(origin, values, known, stride))
    if weights is not None:
        values = np.where(np.stack([one[-steps:] for one in weights]) == 0, np.nan, values)
    values = np.pad(values, ((0, 0), (0, rollout.horizon), (0, 0)), constant_values=np.nan)
    rows = np.arange(0, steps, stride)[:, None] + np.arange(rollout.horizon)
    actual = np.moveaxis(values[:, rows], 0, 1)  # (origins, N, H, K)
    errors = (actual[..., None] - found) / per[:, None, :, None]
    return np.asarray(errors.reshape(-1, *errors.shape[2:]))
