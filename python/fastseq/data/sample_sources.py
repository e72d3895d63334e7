"""Sources of samples-first arrays: gathered in memory, or read from files."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .hdf5 import LazyDataset
from .mapped_arrays import CheckedMap, check_not_replaced, map_of
from .native_reader import convert, element_type
from .samples_first import LastSteps, SamplesFirst
from .sources import ArraySource, Box, Source

__all__ = ["LastStepSource", "open_samples"]

_FEATURES = 8


def open_samples(samples: SamplesFirst, name: str, dtype: torch.dtype) -> Source:
    """Open samples for reading as `dtype`; reads nothing yet."""
    return (
        SampleRows(name, samples, dtype) if samples.jumps else SampleWindows(name, samples, dtype)
    )


class LastStepSource(Source):
    """Numbers that are 0 before the last step."""

    suspect = False

    def __init__(self, name: str, numbers: LastSteps, dtype: torch.dtype) -> None:
        super().__init__(name, numbers.shape, dtype)
        self._numbers = numbers

    def read(self, t0: int, t1: int, n0: int, n1: int) -> Tensor:
        """Return a new tensor of time steps ``[t0, t1)``, sequences ``[n0, n1)``."""
        return self._numbers[t0:t1, n0:n1].to(self.dtype)


class SampleRows(Source):
    """Samples of which any can be read by itself, in memory or in a file.

    Small slabs of memory are gathered by NumPy, all others in C++, ahead of time.
    """

    def __init__(self, name: str, samples: SamplesFirst, dtype: torch.dtype) -> None:
        super().__init__(name, samples.shape, dtype)
        self._samples = samples
        array = samples.array
        place = None if samples.in_memory else samples.rows_in_file()
        self.lazy: bool = place is not None
        self.places: list[str | None] = [None if place is None else place[0]]
        self._offset = array.ctypes.data if place is None else place[1]
        self._distance = array.strides[0]
        self._numel = math.prod(self.features)
        self.stored = element_type(array.dtype)
        self.swapped: bool = not array.dtype.isnative
        self.suspect: bool = False
        self._ahead: SampleRows | None = None

    @property
    def ahead(self) -> Source | None:
        """The same samples, for another thread, if each is contiguous."""
        if self.lazy:
            return self
        few = self._numel < _FEATURES  # NumPy gathers faster than C++ copies such steps
        if few or not self._samples.contiguous:
            return None
        if self._ahead is None:
            self._ahead = copy.copy(self)
            self._ahead.lazy = True
        return self._ahead

    def scale_by(self, affine: Any) -> None:
        """Apply a scaling to all that is read from now on."""
        super().scale_by(affine)
        self._ahead = None  # `ahead` makes a new one

    def check_opened(self) -> None:
        """Raise if a file that was just opened by its path is another one than was given."""
        check_not_replaced(self._samples.array)

    def original(self, sequence: int) -> int:
        """Return the caller's sequence at a place of the order."""
        return _original(self._samples, sequence)

    def read(self, t0: int, t1: int, n0: int, n1: int) -> Tensor:
        """Return a new contiguous tensor of time steps ``[t0, t1)``, sequences ``[n0, n1)``."""
        slab = np.ascontiguousarray(self._samples[t0:t1, n0:n1])
        to = torch.empty(slab.shape, dtype=self.dtype)
        self.suspect = convert(self.stored, self.swapped, slab.ctypes.data, to, self.scale) > 0
        return to

    def pieces(self, boxes: list[Box], width: int, files: list[int]) -> np.ndarray:
        """Return the reads for a slab of `width` columns; see csrc/core/reader/slab_reader.h."""
        row = self._numel * self._samples.dtype.itemsize
        found = []
        for t0, t1, n0, n1, at in boxes:
            numbers = self._samples.numbers(n0, n1)
            numbers = np.arange(n0, n1) if isinstance(numbers, slice) else numbers
            rows = np.empty((n1 - n0, 7), np.int64)
            rows[:, 0] = files[0]
            rows[:, 1] = self._offset + numbers * self._distance + t0 * row
            rows[:, 2] = t1 - t0
            rows[:, 3] = row
            rows[:, 4] = self._numel
            rows[:, 5] = (at + np.arange(n1 - n0)) * self._numel
            rows[:, 6] = width * self._numel
            found.append(rows)
        return found[0] if len(found) == 1 else np.concatenate(found)


class SampleWindows(ArraySource):
    """Samples that are read in windows of consecutive ones, by slicing in another thread."""

    joins = True

    def __init__(self, name: str, samples: SamplesFirst, dtype: torch.dtype) -> None:
        super().__init__(name, samples, dtype)
        self._samples = samples
        array = samples.array
        mapped = map_of(array) if isinstance(array, np.ndarray) else None
        if mapped is not None:
            samples.array = CheckedMap(array, mapped)

    def watch(self) -> None:
        """Raise from now on if a file changes while it is read."""
        if isinstance(self._samples.array, LazyDataset | CheckedMap):
            self._samples.array = self._samples.array.watched()

    def original(self, sequence: int) -> int:
        """Return the caller's sequence at a place of the order."""
        return _original(self._samples, sequence)

    def close(self) -> None:
        """Free the windows."""
        self._samples.close()


def _original(samples: SamplesFirst, sequence: int) -> int:
    number = samples.numbers(sequence, sequence + 1)
    return sequence if isinstance(number, slice) else int(number[0])
