"""Element types of HDF5 datasets."""

from __future__ import annotations

import h5py
import numpy as np

__all__ = ["is_bfloat16", "stored_dtype"]


def stored_dtype(dataset: h5py.Dataset) -> np.dtype:
    """Return the dtype that a dataset's elements are read as.

    One-byte bitfields, as Julia stores ``Bool``, are bool; h5py treats them as uint8. Their bytes
    are 0 or 1, so an array that h5py reads, or a memory map, may be viewed as this dtype.

    Raises
    ------
    TypeError
        NumPy has no such type.
    """
    bitfield = dataset.id.get_type().get_class() == h5py.h5t.BITFIELD
    try:
        dtype: np.dtype = dataset.dtype
    except (TypeError, ValueError) as error:  # the latter: of floats of a damaged layout
        raise TypeError(
            f"{dataset.name!r} in {dataset.file.filename} holds elements that NumPy does not know "
            f"({error})"
        ) from error
    return np.dtype(bool) if bitfield and dtype.itemsize == 1 else dtype


def is_bfloat16(dataset: h5py.Dataset) -> bool:
    """Return whether the elements are bfloat16, which `h5save` stores as marked uint16."""
    return bool(stored_dtype(dataset) == np.uint16 and dataset.attrs.get("fastseq") == "bfloat16")
