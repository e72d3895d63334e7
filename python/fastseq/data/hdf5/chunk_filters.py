"""HDF5's filters, undone without HDF5: on the bytes of a chunk, in any thread."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence

import deflate
import h5py
import numpy as np

from ... import _reader

__all__ = ["Bytes", "Filters", "filtered_at_edges"]

Bytes = bytes | bytearray | memoryview | np.ndarray
Out = np.ndarray | None
Undo = Callable[[Bytes, int, Out], Bytes]
"""Undoes a filter of the bytes of a chunk, which has so many without any; may use given memory."""

_ADDED = 64  # bytes, at most, that a filter adds to a chunk


class Filters:
    """The filters of a dataset's chunks.

    Parameters
    ----------
    undo
        For each filter, in the order in which HDF5 applies them, what undoes it.
    nbytes
        The size of a chunk without filters.
    """

    def __init__(self, undo: Sequence[Undo], nbytes: int) -> None:
        self._undo = undo
        self.nbytes = nbytes

    @classmethod
    def of(cls, dataset: h5py.Dataset, nbytes: int) -> Filters | None:
        r"""Return a dataset's filters; None if HDF5 has to undo one of them.

        Examples
        --------
        >>> import os, tempfile, zlib
        >>> with h5py.File(os.path.join(tempfile.mkdtemp(), "a.h5"), "w") as file:
        ...     x = file.create_dataset("x", data=[1, 2], dtype="u1", compression="gzip")
        ...     bytes(Filters.of(x, 2).undo(zlib.compress(bytes([1, 2])), 0))
        b'\x01\x02'
        """
        plist = dataset.id.get_create_plist()
        undo: list[Undo] = []
        for number in range(plist.get_nfilters()):
            code, _, parameters, _ = plist.get_filter(number)
            make = _MAKERS.get(code)
            found = None if make is None else make(parameters)
            if found is None:
                return None
            undo.append(found)
        return cls(undo, nbytes) if undo else None

    def undo(self, stored: Bytes, skipped: int, out: Out = None) -> Bytes:
        """Return a chunk's bytes without filters.

        Parameters
        ----------
        stored
            Its bytes in the file.
        skipped
            Bit i is set if it was written without filter i.
        out
            Memory of `nbytes` bytes, where some filters can put them: then it is returned.

        Raises
        ------
        ValueError
            They are damaged.
        """
        left = [one for number, one in enumerate(self._undo) if not skipped >> number & 1]
        while left:
            undo = left.pop()
            stored = undo(stored, self.nbytes, None if left else out)
        return stored


def filtered_at_edges(dataset: h5py.Dataset) -> bool:
    """Return whether chunks at a dataset's edge have filters: h5py does not tell."""
    chunk, plist = dataset.chunks, dataset.id.get_create_plist()
    if math.prod(chunk) == 1 or not any(n % c for n, c in zip(dataset.shape, chunk, strict=True)):
        return True
    shape = tuple(max(n - 1, 1) for n in chunk)
    values = np.random.default_rng(0).integers(1, 100, shape).astype(dataset.dtype)
    with h5py.File.in_memory() as file:
        space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,) * len(chunk))
        tried = h5py.Dataset(h5py.h5d.create(file.id, b"x", dataset.id.get_type(), space, plist))
        tried[...] = values
        tried.flush()
        skipped, stored = tried.id.read_direct_chunk((0,) * len(chunk))
    # A bit is set where a filter could not make a chunk smaller.
    if skipped or len(stored) != math.prod(chunk) * values.itemsize:
        return True
    found = np.frombuffer(stored, values.dtype).reshape(chunk)[tuple(map(slice, shape))]
    return bool(found.tobytes() != values.tobytes())


def _inflate(parameters: tuple[int, ...]) -> Undo:  # noqa: ARG001
    def undo(stored: Bytes, nbytes: int, out: Out) -> Bytes:  # noqa: ARG001
        try:
            # It raises if there is more; a filter before may have added some bytes.
            found: bytearray = deflate.zlib_decompress(stored, nbytes + _ADDED)
        except deflate.DeflateError as error:
            raise ValueError("its gzip data are damaged") from error
        return found

    return undo


def _unshuffle(parameters: tuple[int, ...]) -> Undo | None:
    item = parameters[0] if parameters else 0
    if item < 1:
        return None

    def undo(stored: Bytes, nbytes: int, out: Out) -> Bytes:  # noqa: ARG001
        if out is None or len(out) != len(stored):
            out = np.empty(len(stored), np.uint8)
        _reader.unshuffle(stored, item, out)
        return out

    return undo


def _checked(parameters: tuple[int, ...]) -> Undo:  # noqa: ARG001
    def undo(stored: Bytes, nbytes: int, out: Out) -> Bytes:  # noqa: ARG001
        if len(stored) < 4:
            raise ValueError("its checksum is missing")
        written = int.from_bytes(bytes(stored[-4:]), "little")
        data = stored[:-4]
        found = _reader.fletcher32(data)
        swapped = (found & 0x00FF00FF) << 8 | (found >> 8 & 0x00FF00FF)  # as HDF5 1.6.2 wrote it
        if written not in (found, swapped):
            raise ValueError("its checksum is wrong")
        return data

    return undo


def _scaled(parameters: tuple[int, ...]) -> Undo:
    def undo(stored: Bytes, nbytes: int, out: Out) -> Bytes:
        out = np.empty(nbytes, np.uint8) if out is None else out
        _reader.undo_scale_offset(stored, parameters, out)
        return out

    return undo


def _codec(name: str) -> Callable[[tuple[int, ...]], Undo | None]:
    """Return what makes the undoing by a function of imagecodecs, where that is installed."""

    def make(parameters: tuple[int, ...]) -> Undo | None:  # noqa: ARG001
        if not _installed("imagecodecs"):
            return None
        import imagecodecs

        decode = getattr(imagecodecs, f"{name}_decode")

        def undo(stored: Bytes, nbytes: int, out: Out) -> Bytes:
            try:
                found: Bytes = decode(stored, out=nbytes + _ADDED if out is None else out)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"its {name} data are damaged: {error}") from error
            return out if out is not None and len(found) == nbytes else found

        return undo

    return make


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


_MAKERS: dict[int, Callable[[tuple[int, ...]], Undo | None]] = {
    h5py.h5z.FILTER_DEFLATE: _inflate,
    h5py.h5z.FILTER_SHUFFLE: _unshuffle,
    h5py.h5z.FILTER_FLETCHER32: _checked,
    h5py.h5z.FILTER_SCALEOFFSET: _scaled,
    h5py.h5z.FILTER_LZF: _codec("lzf"),
    # As registered with The HDF Group.
    32001: _codec("blosc"),
    32004: _codec("lz4h5"),
    32015: _codec("zstd"),
    32026: _codec("blosc2"),
}
