"""Which kind of source is made for each kind of user data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from .chunked_arrays import ChunkedArray
from .hdf5 import LazyDataset, LazyTensor, h5mmap
from .hdf5.handles import location
from .hdf5.memory_map import map_elements, readable_by, sliced
from .hdf5.types import is_bfloat16
from .mapped_arrays import CheckedMap, file_offset, map_of, rows_in_one_piece
from .ragged import DatasetItems, RaggedArrays, RaggedRows, rows_in_memory
from .sample_sources import LastStepSource, open_samples
from .samples_first import LastSteps, SamplesFirst
from .sliceable import Sliceable
from .sources import ArraySource, Source, StridedSource, TensorSource, WindowSource, holds, largest
from .tables.table_source import RaggedTable, StoredSequence
from .user_arrays import refuse_valueless

__all__ = ["is_ragged", "kind_error", "open_ragged", "open_source", "readable", "to_tensor"]


def is_ragged(array: object) -> bool:
    """Return whether `array` is a list of sequences, rather than one array written as a list."""
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
        Its name in messages.
    dtype
        Dtype of the slabs.
    keep_integers
        Keep integers (class labels, ids) as int64.

    Raises
    ------
    TypeError
        It is none of these, or holds neither floats nor integers nor booleans.
    """
    if isinstance(array, list):
        array = np.asarray(array)
    source = _open(array, name, dtype, keep_integers=keep_integers)
    source.holds, source.largest = holds(array.dtype), largest(array.dtype)
    return source


def _open(array: Sliceable, name: str, dtype: torch.dtype, *, keep_integers: bool) -> Source:
    if isinstance(array, Tensor):
        return TensorSource(name, array, target_dtype(array, name, dtype, keep_integers))
    if isinstance(array, h5py.Dataset):
        array = LazyTensor.of(array) if is_bfloat16(array) else readable(array)
    if isinstance(array, LazyTensor):
        return _open_bfloat16(array, name, dtype)
    target = target_dtype(array, name, dtype, keep_integers)
    if isinstance(array, LastSteps):
        return LastStepSource(name, array, dtype)
    if isinstance(array, SamplesFirst):
        return open_samples(array, name, target)
    if isinstance(array, LazyDataset):
        return WindowSource(name, array, target)
    if not isinstance(array, np.ndarray):
        chunked = ChunkedArray.of(array)
        if chunked is not None:
            return WindowSource(name, chunked, target)
        return ArraySource(name, array, target)
    mapped = map_of(array)
    if mapped is not None:
        offset = file_offset(array)
        if offset is None:
            return ArraySource(name, CheckedMap(array, mapped), target)
        return _strided(array, name, target, str(mapped.filename), offset)
    stored = array.dtype
    forward = min(array.strides, default=0) >= 0
    known_to_torch = stored.isnative and (stored.kind != "u" or stored.itemsize == 1)
    if array.flags.writeable and forward and known_to_torch:
        return TensorSource(name, torch.from_numpy(array), target)
    if array.size and rows_in_one_piece(array):
        return _strided(array, name, target, None, array.ctypes.data)
    return ArraySource(name, array, target)


def _strided(
    array: np.ndarray,
    name: str,
    dtype: torch.dtype,
    place: str | None,
    offset: int,
    stored: torch.dtype | None = None,
) -> StridedSource:
    return StridedSource(
        name,
        array.shape,
        dtype,
        stored=array.dtype if stored is None else stored,
        place=place,
        offset=offset,
        strides=(array.strides[0], array.strides[1]),
        owner=array,
        swapped=not array.dtype.isnative,
    )


def open_ragged(
    items: Sequence[Sliceable],
    name: str,
    lengths: np.ndarray,
    dtype: torch.dtype,
    *,
    keep_integers: bool = False,
    features: tuple[int, ...] | None = None,
) -> RaggedArrays | RaggedRows:
    """Open sequences ``(T_i, …)`` of different lengths; see `open_source`.

    Parameters
    ----------
    items, name, dtype, keep_integers
        The arrays; as in `open_source`.
    lengths
        Their numbers of time steps.
    features
        The dimensions after the first; None: the arrays' own.
    """
    first = items[0]
    shape = tuple(first.shape[1:])
    target = target_dtype(first, f"{name}[0]", dtype, keep_integers)
    for index, item in enumerate(items):
        if tuple(item.shape[1:]) != shape:
            raise ValueError(
                f"{name}[{index}] must have as many features as {name}[0], "
                f"got shapes {tuple(item.shape)} and {tuple(first.shape)}"
            )
        if target_dtype(item, f"{name}[{index}]", dtype, keep_integers) != target:
            raise TypeError(f"{name}[{index}] holds {item.dtype}, {name}[0] {first.dtype}")
    features = shape if features is None else features
    wide = any(holds(item.dtype) == torch.float64 for item in items)
    rows = None
    if not isinstance(items, DatasetItems):
        checked = [_checked(item) for item in items]
        rows = rows_in_memory(checked, file_offset)
        items = items if rows is not None else checked
    source: RaggedArrays | RaggedRows
    if isinstance(first, StoredSequence):
        source = RaggedTable(name, items, features, lengths, target)
    elif rows is None:
        source = RaggedArrays(name, items, features, lengths, target)
    else:
        source = RaggedRows(name, items, features, lengths, target, rows)
    source.holds = torch.float64 if wide else torch.float32
    source.largest = max(largest(item.dtype) for item in items)
    return source


