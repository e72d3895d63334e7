"""Contiguous and compressed datasets written tile by tile from many files."""

from __future__ import annotations

import itertools
import math
import os
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from types import EllipsisType, TracebackType

import h5py
import numpy as np

from .chunk_writing import ChunkWriter
from .compression import Compression, layout
from .concat_plan import Joined, Shape, Stored
from .open_file import damage

__all__ = ["compress_datasets", "copy_datasets", "create", "tile_shape"]

_TILE_BYTES = 4 * 2**20  # stays in the cache between reading and writing
_CHUNKS_BYTES = 32 * 2**20  # tiles of whole chunks: longer runs in the target
_OPEN_FILES = 64


def create(file: h5py.File, joined: Joined, compression: Compression) -> None:
    """Create a dataset in the file, contiguous or compressed, without writing its elements."""
    chunked = layout(joined.shape, joined.dtype.itemsize, compression)
    if chunked:
        file.create_dataset(joined.name, joined.shape, joined.dtype, **chunked)
        return
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    h5py.h5d.create(
        file.id, joined.name.encode(), h5py.h5t.py_create(joined.dtype, logical=True),
        h5py.h5s.create_simple(joined.shape) if joined.shape else h5py.h5s.create(h5py.h5s.SCALAR),
        plist, links,
    )  # fmt: skip


def copy_datasets(path: str, datasets: Sequence[tuple[Joined, int]]) -> Iterator[int]:
    """Write the elements of datasets made by `create`, and yield the bytes written each time.

    Parameters
    ----------
    path
        The file, closed.
    datasets
        What to write, and the offset of each.
    """
    memory = np.empty(_CHUNKS_BYTES, np.uint8)
    with _Sources() as sources, open(path, "r+b", buffering=0) as file:
        for joined, offset in datasets:
            for box, pieces in _tiles(joined):
                shape = tuple(b - a for a, b in box)
                size = math.prod(shape) * joined.dtype.itemsize
                tile = memory[:size].view(joined.dtype).reshape(shape)
                for part, start in pieces:
                    _take(sources, part, start, box, tile)
                _write(file.fileno(), offset, joined.shape, box, tile)
                yield tile.nbytes


def compress_datasets(file: h5py.File, datasets: Sequence[Joined]) -> Iterator[int]:
    """Write the elements of compressed datasets, and yield the bytes written each time.

    Parameters
    ----------
    file
        The file, open for writing.
    datasets
        What to write.
    """
    memory = np.empty(_CHUNKS_BYTES, np.uint8)
    with _Sources() as sources:
        for joined in datasets:
            target = file[joined.name]
            with ChunkWriter(partial(nullcontext, target)) as writer:
                for box in _chunked_tiles(joined, target.chunks):
                    shape = tuple(b - a for a, b in box)
                    size = math.prod(shape) * joined.dtype.itemsize
                    tile = memory[:size].view(joined.dtype).reshape(shape)
                    for part, start in joined.pieces:
                        _take(sources, part, start, box, tile)
                    writer.write(tuple(slice(a, b) for a, b in box), tile)
                    yield tile.nbytes


Box = tuple[tuple[int, int], ...]


