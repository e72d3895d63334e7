"""Networks that are trained side by side, and whose outputs are averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from .members import Members
from .stateful import takes_lengths

__all__ = ["Averaged"]


class Averaged(Members):
    """Several networks as one: in evaluation the mean of their outputs.

    In training it returns all their outputs side by side, ``(…, M·K)`` of M networks, so that a
    loss can look at each network alone; their gradients are clipped by their own norms. Networks
    that err in different ways are together more accurate than each.

    Examples
    --------
    >>> from fastseq.nn import LSTMFCN, Rocket
    >>> both = Averaged([LSTMFCN(3, 2), Rocket(3, 2, steps=50)])
    >>> both(torch.zeros(50, 8, 3)).shape, both.eval()(torch.zeros(50, 8, 3)).shape
    (torch.Size([8, 4]), torch.Size([8, 2]))
    """

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run all networks; `lengths` are the sequences' numbers of steps, ``(N,)``."""
        found = []
        for net in self:
            told = lengths is not None and takes_lengths(net)
            found.append(net(x, lengths=lengths) if told else net(x))
        return torch.cat(found, -1) if self.training else torch.stack(found).mean(0)
