"""HDF5 datasets that are read only where they are sliced."""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np

__all__ = ["LazyDataset", "h5mmap"]

_CHUNK_CACHE_BYTES = 256 * 2**20


def h5mmap(path: str | os.PathLike[str], name: str) -> np.memmap[Any, Any] | LazyDataset:
    """Map a dataset of an HDF5 file: nothing is read until it is sliced and used.

    Parameters
    ----------
    path
        The file. Files written from Julia as ``(F, N, T)`` read here as ``(T, N, F)``.
    name
        The dataset's name in the file, such as ``"x"`` or ``"train/x"``.

    Returns
    -------
    numpy.memmap or LazyDataset
        A read-only memory map where the dataset lies in one piece in the file, else (chunked,
        compressed, virtual) an object that opens the file in the process that reads. Both slice
        lazily, pickle, and go into `fit` and `predict` as they are.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no HDF5 file, or there is no such dataset; the message lists the ones there are.

    Examples
    --------
    >>> import h5py, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "data.h5")
    >>> with h5py.File(path, "w") as file:
    ...     file["x"] = np.arange(6.0).reshape(3, 2, 1)
    >>> h5mmap(path, "x")[1:, 0, 0].tolist()
    [2.0, 4.0]
    """
    path = os.path.abspath(os.fspath(path))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"h5mmap: there is no file {path}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"h5mmap: {path} cannot be read as HDF5 ({error})") from error
    with file:
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            what = "is a group" if dataset is not None else "is not there"
            there = ", ".join(_datasets(file)) or "none"
            raise ValueError(f"h5mmap: {name!r} {what} in {path}; its datasets are: {there}")
        offset = dataset.id.get_offset()
        # A string or a reference is only a pointer in the file; no map can resolve it.
        if offset is not None and dataset.size and not dataset.dtype.hasobject:
            return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)
        return LazyDataset(path, name, dataset.shape, dataset.dtype)


def _datasets(file: h5py.File) -> list[str]:
    names: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(f"{name} {item.shape}")

    file.visititems(visit)
    return names


class LazyDataset:
    """An HDF5 dataset, or a box cut out of it, that behaves as a memory map does.

    Slicing with ``:`` and step 1 gives another `LazyDataset` and reads nothing; any other index,
    and `numpy.asarray`, read. Decompressed pieces are kept in a cache of 256 MB.
    """

    def __init__(
        self,
        path: str,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        starts: tuple[int, ...] | None = None,
    ) -> None:
        self.path = path
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self._starts = (0,) * len(shape) if starts is None else starts
        self._opened: tuple[int, h5py.Dataset] | None = None

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"LazyDataset({self.path!r}, {self.name!r}, shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, index: Any) -> Any:
        index = index if isinstance(index, tuple) else (index,)
        whole = all(isinstance(i, slice) and i.step in (None, 1) for i in index)
        if not whole or len(index) > self.ndim:
            return np.asarray(self)[index]
        starts, shape = list(self._starts), list(self.shape)
        for axis, piece in enumerate(index):
            begin, end, _ = piece.indices(self.shape[axis])
            starts[axis] += begin
            shape[axis] = max(end - begin, 0)
        view = LazyDataset(self.path, self.name, tuple(shape), self.dtype, tuple(starts))
        view._opened = self._opened
        return view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False:
            raise ValueError("a LazyDataset is read from its file: that is always a copy")
        ends = (start + length for start, length in zip(self._starts, self.shape, strict=True))
        box = tuple(slice(a, b) for a, b in zip(self._starts, ends, strict=True))
        array = np.asarray(self._dataset()[box])
        return array if dtype is None else array.astype(dtype, copy=False)

    def _dataset(self) -> h5py.Dataset:
        """Open the dataset in this process, once."""
        if self._opened is None or self._opened[0] != os.getpid():
            file = h5py.File(self.path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES)
            self._opened = os.getpid(), file[self.name]
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}
