"""Whole chunks in C++, without autograd: the program that `fit` trains and that `step` advances."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._util.torch_internals import is_autocast, is_watched
from .._util.tree import Tree, tree_leaves, tree_paths
from ..nn.ops import parallel_for
from ..nn.stateful import is_bidirectional
from ..training.native_layers import (
    NativeModel,
    NotNative,
    check_single,
    layers_of,
    native_types,
    rows_of,
    states_of,
    with_rows,
)

__all__ = ["NativeForward"]


class NativeForward:
    """Runs a model in evaluation mode in C++, as `Stateful` does by torch.

    Parameters
    ----------
    module
        The model, as it is from now on.
    features
        The number of its inputs.

    Attributes
    ----------
    module
        The model.
    state
        Its state after the last chunk, or to start the next with; None: fresh.

    Raises
    ------
    NotNative
        C++ cannot run it.
    """

    def __init__(self, module: nn.Module, features: int) -> None:
        if is_watched() or is_autocast():
            raise NotNative("torch is set to something that only its own operators do")
        check_single(module)
        if is_bidirectional(module):  # C++ keeps no state of later steps
            raise NotNative("a bidirectional layer")
        self._weights: list[Tensor] = []  # keeps the memory

        def address(p: Tensor | None) -> tuple[int, int]:
            if p is None:
                return 0, 0
            self._weights.append(p.detach())
            return p.data_ptr(), 0

        layers, self._outputs = layers_of(module, features, address)
        self._native: NativeModel = native_types(self.dtype)[0](layers, parallel_for)
        self.module = module
        self.state: Tree = None

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self._weights[0].dtype

    def can_start_from(self, state: Tree) -> bool:
        """Whether a state, of any number of sequences, is one of the model's."""
        sequences = {a.shape[1] for a in tree_leaves(state) if a.dim() == 3}
        if len(sequences) != 1:
            return not tree_leaves(state)
        own, _ = states_of(self.module, sequences.pop(), self._weights[0])
        wanted = [(name, a.shape, a.dtype) for name, a in tree_paths(own, "")]
        return wanted == [(name, a.shape, a.dtype) for name, a in tree_paths(state, "")]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs ``(S, B, K)`` of a chunk ``(S, B, F)``, and advance the state."""
        x = with_rows(x)
        steps, sequences = x.shape[:2]
        state, tensors = states_of(self.module, sequences, self._weights[0])
        if self.state is not None:
            for to, given in zip(tensors, tree_leaves(self.state), strict=True):
                to.copy_(given)
        self._native.set_state([a.data_ptr() for a in tensors])
        y = x.new_empty(steps, sequences, self._outputs)
        self._native.forward(rows_of(x), steps, sequences, y.data_ptr())
        self.state = state
        return y
