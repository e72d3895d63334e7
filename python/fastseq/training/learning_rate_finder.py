"""Find a learning rate: train while it rises, look at the losses, and undo it all."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from .._util.figures import new_figure
from .._util.optional_imports import need
from .._util.random_state import random_state, set_random_state
from ..data.sequences import Sequences
from ..errors import DivergedError, RemoteError
from .fit import Fit
from .history import History
from .known_optimizers import set_in_group
from .position import Position
from .run import Callback, Run
from .spec import check_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .learner import Learner
    from .loop import Trainer

__all__ = ["LearningRateTest", "restored", "try_learning_rates"]

_MEMORY = 0.98  # of the mean of losses that tells when to stop
_DIVERGED = 3.0  # the loss has risen by this many times what it fell
_FEWEST = 10  # updates that show a slope


@dataclasses.dataclass(frozen=True, eq=False)
class LearningRateTest:
    """Losses while the learning rate rose from update to update: Smith's range test [1]_.

    Attributes
    ----------
    rates
        The learning rate of each update, ``(U,)``.
    losses
        The loss of its chunks on all ranks, before the update, ``(U,)``.

    References
    ----------
    .. [1] Smith, L. N., "Cyclical learning rates for training neural networks", WACV 2017,
       https://arxiv.org/abs/1506.01186

    Examples
    --------
    >>> rates = np.geomspace(1e-5, 1, 50)
    >>> round(LearningRateTest(rates, 1 / (1 + rates / 0.01)).suggestion, 3)
    0.009
    """

    rates: np.ndarray
    losses: np.ndarray

    @property
    def smoothed(self) -> np.ndarray:
        """The losses, averaged over a tenth of the updates around each, ``(U,)``."""
        width = 2 * (len(self.losses) // 20) + 1
        window = np.ones(width)
        sums = np.convolve(self.losses, window)
        counts = np.convolve(np.ones(len(self.losses)), window)
        both = sums / counts
        smooth: np.ndarray = both[width // 2 : len(both) - width // 2]
        return smooth

    @property
    def suggestion(self) -> float | None:
        """The rate at which the loss falls fastest; None if it never falls.

        That is where the slope of `smoothed` over the logarithm of the rate is smallest, before its
        lowest value (S. Gugger, "How do you find a good learning rate", 2018).
        """
        smooth = self.smoothed
        falling = int(smooth.argmin()) + 1
        if len(smooth) < _FEWEST or falling < 2:
            return None
        slopes = np.gradient(smooth, np.log(self.rates))[:falling]
        steepest = int(slopes.argmin())
        return float(self.rates[steepest]) if slopes[steepest] < 0 else None

    def __repr__(self) -> str:
        found = self.suggestion
        return (
            f"LearningRateTest: {len(self.rates)} updates, rates {self.rates[0]:.3g} to "
            f"{self.rates[-1]:.3g}; suggestion {found if found is None else format(found, '.3g')}"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the losses over the learning rate (needs matplotlib).

        Parameters
        ----------
        ax
            Where to draw. None: a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes; ``ax.figure.savefig("rates.png")`` saves the figure.
        """
        need("matplotlib", "LearningRateTest.plot")
        if ax is None:
            figure = new_figure("plot", figsize=(7, 4), layout="constrained")
            ax = figure.add_subplot()
        smooth = self.smoothed
        ax.plot(self.rates, self.losses, color="C0", alpha=0.35, lw=1, label="each update")
        ax.plot(self.rates, smooth, color="C0", label="smoothed")
        if self.suggestion is not None:
            label = f"suggestion: {self.suggestion:.2g}"
            ax.axvline(self.suggestion, color="0.4", ls=":", zorder=0, label=label)
        low, high = self.losses.min(), self.losses[: smooth.argmin() + 1].max()
        if high > low:  # not what comes after the lowest loss, which may be huge
            ax.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss", title="Learning rate test")
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
        return ax


def try_learning_rates(
    learner: Learner, data: Sequences, *, least: float, most: float, updates: int
) -> LearningRateTest:
    """Train on data while the learning rate rises; see `Estimator.find_lr`. Collective.

    Raises
    ------
    ValueError, TypeError
        The range or `updates` are invalid.
    """
    _check_range(least, most)
    check_count("updates", updates)
    if updates < _FEWEST:
        raise ValueError(f"updates must be at least {_FEWEST}, got {updates}")
    trial = _Trial(np.geomspace(least, most, updates))
    learner.history = History()
    try:
        with learner.replicas.together("find_lr"):
            fit = Fit(learner, data, None, None, [trial], progress=False)
            fit.run(updates, trial)
    except (DivergedError, RemoteError) as error:
        # A rank whose loss is not finite tells the others so.
        told = isinstance(error, DivergedError) or error.message.startswith(DivergedError.__name__)
        if not told or not trial.losses:
            raise
    losses = np.array(trial.losses)
    return LearningRateTest(trial.rates[: len(losses)].copy(), losses)


