"""A new random order of samples in every epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.samples_first import SamplesFirst
from ..training.run import Callback

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["Shuffler"]


class Shuffler(Callback):
    """Reorder the sequences of arrays before each epoch.

    Shuffling by `Spec` only reorders the blocks of arrays; this changes which sequences form a
    block. The order depends on seed and epoch alone.

    Parameters
    ----------
    seed
        Seed of the orders.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pairs: list[tuple[Tensor, Tensor, int]] = []
        self._samples: list[SamplesFirst] = []

    def of_samples(self, a: Tensor | SamplesFirst) -> Any:
        """Return samples ``(N, …)`` that are reordered in each epoch; tensors are copied."""
        if isinstance(a, Tensor):
            return self.shuffled(a, 0)
        samples = a.like()
        self._samples.append(samples)
        return samples

    def shuffled(self, a: Tensor, axis: int, count: int | None = None) -> Tensor:
        """Return a copy of `a` that is reordered along `axis` in each epoch.

        If there are more than `count` sequences, it holds that many, drawn again in each epoch.
        """
        part = a if count is None else a.narrow(axis, 0, min(count, a.shape[axis]))
        copy = part.clone(memory_format=torch.contiguous_format)
        self._pairs.append((a, copy, axis))
        return copy

    def on_epoch_begin(self, run: Run) -> None:
        """Put the copies into the epoch's order."""
        self.reorder(run.epoch)

    def reorder(self, epoch: int) -> None:
        """Put the copies into an epoch's order."""
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + epoch) % 2**63)
        if self._samples:
            order = self._samples[0].draw(generator)
        elif self._pairs:
            whole, _, axis = self._pairs[0]
            order = torch.randperm(whole.shape[axis], generator=generator)
        for samples in self._samples:
            samples.reorder(order)
        for whole, copy, axis in self._pairs:
            torch.index_select(whole, axis, order[: copy.shape[axis]], out=copy)

    def clear(self) -> None:
        """Release the arrays."""
        self._pairs.clear()
        self._samples.clear()
