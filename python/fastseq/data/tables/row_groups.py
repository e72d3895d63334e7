"""The pieces in which tables are read: row groups of Parquet files, slices of tables in memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Protocol

from ..._util.optional_imports import need
from ...errors import FastseqError, ReadError
from ..file_watch import FileWatch

__all__ = ["InMemory", "ParquetFiles", "Pieces"]

_OPEN_FILES = 16
_BATCH_ROWS = 2**16


class Pieces(Protocol):
    """A table in pieces.

    Attributes
    ----------
    rows
        The pieces' numbers of rows.
    """

    rows: list[int]

    def schemas(self) -> Iterator[tuple[str, Any, list[int]]]:
        """Yield the files' names, for messages, with their schemas and pieces."""

    def place(self, piece: int, row: int) -> str:
        """Return what messages call a row of a piece."""

    def nulls(self, pieces: list[int], name: str) -> bool:
        """Return whether a column has nulls in some of the pieces."""

    def batches(self, piece: int, names: list[str], *, ids: str | None = None) -> Iterator[Any]:
        """Yield batches of a piece's rows; `ids` may come as a dictionary."""

    def table(self, piece: int, names: list[str]) -> Any:
        """Return all rows of a piece, decoded by Arrow's threads."""

    def check(self, pieces: list[int]) -> None:
        """Raise `ReadError` if a file of these pieces has changed."""

    def reading(self, piece: int) -> Any:
        """Return a context in which errors name the piece's file."""


class InMemory:
    """A table in memory; see `Pieces`."""

    def __init__(self, table: Any) -> None:
        self._table = table
        count = table.num_rows
        self.rows = [min(_BATCH_ROWS, count - at) for at in range(0, count, _BATCH_ROWS)]

    def schemas(self) -> Iterator[tuple[str, Any, list[int]]]:
        """Yield its schema."""
        yield "the table", self._table.schema, list(range(len(self.rows)))

    def place(self, piece: int, row: int) -> str:
        """Return what messages call a row."""
        return f"row {piece * _BATCH_ROWS + row} of the table"

    def nulls(self, pieces: list[int], name: str) -> bool:
        """Return whether a column has nulls, in the dictionary of its values too."""
        types = need("pyarrow", "LongTable").types
        column = self._table.column(name) if pieces else None
        if column is None or not types.is_dictionary(column.type):
            return column is not None and column.null_count > 0
        return any(part.dictionary_decode().null_count for part in column.chunks)

    def batches(self, piece: int, names: list[str], *, ids: str | None = None) -> Iterator[Any]:  # noqa: ARG002
        """Yield the batches of a piece's rows."""
        yield from self.table(piece, names).to_batches()

    def table(self, piece: int, names: list[str]) -> Any:
        """Return the rows of a piece."""
        return self._table.select(names).slice(piece * _BATCH_ROWS, _BATCH_ROWS)

    def check(self, pieces: list[int]) -> None:
        """Do nothing: a table cannot change."""

    @contextmanager
    def reading(self, piece: int) -> Iterator[None]:  # noqa: ARG002
        """Change no error."""
        yield


