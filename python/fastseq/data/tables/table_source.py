"""Sequences of a table as a source: those of a block are read together."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ragged import RaggedArrays
from .row_reader import RowReader

__all__ = ["RaggedTable", "StoredSequence"]

_WINDOW_BYTES = 2**27


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


class RaggedTable(RaggedArrays):
    """Sequences of a table.

    A row group must be decoded as a whole, and holds parts of sequences of all blocks. So all
    sequences of a block are read at once, in the order of the row groups, or as many of their steps
    as there is room for.
    """

    _items: list[StoredSequence]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._reader = self._items[0].reader
        self._first = np.array([item.begin for item in self._items])
        self._steps = 0, 0
        self._parts: list[np.ndarray] = []

    def watch(self) -> None:
        """Do nothing: files of tables are always watched."""

    def close(self) -> None:
        """Free what was read."""
        super().close()
        self._steps, self._parts = (0, 0), []

    def _rows(self, n: int, block: tuple[int, int], t0: int, t1: int) -> np.ndarray:
        n0, n1 = block
        if self._block != block or t0 < self._steps[0] or t1 > self._steps[1]:
            room = _WINDOW_BYTES // ((n1 - n0) * self._reader.row_bytes)
            end = t0 + max(room, t1 - t0)
            self.close()
            lengths = np.clip(self._lengths[n0:n1], t0, end) - t0
            first = self._first[self._positions[n0:n1]] + self._begins[n0:n1]
            self._parts = self._reader.read(first + t0, lengths)
            self._block, self._steps = block, (t0, end)
        begin = self._steps[0]
        return self._parts[n - n0][t0 - begin : t1 - begin]
