"""Missing inputs of sequences that have one target."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.scaling.affine import Affine
from .input_checks import Tensors

__all__ = ["fill_known"]


def fill_known(x: Tensors, scaling: Affine | None) -> Tensors:
    """Return inputs in which missing values are what scales to 0; `x` stays unchanged.

    A step of which nothing is known does not count in training. But a sequence with one target is
    known by all its steps: only those of which nothing is known at all are left as they are.

    Parameters
    ----------
    x
        ``(T, N, F)``, or a list of ``(T_i, F)``.
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
    return _filled(x, scaling)


def _filled(x: Tensor, scaling: Affine | None) -> Tensor:
    missing = ~x.isfinite()
    if not bool(missing.any()):
        return x
    fill = torch.zeros((), dtype=x.dtype) if scaling is None else scaling.center.to(x.dtype)
    some_known = ~missing.all(2).all(0)
    return torch.where(missing & some_known.view(1, -1, 1), fill, x)
