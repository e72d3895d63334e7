"""Which kind of source is made of what users pass."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ..h5 import LazyDataset, h5mmap
from .ragged import DatasetItems, RaggedArrays, RaggedRows, rows_of
from .sources import ArraySource, Source, StridedSource, TensorSource, WindowSource

__all__ = ["is_ragged", "open_ragged", "open_source", "to_tensor"]


def is_ragged(array: Any) -> bool:
    """Whether `array` is a list of sequences' arrays, rather than one array written as a list."""
    if isinstance(array, DatasetItems):
        return True
    return isinstance(array, list) and len(array) > 0 and all(hasattr(a, "shape") for a in array)


def open_source(
    array: Any, name: str, dtype: torch.dtype, *, keep_integers: bool = False
) -> Source:
    """Open `array`, ``(T, N, …)``, for reading as `dtype`; reads nothing yet.

    Parameters
    ----------
    array
        Tensor, array, memory map, HDF5 dataset, or anything with ``shape``, ``dtype``, slicing.
    name
        What messages call it.
    dtype
        Of the slabs.
    keep_integers
        Leave integers (class labels) integers, as int64.

    Raises
    ------
    TypeError
        It is not such a thing, or holds neither floats nor integers nor booleans.
    """
    if isinstance(array, Tensor):
        return TensorSource(name, array, target_dtype(array, name, dtype, keep_integers))
    if isinstance(array, h5py.Dataset):
        array = _mapped(array)
    if isinstance(array, list):
        array = np.asarray(array)
    target = target_dtype(array, name, dtype, keep_integers)
    if isinstance(array, LazyDataset):
        return WindowSource(name, array, target)
    if not isinstance(array, np.ndarray):
        return ArraySource(name, array, target)
    offset = file_offset(array)
    if offset is not None:
        return StridedSource(
            name,
            array.shape,
            target,
            stored=array.dtype,
            place=str(array.filename),  # type: ignore[attr-defined]
            offset=offset,
            strides=(array.strides[0], array.strides[1]),
            swapped=not array.dtype.isnative,
        )
    stored = array.dtype
    forward = min(array.strides, default=0) >= 0
    known_to_torch = stored.isnative and (stored.kind != "u" or stored.itemsize == 1)
    if array.flags.writeable and forward and known_to_torch:
        return TensorSource(name, torch.from_numpy(array), target)
    if array.size and _rows_in_one_piece(array):
        return StridedSource(
            name,
            array.shape,
            target,
            stored=stored,
            place=None,
            offset=array.ctypes.data,
            strides=(array.strides[0], array.strides[1]),
            owner=array,
            swapped=not stored.isnative,
        )
    return ArraySource(name, array, target)


def open_ragged(
    items: Sequence[Any],
    name: str,
    lengths: np.ndarray[Any, Any],
    dtype: torch.dtype,
    *,
    keep_integers: bool = False,
    features: tuple[int, ...] | None = None,
) -> Source:
    """Open sequences ``(T_i, …)`` of different lengths; see `open_source`.

    Parameters
    ----------
    items, name, dtype, keep_integers
        The arrays; as in `open_source`.
    lengths
        Their numbers of steps.
    features
        What is behind the first dimension; None: as the arrays have it.
    """
    shape = tuple(items[0].shape[1:])
    for index, item in enumerate(items):
        if tuple(item.shape[1:]) != shape:
            raise ValueError(
                f"{name}[{index}] must have as many features as {name}[0], "
                f"got shapes {tuple(item.shape)} and {tuple(items[0].shape)}"
            )
        targets = target_dtype(item, f"{name}[{index}]", dtype, keep_integers)
        if targets != target_dtype(items[0], name, dtype, keep_integers):
            raise TypeError(f"{name}[{index}] holds {item.dtype}, {name}[0] {items[0].dtype}")
    features = shape if features is None else features
    target = target_dtype(items[0], name, dtype, keep_integers)
    rows = None if isinstance(items, DatasetItems) else rows_of(items, file_offset)
    if rows is None:
        return RaggedArrays(name, items, features, lengths, target)
    return RaggedRows(name, items, features, lengths, target, rows)


def target_dtype(array: Any, name: str, dtype: torch.dtype, keep_integers: bool) -> torch.dtype:
    """Return the dtype of slabs of `array`, which must be an array of numbers."""
    if isinstance(array, Tensor):
        if array.is_complex():
            raise _dtype_error(name, array.dtype)
        integers = not array.is_floating_point()
        return torch.int64 if integers and keep_integers else dtype
    if not all(hasattr(array, part) for part in ("shape", "dtype", "__getitem__")):
        raise TypeError(
            f"{name} must be an array, a tensor, an HDF5 dataset, or a tuple or dict of these, "
            f"got {type(array).__name__}"
        )
    try:
        stored = np.dtype(array.dtype)
    except TypeError as error:
        raise _dtype_error(name, array.dtype) from error
    if stored.kind not in "biuf" or (stored.kind == "f" and stored.itemsize > 8):
        raise _dtype_error(name, stored)
    return torch.int64 if stored.kind in "biu" and keep_integers else dtype


def _dtype_error(name: str, dtype: Any) -> TypeError:
    return TypeError(
        f"{name} must hold floats, integers or booleans, got dtype {dtype}; convert it"
    )


def _mapped(dataset: h5py.Dataset) -> Any:
    """Return an open dataset as one that can be read by another thread, and by its offset."""
    if dataset.file.mode != "r":
        dataset.file.flush()  # what was just written is to be read from the file
        if dataset.id.get_offset() is None:
            return dataset  # nobody else may open the file meanwhile
    if dataset.file.driver == "core":
        return dataset[()]  # a file in memory
    return h5mmap(dataset.file.filename, dataset.name)


def to_tensor(array: Any, dtype: torch.dtype) -> Tensor:
    """Return what NumPy or torch understands as a tensor; an array is copied or converted once."""
    if isinstance(array, Tensor):
        return array.to(dtype)
    array = np.asarray(array)
    fits = array.flags.c_contiguous and array.flags.owndata and array.flags.writeable
    unsigned = array.dtype.kind == "u" and array.dtype.itemsize > 1  # torch hardly knows these
    if not array.dtype.isnative or unsigned:
        array = array.astype(np.int64 if unsigned else array.dtype.newbyteorder("="), order="C")
    elif not fits:
        array = np.array(array, order="C")
    return torch.from_numpy(array).to(dtype)


def _rows_in_one_piece(array: np.ndarray[Any, Any]) -> bool:
    return bool(array[0, 0].flags.c_contiguous and array.strides[1] == array[0, 0].nbytes)


def file_offset(array: np.ndarray[Any, Any]) -> int | None:
    """Where `array` begins in the file it maps, if slabs of it are pieces of that file."""
    mapped = getattr(array, "_mmap", None)
    if not isinstance(array, np.memmap) or mapped is None or array.filename is None:
        return None
    if array.mode == "c" or not array.size:
        return None
    in_order = array.ndim > 1 and array.strides[0] >= 0 and _rows_in_one_piece(array)
    if not in_order and not (array.ndim == 1 and array.flags.c_contiguous):
        return None
    base = np.frombuffer(mapped, np.uint8).ctypes.data
    # numpy maps from the page that the array's offset lies in; views keep that first offset.
    start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    return int(start + array.ctypes.data - base)
