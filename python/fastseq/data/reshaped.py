"""Arrays with an added axis, without reading them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .hdf5 import LazyDataset, LazyTensor
from .sliceable import Sliceable

__all__ = ["Reshaped", "with_axis"]


def with_axis(array: Sliceable | list[Any], axis: int) -> Sliceable:
    """Add an axis of length 1 without reading the array."""
    if isinstance(array, list):
        array = np.asarray(array)
    if isinstance(array, torch.Tensor):
        return array.unsqueeze(axis)
    if isinstance(array, np.ndarray):
        return np.expand_dims(array, axis)
    return Reshaped(array, axis)


class Reshaped:
    """A sliceable object with an added axis."""

    def __init__(self, array: Sliceable, axis: int) -> None:
        self._array = array
        self._axis = axis
        shape = list(array.shape)
        shape.insert(axis, 1)
        self.shape: tuple[int, ...] = tuple(shape)
        self.dtype: Any = array.dtype

    def watched(self) -> Reshaped:
        """Return the same array, watched; see `LazyDataset.watched`."""
        array = self._array
        if isinstance(array, LazyDataset | LazyTensor):
            array = array.watched()
        return Reshaped(array, self._axis)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray | torch.Tensor:
        rest = tuple(i for axis, i in enumerate(index) if axis != self._axis)
        part = self._array[rest]
        if isinstance(part, torch.Tensor):
            return part.unsqueeze(self._axis)
        return np.expand_dims(np.asarray(part), self._axis)
