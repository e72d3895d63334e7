"""`OrdinalLogProbabilities`: classes in an order, from one output less than there are classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .._util.tree import Tree, tree_map

__all__ = ["OrdinalLogProbabilities"]


class OrdinalLogProbabilities(nn.Module):
    """Turn K - 1 outputs into the log-probabilities of K classes that have an order: CORN [1]_.

    The sigmoid of output k is the probability that the class is above k, given that it is above
    k - 1. Their products fall with k, whatever the outputs are, so that probabilities are never
    negative. With `torch.nn.functional.nll_loss` as the loss, only outputs up to the true class
    learn from a sample. Maps ``(…, K - 1)`` to ``(…, K)``; of several outputs each.

    Parameters
    ----------
    classes
        K, the number of classes.

    Raises
    ------
    ValueError
        There are fewer than two classes. In a call: there are not K - 1 outputs.

    References
    ----------
    .. [1] Shi, X., Cao, W. and Raschka, S., "Deep neural networks for rank-consistent ordinal
       regression based on conditional probabilities" (2021), https://arxiv.org/abs/2111.08851

    Examples
    --------
    >>> OrdinalLogProbabilities(3)(torch.zeros(2)).exp()
    tensor([0.5000, 0.2500, 0.2500])
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes!r}")
        self.classes = classes

    def forward(self, outputs: Tree) -> Tree:
        """Compute ``(…, K)`` from ``(…, K - 1)``; of each output, if there are several."""
        return tree_map(self._probabilities, outputs)

    def _probabilities(self, outputs: Tensor) -> Tensor:
        if outputs.shape[-1] != self.classes - 1:
            raise ValueError(
                f"{self.classes} classes in an order need {self.classes - 1} outputs of the "
                f"module, got {outputs.shape[-1]}"
            )
        if outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()
        above = F.logsigmoid(outputs).cumsum(-1)  # log P(class > k)
        reached = F.pad(above[..., :-1], (1, 0))
        return torch.cat([reached + F.logsigmoid(-outputs), above[..., -1:]], -1)

    def extra_repr(self) -> str:
        """Return how `repr` shows the arguments."""
        return str(self.classes)
