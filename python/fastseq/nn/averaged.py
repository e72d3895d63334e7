"""Networks that are trained side by side, and whose outputs are averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .members import Members
from .stateful import carries, takes_lengths

__all__ = ["Averaged"]


class Averaged(Members):
    """Several networks as one: in evaluation the mean of their outputs, or of probabilities.

    In training it returns a tuple of their outputs, so that a loss can look at each network alone,
    as that of `SequenceClassifier` does; their gradients are clipped by their own norms. Networks
    that err in different ways are together more accurate than each.

    Maps what all networks take, such as ``(T, N, F)``, with `lengths` ``(N,)`` for those that take
    them, to what each of them returns, ``(N, K)`` or ``(T, N, K)``; in training to a tuple of
    these.

    Parameters
    ----------
    networks
        The networks, with K outputs each, that carry no state.
    classes
        Numbers of classes of each target, if outputs are scores, K in all; 1: a label of its own.
        Probabilities are then averaged, and turned back into scores: a network that is far too
        sure does not outvote the others. None: the mean of the outputs.

    Raises
    ------
    ValueError
        A network carries a state. In a call: there is no network.
    TypeError
        A network is no `torch.nn.Module`.
    RuntimeError
        In a call, in evaluation: networks differ in their numbers of outputs, or these are not the
        sum of `classes`.

    Examples
    --------
    >>> from fastseq.nn import LSTMFCN, Rocket
    >>> both = Averaged([LSTMFCN(3, 2), Rocket(3, 2, steps=50)], classes=[2])
    >>> len(both(torch.zeros(50, 8, 3))), both.eval()(torch.zeros(50, 8, 3)).shape
    (2, torch.Size([8, 2]))
    """

    def __init__(
        self, networks: Iterable[nn.Module] = (), classes: Sequence[int] | None = None
    ) -> None:
        super().__init__(networks)
        for net in self:
            if carries(net):
                raise ValueError(
                    f"networks that are averaged must carry no state, got a {type(net).__name__}: "
                    "use fastseq.nn.PooledRNN"
                )
        self.classes: list[int] | None = None if classes is None else list(classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        """Run all networks; `lengths` are the sequences' numbers of steps, ``(N,)``."""
        if not len(self):
            raise ValueError("there are no networks to average")
        found = []
        for net in self:
            told = lengths is not None and takes_lengths(net)
            found.append(net(x, lengths=lengths) if told else net(x))
        if self.training:
            return tuple(found)
        each = torch.stack(found)
        if self.classes is None:
            return each.mean(0)
        parts = torch.split(each, self.classes, -1)
        return torch.cat([_scores(part) for part in parts], -1)

    def __getitem__(self, index: int | slice) -> Any:
        """Return a network, or several, which are averaged in the same way."""
        nets = list(self)
        return Averaged(nets[index], self.classes) if isinstance(index, slice) else nets[index]


def _scores(each: Tensor) -> Tensor:
    """Return the scores of mean probabilities; from scores of M networks, ``(M, …, C)``."""
    share = math.log(len(each))
    if each.shape[-1] > 1:
        return each.log_softmax(-1).logsumexp(0) - share
    yes, no = (functional.logsigmoid(sign * each).logsumexp(0) for sign in (1, -1))
    return yes - no
