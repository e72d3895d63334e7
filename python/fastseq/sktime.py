"""`SequenceForecaster` as a forecaster of sktime; importing this module imports sktime."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from .errors import MissingFeatureError
from .sklearn import SequenceForecaster
from .sklearn.forecasting.frequencies import infer, offset_of

try:
    from sktime.forecasting.base import BaseForecaster, ForecastingHorizon
except ImportError as error:
    raise MissingFeatureError(
        "fastseq.sktime needs the package sktime: pip install 'sktime>=1.2'"
    ) from error

__all__ = ["SktimeForecaster"]


def __dir__() -> list[str]:
    return __all__


Array = np.ndarray


class SktimeForecaster(BaseForecaster):
    """A `SequenceForecaster` for sktime: its horizons, tuning, ensembles and evaluation.

    Series, multivariate series, panels and hierarchies are trained by one model. All series are
    forecast from the same cutoff: where some end earlier, and where rows are missing, values are
    missing. `update` continues training by `SequenceForecaster.partial_fit`, or only appends the
    new steps (``update_params=False``); earlier steps in its data are left out.

    Parameters
    ----------
    forecaster
        The forecaster to train; it is copied. Its `horizon` is that of `fit` without `fh`; with
        `fh`, the model is trained up to its last step. Later steps are forecast from forecasts.
        With `quantiles`, `predict_quantiles` and `predict_interval` interpolate between them, and
        points are medians; levels beyond them are refused.

    Attributes
    ----------
    forecaster_
        The trained forecaster, of a list of tables: one for each series.

    Raises
    ------
    MissingFeatureError
        sktime is not installed (when this module is imported).
    ValueError, TypeError
        In its methods: the forecaster does not take the data or its parameters, as in
        `SequenceForecaster.fit`; data have series that those of `fit` did not have; X lacks steps
        of y or of the horizon; or a quantile is beyond those learnt.
    NotImplementedError
        In `predict`: steps of `fh` are not after the last known one.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import fastseq as fs
    >>> from fastseq.sktime import SktimeForecaster
    >>> months = pd.period_range("2010-01", periods=120, freq="M")
    >>> y = pd.Series(np.sin(np.arange(120) / 2), months)
    >>> model = fs.SequenceForecaster(epochs=5, quantiles=(0.1, 0.5, 0.9), random_state=0)
    >>> f = SktimeForecaster(model).fit(y, fh=[1, 2, 3])
    >>> f.predict().index.tolist()
    [Period('2020-01', 'M'), Period('2020-02', 'M'), Period('2020-03', 'M')]
    >>> f.predict_interval(coverage=0.8).shape
    (3, 2)
    """

    _tags = {  # noqa: RUF012 (sktime's protocol)
        "authors": "fastseq",
        "maintainers": "fastseq",
        "python_dependencies": ["fastseq-torch"],
        "y_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "X_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "requires-fh-in-fit": False,
        "capability:multivariate": True,
        "capability:exogenous": True,
        "capability:categorical_in_X": True,
        "capability:missing_values": True,
        "capability:unequal_length": True,
        "capability:non_contiguous_X": False,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:update": True,
    }

    # The trained forecaster has what `update` needs; sktime 1.3 makes this its default.
    _config = {"remember_data": False}  # noqa: RUF012

    def __init__(self, forecaster: SequenceForecaster) -> None:
        self.forecaster = forecaster
        self._y = self._X = None  # sktime remembers data here, if asked to
        super().__init__()
        self._say_what_it_can()

    def _say_what_it_can(self) -> None:
        quantiles = getattr(self.forecaster, "quantiles", None)
        self.set_tags(**{"capability:pred_int": quantiles is not None})

    def _fit(
        self, y: pd.DataFrame, X: pd.DataFrame | None, fh: ForecastingHorizon | None  # noqa: N803
    ) -> SktimeForecaster:  # fmt: skip
        self._say_what_it_can()  # parameters may have been set since
        model = clone(self.forecaster)
        self._names, self._levels = y.columns, y.index.names
        parts = _parts(y)
        self._instances = list(parts)
        self._freq = self._frequency(max(parts.values(), key=len).index)
        self._end = self._present
        if fh is not None:
            last = int(np.max(fh.to_relative(self._end).to_numpy()))
            model.set_params(horizon=max(last, 1))
        known = None if X is None else self._of_instances(X, "X")
        tables, covariates = [], []
        for key, part in parts.items():
            times = _times(part.index[0], self._end)
            tables.append(_regular(part, times, "y"))
            if known is not None:
                covariates.append(_whole(known.get(key), times, "the steps of y"))
        self.forecaster_ = model.fit(tables, None if X is None else covariates)
        return self

    def _update(
        self,
        y: pd.DataFrame,
        X: pd.DataFrame | None = None,  # noqa: N803
        update_params: bool = True,
    ) -> SktimeForecaster:
        end = self._present
        times = _times(self._end[0], end)[1:]
        if not len(times):
            return self
        parts = self._of_instances(y, "y")
        known = None if X is None else self._of_instances(X, "X")
        tables, covariates = [], []
        for key in self._instances:
            part = parts.get(key, y.iloc[:0].set_axis(times[:0]))
            tables.append(_regular(part[part.index > self._end[0]], times, "y"))
            if known is not None:
                covariates.append(_whole(known.get(key), times, "the steps of y"))
        learn = self.forecaster_.partial_fit if update_params else self.forecaster_.update
        learn(tables, None if X is None else covariates)
        self._end = end
        return self

    def _predict(
        self, fh: ForecastingHorizon, X: pd.DataFrame | None = None  # noqa: N803
    ) -> pd.DataFrame:  # fmt: skip
        values, levels = self._forecasts(fh, X)
        points = values[..., 0] if levels is None else _at(values, levels, 0.5)
        return self._table(points, fh, self._names)

    def _predict_quantiles(
        self, fh: ForecastingHorizon, X: pd.DataFrame | None, alpha: Sequence[float]  # noqa: N803
    ) -> pd.DataFrame:  # fmt: skip
        values, levels = self._forecasts(fh, X)
        assert levels is not None
        found = np.stack([_at(values, levels, level) for level in alpha], axis=-1)
        columns = pd.MultiIndex.from_product([self._get_varnames(), alpha])
        return self._table(found.reshape(*found.shape[:2], -1), fh, columns)

    def _forecasts(
        self, fh: ForecastingHorizon, X: pd.DataFrame | None  # noqa: N803
    ) -> tuple[Array, Array | None]:  # fmt: skip
        """Return forecasts ``(N, steps of fh, K, Q)``, Q = 1 for points, and levels."""
        if not self._end.equals(self._present):
            fh = fh.to_absolute(self._present)
        steps = fh.to_relative(self._end).to_numpy().astype(int)
        if (steps < 1).any():  # sktime looks only if data of `update` did not end earlier
            raise NotImplementedError(f"fh must be after {self._end[0]}, the last known step")
        last, ahead = int(steps.max()), None
        if X is not None:
            times = ForecastingHorizon(range(1, last + 1)).to_absolute_index(self._end)
            known = self._of_instances(X, "X")
            what = "all steps up to the last of fh"
            ahead = [_whole(known.get(key), times, what) for key in self._instances]
        found = self.forecaster_.predict(X=ahead, horizon=last)
        levels = self.forecaster_.quantiles
        values = np.stack([np.asarray(one)[steps - 1] for one in found])
        count = len(self._names)
        values = values.reshape(len(values), len(steps), count, -1)
        return values, None if levels is None else np.array(levels, float)

    def _table(self, values: Array, fh: ForecastingHorizon, columns: pd.Index) -> pd.DataFrame:
        """Return values ``(N, steps, columns)`` at the times of `fh`."""
        index = fh.to_absolute_index(self._present)
        parts = [pd.DataFrame(one, index, columns) for one in values]
        if len(self._levels) == 1:
            return parts[0]
        return pd.concat(parts, keys=self._instances, names=self._levels)

    @property
    def _present(self) -> pd.Index:
        """The cutoff, with its frequency: that of a panel's has none."""
        now = self.cutoff
        if isinstance(now, pd.DatetimeIndex) and now.freq is None:
            return pd.DatetimeIndex(now, freq=self._freq)
        return now

    def _frequency(self, index: pd.Index) -> Any:
        given = getattr(self.cutoff, "freq", None)
        if not isinstance(index, pd.DatetimeIndex) or given is not None:
            return given
        freq = self.forecaster.freq
        return infer(index, "y")[0] if freq is None else offset_of(freq)

    def _of_instances(self, table: pd.DataFrame, name: str) -> dict[Hashable, pd.DataFrame]:
        parts = _parts(table)
        new = set(parts) - set(self._instances)
        if new:
            raise ValueError(
                f"{name} has instances that y of fit did not have, such as {new.pop()!r}"
            )
        return parts

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:  # noqa: ARG003
        """Return small forecasters for sktime's own tests.

        Parameters
        ----------
        parameter_set
            Not used: there is one set.

        Returns
        -------
        list of dict
            Arguments of the constructor, two of them: for quantiles, and for points.

        Examples
        --------
        >>> [list(one) for one in SktimeForecaster.get_test_params()]
        [['forecaster'], ['forecaster']]
        """
        small: dict[str, Any] = {"epochs": 2, "hidden_size": 4, "random_state": 0, "device": "cpu"}
        quantiles = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
        return [
            {"forecaster": SequenceForecaster(quantiles=quantiles, **small)},
            {"forecaster": SequenceForecaster(module="gru", horizon=2, **small)},
        ]


