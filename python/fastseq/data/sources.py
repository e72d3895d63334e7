"""Sources of slabs: tensors, contiguous memory and files, and anything that can be sliced."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from .chunked_arrays import ChunkedArray
from .hdf5 import LazyDataset, LazyTensor
from .hdf5.lazy_tensor import as_bfloat16
from .hdf5.stored_windows import WindowReader
from .mapped_arrays import CheckedMap, check_not_replaced
from .native_reader import ElementType, Scale, convert, element_type
from .reshaped import Reshaped
from .scaling.affine import Affine
from .sliceable import Sliceable
from .spare_cores import SpareCores

__all__ = [
    "ArraySource",
    "Box",
    "Broadcast",
    "RowSource",
    "Source",
    "StridedSource",
    "TensorSource",
    "WindowSource",
    "has_rows",
    "holds",
    "largest",
    "rounds",
]


class Box(NamedTuple):
    """Time steps ``[t0, t1)`` of sequences ``[n0, n1)``; they fill a slab from column `at` on."""

    t0: int
    t1: int
    n0: int
    n1: int
    at: int = 0


class Source:
    """Base of what slabs ``(S, B, …)`` are read from.

    Parameters
    ----------
    name
        Its name in messages.
    shape
        ``(T, N, …)``: time steps, sequences, features.
    dtype
        Dtype of the slabs.

    Attributes
    ----------
    lazy
        Whether another thread reads it ahead, since reading is slow.
    joins
        Whether small consecutive slabs may be read together.
    affine, scale
        The scaling applied to what is read; the same for the binary module.
    holds
        A float dtype, fp32 or fp64, that represents all stored values.
    largest
        The largest integer that may be stored; 0: floats are.
    spare
        The cores on which it may be decompressed.
    """

    lazy = False
    joins = True
    holds: torch.dtype = torch.float64
    largest = 0

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.name = name
        self.shape: tuple[int, ...] = tuple(shape)
        self.dtype = dtype
        self.features: tuple[int, ...] = self.shape[2:]
        self.affine: Affine | None = None
        self.scale: Scale | None = None
        self.spare = SpareCores()

    def scale_by(self, affine: Affine | None) -> None:
        """Apply a scaling to all that is read from now on."""
        self.affine = affine
        self.scale = None if affine is None else Scale(affine)

    def wide(self) -> Source:
        """Return the same source, not scaled, in a dtype that represents all stored values."""
        other = copy.copy(self)
        if self.dtype.is_floating_point:
            other.dtype = torch.promote_types(self.dtype, self.holds)
        other.largest = 0  # statistics may be of rounded integers
        other.scale_by(None)
        return other

    @property
    def rounds(self) -> bool:
        """Whether its dtype might not hold a stored integer, which is not scaled."""
        return self.largest > 0 and self.affine is None and rounds(self.largest, self.dtype)

    @property
    def ahead(self) -> Source | None:
        """A source for another thread to read instead of this one, or None."""
        return self if self.lazy else None

    def original(self, sequence: int) -> int:
        """Return the caller's number of a sequence, if the source has an order of its own."""
        return sequence

    def watch(self) -> None:
        """Raise from now on if a file changes while it is read; `Reader` checks its own files."""

    def check_opened(self) -> None:
        """Raise if a file that was just opened by its path is another one than was given."""

    def close(self) -> None:
        """Free what reading has opened; reading reopens it."""


class RowSource(Protocol):
    """A lazy source of contiguous rows, in files or in memory: C++ reads it.

    Attributes
    ----------
    stored
        The stored element type.
    swapped
        Whether the byte order is swapped.
    places
        The files; None: in memory.
    """

    dtype: torch.dtype
    scale: Scale | None
    stored: ElementType | None
    swapped: bool
    places: list[str | None]

    def pieces(self, boxes: list[Box], width: int, files: list[int]) -> np.ndarray:
        """Return the reads for a slab of `width` columns; see csrc/core/reader/slab_reader.h."""

    def check_opened(self) -> None:
        """Raise if a file that was just opened by its path is another one than was given."""


