"""Whether models, optimizers and tensors are still what they were, in a few µs.

All that something depends on is written down, and compared by `is_unchanged`: by identity, without
running code of users' (``csrc/python/unchanged.h``).
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn, optim

from .._util.torch_internals import children, own_parameters
from .native_layers import is_unchanged

__all__ = [
    "Seen", "forwards_in", "is_unchanged", "layers_in", "loss_in", "modules_in", "optimizer_in",
    "places",
]  # fmt: skip

Container = tuple[Any, ...]  # a dict or a list, and what is in it
Entry = tuple[Any, ...]  # a dict or a class, a key and its value, none: other entries may change
Seen = tuple[tuple[Any, ...], tuple[Container, ...], tuple[Entry, ...], tuple[Any, ...]]


def container(holder: dict[Any, Any] | list[Any]) -> Container:
    """Write down what is in a dict or a list.

    Examples
    --------
    >>> rates = {"lr": 0.5}
    >>> seen = ((), (container(rates),), (), ())
    >>> rates["lr"] = 0.25
    >>> is_unchanged(*seen)
    False
    """
    if isinstance(holder, dict):
        return holder, tuple(itertools.chain(*holder.items()))
    return holder, tuple(holder)


def modules_in(model: nn.Module) -> tuple[list[Any], list[Container]]:
    """Write down the modules of a model, and all their attributes."""
    objects: list[Any] = []
    containers = []
    for module in model.modules():
        attributes = vars(module)
        objects.append((module, type(module), attributes))
        holders = (attributes, *attributes.values())  # parameters, modules, hooks
        containers += [container(h) for h in holders if isinstance(h, dict) or type(h) is list]
    return objects, containers


def forwards_in(model: nn.Module) -> list[Entry]:
    """Write down where the classes of a model's modules have their ``forward``.

    Examples
    --------
    >>> seen = (), (), tuple(forwards_in(nn.Linear(1, 1))), ()
    >>> is_unchanged(*seen)
    True
    """
    found: list[Entry] = []
    for kind in {type(module) for module in model.modules()}:
        for base in kind.__mro__:
            if "forward" in vars(base):
                found.append((base, "forward", vars(base)["forward"]))
                break
            found.append((base, "forward"))
    return found


def loss_in(loss: Any) -> tuple[list[Any], list[Container]]:
    """Write down the attributes of a loss and of what it is made of."""
    objects: list[Any] = []
    containers: list[Container] = []
    while loss is not None:
        if isinstance(loss, nn.Module):
            own, more = modules_in(loss)
            return [*objects, *own], [*containers, *more]
        attributes = getattr(loss, "__dict__", None)
        if isinstance(attributes, dict) and not isinstance(loss, types.FunctionType):
            objects.append((loss, type(loss), attributes))
            containers.append(container(attributes))
        if isinstance(loss, functools.partial):
            containers.append(container(loss.keywords))
            loss = loss.args[0] if loss.args else None
        else:
            found = attributes or {}
            loss = found.get("loss", found.get("fn"))
    return objects, containers


def layers_in(model: nn.Module) -> list[Container]:
    """Write down which modules and parameters a model has."""
    found = []
    for module in model.modules():
        found += [container(children(module)), container(own_parameters(module))]
    return found


def optimizer_in(optimizer: optim.Optimizer) -> tuple[list[Container], list[Entry]]:
    """Write down which parameters an optimizer has in each group, and which tensors as state."""
    attributes = vars(optimizer)
    entries = [(attributes, name, attributes[name]) for name in ("param_groups", "state")]
    groups: list[dict[str, Any]] = optimizer.param_groups
    found = [container(groups), *(container(group["params"]) for group in groups)]
    own = [state for state in optimizer.state.values() if isinstance(state, dict)]
    return [*found, container(optimizer.state), *map(container, own)], entries


def places(tensors: Iterable[Tensor]) -> list[tuple[Any, ...]]:
    """Write down where contiguous tensors are in memory."""
    return [(a, a.data_ptr(), a.shape, a.dtype) for a in tensors]
