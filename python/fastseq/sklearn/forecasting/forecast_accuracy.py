"""Accuracy of forecasts and of simple ones from the same origins, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._util.optional_imports import need
from .series import Array

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["accuracy", "middle", "outcomes"]

_ROWS = 2_000_000  # of a frame, about


def middle(found: Array, levels: Sequence[float] | None) -> Array:
    """Return forecasts ``(…, Q)`` as points ``(…)``: of quantiles, the median.

    It is interpolated between the levels around 0.5; if all are above or below, the nearest one is
    taken.

    Examples
    --------
    >>> middle(np.array([1.0, 3.0, 8.0]), (0.2, 0.4, 0.8))
    array(4.25)
    """
    if levels is None:
        return np.asarray(found[..., 0])
    high = int(np.searchsorted(levels, 0.5).clip(0, len(levels) - 1))
    if high == 0 or levels[high] <= 0.5:
        return np.asarray(found[..., high])
    share = (0.5 - levels[high - 1]) / (levels[high] - levels[high - 1])
    low = found[..., high - 1]
    return np.asarray(low + share * (found[..., high] - low))


def outcomes(values: Array, horizon: int, stride: int) -> Array:
    """Return what follows the start and every `stride`-th of the next steps ``(N, n, K)``.

    Returns
    -------
    numpy.ndarray
        ``(origins, N, horizon, K)``; NaN beyond the last step.

    Examples
    --------
    >>> outcomes(np.arange(5.0).reshape(1, 5, 1), 3, 2)[:, 0, :, 0]
    array([[ 0.,  1.,  2.],
           [ 2.,  3.,  4.],
           [ 4., nan, nan]])
    """
    steps = values.shape[1]
    longer = np.pad(values, ((0, 0), (0, horizon), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(longer, horizon, axis=1)
    return np.asarray(windows[:, :steps:stride].transpose(1, 0, 3, 2))


def accuracy(
    actual: Array,
    points: Mapping[str, Array],
    scale: Array,
    quantiles: Mapping[str, Array],
    levels: Sequence[float] | None,
) -> pd.DataFrame:
    """Return the accuracy of forecasts for each series and model.

    Parameters
    ----------
    actual
        Actual values from each origin, ``(O, N, horizon, K)``; NaN where unknown.
    points
        Each model's forecasts, of the same shape.
    scale
        By which MASE divides, ``(N, K)``.
    quantiles, levels
        Forecasts of some models, ``(O, N, horizon, K, Q)``, and their levels; None: there are none.

    Returns
    -------
    pandas.DataFrame
        Rows (series n, variable k, model), NaN where nothing is known.
    """
    pd: Any = need("pandas", "evaluate")
    losses: Any = need("utilsforecast.losses", "evaluate")
    origins, count, horizon, width = actual.shape
    at_once = max(1, _ROWS // (origins * horizon * width))
    parts = []
    for begin in range(0, count, at_once):
        block = slice(begin, begin + at_once)
        known = ~np.isnan(actual[:, block])
        codes = np.broadcast_to(
            np.arange(count * width).reshape(1, count, 1, width)[:, block], known.shape
        )
        frame = pd.DataFrame({"unique_id": codes[known], "y": actual[:, block][known]})
        for name, found in points.items():
            frame[name] = found[:, block][known]
        for name, found in quantiles.items():
            for q in range(found.shape[-1]):
                frame[_column(name, q)] = found[:, block][..., q][known]
        parts.append(_of_frame(frame, list(points), list(quantiles), levels, losses))
    table = pd.concat(parts)
    every = pd.MultiIndex.from_product([range(count * width), list(points)])
    table = table.reindex(every)
    by = scale.ravel()[every.get_level_values(0)]
    table["MASE"] = table["MAE"] / np.where(by > 0, by, np.nan)
    series, variable = np.divmod(every.get_level_values(0), width)
    table.index = pd.MultiIndex.from_arrays(
        [series, variable, every.get_level_values(1)], names=["series", "variable", "model"]
    )
    order = ["MAE", "RMSE", "sMAPE", "MASE"]
    return table[[*order, *(one for one in table.columns if one not in order)]]


def _of_frame(
    frame: pd.DataFrame,
    models: list[str],
    probabilistic: list[str],
    levels: Sequence[float] | None,
    losses: Any,
) -> pd.DataFrame:
    """Return the accuracy in a frame of actual values and of forecasts, NaN of none of them.

    A point stands for all quantiles, but has no interval that could cover values.
    """
    found = {
        "MAE": losses.mae(frame, models),
        "RMSE": losses.rmse(frame, models),
        "sMAPE": losses.smape(frame, models),
    }
    if levels is not None:
        columns = {name: [_column(name, q) for q in range(len(levels))] for name in probabilistic}
        every = {name: columns.get(name, [name] * len(levels)) for name in models}
        at = np.asarray(levels)
        found["pinball"] = losses.mqloss(frame, every, at)
        found["CRPS"] = losses.scaled_crps(frame, every, at)
        if len(levels) > 1:
            ends = {
                own[place]: f"{name}-{side}-0"
                for name, own in columns.items() for place, side in ((0, "lo"), (-1, "hi"))
            }  # fmt: skip
            found["coverage"] = losses.coverage(frame.rename(columns=ends), probabilistic, 0)
    columns_of = {
        name: one.set_index("unique_id").rename_axis(columns="model").stack()
        for name, one in found.items()
    }
    table = next(iter(columns_of.values())).to_frame("MAE")
    for name, one in columns_of.items():
        table[name] = one
    table["sMAPE"] *= 200  # in percent, of the mean of both sizes
    if "CRPS" in table:  # it divides by the sizes of all actual values
        sizes = frame["y"].abs().groupby(frame["unique_id"]).sum()
        none = sizes.index[sizes == 0]
        table.loc[table.index.get_level_values(0).isin(none), "CRPS"] = np.nan
    return table


def _column(name: str, place: int) -> str:
    return f"{name} {place}"
