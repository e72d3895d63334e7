"""Tables in long form as sequences: a row for each sequence and time."""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from ..._util.optional_imports import need
from ..._util.warn_user import warn_user
from ..hdf5.names import matching_files
from ..ragged import GroupItems
from ..sliceable import Sliceable
from .columns import check_names, number_type
from .row_groups import InMemory, ParquetFiles, Pieces
from .row_reader import RowReader
from .sequence_index import SequenceIndex, check_kinds
from .sequence_times import differing, longest_step, read_times, told
from .table_source import StoredSequence

__all__ = ["LongTable", "TableItems", "table_items"]

_AT_ONCE = 2**25  # bytes of sequences that are read together in a loop


class LongTable(Sequence[np.ndarray]):
    """Parquet files or an Arrow table in long form, as sequences of different lengths.

    Each row is a time step of a sequence. Rows of one sequence follow each other, in the order of
    their times. They are read as consecutive steps: no gaps are filled, and a warning tells of
    unequal steps. The table is a sequence of arrays ``(T_i, C)``, one for each id, in the order in
    which ids appear. It can be passed to `Estimator.fit` and `predict` like a list of such arrays.

    Parameters
    ----------
    source
        A Parquet file, a pattern such as ``"parts/*.parquet"`` (in natural order: 2 before 10), a
        list of these, a `pyarrow.Table`, or a `pyarrow.dataset.Dataset` of Parquet files on this
        machine. A sequence may continue in the next file.
    columns
        Columns of numbers or booleans: the C features, in this order. Together they have one dtype,
        to which NumPy promotes theirs. Null is NaN, so integers and booleans with nulls become
        floats, as do decimals. Dates, text, categories and nested columns are refused.
    id_col
        The column of the sequences' ids: text or integers.
    time_col
        The column of times: dates, timestamps or numbers, which increase within each sequence.

    Attributes
    ----------
    keys
        The ids, in the order of the sequences.
    columns
        The columns.
    lengths
        The sequences' numbers of time steps, T_i.
    dtype
        The dtype of the arrays.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A column is missing; an id or a time is null; rows of a sequence are apart, or their times
        do not increase; or there are no rows.
    TypeError
        A column does not hold what it should.
    ReadError
        A file is damaged, is no Parquet file, or has changed since the table was made of it.
    MissingFeatureError
        There is no pyarrow.

    Notes
    -----
    Only ids and times are read at first. A sequence's numbers are read when it is used: the row
    groups that hold it are decoded, of which up to 128 MB are kept for sequences read next. `fit`
    and `predict` hold, besides, the sequences of as many blocks as fit into 256 MB.

    Slices, such as ``table[:100]``, are tables as well, and read nothing. Tables can be pickled;
    of files, this keeps their paths.

    Tables that are passed together, as inputs and targets, must have the same ids and times.

    Examples
    --------
    >>> import fastseq as fs, pyarrow
    >>> rows = {"unique_id": ["a", "a", "b"], "ds": [1, 2, 1], "x": [0.5, 1.5, 2.5]}
    >>> table = fs.LongTable(pyarrow.table(rows), ["x"])
    >>> table.keys, table[0].tolist()
    (['a', 'b'], [[0.5], [1.5]])
    """

    def __init__(
        self,
        source: Any,
        columns: str | Sequence[str],
        *,
        id_col: str = "unique_id",
        time_col: str = "ds",
    ) -> None:
        need("pyarrow", "LongTable")
        self.columns: list[str] = _column_names(columns)
        for name, value in (("id_col", id_col), ("time_col", time_col)):
            if not isinstance(value, str):
                raise TypeError(f"{name} must be the name of a column, got {value!r}")
        if id_col == time_col:
            raise ValueError(f"id_col and time_col must be two columns, got {id_col!r} for both")
        self._pieces: Pieces = _pieces_of(source)
        found: list[np.dtype] = []
        for place, schema, pieces in self._pieces.schemas():
            check_names([id_col, time_col, *self.columns], schema, place)
            for name in self.columns:
                field = schema.field(name)
                dtype = number_type(field, place, nulls=False)
                # Floats hold nulls anyway.
                asks = field.nullable and dtype.kind in "biu"
                nulls = asks and self._pieces.nulls(pieces, name)
                found.append(number_type(field, place, nulls=nulls))
        self._times_are = check_kinds(self._pieces, id_col, time_col)
        self.dtype: np.dtype = np.result_type(*found)
        index = SequenceIndex(self._pieces, id_col, time_col)
        if not index.keys:
            raise ValueError(f"the table has no sequences: {_shown(source)} has no rows")
        self.keys: list[Any] = index.keys
        self.lengths: np.ndarray = index.lengths
        self._begins = index.begins
        self._time_col, self._digests = time_col, index.times.digests
        self._warn_if_uneven(index.times.uneven)
        self._reader = RowReader(self._pieces, self.columns, self.dtype)

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> LongTable: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | LongTable:
        if isinstance(index, slice):
            part = copy.copy(self)
            part.keys, part.lengths = self.keys[index], self.lengths[index]
            part._begins, part._digests = self._begins[index], self._digests[index]
            return part
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"the table has {len(self)} sequences, got the index {number}")
        number %= len(self)
        return self._reader.read(self._begins[number, None], self.lengths[number, None])[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        ends = np.cumsum(self.lengths) * self._reader.row_bytes
        at = 0
        while at < len(self):
            room = (ends[at - 1] if at else 0) + _AT_ONCE
            end = max(int(np.searchsorted(ends, room, "right")), at + 1)
            yield from self._reader.read(self._begins[at:end], self.lengths[at:end])
            at = end

    def _times(self, number: int) -> Iterator[Any]:
        """Yield the times of a sequence, piece by piece."""
        begin, length = int(self._begins[number]), int(self.lengths[number])
        return read_times(self._pieces, self._time_col, begin, length)

    def _warn_if_uneven(self, uneven: np.ndarray) -> None:
        if not len(uneven):
            return
        first = int(uneven[0])
        before, after = map(told, longest_step(self._times(first)))
        warn_user(
            f"steps are unequal in {len(uneven)} of {len(self)} sequences: in "
            f"{self.keys[first]!r}, {after} comes right after {before}. Rows are read as "
            "consecutive steps: if rows are missing, add them with null as value, and pass "
            'nan="mask"; if not, pass a column of the steps\' numbers as time_col'
        )

    def __repr__(self) -> str:
        return (
            f"LongTable({len(self)} sequences of {self.columns}, {self.lengths.sum()} time steps, "
            f"{self.dtype})"
        )


class TableItems(GroupItems):
    """The sequences of a table, and their ids as text."""

    def __init__(self, items: Iterable[Sliceable], table: LongTable) -> None:
        super().__init__(items, list(map(str, table.keys)))
        self.table = table

    def check_times(self, name: str, other: TableItems, reference: str) -> None:
        """Raise ValueError unless the times of all sequences are those in the other table.

        Nothing is raised for tables of sequences of other lengths.
        """
        mine, theirs = self.table, other.table
        if mine._times_are != theirs._times_are:
            raise ValueError(
                f"{name} must have the times of {reference}, but has {mine._times_are}, "
                f"{reference} {theirs._times_are}: convert one of them"
            )
        wrong = np.flatnonzero(mine._digests != theirs._digests)
        if not len(wrong) or (mine.lengths != theirs.lengths).any():
            return
        n = int(wrong[0])
        for one, two in differing(mine._times(n), theirs._times(n)):
            raise ValueError(
                f"{name} must have the times of {reference}, but in {mine.keys[n]!r} it has "
                f"{told(one)} where {reference} has {told(two)}; if that is meant, pass "
                f"list({name}), which is paired by position"
            )


def table_items(table: LongTable, name: str) -> TableItems:
    """Return the sequences of a table, each read where it is sliced.

    Raises
    ------
    ValueError
        There are none: it is an empty slice.
    """
    if not len(table):
        raise ValueError(f"{name} has no sequences: the table is an empty part of another one")
    items = [
        StoredSequence(table._reader, begin, length)
        for begin, length in zip(table._begins.tolist(), table.lengths.tolist(), strict=True)
    ]
    return TableItems(items, table)


def _column_names(columns: Any) -> list[str]:
    names = [columns] if isinstance(columns, str) else columns
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"columns must be names of columns, got {columns!r}")
    if not names:
        raise ValueError("columns must name at least one column, got none")
    twice = {name for name in names if list(names).count(name) > 1}
    if twice:
        raise ValueError(f"columns must be different ones, got {sorted(twice)[0]!r} twice")
    return list(names)


