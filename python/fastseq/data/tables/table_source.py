"""Sequences of a table as a source: those of a block are read together."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..ragged import RaggedArrays
from .row_reader import RowReader

__all__ = ["RaggedTable", "StoredSequence"]

_WINDOW_BYTES = 2**28
_OFTEN = 8


class StoredSequence:
    """One sequence of a table, read where it is sliced."""

    __slots__ = ("begin", "length", "reader")

    def __init__(self, reader: RowReader, begin: int, length: int) -> None:
        self.reader, self.begin, self.length = reader, begin, length

    @property
    def shape(self) -> tuple[int, int]:
        """Time steps and columns."""
        return self.length, len(self.reader.columns)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of all columns."""
        return self.reader.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        (whole,) = self.reader.read(np.array([self.begin]), np.array([self.length]))
        part: np.ndarray = whole[index]
        return part


class _Part(NamedTuple):
    """Time steps ``[t0, t1)`` of a block's sequences, of those that have as many."""

    t0: int
    t1: int
    rows: list[np.ndarray]


class RaggedTable(RaggedArrays):
    """Sequences of a table.

    A row group must be decoded as a whole, and holds sequences of many blocks. So the sequences of
    as many blocks as there is room for are read at once, in the order of the row groups.
    """

    _items: list[StoredSequence]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._reader = self._items[0].reader
        self._first = np.array([item.begin for item in self._items])
        self._warned = False
        self._forget()

    def _forget(self) -> None:
        self._parts: dict[tuple[int, int], _Part] = {}
        self._blocks: Iterator[tuple[int, int, int, int]] = iter(())
        self._next: tuple[int, int, int, int] | None = None
        self._decoded = self._reader.decoded

    def expect(self, blocks: Iterable[tuple[int, int, int, int]]) -> None:
        """Announce the blocks ``(t0, t1, n0, n1)`` that will be read, in order."""
        self._forget()
        self._blocks = iter(blocks)
        self._next = next(self._blocks, None)

    def watch(self) -> None:
        """Do nothing: files of tables are always watched."""

    def close(self) -> None:
        """Free what was read."""
        super().close()
        self._forget()

    def _rows(self, n: int, block: tuple[int, int], t0: int, t1: int) -> np.ndarray:
        part = self._parts.get(block)
        if part is None or t0 < part.t0 or t1 > part.t1:
            self._parts.clear()  # before there is more
            self._parts = self._read(self._plan(block, t0, t1))
            part = self._parts[block]
        return part.rows[n - block[0]][t0 - part.t0 : t1 - part.t0]

    def _plan(self, block: tuple[int, int], t0: int, t1: int) -> list[tuple[int, int, int, int]]:
        """Return what to read now: the steps of this block from `t0` on, and blocks after it."""
        room = _WINDOW_BYTES // self._reader.row_bytes
        n0, n1 = block
        end = int(self._lengths[n0:n1].max())
        if self._next is not None and self._next[2:] == block:
            end = max(self._next[1], t1)
            self._next = next(self._blocks, None)
        steps = self._count(t0, end, n0, n1)
        if steps > room:
            return [(t0, max(t0 + room // (n1 - n0), t1), n0, n1)]
        found = [(t0, end, n0, n1)]
        while self._next is not None and (steps := steps + self._count(*self._next)) <= room:
            found.append(self._next)
            self._next = next(self._blocks, None)
        return found

    def _count(self, t0: int, t1: int, n0: int, n1: int) -> int:
        return int((np.clip(self._lengths[n0:n1], t0, t1) - t0).sum())

    def _read(self, blocks: list[tuple[int, int, int, int]]) -> dict[tuple[int, int], _Part]:
        first = self._first[self._positions] + self._begins
        begins = [first[n0:n1] + t0 for t0, _, n0, n1 in blocks]
        lengths = [np.clip(self._lengths[n0:n1], t0, t1) - t0 for t0, t1, n0, n1 in blocks]
        rows = iter(self._reader.read(np.concatenate(begins), np.concatenate(lengths)))
        self._warn_if_often()
        return {
            (n0, n1): _Part(t0, t1, [next(rows) for _ in range(n0, n1)])
            for t0, t1, n0, n1 in blocks
        }

    def _warn_if_often(self) -> None:
        times = (self._reader.decoded - self._decoded) / self._reader.total
        if times > _OFTEN and not self._warned:
            self._warned = True
            warnings.warn(
                f"the row groups of {self.name} have been decoded {_OFTEN} times in one pass, as "
                "each holds sequences of many blocks, and more than fit into memory: copy the "
                "sequences to an HDF5 file, which is read without that",
                stacklevel=2,
            )
