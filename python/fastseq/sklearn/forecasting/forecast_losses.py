"""Losses of point and quantile forecasts, whose targets may be unknown."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..._util.tree import Tree
from ...training.native_layers import Loss, LossKind, NotNative, loss_of_known

__all__ = ["LOSSES", "ForecastLoss", "pinball_loss"]

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}
"""Losses of points, by name."""


def pinball_loss(
    output: Tensor, target: Tensor, quantiles: Sequence[float], reduction: str = "mean"
) -> Tensor:
    """Return the pinball loss, which is least if outputs are the target's quantiles [1]_.

    Parameters
    ----------
    output
        Forecasts ``(…, Q)``, one for each level.
    target
        Actual values, ``(…)``.
    quantiles
        The levels, between 0 and 1.
    reduction
        ``"mean"``, or ``"none"`` for a loss ``(…, Q)``.

    Returns
    -------
    Tensor
        The mean over all elements, a scalar; or each one's loss, in the units of the target.

    Raises
    ------
    ValueError
        The shapes do not fit together, a level is not between 0 and 1, or `reduction` is another.

    References
    ----------
    .. [1] R. Koenker and G. Bassett, "Regression quantiles", Econometrica 46 (1978).

    Examples
    --------
    >>> pinball_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1.0]), (0.1, 0.9), "none")
    tensor([[0.1000, 0.9000]])
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f'reduction must be "mean" or "none", got {reduction!r}')
    if not all(0 < level < 1 for level in quantiles):
        raise ValueError(f"quantiles must be between 0 and 1, got {list(quantiles)}")
    if output.shape != (*target.shape, len(quantiles)):
        raise ValueError(
            f"output must be {(*target.shape, len(quantiles))}, a value for each of the target's "
            f"and each of {len(quantiles)} quantiles, got {tuple(output.shape)}"
        )
    levels = output.new_tensor(quantiles)
    error = target.unsqueeze(-1) - output
    loss = torch.maximum(levels * error, (levels - 1) * error)
    return loss.mean() if reduction == "mean" else loss


class ForecastLoss:
    """Mean loss over the known steps of the horizon; others are NaN in the target.

    Parameters
    ----------
    fn
        ``fn(output, target, reduction="none")``, elementwise; for quantiles, outputs have one more
        axis.
    outputs
        Number of outputs for each value: the number of quantiles, or None for points.
    step_weights
        Weights of the steps of the horizon, ``(H,)``; None: they count alike.

    Examples
    --------
    >>> from torch.nn.functional import l1_loss
    >>> target = torch.tensor([[[1.0, 2.0, torch.nan]]])
    >>> ForecastLoss(l1_loss, None)(torch.nn.Identity(), torch.zeros(1, 1, 3), target)
    tensor(1.5000)
    """

    def __init__(
        self,
        fn: Callable[..., Tensor],
        outputs: int | None,
        step_weights: tuple[float, ...] | None = None,
    ) -> None:
        self.fn = fn
        self.outputs = outputs
        self.step_weights = step_weights

    def native_terms(self) -> Loss:
        """Return the loss if it is a known one; see `fastseq.training.native_layers`."""
        fn = self.fn
        part_weights = list(self.step_weights or ())
        if self.outputs is None:
            return loss_of_known(fn, part_weights)
        if isinstance(fn, functools.partial) and fn.func is pinball_loss and not fn.args:
            levels = list(fn.keywords["quantiles"])
            if len(levels) == self.outputs and len(fn.keywords) == 1:
                return Loss(LossKind.pinball, levels, of_known=True, part_weights=part_weights)
        raise NotNative("a loss of several outputs for each value")

    def __call__(
        self, m: Callable[..., Tensor], xs: Tree, ys: Tree, ws: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a chunk.

        Targets may come with weights, of mean 1 over all chunks: a chunk's loss is the sum of
        weighted losses, divided by the number of targets with a weight. `ws` are the known shares
        of samples, see `windows`.

        Outputs of several members of an ensemble are side by side. The loss is the mean of their
        losses, and each member gets the gradient of its own loss.
        """
        output = m(xs)
        target, weights = ys if isinstance(ys, tuple) else (ys, None)
        known = target.isfinite()
        if ws is not None:
            known &= (ws > 0).unsqueeze(-1)
        if weights is not None and self.step_weights is not None:
            steps = weights.new_tensor(self.step_weights)
            weights = (weights.unflatten(-1, (len(steps), -1)) * steps.unsqueeze(-1)).flatten(-2)
            known &= weights > 0
        target = torch.where(known, target, 0)
        members = output.shape[-1] // (target.shape[-1] * (self.outputs or 1))
        if members == 1:
            return self._mean(output, target, known, weights)
        losses = [self._mean(one, target, known, weights) for one in output.chunk(members, -1)]
        total = torch.stack(losses).sum()
        return total - total.detach() * (1 - 1 / members)

    def _mean(
        self, output: Tensor, target: Tensor, known: Tensor, weights: Tensor | None
    ) -> Tensor:
        if self.outputs is not None:
            output = output.reshape(*target.shape, self.outputs)
        losses = self.fn(output, target, reduction="none")
        if self.outputs is not None:
            losses = losses.mean(-1)
        if weights is not None:
            losses = losses * weights
        return torch.where(known, losses, 0).sum() / known.sum().clamp_min(1)
