"""Sequences of similar length, drawn into blocks anew in every epoch: pure arithmetic."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["drawn_order", "longest_drawn"]

_PART = 4  # lengths are taken for up to a quarter longer when they are sorted


def drawn_order(lengths: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Return a random order, ``(N,)``, in which neighbours have similar lengths, longest first.

    Sequences are sorted by their lengths, each multiplied by a random number from 1 to 1.25. Where
    there are many of all lengths, a fifth of a sequence at most is padding, a tenth in the mean.
    Sorting random parts of the data, as others do, would pad small sets far more.

    Parameters
    ----------
    lengths
        Numbers of time steps, ``(N,)``.
    generator
        Draws the numbers.

    Examples
    --------
    >>> order = drawn_order(np.array([9, 8, 8, 8, 2]), torch.Generator().manual_seed(0))
    >>> sorted(order[:4].tolist()), int(order[4])
    ([0, 1, 2, 3], 4)
    """
    numbers = torch.rand(len(lengths), dtype=torch.float64, generator=generator).numpy()
    # The numbers themselves decide among sequences without steps.
    return np.lexsort((numbers, -lengths * (1 + numbers / _PART)))


def longest_drawn(lengths: np.ndarray) -> np.ndarray:
    """Return the most time steps that the sequence at each place of any drawn order may have.

    Parameters
    ----------
    lengths
        Numbers of time steps, ``(N,)``, in falling order.

    Examples
    --------
    >>> longest_drawn(np.array([10, 8, 4, 0])).tolist()
    [10, 10, 5, 0]
    """
    most: np.ndarray = np.minimum(lengths + lengths // _PART, lengths.max(initial=0))
    return most
