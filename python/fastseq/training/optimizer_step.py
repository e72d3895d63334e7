"""Steps of an optimizer, without PyTorch's overhead for optimizers that are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn, optim

from .._util.torch_internals import (
    fused_adam,
    profiles,
    set_grad_enabled,
    unwrapped_step,
)
from .known_optimizers import obstacle
from .unchanged import Seen, is_unchanged, optimizer_in

__all__ = ["OptimizerStep"]


class OptimizerStep:
    """Clears gradients and makes updates while `fit` runs; a context manager.

    Parameters
    ----------
    optimizer
        Makes the updates.
    params
        The trainable parameters of the model.
    others
        Its other parameters: any gradients they get are dropped.

    Attributes
    ----------
    params
        The trainable parameters of the model.
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        params: Iterable[nn.Parameter] = (),
        others: Iterable[nn.Parameter] = (),
    ) -> None:
        self._optimizer = optimizer
        self.params: list[nn.Parameter] = list(params)
        self._others = list(others)
        own = {p for group in optimizer.param_groups for p in group["params"]}
        self._stepped = [p for p in self.params if p in own]
        self._quick: QuickStep | None = None

    def __enter__(self) -> OptimizerStep:
        own = [p for group in self._optimizer.param_groups for p in group["params"]]
        for p in (*own, *self.params, *self._others):
            p.grad = None  # a frozen one may have one from an earlier run
        return self

    def __exit__(self, *_: object) -> None:
        self._leave_quick()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for p in self.params:
            p.grad = None

    def drop_others(self) -> None:
        """Set the gradients of the other parameters to None, before any are looked at."""
        for p in self._others:
            p.grad = None

    def stepped(self) -> list[nn.Parameter]:
        """Return the parameters that `step` changes; their gradients may be changed in place."""
        return self._stepped

    def steps_all(self) -> bool:
        """Whether `step` changes all trainable parameters of the model."""
        return len(self._stepped) == len(self.params)

    def step(self) -> None:
        """Make a step of the optimizer."""
        known = obstacle(self._optimizer) is None  # hooks may come at any time
        if known and self._quick is not None and self._quick.step():
            return
        self._leave_quick()
        self._optimizer.step()
        if known:
            self._quick = quick_step(self._optimizer)

    def _leave_quick(self) -> None:
        if self._quick is not None:
            self._quick.close()
            self._quick = None


class QuickStep(Protocol):
    """Does the same as an optimizer's ``step``, to the bit, in less time."""

    def step(self) -> bool:
        """Make a step; return false if nothing was done and the optimizer must do it."""
        ...

    def close(self) -> None:
        """Leave the optimizer as if it had made the steps itself."""
        ...


def quick_step(optimizer: optim.Optimizer) -> QuickStep:
    """Return faster steps for an optimizer that has made one.

    Parameters
    ----------
    optimizer
        Exactly of one of torch's types, without step hooks.

    Examples
    --------
    >>> weight = nn.Parameter(torch.ones(1))
    >>> weight.grad = torch.ones(1)
    >>> quick_step(optim.SGD([weight], lr=0.5)).step(), weight.item()
    (True, 0.5)
    """
    return _FusedAdam(optimizer) if _FusedAdam.fits(optimizer) else _Unwrapped(optimizer)


class _Unwrapped:
    """The ``step`` method without its wrapper, which runs hooks and marks steps for profilers."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._method = unwrapped_step(optimizer)

    def step(self) -> bool:
        if self._method is None or profiles():
            return False
        self._method(self._optimizer)
        return True

    def close(self) -> None:
        pass


class _FusedAdam:
    """Fused Adam and AdamW on the CPU: only calls of the kernel.

    Meanwhile the step counts of all parameters are in one vector.
    """

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self._optimizer = optimizer
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self._active = [p for p in params if p in optimizer.state]
        self._idle = [p for p in params if p not in optimizer.state]
        self._counts = torch.stack([optimizer.state[p]["step"] for p in self._active])
        self._one = self._counts.new_ones(())
        for p, count in zip(self._active, self._counts.unbind(), strict=True):
            optimizer.state[p]["step"] = count
        containers, entries = optimizer_in(optimizer)
        self._seen: Seen = (), tuple(containers), tuple(entries), ()
        self._calls = [
            (group, members, self._states(members, amsgrad=group["amsgrad"]))
            for group in optimizer.param_groups
            for members in self._alike(group["params"])
        ]

    @staticmethod
    def fits(optimizer: optim.Optimizer) -> bool:
        if type(optimizer) not in (optim.Adam, optim.AdamW) or hasattr(optimizer, "grad_scale"):
            return False
        groups = optimizer.param_groups
        numbers = all(isinstance(beta, float) for group in groups for beta in group["betas"])
        on_cpu = all(p.is_cpu for group in groups for p in group["params"])
        fused = all(g["fused"] and not g["capturable"] for g in groups)
        known = all(fused_adam(decoupled=g["decoupled_weight_decay"]) for g in groups)
        return numbers and on_cpu and fused and known and bool(optimizer.state)

    def _alike(self, params: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        """Group the parameters that have a state by dtype, as the kernel needs them."""
        by_dtype = defaultdict(list)
        for p in params:
            if p in self._optimizer.state:
                by_dtype[p.dtype].append(p)
        return list(by_dtype.values())

    def _states(self, params: list[nn.Parameter], *, amsgrad: bool) -> list[list[Tensor]]:
        states = [self._optimizer.state[p] for p in params]
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
        lists = [[state[name] for state in states] for name in names]
        return [*lists, *([] if amsgrad else [[]]), [state["step"] for state in states]]

    def step(self) -> bool:
        if not is_unchanged(*self._seen):
            return False
        for p in self._idle:
            if p.grad is not None:
                return False
        gradients = [[p.grad for p in members] for _, members, _ in self._calls]
        for grads in gradients:
            for grad in grads:
                if grad is None:
                    return False
        set_grad_enabled(False)
        try:
            self._update(gradients)
        finally:
            set_grad_enabled(True)
        return True

    def _update(self, gradients: list[list[Tensor | None]]) -> None:
        self._counts += self._one
        for (group, members, states), grads in zip(self._calls, gradients, strict=True):
            beta1, beta2 = group["betas"]
            decoupled = group["decoupled_weight_decay"]
            kernel = fused_adam(decoupled=decoupled)
            assert kernel is not None
            kernel(
                members,
                grads,
                *states,
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

    def close(self) -> None:
        for p in self._active:
            state = self._optimizer.state.get(p, {})
            if "step" in state:
                state["step"] = state["step"].clone()
