"""All of torch's private API that fastseq uses: why, and what happens without it.

Torch may change it in any version. What is missing is replaced by the slower public way, or left
out where a comment says so; results stay the same. Without `torch.compile`'s names,
``compile=True`` does not work.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.autograd import profiler
from torch.distributed import distributed_c10d
from torch.nn import functional
from torch.optim import optimizer as _optimizer

from .untyped_torch import backward

__all__ = [
    "assume_constant_result", "below_autograd", "children", "compiles_rnns", "dynamo_error",
    "forward_hooks", "functorch_is_active", "fused_adam", "global_hooks", "gloo_group",
    "has_hooks", "has_modes", "has_own_step", "has_step_hooks", "is_autocast", "is_watched",
    "l1_mean", "leave_open", "let_skip_on_device", "mark_stepped", "mse_mean", "multiply_each_",
    "own_parameters", "profiles", "recompile_limit", "rnn_weight_names", "rnn_weights",
    "run_backward", "set_grad_enabled", "silence_capture_warning", "skips_on_device",
    "storage_users", "uncompiled", "unsupported", "unwrapped_step",
]  # fmt: skip

_C: Any = torch._C
_engine: Any = getattr(torch.autograd.Variable, "_execution_engine", None)


def gloo_group(store: Any, rank: int, size: int, timeout: datetime.timedelta) -> Any:
    """Return Gloo's group of ranks that meet at a store, without torch's global ones."""
    return distributed_c10d.ProcessGroupGloo(store, rank, size, timeout)


def run_backward(loss: Tensor) -> None:
    """Call ``loss.backward()`` without its checks that the loss is one number."""
    if _engine is None or type(loss) is not Tensor:
        backward(loss)
        return
    # Made for each call: a parameter's gradient may be a view of it, and be clipped in place.
    one = torch.ones_like(loss)
    _engine.run_backward(
        (loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


# A context manager takes longer than its body here. Without it: torch's public function.
set_grad_enabled: Callable[[bool], object] = getattr(
    _C, "_set_grad_enabled", torch.set_grad_enabled
)


def has_step_hooks(optimizer: optim.Optimizer) -> bool:
    """Return whether an optimizer's step has hooks, so that its own `step` must be called.

    True if that cannot be found out.
    """
    try:
        own: Any = optimizer
        return any((
            own._optimizer_step_pre_hooks, own._optimizer_step_post_hooks,
            _optimizer._global_optimizer_pre_hooks, _optimizer._global_optimizer_post_hooks,
        ))  # fmt: skip
    except AttributeError:
        return True


def has_own_step(optimizer: optim.Optimizer) -> bool:
    """Return whether an optimizer's ``step`` was replaced by another than a scheduler's wrapper."""
    step = optimizer.__dict__.get("step")
    return step is not None and not hasattr(step, "_wrapped_by_lr_sched")


def unwrapped_step(optimizer: optim.Optimizer) -> Callable[[optim.Optimizer], object] | None:
    """Return an optimizer's ``step`` without the wrapper that runs hooks, or None if unknown."""
    wrapper: Any = type(optimizer).step
    return wrapper.__wrapped__ if getattr(wrapper, "hooked", False) else None


def mark_stepped(optimizer: Any) -> None:
    """Keep a scheduler from warning that its step comes before the optimizer's.

    Torch has no other way to mark a step as skipped on purpose. Without it: the warning.
    """
    optimizer._opt_called = True


def silence_capture_warning(optimizer: Any) -> None:
    """Keep an optimizer from warning about steps before the first CUDA graph capture."""
    optimizer._warned_capturable_if_run_uncaptured = True


def skips_on_device(optimizer: optim.Optimizer) -> bool:
    """Return whether steps with a gradient scaler leave it to the device to skip an update."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def let_skip_on_device(optimizer: Any) -> None:
    """Let an optimizer of torch that was set to be fused do so; torch's constructors set the same.

    Without it the host reads before each update whether a gradient overflowed.
    """
    optimizer._step_supports_amp_scaling = True


def profiles() -> bool:
    """Return whether a profiler is on and expects torch's own steps; True if unknown."""
    return bool(getattr(profiler, "_is_profiler_enabled", True))


def fused_adam(*, decoupled: bool) -> Callable[..., None] | None:
    """Return the kernel behind fused AdamW (`decoupled`) or Adam, or None."""
    return getattr(torch, "_fused_adamw_" if decoupled else "_fused_adam_", None)


