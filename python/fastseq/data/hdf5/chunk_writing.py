"""Chunks of HDF5 datasets, gzip-compressed outside of HDF5 in several threads."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from types import TracebackType

import deflate
import h5py
import numpy as np

from ... import _reader
from ..._util.threads import Worker, cores
from .chunk_filters import Bytes, filtered_at_edges
from .stored_chunks import LEAST_BYTES, Opened

__all__ = ["ChunkWriter"]

Box = tuple[slice, ...]

_PENDING_BYTES = 2**25  # of chunks that are being compressed


class ChunkWriter:
    """Writes boxes to a dataset, as h5py does, but compresses in several threads.

    Chunks that a box covers are compressed by threads, and written when later boxes are, or on
    `close`, so that the caller can prepare the next box meanwhile. HDF5 writes chunks that it
    covers in part, and all of datasets of small chunks, without gzip, or with other filters.

    Parameters
    ----------
    opened
        Returns what holds the dataset while it is written to.

    Attributes
    ----------
    threaded
        Whether chunks are compressed here; if not, HDF5 writes all boxes.

    Examples
    --------
    >>> from contextlib import nullcontext
    >>> with h5py.File.in_memory() as file:
    ...     x = file.create_dataset("x", (4, 2000), "f8", chunks=(2, 2000), compression="gzip")
    ...     with ChunkWriter(lambda: nullcontext(x)) as writer:
    ...         writer.write((slice(0, 3), slice(0, 2000)), np.ones((3, 2000)))
    ...     x[:, 2].tolist()
    [1.0, 1.0, 1.0, 0.0]
    """

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        with opened() as dataset:
            self._filters = _Filters.of(dataset)
            self.threaded = self._filters is not None
        self._workers: Worker | None = None
        self._pending: deque[tuple[tuple[int, ...], Future[Bytes]]] = deque()

    def write(self, box: Box, values: np.ndarray) -> None:
        """Write an array to a box of the dataset of its shape.

        Raises
        ------
        OSError
            The disk is full, or cannot be written.
        """
        with self._opened() as dataset:
            covered = None
            if self._filters is not None and self._filters.take(values.dtype):
                covered = self._filters.covered(box, dataset)
            if covered is None:
                self._write_by_hdf5(dataset, box, values)
                return
            for part in _around(box, covered):
                self._write_by_hdf5(dataset, part, values[_within(part, box)])
            self._compress(dataset, covered, values[_within(covered, box)])

    def close(self) -> None:
        """Write what is left."""
        try:
            if self._pending:
                with self._opened() as dataset:
                    self._finish(dataset, 0)
        finally:
            self._stop()

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._stop()

    def _write_by_hdf5(self, dataset: h5py.Dataset, box: Box, values: np.ndarray) -> None:
        self._finish(dataset, 0)  # it may read a chunk that was written before
        dataset[box] = values

    def _compress(self, dataset: h5py.Dataset, box: Box, values: np.ndarray) -> None:
        filters = self._filters
        assert filters is not None
        if self._workers is None:
            self._workers = Worker(cores(), daemon=True)
        for start in itertools.product(
            *(range(part.start, part.stop, n) for part, n in zip(box, filters.chunk, strict=True))
        ):
            there = tuple(
                slice(a - part.start, a - part.start + n)
                for a, n, part in zip(start, filters.chunk, box, strict=True)
            )
            whole = filters.filled(values[there])
            self._pending.append((start, self._workers.submit(filters.apply, whole)))
            self._finish(dataset, _PENDING_BYTES // filters.nbytes)

    def _finish(self, dataset: h5py.Dataset, left: int) -> None:
        """Write compressed chunks until only some are left."""
        while len(self._pending) > left:
            start, data = self._pending.popleft()
            # HDF5 forgets what its cache has of the chunk.
            dataset.id.write_direct_chunk(start, data.result())

    def _stop(self) -> None:
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()
        if self._workers is not None:
            self._workers.close()
            self._workers = None


@dataclasses.dataclass
class _Filters:
    """A dataset's chunks, and the filters that are applied to them: shuffle, gzip, checksum."""

    chunk: tuple[int, ...]
    dtype: np.dtype
    fill: object
    shuffle: bool
    level: int
    checksum: bool
    edges: bool  # also to chunks that the dataset's edge cuts

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> _Filters | None:
        """Return a dataset's filters; None if HDF5 has to write it."""
        if not dataset.chunks or not dataset.size or dataset.file.driver == "mpio":
            return None
        dtype = dataset.dtype
        if dtype.kind not in "iufb" or math.prod(dataset.chunks) * dtype.itemsize < LEAST_BYTES:
            return None
        if dataset.id.get_type() != h5py.h5t.py_create(dtype, logical=True):
            return None  # such as integers of 24 bits
        plist = dataset.id.get_create_plist()
        found = [plist.get_filter(number) for number in range(plist.get_nfilters())]
        codes = [code for code, *_ in found]
        order = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32]
        if codes != [code for code in order if code in codes] or order[1] not in codes:
            return None
        parameters = {code: values for code, _, values, _ in found}
        if order[0] in codes and parameters[order[0]] != (dtype.itemsize,):
            return None
        return cls(
            dataset.chunks, dtype, dataset.fillvalue, order[0] in codes,
            parameters[order[1]][0], order[2] in codes, filtered_at_edges(dataset),
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        return math.prod(self.chunk) * self.dtype.itemsize

    def take(self, dtype: np.dtype) -> bool:
        """Whether elements can be stored here without HDF5, which clips what does not fit."""
        kinds = "b" if self.dtype.kind == "b" else "iuf"
        return dtype.kind in kinds and np.can_cast(dtype, self.dtype, "safe")

    def covered(self, box: Box, dataset: h5py.Dataset) -> Box | None:
        """Return the part of a box that is made of whole chunks, if there is one."""
        found = []
        for part, n, length in zip(box, self.chunk, dataset.shape, strict=True):
            at_edge = self.edges and part.stop == length
            a, b = -(-part.start // n) * n, part.stop if at_edge else part.stop // n * n
            if a >= b:
                return None
            found.append(slice(a, b))
        return tuple(found)

    def filled(self, values: np.ndarray) -> np.ndarray:
        """Return a copy of a chunk's elements, filled up to the size of a chunk."""
        whole = np.empty(self.chunk, self.dtype)
        if values.shape != self.chunk:
            whole[...] = self.fill
        whole[tuple(map(slice, values.shape))] = values
        return whole

    def apply(self, chunk: np.ndarray) -> Bytes:
        """Return a chunk as it is stored."""
        data = chunk.reshape(-1).view(np.uint8)
        if self.shuffle:
            shuffled = np.empty_like(data)
            # To shuffle is to transpose the bytes, and so is to undo it.
            _reader.unshuffle(data, chunk.size, shuffled)
            data = shuffled
        packed = bytes(deflate.zlib_compress(data, self.level))
        if self.checksum:
            packed += struct.pack("<I", _reader.fletcher32(packed))
        return packed


def _within(part: Box, box: Box) -> Box:
    """Return a part of a box relative to the box's start."""
    return tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))


def _around(box: Box, inner: Box) -> Iterator[Box]:
    """Cut what is in a box, but not in an inner one, into boxes."""
    left = list(box)
    for axis, (outer, core) in enumerate(zip(box, inner, strict=True)):
        for part in (slice(outer.start, core.start), slice(core.stop, outer.stop)):
            if part.start < part.stop:
                left[axis] = part
                yield tuple(left)
        left[axis] = core
