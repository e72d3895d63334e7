"""`Position`: how far a call of `fit` has got."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

from .._util.tree import Tree

__all__ = ["Position"]


@dataclasses.dataclass
class Position:
    """What the training loop counts and carries: with it, a checkpoint lets `fit` continue.

    Attributes
    ----------
    first
        How many epochs were done when this call of `fit`, or the one it continues, began.
    epochs, epoch
        The numbers of the last epoch and of the current one, from 1, over all calls of `fit`.
    chunk, step
        Chunks that are done: of the current epoch, and over all calls of `fit`.
    inside
        Whether the current epoch has begun and not ended.
    sums
        The epoch's weighted losses and weights, summed.
    loss
        Of the last chunk, on all ranks.
    stopped
        Why `fit` ends before its last epoch; None: it does not.
    start, epoch_start
        When `fit` and the epoch began, or would have begun without interruption, by
        `time.monotonic`.
    state
        The model's state after the last chunk, on this rank.
    ends
        The states in which each block's training part ended, if validation needs them.
    random, outside
        What random generators go on from, on this rank: after the last chunk, and after the epoch
        (which may have its own). None: from what they are.
    """

    first: int
    epochs: int
    epoch: int
    step: int
    chunk: int = 0
    inside: bool = False
    sums: tuple[float, float] = (0.0, 0.0)
    loss: float = math.nan
    stopped: str | None = None
    start: float = dataclasses.field(default_factory=time.monotonic)
    epoch_start: float = 0.0
    state: Tree = None
    ends: dict[int, Tree] | None = None
    random: dict[str, Any] | None = None
    outside: dict[str, Any] | None = None

    def begin_epoch(self) -> None:
        """Go on to the next epoch, or into the one that was interrupted."""
        self.epoch += 1
        if not self.inside:
            self.chunk, self.sums, self.state, self.random = 0, (0.0, 0.0), None, None

    @property
    def mean_loss(self) -> float:
        """The mean loss of the epoch so far."""
        total, weight = self.sums
        return total / weight if weight else math.nan
