"""Torch's private API: all that fastseq uses of it, each with why, and what is done without it.

Torch may change it in any version. What is gone is done in the public way, which is slower, or is
left out where a comment says so; results stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.autograd import profiler
from torch.optim import optimizer as _optimizer

__all__ = [
    "below_autograd", "children", "compiles_rnns", "copy_each_", "dynamo_error", "forward_hooks",
    "functorch_is_active", "fused_adam", "has_step_hooks", "l1_mean", "leave_open", "mark_stepped",
    "mse_mean", "multiply_each_", "profiles", "recompile_limit", "run_backward",
    "set_grad_enabled", "silence_capture_warning", "storage_users", "unsupported",
]  # fmt: skip

_C: Any = torch._C
_engine: Any = getattr(torch.autograd.Variable, "_execution_engine", None)


def run_backward(loss: Tensor) -> None:
    """Call ``loss.backward()``, less what that does to find out that it is given one number."""
    if _engine is None or type(loss) is not Tensor:
        loss.backward()  # type: ignore[no-untyped-call]
        return
    # Not one that is kept: a parameter's gradient may be a view of it, and be clipped in place.
    one = torch.ones_like(loss)
    _engine.run_backward(
        (loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


# A context manager takes longer than what is done within. Without it: torch's own function.
set_grad_enabled: Any = getattr(_C, "_set_grad_enabled", torch.set_grad_enabled)


def has_step_hooks(optimizer: optim.Optimizer) -> bool:
    """Whether something is called before or after an optimizer's steps: these must be its own.

    Where that cannot be found out, they are taken for such.
    """
    try:
        own: Any = optimizer
        return any((
            own._optimizer_step_pre_hooks, own._optimizer_step_post_hooks,
            _optimizer._global_optimizer_pre_hooks, _optimizer._global_optimizer_post_hooks,
        ))  # fmt: skip
    except AttributeError:
        return True


def mark_stepped(optimizer: Any) -> None:
    """Keep a scheduler from warning that its step comes before the optimizer's.

    Torch has no other way to say that a step was left out on purpose. Without it: the warning.
    """
    optimizer._opt_called = True


def silence_capture_warning(optimizer: Any) -> None:
    """Keep an optimizer from warning of steps before the first capture of a CUDA graph."""
    optimizer._warned_capturable_if_run_uncaptured = True


def profiles() -> bool:
    """Whether a profiler wants to see steps as torch makes them; yes, where that is not known."""
    return bool(getattr(profiler, "_is_profiler_enabled", True))


def fused_adam(*, decoupled: bool) -> Any:
    """Return the kernel behind fused AdamW (`decoupled`) or Adam; None: there is none."""
    return getattr(torch, "_fused_adamw_" if decoupled else "_fused_adam_", None)


def multiply_each_(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply tensors by a number, in one call."""
    torch._foreach_mul_(list(tensors), factor)


def copy_each_(to: Sequence[Tensor], from_: Sequence[Tensor]) -> None:
    """Copy tensors, in one call."""
    torch._foreach_copy_(list(to), list(from_))


def storage_users(storage: torch.UntypedStorage) -> int:
    """Count who holds a storage: a buffer may be filled again when nobody else does any more."""
    return int(_C._storage_Use_Count(storage._cdata))


def functorch_is_active() -> bool:
    """Whether `torch.func` transforms what runs; yes, where that is not known."""
    return bool(_C._are_functorch_transforms_active())


def below_autograd() -> AbstractContextManager[Any]:
    """Let operators go to their kernels straight away, without autograd's dispatch."""
    guard = getattr(_C, "_AutoDispatchBelowAutograd", nullcontext)
    return guard()


# Behind these losses once shapes are equal: to broadcast them takes as long as the loss itself.
def mse_mean(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared error of tensors of one shape."""
    return _native_mse(a, b, reduction=1)  # type: ignore[no-any-return]


def l1_mean(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute error of tensors of one shape."""
    return _native_l1(a, b, reduction=1)  # type: ignore[no-any-return]


_native_mse: Any = _C._nn.mse_loss
_native_l1: Any = _C._nn.l1_loss


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's children by name, shared ones at each of their places, None where one is.

    ``named_children`` leaves both out.
    """
    return module._modules


def forward_hooks(module: nn.Module, *, before: bool = True, after: bool = True) -> bool:
    """Whether something is called before or after a module's forward."""
    return bool((before and module._forward_pre_hooks) or (after and module._forward_hooks))


# `torch.compile` has no public names for its errors. Its package takes long to import.
def dynamo_error() -> type[Exception]:
    """Return the base of what `torch.compile` raises."""
    return torch._dynamo.exc.TorchDynamoException


def recompile_limit() -> type[Exception]:
    """Return what `torch.compile` raises when it has compiled a function too often."""
    return torch._dynamo.exc.FailOnRecompileLimitHit


def unsupported() -> type[Exception]:
    """Return what `torch.compile` raises where it cannot make one graph."""
    return torch._dynamo.exc.Unsupported


def compiles_rnns() -> AbstractContextManager[Any]:
    """Let `torch.compile` take recurrent layers."""
    patch: AbstractContextManager[Any] = torch._dynamo.config.patch(allow_rnn=True)
    return patch


def leave_open(tensor: Tensor, dims: int | list[int]) -> None:
    """Have `torch.compile` take dimensions for ones of any length."""
    torch._dynamo.maybe_mark_dynamic(tensor, dims)
