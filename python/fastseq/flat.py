"""Small parameters of a model as one vector, on which the optimizer works once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim

from .elementwise import join_state, obstacle, split_state, state_kind, unknown
from .quick_step import QuickStep, quick_step

__all__ = ["MAX_NUMEL", "FlatOptimizer", "describe"]

MAX_NUMEL = 2**14
"""Larger parameters stay by themselves: copying a gradient would take longer than a call."""

_ALIGNMENT = 64  # bytes to whose multiples each parameter's start is rounded up: a cache line
_DTYPES = (torch.float32, torch.float64)
# On the CPU torch rounds these differently in the last elements of a tensor.
_DTYPES_OF_DEVICES = (torch.float16, torch.bfloat16, *_DTYPES)

Agree = Callable[[list[bool]], list[bool]]


class FlatOptimizer:
    """An optimizer that works once on many small parameters; a context manager.

    From the first step on, small parameters of one group, dtype and device lie in one vector, if
    the optimizer works element by element: it does the same with it, bit for bit, as with each of
    them. Parameters that get no gradient run by themselves, and so does what is not small, or whose
    memory somebody else uses too. On exit parameters lie where they lay before, and the optimizer
    has them and their state again. Fused optimizers need no vector, as their kernels take lists
    (and would round the last elements of a tensor differently).

    Parameters
    ----------
    optimizer
        One of torch's optimizers; what is no such runs as it is.
    params
        The trainable parameters of the model.
    agree
        Makes flags true only where they are on all ranks.
    others
        Parameters that are not trained: gradients that they get nevertheless are dropped.
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        params: Iterable[nn.Parameter],
        agree: Agree = lambda flags: flags,
        others: Iterable[nn.Parameter] = (),
    ) -> None:
        self._optimizer = optimizer
        self._params = list(params)
        self._others = list(others)
        self._agree = agree
        self._vectors: list[_Vector] = []
        self._lists: list[list[nn.Parameter]] | None = None  # the groups' own, while in use
        self._apart: set[nn.Parameter] = set()
        self._stepped: list[nn.Parameter] = []
        self._known = False
        self._quick: QuickStep | None = None
        self._changed = False

    def __enter__(self) -> FlatOptimizer:
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        for p in (*params, *self._params, *self._others):
            p.grad = None  # what a frozen one still has from an earlier run
        has = set(params)
        self._stepped = [p for p in self._params if p in has]
        self._known = unknown(self._optimizer) is None
        joinable = obstacle(self._optimizer) is None
        flags = self._agree([joinable and _movable(p) for p in params])
        self._apart = {p for p, flag in zip(params, flags, strict=True) if not flag}
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._changed = False
        for p in self._params:
            p.grad = None

    def gather(self) -> None:
        """Take the gradients: what comes before `step`."""
        for p in self._others:
            p.grad = None
        if self._lists is None:
            self._open()
        while without := [p for vector in self._vectors for p in vector.gather()]:
            self._close()
            self._apart.update(without)
            self._open()

    def gathered(self) -> list[nn.Parameter]:
        """Return what has the gradients that `step` takes; they may be changed in place."""
        self._changed = True
        joined = {p for vector in self._vectors for p in vector.params}
        return [
            *(vector.flat for vector in self._vectors),
            *(p for p in self._stepped if p not in joined),
        ]

    def groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the optimizer's groups, as they are outside."""
        now = [group["params"] for group in self._optimizer.param_groups]
        own = self._lists or []
        return [*own, *now[len(own) :]]  # groups may have been added

    def step(self) -> None:
        """Make a step of the optimizer."""
        if self._quick is not None and self._quick.step():
            return
        self._leave_quick()
        self._optimizer.step()
        if self._known:
            self._quick = quick_step(self._optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's, as it would be after exit; nothing is changed by that."""
        optimizer = self._optimizer
        if self._lists is None:
            return optimizer.state_dict()
        groups, state = optimizer.param_groups, optimizer.state
        whole = dict(state)
        for vector in self._vectors:
            whole.update(vector.states(whole.pop(vector.flat, {})))
        try:
            pairs = zip(groups, self._lists, strict=True)
            optimizer.param_groups = [{**group, "params": params} for group, params in pairs]
            optimizer.state = defaultdict(dict, whole)
            return optimizer.state_dict()
        finally:
            optimizer.param_groups, optimizer.state = groups, state

    def _open(self) -> None:
        groups = self._optimizer.param_groups
        self._lists = [group["params"] for group in groups]
        for group in groups:
            with_gradient = [p for p in group["params"] if p not in self._apart and _has_grad(p)]
            new = [_Vector(p, self._optimizer) for p in _alike(self._optimizer, with_gradient)]
            joined = {p for vector in new for p in vector.params}
            rest = (p for p in group["params"] if p not in joined)
            group["params"] = [*(vector.flat for vector in new), *rest]
            self._vectors += new

    def _close(self) -> None:
        self._leave_quick()
        for vector in self._vectors:
            vector.close(gradients=self._changed)
        if self._lists is not None:
            for group, params in zip(self._optimizer.param_groups, self._lists, strict=False):
                group["params"] = params
        self._vectors, self._lists = [], None

    def _leave_quick(self) -> None:
        if self._quick is not None:
            self._quick.close()
            self._quick = None


class _Vector:
    """Parameters in one vector, with their gradients and what the optimizer keeps of them.

    Until `close` the parameters are views of it, and the optimizer's state is the vector's.
    """

    def __init__(self, params: list[nn.Parameter], optimizer: optim.Optimizer) -> None:
        first = params[0]
        unit = _ALIGNMENT // first.element_size()
        self._starts, length = [], 0
        for p in params:
            self._starts.append(length)
            length += -(-p.numel() // unit) * unit
        self.params = params
        self.flat = nn.Parameter(first.new_zeros(length))
        self._grad = first.new_zeros(length)
        self._optimizer = optimizer
        self._places = self.pieces(self.flat.detach())
        self._grad_places = self.pieces(self._grad)
        self._addresses = [place.data_ptr() for place in self._places]
        self._homes = [p.data for p in params]  # where they lay, and will lie again
        states = [optimizer.state.get(p, {}) for p in params]
        joined = join_state(optimizer, states, self.flat, self.pieces)
        for p, place in zip(params, self._places, strict=True):
            optimizer.state.pop(p, None)
            p.data = place.copy_(p.data)
        if joined:
            optimizer.state[self.flat] = joined

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Return views of a vector of this layout, shaped as the parameters are."""
        return [
            flat[start : start + p.numel()].view(p.shape)
            for p, start in zip(self.params, self._starts, strict=True)
        ]

    def gather(self) -> list[nn.Parameter]:
        """Copy the gradients into the vector's; return parameters that have none."""
        grads: list[Any] = [p.grad for p in self.params]
        try:
            torch._foreach_copy_(self._grad_places, grads)
        except (TypeError, RuntimeError):
            without = [p for p in self.params if p.grad is None or p.grad.is_sparse]
            if not without:
                raise
            return without
        self.flat.grad = self._grad
        if [p.data_ptr() for p in self.params] != self._addresses:
            self._take_in()
        return []

    def _take_in(self) -> None:
        """Take the values of parameters whose ``.data`` somebody has set."""
        for index, p in enumerate(self.params):
            if p.data_ptr() != self._addresses[index]:
                self._homes[index] = p.data
                p.data = self._places[index].copy_(p.data)

    def close(self, *, gradients: bool) -> None:
        """Put all back where it was; with `gradients`, these too, which were changed."""
        for index, p in enumerate(self.params):
            if gradients and p.grad is not None:
                p.grad.copy_(self._grad_places[index])
            if p.data_ptr() == self._addresses[index]:
                p.data = self._homes[index].copy_(self._places[index])
        self._optimizer.state.update(self.states(self._optimizer.state.pop(self.flat, {})))

    def states(self, joined: dict[str, Any]) -> dict[Tensor, dict[str, Any]]:
        """Return each parameter's part of what the optimizer keeps of the vector."""
        if not joined:
            return {}
        states = split_state(self._optimizer, joined, len(self.params), self.pieces)
        return dict(zip(self.params, states, strict=True))


def describe(optimizer: optim.Optimizer) -> str:
    """Tell how `fit` runs an optimizer.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> describe(optim.AdamW(layer.parameters())), describe(optim.LBFGS(layer.parameters()))
    ('flat: 2 of 2 parameters as 1', 'per parameter: LBFGS is not known to work element by element')
    """
    reason = obstacle(optimizer)
    if reason is not None:
        return f"per parameter: {reason}"
    params = [p for group in optimizer.param_groups for p in group["params"]]
    joined = [
        part
        for group in optimizer.param_groups
        for part in _alike(optimizer, [p for p in group["params"] if _movable(p)])
    ]
    if not joined:
        return f"per parameter: there are no small ones of a group to be joined among {len(params)}"
    return f"flat: {sum(map(len, joined))} of {len(params)} parameters as {len(joined)}"


def _alike(
    optimizer: optim.Optimizer, params: Iterable[nn.Parameter]
) -> Iterator[list[nn.Parameter]]:
    """Yield those of a group's parameters that can be one vector."""
    alike: dict[Any, list[nn.Parameter]] = defaultdict(list)
    for p in params:
        kind = state_kind(optimizer, p)
        if kind is not None:
            alike[p.dtype, p.device, kind].append(p)
    return (members for members in alike.values() if len(members) > 1)


def _movable(p: nn.Parameter) -> bool:
    """Whether `p` is small, and nobody else would notice that it lies elsewhere."""
    if type(p) is not nn.Parameter or not p.is_leaf or not p.requires_grad:
        return False
    if p.dtype not in (_DTYPES if p.is_cpu else _DTYPES_OF_DEVICES):
        return False
    if not 0 < p.numel() <= MAX_NUMEL or not p.is_contiguous():
        return False
    memory = p.untyped_storage()
    alone = torch._C._storage_Use_Count(memory._cdata) == 2  # by p, and by `memory`
    return alone and memory.nbytes() == p.numel() * p.element_size()


def _has_grad(p: nn.Parameter) -> bool:
    return p.grad is not None and p.grad.layout == torch.strided and p.grad.dtype == p.dtype
