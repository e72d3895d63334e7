"""Optimizers of which it is known what a step does, so that others may do it for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, optim

from .._util.torch_internals import has_own_step, has_step_hooks

__all__ = ["describe_step", "obstacle", "set_in_group"]

# It is known what their steps compute, and that they do nothing else.
_KNOWN = (
    optim.ASGD, optim.Adadelta, optim.Adagrad, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam,
    optim.RAdam, optim.RMSprop, optim.Rprop, optim.SGD,
)  # fmt: skip


def obstacle(optimizer: optim.Optimizer) -> str | None:
    """Return why an optimizer's own ``step`` must be called, or None.

    Examples
    --------
    >>> weight = nn.Parameter(torch.zeros(3))
    >>> obstacle(optim.AdamW([weight])), obstacle(optim.LBFGS([weight]))
    (None, 'LBFGS is not an optimizer that fastseq knows')
    """
    name = type(optimizer).__name__
    if type(optimizer) not in _KNOWN:
        return f"{name} is not an optimizer that fastseq knows"
    if has_step_hooks(optimizer):
        return f"{name} has step hooks"
    if has_own_step(optimizer):
        return f"{name} has its own step method"
    return None


def describe_step(optimizer: optim.Optimizer) -> str:
    """Describe how `fit` runs an optimizer.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> describe_step(optim.AdamW(layer.parameters(), fused=True))
    'fused AdamW: one call for all parameters'
    """
    reason = obstacle(optimizer)
    if reason is not None:
        return f"its own step: {reason}"
    name = type(optimizer).__name__
    if all(group.get("fused") for group in optimizer.param_groups):
        return f"fused {name}: one call for all parameters"
    return f"{name}: parameter by parameter"


def set_in_group(group: dict[str, Any], name: str, value: Any) -> None:
    """Set a number of a group of parameters; if it is a tensor, in place: CUDA graphs hold it.

    Examples
    --------
    >>> optimizer = optim.Adam([nn.Parameter(torch.zeros(3))], lr=torch.tensor(0.5))
    >>> set_in_group(optimizer.param_groups[0], "lr", 0.25)
    >>> optimizer.param_groups[0]["lr"]
    tensor(0.2500)
    """
    if isinstance(group.get(name), Tensor):
        with torch.no_grad():
            group[name].fill_(float(value))
    else:
        group[name] = value
