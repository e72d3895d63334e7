"""How an estimator scales its inputs and targets, and undoes it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..._util.tree import Tree, tree_like, tree_map
from ...distributed.replicas import Replicas
from ..chunk_plan import Chunk
from ..sequences import Sequences
from ..sources import Source
from .affine import Affine, measure, paired, scaling_from_state, scaling_state

__all__ = ["Scaling"]


@dataclasses.dataclass(frozen=True, eq=False)
class Scaling:
    """Scaling of inputs and targets, feature by feature.

    Parameters
    ----------
    x, y
        Trees of `Affine`, in the structure of inputs and targets; None: not scaled.

    Examples
    --------
    >>> from fastseq.data.scaling.affine import Affine
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> scaling = Scaling(Affine(3 * one, 2 * one), None)
    >>> scaling.apply(torch.tensor([[5]]), torch.float32)
    tensor([[1.]])
    >>> Scaling.from_state(scaling.state()).x.center
    tensor([3.], dtype=torch.float64)
    """

    x: Tree
    y: Tree

    @classmethod
    def measure(
        cls,
        data: Sequences,
        chunks: Iterable[Chunk],
        methods: tuple[str | None, str | None],
        replicas: Replicas,
    ) -> Scaling:
        """Measure the scaling in one pass over this rank's `chunks`. Collective.

        Parameters
        ----------
        data
            The data.
        chunks
            This rank's part of the data.
        methods
            For inputs and for targets: ``"standard"``, ``"robust"`` or None; see `Spec`.
        replicas
            The ranks.

        Raises
        ------
        ValueError
            A feature cannot be scaled; the message names it.
        """
        wanted = {name: m for name, m in zip("xy", methods, strict=True) if m is not None}
        raw = data.measured()
        like = {name: tree_map(_empty, getattr(raw, name)) for name in wanted}

        def slabs() -> Iterator[tuple[Tree, Tensor | None]]:
            for _, batch in raw.batches(chunks):
                if batch is None:
                    continue
                found = {name: getattr(batch, f"{name}s") for name in wanted}
                if data.nan == "mask":
                    found = tree_map(_without_infinities, found)
                yield found, None if batch.ws is None else batch.ws > 0

        found = measure(wanted, slabs(), like, replicas)
        return cls(found.get("x"), found.get("y"))

    def apply(self, xs: Tree, dtype: torch.dtype) -> Tree:
        """Scale inputs of one time step, ``(N, F)``, of any dtype, and return them as `dtype`.

        For inputs that are scaled: `x` is not None.
        """
        pairs = paired(xs, self.x, "x", lambda a: a.shape[1:])
        return tree_like(
            xs, [a.to(dtype) if affine is None else affine.apply(a, dtype) for a, affine in pairs]
        )

    def raw(self, xs: Tree) -> Tree:
        """Return the inputs that `apply` scales to `xs`; fp64 where `Affine.wide`."""
        if self.x is None:
            return xs
        return tree_map(lambda a, affine: a if affine is None else affine.undo(a), xs, self.x)

    @property
    def undo(self) -> Tree:
        """A tree of functions that scale outputs back; None where targets are not scaled.

        They raise ValueError if an output has another number of features than its target.
        """
        if self.y is None:
            return None
        return tree_map(lambda a: None if a is None else functools.partial(_undo, a), self.y)

    def state(self) -> dict[str, Any]:
        """Return the scaling as nested dicts of tensors, for saving, as with `h5save`."""
        return {"x": scaling_state(self.x), "y": scaling_state(self.y)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Scaling:
        """Return the scaling that `state` was called on."""
        return cls(scaling_from_state(state["x"]), scaling_from_state(state["y"]))


def _undo(affine: Affine, a: Tensor) -> Tensor:
    if a.shape[2:] != affine.center.shape:
        raise ValueError(
            f"outputs with {a.shape[-1]} features cannot be scaled back like targets with "
            f"{affine.center.shape[-1]}: leave spec.scale_y out"
        )
    return affine.undo(a)


def _without_infinities(slab: Tensor) -> Tensor:
    return slab.masked_fill(slab.isinf(), torch.nan) if slab.is_floating_point() else slab


def _empty(source: Source) -> Tensor:
    return torch.empty(0, 0, *source.features, dtype=source.dtype)