def multiply_each_(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply tensors by a number in place, in one call."""
    if hasattr(torch, "_foreach_mul_"):
        torch._foreach_mul_(list(tensors), factor)
        return
    for tensor in tensors:
        tensor.mul_(factor)


def storage_users(storage: torch.UntypedStorage) -> int | None:
    """Return a storage's reference count, None if unknown.

    A buffer may be refilled once nothing else refers to it.
    """
    count: Callable[[int], int] | None = getattr(_C, "_storage_Use_Count", None)
    return None if count is None else count(storage._cdata)


def functorch_is_active() -> bool:
    """Return whether a `torch.func` transform is active; True if unknown."""
    active: Callable[[], bool] | None = getattr(_C, "_are_functorch_transforms_active", None)
    return True if active is None else active()


def below_autograd() -> AbstractContextManager[object]:
    """Let operators skip autograd's dispatch and go straight to their kernels."""
    guard = getattr(_C, "_AutoDispatchBelowAutograd", nullcontext)
    return guard()


# These losses' kernels, for equal shapes: broadcasting takes as long as the loss itself.
def mse_mean(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared error of tensors of one shape."""
    return _native_mse(a, b, reduction=_MEAN)


def l1_mean(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute error of tensors of one shape."""
    return _native_l1(a, b, reduction=_MEAN)


_MEAN: int | str = 1 if hasattr(_C._nn, "mse_loss") else "mean"
_native_mse: Callable[..., Tensor] = getattr(_C._nn, "mse_loss", None) or functional.mse_loss
_native_l1: Callable[..., Tensor] = getattr(_C._nn, "l1_loss", None) or functional.l1_loss


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's children by name, with duplicates and None entries.

    ``named_children`` leaves out both.
    """
    return module._modules


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return a module's own parameters by name, quicker than ``named_parameters``."""
    return module._parameters


def rnn_weight_names(layer: nn.RNNBase) -> list[str]:
    """Return the names of a recurrent layer's weights in the order of its rows and directions."""
    names: list[str] = layer._flat_weights_names
    return names


def rnn_weights(layer: nn.RNNBase) -> list[Any]:
    """Return the weights that a recurrent layer uses, which should be its parameters."""
    weights: list[Any] = layer._flat_weights
    return weights


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module behind one that `torch.compile` returned; others unchanged."""
    return children(module).get("_orig_mod") or module  # getattr is slow if it fails


def forward_hooks(module: nn.Module, *, before: bool = True, after: bool = True) -> bool:
    """Return whether a module has hooks before or after its forward."""
    return bool((before and module._forward_pre_hooks) or (after and module._forward_hooks))


_MODULE_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_GLOBAL_HOOKS = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
    "_global_backward_pre_hooks",
)  # fmt: skip


def has_hooks(thing: nn.Module | Tensor) -> bool:
    """Return whether a module or a parameter has hooks, which only autograd calls."""
    names = _TENSOR_HOOKS if isinstance(thing, Tensor) else _MODULE_HOOKS
    return any(getattr(thing, name, None) for name in names)


def global_hooks() -> list[dict[Any, Any]]:
    """Return the dicts of hooks that all modules call; always the same ones."""
    return [getattr(nn.modules.module, name, {}) for name in _GLOBAL_HOOKS]


_dispatch_modes: Callable[[], int] = getattr(_C, "_len_torch_dispatch_stack", int)
_function_modes: Callable[[], int] = getattr(_C, "_len_torch_function_stack", int)


def has_modes() -> bool:
    """Return whether a mode sees all operators run."""
    return _function_modes() > 0 or _dispatch_modes() > 0


_any_autocast: Callable[[], bool] | None = getattr(_C, "_is_any_autocast_enabled", None)


def is_autocast() -> bool:
    """Return whether autocast is on, on the CPU at least; quicker than torch's own question."""
    return torch.is_autocast_enabled("cpu") if _any_autocast is None else _any_autocast()


def is_watched() -> bool:
    """Return whether something sees all modules or operators run: global hooks, modes."""
    return any(global_hooks()) or has_modes()


# `torch.compile` has no public names for its errors, and its package is slow to import.
def dynamo_error() -> type[Exception]:
    """Return the base class of `torch.compile`'s errors."""
    return torch._dynamo.exc.TorchDynamoException


def recompile_limit() -> type[Exception]:
    """Return the error that `torch.compile` raises at its recompilation limit."""
    return torch._dynamo.exc.FailOnRecompileLimitHit


def unsupported() -> type[Exception]:
    """Return the error that `torch.compile` raises if it cannot make one graph."""
    return torch._dynamo.exc.Unsupported


def assume_constant_result(function: Callable[[int], str]) -> Callable[[int], str]:
    """Do what `torch.compiler`'s function of that name does, without importing the compiler."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


def compiles_rnns() -> AbstractContextManager[object]:
    """Let `torch.compile` compile recurrent layers."""
    patch: AbstractContextManager[object] = torch._dynamo.config.patch(allow_rnn=True)
    return patch


def leave_open(tensor: Tensor, dims: int | list[int]) -> None:
    """Mark dimensions as dynamic for `torch.compile`."""
    torch._dynamo.maybe_mark_dynamic(tensor, dims)
