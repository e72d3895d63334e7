"""bfloat16 tensors in HDF5 files, read lazily."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .lazy_dataset import LazyDataset
from .memory_map import readable_by

__all__ = ["LazyTensor", "as_bfloat16"]


class LazyTensor:
    """A bfloat16 tensor saved by `h5save`, or a box cut out of it.

    Slicing with step 1 gives another `LazyTensor` and reads nothing; any other index, and `read`,
    give a tensor. `numpy.asarray` gives float32, as NumPy lacks bfloat16. It is not a memory map:
    reading a truncated file raises, while a map would end the process. Can be pickled.

    Attributes
    ----------
    raw
        The stored uint16 elements: a `LazyDataset`, or an `h5py.Dataset` of a file that cannot be
        reopened.
    shape, dtype
        The tensor's.

    Examples
    --------
    >>> import os, tempfile, fastseq as fs
    >>> path = os.path.join(tempfile.mkdtemp(), "data.h5")
    >>> fs.h5save(path, {"x": torch.arange(6).bfloat16().view(3, 2)})
    >>> x = fs.h5load(path, mmap=True)["x"]
    >>> x[1:].shape, x[1:].read()
    ((2, 2), tensor([[2., 3.],
            [4., 5.]], dtype=torch.bfloat16))
    """

    dtype: torch.dtype = torch.bfloat16

    def __init__(self, raw: LazyDataset | h5py.Dataset) -> None:
        self.raw = raw
        self.shape: tuple[int, ...] = tuple(raw.shape)

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> LazyTensor:
        """Return an open bfloat16 dataset in a form that another thread can read."""
        place = readable_by(dataset)
        if place is None:
            return cls(dataset)
        return cls(LazyDataset(*place, dataset.shape, dataset.dtype))

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        return f"LazyTensor({self.raw!r})"

    def __getitem__(self, index: object) -> Any:
        part = self.raw[index]
        return LazyTensor(part) if isinstance(part, LazyDataset) else as_bfloat16(part)

    def read(self) -> Tensor:
        """Return the whole tensor.

        Raises
        ------
        ReadError
            It cannot be read; the message names file, dataset and box.
        """
        return as_bfloat16(np.asarray(self.raw))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "copy=False is impossible: a LazyTensor is read from its file, which makes a copy"
            )
        array: np.ndarray = self.read().float().numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def watched(self) -> LazyTensor:
        """Return the same tensor, watched; see `LazyDataset.watched`."""
        return LazyTensor(self.raw.watched()) if isinstance(self.raw, LazyDataset) else self


def as_bfloat16(stored: object) -> Tensor:
    """Return the tensor that was stored as an array of uint16."""
    return torch.from_numpy(np.asarray(stored, np.uint16, order="C")).view(torch.bfloat16)