@contextmanager
def restored(learner: Learner) -> Iterator[None]:
    """Undo all that training changes in a learner, and in the random generators."""
    learner.current_optimizer()  # has the model's parameters from here on
    before = _Before(learner)
    learner.looks = {}
    try:
        yield
    finally:
        try:
            before.restore()
        except KeyboardInterrupt:
            before.restore()
            raise


def _check_range(least: float, most: float) -> None:
    for name, value in (("least", least), ("most", most)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 < least < most < math.inf:
        raise ValueError(f"least and most must be 0 < least < most, got {least} and {most}")


class _Trial(Callback):
    """Raises the learning rate after each update, until the loss diverges. Saves no checkpoints.

    Parameters
    ----------
    rates
        The learning rates.
    """

    def __init__(self, rates: np.ndarray) -> None:
        self.rates = rates
        self.losses: list[float] = []
        self._mean = 0.0
        self._first = self._best = math.nan

    def __str__(self) -> str:
        """Describe what all ranks must share."""
        return f"rates {self.rates[0]} to {self.rates[-1]} in {len(self.rates)} updates"

    def open(self, data: Sequences, epochs: int, *, ends: bool) -> Position:  # noqa: ARG002
        """Start at the first epoch."""
        return Position(0, epochs, epoch=0, updates=0)

    def attach(self, run: Run, trainer: Trainer) -> None:  # noqa: ARG002
        """Keep the trainer."""
        self._trainer = trainer

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def begin_epoch(self) -> None:
        """Do nothing."""

    def end_epoch(self) -> None:
        """Do nothing."""

    def on_fit_begin(self, run: Run) -> None:
        """Set the first rate."""
        groups = run.optimizer.param_groups
        highest = max(float(group["lr"]) for group in groups)
        self._shares = [float(g["lr"]) / highest if highest else 1.0 for g in groups]
        self._set(run)

    def on_batch_end(self, run: Run) -> None:
        """Note the loss, and set the next rate; or stop."""
        self._trainer.settle()  # on a GPU losses come late
        if math.isnan(run.loss):  # nothing has counted so far
            return
        self.losses.append(run.loss)
        if self._diverges(run.loss) or len(self.losses) == len(self.rates):
            run.position.stopped = "the test of learning rates is complete"  # on all ranks
        else:
            self._set(run)

    def _set(self, run: Run) -> None:
        rate = float(self.rates[len(self.losses)])
        for group, share in zip(run.optimizer.param_groups, self._shares, strict=True):
            set_in_group(group, "lr", share * rate)

    def _diverges(self, loss: float) -> bool:
        """Return whether the mean loss, which recent ones dominate, is far above its lowest."""
        self._mean = _MEMORY * self._mean + (1 - _MEMORY) * loss
        mean = self._mean / (1 - _MEMORY ** len(self.losses))
        if len(self.losses) == 1:
            self._first = self._best = mean
        self._best = min(self._best, mean)
        scale = max(abs(self._best), self._first - self._best)
        return mean > self._best + _DIVERGED * scale


class _Before:
    """All that training changes, to restore it.

    Parameters
    ----------
    learner
        What will be trained.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._fields = dict(vars(learner))
        self._since_common = learner.replicas.since_common
        self._precision = copy.deepcopy(learner.precision.state_dict())
        self._random = random_state(learner.device)
        self._tensors: list[tuple[nn.Module, str, Tensor, Tensor, Tensor | None]] = []
        for module in learner.model.modules():
            own = itertools.chain(
                module.named_parameters(recurse=False), module.named_buffers(recurse=False)
            )
            for name, tensor in own:
                kept = tensor.detach().clone(memory_format=torch.preserve_format)
                self._tensors.append((module, name, tensor, kept, tensor.grad))
        optimizer = learner.optimizer
        self._groups = [
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items()}
            for group in optimizer.param_groups
        ]
        self._state = {p: copy.deepcopy(state) for p, state in optimizer.state.items()}

    def restore(self) -> None:
        """Restore it."""
        learner, optimizer = self._learner, self._fields["optimizer"]
        vars(learner).update(self._fields)
        learner.replicas.since_common = self._since_common
        learner.precision.load_state_dict(self._precision)
        with torch.no_grad():
            for module, name, tensor, kept, grad in self._tensors:
                tensor.copy_(kept)
                tensor.grad = grad
                if getattr(module, name) is not tensor:
                    setattr(module, name, tensor)
        for group, kept_group in zip(optimizer.param_groups, self._groups, strict=True):
            for key in group.keys() - kept_group.keys():
                del group[key]
            for key, value in kept_group.items():
                set_in_group(group, key, value)
        optimizer.state.clear()
        optimizer.state.update(self._state)
        set_random_state(self._random, learner.device)
