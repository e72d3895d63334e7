"""Which rows of a table are which sequence: ids must be together, and times increase."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..._util.optional_imports import need
from .columns import id_kind, time_kind
from .row_groups import Pieces
from .sequence_times import SequenceTimes, ticks_of, told

__all__ = ["SequenceIndex", "check_kinds"]


def check_kinds(pieces: Pieces, id_col: str, time_col: str) -> str:
    """Return what times are; raise TypeError unless all files agree on that, and on ids."""
    first: dict[str, tuple[str, str]] = {}
    for place, schema, _ in pieces.schemas():
        for name, kind_of in ((id_col, id_kind), (time_col, time_kind)):
            kind = kind_of(schema.field(name), place)
            known, home = first.setdefault(name, (kind, place))
            if kind != known:
                raise TypeError(
                    f"{name!r} holds {kind} in {place}, but {known} in {home}: convert one of them"
                )
    return first[time_col][0]


class SequenceIndex:
    """The sequences of a table, in the order of their first rows.

    Parameters
    ----------
    pieces
        The table, of which two columns are read, bit by bit.
    id_col, time_col
        These columns.

    Attributes
    ----------
    keys
        The ids.
    begins, lengths
        Each sequence's first row in the whole table, and its number of rows.
    times
        What is known of their times.

    Raises
    ------
    ValueError
        Rows of an id are apart, or their times do not increase; an id or a time is missing.
    """

    def __init__(self, pieces: Pieces, id_col: str, time_col: str) -> None:
        self._pieces, self._id, self._time = pieces, id_col, time_col
        self._here = 0, 0  # the piece, and the number in it of the batch's first row
        self._seen: set[str | int] = set()
        self._last: tuple[int | float, Any] = (0, None)  # the last row's time: to compare, to show
        self.keys: list[str | int] = []
        self.times = SequenceTimes()
        begins: list[int] = []
        start = 0
        for piece in range(len(pieces.rows)):
            row = 0
            for batch in pieces.batches(piece, [id_col, time_col], ids=id_col):
                self._here = piece, row
                if batch.num_rows:
                    begins += [start + row + i for i in self._add(batch)]
                row += batch.num_rows
            pieces.check([piece])
            start += row
        self.begins = np.array(begins, np.int64)
        self.lengths = np.diff(self.begins, append=start)

    def _add(self, batch: Any) -> list[int]:
        """Check a batch, and return the rows in it with which sequences begin."""
        ids, times = batch.column(self._id), batch.column(self._time)
        self._refuse_nulls(ids, self._id)
        self._refuse_nulls(times, self._time)
        with self._pieces.reading(self._here[0]):
            ticks, unit = ticks_of(times)
            runs, keys = _runs(ids)
        if ticks.dtype.kind == "f" and np.isnan(ticks).any():
            self._refuse_null(int(np.flatnonzero(np.isnan(ticks))[0]), self._time)
        rises = np.zeros(len(ticks), bool)
        rises[1:] = ticks[1:] > ticks[:-1]
        rises[0] = ticks[0].item() * unit > self._last[0]
        new = []
        for row, key in zip(runs, keys, strict=True):
            if key is None:  # of a dictionary
                self._refuse_null(row, self._id)
            if self.keys and key == self.keys[-1]:
                continue
            if key in self._seen:
                raise ValueError(
                    f"the rows of {key!r} must follow each other, but {self._at(row)} comes after "
                    f"rows of {self.keys[-1]!r}{self._advice()}"
                )
            self._seen.add(key)
            self.keys.append(key)
            new.append(row)
            rises[row] = True
        wrong = np.flatnonzero(~rises)
        if len(wrong):
            self._refuse_order(int(wrong[0]), times, new)
        self.times.add(ticks, unit, self._last[0], new)
        self._last = ticks[-1].item() * unit, times[-1]
        return new

    def _refuse_order(self, row: int, times: Any, new: list[int]) -> None:
        """Raise since the time in `row` is not after the one before."""
        key = self.keys[len(self.keys) - sum(begin > row for begin in new) - 1]
        before = self._last[1] if row == 0 else times[row - 1]
        now, then = told(times[row]), told(before)
        if now == then:
            raise ValueError(
                f"{key!r} has two rows of the time {now}, the second is {self._at(row)}: keep "
                f"one, such as by df.drop_duplicates([{self._id!r}, {self._time!r}])"
            )
        raise ValueError(
            f"the times of {key!r} must increase, but {now} in {self._at(row)} comes after "
            f"{then}{self._advice()}"
        )

    def _refuse_nulls(self, column: Any, name: str) -> None:
        if column.null_count:
            nulls = column.is_null().to_numpy(zero_copy_only=False)
            self._refuse_null(int(np.flatnonzero(nulls)[0]), name)

    def _refuse_null(self, row: int, name: str) -> None:
        what = "an id" if name == self._id else "a time"
        raise ValueError(
            f"each row must have {what}, but {self._at(row)} has none in {name!r}: fill it in, or "
            "leave the row out"
        )

    def _at(self, row: int) -> str:
        return self._pieces.place(self._here[0], self._here[1] + row)

    def _advice(self) -> str:
        return f": sort the rows, such as by df.sort_values([{self._id!r}, {self._time!r}])"


def _runs(ids: Any) -> tuple[list[int], list[Any]]:
    """Return where equal ids begin that follow each other, and these ids."""
    arrow = need("pyarrow", "LongTable")
    compute = need("pyarrow.compute", "LongTable")
    if not arrow.types.is_dictionary(ids.type) and not arrow.types.is_integer(ids.type):
        ids = ids.dictionary_encode()
    codes = ids.indices if arrow.types.is_dictionary(ids.type) else ids
    other = compute.not_equal(codes.slice(1), codes.slice(0, len(codes) - 1))
    runs = [0, *(np.flatnonzero(other.to_numpy(zero_copy_only=False)) + 1).tolist()]
    return runs, ids.take(arrow.array(runs)).to_pylist()
