"""Check and complete the arguments of `Estimator`."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._util.torch_internals import forward_hooks, let_skip_on_device, uncompiled
from .._util.tree import Tree

__all__ = [
    "check_features",
    "check_loss",
    "check_place",
    "check_weighted",
    "choose_device",
    "input_dtype",
    "make_optimizer",
    "use_device",
]


def choose_device(device: str | torch.device, local_rank: int) -> torch.device:
    """Return the device to compute on.

    ``"auto"`` is this rank's GPU, if there is one; so is ``"cuda"``, without a number.
    """
    if device != "auto":
        return _checked_device(device, local_rank)
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def _checked_device(device: str | torch.device, local_rank: int) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        hint = ': did you mean "cuda"?' if device == "gpu" else ""
        raise ValueError(
            f'device must be "auto", "cpu", "cuda", "cuda:1" or similar, got {device!r}{hint}'
        ) from None
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ValueError(f'device={device!r}: PyTorch finds no GPU; pass "auto" or "cpu"')
        if found.index is not None and found.index >= count:
            raise ValueError(f"device={device!r}: PyTorch finds {count} GPU(s), counted from 0")
        if found.index is None and local_rank:
            return torch.device("cuda", local_rank % count)
    return found


def use_device(device: torch.device, *, alone: bool) -> None:
    """Make a rank's GPU the current one: calls that name no GPU would use the first one."""
    if device.type == "cuda" and device.index is not None and not alone:
        torch.cuda.set_device(device)


def check_place(model: nn.Module, device: torch.device) -> None:
    """Raise if the model is no longer on the estimator's device.

    Raises
    ------
    ValueError
        It was moved.
    """
    for name, p in model.named_parameters():
        if p.device.type != device.type or device.index not in (None, p.device.index):
            raise ValueError(
                f"the model's {name} is on {p.device}, but the estimator computes on {device}: "
                "move the model back, or make a new Estimator"
            )


def input_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of most of the model's parameters: inputs are converted to it."""
    counts: Counter[torch.dtype] = Counter()
    for p in model.parameters():
        if p.is_floating_point():
            counts[p.dtype] += p.numel()
    return counts.most_common(1)[0][0] if counts else torch.get_default_dtype()


def check_features(model: nn.Module, x: Tree) -> None:
    """Raise if the model's first layer is known to take another number of features.

    Parameters
    ----------
    model
        The model.
    x
        Its input, anything with ``shape``; trees are not checked.

    Raises
    ------
    ValueError
        The message names both numbers.
    """
    first = uncompiled(model)
    while isinstance(first, nn.Sequential) and len(first):
        first = uncompiled(first[0])
    if isinstance(first, nn.RNNBase):
        wanted = first.input_size
    elif type(first) is nn.Linear:
        wanted = first.in_features
    else:
        return
    shape = getattr(x, "shape", None)
    if shape is not None and shape[-1] != wanted and not forward_hooks(first, after=False):
        raise ValueError(
            f"x has {shape[-1]} features, but the model's first layer, {first}, takes {wanted}"
        )


def check_loss(loss: object) -> None:
    """Raise unless `loss` may be a loss over chunks, ``loss(m, xs, ys)``."""
    if not callable(loss):
        raise TypeError(f"loss must be callable as loss(m, xs, ys), got {loss!r}")
    try:
        parameters = inspect.signature(loss).parameters
    except (TypeError, ValueError):  # built-in functions have no signature
        return
    name = getattr(loss, "__name__", None) or repr(loss)
    kinds = [p.kind for p in parameters.values()]
    places = sum(k in (k.POSITIONAL_ONLY, k.POSITIONAL_OR_KEYWORD) for k in kinds)
    too_few = places < 3 and not any(k is k.VAR_POSITIONAL for k in kinds)
    if "reduction" in parameters or hasattr(loss, "reduction") or too_few:
        raise TypeError(
            f"loss is called as loss(m, xs, ys), with the model itself, but {name} compares "
            f"outputs with targets: pass fastseq.seqloss({name})"
        )


def check_weighted(loss: Callable[..., Tensor]) -> None:
    """Raise if `loss` is known not to take the weights of samples."""
    try:
        inspect.signature(loss).bind(None, None, None, None)
    except TypeError:
        raise TypeError(
            "there are weights, a mask, lengths or missing values, so the loss is called as "
            f"loss(m, xs, ys, ws), which {getattr(loss, '__name__', None) or repr(loss)} does not "
            "take: give it a fourth parameter, the weights of samples"
        ) from None
    except ValueError:  # built-in functions have no signature
        return


def make_optimizer(optimizer: object, model: nn.Module) -> torch.optim.Optimizer:
    """Return `optimizer`, or make it for the model's parameters; check that `fit` can use it.

    One that is made here uses torch's fused kernel where there is one, unless it says otherwise.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        if not callable(optimizer):
            raise TypeError(
                "optimizer must be a torch.optim.Optimizer, or a callable that takes the "
                f"parameters and returns one, got {optimizer!r}"
            )
        params = [p for p in model.parameters() if p.requires_grad]
        try:
            optimizer = optimizer(params)
        except ValueError:
            if params:
                raise
            some = next(model.parameters(), None) is not None
            what = "all its parameters are frozen" if some else "it has no parameters"
            raise ValueError(f"the model has nothing to train: {what}") from None
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer, called with the parameters, must return a torch.optim.Optimizer, "
                f"got {type(optimizer).__name__}"
            )
        _prefer_fused(optimizer, model)
    own = {id(p) for p in model.parameters()}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    strangers = sum(id(p) not in own for p in params)
    if strangers:
        raise ValueError(
            f"{strangers} of the optimizer's {len(params)} parameters are not the model's; make it "
            "from model.parameters() of the same model"
        )
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TypeError(
            f"{type(optimizer).__name__} evaluates the loss several times per update, which "
            "truncated back-propagation cannot do; use another optimizer"
        )
    return optimizer


# For these, CPU and GPUs have kernels that update all parameters in one call.
_FUSED = (torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def _prefer_fused(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Set an optimizer to use torch's fused kernel unless it cannot or was set up otherwise."""
    groups = [optimizer.defaults, *optimizer.param_groups]
    told = any(group.get(k) is not None for group in groups for k in ("fused", "foreach"))
    told = told or any(group.get(k) for group in groups for k in ("capturable", "differentiable"))
    plain = all(p.is_floating_point() for p in model.parameters())
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    counts = [state["step"] for state in optimizer.state.values() if "step" in state]
    singles = all(count.dtype is torch.float32 for count in counts)  # the kernels take no others
    # With momentum, SGD's kernel takes no parameter whose first gradient comes later than others'.
    momentum = any(group.get("momentum") for group in groups)
    unfit = told or sparse or momentum or not plain or not singles
    if type(optimizer) in _FUSED and not unfit:
        for group in groups:
            group["fused"] = True
        let_skip_on_device(optimizer)
