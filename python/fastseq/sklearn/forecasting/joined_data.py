"""Training data joined with later steps, in the forms that users pass, to train again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..inputs.polars_frames import is_polars, to_pandas
from .long_frames import Columns
from .series import as_numpy, is_panel
from .times import Times, is_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Before", "data_copy"]


def data_copy(given: Any) -> Any:
    """Return a copy of what `fit` got: series, or covariates."""
    if given is None or hasattr(given, "ngroups") or is_polars(given):
        return given
    if isinstance(given, dict):
        return {key: data_copy(one) for key, one in given.items()}
    if is_panel(given):
        return list(map(data_copy, given))
    return given.copy() if is_table(given) else np.array(_array(given))


@dataclasses.dataclass(frozen=True)
class Before:
    """The ends of training series: where later data are appended.

    Parameters
    ----------
    times
        Times of the last step of each series; None: there are none.
    ids
        The series' ids; None: they have none.
    columns
        Names of the columns of long frames.

    Examples
    --------
    >>> import pandas as pd
    >>> days = pd.date_range("2024-01-01", periods=4)
    >>> y, later = pd.Series([1.0, 2.0], days[:2]), np.array([3.0, 4.0])
    >>> before = Before((Times(y.index, days.freq),), None, Columns("unique_id", "ds", "y"))
    >>> next_one, rest = before.cut(later, 1)
    >>> before.appended(y, next_one).tolist()
    [1.0, 2.0, 3.0]
    """

    times: Sequence[Times | None]
    ids: tuple[Any, ...] | None
    columns: Columns

    def cut(self, given: Any, steps: int) -> tuple[Any, Any]:
        """Return the first steps of later series, or covariates, and the rest."""
        if self.columns.is_long(given):
            frame = _pandas(given)
            ends = {
                key: last.following(steps)[-1]
                for key, last in zip(self.ids or (), self.times, strict=True) if last is not None
            }  # fmt: skip
            keys, times = frame[self.columns.id], frame[self.columns.time]
            known = np.array([time <= ends[key] for key, time in zip(keys, times, strict=True)])
            return frame[known], frame[~known]

        def part(one: Any, last: Times | None, *, first: bool) -> Any:
            if not is_table(one):
                one = _array(one)
                place = slice(steps) if first else slice(steps, None)
                return one[:, place] if one.ndim == 3 else one[place]
            if last is None or _counts(one.index):
                return one.iloc[:steps] if first else one.iloc[steps:].reset_index(drop=True)
            known = one.index <= last.following(steps)[-1]
            return one[known] if first else one[~known]

        return (
            self._each(lambda one, last: part(one, last, first=True), given),
            self._each(lambda one, last: part(one, last, first=False), given),
        )

    def appended(self, given: Any, later: Any) -> Any:
        """Return training series, or covariates, and the next steps, in the form of the former."""
        if self.columns.is_long(given):
            import pandas as pd

            if not self.columns.is_long(later):
                raise TypeError("y must be a long frame, as in fit, for a backtest with refit=")
            frame, name = _pandas(given), self.columns.time
            zone = getattr(frame[name].dtype, "tz", None)
            if zone is not None:
                later = later.assign(**{name: later[name].dt.tz_convert(zone)})
            return pd.concat([frame, later])
        parts = self.columns.grouped(later)
        if isinstance(parts, dict):
            keys = list(self.columns.grouped(given))
            parts = [parts.get(key, ()) for key in keys]
        rest = iter(parts if is_panel(parts) else [parts] * max(len(self.times), 1))

        def longer(one: Any, last: Times | None) -> Any:
            more = next(rest)
            return _joined(one, more, last) if len(more) else one

        return self._each(longer, given)

    def _each(self, change: Callable[[Any, Times | None], Any], given: Any) -> Any:
        """Apply `change` to each part of a list and its times, or to the whole."""
        given = self.columns.grouped(given)
        if given is None:
            return None
        if isinstance(given, dict):
            last = dict(zip(self.ids or (), self.times, strict=True))
            return {key: change(one, last[key]) for key, one in given.items()}
        if not is_panel(given):
            return change(given, self.times[0])
        return [change(one, last) for one, last in zip(given, self.times, strict=True)]


def _pandas(given: Any) -> pd.DataFrame:
    return to_pandas(given) if is_polars(given) else given


def _joined(one: Any, more: Any, last: Times | None) -> Any:
    if is_table(one):
        import pandas as pd

        return pd.concat([one, _like_table(one, more, last)])
    if is_table(more):
        more = more.sort_index().to_numpy(np.float64, na_value=np.nan)
    one, more = _array(one), _array(more)
    if one.ndim == 3:
        return np.concatenate([one, more], axis=1)
    return np.concatenate([one, more.reshape(len(more), *one.shape[1:])])


def _array(given: Any) -> np.ndarray:
    return np.asarray(as_numpy(given))


def _like_table(
    table: pd.Series | pd.DataFrame, more: Any, last: Times | None
) -> pd.Series | pd.DataFrame:
    """Return later values as a table like the given one, with the times that follow."""
    import pandas as pd

    if not is_table(more):
        values = _array(more)
        if table.ndim == 1:
            more = pd.Series(values.ravel())
        else:
            more = pd.DataFrame(values.reshape(len(values), -1), columns=table.columns)
    elif table.ndim == more.ndim == 2 and set(table.columns) != set(more.columns):
        more = more.set_axis(table.columns, axis=1)  # one of them has no names
    elif table.ndim != more.ndim:
        more = more.iloc[:, 0] if table.ndim == 1 else more.to_frame(table.columns[0])
    if _counts(more.index):
        index = pd.RangeIndex(len(table), len(table) + len(more))
        more = more.set_axis(index if last is None else last.following(len(more)))
    zone = getattr(table.index, "tz", None)
    return more if zone is None else more.tz_convert(zone)


def _counts(index: pd.Index) -> bool:
    """Whether an index counts from 0, as in any new table."""
    numbers = getattr(index.dtype, "kind", "O") in "iuf"
    return numbers and bool((index == np.arange(len(index))).all())
