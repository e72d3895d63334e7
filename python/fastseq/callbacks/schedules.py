"""Learning rate schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, optim
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .._util.torch_internals import mark_stepped
from ..training.known_optimizers import set_in_group
from ..training.run import Callback
from .monitor import Monitor, check_positive

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["CycleLearningRate", "Schedule"]

_CHANGED = ("lr", "momentum", "betas")  # what torch's schedulers set in a group of parameters


class Schedule(Callback):
    """Set the learning rate by a torch scheduler.

    It continues when `fit` is called again with the same optimizer. For other data,
    `torch.optim.lr_scheduler.ReduceLROnPlateau` forgets its best loss.

    Parameters
    ----------
    scheduler
        A callable that gets the optimizer and returns a scheduler; or a scheduler made for the
        estimator's optimizer.
    per
        When its ``step`` is called: at the end of every ``"epoch"``, or after every
        ``"update"``.
    monitor
        The number in the history's rows that `torch.optim.lr_scheduler.ReduceLROnPlateau` gets;
        None: ``"validation_loss"`` if there is validation, else ``"loss"``.

    Raises
    ------
    TypeError
        `scheduler` is neither, or returns something else.
    ValueError
        `per` is unknown, or the scheduler was made for another optimizer.

    Examples
    --------
    >>> import fastseq as fs
    >>> from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau
    >>> cosine = fs.callbacks.Schedule(lambda optimizer: CosineAnnealingLR(optimizer, T_max=50))
    >>> plateau = fs.callbacks.Schedule(lambda optimizer: ReduceLROnPlateau(optimizer, patience=3))
    """

    def __init__(
        self,
        scheduler: LRScheduler | Callable[[optim.Optimizer], LRScheduler],
        *,
        per: str = "epoch",
        monitor: str | None = None,
    ) -> None:
        if not (isinstance(scheduler, LRScheduler) or callable(scheduler)):
            raise TypeError(
                "scheduler must be one of torch.optim.lr_scheduler, or a callable that gets the "
                f"optimizer and returns one, got {scheduler!r}"
            )
        if per not in ("epoch", "update"):
            raise ValueError(f'per must be "epoch" or "update", got {per!r}')
        self._make = None if isinstance(scheduler, LRScheduler) else scheduler
        self._scheduler = scheduler if isinstance(scheduler, LRScheduler) else None
        self._monitor = Monitor(monitor, "min")
        self._state: dict[str, Any] | None = None  # to load into the scheduler once it is made
        self.per = per

    def on_fit_begin(self, run: Run) -> None:
        """Make the scheduler, unless it exists.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            The scheduler was made for another optimizer, needs a number of validation that is not
            there, or looks at losses and is to step after each update.
        TypeError
            The callable has returned no scheduler.
        """
        self._monitor.check(run)
        if self._make is not None and (
            self._scheduler is None or self._scheduler.optimizer is not run.optimizer
        ):
            self._scheduler = _made(self._make, run.optimizer)
        assert self._scheduler is not None
        if self._scheduler.optimizer is not run.optimizer:
            raise ValueError(
                "the scheduler was made for another optimizer than the estimator's: pass a "
                "callable that gets the optimizer and returns a scheduler"
            )
        if self.per == "update" and isinstance(self._scheduler, ReduceLROnPlateau):
            raise ValueError('ReduceLROnPlateau looks at the losses of epochs: use per="epoch"')
        if self._state is not None and run.updates > 0:  # 0: another estimator starts
            _go_on(self._scheduler, self._state)
        self._state = None
        if isinstance(self._scheduler, ReduceLROnPlateau) and self.is_new_to(run):
            self._scheduler.best = self._scheduler.mode_worse
            self._scheduler.num_bad_epochs = self._scheduler.cooldown_counter = 0
        # Torch warns if its `step` comes before the optimizer's, which is skipped if there is no
        # sample, or on an overflow in fp16.
        mark_stepped(run.optimizer)

    def on_batch_end(self, run: Run) -> None:
        """Step the scheduler, with ``per="update"``.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        if self.per == "update":
            assert self._scheduler is not None
            self._scheduler.step()

    def on_epoch_end(self, run: Run) -> None:
        """Step the scheduler, with ``per="epoch"``.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            The epoch's row does not have the monitored number.
        """
        if self.per == "update":
            return
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(self._monitor.value(run))
        else:
            assert self._scheduler is not None
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, and the rates it has set.

        Returns
        -------
        dict
            ``"scheduler"``, the numbers of its own ``state_dict``, and ``"groups"``, the rates of
            each group of parameters; empty before the first `fit`.
        """
        if self._scheduler is None:
            return self._state or {}
        groups = self._scheduler.optimizer.param_groups
        return {
            "scheduler": _storable(self._scheduler.state_dict()),
            "groups": [_storable({k: g[k] for k in _CHANGED if k in g}) for g in groups],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; without a scheduler yet, in the next `fit`.

        Parameters
        ----------
        state
            What `state_dict` returned.
        """
        if self._scheduler is None:
            self._state = state or None
        elif state:
            _go_on(self._scheduler, state)

    def __getstate__(self) -> dict[str, object]:
        """Leave out a scheduler that can be made again: a copy serves a copy of the optimizer."""
        if self._make is None:
            return vars(self)
        return {**vars(self), "_scheduler": None, "_state": self.state_dict() or None}


