"""Scaling of each sequence by its own mean and deviation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .pooling import is_within

__all__ = ["InstanceScale"]

# Up to this distance from the mean a feature of scaled data counts as constant, and up to so many
# times the precision of its largest value.
_LEAST, _ROUNDING = 1e-12, 4


class InstanceScale(nn.Module):
    """Scale each feature of each sequence to mean 0 and deviation 1 over its steps.

    Shapes then count, not levels and sizes: z-normalisation, as is usual for time series [1]_. A
    feature that is constant in a sequence, up to rounding, becomes 0. Maps ``(T, N, F)`` to the
    same shape; with `lengths` ``(N,)``, results are zero past the ends of sequences.

    Parameters
    ----------
    beside
        Whether the result comes beside the sequences, of which arsinh is taken so that outliers
        stay near: ``(T, N, F)`` to ``(T, N, 2F)``.
    features
        How many of the features to scale, from the first on; the others stay as they are. None:
        all.

    Raises
    ------
    TypeError
        In a call: x holds no floating-point numbers.
    IndexError
        In a call: there are no steps, ``T = 0``.

    References
    ----------
    .. [1] Rakthanmanon, T. et al., "Searching and mining trillions of time series subsequences
       under dynamic time warping", KDD 2012, https://doi.org/10.1145/2339530.2339576

    Examples
    --------
    >>> x = torch.tensor([1.0, 3.0, 9.0]).view(3, 1, 1)
    >>> InstanceScale()(x, lengths=torch.tensor([2])).ravel()
    tensor([-1.,  1.,  0.])
    """

    def __init__(self, *, beside: bool = False, features: int | None = None) -> None:
        super().__init__()
        self.beside: bool = beside
        self.features: int | None = features

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scale; `lengths` are the sequences' numbers of steps, ``(N,)``."""
        count: Tensor | int = len(x)
        past = None
        if lengths is not None:
            past = ~is_within(lengths, len(x)).unsqueeze(-1)
            x = x.masked_fill(past, 0)
            count = lengths.clamp(1, len(x)).unsqueeze(-1)
        own = x if self.features is None else x[..., : self.features]
        # Less the first value, like values lose no digits in sums; divided by the size, squares of
        # large ones are finite.
        centered = _without(own - own[:1], past)
        centered = _without(centered - centered.sum(0) / count, past)
        size = centered.abs().amax(0)
        least = (own.abs().amax(0) * (_ROUNDING * torch.finfo(x.dtype).eps)).clamp(min=_LEAST)
        constant = size <= least
        centered = centered / size.masked_fill(constant, 1)
        deviation = (centered.square().sum(0) / count).sqrt()
        scaled = (centered / deviation.masked_fill(constant, 1)).masked_fill(constant, 0)
        if self.beside:
            return torch.cat([own.asinh(), x[..., own.shape[-1] :], scaled], -1)
        return scaled if own is x else torch.cat([scaled, x[..., own.shape[-1] :]], -1)

    def extra_repr(self) -> str:
        """Return how `repr` shows the arguments."""
        shown = ["beside=True"] if self.beside else []
        return ", ".join(
            [*shown, *([] if self.features is None else [f"features={self.features}"])]
        )


def _without(values: Tensor, past: Tensor | None) -> Tensor:
    """Return values, zero past the ends of sequences."""
    return values if past is None else values.masked_fill(past, 0)
