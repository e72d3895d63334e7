"""What callbacks that tell an experiment tracker have in common."""

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

__all__ = ["Tracker", "history_figure", "numbers_of", "parameters"]


class Tracker(Callback):
    """Base of callbacks that log elsewhere: on rank 0 only, and never at the cost of the training.

    If the tracker fails, that is told once, and the rest of this call of `fit` is not logged.

    Parameters
    ----------
    every
        Log the loss of each so many steps; 0: of none.
    """

    def __init__(self, every: int) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            raise ValueError(f"every must be a number of steps, 0 for none, got {every!r}")
        self._every = every
        self._logs = self._begun = False

    def on_fit_begin(self, run: Run) -> None:
        """Be ready; the tracker's run begins when there is something to log."""
        self._logs, self._begun = run.first, False

    def on_batch_end(self, run: Run) -> None:
        """Log the loss of the step, now and then."""
        if self._logs and self._every and run.step % self._every == 0:
            self._try(self._log_step, run)

    def on_epoch_end(self, run: Run) -> None:
        """Log the epoch's line of the history."""
        self._try(self._log_epoch, run)

    def on_fit_end(self, run: Run) -> None:
        """Log what there is to see at the end, and close the run."""
        self._try(self._end, run)
        self._logs = False

    def _try(self, function: Callable[[Run], None], run: Run) -> None:
        if not self._logs:
            return
        try:
            if not self._begun:  # not earlier: which run a checkpoint goes on with comes after that
                self._begun = True
                self._begin(run)
            function(run)
        except Exception as error:
            self._logs = False
            self._abandon()
            warnings.warn(
                f"{type(self).__name__} failed, and logs no more in this fit; the training goes "
                f"on. {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=3,
            )

    def _begin(self, run: Run) -> None:
        raise NotImplementedError

    def _log_step(self, run: Run) -> None:
        raise NotImplementedError

    def _log_epoch(self, run: Run) -> None:
        raise NotImplementedError

    def _end(self, run: Run) -> None:
        raise NotImplementedError

    def _abandon(self) -> None:
        """Let go of what cannot be used any more."""


def parameters(run: Run) -> dict[str, Any]:
    """Return what was set for a run: spec, model, optimizer, data.

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
    return {key: _plain(value) for key, value in found.items() if value is not None}


def numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """Return what can be drawn as a curve of a line of the history.

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
    """Draw the history, if matplotlib is there and there is something to draw."""
    if not len(run.history) or importlib.util.find_spec("matplotlib") is None:
        return None
    return run.history.plot().figure


def _name(function: Any) -> str:
    """Return what a loss is called: of `seqloss`, the loss within."""
    if isinstance(function, functools.partial):
        return _name((*function.args, function.func)[0])
    return str(getattr(function, "__name__", type(function).__name__))


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        value = value.item()  # a learning rate that is a tensor
    return value if isinstance(value, int | float | bool | str) else str(value)
