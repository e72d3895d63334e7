"""Targets of predictions: arrays, parts of files, lists of arrays."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

import h5py
import numpy as np
import torch
from torch import Tensor

from .._util.tree import tree_leaves
from ..data.chunk_plan import Chunk
from ..data.hdf5 import LazyDataset
from ..data.hdf5.chunk_writing import ChunkWriter
from ..data.hdf5.handles import location
from ..data.hdf5.memory_map import element_offset
from ..data.hdf5.names import natural_key
from ..data.mapped_arrays import file_offset, is_replaced, map_of
from ..data.sequences import Sequences

__all__ = [
    "ArrayTarget",
    "FileTarget",
    "Place",
    "RaggedTarget",
    "Target",
    "as_numpy",
    "check_destination",
    "forget_buffered",
    "members",
    "out_keys",
    "place_of",
]


def as_numpy(a: Tensor) -> np.ndarray:
    """View a tensor as an array; bfloat16, which NumPy lacks, becomes float32."""
    a = a.detach().cpu()
    return (a.float() if a.dtype == torch.bfloat16 else a).numpy()


def members(name: str, part: object, data: Sequences) -> Any:
    """Return a group's datasets in the order of the sequences; anything else unchanged.

    Raises
    ------
    ValueError
        The sequences are from a group, too, with other names.
    """
    if not isinstance(part, h5py.Group):
        return part
    if not part:
        raise ValueError(f"{name} is a group of a file that has been closed; open it for writing")
    keys = sorted(part, key=natural_key)
    named = [source.keys for source in tree_leaves(data.x) if getattr(source, "keys", None)]
    keys = named[0] if named and set(named[0]) == set(keys) else keys  # a table's own order
    if named and keys != named[0]:
        missing = sorted(set(named[0]) ^ set(keys), key=natural_key)[:3]
        raise ValueError(
            f"{name} must be a group with a dataset for each sequence, under the same names as in "
            f"x; only one of them has {', '.join(missing)}"
        )
    return [part[key] for key in keys]


class Target(Protocol):
    """Takes the outputs of chunks."""

    def write(self, chunk: Chunk, values: Tensor) -> None:
        """Write ``(S, B, …)`` to steps ``[t0, t1)`` of sequences ``[n0, n1)``."""
        ...

    def close(self) -> None:
        """Make all that was written visible to other readers."""
        ...


class ArrayTarget:
    """Writes to anything that supports assignment to slices, ``(T, N, …)``.

    Chunks of a compressed dataset are compressed while the model works on the next steps.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._chunks: ChunkWriter | None = None
        if isinstance(array, LazyDataset):  # opened here, to fail before any work
            self._chunks = ChunkWriter(partial(array.opened, writable=True))
        elif isinstance(array, h5py.Dataset):
            self._chunks = ChunkWriter(partial(nullcontext, array))

    def write(self, chunk: Chunk, values: Tensor) -> None:
        """Write ``(S, B, …)`` to the chunk's steps and sequences."""
        box = slice(chunk.t0, chunk.t1), slice(chunk.n0, chunk.n1)
        if self._chunks is not None and self._chunks.threaded:
            self._chunks.write(self._selection(box), as_numpy(values))
        else:
            self._array[box] = values if isinstance(self._array, Tensor) else as_numpy(values)

    def _selection(self, box: tuple[slice, slice]) -> tuple[slice, ...]:
        """Return a box's slices of the whole dataset."""
        if isinstance(self._array, LazyDataset):
            part: LazyDataset = self._array[box]
            return part.selection()
        return *box, *(slice(0, n) for n in self._array.shape[2:])

    def close(self) -> None:
        """Flush and release files; arrays need nothing."""
        try:
            if self._chunks is not None:
                self._chunks.close()
            _flush([self._array])
        finally:
            if isinstance(self._array, LazyDataset):
                self._array.release()


class RaggedTarget:
    """Writes to one array ``(T_i, …)`` for each sequence.

    Parameters
    ----------
    arrays
        In the caller's order.
    lengths
        T_i in the order of the pass.
    order
        For each sequence of the pass, its index in `arrays`.
    """

    def __init__(self, arrays: Sequence[Any], lengths: np.ndarray, order: np.ndarray) -> None:
        self._arrays = arrays
        self._lengths = lengths
        self._order = order

    def write(self, chunk: Chunk, values: Tensor) -> None:
        """Write ``(S, B, …)``, each sequence up to its length."""
        host = None
        for column, n in enumerate(range(chunk.n0, chunk.n1)):
            end = min(int(self._lengths[n]), chunk.t1)
            if end <= chunk.t0:
                continue
            array = self._arrays[int(self._order[n])]
            if isinstance(array, Tensor):
                array[chunk.t0 : end] = values[: end - chunk.t0, column]
            else:
                host = as_numpy(values) if host is None else host
                array[chunk.t0 : end] = host[: end - chunk.t0, column]

    def close(self) -> None:
        """Flush files."""
        _flush(self._arrays)


