"""Clipping and the optimizer's step in C++, on the memory of torch's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from .._util.torch_internals import mark_stepped
from ..distributed import Bucketizer
from ..nn.members import trained_apart
from .known_optimizers import obstacle
from .native_layers import NativeUpdate, NotNative, native_types, optimizer_of, settings_of
from .spec import Spec
from .unchanged import Seen, is_unchanged, layers_in, optimizer_in, places

__all__ = ["Updater"]


class Updater:
    """Updates the parameters of an optimizer, as both are now, in C++.

    On several ranks all update by it, or none: torch's updates differ in rounding.

    Parameters
    ----------
    model, optimizer
        What is updated, and by which rule.
    spec
        Says how gradients are clipped.
    trained
        The parameters that are trained: others that need gradients wait for the next epoch.
    buckets
        Averages their gradients over ranks; None: one rank.

    Attributes
    ----------
    params
        The model's parameters.
    gradients
        Their gradients, that of each in its place at every update.
    native
        The C++ object.

    Raises
    ------
    NotNative
        It cannot be made, or not yet.
    ValueError
        Gradients that ranks share were moved.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        spec: Spec,
        trained: Sequence[Tensor],
        buckets: Bucketizer | None,
    ) -> None:
        self._optimizer = optimizer
        self._clip = spec.clip_value, spec.clip_norm
        self.params: list[nn.Parameter] = list(model.parameters())
        self._trained = {id(p): i for i, p in enumerate(trained)}
        if not any(map(self.moves, self.params)):
            raise NotNative("nothing to train")
        self.dtype: torch.dtype = self.params[0].dtype
        shared = [] if buckets is None else buckets.host.shared_places()
        self.gradients: list[Tensor] = [
            shared[self._trained[id(p)]] if shared and self.moves(p) else torch.zeros_like(p)
            for p in self.params
        ]
        apart = trained_apart(model, self.params)
        self._parts = {id(p): part for part, params in enumerate(apart) for p in params}
        kind, names = optimizer_of(self._optimizer)
        self._tensors: list[Tensor] = []  # the optimizer's
        self.native: NativeUpdate = native_types(self.dtype)[1](kind, self._parameters(names))
        self._seen = self._look(model)
        self._settings = self._look_at_settings()

    def moves(self, p: Tensor) -> bool:
        """Whether a parameter of the model is trained, and not frozen since."""
        return p.requires_grad and id(p) in self._trained

    def numbered(self, fresh: Sequence[Tensor]) -> list[tuple[int, int, int]]:
        """Describe the gradients of the trained parameters: those of frozen ones are nowhere.

        Parameters
        ----------
        fresh
            Where layers write the gradients of all parameters.
        """
        found = [(0, 0, 0)] * len(self._trained)
        for p, new, held in zip(self.params, fresh, self.gradients, strict=True):
            if self.moves(p):
                found[self._trained[id(p)]] = (new.data_ptr(), held.data_ptr(), p.numel())
        return found

    def _parameters(
        self, names: tuple[str, str, str]
    ) -> list[tuple[int, int, int, int, int, int, int, bool, int, int]]:
        """Describe the parameters that the optimizer updates."""
        found = []
        places = {id(p): gradient for p, gradient in zip(self.params, self.gradients, strict=True)}
        for number, group in enumerate(self._optimizer.param_groups):
            wanted = _state_names(type(self._optimizer), group)
            for p in group["params"]:
                if not p.requires_grad:
                    continue
                if id(p) not in places:
                    raise NotNative("the optimizer has parameters that are not the model's")
                if not self.moves(p):
                    continue
                state = self._optimizer.state.get(p, {})
                if not wanted <= set(state):
                    raise NotNative("the optimizer has made no step yet")
                average, square, other, step = (
                    self._address(state, name) if name in wanted else 0 for name in (*names, "step")
                )
                wide = "step" in wanted and state["step"].dtype == torch.float64
                gradient = places[id(p)].data_ptr()
                found.append((
                    p.data_ptr(), gradient, p.numel(), average, square, other, step, wide, number,
                    self._parts[id(p)],
                ))  # fmt: skip
        return found

    def _address(self, state: dict[str, Any], name: str) -> int:
        """Return the address of a tensor of the optimizer's."""
        tensor = state[name]
        plain = isinstance(tensor, Tensor) and tensor.is_cpu and tensor.is_contiguous()
        dtypes = (torch.float32, torch.float64) if name == "step" else (self.dtype,)
        if not plain or tensor.dtype not in dtypes:
            raise NotNative(f"the optimizer's {name} is unusual")
        self._tensors.append(tensor)
        return int(tensor.data_ptr())

    def _look(self, model: nn.Module) -> Seen:
        """Return what it was made for."""
        containers, entries = optimizer_in(self._optimizer)
        tensors = places([*self.params, *self.gradients, *self._tensors])
        return (), (*layers_in(model), *containers), tuple(entries), tuple(tensors)

    def _look_at_settings(self) -> list[Any]:
        """Return what decides which parameters are updated, and what is kept for them."""
        kind = type(self._optimizer)
        states = [_state_names(kind, group) for group in self._optimizer.param_groups]
        return [obstacle(self._optimizer), *states, *(p.requires_grad for p in self.params)]

    def is_current(self) -> bool:
        """Whether model and optimizer still are what it was made for."""
        return is_unchanged(*self._seen) and self._look_at_settings() == self._settings

    def numbers(self) -> tuple[Any, float | None, float | None]:
        """Return the optimizer's present settings, and the limits of gradients."""
        mark_stepped(self._optimizer)
        return settings_of(self._optimizer), *self._clip

    def run(self, norm: float | None) -> None:
        """Clip and make a step; `norm` is that of all gradients, if it is known."""
        self.native.run(*self.numbers(), norm)

    def has_gradients(self) -> bool:
        """Whether the gradients in their places are those of torch's parameters."""
        return all(
            p.grad is gradient
            for p, gradient in zip(self.params, self.gradients, strict=True)
            if self.moves(p)
        )

    def take_gradients(self) -> None:
        """Go on from gradients that torch has accumulated."""
        for p, gradient in zip(self.params, self.gradients, strict=True):
            if p.grad is None or not self.moves(p):
                gradient.zero_()
            elif p.grad is not gradient:
                gradient.copy_(p.grad)

    def give_gradients(self, *, some: bool) -> None:
        """Make the gradients those of torch's parameters; not `some`: these have none."""
        for p, gradient in zip(self.params, self.gradients, strict=True):
            if self.moves(p):
                p.grad = gradient if some else None


def _state_names(kind: type[torch.optim.Optimizer], group: dict[str, Any]) -> set[str]:
    """Return what an optimizer keeps for a parameter."""
    if kind is torch.optim.SGD:
        return {"momentum_buffer"} if group["momentum"] else set()
    if kind is torch.optim.RMSprop:
        more = {"grad_avg"} if group["centered"] else set()
        return {"step", "square_avg"} | more | ({"momentum_buffer"} if group["momentum"] else set())
    return {"step", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if group["amsgrad"] else set())
