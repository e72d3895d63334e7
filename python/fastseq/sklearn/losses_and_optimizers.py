"""Optimizers and losses by name, or of the user's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn, optim

from .._util.spelling import meant
from ..nn import Rocket
from ..nn.losses import seqloss
from ..nn.parameters import decay_groups

__all__ = ["loss_over_chunks", "optimizer_factory"]

# Fused optimizers do an update in one call.
_OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adam": functools.partial(optim.Adam, fused=True),
    "adamw": functools.partial(optim.AdamW, fused=True),
    "sgd": functools.partial(optim.SGD, fused=True),
    "rmsprop": optim.RMSprop,
}


def optimizer_factory(
    optimizer: str | Callable[..., optim.Optimizer],
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float | None,
    decay_biases: bool,
) -> Callable[[Iterable[Tensor]], optim.Optimizer]:
    """Return a function that makes the optimizer of a model's parameters.

    Parameters
    ----------
    optimizer
        A name, a class, or a callable ``optimizer(params, lr=…, weight_decay=…)``; ``lr`` and
        ``weight_decay`` are passed if it takes them.
    model
        The model.
    lr, weight_decay
        Learning rate and weight decay. None: that of `Rocket`s with "adamw", else none.
    decay_biases
        False: biases do not decay.
    """
    own = _decaying(model) if weight_decay is None and optimizer == "adamw" else []
    weight_decay = weight_decay or 0.0
    if isinstance(optimizer, str):
        if optimizer not in _OPTIMIZERS:
            hint = meant(optimizer, _OPTIMIZERS)
            raise ValueError(
                f"optimizer must be one of {tuple(_OPTIMIZERS)}, got {optimizer!r}{hint}"
            )
        make: Callable[..., optim.Optimizer] = _OPTIMIZERS[optimizer]
    elif isinstance(optimizer, optim.Optimizer) or not callable(optimizer):
        raise TypeError(
            "optimizer must be a name, a class or a callable that takes the parameters and returns "
            f"one, got {optimizer!r}"
        )
    else:
        make = optimizer
    taken = {"lr": lr, "weight_decay": weight_decay}
    if not isinstance(optimizer, str):
        parameters = inspect.signature(make).parameters
        anything = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
        taken = {name: v for name, v in taken.items() if anything or name in parameters}
    if "weight_decay" not in taken and weight_decay:
        raise ValueError(f"the optimizer {optimizer!r} takes no weight_decay, got {weight_decay!r}")

    def factory(params: Iterable[Tensor]) -> optim.Optimizer:
        given = list(params)
        if own:
            apart = {id(p) for group in own for p in group["params"]}
            rest = [p for p in given if id(p) not in apart]
            return make([{"params": rest}, *own], **taken)
        if decay_biases or not weight_decay:
            return make(given, **taken)
        return make(decay_groups(model, weight_decay), **taken)

    return factory


def _decaying(model: nn.Module) -> list[dict[str, Any]]:
    """Return parameter groups of the weights that have a weight decay of their own."""
    return [
        {"params": [layer.linear.weight], "weight_decay": layer.weight_decay}
        for layer in model.modules()
        if isinstance(layer, Rocket)
    ]


def loss_over_chunks(
    loss: object, named: dict[str, Callable[..., Tensor]]
) -> Callable[..., Tensor]:
    """Return a loss over chunks.

    Parameters
    ----------
    loss
        A name in `named`; a loss of samples, ``loss(output, target, reduction=…)``, as a function,
        module or class of modules; or a loss over chunks, ``loss(m, xs, ys)``.
    named
        Losses by name.
    """
    if isinstance(loss, str):
        if loss not in named:
            hint = meant(loss, named)
            raise ValueError(
                f"loss must be one of {tuple(named)} or a callable, got {loss!r}{hint}"
            )
        return seqloss(named[loss])
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        return seqloss(loss())
    if not callable(loss):
        raise TypeError(f"loss must be a name or a callable, got {loss!r}")
    if isinstance(loss, nn.Module):
        return seqloss(loss)
    parameters = inspect.signature(loss).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD]
    return loss if len(required) >= 3 else seqloss(loss)