def has_rows(source: Source) -> TypeGuard[RowSource]:
    """Return whether C++ reads a source."""
    return hasattr(source, "pieces")


class TensorSource(Source):
    """A tensor, or an array in memory viewed as one."""

    def __init__(self, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
        super().__init__(name, tuple(tensor.shape), dtype)
        self._tensor = tensor.detach()
        self._strides = tensor.stride()
        self._offset = tensor.storage_offset()
        self._stored = None if tensor.is_cuda else element_type(tensor.dtype)
        self._floats = tensor.is_floating_point() and not tensor.is_cuda
        self._place: StridedSource | None = None
        self.suspect: bool = False  # whether the last slab may hold NaN or infinity

    @property
    def ahead(self) -> Source | None:
        """The same memory, for another thread, if its rows are contiguous."""
        tensor = self._tensor
        if tensor.is_cuda or not tensor.numel() or not tensor[0].is_contiguous():
            return None
        if self._place is not None:
            return self._place
        item = tensor.element_size()
        self._place = StridedSource(
            self.name,
            self.shape,
            self.dtype,
            stored=tensor.dtype,
            place=None,
            offset=tensor.data_ptr(),
            strides=(self._strides[0] * item, self._strides[1] * item),
            owner=tensor,
        )
        self._place.scale_by(self.affine)
        self._place.largest = self.largest
        return self._place

    def scale_by(self, affine: Affine | None) -> None:
        """Apply a scaling to all that is read from now on."""
        super().scale_by(affine)
        self._place = None  # `ahead` makes a new one

    def read(self, t0: int, t1: int, n0: int, n1: int) -> Tensor:
        """Return a new contiguous tensor of time steps ``[t0, t1)``, sequences ``[n0, n1)``."""
        # The same as [t0:t1, n0:n1], in half the time.
        begin = self._offset + t0 * self._strides[0] + n0 * self._strides[1]
        shape = (t1 - t0, n1 - n0, *self.features)
        slab = self._tensor.as_strided(shape, self._strides, begin)
        if self.affine is not None:
            return self._read_scaled(slab)
        if slab.dtype != self.dtype:
            slab = slab.to(self.dtype, memory_format=torch.contiguous_format)
        else:
            slab = slab.clone(memory_format=torch.contiguous_format)
        # A sum is quick; if it overflows, the exact test is made later, in vain.
        self.suspect = self._floats and not math.isfinite(slab.sum().item())
        return slab

    def _read_scaled(self, slab: Tensor) -> Tensor:
        """Scale the stored values: the model's dtype might not distinguish them."""
        assert self.affine is not None
        if self._stored is None:
            slab = self.affine.apply(slab, self.dtype).contiguous()
            self.suspect = self._floats and not bool(slab.isfinite().all())
            return slab
        slab = slab.contiguous()
        to = torch.empty(slab.shape, dtype=self.dtype)
        self.suspect = convert(self._stored, False, slab.data_ptr(), to, self.scale) > 0
        return to


class Broadcast(Source):
    """Inputs shared by all time steps, ``(1, N, …)``, or by all sequences, ``(T, 1, …)``.

    Held in memory; slabs are broadcast views.
    """

    def __init__(self, name: str, tensor: Tensor, shape: tuple[int, int], dtype: torch.dtype):
        super().__init__(name, (*shape, *tensor.shape[2:]), dtype)
        self._stored = tensor
        self.holds: torch.dtype = holds(tensor.dtype)
        self.largest: int = largest(tensor.dtype)
        self.constant: bool = tensor.shape[0] == 1 and shape[0] != 1  # over time
        self.scale_by(None)

    def scale_by(self, affine: Affine | None) -> None:
        """Apply a scaling to all that is read from now on."""
        super().scale_by(affine)
        stored = self._stored
        self._scaled = stored.to(self.dtype) if affine is None else affine.apply(stored, self.dtype)
        self.suspect: bool = self.dtype.is_floating_point and not bool(
            self._scaled.isfinite().all()
        )

    def read(self, t0: int, t1: int, n0: int, n1: int) -> Tensor:
        """Return a view of time steps ``[t0, t1)``, sequences ``[n0, n1)``."""
        part = self._scaled
        part = part if part.shape[0] == 1 else part[t0:t1]
        part = part if part.shape[1] == 1 else part[:, n0:n1]
        whole = part.shape[:2] == (t1 - t0, n1 - n0)  # nothing repeats: a copy may be changed
        return part.clone() if whole else part.expand(t1 - t0, n1 - n0, *self.features)

    def reordered(self, positions: np.ndarray) -> Broadcast:
        """Return the inputs of the sequences `positions`, in this order."""
        part = self._stored
        if part.shape[1] != 1 or self.shape[1] == 1:
            part = part[:, torch.from_numpy(positions)]
        shape = self.shape[0], len(positions)
        found = Broadcast(self.name, part, shape, self.dtype)
        found.scale_by(self.affine)
        return found


class StridedSource(Source):
    """Contiguous rows at equal distances, in a file or in memory: read without Python.

    Parameters
    ----------
    name, shape, dtype
        As in `Source`.
    stored
        The stored element type.
    place
        The file; None: in memory.
    offset
        Where the first element is: bytes from the start of the file, or an address.
    strides
        Bytes from time step to time step, and from sequence to sequence.
    owner
        Keeps the memory alive, or the map of the file.
    swapped
        Whether the byte order is swapped.
    """

    lazy = True

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        stored: np.dtype | torch.dtype,
        place: str | None,
        offset: int,
        strides: tuple[int, int],
        owner: object = None,
        swapped: bool = False,
    ) -> None:
        super().__init__(name, shape, dtype)
        self.stored: ElementType | None = element_type(stored)
        self.swapped = swapped
        self.places: list[str | None] = [place]
        self._offset = offset
        self._strides = strides
        self._owner = owner
        self._numel = math.prod(self.features)

    def check_opened(self) -> None:
        """Raise if a file that was just opened by its path is another one than was given."""
        check_not_replaced(self._owner)

    def pieces(self, boxes: list[Box], width: int, files: list[int]) -> np.ndarray:
        """Return the reads for a slab of `width` columns; see csrc/core/reader/slab_reader.h."""
        step, sequence = self._strides
        features = self._numel
        rows = [
            (
                files[0],
                self._offset + box.t0 * step + box.n0 * sequence,
                box.t1 - box.t0,
                step,
                (box.n1 - box.n0) * features,
                box.at * features,
                width * features,
            )
            for box in boxes
        ]
        return np.array(rows, np.int64)


