"""Save and restore the states of model, optimizer and callbacks."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn, optim

from ..errors import CheckpointError

__all__ = [
    "callback_states",
    "check_model",
    "check_optimizer",
    "load_buffers",
    "load_callbacks",
    "load_model",
    "load_optimizer",
    "model_state",
]

# How an optimizer computes, not what: not restored, as the device may be another one.
_MEANS = ("capturable", "foreach", "fused")

# What torch's optimizers keep in the shape of each parameter.
_AVERAGES = {
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg",
    "grad_avg", "sum", "acc_delta", "prev", "step_size",
}  # fmt: skip


def model_state(model: nn.Module) -> dict[str, Any]:
    """Return all parameters and buffers, not copied, and the extra state of modules.

    Examples
    --------
    >>> list(model_state(nn.BatchNorm1d(2))["buffers"])
    ['running_mean', 'running_var', 'num_batches_tracked']
    """
    return {
        "parameters": {name: p.detach() for name, p in model.named_parameters()},
        "buffers": dict(model.named_buffers()),
        "extra": {name: module.get_extra_state() for name, module in _with_extra_state(model)},
    }


def check_model(model: nn.Module, saved: dict[str, Any], where: str) -> None:
    """Raise unless `model` is like the saved one.

    Raises
    ------
    CheckpointError
        It differs; the message names the first difference.
    """
    own = model_state(model)
    for what, kind in (("parameters", "parameter"), ("buffers", "buffer")):
        for name, tensor in own[what].items():
            if name not in saved[what]:
                raise CheckpointError(
                    f"{where} is from another model: {kind} {name} is missing from the file"
                )
            here, there = (f"{tuple(a.shape)} {a.dtype}" for a in (tensor, saved[what][name]))
            if here != there:
                raise CheckpointError(
                    f"{where} is from another model: its {kind} {name} is {there}, this model's "
                    f"{here}"
                )
        for name in saved[what]:
            if name not in own[what]:
                raise CheckpointError(
                    f"{where} is from another model: this model has no {kind} {name}"
                )


def load_model(model: nn.Module, saved: dict[str, Any]) -> None:
    """Load the saved state into a model that `check_model` accepted."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(saved["parameters"][name])
    load_buffers(model, saved["buffers"])
    for name, module in _with_extra_state(model):
        if name in saved["extra"]:
            module.set_extra_state(saved["extra"][name])


def load_buffers(model: nn.Module, saved: dict[str, Any]) -> None:
    """Load the saved buffers into a model."""
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(saved[name])


def _with_extra_state(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield name, module


def check_optimizer(optimizer: optim.Optimizer, saved: dict[str, Any], where: str) -> None:
    """Raise unless `optimizer` is of the saved kind, with as many parameters.

    Raises
    ------
    CheckpointError
        It is not.
    """
    here, there = type(optimizer).__name__, saved["kind"]
    if here != there:
        raise CheckpointError(f"{where} is from a run with the optimizer {there}, not {here}")
    groups = saved["state"]["param_groups"]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != [len(group["params"]) for group in groups]:
        raise CheckpointError(
            f"{where} is from an optimizer with groups of "
            f"{', '.join(str(len(group['params'])) for group in groups)} parameters, this one has "
            f"{', '.join(map(str, sizes))}"
        )
    for own, group in zip(optimizer.param_groups, groups, strict=True):
        for name, value in own.items():
            compared = name not in (*_MEANS, "params") and name in group
            if not compared or _form(group[name]) == _form(value):
                continue
            raise CheckpointError(
                f"{where} has no settings of {here}: {name} is {group[name]!r:.100}, this one's "
                f"{value!r:.100}"
            )
    if type(optimizer).__module__.startswith("torch."):
        _check_averages(optimizer, saved["state"], where)


def _form(value: object) -> object:
    """Return what a setting of an optimizer is like: numbers, tensors of one, None are alike."""
    if isinstance(value, bool):
        return bool
    if isinstance(value, list | tuple):
        return [_form(part) for part in value]
    number = isinstance(value, float | int | None) or (
        isinstance(value, torch.Tensor) and value.numel() == 1
    )
    return "number" if number else type(value)


def _check_averages(optimizer: optim.Optimizer, saved: dict[str, Any], where: str) -> None:
    """Raise if averages of gradients are not like the parameters: kernels write to them."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    places = [place for group in saved["param_groups"] for place in group["params"]]
    parameters = dict(zip(places, own, strict=True))
    for place, state in saved["state"].items():
        if place not in parameters:
            raise CheckpointError(f"{where} is from another model: it has no parameter {place!r}")
        p = parameters[place]
        for name in _AVERAGES & set(state):
            average = state[name]
            alike = isinstance(average, torch.Tensor) and average.shape == p.shape
            fits = alike and (
                average.dtype.is_floating_point or (average.is_complex() and p.is_complex())
            )
            if average is not None and not fits:
                there = f"{average.dtype} {tuple(average.shape)}" if alike else repr(average)
                raise CheckpointError(
                    f"{where} is from another model: {name} of parameter {place} is {there:.100}, "
                    f"the parameter {tuple(p.shape)}"
                )


def load_optimizer(optimizer: optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the saved state into an optimizer that `check_optimizer` accepted.

    Settings such as ``fused`` are kept.
    """
    groups = [
        {**own, **group, **{key: own[key] for key in _MEANS if key in own}}
        for group, own in zip(saved["state"]["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**saved["state"], "param_groups": groups})


def callback_states(callbacks: Iterable[object]) -> list[object]:
    """Return the callbacks' kinds and states."""
    return [
        [type(callback).__name__, callback.state_dict() if hasattr(callback, "state_dict") else {}]
        for callback in callbacks
    ]


def load_callbacks(callbacks: Iterable[Any], saved: list[Any], *, quiet: bool = False) -> None:
    """Load the saved states into callbacks, in order among callbacks of one kind.

    A warning names states without a callback, unless `quiet`.
    """
    states = defaultdict(list)
    for kind, state in saved:
        states[kind].append(state)
    for callback in callbacks:
        waiting = states[type(callback).__name__]
        state = waiting.pop(0) if waiting else {}
        if state:
            callback.load_state_dict(copy.deepcopy(state))  # states are loaded twice
    left = [kind for kind, rest in states.items() for state in rest if state]
    if left and not quiet:
        warnings.warn(
            f"the checkpoint has states of callbacks that are not in this fit: {', '.join(left)}",
            stacklevel=2,
        )
