"""The best weights of a run, instead of the last."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..training.run import Callback
from .loaded_states import check_numbers, kinds_of
from .monitor import Monitor

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["RestoreBest"]


class RestoreBest(Callback):
    """Keep the weights of the best epoch, and restore them when `fit` ends.

    All ranks keep a copy, buffers included. Over several calls of `fit` on the same data the best
    of all epochs counts; other data reset it. The optimizer is not restored.

    Parameters
    ----------
    monitor
        The number in the history's rows that decides; None: ``"validation_loss"`` if there is
        validation, else ``"loss"``.
    mode
        ``"min"``: lower is better; ``"max"``: higher is.

    Attributes
    ----------
    epoch
        The best epoch, whose weights the model has after `fit`; None: there was none.
    value
        The monitored number in that epoch.

    Raises
    ------
    TypeError
        `monitor` is not a string.
    ValueError
        `mode` is unknown. When `fit` begins: `monitor` is a number of validation, and there is
        none; after an epoch: the history has no such number.

    Examples
    --------
    >>> import fastseq as fs
    >>> best = fs.callbacks.RestoreBest()
    >>> stop = fs.callbacks.NumberSinceBest(5)  # the two together: callbacks=[stop, best]
    """

    def __init__(self, *, monitor: str | None = None, mode: str = "min") -> None:
        self._monitor = Monitor(monitor, mode)
        self._kinds: dict[str, str] | None = None  # of the weights of a model in training
        self._forget()

    def _forget(self) -> None:
        self.epoch: int | None = None
        self.value: float = math.nan
        self._cost = math.inf
        self._weights: dict[str, Any] = {}

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
        self._kinds = kinds_of(run.model.state_dict())
        if self.is_new_to(run):
            self._forget()

    def on_epoch_end(self, run: Run) -> None:
        """Keep the weights if they are the best.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            The epoch's row does not have the monitored number.
        """
        cost = self._monitor.cost(run)
        if cost < self._cost:
            self.epoch, self.value, self._cost = run.epoch, self._monitor.value(run), cost
            self._weights = weights_copy(run.model)

    def on_fit_end(self, run: Run) -> None:
        """Restore the best weights.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        self._kinds = None
        if self._weights:
            run.model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights, their epoch and its value.

        Returns
        -------
        dict
            ``"epoch"``, ``"value"`` and ``"weights"``, tensors by name; empty before the first
            epoch.
        """
        if self.epoch is None:
            return {}
        return {"epoch": self.epoch, "value": self.value, "weights": dict(self._weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._forget()
        self._used = None
        if state:
            check_numbers(epoch=state["epoch"], value=state["value"])
            weights = dict(state["weights"])
            if self._kinds is not None and kinds_of(weights) != self._kinds:
                raise ValueError("the best weights are those of another model")
            self.epoch = state["epoch"]
            self.value = state["value"]
            self._cost = self._monitor.sign * self.value
            self._weights = weights


def weights_copy(model: nn.Module) -> dict[str, Any]:
    """Return copies of a model's parameters and buffers."""
    with torch.no_grad():
        return {
            name: value.clone(memory_format=torch.contiguous_format)
            if isinstance(value, Tensor)
            else value
            for name, value in model.state_dict().items()
        }
