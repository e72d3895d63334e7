"""Inputs, targets, weights and masks as one thing that loads chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tree import Tree, tree_leaves, tree_map, tree_paths
from .chunks import Chunk
from .reader import read_ahead
from .sources import Source, open_source, to_tensor

__all__ = ["Batch", "Sequences"]


class Batch(NamedTuple):
    """What a chunk holds: inputs ``(S, B, F)``, targets ``(S, B, K)``, weights ``(S, B)``."""

    xs: Tree
    ys: Tree
    ws: Tensor | None


class Sequences:
    """Arrays ``(T, N, …)`` opened together.

    Parameters
    ----------
    x, y
        Arrays, or tuples, lists or dicts of them; `y` may be None.
    w
        Weights of samples: ``(N,)``, ``(T, N)`` or ``(T, N, 1)``.
    mask
        Which samples count: ``(T, N)`` or ``(T, N, 1)``, true where they do. What it leaves out of
        inputs and targets is replaced by 0, so that a NaN there does no harm.
    dtype
        The dtype of the model.

    Raises
    ------
    ValueError
        The arrays don't fit together, or have no steps or no sequences.
    TypeError
        They are no arrays of numbers.
    """

    def __init__(
        self, x: Any, y: Any = None, w: Any = None, mask: Any = None, *, dtype: torch.dtype
    ) -> None:
        self.dtype = dtype
        self.x: Tree = _open(x, "x", dtype)
        self.y: Tree = None if y is None else _open(y, "y", dtype, keep_integers=True)
        named = [*tree_paths(self.x, "x"), *tree_paths(self.y, "y")]
        if not tree_leaves(self.x):
            raise ValueError("x must hold at least one array, got none")
        for name, source in named:
            if len(source.shape) != 3:
                raise ValueError(
                    f"{name} must have 3 dimensions (time, sequences, features), "
                    f"got shape {source.shape}"
                )
        first, reference = named[0]
        self.steps, self.count = reference.shape[:2]
        for name, source in named:
            if source.shape[:2] != reference.shape[:2]:
                raise ValueError(
                    f"{name} must have as many time steps and sequences as {first}, "
                    f"got {source.shape[:2]} and {reference.shape[:2]}"
                )
        if not self.steps or not self.count:
            what = "time steps" if not self.steps else "sequences"
            raise ValueError(f"{first} has no {what}: its shape is {reference.shape}")
        self.w = None if w is None else self._open_weights(w, "w", dtype)
        self.mask = None if mask is None else self._open_weights(mask, "mask", torch.bool)
        nested = [name for name, _ in named if name not in ("x", "y")]
        self._plain = self.w is None and self.mask is None and not nested

    def _open_weights(self, array: Any, name: str, dtype: torch.dtype) -> Source:
        if not hasattr(array, "shape"):
            array = to_tensor(array, dtype)
        full = (self.steps, self.count)
        shapes = [(self.count,), full, (*full, 1)] if name == "w" else [full, (*full, 1)]
        if tuple(array.shape) not in shapes:
            allowed = " or ".join(map(str, shapes))
            raise ValueError(f"{name} must have the shape {allowed}, got {tuple(array.shape)}")
        if array.ndim == 1:
            array = to_tensor(array, dtype).expand(full)
        return open_source(array, name, dtype)

    @property
    def lazy(self) -> bool:
        """Whether chunks are worth reading ahead."""
        return any(source.lazy for source in tree_leaves((self.x, self.y, self.w, self.mask)))

    def load(self, chunk: Chunk) -> Batch | None:
        """Read one chunk; None if there is nothing in it."""
        if chunk.empty:
            return None
        if self._plain:
            box = chunk.t0, chunk.t1, chunk.n0, chunk.n1
            return Batch(self.x.read(*box), None if self.y is None else self.y.read(*box), None)

        def read(source: Source) -> Tensor:
            return source.read(chunk.t0, chunk.t1, chunk.n0, chunk.n1)

        xs, ys = tree_map(read, self.x), tree_map(read, self.y)
        shape = (chunk.t1 - chunk.t0, chunk.n1 - chunk.n0)
        ws = None if self.w is None else read(self.w).reshape(shape)
        if ws is not None and not bool((ws >= 0).all()):
            raise ValueError(
                f"w must not be negative or NaN, but is in steps {chunk.t0} to {chunk.t1}, "
                f"sequences {chunk.n0} to {chunk.n1}; leave samples out by weight 0"
            )
        if ws is not None:
            nothing = (ws == 0).unsqueeze(-1)  # a loss of NaN times 0 has a gradient of NaN
            tree_map(lambda slab: slab.masked_fill_(nothing, 0), ys)
        if self.mask is not None:
            out = ~read(self.mask).reshape(shape)
            tree_map(lambda slab: slab.masked_fill_(out.unsqueeze(-1), 0), (xs, ys))
            if ws is None:
                ws = torch.ones(shape, dtype=tree_leaves(xs)[0].dtype, device=out.device)
            ws.masked_fill_(out, 0)
        return Batch(xs, ys, ws)

    def batches(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Batch | None]]:
        """Yield chunks with what they hold; what lies in files is read one chunk ahead."""
        if not self.lazy:
            for chunk in chunks:
                yield chunk, self.load(chunk)
            return
        with closing(read_ahead(self.load, chunks)) as ahead:  # type: ignore[type-var]
            yield from ahead


def _open(tree: Any, name: str, dtype: torch.dtype, *, keep_integers: bool = False) -> Tree:
    """Open every array of a tuple or dict; a list is an array written out, not a tuple."""
    if isinstance(tree, dict):
        return {
            key: _open(part, f"{name}[{key!r}]", dtype, keep_integers=keep_integers)
            for key, part in tree.items()
        }
    if isinstance(tree, tuple):
        parts = [
            _open(part, f"{name}[{index}]", dtype, keep_integers=keep_integers)
            for index, part in enumerate(tree)
        ]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return open_source(tree, name, dtype, keep_integers=keep_integers)