def target_dtype(array: Any, name: str, dtype: torch.dtype, keep_integers: bool) -> torch.dtype:
    """Return the dtype of slabs of `array`, which must be an array of numbers."""
    if isinstance(array, Tensor):
        if array.is_complex():
            raise _dtype_error(name, array.dtype)
        refuse_valueless(array, name)
        integers = not array.is_floating_point()
        return torch.int64 if integers and keep_integers else dtype
    if not all(hasattr(array, part) for part in ("shape", "dtype", "__getitem__")):
        raise kind_error(name, array)
    if isinstance(array, h5py.Dataset) and is_bfloat16(array):
        raise TypeError(f"{name} holds bfloat16: load it by h5load(…, mmap=True)")
    if isinstance(array.dtype, torch.dtype):
        if array.dtype.is_complex:
            raise _dtype_error(name, array.dtype)
        integers = not array.dtype.is_floating_point
        return torch.int64 if integers and keep_integers else dtype
    try:
        stored = np.dtype(array.dtype)
    except TypeError as error:
        raise _dtype_error(name, array.dtype) from error
    if stored.kind not in "biuf" or (stored.kind == "f" and stored.itemsize > 8):
        raise _dtype_error(name, stored)
    return torch.int64 if stored.kind in "biu" and keep_integers else dtype


def kind_error(name: str, array: object) -> TypeError:
    """Return the error for an `array` of an unsupported type."""
    hint = f": pass {name}.to_numpy()" if hasattr(array, "to_numpy") else ""
    return TypeError(
        f"{name} must be an array, a tensor, an HDF5 dataset, or a tuple or dict of these, "
        f"got {type(array).__name__}{hint}"
    )


def _dtype_error(name: str, dtype: object) -> TypeError:
    return TypeError(
        f"{name} must hold floats, integers or booleans, got dtype {dtype}; convert it"
    )


def _open_bfloat16(array: LazyTensor, name: str, dtype: torch.dtype) -> Source:
    """Open a bfloat16 tensor saved by `h5save`."""
    raw = array.raw
    if not isinstance(raw, LazyDataset):
        return ArraySource(name, array, dtype)
    whole = map_elements(raw.path, raw.name)
    if isinstance(whole, np.memmap):
        part = whole[raw.selection()]
        offset = file_offset(part)
        if offset is not None:
            return _strided(part, name, dtype, raw.path, offset, torch.bfloat16)
    return WindowSource(name, array, dtype)


def readable(dataset: h5py.Dataset) -> h5py.Dataset | np.ndarray | LazyDataset:
    """Return an open dataset in a form that another thread can read, by offset if possible."""
    place = readable_by(dataset)
    if place is None:
        return sliced(dataset)
    found = h5mmap(*place)
    # Another file may have replaced it before that opened it.
    return found if location(dataset) is not None else sliced(dataset)


def _checked(item: Sliceable) -> Sliceable:
    """Return an array for which a file truncated meanwhile is an error."""
    if not isinstance(item, np.ndarray):
        return item
    mapped = map_of(item)
    by_place = isinstance(item, np.memmap) and item.flags.c_contiguous and item.mode != "c"
    return item if mapped is None or by_place else CheckedMap(item, mapped)


def to_tensor(array: object, dtype: torch.dtype | None = None) -> Tensor:
    """Return an array or tensor as a tensor; an array is copied or converted at most once.

    Without a dtype, values are unchanged.
    """
    if isinstance(array, Tensor):
        return array if dtype is None else array.to(dtype)
    array = np.asarray(array)
    fits = array.flags.c_contiguous and array.flags.owndata and array.flags.writeable
    unsigned = array.dtype.kind == "u" and array.dtype.itemsize > 1  # torch barely supports these
    if not array.dtype.isnative or unsigned:
        wide = np.int64 if array.max(initial=0) < 2**63 else np.float64
        array = array.astype(wide if unsigned else array.dtype.newbyteorder("="), order="C")
    elif not fits:
        array = np.array(array, order="C")
    tensor = torch.from_numpy(array)
    return tensor if dtype is None else tensor.to(dtype)