def _flush(arrays: Sequence[object]) -> None:
    """Pass HDF5's buffers to the operating system, where other processes see them."""
    for file in {a.file for a in arrays if isinstance(a, h5py.Dataset)}:
        file.flush()


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an array ``(T, N, …)`` is in a file: offset and strides, in bytes."""

    path: str
    offset: int
    step: int
    sequence: int
    dtype: str
    bytes: int

    def same_layout(self, other: Place) -> bool:
        """Whether the other one differs only in the path."""
        return dataclasses.replace(self, path=other.path) == other


def place_of(array: object) -> Place | None:
    """Return where an array is in a file, or None if it cannot be written there directly.

    Memory maps can, and contiguous HDF5 datasets that are larger than the buffer through which HDF5
    reads small pieces (see `forget_buffered`) and not kept in HDF5's own pages or memory. Such a
    dataset is allocated here if necessary.
    """
    if isinstance(array, h5py.Dataset):
        plist = array.file.id.get_access_plist()
        place = location(array) if array.file.driver == "sec2" else None
        if place is None or plist.get_page_buffer_size()[0]:
            return None
        if array.chunks is not None or array.nbytes <= plist.get_sieve_buf_size():
            return None
        if array.id.get_storage_size() == 0 and not (array.is_virtual or array.external):
            array[(0,) * array.ndim] = 0
        offset = element_offset(array)
        array.file.flush()
        path, step = place[0], array.nbytes // array.shape[0]
        sequence = step // array.shape[1]
    elif isinstance(array, np.memmap) and array.size and array[0].flags.c_contiguous:
        offset = file_offset(array)
        path, (step, sequence) = str(array.filename), array.strides[:2]
    else:
        return None
    if offset is None:
        return None
    return Place(os.path.abspath(path), offset, step, sequence, array.dtype.str, array.nbytes)


class FileTarget:
    """Writes directly to an array's place in a file; several processes can write their own parts.

    A full disk is an error here; under a memory map it would be a signal.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._file: int | None = os.open(place.path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, chunk: Chunk, values: Tensor) -> None:
        """Write ``(S, B, …)`` to the chunk's steps and sequences."""
        place = self._place
        array = np.ascontiguousarray(as_numpy(values), np.dtype(place.dtype))
        begin = place.offset + chunk.t0 * place.step + chunk.n0 * place.sequence
        if array[:1].nbytes == place.step:
            self._put(array, begin)  # all sequences: one piece of the file
            return
        for index, row in enumerate(array):
            self._put(row, begin + index * place.step)

    def _put(self, piece: np.ndarray, offset: int) -> None:
        assert self._file is not None
        view = piece.reshape(-1).view(np.uint8).data
        while view:
            count = os.pwrite(self._file, view, offset)
            view = view[count:]
            offset += count

    def mark(self, token: bytes) -> None:
        """Write a token at the start of the array."""
        assert self._file is not None
        os.pwrite(self._file, token, self._place.offset)

    def marked(self, token: bytes) -> bool:
        """Whether the token is there: this is the file that was marked."""
        assert self._file is not None
        return os.pread(self._file, len(token), self._place.offset) == token

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def check_destination(name: str, target: Any, shape: tuple[int, ...], a: Tensor) -> None:
    """Raise unless outputs like `a` can be written to `target`, which must have this shape."""
    if isinstance(target, h5py.Dataset) and not target:
        raise ValueError(f"{name} is a dataset of a file that has been closed; open it for writing")
    if tuple(getattr(target, "shape", ())) != shape:
        got = tuple(target.shape) if hasattr(target, "shape") else type(target).__name__
        raise ValueError(f"{name} must have the shape {shape}, got {got}")
    if not _writable(target):
        raise ValueError(f"{name} is read-only; pass an array that can be written to")
    if is_replaced(target):
        raise ValueError(
            f"{name} is a map of a file that is gone, or that another one has replaced under its "
            "name: map it again"
        )
    if isinstance(target, Tensor):
        fits = torch.can_cast(a.dtype, target.dtype) and not target.is_complex()
    else:
        stored = np.dtype(target.dtype)
        fits = np.can_cast(as_numpy(a[:0]).dtype, stored, "safe") and stored.kind in "biuf"
    if not fits:
        raise TypeError(f"{name} must hold {a.dtype}, got {target.dtype}")


def _writable(target: object) -> bool:
    if isinstance(target, np.ndarray):
        return target.flags.writeable
    if isinstance(target, h5py.Dataset):
        return bool(target.file.mode != "r")
    if isinstance(target, LazyDataset):
        return target.mode != "r"
    return hasattr(target, "__setitem__")


def out_keys(part: object) -> list[Hashable]:
    """Return what is the same for two outputs that begin at the same place, in memory or a file.

    Examples
    --------
    >>> a = np.zeros(3)
    >>> out_keys(a) == out_keys(a[:2]), out_keys(a) == out_keys(a[1:])
    (True, False)
    """
    if isinstance(part, list | tuple):
        return [key for one in part for key in out_keys(one)]
    if isinstance(part, LazyDataset):
        return [(part.path, part.name, part.starts)]
    if isinstance(part, h5py.Dataset):
        return [(os.path.abspath(part.file.filename), part.name, (0,) * part.ndim)]
    if isinstance(part, np.ndarray):
        mapped, offset = map_of(part), file_offset(part)
        if mapped is not None and offset is not None:
            return [(os.path.realpath(str(mapped.filename)), offset)]
        return [part.ctypes.data] if part.size else []
    if isinstance(part, Tensor):
        return [part.data_ptr()] if part.numel() else []
    return [id(part)]


def forget_buffered(array: object) -> None:
    """Make h5py read again what was written directly to its file.

    HDF5 reads small pieces of a contiguous dataset through a buffer that starts at the place it
    was asked for, and keeps it. No call drops the buffer. But of two reads, at the end and at the
    start of a dataset larger than the buffer, at least one is outside of it, and moves it.
    """
    if isinstance(array, h5py.Dataset):
        array[tuple(n - 1 for n in array.shape)]
        array[(0,) * array.ndim]
