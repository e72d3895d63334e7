"""Time steps at which a dataset can be cut without splitting chunks that are read whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import h5py
import numpy as np

from .virtual import plain_name, resolve_source
from .virtual_parts import selected_box

__all__ = ["StoredRows"]

_SMALL_ROW = 2**14  # bytes


class _Region(NamedTuple):
    """Time steps ``[t0, t1)`` of sequences ``[n0, n1)``, in chunks of `length` times `width`.

    A chunk starts at step `phase`.
    """

    t0: int
    t1: int
    n0: int
    n1: int
    length: int
    phase: int
    width: int


class StoredRows:
    """Rows of chunks along time of a dataset, or of a virtual dataset's sources.

    Chunks with long rows and no filters count as single time steps: any part can be read.

    Attributes
    ----------
    width
        Number of sequences in the widest chunk.

    Examples
    --------
    >>> import h5py, os, tempfile
    >>> with h5py.File(os.path.join(tempfile.mkdtemp(), "a.h5"), "w") as file:
    ...     x = file.create_dataset("x", (100, 8, 2), "f4", chunks=(30, 4, 2), compression="gzip")
    ...     rows = StoredRows.of(x)
    >>> [rows.boundary(t, 0, 8) for t in (0, 1, 30, 31, 95)]
    [0, 30, 30, 60, 100]
    """

    def __init__(self, regions: Iterable[_Region]) -> None:
        columns = np.array(list(regions), np.int64).reshape(-1, len(_Region._fields))
        self._regions = _Region(*columns.T)
        self.width: int = int(np.max(self._regions.width, initial=1))

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> StoredRows:
        """Return those of a dataset."""
        return cls(_regions(dataset))

    @classmethod
    def regular(cls, shape: tuple[int, ...], chunks: tuple[int, ...]) -> StoredRows:
        """Return those of an array in chunks that are read whole."""
        (steps, count), (length, width) = shape[:2], chunks[:2]
        return cls([_Region(0, steps, 0, count, length, 0, min(width, count))])

    def boundary(self, t: int, n0: int, n1: int) -> int:
        """Return the first time step from `t` on that cuts no chunk of ``[n0, n1)``."""
        r = self._regions
        while True:
            cut = (r.t0 < t) & (t < r.t1) & (r.n0 < n1) & (n0 < r.n1)
            ends = np.minimum(t + (r.phase - t) % r.length, r.t1)
            end = int(np.max(ends, where=cut, initial=t))
            if end == t:
                return t
            t = end


def _regions(dataset: h5py.Dataset) -> Iterator[_Region]:
    if dataset.ndim < 2:
        return
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            yield from _regions_of_source(dataset, source)
    elif dataset.chunks and _read_whole(dataset):
        (steps, count), (length, width) = dataset.shape[:2], dataset.chunks[:2]
        yield _Region(0, steps, 0, count, length, 0, min(width, count))


def _read_whole(dataset: h5py.Dataset) -> bool:
    """Return whether a part costs about as much as the chunk: compressed, or in small rows."""
    row = math.prod(dataset.chunks[1:]) * dataset.dtype.itemsize
    return row < _SMALL_ROW or bool(dataset.id.get_create_plist().get_nfilters())


def _regions_of_source(dataset: h5py.Dataset, source: Any) -> Iterator[_Region]:
    """Yield the chunks of a source at their places in the virtual dataset.

    Only for sources that are one box with time as the first axis: others may be cut anywhere.
    """
    path = resolve_source(dataset, plain_name(source.file_name))
    placed = selected_box(source.vspace, dataset.shape)
    if path is None or placed is None:
        return
    with h5py.File(path, "r") as file:
        found = file[plain_name(source.dset_name)]
        taken = selected_box(source.src_space, found.shape)
        if taken is None or taken[0][1] - taken[0][0] != placed[0][1] - placed[0][0]:
            return
        (t0, t1), (n0, n1) = placed[:2]
        shift = t0 - taken[0][0]
        for region in _regions(found):
            begin, end = max(region.t0 + shift, t0), min(region.t1 + shift, t1)
            yield region._replace(t0=begin, t1=end, n0=n0, n1=n1, phase=region.phase + shift)
