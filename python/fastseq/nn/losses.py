"""Losses over chunks."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Protocol, TypeGuard

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .._util.torch_internals import l1_mean, mse_mean
from .._util.tree import Tree
from .focal_loss import FocalLoss
from .per_sequence import PerSequence

__all__ = ["by_seqloss", "missing_label", "of_classes", "of_numbers", "seqloss", "unreduced"]

Loss = Callable[..., Tensor]


class _Reducing(Protocol):
    """A loss with torch's attribute for how samples are put together."""

    reduction: str

    def __call__(self, output: Tensor, target: Tensor) -> Tensor: ...


def seqloss(fn: Loss | nn.Module, *, per_step: bool = False) -> Loss:
    """Make a loss over chunks from a loss over samples: the mean over time of ``fn(m(x_t), y_t)``.

    Parameters
    ----------
    fn
        A loss such as `torch.nn.functional.mse_loss` or `torch.nn.MSELoss()`, called as
        ``fn(output, target)`` on ``(S·B, …)``, all steps at once, with ``reduction="none"``.
    per_step
        For losses that are not a mean over samples, such as a correlation: `fn` is called on each
        step, ``fn(output_t, target_t)``. With weights, a mask or missing targets, its third
        argument is the step's weights ``(B,)``, or ``(B, K)``. The result is the mean over steps,
        each weighted by the sum of its weights.

    Returns
    -------
    callable
        ``loss(m, xs, ys)`` and ``loss(m, xs, ys, ws)`` for `Estimator`: Σ w·l / Σ w over the
        chunk, where l is a sample's loss (its mean over features) and w its weight, 1 without
        weights. 0 if all weights are 0. Weights ``(S, B, K)``, one for each target (see
        ``spec.nan``), apply to the elements of the loss.

        Integer targets ``(S, B, 1)`` are class labels for losses of classes, such as
        `torch.nn.CrossEntropyLoss`, and for any `fn` if the model has several outputs; otherwise
        they are numbers.

    Raises
    ------
    TypeError
        `fn` takes no ``reduction`` and `per_step` is false.
    ValueError
        `fn` is a module that sums. When called: outputs and targets do not match.

    Examples
    --------
    >>> from torch.nn.functional import mse_loss
    >>> loss = seqloss(mse_loss)
    >>> loss(nn.Identity(), torch.zeros(10, 2, 1), torch.ones(10, 2, 1))
    tensor(1.)
    """
    if per_step:
        return functools.partial(_mean_over_steps, fn)
    return functools.partial(_mean_over_samples, unreduced(fn), _mean_over_elements(fn), _kind(fn))


def of_numbers(loss: object) -> bool:
    """Whether `loss` is made by `seqloss` and compares element by element, integers too.

    Examples
    --------
    >>> of_numbers(seqloss(F.mse_loss)), of_numbers(seqloss(F.cross_entropy))
    (True, False)
    """
    return _made(loss) and loss.args[2] == "elements"


def by_seqloss(loss: object) -> bool:
    """Whether `loss` is made by `seqloss`.

    Examples
    --------
    >>> by_seqloss(seqloss(F.mse_loss)), by_seqloss(lambda m, xs, ys: F.mse_loss(m(xs), ys))
    (True, False)
    """
    return _made(loss) or (isinstance(loss, functools.partial) and loss.func is _mean_over_steps)


def missing_label(loss: object) -> int | None:
    """Return the label that a loss made by `seqloss` ignores, torch's ``ignore_index``.

    That of a `PerSequence` is that of its loss.

    Examples
    --------
    >>> missing_label(seqloss(F.cross_entropy))
    -100
    >>> missing_label(seqloss(F.mse_loss)) is None
    True
    """
    if isinstance(loss, PerSequence):
        return missing_label(loss.loss)
    if not _made(loss) or loss.args[2] != "classes":
        return None
    fn = loss.args[0]
    if isinstance(fn, nn.Module):
        return getattr(fn, "ignore_index", None)
    parameter = inspect.signature(fn).parameters.get("ignore_index")
    return None if parameter is None else int(parameter.default)


def _made(loss: object) -> TypeGuard[functools.partial[Tensor]]:
    return isinstance(loss, functools.partial) and loss.func is _mean_over_samples


def of_classes(fn: object) -> bool:
    """Whether a loss over samples compares scores with class numbers.

    Examples
    --------
    >>> of_classes(nn.CrossEntropyLoss()), of_classes(F.mse_loss)
    (True, False)
    """
    return _kind(fn) == "classes"


def unreduced(fn: Loss | nn.Module) -> Loss:
    """Make `fn` return one loss per sample, or per element; see `seqloss` for what it raises."""
    if _reduces(fn):
        if fn.reduction == "sum":
            raise ValueError('seqloss returns a mean; make the loss with reduction="mean"')
        return _reduced(fn, "none")
    if "reduction" not in inspect.signature(fn).parameters:
        raise TypeError(
            f"seqloss: {getattr(fn, '__name__', fn)!r} takes no `reduction`, so it cannot be asked "
            "for one loss per sample; pass per_step=True to call it on every time step"
        )
    return functools.partial(fn, reduction="none")


def _reduces(fn: object) -> TypeGuard[_Reducing]:
    return isinstance(fn, nn.Module) and hasattr(fn, "reduction")


def _reduced(fn: _Reducing, reduction: str) -> Loss:
    """Return a copy of a loss with another reduction."""
    module = copy.deepcopy(fn)
    module.reduction = reduction
    return module