def _made(
    make: Callable[[optim.Optimizer], LRScheduler], optimizer: optim.Optimizer
) -> LRScheduler:
    scheduler = make(optimizer)
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(
            "scheduler, called with the optimizer, must return one of torch.optim.lr_scheduler, "
            f"got {type(scheduler).__name__}"
        )
    return scheduler


def _go_on(scheduler: LRScheduler, state: dict[str, Any]) -> None:
    """Load a state, and the rates, which making the scheduler has reset to the initial ones."""
    scheduler.load_state_dict(_like(state["scheduler"], _storable(scheduler.state_dict())))
    for group, saved in zip(scheduler.optimizer.param_groups, state["groups"], strict=True):
        own = _storable({name: group[name] for name in _CHANGED if name in group})
        for name, value in _like(saved, own).items():
            set_in_group(group, name, tuple(value) if isinstance(group[name], tuple) else value)


def _like(saved: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a state that a scheduler has, too; raise if they are of other kinds.

    All others would become attributes of the scheduler.
    """
    found = {name: value for name, value in dict(saved).items() if name in own}
    if _kind(found) != (kinds := _kind({name: own[name] for name in found})):
        raise ValueError(f"the state of a scheduler is {found!r:.200}, which must be {kinds}")
    return found


def _kind(value: object) -> object:
    """Return what a part of a state is like; None and numbers are alike."""
    if isinstance(value, dict):
        return {name: _kind(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_kind(part) for part in value]
    if isinstance(value, bool | str):
        return type(value).__name__
    return "number" if isinstance(value, int | float | None) else "something else"


_NOT_PLAIN = object()


def _storable(value: object) -> Any:
    """Return the numbers, strings, and lists and dicts of them, which a file can hold.

    The rest (functions, a table of milestones) is set when the scheduler is made, and constant.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        parts = {key: _storable(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not _NOT_PLAIN}
    if isinstance(value, list | tuple):
        elements = [_storable(part) for part in value]
        return _NOT_PLAIN if any(part is _NOT_PLAIN for part in elements) else elements
    return _NOT_PLAIN


class CycleLearningRate(Callback):
    """Let the learning rate rise and fall linearly from epoch to epoch.

    Epoch 1 has `lower`, epoch ``1 + stepsize`` has `upper`, epoch ``1 + 2 * stepsize`` has `lower`
    again: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017.

    Parameters
    ----------
    stepsize
        Epochs of a rise or of a fall.
    lower, upper
        The two learning rates.

    Raises
    ------
    TypeError
        `stepsize` is not an integer, or a rate is not a number.
    ValueError
        One of them is not positive, or `lower` is not less than `upper`.

    Examples
    --------
    >>> import fastseq as fs
    >>> cycle = fs.callbacks.CycleLearningRate(4, lower=1e-3, upper=5e-2)
    >>> [round(cycle.rate(epoch), 5) for epoch in (1, 2, 5, 8, 9)]
    [0.001, 0.01325, 0.05, 0.01325, 0.001]
    """

    def __init__(self, stepsize: int = 4, *, lower: float = 0.001, upper: float = 0.05) -> None:
        check_positive("stepsize", stepsize, integer=True)
        check_positive("lower", lower)
        check_positive("upper", upper)
        if not lower < upper:
            raise ValueError(f"lower must be less than upper, got {lower} and {upper}")
        self.stepsize: int = stepsize
        self.lower: float = lower
        self.upper: float = upper

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch.

        Parameters
        ----------
        epoch
            Its number, from 1.

        Returns
        -------
        float
            From `lower` to `upper`.
        """
        place = (epoch - 1) % (2 * self.stepsize)
        height = min(place, 2 * self.stepsize - place) / self.stepsize
        return self.lower + (self.upper - self.lower) * height

    def on_epoch_begin(self, run: Run) -> None:
        """Set the epoch's learning rate.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        for group in run.optimizer.param_groups:
            set_in_group(group, "lr", self.rate(run.epoch))
