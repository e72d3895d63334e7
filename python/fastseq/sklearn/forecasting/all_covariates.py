"""All covariates of a forecaster: columns of X, of the calendar, and static ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .automatic_settings import AutomaticSettings
from .calendar_features import Calendar, check_zones
from .covariate_encoder import CovariateSizes
from .covariate_rows import CovariateRows
from .covariates import Covariates
from .long_frames import LongTable
from .series import Array, Series, known_lengths, unknown_variables
from .static_covariates import StaticColumns, by_id
from .times import Spacing, Times, is_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AllCovariates", "choose", "first_read"]


@dataclasses.dataclass(frozen=True)
class AllCovariates:
    """What `fit` learnt about covariates, None where there are none.

    Parameters
    ----------
    x
        Columns of X.
    calendar
        Features of the calendar; they come after those of X known ahead.
    static
        Static columns.

    Examples
    --------
    >>> import pandas as pd
    >>> known = AllCovariates(None, Calendar(("quarter",), None), None)
    >>> index = pd.date_range("2024-03-31", periods=2)
    >>> times = Times(index, index.freq)
    >>> rows = known.rows(None, np.array([2]), [times], lambda own: own.index)
    >>> rows.ahead[0].astype(int)
    array([[1, 0, 0, 0],
           [0, 1, 0, 0]])
    """

    x: Covariates | None
    calendar: Calendar | None
    static: StaticColumns | None

    @classmethod
    def start(
        cls,
        x: Covariates | None,
        times: Sequence[Times | None],
        given: Mapping[str, Any],
    ) -> AllCovariates:
        """Start from the parameters `given`, before anything is measured."""
        calendar = None
        if given["calendar"] or given["holidays"] is not None:
            calendar = Calendar.of(given["calendar"], given["holidays"], times)
        return cls(x, calendar, None)

    def measured(
        self, read: Series | None, *, apart: Array, scaled: bool
    ) -> tuple[AllCovariates, Series | None]:
        """Measure columns of X, without the last `apart` steps of each; also return X, coded."""
        if self.x is None or read is None:
            return self, read
        x, read = self.x.measured(read, apart=apart, scaled=scaled)
        return dataclasses.replace(self, x=x), read

    def of_series(
        self, static: Any, series: Series, id_col: str, *, scaled: bool | None = None
    ) -> tuple[AllCovariates, Array | None]:
        """Return static covariates of series, ``(N, S)``; learn what is not known yet.

        `id_col`: a column of ids that a table may have. `scaled`: whether to scale numbers, in
        `fit`; None: this is not `fit`.
        """
        count, ids = len(series.arrays), series.ids
        static = by_id(static, id_col)
        if static is not None and series.form.kind == "long" and not is_table(static):
            raise TypeError(
                "static must be a table whose index, or column of ids, has the ids of the long "
                f"frame, got {type(static).__name__}"
            )
        if self.static is not None:
            if static is None:
                raise ValueError("fit got static covariates: pass those of y by static=…, got None")
            return self, self.static.read(static, count, ids)
        if static is None:
            return self, None
        if scaled is None:
            raise ValueError("static is given, but fit got no static covariates")
        learnt, rows = StaticColumns.learn(static, count, ids, scaled=scaled)
        return dataclasses.replace(self, static=learnt), rows

    def read(
        self,
        given: Any,
        like: Series,
        lengths: Array,
        what: str,
        spacing: Spacing,
        ahead: int = 0,
    ) -> Series | None:
        """Read X, see `Covariates.read`."""
        if self.x is not None:
            return self.x.read(given, like, lengths, what, spacing, ahead)
        _refuse(given)
        return None

    def read_ahead(
        self, given: Any, like: Series, horizon: int, what: str, spacing: Spacing
    ) -> Series | None:
        """Read X of the horizon, see `Covariates.read_ahead`."""
        if self.x is not None:
            return self.x.read_ahead(given, like, horizon, what, spacing)
        _refuse(given)
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of X; none if it has no names."""
        return () if self.x is None else self.x.coding.names or ()

    def check_zones(self, times: Sequence[Times | None], known: Sequence[Times | None]) -> None:
        """Raise unless clocks of other series are those of the training series, if they matter."""
        if self.calendar is not None:
            check_zones(times, known)

    @property
    def sizes(self) -> CovariateSizes:
        """The columns that the model sees."""
        ahead, past = ((), ()) if self.x is None else self.x.sizes
        dates = () if self.calendar is None else self.calendar.sizes
        static = () if self.static is None else self.static.coding.sizes
        return CovariateSizes((*ahead, *dates), past, static)

    def rows(
        self,
        read: Series | None,
        lengths: Array,
        times: Sequence[Times | None],
        reach: Callable[[Times], pd.Index],
    ) -> CovariateRows | None:
        """Return covariates as the model sees them.

        Parameters
        ----------
        read
            Columns of X.
        lengths
            Number of each series' steps that are not ahead, ``(N,)``.
        times
            Times of each series, None where there are none.
        reach
            Returns the times of the steps, given those of a series. Beyond the last row of X, its
            columns are assumed average.
        """
        found = CovariateRows(None)
        if self.x is not None and read is not None:
            found = self.x.rows(read, lengths)
        ahead = found.ahead
        if self.calendar is not None:
            dates = self.calendar.rows_of_all(times, reach)
            ahead = dates if ahead is None else [
                np.concatenate([_longer(one, len(more)), more], axis=1)
                for one, more in zip(ahead, dates, strict=True)
            ]  # fmt: skip
        return None if ahead is None and found.past is None else CovariateRows(ahead, found.past)


def first_read(
    given: Any,
    like: Series,
    past: Sequence[str | int],
    known: Covariates | None,
    spacing: Spacing,
) -> tuple[Covariates | None, Series | None]:
    """Read X of training series; `known` is what an earlier call of `fit` learnt."""
    if given is None:
        if len(past):
            raise ValueError(f"past names columns of X, {tuple(past)!r}, but X is None")
        return None, None
    if known is not None:
        return known, known.read(given, like, like.lengths, "the steps of y", spacing)
    return Covariates.start(given, like, past, spacing)


def choose(
    params: Mapping[str, Any],
    series: Series,
    season: int | None,
    x: Covariates | None,
    times: Sequence[Times | None],
) -> tuple[AutomaticSettings, AllCovariates]:
    """Choose parameters and features; see `AutomaticSettings.of` and `AllCovariates.start`.

    Steps before the first known value of a series do not count, nor series without any, unless that
    is so of all.
    """
    rows = np.flatnonzero(~unknown_variables(series.arrays).all(axis=1))
    rows = rows if rows.size else np.arange(len(times))
    known = AllCovariates.start(x, [times[row] for row in rows.tolist()], params)
    columns = len(known.sizes.ahead) + len(known.sizes.past)
    lengths = known_lengths([series.arrays[row] for row in rows])
    return AutomaticSettings.of(params, lengths, series.variables, season, columns), known


def _refuse(given: Any) -> None:
    if isinstance(given, LongTable):
        columns = ", ".join(map(repr, given.table.columns))
        raise ValueError(f"fit got no covariates: leave out the columns {columns}")
    if given is not None:
        raise ValueError("X is given, but fit got no covariates")


def _longer(rows: Array, length: int) -> Array:
    return np.concatenate([rows, np.zeros((length - len(rows), rows.shape[1]))])
