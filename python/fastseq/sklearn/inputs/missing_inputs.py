"""Missing inputs of sequences that have one target."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...data.samples_first import SamplesFirst, fill_missing
from ...data.scaling.affine import Affine

__all__ = ["fill_known"]

Samples = SamplesFirst | list[Tensor]


def fill_known(x: Samples, scaling: Affine | None) -> Samples:
    """Return inputs in which missing values are what scales to 0; `x` stays unchanged.

    A step of which nothing is known does not count in training. But a sequence with one target is
    known by all its steps: only those of which nothing is known at all are left as they are.

    Parameters
    ----------
    x
        Samples, or a list of ``(T_i, F)``. Those in a file are filled when they are read.
    scaling
        How they will be scaled; None: not at all.

    Examples
    --------
    >>> nan = torch.nan
    >>> fill_known([torch.tensor([[1.0], [nan]]), torch.tensor([[nan]])], None)
    [tensor([[1.],
            [0.]]), tensor([[nan]])]
    """
    if isinstance(x, list):
        return [_filled(one.unsqueeze(1), scaling).squeeze(1) for one in x]
    center = np.zeros(x.shape[2:]) if scaling is None else scaling.center.numpy()
    if not x.in_memory:
        return x.like(center=center)
    array = x.array if x.index is None else x.array[x.index]
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return x
    array = array.copy() if x.index is None else array
    fill_missing(array, center)
    return SamplesFirst(array)


def _filled(x: Tensor, scaling: Affine | None) -> Tensor:
    missing = ~x.isfinite()
    if not bool(missing.any()):
        return x
    fill = torch.zeros((), dtype=x.dtype) if scaling is None else scaling.center.to(x.dtype)
    some_known = ~missing.all(2).all(0)
    return torch.where(missing & some_known.view(1, -1, 1), fill, x)
