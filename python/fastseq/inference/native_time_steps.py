"""Single time steps in C++: a few µs each, as long as nothing has changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._util.torch_internals import (
    global_hooks,
    has_modes,
    is_autocast,
)
from .._util.tree import Tree, tree_leaves
from ..data.scaling.affine import Affine
from ..data.scaling.inputs_and_targets import Scaling
from ..nn.ops import parallel_for
from ..nn.train_eval_mode import in_mode, models_in_use
from ..training.learner import Learner
from ..training.native_layers import (
    NativeStepPredictor,
    NotNative,
    check_single,
    layers_of,
    native_types,
    states_of,
    step_predictor_type,
)
from ..training.unchanged import Seen, forwards_in, is_unchanged, modules_in, places

__all__ = ["NativeTimeSteps"]

# Products of a step, at most: the interpreter's lock is held for all of it, and for more of them
# the calls around torch's operators matter little.
_MOST_PRODUCTS = 2**18
_LONGEST_PAUSE = 256


class NativeTimeSteps:
    """Runs time steps in C++ that are like one which torch has run.

    They depend on the model, its parameters' memory, the scaling, the state, and on hooks, modes
    and threads that may see or change these. A step in C++ first compares all of them, by identity,
    with what they were (``csrc/python/unchanged.h``): every attribute of every module, so that it
    need not know which of them matter, and where each parameter's memory is. Values are not
    compared but read: parameters, scaling and state stay in torch's tensors. What differs, and any
    input that is not a finite array of the same shape, is left to torch, which raises the errors.

    It is all one call that holds the interpreter's lock, so that no other thread changes anything
    between the comparison and the result. Copies are empty.
    """

    def __init__(self) -> None:
        self._steps: _Steps | None = None
        self._pause = 0  # how many steps to leave to torch before looking at the model again
        self._next_pause = 1

    def __reduce__(self) -> tuple[type[NativeTimeSteps], tuple[()]]:
        return NativeTimeSteps, ()

    def run(self, x: object, state: Tree) -> Tensor | None:
        """Return the outputs of a step, and advance the state in place; None: torch must run it.

        Parameters
        ----------
        x
            What the user has passed.
        state
            The present one; it is advanced if it is that which `follow` returned.
        """
        steps = self._steps
        if steps is None or state is not steps.state:
            return None
        y = steps.run(x)
        if y is not None:
            self._pause, self._next_pause = 0, 1
        return y

    def follow(
        self, learner: Learner, model: nn.Module, x: object, y: Tree, before: Tree, after: Tree
    ) -> tuple[Tree, Tree]:
        """Run a step again that torch has run, and prepare for others like it.

        So all steps have the bits of one way, whenever it is that an estimator was loaded.

        Parameters
        ----------
        learner, model
            The learner, and the model that was run.
        x, y
            The step's input, as the user has passed it, and its outputs.
        before, after
            The state before and after it.

        Returns
        -------
        tuple
            Its outputs, and the state after it, in memory of these steps' own; or those of torch.
        """
        if type(x) not in (Tensor, np.ndarray) or not isinstance(y, Tensor):
            return y, after
        try:
            if self._steps is None or not self._steps.is_for(x, y):
                self._steps = None
                if self._pause:
                    self._pause -= 1
                    return y, after
                # What changes all the time, or is not for C++, is looked at more and more rarely.
                self._pause = self._next_pause
                self._next_pause = min(2 * self._next_pause, _LONGEST_PAUSE)
                self._steps = _Steps(learner, model, x, y)
            state = self._steps.take(before)
        except NotNative:
            self._steps = None
            return y, after
        again = self._steps.run(x)
        return (y, after) if again is None else (again, state)


class _Steps:
    """Steps of a model as it is now, for inputs and outputs like these.

    Raises
    ------
    NotNative
        They cannot be run in C++.
    """

    def __init__(self, learner: Learner, model: nn.Module, x: Any, y: Tensor) -> None:
        params = list(model.parameters())
        self._shape = tuple(x.shape)
        sequences, features = self._shape
        _check(learner, model, params, sequences)
        self._model, self._like = model, params[0].detach()
        scaling = _UNSCALED if learner.scaling is None else learner.scaling
        numbers = [*_numbers(scaling.x), *_numbers(scaling.y)]
        # Taken before anything is made of it: what changes meanwhile is found by the next step.
        self._seen = _seen(learner, model, [*params, *numbers])
        layers, outputs = layers_of(model, features, _address)
        self._scaling = _addresses(scaling.x, features), _addresses(scaling.y, outputs)
        dtype = self._like.dtype if scaling.y is None else scaling.y.dtype_of(self._like.dtype)
        squeezed = learner.squeezed and outputs == 1
        self._wide = dtype == torch.float64
        self._y = torch.empty(sequences if squeezed else (sequences, outputs), dtype=dtype)
        if not self._is_like(y):
            raise NotNative("its outputs are unusual")
        self._layers = native_types(self._like.dtype)[0](layers, parallel_for)
        self._native: NativeStepPredictor = step_predictor_type(self._like.dtype)(
            self._layers, features, *self._scaling
        )
        self._tensors: list[Tensor] = []  # those of the state
        self.state: Tree = None

    def _is_like(self, y: Tensor) -> bool:
        return y.shape == self._y.shape and y.dtype == self._y.dtype

    def is_for(self, x: Any, y: Tensor) -> bool:
        """Whether these are steps of the model as it is now, for inputs and outputs like these."""
        return self._shape == tuple(x.shape) and self._is_like(y) and is_unchanged(*self._seen)

    def take(self, state: Tree) -> Tree:
        """Copy a state; return the copy, which steps advance."""
        given = tree_leaves(state)
        with torch.inference_mode(mode=False), torch.no_grad():
            own, tensors = states_of(self._model, self._shape[0], self._like)
            like = [(a.shape, a.dtype) for a in tensors]
            if state is not None and [(a.shape, a.dtype) for a in given] != like:
                raise NotNative("its state is unusual")
            for to, a in zip(tensors, given, strict=state is not None):
                to.copy_(a)
        self._layers.set_state([a.data_ptr() for a in tensors])
        self._tensors = tensors
        self.state = own if tensors else state
        return self.state

    def run(self, x: object) -> Tensor | None:
        """Return the outputs of a step; None if it cannot be run."""
        if has_modes() or is_autocast():
            return None
        if type(x) is Tensor:
            try:
                x = x.numpy()
            except (RuntimeError, TypeError):  # on a device, in a graph or transform, or half
                return None
        elif type(x) is not np.ndarray:
            return None
        y = torch.empty_like(self._y)
        done = self._native.run(x, self._shape[0], y.data_ptr(), self._wide, *self._seen)
        return y if done else None


def _check(learner: Learner, model: nn.Module, params: list[nn.Parameter], sequences: int) -> None:
    if learner.compiles:
        raise NotNative("compile=True")
    if model is not learner.model:
        raise NotNative("the model is wrapped")
    with in_mode(model, training=False):
        check_single(model)
    if sequences * sum(p.numel() for p in params) > _MOST_PRODUCTS:
        raise NotNative("a step takes long")


def _address(p: Tensor | None) -> tuple[int, int]:
    """Return the address of a parameter, and that of a gradient, which it does not need."""
    return (0 if p is None else p.data_ptr()), 0


def _numbers(scaling: Tree) -> list[Tensor]:
    if scaling is None:
        return []
    if not isinstance(scaling, Affine):
        raise NotNative("several inputs or outputs")
    return [scaling.center, scaling.scale]


def _addresses(scaling: Affine | None, features: int) -> tuple[int, int]:
    """Return the addresses of a scaling's center and scale; 0: none."""
    if scaling is None:
        return 0, 0
    for a in (scaling.center, scaling.scale):
        plain = a.dtype == torch.float64 and a.is_cpu and a.is_contiguous()
        if not plain or a.shape != (features,):
            raise NotNative("its scaling is unusual")
    return scaling.center.data_ptr(), scaling.scale.data_ptr()


def _seen(learner: Learner, model: nn.Module, tensors: Iterable[Tensor]) -> Seen:
    """Return what steps depend on, as it is now; see ``csrc/python/unchanged.h``."""
    objects, containers = modules_in(model)
    containers += [(hooks, ()) for hooks in global_hooks()]
    parts = vars(learner)
    entries: list[tuple[Any, ...]] = [
        (parts, name, parts[name]) for name in ("model", "spec", "scaling", "squeezed")
    ]
    entries.append((models_in_use, id(model)))  # a fit, or another thread
    entries += forwards_in(model)
    return tuple(objects), tuple(containers), tuple(entries), tuple(places(tensors))


_UNSCALED = Scaling(None, None)
