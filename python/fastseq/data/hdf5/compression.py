"""What `compression` may be where datasets are written, and the chunks that it means."""

from __future__ import annotations

import math
from typing import Any, Literal

__all__ = ["Compression", "check_compression", "chunk_shape", "layout"]

Compression = Literal["gzip"] | None

_CHUNK_BYTES = 2**20
_LEVEL = 4


def check_compression(caller: str, compression: object) -> None:
    """Raise ValueError unless it is None or "gzip"."""
    if compression is not None and (
        not isinstance(compression, str) or compression != "gzip"  # arrays compare elementwise
    ):
        raise ValueError(f"{caller}: compression must be None or 'gzip', got {compression!r}")


def layout(shape: tuple[int, ...], itemsize: int, compression: Compression) -> dict[str, Any]:
    """Return the arguments of h5py's ``create_dataset`` that compress a dataset."""
    if compression is None or 0 in shape or not shape:
        return {}
    return {
        "chunks": chunk_shape(shape, itemsize), "compression": compression,
        "compression_opts": _LEVEL, "shuffle": True,
    }  # fmt: skip


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return chunks of at most 1 MB of whole features, and of about as many steps as sequences.

    The number of sequences is a power of two, as that of a minibatch often is: blocks of sequences
    then have no chunk in common, which would be decompressed for each of them.

    Examples
    --------
    >>> chunk_shape((100_000, 1000, 32), 4), chunk_shape((100_000, 7, 32), 4)
    ((128, 64, 32), (1163, 7, 32))
    """
    chunk = list(shape)
    while math.prod(chunk[2:]) * itemsize > _CHUNK_BYTES:
        longest = max(range(2, len(chunk)), key=chunk.__getitem__)
        chunk[longest] = -(-chunk[longest] // 2)
    room = max(_CHUNK_BYTES // (math.prod(chunk[2:]) * itemsize), 1)  # for steps × sequences
    if len(chunk) > 1:
        most = max(math.isqrt(room), room // shape[0])
        chunk[1] = min(shape[1], 1 << most.bit_length() - 1)
        room //= chunk[1]
    pieces = -(-shape[0] // room)
    chunk[0] = -(-shape[0] // pieces)  # all of about one size
    return tuple(chunk)
