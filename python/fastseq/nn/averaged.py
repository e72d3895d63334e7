"""Networks that are trained side by side, and whose outputs are averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .members import Members
from .stateful import takes_lengths

__all__ = ["Averaged"]


class Averaged(Members):
    """Several networks as one: in evaluation the mean of their outputs, or of probabilities.

    In training it returns all their outputs side by side, ``(…, M·K)`` of M networks, so that a
    loss can look at each network alone; their gradients are clipped by their own norms. Networks
    that err in different ways are together more accurate than each.

    Parameters
    ----------
    networks
        The networks, with K outputs each.
    classes
        Numbers of classes of each target, if outputs are scores, K in all; 1: a label of its own.
        Probabilities are then averaged, and turned back into scores: a network that is far too
        sure does not outvote the others. None: the mean of the outputs.

    Examples
    --------
    >>> from fastseq.nn import LSTMFCN, Rocket
    >>> both = Averaged([LSTMFCN(3, 2), Rocket(3, 2, steps=50)], classes=[2])
    >>> both(torch.zeros(50, 8, 3)).shape, both.eval()(torch.zeros(50, 8, 3)).shape
    (torch.Size([8, 4]), torch.Size([8, 2]))
    """

    def __init__(
        self, networks: Iterable[nn.Module] = (), classes: Sequence[int] | None = None
    ) -> None:
        super().__init__(networks)
        self.classes = None if classes is None else list(classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run all networks; `lengths` are the sequences' numbers of steps, ``(N,)``."""
        found = []
        for net in self:
            told = lengths is not None and takes_lengths(net)
            found.append(net(x, lengths=lengths) if told else net(x))
        if self.training:
            return torch.cat(found, -1)
        each = torch.stack(found)
        if self.classes is None:
            return each.mean(0)
        parts = torch.split(each, self.classes, -1)
        return torch.cat([_scores(part) for part in parts], -1)


def _scores(each: Tensor) -> Tensor:
    """Return the scores of mean probabilities; from scores of M networks, ``(M, …, C)``."""
    share = math.log(len(each))
    if each.shape[-1] > 1:
        return each.log_softmax(-1).logsumexp(0) - share
    yes, no = (functional.logsigmoid(sign * each).logsumexp(0) for sign in (1, -1))
    return yes - no
