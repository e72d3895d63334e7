"""`FocalLoss`: cross entropy in which samples that are classified well count little."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["FocalLoss"]

_REDUCTIONS = ("mean", "sum", "none")


class FocalLoss(nn.Module):
    """Focal loss of scores (logits) of classes: ``-(1 - p)**gamma · log p``.

    p is the probability of the true class, the softmax of the scores. Samples that are classified
    well already, often most of a frequent class, then count little [1]_. Maps scores ``(M, C)`` and
    class numbers ``(M,)`` to a number, or with ``reduction="none"`` to ``(M,)``.

    Parameters
    ----------
    gamma
        How much less they count; 0: this is the cross entropy.
    reduction
        ``"mean"``, ``"sum"`` or ``"none"``, as in `torch.nn.CrossEntropyLoss`.

    Attributes
    ----------
    ignore_index
        -100: class number of samples that do not count.

    Raises
    ------
    ValueError
        `gamma` is negative or not finite, or `reduction` is unknown. In a call: there are other
        numbers of scores and of classes.
    IndexError
        In a call: a class number is not below C.

    Notes
    -----
    The paper's alpha, a weight for each class, is the weight of the samples: ``class_weight`` of
    `SequenceClassifier`, `w` of `Estimator.fit`. Means are then weighted means.

    References
    ----------
    .. [1] Lin, T.-Y. et al., "Focal loss for dense object detection", ICCV 2017,
       https://arxiv.org/abs/1708.02002

    Examples
    --------
    >>> scores = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    >>> FocalLoss(reduction="none")(scores, torch.tensor([1, 1]))  # cross entropy: 0.6931, 0.1269
    tensor([0.1733, 0.0018])
    """

    ignore_index = -100

    def __init__(self, gamma: float = 2.0, *, reduction: str = "mean") -> None:
        super().__init__()
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"gamma must be a finite number, at least 0, got {gamma!r}")
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
        self.gamma = gamma
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 (as torch's)
        """Compute the loss of scores ``(M, C)`` and class numbers ``(M,)``."""
        entropy = F.cross_entropy(
            input, target, reduction="none", ignore_index=self.ignore_index
        )  # fmt: skip
        wrong = -torch.expm1(-entropy)  # 1 - p, exact where p is nearly 1
        # The power's derivative at 0 would be infinite for gamma < 1.
        losses = wrong.clamp_min(torch.finfo(wrong.dtype).tiny) ** self.gamma * entropy
        if self.reduction == "none":
            return losses
        if self.reduction == "sum":
            return losses.sum()
        return losses.sum() / (target != self.ignore_index).sum()

    def extra_repr(self) -> str:
        """Return how `repr` shows the arguments."""
        return f"gamma={self.gamma:g}"
