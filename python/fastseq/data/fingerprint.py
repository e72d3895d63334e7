"""Fingerprints of data, to compare them with an earlier call's or another rank's."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from .._util.tree import tree_leaves
from .chunk_plan import Chunk
from .chunk_reader import Reader, Slab
from .sequences import Sequences
from .sources import Box, Source, has_rows

__all__ = ["checksums", "fingerprint"]

_WHOLE = 2**20  # numbers; larger data are sampled:
_SAMPLES = 16
_STEPS, _SEQUENCES = 64, 8  # each sample at most this large,
_NUMBERS = 2**16  # and of about this many numbers
_GLANCE = 8  # sequences read by `checksums`


def fingerprint(data: Sequences) -> int:
    """Return a hash below 2**40 of the data.

    It depends on shapes, lengths, weights and values: all values of small data, samples of large
    data, so that little is read from files.

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
    """Yield the parts to hash: all, or samples spread over time and sequences."""
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


def checksums(data: Sequences) -> str:
    """Describe each array by its shape and a checksum of some of its values, one per line.

    Storage does not matter. Fewer values are read where reading is costly.

    Examples
    --------
    >>> one, two, other = torch.zeros(5, 3, 2), torch.zeros(5, 3, 2), torch.ones(5, 3, 2)
    >>> a, b, c = (checksums(Sequences(x, dtype=torch.float32)) for x in (one, two, other))
    >>> a == b, a == c
    (True, False)
    """
    reader = Reader(strict=False)
    return "\n".join(_line(source, reader) for source in data.leaves)


def _line(source: Source, reader: Reader) -> str:
    steps, count = source.shape[:2]
    cheap = not source.lazy or has_rows(source)
    width = min(count, _GLANCE if cheap else 1)
    boxes = [Box(0, 1, 0, width)]
    if cheap:
        boxes += [
            Box(t, t + 1, n, count) for t in (steps // 2, steps - 1) for n in (count - width,)
        ]
    checksum = 0
    for box in boxes if steps and count else ():
        values = _read(source, box, reader).contiguous().flatten().view(torch.uint8).numpy()
        checksum = zlib.crc32(values.data, checksum)
    return f"{source.name} of shape {source.shape} and checksum {checksum:08x}"


def _read(source: Source, box: Box, reader: Reader) -> Tensor:
    slab: Tensor
    if not source.lazy:
        slab = Slab(source, [box], None).read().data.cpu()
        return slab
    with closing(reader.run([source], [(None, [box], (1, box.n1 - box.n0))])) as read:
        slab = next(iter(read))[1][0].data
    source.close()
    return slab
