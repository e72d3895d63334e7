"""Whether data are those of an earlier call: a number made of some of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from ..tree import tree_leaves
from .chunks import Chunk
from .sequences import Sequences

__all__ = ["fingerprint"]

_WHOLE = 2**20  # numbers; of more, samples are looked at:
_SAMPLES = 16
_STEPS, _SEQUENCES = 64, 8  # each at most so large,
_NUMBERS = 2**16  # and of about so many numbers


def fingerprint(data: Sequences) -> int:
    """Return a number below 2**40 that other data hardly have.

    It depends on shapes, lengths, weights and values: on all values of small data; of large data
    on those at some places, so that little is read of files.

    Examples
    --------
    >>> x = torch.zeros(5, 3, 1)
    >>> a, b = (Sequences(one, dtype=torch.float32) for one in (x, x + 1))
    >>> fingerprint(a) == fingerprint(a), fingerprint(a) == fingerprint(b)
    (True, False)
    """
    found = hashlib.blake2b(digest_size=5)
    sources = [(source.features, str(source.dtype)) for source in data.leaves]
    found.update(repr((data.steps, data.count, sources, data.nan)).encode())
    for numbers in (data.lengths, data.order):
        if numbers is not None:
            found.update(np.ascontiguousarray(numbers).tobytes())
    for chunk, batch in data.batches(_places(data)):
        found.update(repr(chunk).encode())
        for a in tree_leaves(batch and (batch.xs, batch.ys, batch.ws)):
            found.update(a.detach().cpu().contiguous().view(torch.uint8).numpy())
    return int.from_bytes(found.digest(), "big")


def _places(data: Sequences) -> Iterator[Chunk]:
    """Yield where to look: everywhere, or at places that are spread over time and sequences."""
    width = sum(int(np.prod(source.features)) for source in data.leaves)
    steps, count = data.steps, data.count
    if steps * count * width <= _WHOLE:
        yield Chunk(0, 0, 0, steps, 0, count)
        return
    n = min(count, _SEQUENCES)
    t = min(steps, _STEPS, max(1, _NUMBERS // (n * max(width, 1))))
    last = _SAMPLES - 1
    for i in range(_SAMPLES):
        t0 = (steps - t) * i // last
        n0 = (count - n) * (i * 7 % _SAMPLES) // last
        yield Chunk(i, 0, t0, t0 + t, n0, n0 + n)
