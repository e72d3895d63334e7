"""Rows of a table as arrays; decoded row groups are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from ..._util.locks import Lock
from .columns import stacked
from .row_groups import Pieces

__all__ = ["RowReader"]

_KEPT_BYTES = 2**27


class RowReader:
    """Reads rows of some columns.

    Parameters
    ----------
    pieces
        The table.
    columns
        The columns.
    dtype
        The dtype of all of them together.

    Attributes
    ----------
    total
        The number of rows.
    decoded
        How many rows have been decoded so far.
    """

    def __init__(self, pieces: Pieces, columns: list[str], dtype: np.dtype) -> None:
        self.columns = columns
        self.dtype = dtype
        self._pieces = pieces
        self._starts = np.cumsum([0, *pieces.rows])
        self.total = int(self._starts[-1])
        self.decoded = 0
        self._kept: dict[int, np.ndarray] = {}
        self._kept_bytes = 0
        self._pid = os.getpid()
        self._lock = Lock()

    @property
    def row_bytes(self) -> int:
        """The size of a row."""
        return len(self.columns) * self.dtype.itemsize

    def read(self, begins: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """Return rows ``[begin, begin + length)``, decoding each row group at most once.

        Raises
        ------
        ReadError
            A file is damaged, or has changed since it was opened.
        """
        out = [np.empty((int(n), len(self.columns)), self.dtype) for n in lengths]
        ends = begins + lengths
        wanted: dict[int, list[int]] = {}
        first = np.searchsorted(self._starts, begins, "right") - 1
        last = np.searchsorted(self._starts, ends, "left")
        for number in np.flatnonzero(lengths).tolist():
            for piece in range(first[number], last[number]):
                wanted.setdefault(piece, []).append(number)
        with self._lock:
            if self._pid != os.getpid():  # the parent may have been in the middle of something
                self._pid, self._kept, self._kept_bytes = os.getpid(), {}, 0
            # First those that are kept: reading others would drop them.
            for piece in sorted(wanted, key=lambda piece: (piece not in self._kept, piece)):
                for begin, rows in self._decoded(piece):
                    end = begin + len(rows)
                    for number in wanted[piece]:
                        start = int(begins[number])
                        r0, r1 = max(start, begin), min(int(ends[number]), end)
                        if r0 < r1:
                            out[number][r0 - start : r1 - start] = rows[r0 - begin : r1 - begin]
            self._pieces.check(list(wanted))
        return out

    def _decoded(self, piece: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield a piece's rows with the number of the first: all at once if they can be kept."""
        begin = int(self._starts[piece])
        size = self._pieces.rows[piece] * self.row_bytes
        if piece in self._kept:
            self._kept[piece] = self._kept.pop(piece)  # the last to be dropped
            yield begin, self._kept[piece]
            return
        self.decoded += self._pieces.rows[piece]
        if size > _KEPT_BYTES:
            for batch in self._pieces.batches(piece, self.columns):
                with self._pieces.reading(piece):
                    rows = stacked(batch, self.columns, self.dtype)
                yield begin, rows
                begin += len(rows)
        else:
            with self._pieces.reading(piece):
                rows = stacked(self._pieces.table(piece, self.columns), self.columns, self.dtype)
            while self._kept and self._kept_bytes + size > _KEPT_BYTES:
                self._kept_bytes -= self._kept.pop(next(iter(self._kept))).nbytes
            self._kept[piece] = rows
            self._kept_bytes += size
            yield begin, rows

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": {}, "_kept_bytes": 0}
