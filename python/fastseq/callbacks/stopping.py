"""Early stopping by each epoch's losses.

The criteria are MLJ's, which are Prechelt's: L. Prechelt, Early Stopping - But When?, in: Neural
Networks: Tricks of the Trade, Springer 1998.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, ClassVar

from ..training.run import Callback
from .loaded_states import numbers_like
from .monitor import Monitor, check_positive

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["GL", "PQ", "Criterion", "NumberSinceBest", "Patience"]


class Criterion(Callback):
    """Base of early stopping: `update` looks at an epoch and returns why to stop.

    All criteria continue when `fit` is called again on the same data, and are reset for other data
    or another estimator. A NaN is worse than any number.

    Parameters
    ----------
    monitor
        The number to monitor in the history's rows; None: ``"validation_loss"`` if there is
        validation, else ``"loss"``.
    mode
        ``"min"``: lower is better; ``"max"``: higher is.

    Raises
    ------
    TypeError
        `monitor` is not a string.
    ValueError
        `mode` is unknown. When `fit` begins: `monitor` is a number of validation, and there is
        none; after an epoch: the history has no such number.

    Examples
    --------
    >>> class Even(Criterion):
    ...     def update(self, run):
    ...         return "the epoch is even" if run.epoch % 2 == 0 else None
    """

    _start: ClassVar[dict[str, Any]] = {}  # what `_seen` is before the first epoch

    def __init__(self, *, monitor: str | None = None, mode: str = "min") -> None:
        self._monitor = Monitor(monitor, mode)
        self._seen: dict[str, Any] = copy.deepcopy(self._start)

    def update(self, run: Run) -> str | None:
        """Process an epoch: the method that a criterion must have.

        Parameters
        ----------
        run
            This call of `fit`; ``run.row`` is the epoch's row of the history.

        Returns
        -------
        str or None
            Why to stop, the same on all ranks; None: go on.

        Raises
        ------
        ValueError
            The row does not have the monitored number.
        """
        raise NotImplementedError

    def on_fit_begin(self, run: Run) -> None:
        """Reset for a new estimator or other data.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            The monitored number is one of validation, and there is none.
        """
        self._monitor.check(run)
        if self.is_new_to(run):
            self._seen = copy.deepcopy(self._start)

    def on_epoch_end(self, run: Run) -> None:
        """Stop if `update` returns a reason.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            The row does not have the monitored number.
        """
        reason = self.update(run)
        if reason:
            run.stop(reason)

    def state_dict(self) -> dict[str, Any]:
        """Return what the criterion has seen.

        Returns
        -------
        dict
            Numbers by names, such as the best so far; lists of them.
        """
        return copy.deepcopy(self._seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen = numbers_like(state, self._start)
        self._used = None


class NumberSinceBest(Criterion):
    """Stop when the last `n` epochs were no better than the best one before them.

    This is what Keras, skorch and Lightning call early stopping with patience `n`.

    Parameters
    ----------
    n
        Number of epochs.
    min_delta
        Better means better by more than this.
    monitor, mode
        The monitored number; see `Criterion`.

    Raises
    ------
    TypeError
        `n` is not an integer, `min_delta` not a number, or `monitor` not a string.
    ValueError
        `n` is not positive, `min_delta` is negative, or `mode` is unknown; in `fit`: as
        `Criterion`.

    Examples
    --------
    >>> import fastseq as fs
    >>> criterion = fs.callbacks.NumberSinceBest(5, monitor="loss")
    """

    _start: ClassVar = {"best": None, "since": 0}

    def __init__(
        self, n: int = 6, *, min_delta: float = 0.0, monitor: str | None = None, mode: str = "min"
    ) -> None:
        super().__init__(monitor=monitor, mode=mode)
        check_positive("n", n, integer=True)
        if not min_delta >= 0:
            raise ValueError(f"min_delta must not be negative, got {min_delta!r}")
        self.n = n
        self.min_delta = min_delta

    def update(self, run: Run) -> str | None:
        cost, seen = self._monitor.cost(run), self._seen
        best = math.inf if seen["best"] is None else seen["best"]
        if cost < best - self.min_delta:
            seen.update(best=cost, since=0)
        elif seen["best"] is None:
            seen.update(best=cost)
        else:
            seen["since"] += 1
        if seen["since"] < self.n:
            return None
        name, best = self._monitor.name(run.row), self._monitor.sign * seen["best"]
        return f"{name} has not been better than {best:.6g} for {seen['since']} epochs"


class Patience(Criterion):
    """Stop when the loss has risen `n` times in a row (Prechelt's UP, MLJ's ``Patience``).

    Parameters
    ----------
    n
        Number of rises.
    monitor, mode
        The monitored number; see `Criterion`. With ``mode="max"``, falls are counted.

    Raises
    ------
    TypeError
        `n` is not an integer, or `monitor` not a string.
    ValueError
        `n` is not positive, or `mode` is unknown; in `fit`: as `Criterion`.

    Examples
    --------
    >>> import fastseq as fs
    >>> criterion = fs.callbacks.Patience(3)
    """

    _start: ClassVar = {"last": None, "rises": 0}

    def __init__(self, n: int = 5, *, monitor: str | None = None, mode: str = "min") -> None:
        super().__init__(monitor=monitor, mode=mode)
        check_positive("n", n, integer=True)
        self.n = n

    def update(self, run: Run) -> str | None:
        cost, seen = self._monitor.cost(run), self._seen
        rose = seen["last"] is not None and cost > seen["last"]
        seen.update(last=cost, rises=seen["rises"] + 1 if rose else 0)
        if seen["rises"] < self.n:
            return None
        return f"{self._monitor.name(run.row)} has become worse {seen['rises']} times in a row"


class GL(Criterion):
    """Stop when the loss is more than `alpha` percent above the best: generalisation loss.

    In epoch t it is ``GL(t) = 100 (E(t) - Eopt) / |Eopt|``, where Eopt is the lowest loss so far.

    Parameters
    ----------
    alpha
        Percent.
    monitor, mode
        The monitored number; see `Criterion`.

    Raises
    ------
    TypeError
        `alpha` is not a number, or `monitor` not a string.
    ValueError
        `alpha` is not positive, or `mode` is unknown; in `fit`: as `Criterion`.

    Examples
    --------
    >>> import fastseq as fs
    >>> criterion = fs.callbacks.GL(5)
    """

    _start: ClassVar = {"best": None}

    def __init__(
        self, alpha: float = 2.0, *, monitor: str | None = None, mode: str = "min"
    ) -> None:
        super().__init__(monitor=monitor, mode=mode)
        check_positive("alpha", alpha)
        self.alpha = alpha

    def _generalisation_loss(self, run: Run) -> float:
        cost, best = self._monitor.cost(run), self._seen["best"]
        best = self._seen["best"] = cost if best is None else min(best, cost)
        if cost == best:
            return 0.0
        return 100 * (cost - best) / abs(best) if best else math.inf

    def update(self, run: Run) -> str | None:
        loss = self._generalisation_loss(run)
        if not loss > self.alpha:
            return None
        name, best = self._monitor.name(run.row), self._monitor.sign * self._seen["best"]
        return f"{name} is {loss:.3g} % worse than its best, {best:.6g}"


class PQ(GL):
    """Stop when generalisation loss is large relative to training progress: Prechelt's PQ.

    Progress over the last k epochs with training losses F is
    ``P = 1000 (mean(F) / min(F) - 1)``; it stops when ``GL / P > alpha``, or when there is no
    progress at all, but not before epoch k.

    Parameters
    ----------
    alpha
        The quotient.
    k
        Epochs in a strip.
    monitor, mode
        The number GL is computed from; see `Criterion`. Progress is always in ``"loss"``.

    Raises
    ------
    TypeError
        `alpha` is not a number, `k` not an integer, or `monitor` not a string.
    ValueError
        `alpha` is not positive, `k` is less than 2, or `mode` is unknown; in `fit`: as `Criterion`.

    Examples
    --------
    >>> import fastseq as fs
    >>> criterion = fs.callbacks.PQ(0.75, k=5)
    """

    _start: ClassVar = {"best": None, "strip": []}

    def __init__(
        self, alpha: float = 0.75, k: int = 5, *, monitor: str | None = None, mode: str = "min"
    ) -> None:
        super().__init__(alpha, monitor=monitor, mode=mode)
        check_positive("k", k, integer=True)
        if k < 2:
            raise ValueError("k must be at least 2: one loss shows no progress")
        self.k = k

    def update(self, run: Run) -> str | None:
        loss = self._generalisation_loss(run)
        strip = self._seen["strip"] = [*self._seen["strip"], float(run.row["loss"])][-self.k :]
        if len(strip) < self.k:
            return None
        lowest, mean = min(strip), sum(strip) / self.k
        if max(strip) == lowest:  # the mean of equal numbers may differ from them
            return f"loss has not changed for {self.k} epochs"
        progress = 1000 * (mean - lowest) / abs(lowest) if lowest else math.inf
        if not loss / progress > self.alpha:
            return None
        name = self._monitor.name(run.row)
        return f"{name} has lost {loss:.3g} % where training gained {progress:.3g} ‰"
