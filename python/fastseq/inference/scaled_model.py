"""Unscaled inputs and outputs for a model that was trained on scaled ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._util.tree import Tree, tree_map
from ..data.scaling.affine import Affine
from ..nn.stateful import takes_state
from ..training.argument_checks import input_dtype

__all__ = ["ScaledModel"]


class ScaledModel(nn.Module):
    """Scales inputs, runs a model on them, and undoes the scaling of its outputs.

    Inputs may have any dtype: they are scaled in fp64, then converted to the model's dtype. Outputs
    are fp64 if their scaling is `Affine.wide`, else fp32 at least.

    Parameters
    ----------
    module
        A model with ``forward(x)`` or ``forward(x, state) -> (y, state)``.
    x_scaling, y_scaling
        Trees of `Affine` and None in the structure of the model's inputs and outputs, as
        `measure` returns; None scales nothing.

    Examples
    --------
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> model = ScaledModel(nn.Identity(), Affine(3 * one, 2 * one), Affine(100 * one, 10 * one))
    >>> model(torch.tensor([[[5.0]]]))
    (tensor([[[110.]]]), None)
    """

    def __init__(self, module: nn.Module, x_scaling: Tree, y_scaling: Tree) -> None:
        super().__init__()
        self.module = module
        self._takes_state = takes_state(module)
        self.layers: nn.ModuleList = nn.ModuleList()
        self._x = tree_map(lambda affine: self._add(affine, inverse=False), x_scaling)
        self._y = tree_map(lambda affine: self._add(affine, inverse=True), y_scaling)

    def _add(self, affine: Affine, *, inverse: bool) -> int:
        layer: nn.Module = _Undo(affine) if inverse else _Apply(affine, input_dtype(self.module))
        device = next((p.device for p in self.module.parameters()), "cpu")
        self.layers.append(layer.to(device))
        return len(self.layers) - 1

    def forward(self, x: Tree, state: Tree = None) -> tuple[Tree, Tree]:
        """Run the model on an unscaled chunk.

        Parameters
        ----------
        x
            The chunk, ``(S, B, F)``, or a tree of them.
        state
            As returned; None: a fresh state.

        Returns
        -------
        tuple
            The output, and the state: None if the model has none.
        """
        x = self._run(self._x, x)
        y, state = self.module(x, state) if self._takes_state else (self.module(x), None)
        return self._run(self._y, y), state

    def _run(self, numbers: Tree, tree: Tree) -> Tree:
        if numbers is None:
            return tree
        return tree_map(lambda a, i: a if i is None else self.layers[i](a), tree, numbers)


class _Numbers(nn.Module):
    """An `Affine` whose numbers are buffers."""

    center: Tensor
    scale: Tensor

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self._wide = affine.wide
        self.register_buffer("center", affine.center.double())
        self.register_buffer("scale", affine.scale.double())

    @property
    def affine(self) -> Affine:
        return Affine(self.center, self.scale, self._wide)


class _Apply(_Numbers):
    def __init__(self, affine: Affine, dtype: torch.dtype) -> None:
        super().__init__(affine)
        self._dtype = dtype

    def forward(self, slab: Tensor) -> Tensor:
        return self.affine.apply(slab, self._dtype)


class _Undo(_Numbers):
    def forward(self, slab: Tensor) -> Tensor:
        return self.affine.undo(slab)