def _parts(table: pd.DataFrame) -> dict[Hashable, pd.DataFrame]:
    """Return the table of each instance, indexed by time; of a single series by the key None."""
    levels = table.index.nlevels - 1
    if not levels:
        return {None: table}
    by = 0 if levels == 1 else list(range(levels))
    return {
        key: part.droplevel(list(range(levels)))
        for key, part in table.groupby(level=by, sort=False)
    }


def _times(first: Any, cutoff: pd.Index) -> pd.Index:
    """Return all times from `first` to the cutoff."""
    last = cutoff[0]
    if isinstance(cutoff, pd.PeriodIndex):
        return pd.period_range(first, last, freq=cutoff.freq)
    if not isinstance(cutoff, pd.DatetimeIndex):
        return pd.RangeIndex(first, last + 1)
    return pd.date_range(first, last, freq=cutoff.freq)


def _regular(table: pd.DataFrame, times: pd.Index, name: str) -> pd.DataFrame:
    """Return a table with a row for each time, missing if it has none."""
    others = table.index.difference(times)
    if len(others):
        raise ValueError(f"{name} has a row for {others[0]}, which is not among its steps")
    return _without_numbers(table if table.index.equals(times) else table.reindex(times))


def _whole(table: pd.DataFrame | None, times: pd.Index, what: str) -> pd.DataFrame:
    """Return the rows of covariates at all times."""
    missing = times if table is None else times.difference(table.index)
    if table is None or len(missing):
        raise ValueError(f"X must have {what}: {missing[0]} is missing")
    return _without_numbers(table.loc[times])


def _without_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table without its index if that holds numbers, whose steps `_times` made regular."""
    dates = isinstance(table.index, pd.DatetimeIndex | pd.PeriodIndex)
    return table if dates else table.reset_index(drop=True)


def _at(values: Array, levels: Array, level: float) -> Array:
    """Return the quantile of a level, interpolated between those ``(…, Q)`` of rising levels."""
    rounding = 1e-9
    if not levels[0] - rounding <= level <= levels[-1] + rounding:
        raise ValueError(
            f"the quantile {level:g} is not between those that the model has learnt, "
            f"{levels[0]:g} to {levels[-1]:g}: fit a forecaster with wider quantiles"
        )
    if len(levels) == 1:
        return values[..., 0]
    high = int(np.clip(np.searchsorted(levels, level), 1, len(levels) - 1))
    share = np.clip((level - levels[high - 1]) / (levels[high] - levels[high - 1]), 0, 1)
    below, above = values[..., high - 1], values[..., high]
    return np.asarray(below + share * (above - below))