class ArraySource(Source):
    """Anything with ``shape``, ``dtype`` and slicing, read by slicing in another thread."""

    lazy = True
    joins = False  # slices of the caller's object are no larger than needed next

    def __init__(self, name: str, array: Sliceable, dtype: torch.dtype) -> None:
        super().__init__(name, tuple(array.shape), dtype)
        self._array: Any = array

    def watch(self) -> None:
        """Raise from now on if a file changes while it is read."""
        if isinstance(self._array, LazyDataset | LazyTensor | CheckedMap | Reshaped):
            self._array = self._array.watched()

    def fill(self, boxes: list[Box], slab: Tensor) -> int:
        """Read into a slab; return how many values are NaN or infinite."""
        count = 0
        for number, (t0, t1, n0, n1, at) in enumerate(boxes):
            piece = self._read(number, t0, t1, n0, n1)
            whole = len(boxes) == 1
            to = slab if whole else slab.new_empty((t1 - t0, n1 - n0, *self.features))
            count += fill(piece, to, self.scale)
            if not whole:
                slab[:, at : at + n1 - n0] = to
        return count

    def _read(self, number: int, t0: int, t1: int, n0: int, n1: int) -> Sliceable:  # noqa: ARG002
        """Return the slice for box `number` of a chunk."""
        piece: Sliceable = self._array[t0:t1, n0:n1]
        return piece


