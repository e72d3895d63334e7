"""The form of results: forecasts have the form of the given series."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..inputs.polars_frames import to_polars
from .times import Times, is_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ARRAYS", "Forecasts", "Form", "SeriesForecast", "SeriesForm"]

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Forecasts:
    """Forecasts of series, with what is needed to return them as tables.

    Parameters
    ----------
    values
        ``(N, horizon, K, Q)``; without K if the series were given without it, and without Q for
        points.
    ends
        Times of the series up to the forecast; only the last one matters.
    levels
        Levels of quantiles; None: points.
    """

    values: Array
    ends: Sequence[Times | None]
    levels: tuple[float, ...] | None

    @property
    def names(self) -> list[str]:
        """Names of the columns of forecasts."""
        return ["forecast"] if self.levels is None else [f"q{level:g}" for level in self.levels]


@dataclasses.dataclass(frozen=True)
class SeriesForecast:
    """The forecast of one series.

    Parameters
    ----------
    id
        The series' id, or its place if series have none.
    times
        Times of the steps, a pandas index ``(horizon,)``; None: the series has no times.
    values
        By name, "forecast" or "q0.1" and so on: ``(horizon,)`` or ``(horizon, K)``.
    """

    id: Any
    times: pd.Index | None
    values: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class SeriesForm:
    """What a fitted forecaster forecasts, for programs that pass it on.

    Parameters
    ----------
    ids
        The series' ids, or their places if they have none.
    variables
        K; None: series came without the axis of variables.
    covariates
        Names of the columns of X.
    only_values
        Whether new series need nothing but their values: neither covariates, nor times.
    columns
        Columns of ids and times, if the data came as a long frame.
    zone
        The time zone of the times, if they have one; ``"naive"`` if they have none; None: steps
        have no times, or numbers or periods.
    """

    ids: tuple[Any, ...]
    variables: int | None
    covariates: tuple[str, ...]
    only_values: bool
    columns: tuple[str, str] | None
    zone: Any


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of results.

    Parameters
    ----------
    kind
        "arrays"; "table": a pandas table; "tables": a list of them; "dict": a dictionary of tables
        or arrays; "long": a long frame.
    ids
        Ids of the series of a dictionary, ``(N,)``; of a long frame as a pandas index.
    labels
        Names of the tables' values: of a Series its name, of a DataFrame its columns; None for
        arrays.
    columns
        Columns of ids, times and values of a long frame.
    polars
        For a long frame of polars, the types of its columns of ids and times.
    """

    kind: str = "arrays"
    ids: Any = None
    labels: tuple[Any, ...] = ()
    columns: tuple[str, str, str] = ("unique_id", "ds", "y")
    polars: tuple[Any, ...] | None = None

    @property
    def tabular(self) -> bool:
        """Whether all series were tables."""
        return self.kind != "arrays" and all(label is not None for label in self.labels)

    @classmethod
    def of(cls, given: Any, tables: Sequence[Any]) -> Form:
        """Return the form of series; `tables` are its parts."""
        labels = tuple(map(_label, tables))
        if isinstance(given, dict):
            return cls("dict", tuple(given), labels)
        if not all(map(is_table, tables)):
            return ARRAYS
        return cls("table" if is_table(given) else "tables", None, labels)

    def take(self, rows: Array) -> Form:
        """Return the form of results of some of the series."""
        ids, labels = self.ids, self.labels
        if ids is not None:
            ids = ids.take(rows) if self.kind == "long" else tuple(ids[row] for row in rows)
        if labels and self.kind != "long":
            labels = tuple(labels[row] for row in rows)
        return dataclasses.replace(self, ids=ids, labels=labels)

    def forecasts(self, found: Forecasts) -> Any:
        """Return forecasts in this form, which must not be "arrays"."""
        if self.kind == "long":
            return self._long(found)
        parts = [self._part(found, number) for number in range(len(found.values))]
        if self.kind == "dict":
            return dict(zip(self.ids, parts, strict=True))
        return parts[0] if self.kind == "table" else parts

    def _part(self, found: Forecasts, number: int) -> Any:
        import pandas as pd

        values, label, end = found.values[number], self.labels[number], found.ends[number]
        if label is None or end is None:
            return values
        index = end.following(len(values))
        wide = isinstance(label, pd.Index)
        if found.levels is None:
            return (
                pd.DataFrame(values, index, label)
                if wide
                else pd.Series(values, index, name=label[0])
            )
        if not wide:
            return pd.DataFrame(values, index, found.names)
        pairs = [
            (*(one if label.nlevels > 1 else (one,)), name) for one in label for name in found.names
        ]
        columns = pd.MultiIndex.from_tuples(pairs, names=[*label.names, None])
        return pd.DataFrame(values.reshape(len(values), -1), index, columns)

    def _long(self, found: Forecasts) -> Any:
        import pandas as pd

        count, horizon = found.values.shape[:2]
        stamps, rows = stamps_of(found.ends, horizon)
        columns = {
            self.columns[0]: self.ids.take(np.repeat(np.arange(count), horizon)),
            self.columns[1]: stamps.take((rows[:, None] + 1 + np.arange(horizon)).ravel()),
        }
        values = found.values.reshape(count * horizon, -1)
        columns |= {name: values[:, k] for k, name in enumerate(found.names)}
        return self._finished(pd.DataFrame(columns))

    def backtest(
        self,
        parts: Sequence[Forecasts],
        steps: Array,
        actual: Array,
        names: Any,
        rows: Array,
        made: Array,
    ) -> Any:
        """Return forecasts at several times as a long frame, with columns "cutoff" and of values.

        Parameters
        ----------
        parts
            Forecasts ``(N, horizon, K, …)`` at each time.
        steps
            How many steps after the ends of the first part each one was made.
        actual
            Values of the next steps, ``(N, T, K)``.
        names
            Names of the variables, a pandas index; None: there is one, without a name.
        rows
            The position of each of the series among all, for tables without ids, ``(N,)``.
        made
            Of which series and times there are forecasts, ``(N, times)``.
        """
        import pandas as pd

        first = parts[0]
        count, horizon, width = first.values.shape[:3]
        stamps, places = stamps_of(first.ends, steps[-1] + horizon)
        # Rows are those of series, cutoffs, variables and steps ahead, in this order.
        shape = count, len(steps), width, horizon
        kept = np.broadcast_to(made[:, :, None, None], shape)
        number = np.arange(count)
        series, cutoff, variable, step = (
            np.broadcast_to(one, shape)[kept]
            for one in (
                number[:, None, None, None], steps[:, None, None], np.arange(width)[:, None],
                1 + np.arange(horizon),
            )
        )  # fmt: skip
        ahead = cutoff + step
        known = np.full((count, steps[-1] + horizon + 1, width), np.nan)
        known[:, 1 : actual.shape[1] + 1] = actual[:, : known.shape[1] - 1]
        columns: dict[str, Any] = {}
        if self.kind == "dict":
            columns[self.columns[0]] = [self.ids[one] for one in series]
        elif self.kind == "long":
            columns[self.columns[0]] = self.ids.take(series)
        elif self.kind == "tables":
            columns[self.columns[0]] = rows[series]
        if names is not None:
            columns["variable"] = names.take(variable)
        columns[self.columns[1]] = stamps.take(places[series] + ahead)
        columns["cutoff"] = stamps.take(places[series] + cutoff)
        columns[self.columns[2]] = known[series, ahead, variable]
        values = np.stack([part.values.reshape(count, horizon, width, -1) for part in parts])
        values = values.transpose(1, 0, 3, 2, 4)[kept]
        columns |= {name: values[:, k] for k, name in enumerate(first.names)}
        return self._finished(pd.DataFrame(columns))

    def _finished(self, frame: pd.DataFrame) -> Any:
        if self.polars is None:
            return frame
        ids, times = self.polars
        kinds = {self.columns[0]: ids, self.columns[1]: times}
        return to_polars(frame, kinds | ({"cutoff": times} if "cutoff" in frame else {}))


ARRAYS = Form()


def _label(table: Any) -> Any:
    if not is_table(table):
        return None
    return table.columns if table.ndim == 2 else (table.name,)


def stamps_of(ends: Sequence[Times | None], count: int) -> tuple[pd.Index, Array]:
    """Return the times of ends and of the next `count` steps, and where those of each series start.

    Examples
    --------
    >>> import pandas as pd
    >>> end = Times(pd.Index([3]), 1)
    >>> stamps, rows = stamps_of([end, end, Times(pd.Index([8]), 1)], 2)
    >>> stamps.tolist(), rows
    ([3, 4, 5, 8, 9, 10], array([0, 0, 3]))
    """
    places: dict[int, int] = {}
    parts: list[pd.Index] = []
    rows = np.empty(len(ends), np.int64)
    for number, end in enumerate(ends):
        assert end is not None
        if id(end) not in places:
            places[id(end)] = len(places) * (count + 1)
            parts += [end.index[-1:], end.following(count)]
        rows[number] = places[id(end)]
    return parts[0].append(parts[1:]), rows