# For these, the mean over all elements is the mean over samples, in one call.
_MEANS: tuple[Loss, ...] = (
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.huber_loss,
    F.l1_loss,
    F.mse_loss,
    F.smooth_l1_loss,
)
_DIRECT: dict[Loss, Loss] = {
    F.l1_loss: l1_mean,
    F.mse_loss: mse_mean,
}
_MODULES_OF_MEANS = (nn.HuberLoss, nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss)
# The last two compare element by element, too, but may have their own weights.
_MODULES_OF_ELEMENTS = (*_MODULES_OF_MEANS, nn.BCELoss, nn.BCEWithLogitsLoss)
_OF_CLASSES: tuple[Loss, ...] = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)
_MODULES_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss, FocalLoss)


def _mean_over_elements(fn: Loss | nn.Module) -> Loss | None:
    """Return `fn` as a mean over output and target of one shape, or None if it is no such mean."""
    if _reduces(fn) and type(fn) in _MODULES_OF_MEANS:
        return _reduced(fn, "mean")
    return _DIRECT.get(fn, fn) if fn in _MEANS else None


def _kind(fn: object) -> str | None:
    """Return what `fn` compares outputs with: ``"elements"``, ``"classes"``; None: unknown."""
    if isinstance(fn, _MODULES_OF_ELEMENTS) or fn in _MEANS:
        return "elements"
    if isinstance(fn, _MODULES_OF_CLASSES) or fn in _OF_CLASSES:
        return "classes"
    return None


def _mean_over_samples(
    fn: Loss,
    mean: Loss | None,
    kind: str | None,
    m: Callable[[Tree], Tree],
    xs: Tree,
    ys: Tensor,
    ws: Tensor | None = None,
) -> Tensor:
    output = m(xs)
    if not isinstance(output, Tensor) or not isinstance(ys, Tensor):
        raise TypeError(
            "seqloss needs one output and one target; for several, write loss(m, xs, ys) yourself"
        )
    if mean is not None and ws is None and output.shape == ys.shape and ys.is_floating_point():
        return mean(output, ys)
    if output.dim() < 2 or output.shape[:2] != ys.shape[:2]:
        raise ValueError(
            f"the model's output must be (time, sequences, features), for every step of a chunk of "
            f"{ys.shape[0]} steps and {ys.shape[1]} sequences, got {tuple(output.shape)}"
        )
    if not ys.is_floating_point():
        ys = _integers(kind, output, ys)
    elif output.shape != ys.shape:
        labels = kind == "classes" and ys.shape[2:] == (1,)
        raise _unlike(output, ys, ", or y integers if it holds class labels" if labels else "")
    try:
        losses = fn(output.flatten(0, 1), ys.flatten(0, 1))
    except IndexError:  # torch's error for bad labels on a CPU
        if kind != "classes":
            raise
        raise _beyond(output, ys) from None
    if losses.shape[:1] != (ys.shape[0] * ys.shape[1],) or (
        output.shape != ys.shape and kind is None and losses.dim() > 1
    ):
        raise ValueError(
            f"the loss must be one number per sample, but for outputs {tuple(output.shape)} and "
            f"targets {tuple(ys.shape)} it has the shape {tuple(losses.shape)}: give the model as "
            "many outputs as y has features, or pass per_step=True"
        )
    if ws is None:
        return losses.mean()
    if ws.dim() > 2:
        ws = ws.flatten(0, 1)
        if losses.shape != ws.shape:
            raise ValueError(
                "y has samples with only some of their targets missing, but this loss is not "
                "computed target by target: leave such samples out by mask, or write a loss of "
                "your own"
            )
        return _weighted_mean(losses, ws)
    losses = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
    return _weighted_mean(losses, ws.flatten())


def _integers(kind: str | None, output: Tensor, ys: Tensor) -> Tensor:
    """Return integer targets as class labels ``(S, B)``, or as numbers."""
    labels = ys.shape[-1] == 1 and (kind == "classes" or output.shape[-1] > 1)
    if kind == "classes" and output.shape[-1] == 1:
        raise ValueError(
            f"the loss compares classes, but the model has one output, {tuple(output.shape)}: give "
            "it one for each class, or use binary_cross_entropy_with_logits"
        )
    if kind != "elements" and labels:
        return ys.squeeze(-1)
    if output.shape != ys.shape and (kind == "elements" or output.shape[-1] == 1):
        raise _unlike(output, ys)
    return ys.to(output.dtype) if kind == "elements" else ys


def _beyond(output: Tensor, ys: Tensor) -> ValueError:
    return ValueError(
        f"the labels in y are between {ys.min().item()} and {ys.max().item()}, but the model has "
        f"{output.shape[-1]} outputs: they must be class numbers, from 0 on"
    )


def _unlike(output: Tensor, ys: Tensor, more: str = "") -> ValueError:
    return ValueError(
        f"the model's output {tuple(output.shape)} and the target {tuple(ys.shape)} differ in "
        f"shape: give the model as many outputs as y has features{more}"
    )


def _mean_over_steps(
    fn: Loss, m: Callable[[Tree], Tree], xs: Tree, ys: Tree, ws: Tensor | None = None
) -> Tensor:
    output = m(xs)
    if ws is None:
        return torch.stack([fn(o, y) for o, y in zip(output, ys, strict=True)]).mean()
    losses = torch.stack([fn(o, y, w) for o, y, w in zip(output, ys, ws, strict=True)])
    each = ws.flatten(2).mean(2) if ws.dim() > 2 else ws
    return _weighted_mean(losses, each.sum(1))


def _weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    # Where the weight is zero the loss may be NaN; it must not count.
    weighted = torch.where(weights > 0, losses * weights, 0)
    return weighted.sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
