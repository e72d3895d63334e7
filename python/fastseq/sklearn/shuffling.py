"""Samples in a new random order in every epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..training.run import Callback

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["Shuffler"]


class Shuffler(Callback):
    """Puts the sequences of arrays into a new order before each epoch.

    Blocks of sequences come as they lie, or as blocks in another order; this makes other blocks.
    The order depends on seed and epoch alone.

    Parameters
    ----------
    seed
        Where orders come from.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pairs: list[tuple[Tensor, Tensor, int]] = []

    def shuffled(self, a: Tensor, axis: int) -> Tensor:
        """Return a copy of `a` that will be in another order along `axis` in each epoch."""
        copy = a.clone(memory_format=torch.contiguous_format)
        self._pairs.append((a, copy, axis))
        return copy

    def on_epoch_begin(self, run: Run) -> None:
        """Put the copies into the epoch's order."""
        if not self._pairs:
            return
        count = self._pairs[0][0].shape[self._pairs[0][2]]
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + run.epoch) % 2**63)
        order = torch.randperm(count, generator=generator)
        for whole, copy, axis in self._pairs:
            torch.index_select(whole, axis, order, out=copy)

    def clear(self) -> None:
        """Let go of the arrays."""
        self._pairs.clear()
