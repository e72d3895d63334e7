"""Stopping at fixed values, counts and times."""

from __future__ import annotations

import datetime
import math
from typing import TYPE_CHECKING, ClassVar

from .monitor import check_positive
from .stopping import Criterion

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["InvalidValue", "NumberLimit", "Threshold", "TimeLimit"]


class Threshold(Criterion):
    """Stop when the loss is below a value.

    Parameters
    ----------
    value
        The value; with ``mode="max"``, stops above it.
    monitor, mode
        The monitored number; see `Criterion`.

    Raises
    ------
    TypeError
        `value` is not a number, or NaN, or `monitor` is not a string.
    ValueError
        `mode` is unknown; in `fit`: as `Criterion`.

    Examples
    --------
    >>> import fastseq as fs
    >>> good_enough = fs.callbacks.Threshold(0.95, monitor="validation_r2", mode="max")
    """

    def __init__(self, value: float, *, monitor: str | None = None, mode: str = "min") -> None:
        super().__init__(monitor=monitor, mode=mode)
        if not isinstance(value, int | float) or math.isnan(value):
            raise TypeError(f"value must be a number, got {value!r}")
        self.value = value

    def update(self, run: Run) -> str | None:
        if not self._monitor.cost(run) < self._monitor.sign * self.value:
            return None
        side = "below" if self._monitor.sign > 0 else "above"
        return f"{self._monitor.name(run.row)} is {side} {self.value:.6g}"


class InvalidValue(Criterion):
    """Stop when the monitored number is NaN or infinite.

    For validation losses and metrics: a training loss that is not finite makes `fit` fail anyway,
    at the chunk where it appears.

    Parameters
    ----------
    monitor
        The monitored number; see `Criterion`.

    Raises
    ------
    TypeError
        `monitor` is not a string.
    ValueError
        In `fit`, as `Criterion`.

    Examples
    --------
    >>> import fastseq as fs
    >>> criterion = fs.callbacks.InvalidValue()
    """

    def __init__(self, *, monitor: str | None = None) -> None:
        super().__init__(monitor=monitor)

    def update(self, run: Run) -> str | None:
        value = self._monitor.value(run)
        return None if math.isfinite(value) else f"{self._monitor.name(run.row)} is {value}"


class NumberLimit(Criterion):
    """Stop after `n` epochs, over all calls of `fit` on the same data.

    Parameters
    ----------
    n
        Number of epochs.

    Raises
    ------
    TypeError
        `n` is not an integer.
    ValueError
        `n` is not positive.

    Examples
    --------
    >>> import fastseq as fs
    >>> criterion = fs.callbacks.NumberLimit(100)
    """

    _start: ClassVar = {"epochs": 0}

    def __init__(self, n: int = 100) -> None:
        super().__init__()
        check_positive("n", n, integer=True)
        self.n = n

    def update(self, run: Run) -> str | None:
        self._seen["epochs"] += 1
        return f"{self.n} epochs are done" if self._seen["epochs"] >= self.n else None


class TimeLimit(Criterion):
    """Stop when a call of `fit` has taken `limit`; a resumed call continues its count.

    The clock is checked after every update, and the epoch then ends at once; inside `Warmup`,
    `AnyOf` and `AllOf` it is checked at the ends of epochs.

    Parameters
    ----------
    limit
        Seconds, or a `datetime.timedelta`, of which the attribute has the seconds.

    Raises
    ------
    TypeError
        `limit` is neither.
    ValueError
        `limit` is not positive.

    Examples
    --------
    >>> import fastseq as fs
    >>> from datetime import timedelta
    >>> half_an_hour = fs.callbacks.TimeLimit(timedelta(minutes=30))
    """

    def __init__(self, limit: float | datetime.timedelta) -> None:
        super().__init__()
        seconds = limit.total_seconds() if isinstance(limit, datetime.timedelta) else limit
        check_positive("limit", seconds)
        self.limit: float = float(seconds)

    def on_batch_end(self, run: Run) -> None:
        """Stop if time is up by any rank's clock.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        if run.seconds >= self.limit:
            run.stop(self._reason)

    def update(self, run: Run) -> str | None:
        """Process an epoch, by rank 0's clock.

        Parameters
        ----------
        run
            This call of `fit`.

        Returns
        -------
        str or None
            Why to stop; None: there is time left.
        """
        return self._reason if run.same(run.seconds) >= self.limit else None

    @property
    def _reason(self) -> str:
        return f"the time limit of {self.limit:g} seconds is reached"
