"""NumPy memory maps: their offsets in files, and whether these are still the files mapped."""

from __future__ import annotations

import contextlib
import copy
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ReadError
from .file_watch import FileWatch

__all__ = [
    "CheckedMap", "check_not_replaced", "file_offset", "is_replaced", "map_of", "rows_in_one_piece"
]  # fmt: skip


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


def is_replaced(array: object) -> bool:
    """Return whether the path of a memory map leads to another file than the one mapped.

    The map still holds the old file, which cannot be opened any more. Only Linux tells; elsewhere
    False.

    Examples
    --------
    >>> is_replaced(np.zeros(3))
    False
    """
    mapped = map_of(array) if isinstance(array, np.ndarray) else None
    if mapped is None or not mapped.size:
        return False
    mapping, path = _mapping(mapped), str(mapped.filename)
    try:
        status = os.stat(path)
    except OSError:
        return True
    here = status.st_dev, status.st_ino
    if _files.get(mapping) == here:
        return False
    name, inode = _mapped_file(np.frombuffer(mapping, np.uint8).ctypes.data)
    # Some file systems give maps other numbers than files; names differ in other mount namespaces.
    other = bool(name) and name != os.path.realpath(path) and inode != status.st_ino
    if name.endswith(" (deleted)") or other:
        return True
    _files[mapping] = here
    return False


# The device and number of the file of each map that has been looked at.
_files: weakref.WeakKeyDictionary[mmap.mmap, tuple[int, int]] = weakref.WeakKeyDictionary()


def _mapped_file(address: int) -> tuple[str, int]:
    """Return name and number of the file that is mapped at an address; "" if it is unknown."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
            begin, _, end = line.partition(" ")[0].partition("-")
            if int(begin, 16) <= address < int(end, 16):
                fields = line.split(maxsplit=5)
                return (fields[5] if len(fields) > 5 else ""), int(fields[4])
    return "", 0


def check_not_replaced(array: object) -> None:
    """Raise if `array` is a memory map whose path leads to another file by now.

    Raises
    ------
    ReadError
        The message names the file.
    """
    if isinstance(array, np.ndarray) and is_replaced(array):
        mapped = map_of(array)
        assert mapped is not None
        raise ReadError(
            f"{mapped.filename} was mapped, and is another file now, or is gone: map it again"
        )


class CheckedMap:
    """A view of a memory map whose slabs are not rows at equal distances in the file.

    Touching mapped memory past the end of a file ends the process by a signal. So slices are read
    from the file, where that is an error.
    """

    def __init__(self, array: np.ndarray, mapped: np.memmap) -> None:
        self._array = array
        self._path = str(mapped.filename)
        self._private = mapped.mode == "c"  # then values may differ from the file's
        self._mapping = _mapping(mapped)
        self._start = mapped.offset - mapped.offset % mmap.ALLOCATIONGRANULARITY
        self.shape = array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self._watch: FileWatch | None = None

    def watched(self) -> CheckedMap:
        """Return the same view, with an error if its file changes after the first read."""
        other = copy.copy(self)
        other._watch = FileWatch()
        return other

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        part = self._array[index]
        if not part.size:
            return np.array(part)
        if self._watch is None:
            return self._copied(part)
        self._watch.begin(lambda: [os.path.abspath(self._path)])
        out = self._copied(part)
        self._watch.check()
        return out

    def _copied(self, part: np.ndarray) -> np.ndarray:
        if self._private:
            self._check(self._start + len(self._mapping))
            return np.array(part)
        check_not_replaced(self._array)
        base = np.frombuffer(self._mapping, np.uint8).ctypes.data
        out = np.empty(part.shape, part.dtype)
        with open(self._path, "rb", buffering=0) as file:
            check_not_replaced(self._array)
            offset = self._start + part.ctypes.data - base
            self._read(file.fileno(), out, offset, part.strides)
        return out

    def _check(self, end: int) -> None:
        size = os.path.getsize(self._path)
        if size < end:
            raise OSError(
                f"{self._path} has {size} bytes, of which {end} are mapped: it was truncated"
            )

    def _read(self, file: int, out: np.ndarray, offset: int, strides: Sequence[int]) -> None:
        """Fill `out` with elements of the file, the first of them at `offset`."""
        ways = [(n - 1) * stride for n, stride in zip(out.shape, strides, strict=True)]
        low = sum(way for way in ways if way < 0)
        extent = sum(map(abs, ways)) + out.itemsize
        if extent > max(2 * out.nbytes, _READ_BYTES):
            axis = max(range(out.ndim), key=lambda i: abs(ways[i]))
            inner = (*strides[:axis], *strides[axis + 1 :])
            moved = np.moveaxis(out, axis, 0)
            for number in range(len(moved)):
                self._read(file, moved[number, ...], offset + number * strides[axis], inner)
            return
        bytes_ = os.pread(file, extent, offset + low)
        if len(bytes_) < extent:
            self._check(offset + low + extent)
            raise OSError(f"{self._path} could not be read at byte {offset + low + len(bytes_)}")
        out[...] = np.ndarray(out.shape, out.dtype, bytes_, -low, tuple(strides))


_READ_BYTES = 2**16  # that are read together, though few of them may be wanted
