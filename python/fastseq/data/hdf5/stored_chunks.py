"""Compressed chunks of HDF5 datasets, decoded outside of HDF5 in several threads."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import h5py
import numpy as np

from ..._util.threads import call_all
from .chunk_filters import Bytes, Filters
from .types import stored_dtype

__all__ = ["StoredChunks"]

Opened = Callable[[], AbstractContextManager[h5py.Dataset]]
"""Holds the dataset; no other thread uses its file meanwhile."""

_BATCH_BYTES = 2**20  # that are read while the file is held
_ROOM = 2**16  # that a chunk may have more than without filters


class _Stored(NamedTuple):
    """A chunk in its file, and where it starts in the dataset."""

    data: Bytes | None  # None: it was never written
    skipped: int  # bit i: it was written without filter i
    start: tuple[int, ...]


class StoredChunks:
    """The chunks of a dataset whose filters are undone here.

    Parameters
    ----------
    dataset
        An open dataset.
    filters
        Its filters.
    """

    def __init__(self, dataset: h5py.Dataset, filters: Filters) -> None:
        self._filters = filters
        self._dtype = dataset.dtype
        self._chunk: tuple[int, ...] = dataset.chunks
        self._fill = dataset.fillvalue

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> StoredChunks | None:
        """Return a dataset's chunks; None if HDF5 has to read them.

        That is so for chunks without filters, which cost nothing to read, for filters that are
        unknown here, and for elements that HDF5 converts, such as integers of 24 bits.
        """
        if not dataset.chunks or dataset.is_virtual or not dataset.size:
            return None
        stored = dataset.id.get_type()
        bits = stored_dtype(dataset) != dataset.dtype  # of one byte, as h5py reads them
        if not bits and stored != h5py.h5t.py_create(dataset.dtype, logical=True):
            return None
        if dataset.dtype.hasobject or dataset.dtype.kind not in "iufb":
            return None
        filters = Filters.of(dataset, math.prod(dataset.chunks) * dataset.dtype.itemsize)
        return None if filters is None else cls(dataset, filters)

    def nbytes(self, box: tuple[slice, ...]) -> int:
        """Return how many bytes have to be decoded for a box."""
        return math.prod(map(len, self._numbers(box))) * self._filters.nbytes

    def read_into(
        self,
        out: np.ndarray,
        box: tuple[slice, ...],
        opened: Opened,
        threads: Callable[[], int],
    ) -> None:
        """Read a box of the dataset into an array of its shape and dtype.

        Parameters
        ----------
        out
            The array.
        box
            Slices of the dataset.
        opened
            Returns what holds the dataset while stored bytes are read.
        threads
            Returns how many chunks may be decoded at a time; asked again before each.

        Raises
        ------
        OSError, RuntimeError
            A chunk cannot be read.
        """
        calls = (
            functools.partial(self._place, chunk, out, box, opened)
            for chunk in self._stored(box, opened)
        )
        call_all(calls, math.prod(map(len, self._numbers(box))), threads)

    def _numbers(self, box: tuple[slice, ...]) -> list[range]:
        """Return the numbers of a box's chunks along each axis."""
        return [
            range(part.start // size, -(-part.stop // size))
            for part, size in zip(box, self._chunk, strict=True)
        ]

    def _stored(self, box: tuple[slice, ...], opened: Opened) -> Iterator[_Stored]:
        """Yield a box's chunks, reading some at a time while the file is held."""
        numbers = itertools.product(*self._numbers(box))
        while True:
            batch: list[_Stored] = []
            size = 0
            with opened() as dataset:
                limit = dataset.file.id.get_filesize()
                while size < _BATCH_BYTES and (number := next(numbers, None)) is not None:
                    start = tuple(n * c for n, c in zip(number, self._chunk, strict=True))
                    batch.append(self._read(dataset, start, limit))
                    size += len(batch[-1].data or b"")
            if not batch:
                return
            yield from batch

    def _read(self, dataset: h5py.Dataset, start: tuple[int, ...], limit: int) -> _Stored:
        info = dataset.id.get_chunk_info_by_coord(start)
        if info.byte_offset is None:
            return _Stored(None, 0, start)
        if info.size > min(2 * self._filters.nbytes + _ROOM, limit):
            raise OSError(f"chunk {start} has an impossible size, {info.size} bytes")
        skipped, data = dataset.id.read_direct_chunk(start)
        return _Stored(data, skipped, start)

    def _place(
        self, chunk: _Stored, out: np.ndarray, box: tuple[slice, ...], opened: Opened
    ) -> None:
        """Decode a chunk into its place in `out`."""
        source, target = [], []
        for start, size, part in zip(chunk.start, self._chunk, box, strict=True):
            first, last = max(start, part.start), min(start + size, part.stop)
            source.append(slice(first - start, last - start))
            target.append(slice(first - part.start, last - part.start))
        place = out[tuple(target)]
        if chunk.data is None:
            place[...] = self._fill
            return
        try:
            data = self._filters.undo(chunk.data, chunk.skipped)
        except ValueError as error:
            if len(chunk.data) != self._filters.nbytes:
                raise OSError(f"chunk {chunk.start}: {error}") from error
            # Perhaps it has no filters, as chunks at an edge may; only HDF5 knows.
            data = self._read_by_hdf5(chunk.start, opened)
        place[...] = np.frombuffer(data, self._dtype).reshape(self._chunk)[tuple(source)]

    def _read_by_hdf5(self, start: tuple[int, ...], opened: Opened) -> Bytes:
        """Return the bytes of a chunk; those past the dataset's end are 0."""
        found = np.zeros(self._chunk, self._dtype)
        with opened() as dataset:
            ends = [
                min(a + n, end) for a, n, end in zip(start, self._chunk, dataset.shape, strict=True)
            ]
            there = tuple(map(slice, start, ends))
            here = tuple(slice(end - a) for a, end in zip(start, ends, strict=True))
            dataset.read_direct(found, there, here)
        return found.view(np.uint8).reshape(-1)
