"""Base of the callbacks that log to experiment trackers."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import numbers
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..training.run import Callback

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from ..training.run import Run

__all__ = ["Tracker", "artifacts_of", "history_figure", "numbers_of", "parameters"]


class Tracker(Callback):
    """Base of callbacks that log elsewhere: on rank 0 only, and never stopping training.

    If the tracker fails, it warns once, and the rest of this call of `fit` is not logged.

    Parameters
    ----------
    every
        Log the loss every `every` updates; 0: never.
    """

    def __init__(self, every: int) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            raise ValueError(f"every must be a number of updates, or 0 for none, got {every!r}")
        self._every = every
        self._logs = self._begun = False

    def forget(self) -> None:
        """Start a new run instead of continuing a checkpoint's, which is that of another fit."""

    def on_fit_begin(self, run: Run) -> None:
        """Prepare; the tracker's run starts when there is something to log.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        self._logs, self._begun = run.first, False

    def on_batch_end(self, run: Run) -> None:
        """Log the loss of every `every`-th update.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        if self._logs and self._every and run.updates % self._every == 0:
            self._try(self._log_update, run)

    def on_epoch_end(self, run: Run) -> None:
        """Log the epoch's row of the history.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        self._try(self._log_epoch, run)

    def on_fit_end(self, run: Run) -> None:
        """Log the final results, and close the run.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        self._try(self._end, run)
        self._logs = False

    def _try(self, function: Callable[[Run], None], run: Run) -> None:
        if not self._logs:
            return
        try:
            if not self._begun:  # not earlier: a checkpoint is loaded after on_fit_begin
                self._begun = True
                self._begin(run)
            function(run)
        except Exception as error:
            self._logs = False
            self._abandon()
            warnings.warn(
                f"{type(self).__name__} failed and logs nothing more in this fit; training "
                f"continues. {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=3,
            )

    def _begin(self, run: Run) -> None:
        raise NotImplementedError

    def _log_update(self, run: Run) -> None:
        raise NotImplementedError

    def _log_epoch(self, run: Run) -> None:
        raise NotImplementedError

    def _end(self, run: Run) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        """Release what is no longer needed."""


def parameters(run: Run) -> dict[str, Any]:
    """Return a run's settings: spec, model, optimizer, data.

    Returns
    -------
    dict
        Numbers, booleans and strings, by names such as ``"optimizer.lr"``.
    """
    learner = run.learner
    found: dict[str, Any] = {
        f"spec.{key}": value for key, value in dataclasses.asdict(learner.spec).items()
    }
    found["model"] = type(run.model).__name__
    found["model.parameters"] = sum(p.numel() for p in run.model.parameters())
    found["loss"] = _name(learner.loss)
    found["optimizer"] = type(run.optimizer).__name__
    group = run.optimizer.param_groups[0]
    found.update({f"optimizer.{key}": value for key, value in group.items() if key != "params"})
    found["data.steps"], found["data.sequences"] = run.data.steps, run.data.count
    found["device"], found["ranks"] = str(learner.device), learner.replicas.comm.size
    found["seed"] = learner.seed
    return {key: _scalar(value) for key, value in found.items() if value is not None}


def numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """Return the numbers in a row of the history that can be plotted as curves.

    Examples
    --------
    >>> numbers_of({"epoch": 1, "loss": 0.5, "note": "warm"})
    {'loss': 0.5}
    """
    return {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, numbers.Real) and key != "epoch"
    }


def history_figure(run: Run) -> Figure | SubFigure | None:
    """Plot the history; None without matplotlib or epochs."""
    if not len(run.history) or importlib.util.find_spec("matplotlib") is None:
        return None
    return run.history.plot().figure


def artifacts_of(run: Run) -> dict[str, Any]:
    """Return texts and figures of all callbacks that have a method `artifacts`, by their names."""
    found: dict[str, Any] = {}
    for callback in run.callbacks:
        found |= getattr(callback, "artifacts", dict)()
    return found


def _name(function: object) -> str:
    """Return a loss's name; for `seqloss`, the inner loss's."""
    if isinstance(function, functools.partial):
        return _name((*function.args, function.func)[0])
    return str(getattr(function, "__name__", type(function).__name__))


def _scalar(value: object) -> Any:
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        value = value.item()  # a learning rate that is a tensor
    return value if isinstance(value, int | float | bool | str) else str(value)
