"""Losses of the classifier: by name, of several targets, weighted label by label."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...nn import FocalLoss
from ...nn.losses import of_classes, unreduced
from ..inputs.input_checks import Array
from ..losses_and_optimizers import loss_over_chunks

__all__ = ["EachTarget", "WeightedLabels", "class_loss"]

Loss = Callable[..., Tensor]

_NAMED: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "focal": FocalLoss(),
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "ordinal": F.nll_loss,
}
_OF_LABELS = (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)
_MODULES_OF_LABELS = (nn.BCELoss, nn.BCEWithLogitsLoss)


def class_loss(loss: object, classes: list[Array]) -> Loss:
    """Return the loss over chunks of targets that are class numbers.

    A loss of class numbers is the mean over all targets, if there are several; any other gets all
    outputs and all targets.

    Parameters
    ----------
    loss
        The hyperparameter.
    classes
        The classes of each target.

    Raises
    ------
    ValueError, TypeError
        `loss` is none, is one of labels, or has weights of its own.
    """
    fn = _NAMED.get(loss, loss) if isinstance(loss, str) else loss
    if isinstance(fn, type) and issubclass(fn, nn.Module):
        fn = fn()
    plain = fn.func if isinstance(fn, functools.partial) else fn
    if plain in _OF_LABELS or isinstance(plain, _MODULES_OF_LABELS):
        raise ValueError(
            f"loss={loss!r} compares one output per label, but there is one per class: pass "
            "loss='binary_cross_entropy' for labels (N, L) of 0 and 1, else 'cross_entropy'"
        )
    if not of_classes(plain):
        return loss_over_chunks(fn, _NAMED)
    _check_own(fn, classes)
    assert callable(fn)
    if len(classes) > 1:
        fn = EachTarget(unreduced(fn), tuple(map(len, classes)))
    return loss_over_chunks(fn, _NAMED)


def _check_own(fn: Any, classes: list[Array]) -> None:
    """Raise if a loss weighs or ignores classes by itself."""
    own = fn.keywords.get if isinstance(fn, functools.partial) else functools.partial(_own, fn)
    weight, ignored = own("weight"), own("ignore_index")
    if weight is not None:
        shown = "{class: weight}"
        if len(classes) == 1 and len(weight) == len(classes[0]) <= 8:
            shown = repr(dict(zip(classes[0].tolist(), weight.tolist(), strict=True)))
        raise ValueError(
            "loss has a weight for each class, which would multiply losses without entering the "
            f"weights of their mean: pass class_weight={shown} instead"
        )
    if ignored is not None and 0 <= ignored < max(map(len, classes)):
        raise ValueError(
            f"loss has ignore_index={ignored}, but that is the number of a class, its place in "
            "classes_: give samples that are to be ignored the weight 0 instead"
        )


def _own(fn: object, name: str) -> Any:
    return getattr(fn, name, None)


class EachTarget:
    """Mean over several targets of a loss of classes; outputs are concatenated.

    Parameters
    ----------
    loss
        Loss of scores ``(M, C)`` and class numbers ``(M,)``, one number per sample.
    sizes
        Number of classes of each target.

    Raises
    ------
    ValueError
        When called: there are more or fewer outputs than classes.

    Examples
    --------
    >>> loss = EachTarget(nn.CrossEntropyLoss(reduction="none"), (2, 3))
    >>> loss(torch.zeros(4, 5), torch.zeros(4, 2, dtype=torch.int64), "none").shape
    torch.Size([4])
    """

    def __init__(self, loss: Loss, sizes: tuple[int, ...]) -> None:
        self.loss = loss
        self.sizes = sizes

    def __call__(self, output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """Compute the loss of outputs ``(M, Σ sizes)`` and class numbers ``(M, K)``."""
        if output.shape[-1] != sum(self.sizes):
            raise ValueError(
                f"the module must have {sum(self.sizes)} outputs, one for each class of each "
                f"target, got {output.shape[-1]}"
            )
        parts = torch.split(output, list(self.sizes), 1)
        losses = [self.loss(part, target[:, k]) for k, part in enumerate(parts)]
        mean: Tensor = sum(losses[1:], losses[0]) / len(losses)
        return mean if reduction == "none" else mean.mean()


class WeightedLabels(nn.BCEWithLogitsLoss):
    """Binary cross entropy of several labels, with weights of each label's 0 and 1.

    Parameters
    ----------
    weights
        ``(2, L)``: weights of 0, and of 1.

    Examples
    --------
    >>> loss = WeightedLabels(np.array([[1.0, 1.0], [3.0, 1.0]]))
    >>> loss(torch.zeros(1, 2), torch.ones(1, 2))  # the mean of 3 log 2 and log 2
    tensor(1.3863)
    """

    def __init__(self, weights: Array) -> None:
        super().__init__()
        self.weights: Tensor = torch.from_numpy(weights)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 (as torch's)
        """Compute the loss of outputs ``(M, L)`` and labels ``(M, L)``, 0 or 1."""
        of_0, of_1 = self.weights.to(input)
        weight = of_0 + (of_1 - of_0) * target
        return F.binary_cross_entropy_with_logits(input, target, weight, reduction=self.reduction)