class WindowSource(ArraySource):
    """A dataset that is not contiguous in its file, read in windows of whole chunks."""

    joins = True

    def __init__(
        self, name: str, dataset: LazyDataset | LazyTensor | ChunkedArray, dtype: torch.dtype
    ) -> None:
        super().__init__(name, dataset, dtype)
        self._readers: list[WindowReader] = []
        self._blocks: Iterable[tuple[int, int, int, int]] = ()

    def expect(self, blocks: Iterable[tuple[int, int, int, int]]) -> None:
        """Announce the blocks ``(t0, t1, n0, n1)`` that will be read."""
        self._blocks = blocks

    def _read(self, number: int, t0: int, t1: int, n0: int, n1: int) -> Sliceable:
        # Boxes of one chunk are segments of folded series: each advances through the file.
        half = isinstance(self._array, LazyTensor)
        while len(self._readers) <= number:
            array = self._array.raw if half else self._array
            self._readers.append(WindowReader(array, spare=self.spare))
            self._readers[-1].expect(self._blocks if number == 0 else ())
        read = self._readers[number].read(t0, t1, n0, n1)
        return as_bfloat16(read) if half else read

    def wide(self) -> Source:
        """Return the same source, not scaled, in a dtype that represents all stored values."""
        other = super().wide()
        assert isinstance(other, WindowSource)
        other._readers = []
        return other

    def close(self) -> None:
        """Free the windows."""
        for reader in self._readers:
            reader.close()
        self._readers, self._blocks = [], ()


def holds(dtype: Any) -> torch.dtype:
    """Return fp32 if it represents all values of `dtype`, else fp64.

    Examples
    --------
    >>> holds(np.dtype("int16")), holds(torch.int64)
    (torch.float32, torch.float64)
    """
    stored = dtype if isinstance(dtype, torch.dtype) else np.dtype(dtype)
    floats = stored.is_floating_point if isinstance(stored, torch.dtype) else stored.kind == "f"
    return torch.float32 if stored.itemsize <= (4 if floats else 2) else torch.float64


def largest(dtype: Any) -> int:
    """Return the largest integer of a dtype; 0 for floats.

    Examples
    --------
    >>> largest(np.dtype("int16")), largest(torch.uint8), largest(torch.float64)
    (32767, 255, 0)
    """
    if isinstance(dtype, torch.dtype):
        if dtype.is_floating_point:
            return 0
        return 1 if dtype == torch.bool else torch.iinfo(dtype).max
    stored = np.dtype(dtype)
    return int(np.iinfo(stored).max) if stored.kind in "iu" else int(stored.kind == "b")


def rounds(integer: int, dtype: torch.dtype) -> bool:
    """Whether a dtype might not hold integers up to this one.

    Examples
    --------
    >>> rounds(2**24, torch.float32), rounds(2**24, torch.float64), rounds(256, torch.bfloat16)
    (True, False, True)
    """
    return dtype.is_floating_point and integer >= 2 / torch.finfo(dtype).eps


def fill(piece: Sliceable, to: Tensor, scale: Scale | None) -> int:
    """Convert an array or tensor into a slab; return how many values are NaN or infinite."""
    stored: np.dtype | torch.dtype
    if isinstance(piece, Tensor):
        piece = piece.detach().cpu().contiguous()
        stored, address, swapped = piece.dtype, piece.data_ptr(), False
    else:
        piece = np.ascontiguousarray(piece)
        stored, address, swapped = piece.dtype, piece.ctypes.data, not piece.dtype.isnative
    if tuple(piece.shape) != tuple(to.shape):
        raise ValueError(
            f"slicing gave an array of shape {tuple(piece.shape)} instead of {tuple(to.shape)}"
        )
    return convert(element_type(stored), swapped, address, to, scale)
