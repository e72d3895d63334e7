"""NumPy memory maps: their offsets in files, and whether the files have been truncated."""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np

__all__ = ["CheckedMap", "file_offset", "map_of", "rows_in_one_piece"]


def map_of(array: np.ndarray) -> np.memmap | None:
    """Return the memory map of a file that `array` is or views, or None.

    Examples
    --------
    >>> map_of(np.zeros(3)) is None
    True
    """
    base: object = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and getattr(base, "_mmap", None) is not None:
            return base if base.filename is not None else None
        base = base.base
    return None


def file_offset(array: np.ndarray) -> int | None:
    """Return the offset of `array` in its mapped file, or None if slabs are not pieces of it."""
    mapped = map_of(array)
    if mapped is None or mapped.mode == "c" or not array.size:
        return None
    in_order = array.ndim > 1 and array.strides[0] >= 0 and rows_in_one_piece(array)
    if not in_order and not (array.ndim == 1 and array.flags.c_contiguous):
        return None
    base = np.frombuffer(_mapping(mapped), np.uint8).ctypes.data
    # NumPy maps from the page that holds the array's offset; views keep that first offset.
    start = mapped.offset - mapped.offset % mmap.ALLOCATIONGRANULARITY
    return int(start + array.ctypes.data - base)


def _mapping(mapped: np.memmap) -> mmap.mmap:
    """Return the mapping itself, which has no public name."""
    found: mmap.mmap = mapped._mmap  # type: ignore[attr-defined]
    return found


def rows_in_one_piece(array: np.ndarray) -> bool:
    """Return whether each row, ``array[t]``, is contiguous; reads nothing."""
    expected = array.itemsize
    for length, stride in zip(array.shape[:0:-1], array.strides[:0:-1], strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


class CheckedMap:
    """A view of a memory map that cannot be read by its offset in the file.

    Touching mapped memory past the end of a file ends the process by a signal. So each slice first
    checks that the file is still as long as the map.
    """

    def __init__(self, array: np.ndarray, mapped: np.memmap) -> None:
        self._array = array
        self._path = str(mapped.filename)
        start = mapped.offset - mapped.offset % mmap.ALLOCATIONGRANULARITY
        self._end = start + len(_mapping(mapped))
        self.shape = array.shape
        self.dtype: np.dtype[Any] = array.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        size = os.path.getsize(self._path)
        if size < self._end:
            raise OSError(
                f"{self._path} has {size} bytes, of which {self._end} are mapped: it was truncated"
            )
        # A copy: the map is not touched after this.
        return np.array(self._array[index])
