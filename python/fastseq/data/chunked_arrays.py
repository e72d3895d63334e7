"""Arrays that other libraries store in chunks, such as zarr's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from .hdf5.stored_rows import StoredRows
from .sliceable import Sliceable

__all__ = ["ChunkedArray"]


class ChunkedArray:
    """An array in chunks, or a box of it, that is read as `WindowReader` reads HDF5 datasets.

    Attributes
    ----------
    path, name
        What it is, for messages.
    shape, dtype
        Shape and dtype of this box.
    starts
        Where this box starts in the array.
    cached
        Ignored.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._chunks: tuple[int, ...] = tuple(array.chunks)
        self.path: str = type(array).__name__
        self.name: str = str(getattr(array, "name", ""))
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype = np.dtype(array.dtype)
        self.starts: tuple[int, ...] = (0,) * len(self.shape)
        self.cached = False

    @classmethod
    def of(cls, array: Sliceable) -> ChunkedArray | None:
        """Return an array with regular chunks, as its attribute ``chunks`` tells; else None.

        Examples
        --------
        >>> ChunkedArray.of(np.zeros((2, 3)))
        """
        chunks = getattr(array, "chunks", None)
        if not isinstance(chunks, tuple) or not isinstance(array.dtype, np.dtype):
            return None
        regular = all(isinstance(n, int) and n > 0 for n in chunks)
        return cls(array) if regular and len(chunks) == len(array.shape) >= 2 else None

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def __repr__(self) -> str:
        return f"{self._array!r}"

    def __getitem__(self, index: tuple[slice, ...]) -> ChunkedArray:
        box = copy.copy(self)
        box.starts = tuple(a + part.start for a, part in zip(self.starts, index, strict=False))
        box.shape = tuple(part.stop - part.start for part in index)
        box.starts += self.starts[len(index) :]
        box.shape += self.shape[len(index) :]
        return box

    def read_into(self, out: np.ndarray, threads: Callable[[], int]) -> None:  # noqa: ARG002
        """Read this box; the array's library decides in how many threads."""
        box = tuple(slice(a, a + n) for a, n in zip(self.starts, self.shape, strict=True))
        found = self._array[box]
        if found.shape != out.shape:
            raise ValueError(f"{self._array!r} gave shape {found.shape} instead of {out.shape}")
        out[...] = found

    def rows(self) -> StoredRows:
        """Return its rows of chunks along time."""
        return StoredRows.regular(self._array.shape, self._chunks)
