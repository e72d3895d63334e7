"""Which optimizers work element by element, so that one vector may stand for many parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["join_state", "obstacle", "split_state", "state_kind", "unknown"]

State = dict[str, Any]
Pieces = Callable[[Tensor], list[Tensor]]

# What an optimizer keeps for each element; all else in its state (step counts and the like) is one
# number per parameter. Left out are those that look at a parameter as a whole, or at its shape.
_PER_ELEMENT: dict[type[optim.Optimizer], tuple[str, ...]] = {
    optim.ASGD: ("ax",),
    optim.Adadelta: ("square_avg", "acc_delta"),
    optim.Adagrad: ("sum",),
    optim.Adam: ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    optim.AdamW: ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    optim.Adamax: ("exp_avg", "exp_inf"),
    optim.NAdam: ("exp_avg", "exp_avg_sq"),
    optim.RAdam: ("exp_avg", "exp_avg_sq"),
    optim.RMSprop: ("square_avg", "momentum_buffer", "grad_avg"),
    optim.Rprop: ("prev", "step_size"),
    optim.SGD: ("momentum_buffer",),
}


def unknown(optimizer: optim.Optimizer) -> str | None:
    """Tell why nothing is known about what a step of `optimizer` does; None if it is known."""
    name = type(optimizer).__name__
    if type(optimizer) not in _PER_ELEMENT:
        return f"{name} is not known to work element by element"
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    if any(hooks):
        return f"{name} has step hooks, which may look at its parameters"
    step = optimizer.__dict__.get("step")
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        return f"{name} has a step method of its own"
    return None


def obstacle(optimizer: optim.Optimizer) -> str | None:
    """Tell why `optimizer` has to see every parameter by itself; None if it has not to.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> obstacle(optim.AdamW([weight])), obstacle(optim.AdamW([weight], fused=True))
    (None, 'AdamW is fused: its kernel takes all parameters at once')
    """
    reason = unknown(optimizer)
    if reason is not None:
        return reason
    name = type(optimizer).__name__
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            return f"{name} is differentiable"
        if group.get("fused"):
            return f"{name} is fused: its kernel takes all parameters at once"
    return None


def state_kind(optimizer: optim.Optimizer, param: Tensor) -> tuple[Any, ...] | None:
    """Return what the states of parameters in one vector must have in common.

    None if the state is not as `optimizer` makes it.
    """
    names = _PER_ELEMENT[type(optimizer)]
    kind: list[Any] = []
    for key, value in sorted(optimizer.state.get(param, {}).items()):
        if not isinstance(value, Tensor):
            kind.append((key, value))
        elif key in names:
            if value.shape != param.shape or value.device != param.device:
                return None
            kind.append((key, value.dtype))
        elif value.numel() == 1:
            kind.append((key, value.item(), value.dtype, value.device))
        else:
            return None
    return tuple(kind)


def join_state(
    optimizer: optim.Optimizer, states: list[State], vector: Tensor, pieces: Pieces
) -> State:
    """Return the state of `vector`, whose `pieces` have `states`."""
    joined: State = {}
    for key, value in states[0].items():
        if isinstance(value, Tensor) and key in _PER_ELEMENT[type(optimizer)]:
            joined[key] = torch.zeros_like(vector, dtype=value.dtype)
            for piece, state in zip(pieces(joined[key]), states, strict=True):
                piece.copy_(state[key])
        else:
            joined[key] = value.clone() if isinstance(value, Tensor) else value
    return joined


def split_state(
    optimizer: optim.Optimizer, joined: State, count: int, pieces: Pieces
) -> list[State]:
    """Return the states of the `count` pieces of a vector, each in memory of its own."""
    states: list[State] = [{} for _ in range(count)]
    for key, value in joined.items():
        if isinstance(value, Tensor) and key in _PER_ELEMENT[type(optimizer)]:
            values = [piece.clone() for piece in pieces(value)]
        else:
            values = [value.clone() if isinstance(value, Tensor) else value for _ in states]
        for state, own in zip(states, values, strict=True):
            state[key] = own
    return states
