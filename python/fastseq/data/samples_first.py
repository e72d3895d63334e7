"""Samples-first arrays and files ``(N, T, …)``, read as time-major ones without a copy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .hdf5 import LazyDataset
from .mapped_arrays import file_offset, map_of, rows_in_one_piece
from .sliceable import Sliceable

__all__ = ["LastSteps", "SamplesFirst", "fill_missing"]

_WINDOW_BYTES = 2**25  # of samples that are read together, and shuffled among each other
_PIECES = 16  # of a window, from random places
_LARGE_BYTES = 2**16  # of a sample: from here on, random places of a file are read as fast


class SamplesFirst:
    """Samples ``(N, T, …)`` seen as an array ``(T, M, …)`` of M of them, in an order that changes.

    Nothing is copied, and of files nothing is read, until it is sliced.

    Parameters
    ----------
    array
        ``(N, …)``: an array, a memory map, a dataset, anything that can be sliced.
    index
        The samples that count, ``(M,)``; None: all. In increasing order unless `jumps`.
    steps
        The shape of a sample, ``(T, F, …)``; None: the array's own.
    center
        What to put in place of missing values, ``(F, …)``, in samples of which anything is known;
        None: they stay.

    Attributes
    ----------
    shape, dtype
        ``(T, M, …)``, and the stored dtype.
    jumps
        Whether any sample can be read by itself; otherwise windows of consecutive ones are read.

    Examples
    --------
    >>> samples = SamplesFirst(np.arange(6).reshape(3, 2))
    >>> samples[:, :].tolist(), samples.like(index=np.array([2]))[:, :].tolist()
    ([[0, 2, 4], [1, 3, 5]], [[4], [5]])
    """

    def __init__(
        self,
        array: Sliceable,
        index: np.ndarray | None = None,
        *,
        steps: tuple[int, ...] | None = None,
        center: np.ndarray | None = None,
    ) -> None:
        self.sample: tuple[int, ...] = tuple(array.shape[1:]) if steps is None else steps
        if isinstance(array, np.ndarray):
            array = array.reshape(-1, *self.sample)
        self.array: Any = array
        self.index = index
        self.center = center
        self.count: int = array.shape[0] if index is None else len(index)
        self.shape = (self.sample[0], self.count, *self.sample[1:])
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.places: np.ndarray | None = None  # the order; None: that of `index`
        self.in_memory: bool = isinstance(array, np.ndarray) and map_of(array) is None
        in_file = isinstance(array, np.ndarray) and self.rows_in_file() is not None
        self._by_rows = (self.in_memory or in_file) and center is None
        self.jumps: bool = self._by_rows and (self.in_memory or self._bytes >= _LARGE_BYTES)
        self._chunk = 1 if self.jumps else _chunk_length(array)
        self._windows: dict[int, np.ndarray] = {}

    def rows_in_file(self) -> tuple[str, int] | None:
        """Return file and offset of a memory map whose samples are contiguous; None: it is not."""
        offset, mapped = file_offset(self.array), map_of(self.array)
        return None if offset is None or mapped is None else (str(mapped.filename), offset)

    @property
    def contiguous(self) -> bool:
        """Whether each sample of an array in memory is contiguous."""
        return rows_in_one_piece(self.array)

    def __len__(self) -> int:
        return self.shape[0]

    def like(self, **changes: Any) -> SamplesFirst:
        """Return the same samples with another index, shape or filling, in their first order."""
        options = {"index": self.index, "steps": self.sample, "center": self.center, **changes}
        return SamplesFirst(self.array, **options)

    def part(self, begin: int, end: int) -> SamplesFirst:
        """Return samples ``[begin, end)``, to be read in order."""
        if self.index is None and self.in_memory:
            return SamplesFirst(self.array[begin:end], steps=self.sample, center=self.center)
        index = np.arange(self.count) if self.index is None else self.index
        found = self.like(index=index[begin:end])
        found.jumps = self._by_rows  # from one sample to the next
        return found

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return a random order, ``(M,)``.

        Where windows are read, it is random within windows, each made of pieces from random places.
        """
        window, count = self.window, self.count
        if self.jumps or window >= count:
            return torch.randperm(count, generator=generator)
        size = self.piece
        begins = torch.randperm(-(-count // size), generator=generator) * size
        order = torch.cat([torch.arange(i, min(i + size, count)) for i in begins.tolist()])
        parts = [order[i : i + window] for i in range(0, count, window)]
        return torch.cat([p[torch.randperm(len(p), generator=generator)] for p in parts])

    def reorder(self, order: Tensor) -> None:
        """Put the samples in another order, relative to `index`; see `draw`."""
        self.places = order.numpy()
        self.close()

    def numbers(self, n0: int, n1: int) -> np.ndarray | slice:
        """Return which samples of the array are at places ``[n0, n1)``."""
        if self.places is None:
            return slice(n0, n1) if self.index is None else self.index[n0:n1]
        places = self.places[n0:n1]
        return places if self.index is None else self.index[places]

    @property
    def window(self) -> int:
        """How many samples are read together."""
        return max(_WINDOW_BYTES // self._bytes, 1)

    @property
    def _bytes(self) -> int:
        """Bytes of a sample."""
        return max(math.prod(self.sample) * self.dtype.itemsize, 1)

    @property
    def piece(self) -> int:
        """How many consecutive samples stay in one window: whole chunks of a file, if they fit."""
        stored = self._chunk
        target = max(self.window // _PIECES, 1)
        return target if stored > self.window else stored * max(target // stored, 1)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        steps, places = index
        n0, n1, _ = places.indices(self.count)
        if self.jumps:
            found = self.array[:, steps][self.numbers(n0, n1)]
        else:
            found = self._from_windows(n0, n1, steps)
        turned: np.ndarray = found.swapaxes(0, 1)
        return turned

    def _from_windows(self, n0: int, n1: int, steps: slice) -> np.ndarray:
        """Return the samples at places ``[n0, n1)``; their windows are kept for other steps."""
        size = self.window
        wanted = range(n0 // size, (n1 - 1) // size + 1) if n1 > n0 else range(0)
        self._windows = {i: kept for i, kept in self._windows.items() if i in wanted}
        parts = [np.empty((0, *self.sample), self.dtype)[:, steps]]
        for number in wanted:
            begin = number * size
            if number not in self._windows:
                self._windows[number] = self._read(begin, min(begin + size, self.count))
            parts.append(self._windows[number][max(n0 - begin, 0) : n1 - begin, steps])
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    def _read(self, n0: int, n1: int) -> np.ndarray:
        """Read the samples at places ``[n0, n1)``: runs of the array that are not much longer."""
        numbers = self.numbers(n0, n1)
        if isinstance(numbers, slice):
            numbers = np.arange(n0, n1)
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        found = np.empty((n1 - n0, *self.sample), self.dtype)
        begin, most = 0, max(2 * self.piece, 1)
        while begin < len(numbers):
            first = numbers[begin]
            apart = np.flatnonzero(np.diff(numbers[begin : begin + most]) > self.piece)
            end = begin + int(apart[0]) + 1 if len(apart) else len(numbers)
            end = min(end, begin + int(np.searchsorted(numbers[begin:], first + most)))
            read = np.asarray(self.array[int(first) : int(numbers[end - 1]) + 1])
            found[order[begin:end]] = read.reshape(-1, *self.sample)[numbers[begin:end] - first]
            begin = end
        if self.center is not None:
            fill_missing(found, self.center)
        return found

    def close(self) -> None:
        """Free what has been read."""
        self._windows = {}


class LastSteps:
    """Numbers ``(T, N)`` that are 0 before the last step, without the memory for them.

    Parameters
    ----------
    last
        Those of the last step, ``(N,)``; read when it is sliced.
    steps
        T.

    Examples
    --------
    >>> LastSteps(torch.tensor([5.0, 6.0]), 3)[1:3, 0:2]
    tensor([[0., 0.],
            [5., 6.]])
    """

    def __init__(self, last: Tensor, steps: int) -> None:
        self.last = last
        self.shape: tuple[int, int] = steps, len(last)
        self.dtype: np.dtype[Any] = last.numpy().dtype

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor:
        begin, end, _ = index[0].indices(self.shape[0])
        last = self.last[index[1]]
        found = last.new_zeros(end - begin, len(last))
        if end == self.shape[0] and end > begin:
            found[-1] = last
        return found


def _chunk_length(array: Any) -> int:
    """Return how many samples are stored, and decompressed, together."""
    if isinstance(array, LazyDataset):
        with array.opened() as dataset:
            chunks = dataset.chunks
    else:
        chunks = getattr(array, "chunks", None)
    return max(int(chunks[0]), 1) if chunks else 1


def fill_missing(samples: np.ndarray, center: np.ndarray) -> None:
    """Put `center` in place of NaN and infinities, in samples ``(N, T, …)`` that have others."""
    if samples.dtype.kind != "f":
        return
    missing = ~np.isfinite(samples)
    missing &= ~missing.reshape(len(samples), -1).all(1).reshape(-1, *(1,) * (samples.ndim - 1))
    np.copyto(samples, center.astype(samples.dtype), where=missing)
