"""Arrays that `fit` and `predict` take, opened for reading slabs ``[t0:t1, n0:n1]`` as tensors."""

from __future__ import annotations

import math
import mmap
import os
from typing import Any, Protocol

import h5py
import numpy as np
import torch
from torch import Tensor

from ..h5 import h5mmap

__all__ = ["Source", "open_source", "to_tensor"]


class Source(Protocol):
    """Something to read slabs from.

    Attributes
    ----------
    shape
        ``(T, N, …)``: time steps, sequences, features.
    lazy
        Whether reading takes long enough to be done ahead, by another thread.
    """

    shape: tuple[int, ...]
    lazy: bool

    def read(self, t0: int, t1: int, n0: int, n1: int) -> Tensor:
        """Return a new contiguous tensor of time steps ``[t0, t1)``, sequences ``[n0, n1)``."""
        ...


_COPY_BYTES = 2**16


class TensorSource:
    """A tensor, or an array in memory seen as one.

    Of small chunks some are copied at once, those that follow in time: each is handed out once.
    """

    lazy = False

    def __init__(self, tensor: Tensor, dtype: torch.dtype) -> None:
        self.shape = tuple(tensor.shape)
        self._tensor = tensor.detach()
        self._dtype = dtype
        self._features = self.shape[2:]
        self._strides = tensor.stride()
        self._offset = tensor.storage_offset()
        self._converts = tensor.dtype != dtype
        self._sample_bytes = math.prod(self._features) * dtype.itemsize
        self._ahead: list[Tensor] = []  # the last comes next,
        self._due = 0, 0, 0, 0  # for this read

    def read(self, t0: int, t1: int, n0: int, n1: int) -> Tensor:
        steps = t1 - t0
        if self._ahead and self._due == (t0, t1, n0, n1):
            self._due = t1, t1 + steps, n0, n1
            return self._ahead.pop()
        chunk_bytes = max(steps * (n1 - n0) * self._sample_bytes, 1)
        count = min(_COPY_BYTES // chunk_bytes, (self.shape[0] - t0) // max(steps, 1))
        if count < 2:
            self._ahead = []
            return self._copy(t0, t1, n0, n1)
        copied = self._copy(t0, t0 + count * steps, n0, n1)
        # .data: autograd must not take what happens to one for a change of another.
        self._ahead = [copied[i * steps : (i + 1) * steps].data for i in reversed(range(count))]
        self._due = t1, t1 + steps, n0, n1
        return self._ahead.pop()

    def _copy(self, t0: int, t1: int, n0: int, n1: int) -> Tensor:
        # Like [t0:t1, n0:n1], in half the time.
        begin = self._offset + t0 * self._strides[0] + n0 * self._strides[1]
        shape = (t1 - t0, n1 - n0, *self._features)
        slab = self._tensor.as_strided(shape, self._strides, begin)
        if self._converts:
            return slab.to(self._dtype, memory_format=torch.contiguous_format)
        return slab.clone(memory_format=torch.contiguous_format)


class ArraySource:
    """Anything with ``shape``, ``dtype`` and slicing, read by slicing it."""

    lazy = True

    def __init__(self, array: Any, dtype: torch.dtype) -> None:
        self.shape = tuple(array.shape)
        self._array = array
        self._dtype = dtype

    def read(self, t0: int, t1: int, n0: int, n1: int) -> Tensor:
        return to_tensor(np.asarray(self._array[t0:t1, n0:n1]), self._dtype)


class FileSource:
    """A memory map of a file, read by ``pread``: faster than page faults, and a file that was cut
    short is an error here instead of a signal.
    """  # noqa: D205

    lazy = True

    def __init__(self, array: np.memmap[Any, Any], offset: int, dtype: torch.dtype) -> None:
        self.shape = tuple(array.shape)
        self._path = str(array.filename)
        self._offset = offset
        self._steps = array.strides[0], array.strides[1]
        self._stored = array.dtype
        self._dtype = dtype
        self._file: int | None = None

    def read(self, t0: int, t1: int, n0: int, n1: int) -> Tensor:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        slab = np.empty((max(t1 - t0, 0), max(n1 - n0, 0), *self.shape[2:]), self._stored)
        if slab.size:
            if self._steps[0] == slab[0].nbytes:
                self._fill(slab, t0, n0)  # all sequences: one piece of the file
            else:
                for t, row in enumerate(slab, t0):
                    self._fill(row, t, n0)
        return to_tensor(slab, self._dtype)

    def _fill(self, piece: np.ndarray[Any, Any], t: int, n: int) -> None:
        assert self._file is not None
        view = memoryview(piece.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        offset = self._offset + t * self._steps[0] + n * self._steps[1]
        while view:
            count = os.preadv(self._file, [view], offset)
            if count == 0:
                size = os.fstat(self._file).st_size
                raise EOFError(
                    f"{self._path} ends at byte {size}, before the array mapped from it does: "
                    f"it was truncated after it was opened (reading step {t}, sequence {n})"
                )
            view = view[count:]
            offset += count

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def open_source(
    array: Any, name: str, dtype: torch.dtype, *, keep_integers: bool = False
) -> Source:
    """Open `array` for reading as `dtype`; reads nothing yet.

    Parameters
    ----------
    array
        Tensor, array, memory map, HDF5 dataset, or anything with ``shape``, ``dtype``, slicing.
    name
        What messages call it.
    keep_integers
        Leave integers (class labels) integers, as int64.

    Raises
    ------
    TypeError
        It is not such a thing, or holds neither floats nor integers nor booleans.
    """
    if isinstance(array, Tensor):
        if array.is_complex():
            raise _dtype_error(name, array.dtype)
        integers = not array.is_floating_point()
        return TensorSource(array, torch.int64 if integers and keep_integers else dtype)
    if isinstance(array, h5py.Dataset) and array.dtype.kind in "biuf":
        if array.file.mode != "r":
            array.file.flush()  # what was just written is to be read from the file
        if array.id.get_offset() is not None:
            array = h5mmap(array.file.filename, array.name)
    if isinstance(array, list):
        array = np.asarray(array)
    if not all(hasattr(array, part) for part in ("shape", "dtype", "__getitem__")):
        raise TypeError(
            f"{name} must be an array, a tensor, an HDF5 dataset, or a tuple or dict of these, "
            f"got {type(array).__name__}"
        )
    try:
        stored = np.dtype(array.dtype)
    except TypeError as error:
        raise _dtype_error(name, array.dtype) from error
    if stored.kind not in "biuf" or (stored.kind == "f" and stored.itemsize > 8):
        raise _dtype_error(name, stored)
    target = torch.int64 if stored.kind in "biu" and keep_integers else dtype
    if isinstance(array, np.ndarray):
        offset = _file_offset(array)
        if offset is not None:
            return FileSource(array, offset, target)  # type: ignore[arg-type]
        forward = min(array.strides, default=0) >= 0
        known_to_torch = stored.isnative and (stored.kind != "u" or stored.itemsize == 1)
        if array.flags.writeable and forward and known_to_torch:
            return TensorSource(torch.from_numpy(array), target)
        source = ArraySource(array, target)
        source.lazy = isinstance(array, np.memmap)
        return source
    return ArraySource(array, target)


def _dtype_error(name: str, dtype: Any) -> TypeError:
    return TypeError(
        f"{name} must hold floats, integers or booleans, got dtype {dtype}; convert it"
    )


def to_tensor(array: Any, dtype: torch.dtype) -> Tensor:
    """Return what NumPy or torch understands as a tensor; an array is copied or converted once."""
    if isinstance(array, Tensor):
        return array.to(dtype)
    array = np.asarray(array)
    fits = array.flags.c_contiguous and array.flags.owndata and array.flags.writeable
    unsigned = array.dtype.kind == "u" and array.dtype.itemsize > 1  # torch hardly knows these
    if not array.dtype.isnative or unsigned:
        array = array.astype(np.int64 if unsigned else array.dtype.newbyteorder("="), order="C")
    elif not fits:
        array = np.array(array, order="C")
    return torch.from_numpy(array).to(dtype)


def _file_offset(array: np.ndarray[Any, Any]) -> int | None:
    """Where `array` begins in the file it maps, if slabs of it are pieces of that file."""
    mapped = getattr(array, "_mmap", None)
    if not isinstance(array, np.memmap) or mapped is None or array.filename is None:
        return None
    if array.mode == "c" or array.ndim < 2 or not array.size or not array[0, 0].flags.c_contiguous:
        return None
    if array.strides[1] != array[0, 0].nbytes or array.strides[0] < 0:
        return None
    base = np.frombuffer(mapped, np.uint8).ctypes.data
    # numpy maps from the page that the array's offset lies in; views keep that first offset.
    start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    return int(start + array.ctypes.data - base)