class ParquetFiles:
    """Row groups of Parquet files, one file after the other; see `Pieces`.

    Parameters
    ----------
    paths
        The files.

    Raises
    ------
    ReadError
        One of them is damaged, or is not a Parquet file.
    ValueError
        One is no file, but a folder or a device.
    """

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.rows: list[int] = []
        self._groups: list[tuple[int, int]] = []
        self._watches: list[FileWatch] = []
        self._opened: dict[tuple[str, str | None], Any] = {}
        self._pid = os.getpid()
        for number, path in enumerate(paths):
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ValueError(
                    f"{path} is not a file: for all files of a folder pass a pattern, "
                    f"{os.path.join(path, '*.parquet')!r}"
                )
            self._watches.append(FileWatch())
            self._watches[-1].record([path])
            with self._naming(number):
                found = self._file(number).metadata
                counts = [found.row_group(i).num_rows for i in range(found.num_row_groups)]
            self.rows += counts
            self._groups += [(number, group) for group in range(len(counts))]

    def schemas(self) -> Iterator[tuple[str, Any, list[int]]]:
        """Yield the files with their schemas and pieces."""
        pieces: list[list[int]] = [[] for _ in self.paths]
        for piece, (number, _) in enumerate(self._groups):
            pieces[number].append(piece)
        for number, path in enumerate(self.paths):
            with self._naming(number):
                schema = self._file(number).schema_arrow
            yield path, schema, pieces[number]

    def place(self, piece: int, row: int) -> str:
        """Return what messages call a row of a piece."""
        number, group = self._groups[piece]
        return f"row {sum(self.rows[piece - group : piece]) + row} of {self.paths[number]}"

    def nulls(self, pieces: list[int], name: str) -> bool:
        """Return whether a column has nulls; reads it where the file's statistics don't tell."""
        return any(map(partial(self._has_nulls, name), pieces))

    def _has_nulls(self, name: str, piece: int) -> bool:
        number, group = self._groups[piece]
        # The first values come first: of a damaged column, Arrow's statistics end the process.
        batches = self.batches(piece, [name])
        found = [batch.column(name).null_count for batch in islice(batches, 1)]
        if any(found):
            return True
        with self._naming(number):
            file = self._file(number)
            places = [i for i in range(len(file.schema)) if file.schema.column(i).path == name]
            known = None
            if len(places) == 1:
                known = file.metadata.row_group(group).column(places[0]).statistics
            if known is not None and known.has_null_count:
                return bool(known.null_count)
        return any(batch.column(name).null_count for batch in batches)

    def batches(self, piece: int, names: list[str], *, ids: str | None = None) -> Iterator[Any]:
        """Yield batches of a row group, decoded bit by bit; texts in `ids` as a dictionary."""
        number, group = self._groups[piece]
        with self._naming(number):
            file = self._file(number, ids)
            left = self.rows[piece]
            for batch in file.iter_batches(_BATCH_ROWS, [group], columns=names):
                left -= batch.num_rows
                if left < 0:
                    break
                yield batch
            if left:
                raise ReadError(f"{self.paths[number]} has other numbers of rows than it says")

    def table(self, piece: int, names: list[str]) -> Any:
        """Return a row group, its columns decoded side by side."""
        number, group = self._groups[piece]
        with self._naming(number):
            found = self._file(number).read_row_group(group, columns=names)
            if found.num_rows != self.rows[piece]:
                raise ReadError(f"{self.paths[number]} has other numbers of rows than it says")
            return found

    def check(self, pieces: list[int]) -> None:
        """Raise if a file of these pieces has changed since it was opened."""
        for number in sorted({self._groups[piece][0] for piece in pieces}):
            self._watches[number].check()

    def reading(self, piece: int) -> Any:
        """Return a context in which errors name the piece's file."""
        return self._naming(self._groups[piece][0])

    def _file(self, number: int, ids: str | None = None) -> Any:
        """Return an open file; a forked child opens its own."""
        if self._pid != os.getpid():
            self._pid, self._opened = os.getpid(), {}
        key = self.paths[number], ids
        file = self._opened.pop(key, None)
        if file is None:
            parquet = need("pyarrow.parquet", "LongTable")
            while len(self._opened) >= _OPEN_FILES:
                self._opened.pop(next(iter(self._opened))).close()
            file = parquet.ParquetFile(key[0], read_dictionary=None if ids is None else [ids])
        self._opened[key] = file
        return file

    @contextmanager
    def _naming(self, number: int) -> Iterator[None]:
        """Raise errors of Arrow as errors that name the file, and say whether it has changed."""
        try:
            yield
        except Exception as error:
            system = isinstance(error, OSError) and error.errno is not None
            if isinstance(error, FastseqError) or system:
                raise
            self._watches[number].check()
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ReadError(
                f"{self.paths[number]} cannot be read: it is damaged, or is no Parquet file "
                f"({reason})"
            ) from error

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": {}}
