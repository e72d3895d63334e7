"""Parameters, gradients and states of a model as vectors, dicts and copies."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .._util.tree import Tree
from .ops import pack

__all__ = [
    "decay_groups",
    "loadstates",
    "namedparams",
    "net2grad",
    "net2vec",
    "notrack",
    "states",
    "vec2net",
    "weights",
]


def _module(m: object) -> nn.Module:
    """Return the module of an `Estimator` or a `Stateful`; modules unchanged."""
    if isinstance(m, nn.Module):
        return m
    for name in ("module", "model"):  # stand-ins for a `Stateful` have its attributes
        found = getattr(m, name, None)
        if isinstance(found, nn.Module):
            return found
    raise TypeError(f"expected a model, a Stateful or an Estimator, got {type(m).__name__}")


def namedparams(m: object) -> dict[str, nn.Parameter]:
    """Return a model's parameters by name, in order; shared ones appear once.

    Parameters
    ----------
    m
        A `torch.nn.Module`, a `Stateful` or an `Estimator`.

    Returns
    -------
    dict
        The parameters themselves, by names such as ``"0.weight"``.

    Raises
    ------
    TypeError
        `m` is something else.

    Examples
    --------
    >>> list(namedparams(nn.Linear(2, 1)))
    ['weight', 'bias']
    """
    return dict(_module(m).named_parameters())


def weights(m: object) -> list[nn.Parameter]:
    """Return a model's parameters except biases, as regularisers need them.

    A bias is a parameter whose own name begins with ``bias`` (``bias``, ``bias_ih_l0``, …).

    Parameters
    ----------
    m
        A `torch.nn.Module`, a `Stateful` or an `Estimator`.

    Returns
    -------
    list
        The parameters themselves, in the order of `namedparams`.

    Raises
    ------
    TypeError
        `m` is something else.

    Examples
    --------
    >>> [w.shape for w in weights(nn.Linear(2, 1))]
    [torch.Size([1, 2])]
    """
    named = _module(m).named_parameters()
    return [p for name, p in named if not name.rpartition(".")[2].startswith("bias")]


def decay_groups(m: object, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer, with weight decay on `weights`, not on biases.

    Parameters
    ----------
    m
        A `torch.nn.Module`, a `Stateful` or an `Estimator`.
    weight_decay
        The factor of weight decay, as the optimizer takes it.

    Returns
    -------
    list
        At most two dicts with ``"params"`` and ``"weight_decay"``, which is 0 for biases.

    Raises
    ------
    TypeError
        `m` is something else.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.AdamW(decay_groups(model, 0.01), lr=1e-3)
    >>> [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    [(0.01, 1), (0.0, 1)]
    """
    decaying = weights(m)
    known = {id(p) for p in decaying}
    others = [p for p in namedparams(m).values() if id(p) not in known]
    groups = [(decaying, weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def _vector(tensors: list[Tensor]) -> Tensor:
    if not tensors:
        return torch.zeros(0)
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    if dtype.is_complex:
        return torch.cat([tensor.to(dtype).flatten() for tensor in tensors])
    return pack([tensor.to(dtype) for tensor in tensors])


def net2vec(m: object) -> Tensor:
    """Concatenate all parameters of a model into one new vector ``(P,)``.

    Differentiable with respect to the parameters. Parameters of several dtypes are promoted to a
    common one.

    Parameters
    ----------
    m
        A `torch.nn.Module`, a `Stateful` or an `Estimator`.

    Returns
    -------
    Tensor
        ``(P,)``, P elements in all, in the order of `namedparams`.

    Raises
    ------
    TypeError
        `m` is something else.

    Examples
    --------
    >>> net2vec(nn.Linear(2, 1)).shape
    torch.Size([3])
    """
    return _vector(list(namedparams(m).values()))


def vec2net(m: object, v: Tensor) -> None:
    """Copy a vector, as `net2vec` returns it, into the parameters of a model, in place.

    Parameters
    ----------
    m
        A `torch.nn.Module`, a `Stateful` or an `Estimator`.
    v
        A vector ``(P,)``, of any dtype.

    Raises
    ------
    TypeError
        `m` is something else.
    ValueError
        `v` is not a vector with as many elements as the model has parameters.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> vec2net(model, torch.tensor([1.0, 2.0, 3.0]))
    >>> model.bias.item()
    3.0
    """
    params = list(namedparams(m).values())
    count = sum(p.numel() for p in params)
    if v.dim() != 1 or v.numel() != count:
        raise ValueError(f"v must be a vector of length {count}, got shape {tuple(v.shape)}")
    with torch.no_grad():
        pieces = torch.split(v, [p.numel() for p in params])
        for p, piece in zip(params, pieces, strict=True):
            p.copy_(piece.view_as(p))


def net2grad(m: object) -> Tensor:
    """Return the gradients of all parameters of a model as one vector ``(P,)``.

    In the order of `net2vec`, with zeros for parameters without a gradient. The vector is a copy:
    changing it changes no gradient.

    Parameters
    ----------
    m
        A `torch.nn.Module`, a `Stateful` or an `Estimator`.

    Returns
    -------
    Tensor
        ``(P,)``, without a graph.

    Raises
    ------
    TypeError
        `m` is something else.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> net2grad(model)
    tensor([1., 1., 1.])
    """
    params = namedparams(m).values()
    with torch.no_grad():
        return _vector([torch.zeros_like(p) if p.grad is None else p.grad for p in params])


def notrack(m: object) -> nn.Module:
    """Return a copy of a model that shares its memory and records no gradients.

    The copy sees all changes that training makes to the model's parameters and buffers.

    Parameters
    ----------
    m
        A `torch.nn.Module`, a `Stateful` or an `Estimator`.

    Returns
    -------
    torch.nn.Module
        The copy, a module also for a `Stateful` or an `Estimator`.

    Raises
    ------
    TypeError
        `m` is something else.

    Examples
    --------
    >>> frozen = notrack(nn.Linear(2, 1))
    >>> frozen(torch.ones(1, 2)).requires_grad
    False
    """
    module = _module(m)
    shared: dict[int, Tensor] = {id(b): b for b in module.buffers()}
    for p in module.parameters():
        shared[id(p)] = nn.Parameter(p.detach(), requires_grad=False)
    return copy.deepcopy(module, shared)


def states(m: object) -> Tree:
    """Return a copy of the state of a `Stateful` or an `Estimator`; None if fresh.

    Parameters
    ----------
    m
        A `Stateful` or an `Estimator`.

    Returns
    -------
    Tensor, tuple, list, dict or None
        The state, in the structure in which the model returns it.

    Raises
    ------
    TypeError
        `m` carries no state, such as a module by itself.

    Examples
    --------
    >>> import fastseq as fs
    >>> m = fs.Stateful(nn.GRU(1, 2))
    >>> _ = m(torch.zeros(5, 3, 1))
    >>> states(m).shape
    torch.Size([1, 3, 2])
    """
    return _carrier(m).get_state()


def loadstates(m: object, s: Tree) -> None:
    """Make a `Stateful` or an `Estimator` continue from a state that `states` returned.

    Parameters
    ----------
    m
        A `Stateful` or an `Estimator`.
    s
        The state, of which a copy is kept; None: start fresh.

    Raises
    ------
    TypeError
        `m` carries no state, such as a module by itself.

    Examples
    --------
    >>> import fastseq as fs
    >>> m = fs.Stateful(nn.GRU(1, 2))
    >>> _ = m(torch.zeros(5, 3, 1))
    >>> s = states(m)
    >>> y = m(torch.ones(1, 3, 1))
    >>> loadstates(m, s)
    >>> torch.equal(m(torch.ones(1, 3, 1)), y)
    True
    """
    _carrier(m).set_state(s)


def _carrier(m: object) -> Any:
    if hasattr(m, "get_state") and hasattr(m, "set_state"):
        return m
    raise TypeError(f"{type(m).__name__} carries no state; wrap the model: fastseq.Stateful(model)")
