"""Weights in a forecaster's loss: of series, of time steps, and of steps of the horizon."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from .alignment import aligned
from .long_frames import Columns, LongTable
from .series import Array, Series, is_panel, read_series
from .times import Spacing, is_table
from .windows import Windows

__all__ = [
    "check_later_weights",
    "column_of_weights",
    "normalised",
    "read_series_weights",
    "weigh",
    "with_age",
]


def column_of_weights(y: Any, name: str, columns: Columns, spacing: Spacing) -> tuple[Any, Any]:
    """Return a long frame without its column of weights, and that column."""
    if not columns.is_long(y):
        raise TypeError(
            f"weights is the name {name!r}, but y is not a long frame with such a column"
        )
    own = [columns.id, columns.time]
    if name not in y.columns or name in (*own, columns.target):
        raise ValueError(f"weights must name a separate column of y, got {name!r}")
    weights, _ = dataclasses.replace(columns, target=name).split(y[[*own, name]], None, spacing)
    return y[[column for column in y.columns if column != name]], weights


def read_series_weights(given: Any, series: Series, spacing: Spacing) -> list[Array]:
    """Read weights of series, or of their time steps.

    Parameters
    ----------
    given
        A number for each series of a panel, ``(N,)``; or for each time step ``(T,)``, ``(N, T)``,
        a list of ``(T_i,)``, or as many as the series have values. If series have ids, so must
        weights.
    series
        The series.
    spacing
        How far apart times are.

    Returns
    -------
    list of numpy.ndarray
        ``(T_i, K)`` each.

    Raises
    ------
    ValueError, TypeError
        They do not belong to the series, or are negative, not finite, or all 0.

    Examples
    --------
    >>> series = read_series([np.zeros(2), np.zeros(1)], "y")
    >>> [one.T for one in read_series_weights([1.0, 2.0], series, Spacing())]
    [array([[1., 1.]]), array([[2.]])]
    """
    count, shapes = len(series.arrays), [one.shape for one in series.arrays]
    if series.ids is not None:
        given = _by_id(given, series.ids)
    each = None if series.single or is_table(given) else _numbers_or_none(given)
    if each is not None and each.shape == (count,):
        _check(each[:, None], "weights")
        found = [np.full(shape, weight) for shape, weight in zip(shapes, each, strict=True)]
    else:
        if each is not None and each.ndim == 2 and len(each) == count:
            given = list(each)
        names = series.names if _wide(given) else None
        read = aligned(read_series(given, "weights", names, spacing), series.ids, "weights")
        if len(read.arrays) != count:
            raise ValueError(
                f"weights must be of {count} series, got {len(read.arrays)}: pass one number for "
                "each series, or the weights of its time steps"
            )
        found = []
        for number, (weights, shape) in enumerate(zip(read.arrays, shapes, strict=True)):
            key = number if series.ids is None else series.ids[number]
            place = "weights" if series.single else f"weights[{key!r}]"
            if len(weights) != shape[0] or weights.shape[1] not in (1, shape[1]):
                raise ValueError(
                    f"{place} must be of {shape[0]} time steps of {shape[1]} variables, as y, got "
                    f"{weights.shape}"
                )
            _check_times(series, read, number, place)
            whole = np.broadcast_to(weights, shape)
            # A value that is missing needs no weight.
            whole = np.where(np.isnan(series.arrays[number]) & np.isnan(whole), 0, whole)
            _check(whole, place)
            found.append(whole)
    if not any(one.any() for one in found):
        raise ValueError("weights are all 0: there is nothing to learn")
    return found


def _of_steps(given: Any, series: Series) -> bool:
    """Whether weights that `read_series_weights` took are of time steps, not one per series.

    Examples
    --------
    >>> series = read_series([np.zeros(2), np.zeros(1)], "y")
    >>> _of_steps([1.0, 2.0], series), _of_steps([[1.0, 2.0], [3.0]], series)
    (False, True)
    """
    if series.single:
        return True
    given = given if series.ids is None else _by_id(given, series.ids)
    each = None if is_table(given) else _numbers_or_none(given)
    return each is None or each.ndim > 1


def check_later_weights(weights: Any, y: Any, like: Series, columns: Columns) -> None:
    """Raise ValueError unless weights of the training series say those of later steps, too.

    Parameters
    ----------
    weights
        What `fit` got.
    y
        The later steps.
    like
        The training series.
    columns
        Names of columns of long frames.
    """
    if columns.weights is not None:
        if not columns.is_long(y) or columns.weights not in y.columns:
            raise ValueError(
                f"y must be a long frame with the column {columns.weights!r} of weights, as in "
                "fit, to train again"
            )
    elif weights is not None and _of_steps(weights, like):
        raise ValueError(
            "backtest with refit= needs weights of the later steps, too, but those of fit are of "
            "its time steps only: pass long frames to fit and backtest, with a column of weights, "
            'and weights="its name" to fit; or use half_life= or a weight per series'
        )


def _by_id(given: Any, ids: tuple[Any, ...]) -> Any:
    """Return one number per id as an array in the order of `ids`; weights of steps unchanged."""
    if is_table(given) and given.ndim == 1:
        given = given.to_dict()
    if isinstance(given, LongTable):
        return given
    if not isinstance(given, dict):
        raise TypeError(
            "y has ids, so weights must be a dictionary or a Series by id, or the name of a column "
            f"of a long frame, got {type(given).__name__}"
        )
    if any(np.ndim(one) for one in given.values()):
        return given
    if set(given) != set(ids):
        other = next(iter(set(given) ^ set(ids)))
        raise ValueError(f"weights must have the ids of y, but only one of them has {other!r}")
    return np.array([given[one] for one in ids], np.float64)


def _numbers_or_none(given: Any) -> Array | None:
    """Return numbers as an array; None if they are of different lengths, or no numbers."""
    if is_panel(given):
        return None
    array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    return array.astype(np.float64) if array.dtype.kind in "biuf" else None


def _wide(given: Any) -> bool:
    first = given[0] if isinstance(given, list | tuple) else given
    return is_table(first) and first.ndim == 2


def _check(weights: Array, place: str) -> None:
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        step, variable = np.argwhere(bad)[0]
        raise ValueError(
            f"{place} must be finite and not negative, got {weights[step, variable]} at {step}"
        )


def _check_times(series: Series, read: Series, number: int, place: str) -> None:
    """Raise unless weights have the times of their series, in the same order."""
    own, other = series.indices[number], read.indices[number]
    if own is not None and other is not None and not own.equals(other):
        raise ValueError(f"{place} must have the index of y: it differs")
    if series.moved[number] != read.moved[number]:
        raise ValueError(
            f"{place} may be in another order than y, whose rows were sorted by time: give both "
            "the same index, or sort them"
        )


def with_age(
    weights: list[Array] | None, series: Series, half_life: float | None
) -> list[Array] | None:
    """Return weights that fall by half over `half_life` steps before each series' end.

    None if neither is given.

    Examples
    --------
    >>> series = read_series([np.zeros(3), np.zeros(1)], "y")
    >>> [one.T for one in with_age(None, series, 1)]
    [array([[0.25, 0.5 , 1.  ]]), array([[1.]])]
    """
    if half_life is None:
        return weights
    found = [
        np.repeat(0.5 ** (np.arange(len(one))[::-1] / half_life)[:, None], one.shape[1], axis=1)
        for one in series.arrays
    ]
    if weights is None:
        return found
    return [one * other for one, other in zip(found, weights, strict=True)]


def weigh(
    windows: Windows, weights: list[Array] | None, steps: Array | None, apart: Array | int
) -> Windows:
    """Return windows with weights, which `normalised` turns into those of the loss.

    Parameters
    ----------
    windows
        The windows; targets of weight 0 become unknown.
    weights
        Of each series' values, ``(T_i, K)``; None: all 1.
    steps
        Of each step of the horizon, ``(H,)``; None: all 1.
    apart
        Number of last steps of each series to validate on, ``(N,)``; 0: none.

    Raises
    ------
    ValueError
        Nothing counts, in training or in validation.
    """
    if weights is None and steps is None:
        return windows
    targets = windows.targets.clone()
    laid = torch.ones(targets.shape, dtype=torch.float64)
    for n, own in enumerate(weights or []):
        laid[n, : len(own)] = torch.from_numpy(np.ascontiguousarray(own))
    targets[laid == 0] = torch.nan
    known = targets.isfinite()
    ends = torch.from_numpy(windows.lengths - apart)[:, None, None]
    learnt = torch.arange(targets.shape[1])[:, None] < ends
    if not bool((known & learnt).any()):
        raise ValueError("no known value of y to learn from has a weight above 0")
    held = int(np.max(apart))
    if held and not bool((known & ~learnt).any()):
        raise ValueError(
            f"no known value of the last {held} steps, which are held out to validate on, has a "
            "weight above 0: set validation to a larger number, or to 0"
        )
    laid /= laid[known].mean()  # a constant becomes 1 exactly
    return dataclasses.replace(
        windows, targets=targets, target_weights=laid.float(),
        step_weights=None if steps is None else _with_mean_1(steps),
    )  # fmt: skip


def normalised(windows: Windows, begin: int = 0) -> Windows:
    """Return windows whose weights, of all that is learnt from step `begin` on, have mean 1.

    So an update counts as much as its weights, and the mean loss of all updates is the weighted
    mean.
    """
    if windows.target_weights is None:
        return windows
    known = windows.targets.isfinite()
    weights = torch.where(known, windows.target_weights.double(), 0).sum(2)
    counts = known.double().sum(2)
    steps = windows.longest - 1 - begin
    within = torch.ones(len(known), steps, dtype=torch.float64)
    if windows.skipped is not None:
        within = (torch.arange(begin, begin + steps) >= windows.skipped[:, None]).double()
    total = count = 0.0
    for h in range(windows.horizon):
        own = 1.0 if windows.step_weights is None else windows.step_weights[h]
        rows = slice(begin + 1 + h, begin + 1 + h + steps)
        total += own * float((weights[:, rows] * within).sum())
        count += float((counts[:, rows] * within).sum()) if own else 0.0
    if not total:
        raise ValueError("no known value of y to learn from has a weight above 0")
    return dataclasses.replace(windows, target_weights=windows.target_weights * (count / total))


def _with_mean_1(weights: Array) -> tuple[float, ...]:
    return tuple((weights / weights[weights > 0].mean()).tolist())
