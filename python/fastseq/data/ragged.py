"""Sequences of different lengths: lists of arrays ``(T_i, …)``, sorted by length."""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from .._util.threads import call_all
from .._util.tree import tree_leaves
from ..errors import ReadError
from .hdf5 import LazyDataset, LazyTensor, h5mmap
from .hdf5.handles import location
from .hdf5.lazy_tensor import as_bfloat16
from .hdf5.memory_map import element_offset, readable_by, sliced
from .hdf5.names import natural_key
from .hdf5.types import stored_dtype
from .mapped_arrays import CheckedMap, check_not_replaced
from .native_reader import element_type
from .sliceable import Sliceable
from .sources import Box, Source, fill

__all__ = [
    "DatasetItems",
    "GroupItems",
    "RaggedArrays",
    "RaggedRows",
    "group_items",
    "rows_in_memory",
]

Row = tuple[str | None, int, np.dtype | torch.dtype]
"""An item's file (None: in memory), offset or address, and dtype."""

_CACHE_BYTES = 2**28
_MAX_FILES = 256  # with more, files are opened one after the other


class _Ragged(Source):
    """Sequences in items: sequence i starts at row `begins[i]` of item `positions[i]`.

    Attributes
    ----------
    keys
        The items' names in the caller's order, if they are a group's.
    """

    lazy = True
    keys: list[str] | None = None

    def __init__(
        self,
        name: str,
        items: Sequence[Sliceable],
        features: tuple[int, ...],
        lengths: np.ndarray,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(name, (int(lengths.max()), len(lengths), *features), dtype)
        self._items = items
        self._numel = math.prod(features)
        self._positions = np.arange(len(lengths))
        self._begins = np.zeros(len(lengths), np.int64)
        self._lengths = lengths

    def cut(
        self,
        positions: np.ndarray,
        begins: np.ndarray,
        lengths: np.ndarray,
    ) -> _Ragged:
        """Return the sequences `positions`, in this order, and `lengths` steps from `begins` on."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._positions = self._positions[positions]
        other._begins = self._begins[positions] + begins
        other._lengths = lengths
        other.shape = (int(lengths.max(initial=0)), len(lengths), *self.features)
        other.close()  # what this one holds are other sequences' items
        return other


class RaggedRows(_Ragged):
    """Arrays with contiguous rows, in files or in memory: read without Python."""

    def __init__(
        self,
        name: str,
        items: Sequence[Sliceable],
        features: tuple[int, ...],
        lengths: np.ndarray,
        dtype: torch.dtype,
        rows: list[Row],
    ) -> None:
        super().__init__(name, items, features, lengths, dtype)
        self.places: list[str | None] = list(dict.fromkeys(place for place, _, _ in rows))
        numbers = {place: number for number, place in enumerate(self.places)}
        self._place = np.array([numbers[place] for place, _, _ in rows])
        self._offset = np.array([offset for _, offset, _ in rows], np.int64)
        stored = rows[0][2]
        self.stored = element_type(stored)
        self.swapped: bool = isinstance(stored, np.dtype) and not stored.isnative
        self._row_bytes = self._numel * stored.itemsize

    def check_opened(self) -> None:
        """Raise if a file that was just opened by its path is another one than was given."""
        for item in self._items:
            check_not_replaced(item)
        for path, number in {(i.path, i.number) for i in self._items if isinstance(i, _Rows)}:
            if number is not None and _number_at(path) != number:
                raise ReadError(
                    f"{path} is another file than the one that was opened, or is gone: open it "
                    "again"
                )

    def pieces(self, boxes: list[Box], width: int, files: list[int]) -> np.ndarray:
        """Return the reads for a slab of `width` columns; see csrc/core/reader/slab_reader.h."""
        found = []
        for t0, t1, n0, n1, at in boxes:
            steps = np.minimum(self._lengths[n0:n1], t1) - t0
            here = np.flatnonzero(steps > 0)
            item = self._positions[n0:n1][here]
            rows = np.empty((len(here), 7), np.int64)
            rows[:, 0] = np.asarray(files)[self._place[item]]
            rows[:, 1] = self._offset[item] + (self._begins[n0:n1][here] + t0) * self._row_bytes
            rows[:, 2] = steps[here]
            rows[:, 3] = self._row_bytes
            rows[:, 4] = self._numel
            rows[:, 5] = (at + here) * self._numel
            rows[:, 6] = width * self._numel
            found.append(rows)
        return found[0] if len(found) == 1 else np.concatenate(found)


class RaggedArrays(_Ragged):
    """Any arrays, read by slicing in a separate thread."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._block = 0, 0  # the sequences whose
        self._whole: dict[int, Sliceable] = {}  # compressed items are held decompressed

    def watch(self) -> None:
        """Raise from now on if files change while they are read."""
        if not isinstance(self._items, DatasetItems):
            self._items = [
                item.watched() if isinstance(item, LazyDataset | LazyTensor | CheckedMap) else item
                for item in self._items
            ]

    def close(self) -> None:
        """Free decompressed items."""
        self._block, self._whole = (0, 0), {}

    def _decompress(self, block: tuple[int, int], t0: int) -> None:
        """Decompress a block's items that go on at `t0`, each once, if there is room for them."""
        wanted = {
            n: item
            for n in range(*block)
            if self._lengths[n] > t0
            and isinstance(item := self._items[int(self._positions[n])], LazyDataset | LazyTensor)
        }
        row = max((self._numel * item.dtype.itemsize for item in wanted.values()), default=0)
        if int(self._lengths[block[0] : block[1]].sum()) * row > _CACHE_BYTES:
            return
        if self._block != block:
            self._block, self._whole = block, {}
        missing = [n for n in wanted if n not in self._whole]
        if missing:
            self.spare.wait()

        def decompress(n: int) -> None:
            item = wanted[n]
            raw = copy.copy(item.raw if isinstance(item, LazyTensor) else item)
            raw.cached = False  # it is kept here
            array = np.empty(raw.shape, raw.dtype)
            raw.read_into(array, self.spare.threads if len(missing) == 1 else lambda: 1)
            self._whole[n] = as_bfloat16(array) if isinstance(item, LazyTensor) else array

        call_all(
            (functools.partial(decompress, n) for n in missing), len(missing), self.spare.threads
        )

    def _item(self, n: int, block: tuple[int, int]) -> Sliceable:
        held = self._whole.get(n) if self._block == block else None
        return self._items[int(self._positions[n])] if held is None else held

    def _rows(self, n: int, block: tuple[int, int], t0: int, t1: int) -> Any:
        """Return time steps ``[t0, t1)`` of a sequence, which has as many."""
        begin = int(self._begins[n])
        return self._item(n, block)[begin + t0 : begin + t1]

    def fill(self, boxes: list[Box], slab: Tensor) -> int:
        """Read into a slab; return how many values are NaN or infinite."""
        slab.zero_()
        count = 0
        for t0, t1, n0, n1, at in boxes:
            self._decompress((n0, n1), t0)
            for n in range(n0, n1):
                end = min(t1, int(self._lengths[n]))
                if end <= t0:
                    continue
                rows = self._rows(n, (n0, n1), t0, end)
                to = slab.new_empty((end - t0, *self.features))
                rows = rows if isinstance(rows, Tensor) else np.asarray(rows)
                count += fill(rows.reshape(to.shape), to, self.scale)
                slab[: end - t0, at + n - n0] = to
        return count


def rows_in_memory(
    items: Sequence[Sliceable], file_offset: Callable[[np.ndarray], int | None]
) -> list[Row] | None:
    """Return where each item is; None: unfit for `RaggedRows`.

    Parameters
    ----------
    items
        Arrays ``(T_i, …)``.
    file_offset
        Returns a memory map's offset in its file, or None.
    """
    found: list[Row] = []
    for item in items:
        if isinstance(item, Tensor):
            if item.is_cuda or not item.is_contiguous():
                return None
            found.append((None, item.data_ptr(), item.dtype))
        elif isinstance(item, _Rows):
            found.append((item.path, item.offset, item.dtype))
        elif isinstance(item, np.ndarray) and item.flags.c_contiguous:
            if isinstance(item, np.memmap) and item.mode != "c":
                offset = file_offset(item)
                if offset is None:
                    return None
                found.append((str(item.filename), offset, item.dtype))
            else:
                found.append((None, item.ctypes.data, item.dtype))
        else:
            return None
    places = {place for place, _, _ in found}
    if len({dtype for _, _, dtype in found}) > 1 or len(places) > _MAX_FILES:
        return None
    return found


class _Rows:
    """Place of a contiguous dataset in its file, without a memory map.

    `number`: the open file's device and number; None: unknown.
    """

    def __init__(
        self,
        place: tuple[str, str],
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        number: tuple[int, int] | None,
    ) -> None:
        (self.path, self.name), self.offset = place, offset
        self.shape, self.dtype = shape, dtype
        self.number = number

    def __getitem__(self, index: Any) -> Any:
        return h5mmap(self.path, self.name)[index]


class GroupItems(list[Sliceable]):
    """The datasets of a group with their names, or the sequences of a table with their ids."""

    def __init__(self, items: Iterable[Sliceable], keys: list[str]) -> None:
        super().__init__(items)
        self.keys = keys


def group_items(group: h5py.Group, name: str) -> GroupItems:
    """Return the datasets of a group in the natural order of their names (2 before 10)."""
    items: list[Sliceable] = []
    home = location(group)  # for all its own datasets: a lookup takes as long as opening one
    numbers: dict[str, tuple[int, int] | None] = {}
    keys = sorted(sorted(group), key=natural_key)  # 1 and 01 are alike but for the text
    for key in keys:
        item = group[key]
        if not isinstance(item, h5py.Dataset):
            raise TypeError(f"{name} must be a group of datasets only, but {item.name} is a group")
        own = home and isinstance(group.get(key, getlink=True), h5py.HardLink)
        known = (home[0], f"{home[1].rstrip('/')}/{key}") if home and own else None
        place = readable_by(item, known)
        offset = element_offset(item)
        if place is None:
            items.append(sliced(item))
        elif offset is None:
            items.append(h5mmap(*place))
        else:
            if place[0] not in numbers:
                numbers[place[0]] = _number_of(item.file)
            number = numbers[place[0]]
            items.append(_Rows(place, offset, item.shape, stored_dtype(item), number))
    return GroupItems(items, keys)


def _number_of(file: h5py.File) -> tuple[int, int] | None:
    """Return the device and number of an open file, by which it is known under any name."""
    if file.driver != "sec2":
        return None
    status = os.fstat(file.id.get_vfd_handle())
    return status.st_dev, status.st_ino


def _number_at(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class DatasetItems(Sequence[Any]):
    """One part of each item of a `torch.utils.data.Dataset`, as a sequence of arrays."""

    def __init__(self, cache: _Cache, part: int | None) -> None:
        self._cache = cache
        self._part = part

    def __len__(self) -> int:
        return len(self._cache)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends loops; the dataset itself may not raise it
        item = self._cache.load(int(index))
        return item if self._part is None else item[self._part]

    @classmethod
    def split(cls, dataset: Any, name: str) -> list[DatasetItems]:
        """Return one sequence per part of a map-style dataset's items ``(x, y, …)`` or ``x``."""
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"{name} must be a map-style dataset, with a length and items by number; "
                f"{type(dataset).__name__} is not"
            )
        if not len(dataset):
            raise ValueError(f"{name} has no sequences: the dataset is empty")
        cache = _Cache(dataset)
        first = cache.load(0)
        if isinstance(first, (tuple, list)):
            return [cls(cache, part) for part in range(len(first))]
        return [cls(cache, None)]


class _Cache:
    """Cache of a dataset's last items, since inputs and targets come from one item."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._items: dict[int, Any] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._dataset)

    def load(self, index: int) -> Any:
        if index in self._items:
            return self._items[index]
        item = self._dataset[index]
        self._items[index] = item
        self._bytes += _bytes(item)
        while self._bytes > _CACHE_BYTES and len(self._items) > 1:
            self._bytes -= _bytes(self._items.pop(next(iter(self._items))))
        return item


def _bytes(item: object) -> int:
    return sum(int(getattr(leaf, "nbytes", 0)) for leaf in tree_leaves(item))
