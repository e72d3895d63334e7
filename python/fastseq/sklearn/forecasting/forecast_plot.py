"""A plot of forecasts, with their intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._util.figures import new_figure
from ..._util.optional_imports import need
from ..._util.spelling import meant
from ..inputs.polars_frames import as_pandas
from .long_frames import Columns
from .times import read_index

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["plot_forecast"]


def plot_forecast(
    past: object,
    forecast: object,
    quantiles: Sequence[float] | None = None,
    *,
    series: object = None,
    actual: object = None,
    id_col: str = "unique_id",
    time_col: str = "ds",
    target_col: str = "y",
    ax: Axes | None = None,
) -> Axes:
    """Plot a series, its forecast, and the forecast's intervals (needs matplotlib).

    Parameters
    ----------
    past
        The series up to the forecast, ``(T,)``. The index of a pandas Series, if it holds times or
        numbers, labels the axis. Or a long frame, as `fit` reads it: of its rows, those before a
        forecast that is a long frame, too, are drawn.
    forecast
        ``(horizon,)``; with quantiles ``(horizon, Q)``; or a table of one series, as `predict`
        returns it: its index, if it holds times or numbers, is that of the forecast. Or a long
        frame, as `predict` returns it.
    quantiles
        The levels of the forecast, increasing; None: those that columns "q0.1", … of a table name.
        Bands join the first and the last level, the second and the last but one, and so on; the
        middle one is a line.
    series
        The id of the series to draw, if long frames have several.
    actual
        Actual values, ``(horizon,)`` or shorter; or a long frame: of its rows, those at the times
        of a forecast that is a long frame, too, are drawn.
    id_col, time_col, target_col
        The columns of long frames, as in `SequenceForecaster`.
    ax
        Axes to draw on; None: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; ``ax.figure.savefig("forecast.png")`` saves the plot.

    Raises
    ------
    ValueError
        The shapes do not fit, or long frames have several series and none is chosen.
    MissingFeatureError
        matplotlib is not installed.

    Examples
    --------
    >>> past = np.sin(np.arange(50) / 5)
    >>> following = np.sin(np.arange(50, 60) / 5)
    >>> ax = plot_forecast(past, following[:, None] + [-0.2, 0, 0.2], (0.1, 0.5, 0.9))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['past', '80 % interval', 'forecast (median)']
    """
    dates = need("matplotlib.dates", "plot_forecast")
    columns_of = Columns(id_col, time_col, target_col)
    past, forecast, actual = _one_series((past, forecast, actual), columns_of, series)
    named = _named_levels(forecast)
    _refuse_others("past", past, ())
    _refuse_others("forecast", forecast, named)
    values = np.asarray(past, float)
    levels = None if quantiles is None else [float(level) for level in quantiles]
    named = {} if levels is not None else named
    columns: Any = forecast
    if named:
        columns, levels = columns[list(named)], list(named.values())
    found = np.asarray(columns, float)
    _check(values, found, levels, actual)
    times = _times(past, forecast, len(values), len(found))
    if ax is None:
        figure = new_figure("plot_forecast", figsize=(9, 4), layout="constrained")
        ax = figure.add_subplot()
    begin, then = times[: len(values)], times[len(values) :]
    ax.plot(begin, values, color="0.25", lw=1.3, label="past")
    middle, label = found, "forecast"
    if levels is not None:
        middle, label = _bands(ax, then, found, levels), "forecast"
        if levels[len(levels) // 2] == 0.5 and len(levels) % 2:
            label = "forecast (median)"
    ax.plot(then, middle, color="tab:blue", lw=1.8, label=label)
    if actual is not None:
        came = np.asarray(actual, float)
        ax.plot(then[: len(came)], came, color="black", lw=1.1, ls="--", label="actual")
    ends = [begin[-1], then[0]], [values[-1], middle[0]]
    ax.plot(*ends, color="tab:blue", lw=0.9)  # so that no step is missing between them
    ax.axvline(then[0], color="0.6", lw=0.8, ls=":")
    ax.margins(x=0.01)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left", ncols=len(ax.get_legend_handles_labels()[0]))
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.12 * (high - low))  # room for the legend
    if np.asarray(times).dtype.kind == "M":
        locator = dates.AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    else:
        ax.set_xlabel("step")
    return ax


def _named_levels(forecast: object) -> dict[str, float]:
    """Return the levels that columns of a table name, such as "q0.1"."""
    names = [str(name) for name in getattr(forecast, "columns", ())]
    return {name: float(name[1:]) for name in names if re.fullmatch(r"q0?\.\d+", name)}


def _refuse_others(name: str, table: Any, values: Iterable[str]) -> None:
    """Raise for tables that hold more than the values of one series, such as long frames."""
    columns = list(getattr(table, "columns", ()))
    more = [one for one in columns if str(one) not in values]
    kinds = {np.asarray(table[one]).dtype.kind for one in more}
    if (values and more) or not kinds <= {*"biuf"}:
        raise ValueError(
            f"{name} has the columns {', '.join(map(str, columns))}, but must be one series: pass "
            "only its values, with times as the index (set_index); or name a long frame's columns "
            "by id_col and time_col"
        )


def _one_series(
    given: tuple[Any, Any, Any], columns: Columns, series: object
) -> tuple[Any, Any, Any]:
    """Return past, forecast and actual values with one series in the place of long frames."""
    tables = dict(zip(("past", "forecast", "actual"), given, strict=True))
    long = {name: as_pandas(one) for name, one in tables.items() if columns.is_long(one)}
    if not long:
        if series is not None:
            raise ValueError(
                f"series={series!r} chooses from long frames, but none has the columns "
                f"{columns.id!r} and {columns.time!r}: name them by id_col and time_col"
            )
        return given
    chosen = _chosen({name: table[columns.id] for name, table in long.items()}, series)
    tables |= {name: _of_series(table, name, columns, chosen) for name, table in long.items()}
    past, forecast, actual = tables.values()
    if {"past", "forecast"} <= {*long}:
        past = past[past.index < forecast.index[0]]
        if not len(past):
            raise ValueError(
                f"past has no rows of {chosen!r} before {forecast.index[0]}, where its forecast "
                "starts"
            )
    if {"actual", "forecast"} <= {*long}:
        actual = actual.reindex(forecast.index)
        if actual.isna().all():
            raise ValueError(f"actual has no values of {chosen!r} at the times of its forecast")
    return past, forecast, actual


def _chosen(ids: dict[str, pd.Series], series: object) -> object:
    """Return the id of the series to draw: the given one, or the only one that all tables have."""
    known = {name: column.unique().tolist() for name, column in ids.items()}
    if series is not None:
        for name, found in known.items():
            if series not in found:
                listed = ", ".join(f"{one!r}" for one in found[:5])
                raise ValueError(
                    f"{name} has no series {series!r}, but {listed}{', …' * (len(found) > 5)}"
                    f"{meant(series, map(str, found))}"
                )
        return series
    first, *others = known.values()
    common = [one for one in first if all(one in found for found in map(set, others))]
    names = " and ".join(known)
    if not common:
        raise ValueError(f"{names} have no series in common")
    if len(common) > 1:
        raise ValueError(
            f"{names} {'has' if len(known) == 1 else 'have'} {len(common)} series: choose one by "
            f"series={common[0]!r}"
        )
    return common[0]


def _of_series(table: pd.DataFrame, name: str, columns: Columns, series: object) -> Any:
    """Return the values of a series of a long frame, with their times as the index."""
    rows = table[table[columns.id] == series].sort_values(columns.time).set_index(columns.time)
    if rows.index.has_duplicates:
        raise ValueError(
            f"{name} has two rows for {rows.index[rows.index.duplicated()][0]} of {series!r}: keep "
            "one row for each time, of a backtest those of one cutoff"
        )
    rows.index, _ = read_index(rows.index, f"{series!r} of {name}")
    if name != "forecast":
        wanted: Any = columns.target
    else:
        wanted = list(_named_levels(rows)) or "forecast"
    if isinstance(wanted, str) and wanted not in rows.columns:
        option = "; name it by target_col" if name != "forecast" else ", nor q0.1 and the like"
        raise ValueError(f"{name} is a long frame without the column {wanted!r}{option}")
    return rows[wanted].astype(float)


def _check(values: np.ndarray, found: np.ndarray, levels: list[float] | None, actual: Any) -> None:
    if values.ndim != 1 or not len(values):
        raise ValueError(f"past must be one series (T,), got shape {values.shape}")
    if levels is None and found.ndim != 1:
        raise ValueError(
            f"forecast must be (horizon,), or (horizon, Q) with quantiles; got shape {found.shape}"
        )
    if levels is not None and (found.ndim != 2 or found.shape[1] != len(levels)):
        raise ValueError(
            f"forecast must have the shape (horizon, {len(levels)}) for {len(levels)} quantiles, "
            f"got {found.shape}"
        )
    if not len(found):
        raise ValueError("forecast has no steps")
    if actual is not None and (np.ndim(actual) != 1 or len(actual) > len(found)):
        raise ValueError(
            f"actual must have the shape (horizon,) = ({len(found)},) or be shorter, got "
            f"{np.shape(actual)}"
        )


def _bands(ax: Axes, times: np.ndarray, found: np.ndarray, levels: list[float]) -> np.ndarray:
    """Draw the intervals, the widest palest; return the middle of the forecast."""
    pairs = [(i, len(levels) - 1 - i) for i in range(len(levels) // 2)]
    for number, (low, high) in enumerate(pairs):
        share = 100 * (levels[high] - levels[low])
        ax.fill_between(
            times, found[:, low], found[:, high], color="tab:blue", lw=0,
            alpha=0.18 + 0.14 * number, label=f"{share:.3g} % interval",
        )  # fmt: skip
    if len(levels) % 2:
        return found[:, len(levels) // 2]
    middle: np.ndarray = found[:, [len(levels) // 2 - 1, len(levels) // 2]].mean(1)
    return middle


def _times(past: object, forecast: object, steps: int, horizon: int) -> np.ndarray:
    """Return the times of past and forecast; missing ones continue the past's."""
    begin, then = _index(past), _index(forecast)
    if begin is None or steps < 2:
        return np.arange(steps + horizon)
    times = np.asarray(begin)
    own = np.asarray(then)
    if then is not None and own.dtype.kind == times.dtype.kind and own[0] > times[-1]:
        following = own
    elif getattr(begin, "freq", None) is not None:
        following = np.array(
            [begin[-1] + (1 + i) * begin.freq for i in range(horizon)], times.dtype
        )
    else:
        following = times[-1] + (1 + np.arange(horizon)) * (times[-1] - times[-2])
    return np.concatenate([times, following])


def _index(table: object) -> Any:
    """Return the index of a table if it holds times or numbers, else None."""
    index = getattr(table, "index", None)
    if index is None or callable(index):
        return None
    if hasattr(index, "to_timestamp"):
        index = index.to_timestamp()
    return index if np.asarray(index).dtype.kind in "Mif" else None
