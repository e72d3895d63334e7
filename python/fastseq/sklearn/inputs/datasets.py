"""Samples in files: datasets of HDF5 and zarr, read in batches."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from ...data.hdf5 import LazyDataset, LazyTensor
from ...data.samples_first import SamplesFirst
from ...data.source_kinds import readable

__all__ = ["is_dataset", "open_dataset", "refuse_closed"]


def is_dataset(X: object) -> bool:  # noqa: N803
    """Whether `X` is stored in a file, and not mapped into memory.

    Examples
    --------
    >>> is_dataset(np.zeros((2, 3)))
    False
    """
    known = isinstance(X, h5py.Dataset | LazyDataset | LazyTensor)
    return known or type(X).__module__.partition(".")[0] == "zarr"


def refuse_closed(X: object) -> None:  # noqa: N803
    """Raise ValueError for a dataset whose file has been closed."""
    if isinstance(X, h5py.Dataset) and not X:
        raise ValueError("X is from a file that has been closed; keep it open")


def open_dataset(X: Any, *, channels_first: bool) -> SamplesFirst:  # noqa: N803
    """Return the samples of a dataset ``(N, T, F)`` or ``(N, T)``; reads nothing yet.

    Raises
    ------
    ValueError, TypeError
        It has another form, or holds no numbers.
    """
    if channels_first:
        raise ValueError(
            "channels_first=True needs X in memory, but it is a dataset in a file: store it as "
            "(N, T, F), or pass X[:]"
        )
    if X.shape[:1] == (0,):
        raise ValueError(f"X has no samples: its shape is {X.shape}")
    if len(X.shape) not in (2, 3) or 0 in X.shape:
        raise ValueError(
            "X must have the shape (N, T, F) or (N, T), as it is a dataset in a file, got "
            f"{X.shape}"
        )
    if isinstance(X, LazyTensor) or np.dtype(X.dtype).kind not in "biuf":
        raise TypeError(f"X must hold numbers that NumPy knows, got dtype {X.dtype}; convert it")
    return SamplesFirst(readable(X) if isinstance(X, h5py.Dataset) else X)
