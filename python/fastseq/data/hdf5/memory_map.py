"""HDF5 datasets as memory maps where possible."""

from __future__ import annotations

import functools
import os
from typing import Any

import h5py
import numpy as np

from .handles import location, shared_file
from .lazy_dataset import LazyDataset
from .open_file import damage
from .types import is_bfloat16, stored_dtype
from .virtual import check_readable

__all__ = ["element_offset", "h5mmap", "map_elements", "readable_by", "sliced"]


def h5mmap(path: str | os.PathLike[str], name: str, mode: str = "r") -> np.memmap | LazyDataset:
    """Map a dataset of an HDF5 file; nothing is read until it is sliced and used.

    Parameters
    ----------
    path
        The file. Files written from Julia as ``(F, N, T)`` read here as ``(T, N, F)``.
    name
        The dataset's name in the file, such as ``"x"`` or ``"train/x"``. Links are followed, into
        other files too.
    mode
        ``"r"`` for reading, ``"r+"`` for reading and writing.

    Returns
    -------
    numpy.memmap or LazyDataset
        A memory map if the dataset is contiguous in the file, else (chunked, compressed, virtual)
        an object that opens the file in the process that reads or writes. Both slice lazily, can
        be pickled, and can be passed to `fit` and `predict`; with ``mode="r+"`` both can be
        assigned to by slices.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    OSError
        There is no permission to read or write it, or another process has locked it.
    ValueError
        It is not an HDF5 file, or is truncated; there is no such dataset (the message lists those
        that exist); or the dataset is empty or lacks a part: files of a virtual dataset or of raw
        data, a filter's plugin.
    TypeError
        NumPy has no type for the dataset's elements, such as bfloat16.

    Notes
    -----
    A file that another process is writing to in HDF5's SWMR mode is read, not mapped: as it was
    when this process opened it. If a mapped file is truncated, `fit` and `predict` raise, but
    indexing the map ends the process: replace such files by new ones instead.

    Examples
    --------
    >>> import h5py, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "data.h5")
    >>> with h5py.File(path, "w") as file:
    ...     file["x"] = np.arange(6.0).reshape(3, 2, 1)
    >>> h5mmap(path, "x")[1:, 0, 0].tolist()
    [2.0, 4.0]
    """
    if mode not in ("r", "r+"):
        raise ValueError(f'h5mmap: mode must be "r" or "r+", got {mode!r}')
    path = os.path.abspath(os.fspath(path))
    with damage("h5mmap", path):
        path, name = shared_file(path).locate(name)
        file = shared_file(path)
        with file.dataset(name) as dataset:
            if is_bfloat16(dataset):
                raise TypeError(
                    f"{name!r} in {path} holds bfloat16, which NumPy lacks; h5load with mmap=True "
                    "reads it as tensors"
                )
        return map_elements(path, name, mode)


def map_elements(path: str, name: str, mode: str = "r") -> np.memmap | LazyDataset:
    """Map a dataset as `h5mmap` does, but bfloat16 as the stored uint16.

    It must be in the file itself, not behind a link to another file.
    """
    file = shared_file(path)
    with file.dataset(name) as dataset:
        lazy = LazyDataset(path, name, dataset.shape, stored_dtype(dataset), mode)
        unwritten = _unwritten(dataset)
    if mode == "r+" and unwritten:
        with file.dataset(name, writable=True) as dataset:
            # HDF5 allocates a dataset's space in the file when the first element is written.
            dataset[(0,) * dataset.ndim] = dataset.fillvalue
    with file.dataset(name) as dataset:
        # Not a file that is being written to: HDF5 reads it consistently.
        offset = None if dataset.file.swmr_mode else element_offset(dataset)
    if offset is None:
        return lazy
    needed, size = offset + dataset.size * lazy.dtype.itemsize, os.path.getsize(path)
    if needed > size:
        raise ValueError(
            f"{path} has been cut short: {name!r} of shape {lazy.shape} ends at byte {needed}, the "
            f"file at byte {size}"
        )
    return np.memmap(path, lazy.dtype, "r+" if mode == "r+" else "r", offset, lazy.shape)


def readable_by(
    dataset: h5py.Dataset, home: tuple[str, str] | None = None
) -> tuple[str, str] | None:
    """Return path and name by which an open dataset can be read without its handle, or None.

    `home` is its `location`, if known. A dataset in a file open for writing must be contiguous: no
    other process may open the file meanwhile.
    """
    if dataset.file.mode != "r":
        dataset.file.flush()  # so that recent writes can be read from the file
        if dataset.file.swmr_mode or element_offset(dataset) is None:
            return None
    return home or location(dataset)


def sliced(dataset: h5py.Dataset) -> h5py.Dataset | np.ndarray:
    """Return a dataset to slice by its own handle, or a copy of it if the file is in memory.

    Raises
    ------
    ValueError
        A part of it is missing.
    """
    check_readable(dataset)
    return dataset[()] if dataset.file.driver == "core" else dataset


def _unwritten(dataset: h5py.Dataset) -> bool:
    """Return whether a dataset will be contiguous, but has no space in the file yet."""
    contiguous = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
    return bool(
        contiguous
        and dataset.size
        and dataset.id.get_offset() is None
        and dataset.external is None
        and _is_raw(dataset)
    )


def element_offset(dataset: h5py.Dataset) -> int | None:
    """Return a dataset's offset in the file, if its bytes are an array of `stored_dtype`."""
    offset: int | None = dataset.id.get_offset()
    return offset if dataset.size and _is_raw(dataset) else None


def _is_raw(dataset: h5py.Dataset) -> bool:
    """Return whether stored elements are NumPy's bytes: no pointers, no converted types."""
    dtype, stored = dataset.dtype, dataset.id.get_type()
    if dtype.hasobject or stored.get_size() != dtype.itemsize:
        return False
    numbers = stored.get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT)
    return not numbers or bool(stored.equal(_type_of(dtype)))


@functools.lru_cache
def _type_of(dtype: np.dtype) -> Any:
    """Return HDF5's type for a dtype."""
    return h5py.h5t.py_create(dtype)
