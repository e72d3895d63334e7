"""HDF5 datasets that are read or written only where they are sliced."""

from __future__ import annotations

import copy
import operator
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ..._util.threads import cores
from ...errors import ReadError
from ..file_watch import FileWatch
from .handles import SharedFile, shared_file
from .stored_rows import StoredRows
from .types import stored_dtype
from .virtual import source_files
from .virtual_parts import MOST_PARTS, Part

__all__ = ["LazyDataset"]

_CACHE_BYTES = 2**23  # of decompressed chunks, that HDF5 keeps
_looking_up = threading.Lock()


class LazyDataset:
    """An HDF5 dataset, or a box cut out of it, that behaves like a memory map.

    Slicing with step 1 gives another `LazyDataset` and reads nothing; any other index, and
    `numpy.asarray`, read. Mapped with ``mode="r+"``, it can be assigned to by such slices. The file
    is opened on first use in each process; path and name are pickled, not the data.

    Attributes
    ----------
    path, name
        The file and the dataset in it.
    shape, dtype
        Shape and stored dtype of this box.
    starts
        Where this box starts in the dataset.
    mode
        ``"r"`` or ``"r+"``.
    cached
        Whether HDF5 may keep decompressed chunks, a few megabytes of them.
    """

    def __init__(
        self,
        path: str,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        mode: str = "r",
        starts: tuple[int, ...] | None = None,
        cached: bool = True,
    ) -> None:
        self.path = path
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.mode = mode
        self.starts: tuple[int, ...] = (0,) * len(shape) if starts is None else starts
        self.cached = cached
        self._file: SharedFile | None = None
        self._watch: FileWatch | None = None
        self._sources: dict[object, LazyDataset] = {}

    def watched(self) -> LazyDataset:
        """Return the same dataset, with an error if its file changes after the first read."""
        other = copy.copy(self)
        other._watch = FileWatch()
        return other

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a dataset without dimensions has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"LazyDataset({self.path!r}, {self.name!r}, shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, index: object) -> Any:
        box, rest = self._cut(index)
        if all(isinstance(piece, slice) and piece.step == 1 for piece in rest):
            return box
        return np.asarray(box)[rest]

    def __setitem__(self, index: object, values: object) -> None:
        if self.mode == "r":
            raise ValueError(
                f"{self.name!r} of {self.path} is mapped for reading; to write to it, map it with "
                'mode="r+"'
            )
        box, rest = self._cut(index)
        if not all(isinstance(p, int) or (isinstance(p, slice) and p.step == 1) for p in rest):
            raise IndexError(f"{self!r} can be assigned to only by integers and slices of step 1")
        squeezed = tuple(n for n, p in zip(box.shape, rest, strict=True) if not isinstance(p, int))
        values = np.broadcast_to(np.asarray(values), squeezed).reshape(box.shape)
        if not values.size:
            return
        with box.opened(writable=True) as dataset:
            if dataset.dtype != self.dtype:  # a bitfield, which h5py treats as uint8
                values = values.astype(self.dtype).view(dataset.dtype)
            dataset[box.selection()] = values

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "copy=False is impossible: a LazyDataset is read from its file, which makes a copy"
            )
        array = np.empty(self.shape, self.dtype)
        self.read_into(array)
        return array if dtype is None else array.astype(dtype, copy=False)

    def read_into(self, out: np.ndarray, threads: Callable[[], int] = cores) -> None:
        """Read all of this box into an array of its shape and dtype.

        Parameters
        ----------
        out
            The array.
        threads
            Returns how many compressed chunks may be decoded at a time.

        Raises
        ------
        ReadError
            It cannot be read, or has changed (see `watched`); the message names file, dataset and
            box.
        ValueError
            The dataset's shape or dtype has changed since it was mapped.
        """
        if not out.size:
            return
        with self.opened() as dataset:
            if self._watch is not None and not dataset.file.swmr_mode:
                self._watch.begin(lambda: [os.path.abspath(self.path), *source_files(dataset)])
            bits = dataset.dtype != self.dtype  # a bitfield, which h5py treats as uint8
            target = out.view(dataset.dtype) if bits else out
        box = ", ".join(f"{s.start}:{s.stop}" for s in self.selection())
        try:
            self._read(target, threads)
        except ReadError as error:  # of a virtual dataset's source
            raise ReadError(f"{self.path}: {self.name!r}[{box}] cannot be read: {error}") from error
        except (OSError, RuntimeError) as error:
            raise ReadError(
                f"{self.path}: {self.name!r}[{box}] cannot be read; the file is damaged, or was "
                f"changed while it was read ({error})"
            ) from error
        if self._shared_file().truncated:
            raise ReadError(
                f"{self.path}: {self.name!r}[{box}] cannot be read: the file was truncated"
            )
        if self._watch is not None:
            try:
                self._watch.check()
            except ReadError as error:
                raise ReadError(f"{self.name!r}[{box}] cannot be read: {error}") from error
        if bits:
            np.not_equal(target, 0, out=out)

    def _read(self, target: np.ndarray, threads: Callable[[], int]) -> None:
        box, file = self.selection(), self._shared_file()
        chunks = file.chunks(self.name, cached=self.cached)
        # What HDF5 keeps may be wanted again.
        if chunks is not None and not (self.cached and chunks.nbytes(box) <= _CACHE_BYTES):
            writes = file.writes
            chunks.read_into(target, box, self.opened, threads)
            if file.writes != writes:  # the file was not held: it may be of before and after
                self._read_by_hdf5(target)
        elif (parts := file.parts(self.name, cached=self.cached)) is not None:
            self._read_parts(parts, target, threads)
        else:
            self._read_by_hdf5(target)

    def _read_by_hdf5(self, target: np.ndarray) -> None:
        whole = target if target.flags.c_contiguous else np.empty_like(target, order="C")
        with self.opened() as dataset:
            dataset.read_direct(whole, self.selection())
        if whole is not target:
            target[...] = whole

    def _read_parts(
        self, parts: list[Part], target: np.ndarray, threads: Callable[[], int]
    ) -> None:
        """Read a virtual dataset from its sources, which need not fill it."""
        with self.opened() as dataset:
            target[...] = dataset.fillvalue
        own = self.selection()
        for part in parts:
            sides = zip(part.box, own, strict=True)
            common = [slice(max(p.start, o.start), min(p.stop, o.stop)) for p, o in sides]
            if all(side.start < side.stop for side in common):
                source = self._source(part)[_from(part.box, common)]
                source.read_into(target[_from(own, common)], threads)

    def _source(self, part: Part) -> LazyDataset:
        """Return a part of a virtual dataset; the last ones stay open."""
        shape = tuple(side.stop - side.start for side in part.box)
        key = (part.path, part.name, part.start, shape)
        with _looking_up:  # slices share them
            source = self._sources.pop(key, None)
            if source is None:
                source = LazyDataset(
                    part.path, part.name, shape, self.dtype, starts=part.start, cached=self.cached
                )
            self._sources[key] = source
            while len(self._sources) > MOST_PARTS:
                del self._sources[next(iter(self._sources))]
            return source

    def rows(self) -> StoredRows:
        """Return the dataset's rows of chunks along time."""
        with self.opened() as dataset:
            return StoredRows.of(dataset)

    @contextmanager
    def opened(self, *, writable: bool = False) -> Iterator[h5py.Dataset]:
        """Hold the whole dataset, opened once per process."""
        file = self._shared_file()
        with file.dataset(self.name, writable=writable, cached=self.cached) as dataset:
            now = dataset.shape
            there = len(now) == self.ndim and all(
                start + length <= end
                for start, length, end in zip(self.starts, self.shape, now, strict=True)
            )
            if not there or stored_dtype(dataset) != self.dtype:
                raise ValueError(
                    f"{self.path}: {self.name!r} has changed since it was mapped: it has shape "
                    f"{now} and dtype {stored_dtype(dataset)} now; map it again"
                )
            yield dataset

    def release(self) -> None:
        """Let other processes open the file after this one has written to it."""
        self._shared_file().release()

    def _shared_file(self) -> SharedFile:
        if self._file is None or self._file.pid != os.getpid():
            self._file = shared_file(self.path)
        return self._file

    def selection(self) -> tuple[slice, ...]:
        """Return this box's slices of the dataset."""
        return tuple(slice(a, a + n) for a, n in zip(self.starts, self.shape, strict=True))

    def _cut(self, index: Any) -> tuple[LazyDataset, tuple[Any, ...]]:
        """Return the smallest box that `index` needs, and the remaining index into that box."""
        pieces = list(index) if isinstance(index, tuple) else [index]
        used = sum(_axes(piece) for piece in pieces)
        if used > self.ndim:
            raise IndexError(f"too many indices for {self!r}: {used}")
        fill = [slice(None)] * (self.ndim - used)
        at = next((i for i, piece in enumerate(pieces) if piece is Ellipsis), len(pieces))
        pieces[at : at + 1] = fill
        starts, shape, rest, axis = list(self.starts), list(self.shape), [], 0
        for piece in pieces:
            left = piece
            if isinstance(piece, slice):
                every = range(*piece.indices(self.shape[axis]))
                begin, end = (min(every), max(every) + 1) if every else (every.start, every.start)
                starts[axis] += begin
                shape[axis] = end - begin
                left = slice(None, None, every.step)
            elif _axes(piece) == 1 and np.ndim(piece) == 0:
                number = operator.index(piece)
                if not -self.shape[axis] <= number < self.shape[axis]:
                    raise IndexError(f"index {number} is out of bounds in axis {axis} of {self!r}")
                starts[axis] += number % self.shape[axis]
                shape[axis], left = 1, 0
            rest.append(left)
            axis += _axes(piece)
        box = copy.copy(self)
        box.shape, box.starts = tuple(shape), tuple(starts)
        box._file = self._shared_file()
        return box, tuple(rest)

    def __copy__(self) -> LazyDataset:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)  # the open file, too: another one may have replaced it
        return other

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None, "_sources": {}}


def _from(origin: tuple[slice, ...], box: list[slice]) -> tuple[slice, ...]:
    """Return a box as slices of another one."""
    sides = zip(box, origin, strict=True)
    return tuple(slice(s.start - o.start, s.stop - o.start) for s, o in sides)


def _axes(piece: object) -> int:
    """Return how many axes a part of an index covers."""
    if piece is None or piece is Ellipsis:
        return 0
    if isinstance(piece, bool | np.bool_ | list | np.ndarray):
        array = np.asarray(piece)
        return array.ndim if array.dtype == bool else 1
    return 1


def _forget() -> None:
    """Reset in a forked child: the lock is its parent's."""
    global _looking_up
    _looking_up = threading.Lock()


os.register_at_fork(after_in_child=_forget)