def _chunked_tiles(joined: Joined, chunk: Shape) -> Iterator[Box]:
    """Cut a dataset into boxes of whole chunks of it that fit into memory.

    They span as much as fits of the sources' chunks, which are decompressed for each tile.
    """
    shape, itemsize = joined.shape, joined.dtype.itemsize
    sources = [part.chunks for part, _ in joined.pieces if part.chunks]
    limit = _CHUNKS_BYTES if sources else _TILE_BYTES
    sizes = [max(column) for column in zip(chunk, *sources, strict=True)]
    counts = [-(-size // n) for size, n in zip(sizes, chunk, strict=True)]
    while math.prod(counts) > max(limit // (math.prod(chunk) * itemsize), 1):
        most = max(range(len(counts)), key=counts.__getitem__)
        counts[most] = -(-counts[most] // 2)
    tile = [min(k * n, length) for k, n, length in zip(counts, chunk, shape, strict=True)]
    tile = _extended(tile, shape, itemsize, limit)
    for corner in itertools.product(*map(range, itertools.repeat(0), shape, tile)):
        yield tuple((a, min(a + k, n)) for a, k, n in zip(corner, tile, shape, strict=True))


def _tiles(joined: Joined) -> Iterator[tuple[Box, list[tuple[Stored, Shape]]]]:
    """Cut a dataset into boxes that fit into memory, and along axis 0 wherever a file ends."""
    if not joined.shape:
        yield (), joined.pieces
        return
    ends = {s[0] + part.shape[0] for part, s in joined.pieces}
    cuts = sorted(ends | {s[0] for _, s in joined.pieces})
    spans: list[list[tuple[Stored, Shape]]] = [[] for _ in cuts]
    for part, start in joined.pieces:
        begin = bisect_left(cuts, start[0])
        for index in range(begin, bisect_left(cuts, start[0] + part.shape[0])):
            spans[index].append((part, start))
    for a, b, pieces in zip(cuts, cuts[1:], spans, strict=False):
        shape = (b - a, *joined.shape[1:])
        chunks = [part.chunks for part, _ in pieces if part.chunks]
        tile = tile_shape(shape, chunks, joined.dtype.itemsize)
        starts = [range(0, length, step) for length, step in zip(shape, tile, strict=True)]
        for corner in itertools.product(*starts):
            box = [(c, min(c + k, n)) for c, k, n in zip(corner, tile, shape, strict=True)]
            box[0] = box[0][0] + a, box[0][1] + a
            yield tuple(box), pieces


def tile_shape(shape: Shape, chunks: Sequence[Shape], itemsize: int) -> Shape:
    """Return a tile of whole chunks, as many as fit, last axes first, for long contiguous runs."""
    tile = [max(column) for column in zip(*chunks, strict=True)] if chunks else [1] * len(shape)
    tile = [min(a, b) for a, b in zip(tile, shape, strict=True)]
    tile[-1] = shape[-1]
    limit = _CHUNKS_BYTES if chunks else _TILE_BYTES
    while math.prod(tile) * itemsize > limit:
        longest = max(range(len(tile)), key=tile.__getitem__)
        tile[longest] = -(-tile[longest] // 2)
    return tuple(max(length, 1) for length in _extended(tile, shape, itemsize, limit))


def _extended(tile: Sequence[int], shape: Shape, itemsize: int, limit: int) -> list[int]:
    """Return a tile repeated along the axes, last ones first, as often as it fits."""
    tile = list(tile)
    for axis in reversed(range(len(tile))):
        room = limit // max(math.prod(tile) * itemsize, 1)
        tile[axis] = min(shape[axis], tile[axis] * max(room, 1))
    return tile


def _take(sources: _Sources, part: Stored, start: Shape, box: Box, tile: np.ndarray) -> None:
    """Copy the part of a stored dataset within a box into the box's tile."""
    into: list[slice] = []
    of = []
    for (a, b), begin, length in zip(box, start, part.shape, strict=True):
        low, high = max(a, begin), min(b, begin + length)
        if low >= high:
            return
        into.append(slice(low - a, high - a))
        of.append(slice(low - begin, high - begin))
    # with ..., indexing an array without dimensions gives an array too
    inside: tuple[slice | EllipsisType, ...] = (*into, ...)
    sources.read(part, tuple(of), tile[inside])


def _run(shape: Shape, lengths: Shape) -> int:
    """Return the axis from which on a box of an array is contiguous."""
    axis = len(shape)
    while axis and (axis == len(shape) or lengths[axis] == shape[axis]):
        axis -= 1
    return axis


def _write(file: int, offset: int, shape: Shape, box: Box, tile: np.ndarray) -> None:
    axis = _run(shape, tile.shape)
    strides = [math.prod(shape[k + 1 :]) * tile.itemsize for k in range(len(shape))]
    first = offset + sum(a * stride for (a, _), stride in zip(box, strides, strict=True))
    flat = tile.reshape(-1).view(np.uint8).data
    size = math.prod(tile.shape[axis:]) * tile.itemsize
    for count, index in enumerate(np.ndindex(*tile.shape[:axis])):
        at = first + sum(i * stride for i, stride in zip(index, strides, strict=False))
        run = flat[count * size : (count + 1) * size]
        while run:
            written = os.pwrite(file, run, at)
            run = run[written:]
            at += written


class _Sources:
    """Read boxes of stored datasets; some files are kept open."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, h5py.File] = OrderedDict()

    def __enter__(self) -> _Sources:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()

    def read(self, part: Stored, of: tuple[slice, ...], out: np.ndarray) -> None:
        axis = _run(part.shape, out.shape)
        if part.offset is None or math.prod(out.shape[:axis]) > 1:
            with damage("h5concat", part.path):
                out[...] = self._open(part.path)[part.inner][of]
            return
        straight = out.dtype == part.raw and out.flags.c_contiguous
        piece = out if straight else np.empty(out.shape, part.raw)
        index = sum(
            s.start * math.prod(part.shape[k + 1 :]) for k, s in enumerate(of)
        )  # of its first element
        _pread(part.path, piece, part.offset + index * part.raw.itemsize)
        if not straight:
            out[...] = piece

    def _open(self, path: str) -> h5py.File:
        file = self._files.pop(path, None) or h5py.File(path, "r", rdcc_nbytes=2**20)
        self._files[path] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return file


def _pread(path: str, piece: np.ndarray, offset: int) -> None:
    view = piece.reshape(-1).view(np.uint8).data
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while view:
            count = file.readinto(view)
            if not count:
                raise ValueError(f"h5concat: {path} ends at byte {offset}, within a dataset")
            view, offset = view[count:], offset + count
