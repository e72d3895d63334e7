"""Losses over chunks for one target per sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .._util.tree import Tree
from .stateful import each_step

__all__ = ["AtLastStep", "PerSequence"]

Model = Callable[[Tree], Tree]


class PerSequence:
    """A loss for one target per sequence; modules may pool, that is, return ``(B, K)``.

    Parameters
    ----------
    loss
        ``loss(m, xs, ys)``, with weights ``loss(m, xs, ys, ws)``.

    Attributes
    ----------
    per_sequence
        True: outputs without an axis of steps are intended.
    """

    per_sequence = True

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        self.loss = loss

    def __call__(self, m: Model, xs: Tree, ys: Tensor, *ws: Tensor) -> Tensor:
        """Compute the loss of a chunk."""
        return self.loss(_EachStep(m), xs, ys, *ws)


class AtLastStep(PerSequence):
    """A loss of a model's output at a chunk's last step.

    Parameters
    ----------
    loss
        ``loss(m, xs, ys)``, with weights ``loss(m, xs, ys, ws)``.

    Attributes
    ----------
    at_last_step
        True: metrics, too, look at the last steps of chunks.

    Examples
    --------
    >>> from fastseq import seqloss
    >>> x, y = torch.tensor([[[7.0]], [[3.0]]]), torch.ones(2, 1, 1)
    >>> AtLastStep(seqloss(nn.functional.mse_loss))(nn.Identity(), x, y)
    tensor(4.)
    """

    at_last_step = True

    def __call__(self, m: Model, xs: Tree, ys: Tensor, *ws: Tensor) -> Tensor:
        """Compute the loss of a chunk that holds whole sequences."""
        return self.loss(_LastStep(m), xs, ys[-1:], *(w[-1:] for w in ws))


class _EachStep:
    """A model that may return one output for all steps."""

    def __init__(self, m: Model) -> None:
        self._m = m

    def __call__(self, xs: Tree) -> Tree:
        return each_step(self._m(xs), len(xs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._m, name)


class _LastStep(_EachStep):
    """A model that returns its last output alone."""

    def __call__(self, xs: Tree) -> Tensor:
        y: Tensor = self._m(xs)
        return y.unsqueeze(0) if y.dim() == 2 else y[-1:]
