"""Pooling over the time steps of sequences of different lengths."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._util.spelling import meant

__all__ = ["Pool", "is_within"]

_PARTS = ("last", "mean", "max")


def is_within(lengths: Tensor, steps: int) -> Tensor:
    """Return which steps are not past their sequences' ends, ``(T, N)``.

    Examples
    --------
    >>> is_within(torch.tensor([3, 1]), 3).int().T
    tensor([[1, 1, 1],
            [1, 0, 0]], dtype=torch.int32)
    """
    return torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths


class Pool(nn.Module):
    """Summarise all steps of each sequence: ``(T, N, F)`` to ``(N, P·F)``.

    Steps past a sequence's end do not count, if `lengths` ``(N,)`` are passed beside x. A sequence
    without any step counts as zeros.

    Parameters
    ----------
    how
        ``"last"``, ``"mean"`` or ``"max"``, or P of these, joined by ``"+"``, in the order of the
        output.

    Raises
    ------
    TypeError
        `how` is no str.
    ValueError
        `how` is none of these.
    IndexError
        In a call: there are no steps, ``T = 0``.

    Examples
    --------
    >>> x = torch.tensor([[[1.0]], [[5.0]], [[3.0]]])
    >>> Pool("last+mean+max")(x), Pool("max")(x, lengths=torch.tensor([1]))
    (tensor([[3., 3., 5.]]), tensor([[1.]]))
    """

    def __init__(self, how: str = "last+mean+max") -> None:
        super().__init__()
        if not isinstance(how, str):
            raise TypeError(f'pool must be a str such as "last+mean", got {how!r}')
        self.how: str = how
        self.parts: list[str] = how.split("+")
        for part in self.parts:
            if part not in _PARTS:
                raise ValueError(
                    f"pool must be some of {_PARTS}, joined by '+', got {how!r}"
                    f"{meant(part, _PARTS)}"
                )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Pool; `lengths` are the sequences' numbers of steps, ``(N,)``."""
        if lengths is None:
            return torch.cat([self._whole(x, part) for part in self.parts], -1)
        within = is_within(lengths, len(x)).unsqueeze(-1)
        kept, count = x.masked_fill(~within, 0), lengths.clamp(1, len(x))
        found = []
        for part in self.parts:
            if part == "last":
                index = (count - 1).view(1, -1, 1).expand(1, -1, x.shape[2])
                found.append(kept.gather(0, index)[0])
            elif part == "mean":
                found.append(kept.sum(0) / count.unsqueeze(-1))
            else:
                lowest = torch.finfo(x.dtype).min
                largest = x.masked_fill(~within, lowest).amax(0)
                found.append(largest.masked_fill((lengths < 1).unsqueeze(-1), 0))
        return torch.cat(found, -1)

    @staticmethod
    def _whole(x: Tensor, part: str) -> Tensor:
        if part == "last":
            return x[-1]
        return x.mean(0) if part == "mean" else x.amax(0)

    def extra_repr(self) -> str:
        """Return the argument."""
        return self.how
