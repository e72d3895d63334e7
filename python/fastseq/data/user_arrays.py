"""Users' data before they are opened: groups become lists, unsupported types raise."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from ..errors import FastseqError, ReadError
from .hdf5 import LazyTensor
from .hdf5.links import dead_link
from .hdf5.types import is_bfloat16
from .ragged import GroupItems, group_items
from .tables.long_table import LongTable, table_items

__all__ = ["checked", "refuse_containers", "refuse_foreign", "refuse_null", "refuse_valueless"]

_SHOWN = 8  # members of a group shown in messages


def checked(array: object, name: str) -> Any:
    """Return an HDF5 group or a table as the list of its sequences, and an array unchanged.

    Raises
    ------
    ValueError, TypeError
        It only resembles data; the message says what to pass instead.
    ReadError
        A group cannot be read.
    """
    if isinstance(array, h5py.Dataset | h5py.Group) and not array:
        raise ValueError(f"{name} is from a file that has been closed; keep it open")
    refuse_null(array, name)
    if isinstance(array, h5py.Group):
        return _items_of(array, name)
    if isinstance(array, LongTable):
        return table_items(array, name)
    if isinstance(array, h5py.Dataset) and is_bfloat16(array):
        return LazyTensor.of(array)
    if isinstance(array, DataLoader):
        raise TypeError(
            f"{name} is a DataLoader, whose batches cannot be cut in time: pass its dataset "
            "(loader.dataset), and batchsize in the spec"
        )
    refuse_containers(array, name)
    return array


def refuse_containers(array: object, name: str) -> None:
    """Raise unless sequences come as an array or a list of arrays."""
    if isinstance(array, PackedSequence):
        raise TypeError(
            f"{name} is a PackedSequence: pass the list of arrays (T_i, F) that "
            "torch.nn.utils.rnn.unpack_sequence makes of it"
        )
    refuse_valueless(array, name)
    if isinstance(array, list):
        _check_list(array, name)
    if isinstance(array, np.ndarray) and array.dtype == object and _holds_arrays(array):
        raise TypeError(
            f"{name} is an array of {array.size} arrays: for sequences of different lengths pass "
            "a list of arrays (T_i, F)"
        )


def refuse_foreign(array: object, name: str) -> None:
    """Raise for types that NumPy misreads or does not know, alone or in a list."""
    for part, place in [(array, name), *_parts(array, name)]:
        refuse_valueless(part, place)
        if np.ma.is_masked(part):
            raise TypeError(
                f"{place} is a masked array: pass the unmasked values, or {place}.filled(np.nan)"
            )
        if isinstance(part, Tensor) and part.requires_grad:
            raise TypeError(f"{place} is a tensor that requires a gradient: pass its detach()")
        if isinstance(part, Tensor) and part.dtype == torch.bfloat16:
            raise TypeError(f"{place} holds bfloat16, which NumPy does not know: pass its float()")


def _parts(array: object, name: str) -> list[tuple[object, str]]:
    parts = enumerate(array) if isinstance(array, (list, tuple)) else ()
    return [
        (part, f"{name}[{i}]")
        for i, part in parts
        if isinstance(part, Tensor | np.ma.MaskedArray)  # most others are numbers
    ]


def refuse_valueless(array: object, name: str) -> None:
    """Raise for a tensor that does not store a value for each element."""
    if not isinstance(array, Tensor):
        return
    if array.is_nested:
        raise TypeError(f"{name} is a nested tensor: pass list({name}.unbind()), arrays (T_i, F)")
    if array.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {array.layout}")
    if array.is_meta:
        raise TypeError(f"{name} is on the meta device, where tensors have no values")


def refuse_null(array: object, name: str) -> None:
    """Raise for an HDF5 dataset with a null dataspace."""
    if isinstance(array, h5py.Dataset) and array and array.shape is None:
        raise ValueError(
            f"{name} is the dataset {array.name}, which is empty: it has a type, but no elements "
            "(a null dataspace)"
        )


def _check_list(items: list[object], name: str) -> None:
    """Raise unless a list holds arrays, or is an array written as nested lists."""
    if not items:
        raise ValueError(f"{name} has no sequences: the list is empty")
    if all(hasattr(item, "shape") for item in items):
        return
    try:
        np.asarray(items)
    except ValueError as error:
        raise ValueError(
            f"{name} is a list of lists of unequal lengths: for sequences of different lengths "
            "pass a list of arrays (T_i, F)"
        ) from error


def _holds_arrays(array: np.ndarray) -> bool:
    return array.size > 0 and all(hasattr(item, "shape") for item in array.flat)


def _items_of(group: h5py.Group, name: str) -> GroupItems:
    """Return the sequences of a group, which must hold nothing else."""
    try:
        return _checked_items(group, name)
    except (OSError, RuntimeError, KeyError) as error:
        if isinstance(error, FastseqError) or getattr(error, "errno", None) is not None:
            raise
        raise ReadError(
            f"{name} is a group of {group.file.filename} that cannot be read: the file is damaged, "
            f"or was changed after it was opened ({error})"
        ) from error


def _checked_items(group: h5py.Group, name: str) -> GroupItems:
    inside = [(key, group.get(key)) for key in group]
    if not inside:
        raise ValueError(f"{name} has no sequences: the group {group.name} is empty")
    for key, item in inside:
        if item is None:
            if (dead := dead_link(group, key)) is not None:
                raise ValueError(
                    f"{name} is the group {group.name}, in which {key!r} is {dead.text}"
                )
            group[key]  # raises why it cannot be read
    if any(not isinstance(item, h5py.Dataset) or item.ndim not in (1, 2) for _, item in inside):
        shown = ", ".join(
            f"{key} {item.shape}" if isinstance(item, h5py.Dataset) else f"{key}/"
            for key, item in inside[:_SHOWN]
        )
        more = ", …" if len(inside) > _SHOWN else ""
        raise TypeError(
            f"{name} must be a dataset, or a group of datasets only, each a sequence (steps, "
            f"features), but it is the group {group.name}, which holds {shown}{more}"
        )
    if any(is_bfloat16(item) for _, item in inside):
        raise TypeError(f"{name} holds bfloat16: load it by h5load(…, mmap=True)")
    return group_items(group, name)
