"""Conformal quantiles: shifted so that they hold on steps that were held out, or followed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from .covariate_rows import CovariateRows, Rows
from .rollout import Origin, Rollout
from .series import Array

__all__ = ["Conformal", "ShiftTracker", "check_held_out", "needed", "steps_to_hold_out"]

_WANTED = 50  # errors beyond the outermost quantiles, if series are long enough
_RATE = 0.1


def needed(levels: Sequence[float]) -> int:
    """Return how many errors it takes to estimate quantiles at these levels.

    Examples
    --------
    >>> needed((0.1, 0.5, 0.9)), needed((0.05, 0.9))
    (9, 19)
    """
    return math.ceil(1 / _tail(levels)) - 1


def steps_to_hold_out(levels: Sequence[float], horizon: int, lengths: Array, left: int = 2) -> int:
    """Return how many last steps of each of the series should be held out.

    Series of which fewer than `left` steps would be left do not count: as few as possible.

    Examples
    --------
    >>> steps_to_hold_out((0.1, 0.9), 12, np.array([4000]))
    511
    >>> steps_to_hold_out((0.1, 0.9), 12, np.full(50, 60))
    15
    >>> steps_to_hold_out((0.1, 0.9), 12, np.append(np.full(50, 60), 1))
    15
    """

    def steps(shortest: int) -> int:
        count = int((lengths >= shortest).sum())
        wanted = max(math.ceil(_WANTED / _tail(levels) / count), horizon)
        least = math.ceil(needed(levels) / count)
        return horizon - 1 + max(least, min(wanted, shortest // 4 - horizon + 1))

    possible = np.unique(lengths).tolist()
    return next((steps(one) for one in possible if one >= steps(one) + left), steps(possible[-1]))


def check_held_out(levels: Sequence[float], horizon: int, validation: int, count: int) -> None:
    """Raise ValueError unless enough steps of `count` series are held out."""
    known = max(validation - horizon + 1, 0) * count
    if known < needed(levels):
        raise ValueError(
            f"conformal: {validation} steps held out of {count} series have {known} forecasts "
            f"whose last step is known, but quantiles {list(levels)} need {needed(levels)}: pass "
            "a larger validation, or levels nearer to 0.5"
        )


def _tail(levels: Sequence[float]) -> float:
    return round(min(min(levels), 1 - max(levels)), 12)


def _one_sided(scores: Array, level: float) -> float:
    """Return the empirical quantile of M sorted scores that holds for another one [1]_."""
    rank = (len(scores) + 1) * level
    if level == 0.5:
        return float(np.median(scores))
    whole = math.ceil(rank - 1e-9) if level > 0.5 else math.floor(rank + 1e-9)
    return float(scores[whole - 1])


@dataclasses.dataclass(frozen=True)
class Conformal:
    """How far quantiles are shifted, for each step of the horizon [1]_.

    A shift is the one-sided empirical quantile of actual values less their forecasts over steps
    that were held out, in units of each series (see `units`), over all series.

    Parameters
    ----------
    levels
        The levels.
    shift
        ``(H, K, Q)``.
    spread
        From the 5 % to the 95 % quantile of what shifts were computed from, ``(H, K, Q)``.

    References
    ----------
    .. [1] Y. Romano, E. Patterson and E. Candès, "Conformalized quantile regression", NeurIPS 32
       (2019), arXiv:1905.03222.
    """

    levels: tuple[float, ...]
    shift: Array
    spread: Array

    @classmethod
    def measure(cls, errors: Array, levels: tuple[float, ...]) -> Conformal:
        """Compute shifts from errors ``(M, H, K, Q)``, NaN where unknown.

        Raises
        ------
        ValueError
            There are too few.

        Examples
        --------
        >>> errors = np.arange(1.0, 10.0).reshape(9, 1, 1, 1)
        >>> Conformal.measure(errors, (0.9,)).shift.ravel()
        array([9.])
        """
        shift, spread = np.empty(errors.shape[1:]), np.empty(errors.shape[1:])
        least = needed(levels)
        for h, k in np.ndindex(errors.shape[1:3]):
            known = errors[np.isfinite(errors[:, h, k, 0]), h, k]
            if len(known) < least:
                raise ValueError(
                    f"conformal: of step {h + 1} of the horizon, {len(known)} actual values are "
                    f"known in the held-out part, but quantiles {list(levels)} need {least}: pass "
                    "longer series, a larger validation, or levels nearer to 0.5"
                )
            known = np.sort(known, axis=0)
            shift[h, k] = [_one_sided(known[:, q], level) for q, level in enumerate(levels)]
            low, high = np.quantile(known, (0.05, 0.95), axis=0)
            spread[h, k] = high - low
        return cls(levels, shift, spread)

    def shifted(self, found: Array, units: Array, shift: Array | None = None) -> Array:
        """Return forecasts ``(N, h, K, Q)`` shifted by these or other shifts, ``(N, H, K, Q)``.

        Steps beyond H are shifted as the last one. `units` are ``(N, K)``.
        """
        shift = self.shift[None] if shift is None else shift
        steps = np.arange(found.shape[1]).clip(max=shift.shape[1] - 1)
        return np.sort(found + shift[:, steps] * units[:, None, :, None], axis=-1)


@dataclasses.dataclass(frozen=True)
class ShiftTracker:
    """Shifts of each series that follow how often its quantiles miss [1]_.

    With each actual value, the shift of a quantile of level q rises by q · rate if the value is
    above, else it falls by (1 - q) · rate. So the share of values below tends to q, however they
    are distributed. As in [2]_ it is the shift that moves rather than its level, which could reach
    0 or 1. Forecasts of each step of the horizon are compared from each of the last steps, so it
    does not matter how many steps arrive at once.

    Parameters
    ----------
    shift
        ``(N, H, K, Q)``, in units of the series.
    behind
        The position of series H - 1 steps ago, or of short ones where a forecast first can be made.
    values, covariates
        Values and covariates of the last H - 1 steps, ``(N, H - 1, …)``.
    late
        How many of these steps are before `behind`, ``(N,)``.

    References
    ----------
    .. [1] I. Gibbs and E. Candès, "Adaptive conformal inference under distribution shift", NeurIPS
       34 (2021), arXiv:2106.00263.
    .. [2] A. Angelopoulos, E. Candès and R. Tibshirani, "Conformal PID control for time series
       prediction", NeurIPS 36 (2023), arXiv:2307.16895.
    """

    shift: Array
    behind: Origin
    values: Array
    covariates: CovariateRows | None
    late: Array

    def taken(self, rollout: Rollout, rows: Array) -> ShiftTracker:
        """Return the tracker of some of the series."""
        return ShiftTracker(
            self.shift[rows], rollout.taken(self.behind, rows), self.values[rows],
            None if self.covariates is None else self.covariates.taken(rows), self.late[rows],
        )  # fmt: skip

    def put(self, rollout: Rollout, rows: Array, part: ShiftTracker) -> ShiftTracker:
        """Return the tracker with that of some of the series replaced."""
        return ShiftTracker(
            _replaced(self.shift, rows, part.shift), rollout.put(self.behind, rows, part.behind),
            _replaced(self.values, rows, part.values),
            None if self.covariates is None or part.covariates is None else CovariateRows(
                _replaced_rows(self.covariates.ahead, rows, part.covariates.ahead),
                _replaced_rows(self.covariates.past, rows, part.covariates.past),
            ),
            _replaced(self.late, rows, part.late),
        )  # fmt: skip

    def follow(
        self,
        conformal: Conformal,
        rollout: Rollout,
        values: Array,
        covariates: CovariateRows | None,
        units: Array,
    ) -> tuple[ShiftTracker, Array, Array]:
        """Follow the next values ``(N, n, K)``.

        Returns
        -------
        ShiftTracker
            After them.
        numpy.ndarray
            Forecasts, not shifted, at the current position and after all values but the last,
            ``(n, N, H, K, Q)``,
        numpy.ndarray
            and the shifts then, of the same shape.
        """
        groups = [np.flatnonzero(self.late == late) for late in np.unique(self.late)]
        if len(groups) == 1:
            return self._follow(conformal, rollout, values, covariates, units)
        after, shape = self, (values.shape[1], *self.shift.shape)
        every, shifts = np.empty(shape), np.empty(shape)
        for rows in groups:
            part = None if covariates is None else covariates.taken(rows)
            own, every[:, rows], shifts[:, rows] = self.taken(rollout, rows)._follow(
                conformal, rollout, values[rows], part, units[rows]
            )
            after = after.put(rollout, rows, own)
        return after, every, shifts

    def _follow(
        self,
        conformal: Conformal,
        rollout: Rollout,
        values: Array,
        covariates: CovariateRows | None,
        units: Array,
    ) -> tuple[ShiftTracker, Array, Array]:
        """Do the same for series whose `late` is the same."""
        new, back, late = values.shape[1], self.values.shape[1], int(self.late[0])
        values = np.concatenate([self.values, values], axis=1)
        if covariates is not None and self.covariates is not None:
            covariates = self.covariates.joined(covariates)
        since = None if covariates is None else covariates.steps(late, None)
        found = np.stack(rollout.forecasts(self.behind, values[:, late:], since, 1))
        found = np.pad(found, ((late, 0), *[(0, 0)] * 4), constant_values=np.nan)
        levels, steps = np.array(conformal.levels), np.arange(back + 1)
        # Forecasts h steps ahead overlap: of h errors, only about one is new information.
        rate = _RATE * conformal.spread / (1 + steps[:, None, None])
        shifts, shift = [], self.shift
        for step in range(back, back + new):
            shifts.append(shift)
            came = values[:, step, None, :, None]
            due = np.moveaxis(found[step - steps, :, steps], 0, 1)  # (N, H, K, Q)
            above = (came - due) / units[:, None, :, None] > shift
            moved = shift + rate * (levels - 1 + above)
            shift = np.where(np.isnan(came - due), shift, moved)
        behind = self.behind
        if new > late:
            passed = None if covariates is None else covariates.steps(late, new)
            behind = rollout.advance(behind, values[:, late:new], passed)
        kept = None if covariates is None else covariates.steps(new, new + back)
        now = np.maximum(self.late - new, 0)
        after = ShiftTracker(shift, behind, values[:, new:], kept, now)
        return after, found[back:], np.stack(shifts)


def _replaced(all_of: Array, rows: Array, some: Array) -> Array:
    found: Array = all_of.copy()
    found[rows] = some
    return found


def _replaced_rows(all_of: Rows | None, rows: Array, some: Rows | None) -> Array | None:
    if all_of is None or some is None:
        return None
    return _replaced(np.stack(list(all_of)), rows, np.stack(list(some)))
