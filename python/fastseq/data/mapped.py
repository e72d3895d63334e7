"""Memory maps of NumPy's: where they lie in their files, and whether these are still as long."""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np

__all__ = ["CheckedMap", "file_offset", "map_of", "rows_in_one_piece"]


def map_of(array: np.ndarray[Any, Any]) -> np.memmap[Any, Any] | None:
    """Return the memory map of a file that `array` is, or is a view of; None if it is none.

    Examples
    --------
    >>> map_of(np.zeros(3)) is None
    True
    """
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and getattr(base, "_mmap", None) is not None:
            return base if base.filename is not None else None
        base = base.base
    return None


def file_offset(array: np.ndarray[Any, Any]) -> int | None:
    """Where `array` begins in the file it maps, if slabs of it are pieces of that file."""
    mapped = map_of(array)
    if mapped is None or mapped.mode == "c" or not array.size:
        return None
    in_order = array.ndim > 1 and array.strides[0] >= 0 and rows_in_one_piece(array)
    if not in_order and not (array.ndim == 1 and array.flags.c_contiguous):
        return None
    base = np.frombuffer(mapped._mmap, np.uint8).ctypes.data  # type: ignore[attr-defined]
    # numpy maps from the page that the array's offset lies in; views keep that first offset.
    start = mapped.offset - mapped.offset % mmap.ALLOCATIONGRANULARITY
    return int(start + array.ctypes.data - base)


def rows_in_one_piece(array: np.ndarray[Any, Any]) -> bool:
    """Whether what lies in a row, ``array[t]``, is in order without gaps; reads nothing."""
    expected = array.itemsize
    for length, stride in zip(array.shape[:0:-1], array.strides[:0:-1], strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


class CheckedMap:
    """A view of a memory map that cannot be read by its place in the file.

    Memory beyond the end of a file is a signal that ends the process. So before each slice it is
    seen whether the file is still as long as what is mapped of it.
    """

    def __init__(self, array: np.ndarray[Any, Any], mapped: np.memmap[Any, Any]) -> None:
        self._array = array
        self._path = str(mapped.filename)
        start = mapped.offset - mapped.offset % mmap.ALLOCATIONGRANULARITY
        self._end = start + len(mapped._mmap)  # type: ignore[attr-defined]
        self.shape = array.shape
        self.dtype = array.dtype

    def __getitem__(self, index: Any) -> np.ndarray[Any, Any]:
        size = os.path.getsize(self._path)
        if size < self._end:
            raise OSError(
                f"{self._path} has {size} bytes, of which {self._end} are mapped: it was truncated"
            )
        # A copy: nothing of the map is touched after this.
        return np.array(self._array[index])