def _pieces_of(source: Any) -> Pieces:
    arrow, dataset = need("pyarrow", "LongTable"), need("pyarrow.dataset", "LongTable")
    if isinstance(source, arrow.Table):
        return InMemory(source)
    if isinstance(source, dataset.InMemoryDataset):
        return InMemory(source.to_table())
    if isinstance(source, dataset.Dataset):
        return _pieces_of_dataset(source)
    paths: list[str] = []
    for path in source if isinstance(source, (list, tuple)) else [source]:
        if not isinstance(path, (str, os.PathLike)):
            frame = hasattr(path, "columns")
            raise TypeError(
                "source must be names of Parquet files, a pyarrow.Table or a dataset of pyarrow, "
                f"got {type(path).__name__}{': pass pyarrow.table(…) of it' if frame else ''}"
            )
        paths += map(os.path.abspath, matching_files(path, "LongTable"))
    if not paths:
        raise ValueError("source must be at least one Parquet file, got an empty list")
    return ParquetFiles(paths)


def _pieces_of_dataset(source: Any) -> Pieces:
    """Return the row groups of a dataset, which must have no other rows and columns than these."""
    dataset, files = need("pyarrow.dataset", "LongTable"), need("pyarrow.fs", "LongTable")
    if not (
        isinstance(source, dataset.FileSystemDataset)
        and isinstance(source.format, dataset.ParquetFileFormat)
        and isinstance(source.filesystem, files.LocalFileSystem)
    ):
        raise TypeError(
            "source must be a dataset of Parquet files on this machine, got "
            f"{type(source).__name__}: pass its to_table() if that fits into memory"
        )
    if not source.files:
        raise ValueError("source must be at least one Parquet file, got a dataset without files")
    pieces = ParquetFiles(list(map(os.path.abspath, source.files)))
    rows = sum(pieces.rows)
    if source.count_rows() != rows:
        raise ValueError(
            f"source must be a dataset without a filter, but has {source.count_rows()} of its "
            f"files' {rows} rows: pass its to_table() if that fits into memory"
        )
    return pieces


def _shown(source: Any) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else "the source"
