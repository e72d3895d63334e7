"""A step of an optimizer without what PyTorch does around it for parameters that are many."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn, optim
from torch.autograd import profiler

__all__ = ["quick_step"]

Step = Callable[[], object]


def quick_step(optimizer: optim.Optimizer, vectors: list[nn.Parameter]) -> Step:
    """Return a cheaper call that does what ``optimizer.step()`` does, to the bit.

    Parameters
    ----------
    optimizer
        Of exactly one of torch's types, without step hooks; it has made a step.
    vectors
        Those of its parameters that have the same tensors as gradient and state from now on.

    Examples
    --------
    >>> weight = nn.Parameter(torch.ones(1))
    >>> weight.grad = torch.ones(1)
    >>> _ = quick_step(optim.SGD([weight], lr=0.5), [weight])()
    >>> weight.item()
    0.5
    """
    known = set(vectors)
    fused = [
        _fused_adam(optimizer, group, p) if p in known else None
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    if len(fused) == 1 and fused[0] is not None:
        return fused[0]
    if None not in fused:
        return partial(_one_after_another, fused)
    # The method without what torch wraps around it: looking for hooks, and a mark for profilers.
    wrapper = type(optimizer).step
    if getattr(wrapper, "hooked", False) and hasattr(wrapper, "__wrapped__"):
        return partial(_unless_profiled, partial(wrapper.__wrapped__, optimizer), optimizer)
    return optimizer.step


def _one_after_another(steps: list[Any]) -> None:
    for step in steps:
        step()


def _unless_profiled(bare: Step, optimizer: optim.Optimizer) -> None:
    if profiler._is_profiler_enabled:
        optimizer.step()
    else:
        bare()


def _fused_adam(optimizer: optim.Optimizer, group: dict[str, Any], p: nn.Parameter) -> Step | None:
    """Return a call of the kernel that a fused Adam calls for `p`."""
    if type(optimizer) not in (optim.Adam, optim.AdamW) or not group["fused"]:
        return None
    state = optimizer.state[p]
    plain = all(isinstance(beta, float) for beta in group["betas"]) and not group["capturable"]
    if not plain or "step" not in state or hasattr(optimizer, "grad_scale"):
        return None
    kernel: Any = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    steps = state["step"]
    largest = [state["max_exp_avg_sq"]] if group["amsgrad"] else []
    tensors = [p.detach()], [p.grad], [state["exp_avg"]], [state["exp_avg_sq"]], largest, [steps]

    def step() -> None:
        beta1, beta2 = group["betas"]
        steps.add_(1)
        kernel(
            *tensors,
            amsgrad=group["amsgrad"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            grad_scale=None,
            found_inf=None,
        )

    return step
