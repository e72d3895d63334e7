"""The C++ reader and conversions: the only module that touches them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import _reader
from .scaling.affine import Affine

__all__ = ["ElementType", "Scale", "SlabReader", "convert", "element_type"]

ElementType = _reader.ElementType
SlabReader = _reader.SlabReader


def element_type(dtype: np.dtype | torch.dtype) -> ElementType | None:
    """Return the binary module's name of a dtype, or None if it has none."""
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype.name
    found: ElementType | None = getattr(ElementType, name, None)
    return found


class Scale:
    """An `Affine` for the binary module: number of features, addresses of centers and inverses."""

    def __init__(self, affine: Affine) -> None:
        self._center = affine.center.to(torch.float64).contiguous()
        self._inverse = (1 / affine.scale.to(torch.float64)).contiguous()
        self.args: tuple[int, int, int] = (
            self._center.numel(),
            self._center.data_ptr(),
            self._inverse.data_ptr(),
        )


NO_SCALE = 1, 0, 0


def convert(
    stored: ElementType | None, swapped: bool, address: int, to: Tensor, scale: Scale | None
) -> int:
    """Fill `to` from the values at `address`; return how many are NaN or infinite."""
    args = NO_SCALE if scale is None else scale.args
    wanted = element_type(to.dtype)
    assert stored is not None
    assert wanted is not None
    return _reader.convert(stored, swapped, wanted, address, to.numel(), to.data_ptr(), *args)
