"""Sequences of similar length, shuffled into other blocks in every epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..nn.stateful import batch_norms

__all__ = ["drawn_order", "longest_drawn", "spread_for"]

_NARROW, _WIDE = 0.25, 3.0


def spread_for(model: nn.Module) -> float:
    """Return by what part lengths may be taken for longer, at most, when they are sorted.

    A quarter. Three times where batch normalisation leaves out padding: blocks of similar lengths
    have statistics unlike those of all sequences, which count after training, and more padding
    does no harm but takes time.
    """
    return _WIDE if batch_norms(model) and not batch_norms(model, of_padding=True) else _NARROW


def drawn_order(lengths: np.ndarray, spread: float, generator: torch.Generator) -> np.ndarray:
    """Return a random order, ``(N,)``, in which neighbours have similar lengths, longest first.

    Sequences are sorted by their lengths, each multiplied by a random number from 1 to
    ``1 + spread``. So padding does not depend on the number of sequences: where there are many of
    all lengths, a tenth of the steps with a spread of 1/4, a third with 3. Sorting random parts of
    the data, as others do, pads small sets more and draws only from few in large ones.

    Parameters
    ----------
    lengths
        Numbers of time steps, ``(N,)``.
    spread
        See `spread_for`.
    generator
        Draws the numbers.

    Examples
    --------
    >>> order = drawn_order(np.array([9, 8, 8, 8, 2]), 0.25, torch.Generator().manual_seed(0))
    >>> sorted(order[:4].tolist()), int(order[4])
    ([0, 1, 2, 3], 4)
    """
    numbers = torch.rand(len(lengths), dtype=torch.float64, generator=generator).numpy()
    # The numbers themselves decide among sequences without steps.
    order: np.ndarray = np.lexsort((numbers, -lengths * (1 + spread * numbers)))
    return order


def longest_drawn(lengths: np.ndarray, spread: float) -> np.ndarray:
    """Return the length of the longest sequence that each place of a drawn order may have.

    Parameters
    ----------
    lengths
        Numbers of time steps, ``(N,)``, in falling order.
    spread
        See `spread_for`.

    Examples
    --------
    >>> longest_drawn(np.array([10, 8, 4, 0]), 0.25).tolist()
    [10, 10, 4, 0]
    """
    rising = lengths[::-1]
    most: np.ndarray = rising[np.searchsorted(rising, lengths * (1 + spread), side="right") - 1]
    return most
