"""`Position`: the progress of a call of `fit`."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

from .._util.tree import Tree

__all__ = ["Position"]


@dataclasses.dataclass
class Position:
    """The training loop's counts and state: checkpoints hold it, so that `fit` can continue.

    Attributes
    ----------
    first
        Epochs done before this call of `fit`, or before the call that it continues.
    epochs, epoch
        The numbers of the last epoch and of the current one, from 1, over all calls of `fit`.
    chunk
        Chunks done in the current epoch.
    updates
        Updates done over all calls of `fit`.
    inside
        Whether the current epoch has started and not ended.
    sums
        The epoch's weighted losses and weights, summed.
    loss
        The mean loss of the last update's chunks, on all ranks.
    stopped
        Why `fit` ends before its last epoch; None: it does not.
    start, epoch_start
        When `fit` and the epoch started, or would have started without interruption, by
        `time.monotonic`.
    state
        The model's state after the last chunk, on this rank.
    ends
        Each block's state at the end of its training part, if validation needs it.
    origin
        Where the state is from, in messages; None: from this call.
    random, outside
        States of random generators to continue from, on this rank: after the last chunk, and after
        the epoch (which may have its own generators). None: their present states.
    """

    first: int
    epochs: int
    epoch: int
    updates: int
    chunk: int = 0
    inside: bool = False
    sums: tuple[float, float] = (0.0, 0.0)
    loss: float = math.nan
    stopped: str | None = None
    start: float = dataclasses.field(default_factory=time.monotonic)
    epoch_start: float = 0.0
    state: Tree = None
    ends: dict[int, Tree] | None = None
    origin: str | None = None
    random: dict[str, Any] | None = None
    outside: dict[str, Any] | None = None

    def begin_epoch(self) -> None:
        """Start the next epoch, or continue the interrupted one."""
        self.epoch += 1
        if not self.inside:
            self.chunk, self.sums, self.state, self.random = 0, (0.0, 0.0), None, None

    @property
    def mean_loss(self) -> float:
        """The mean loss of the epoch so far."""
        total, weight = self.sums
        return total / weight if weight else math.nan
