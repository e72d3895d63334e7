"""What sources read by slicing."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Sliceable"]


class Sliceable(Protocol):
    """A NumPy array, a tensor, an HDF5 dataset, or any object of the user's with these three."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> Any:
        """A dtype of NumPy or of torch, or what NumPy takes as one."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return a part: an array, a tensor, or anything that NumPy converts to an array."""
