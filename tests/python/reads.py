"""Reads as the background reader takes them, for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastseq import _reader

Type = _reader.ElementType
Column = list[int]


def type_of(name: str) -> Any:
    return getattr(Type, name)


def a_read(
    pieces: np.ndarray | list[Column],
    target: np.ndarray,
    from_type: str,
    swapped: bool = False,
    features: int = 1,
    center: np.ndarray | None = None,
    inverse: np.ndarray | None = None,
) -> tuple[Any, ...]:
    """Return what `submit` takes; `target` may be a torch tensor's NumPy view."""
    return (
        type_of(from_type),
        swapped,
        type_of(str(target.dtype)),
        np.array(pieces, np.int64).reshape(-1, 7),
        target.ctypes.data,
        target.size,
        features,
        None if center is None else center.ctypes.data,
        0 if inverse is None else inverse.ctypes.data,
    )


def queue_much(reader: Any, path: Path) -> list[np.ndarray]:
    """Queue seconds of work: millions of calls of the system. What is not read stays NaN."""
    number = reader.add_file(path, True)
    pieces = np.array([[number, 0, 1, 0, 1, 0, 0]] * 5_000)
    buffers = [np.full(5_000, np.nan, np.float32) for _ in range(500)]
    for buffer in buffers:
        reader.submit([a_read(pieces, buffer, "float32")])
    return buffers
