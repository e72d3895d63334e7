"""Learning-rate schedules by name, over all updates of a call of `fit`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from .._util.spelling import meant
from ..callbacks.schedules import Schedule

if TYPE_CHECKING:
    from ..estimator import Estimator
    from ..training.run import Run

__all__ = ["NamedSchedule", "check_schedule", "scheduled"]

_NAMES = ("onecycle", "cosine")
_RISES = 0.1  # fraction of the updates in which "onecycle" rises


def check_schedule(name: object) -> None:
    """Raise ValueError unless a schedule has this name; None: the learning rate is constant."""
    if name is not None and name not in _NAMES:
        hint = meant(name, _NAMES)
        raise ValueError(f"schedule must be one of {_NAMES} or None, got {name!r}{hint}")


class NamedSchedule(Schedule):
    """Change the learning rate with each update of a call of `fit`; afterwards it is as before.

    Parameters
    ----------
    name
        ``"onecycle"``: rise from a 25th of the learning rate in the first tenth of the updates,
        then fall to nearly 0 [1]_; ``"cosine"``: fall to 0.

    References
    ----------
    .. [1] Smith, L. N. and Topin, N., "Super-convergence: very fast training of neural networks
       using large learning rates" (2018), https://arxiv.org/abs/1708.07120

    Examples
    --------
    >>> import numpy as np
    >>> from fastseq.sklearn import SequenceRegressor
    >>> model = SequenceRegressor("linear", lr=0.1, schedule="onecycle", epochs=30)
    >>> X = np.random.default_rng(0).standard_normal((60, 5, 1))
    >>> bool(model.fit(X, X.sum((1, 2))).score(X, X.sum((1, 2))) > 0.99)
    True
    """

    def __init__(self, name: str) -> None:
        super().__init__(self._of, per="update")
        self._name = name
        self._total = 1
        self._before: list[float] = []

    def on_fit_begin(self, run: Run) -> None:
        """Make the scheduler of all updates to come."""
        self._total = max(1, int(run.epochs - run.epoch) * run.updates_per_epoch)
        self._before = [group["lr"] for group in run.optimizer.param_groups]
        self._scheduler = None
        super().on_fit_begin(run)

    def on_fit_end(self, run: Run) -> None:
        """Set the learning rate as it was before."""
        for group, lr in zip(run.optimizer.param_groups, self._before, strict=True):
            group["lr"] = lr
            group.pop("initial_lr", None)

    def _of(self, optimizer: optim.Optimizer) -> LRScheduler:
        if self._name == "cosine":
            return CosineAnnealingLR(optimizer, self._total)
        steps = self._total + 1
        rises = _RISES if _RISES * steps > 1 else 2 / steps  # torch needs a step of it
        return OneCycleLR(
            optimizer, self._before, total_steps=steps, pct_start=rises, cycle_momentum=False
        )


@contextlib.contextmanager
def scheduled(est: Estimator, name: str | None) -> Iterator[None]:
    """Let an estimator train by a schedule, before its other callbacks; None: by none."""
    own = est.callbacks
    if name is not None:
        est.callbacks = [NamedSchedule(name), *own]
    try:
        yield
    finally:
        est.callbacks = own
