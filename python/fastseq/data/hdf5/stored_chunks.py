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
from .chunk_filters import Bytes, Filters, filtered_at_edges
from .types import stored_dtype

__all__ = ["LEAST_BYTES", "StoredChunks"]

Opened = Callable[[], AbstractContextManager[h5py.Dataset]]
"""Holds the dataset; no other thread uses its file meanwhile."""

_BATCH_BYTES = 2**20  # that are read while the file is held
_ROOM = 2**12  # that a chunk may have more than twice its size without filters
LEAST_BYTES = 2**14  # of a chunk; HDF5 is as fast with smaller ones


class _Stored(NamedTuple):
    """A chunk in its file, and where it starts in the dataset."""

    data: Bytes | None  # None: HDF5 has to read it
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
        self._edges = filtered_at_edges(dataset)

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> StoredChunks | None:
        """Return a dataset's chunks; None if HDF5 has to read them.

        That is so for chunks without filters, which cost nothing to read, for small chunks, for
        filters that are unknown here, for elements that HDF5 converts, such as integers of 24 bits,
        and if some chunks have never been written.
        """
        if not dataset.chunks or dataset.is_virtual or not dataset.size:
            return None
        stored = dataset.id.get_type()
        bits = stored_dtype(dataset) != dataset.dtype  # of one byte, as h5py reads them
        if not bits and stored != h5py.h5t.py_create(dataset.dtype, logical=True):
            return None
        if dataset.dtype.kind not in "iufb":
            return None
        nbytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
        filters = Filters.of(dataset, nbytes) if nbytes >= LEAST_BYTES else None
        if filters is None or dataset.id.get_num_chunks() < math.prod(_counts(dataset)):
            return None
        return cls(dataset, filters)

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
                while size < _BATCH_BYTES and (number := next(numbers, None)) is not None:
                    start = tuple(n * c for n, c in zip(number, self._chunk, strict=True))
                    batch.append(self._read(dataset, start))
                    size += len(batch[-1].data or b"")
            if not batch:
                return
            yield from batch

    def _read(self, dataset: h5py.Dataset, start: tuple[int, ...]) -> _Stored:
        room = np.empty(2 * self._filters.nbytes + _ROOM, np.uint8)  # for what is not forged
        try:
            skipped, data = dataset.id.read_direct_chunk(start, out=room)
        except (OSError, RuntimeError, ValueError):
            return _Stored(None, 0, start)
        at_edge = any(
            a + n > end for a, n, end in zip(start, self._chunk, dataset.shape, strict=True)
        )
        return _Stored(data, -1 if at_edge and not self._edges else skipped, start)

    def _place(
        self, chunk: _Stored, out: np.ndarray, box: tuple[slice, ...], opened: Opened
    ) -> None:
        """Decode a chunk into its place in `out`."""
        inner, target, there = [], [], []
        for start, size, part in zip(chunk.start, self._chunk, box, strict=True):
            first, last = max(start, part.start), min(start + size, part.stop)
            inner.append(slice(first - start, last - start))
            target.append(slice(first - part.start, last - part.start))
            there.append(slice(first, last))
        place = out[tuple(target)]
        reason = "it cannot be read"
        if chunk.data is not None:
            whole = place.shape == self._chunk and place.dtype == self._dtype
            into = place.reshape(-1).view(np.uint8) if whole and place.flags.c_contiguous else None
            try:
                data = self._filters.undo(chunk.data, chunk.skipped, into)
            except ValueError as error:  # it may be HDF5 that is right
                reason = str(error)
            else:
                if len(data) != self._filters.nbytes:
                    wanted = f"{len(data)} bytes instead of {self._filters.nbytes}"
                    raise OSError(f"chunk {chunk.start} has {wanted}")
                if data is not into:
                    place[...] = np.frombuffer(data, self._dtype).reshape(self._chunk)[tuple(inner)]
                return
        found = np.empty(place.shape, self._dtype)
        try:
            with opened() as dataset:
                dataset.read_direct(found, tuple(there))
        except (OSError, RuntimeError) as error:
            raise OSError(f"chunk {chunk.start}: {reason} ({error})") from error
        place[...] = found


def _counts(dataset: h5py.Dataset) -> list[int]:
    """Return the numbers of a dataset's chunks along each axis."""
    return [-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)]
