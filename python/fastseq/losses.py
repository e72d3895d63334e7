"""Losses over chunks."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .tree import Tree

__all__ = ["seqloss"]

Loss = Callable[..., Tensor]


def seqloss(fn: Loss | nn.Module, *, per_step: bool = False) -> Loss:
    """Make a loss over chunks of a loss over samples: the mean over time of ``fn(m(x_t), y_t)``.

    Parameters
    ----------
    fn
        A loss such as `torch.nn.functional.mse_loss` or `torch.nn.MSELoss()`, called as
        ``fn(output, target)`` on ``(S·B, …)``, all steps at once, with ``reduction="none"``.
    per_step
        For losses that are no mean over samples (a correlation, say): `fn` is called on every
        step, ``fn(output_t, target_t)``, with the step's weights ``(B,)``, or ``(B, K)``, as third
        argument where there are weights, a mask or missing targets; the result is the mean over
        steps, each counting as much as its weights' sum.

    Returns
    -------
    callable
        ``loss(m, xs, ys)`` and ``loss(m, xs, ys, ws)`` for `Estimator`: Σ w·l / Σ w over the
        chunk, where l is a sample's loss (its mean over features) and w its weight, 1 if there
        are none. 0 if all weights are 0. Weights ``(S, B, K)``, which say what is known of each
        target (see ``spec.nan``), are those of the loss's elements.

    Raises
    ------
    TypeError
        `fn` takes no ``reduction`` and `per_step` is false.
    ValueError
        `fn` is a module that sums.

    Examples
    --------
    >>> from torch.nn.functional import mse_loss
    >>> loss = seqloss(mse_loss)
    >>> loss(nn.Identity(), torch.zeros(10, 2, 1), torch.ones(10, 2, 1))
    tensor(1.)
    """
    if per_step:
        return functools.partial(_mean_over_steps, fn)
    return functools.partial(_mean_over_samples, _unreduced(fn), _mean_over_elements(fn))


def _unreduced(fn: Loss | nn.Module) -> Loss:
    """Make `fn` return one loss per sample, or per element."""
    if isinstance(fn, nn.Module) and hasattr(fn, "reduction"):
        if fn.reduction == "sum":
            raise ValueError('seqloss returns a mean; make the loss with reduction="mean"')
        module: Any = copy.deepcopy(fn)
        module.reduction = "none"
        return module  # type: ignore[no-any-return]
    if "reduction" not in inspect.signature(fn).parameters:
        raise TypeError(
            f"seqloss: {getattr(fn, '__name__', fn)!r} takes no `reduction`, so it cannot be asked "
            "for one loss per sample; pass per_step=True to call it on every time step"
        )
    return functools.partial(fn, reduction="none")


# Their mean over all elements is the mean over samples, in one call.
_MEANS: tuple[Any, ...] = (
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.huber_loss,
    F.l1_loss,
    F.mse_loss,
    F.smooth_l1_loss,
)
# What is behind these once shapes are equal: to broadcast them takes as long as the loss itself.
_native: Any = torch._C._nn
_DIRECT: dict[Any, Loss] = {
    F.l1_loss: functools.partial(_native.l1_loss, reduction=1),
    F.mse_loss: functools.partial(_native.mse_loss, reduction=1),
}
_MODULES_OF_MEANS = (nn.HuberLoss, nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss)


def _mean_over_elements(fn: Loss | nn.Module) -> Loss | None:
    """Return a loss for output and target of one shape, or None if `fn` is no such."""
    if type(fn) in _MODULES_OF_MEANS:
        module: Any = copy.deepcopy(fn)
        module.reduction = "mean"
        return module  # type: ignore[no-any-return]
    return _DIRECT.get(fn, fn) if fn in _MEANS else None


def _mean_over_samples(
    fn: Loss, mean: Loss | None, m: Any, xs: Tree, ys: Tensor, ws: Tensor | None = None
) -> Tensor:
    output = m(xs)
    if not isinstance(output, Tensor) or not isinstance(ys, Tensor):
        raise TypeError(
            "seqloss needs one output and one target; for several, write loss(m, xs, ys) yourself"
        )
    if mean is not None and ws is None and output.shape == ys.shape and ys.is_floating_point():
        return mean(output, ys)
    if ys.shape[-1] == 1 and not ys.is_floating_point():
        ys = ys.squeeze(-1)  # class labels
    elif output.shape != ys.shape and ys.is_floating_point():
        raise ValueError(
            f"the model's output {tuple(output.shape)} and the target {tuple(ys.shape)} differ in "
            "shape: give the model as many outputs as y has features"
        )
    losses = fn(output.flatten(0, 1), ys.flatten(0, 1))
    if ws is None:
        return losses.mean()
    if ws.dim() > 2:
        ws = ws.flatten(0, 1)
        if losses.shape != ws.shape:
            raise ValueError(
                "y has samples of which some targets are missing, others not, but this loss is not "
                "one of each target: leave such samples out with mask, or write a loss of your own"
            )
        return _weighted_mean(losses, ws)
    losses = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
    return _weighted_mean(losses, ws.flatten())


def _mean_over_steps(fn: Loss, m: Any, xs: Tree, ys: Tree, ws: Tensor | None = None) -> Tensor:
    output = m(xs)
    if ws is None:
        return torch.stack([fn(o, y) for o, y in zip(output, ys, strict=True)]).mean()
    losses = torch.stack([fn(o, y, w) for o, y, w in zip(output, ys, ws, strict=True)])
    each = ws.flatten(2).mean(2) if ws.dim() > 2 else ws
    return _weighted_mean(losses, each.sum(1))


def _weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    # Where the weight is zero the loss may be anything, NaN included; it must not count.
    weighted = torch.where(weights > 0, losses * weights, 0)
    return weighted.sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
