"""Earlier steps for models that look back without carrying a state: ``spec.context``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._util.tree import Tree, tree_leaves, tree_map
from .stateful import carries, takes_lengths, takes_state

__all__ = ["Context", "in_context", "within"]


def in_context(module: nn.Module, context: int) -> nn.Module:
    """Return a model that runs `module` on chunks with `context` earlier steps; 0: `module`.

    Raises
    ------
    ValueError
        `module` carries a state.
    """
    if not context:
        return module
    if carries(module):
        raise ValueError(
            f"spec.context gives earlier steps to models without state, but {type(module).__name__}"
            f" carries one from chunk to chunk: set it to 0, got {context}"
        )
    return Context(module, context)


def within(module: nn.Module) -> nn.Module:
    """Return the module given to `in_context`."""
    return module.module if isinstance(module, Context) else module


class Context(nn.Module):
    """A model whose state is its last inputs, which are put before the next chunk.

    The state holds these inputs, ``(context, B, …)``, the latest at the end, and each sequence's
    number of them, ``(B,)``: fewer at the start of series.

    Parameters
    ----------
    module
        A model without state whose outputs depend on at most `context` earlier steps.
    context
        The number of steps to keep.

    Examples
    --------
    >>> class Change(nn.Module):
    ...     def forward(self, x):
    ...         return x - torch.cat([x[:1], x[:-1]])
    >>> model = Context(Change(), 1)
    >>> y, state = model(torch.tensor([1.0, 3.0]).view(2, 1, 1))
    >>> model(torch.tensor([7.0]).view(1, 1, 1), state)[0].item()
    4.0
    """

    def __init__(self, module: nn.Module, context: int) -> None:
        super().__init__()
        self.module = module
        self.context = context

    def forward(
        self, x: Tree, state: Tree = None, lengths: Tensor | None = None
    ) -> tuple[Tree, Tree]:
        """Run the model on a chunk ``(S, B, F)`` and the steps before it."""
        steps, width = tree_leaves(x)[0].shape[:2]
        if state is None:
            before = tree_map(lambda a: a.new_zeros(self.context, *a.shape[1:]), x)
            count = torch.zeros(width, dtype=torch.int64, device=tree_leaves(x)[0].device)
            y = self._run(x, 0, lengths)
        else:
            before, count = state
            y = self._run_each(tree_map(lambda a, b: torch.cat([a, b]), before, x), count, lengths)
        last = tree_map(lambda a, b: torch.cat([a, b.detach()])[-self.context :], before, x)
        return y, (last, (count + steps).clamp(max=self.context))

    def _run_each(self, x: Tree, count: Tensor, lengths: Tensor | None) -> Tree:
        """Run on sequences grouped by their number of earlier steps."""
        known = torch.unique(count).tolist()
        if len(known) == 1:
            skip = self.context - known[0]
            return self._run(tree_map(lambda a: a[skip:], x), known[0], lengths)
        parts, places = [], []
        for number in known:
            index = (count == number).nonzero()[:, 0]
            skip = self.context - number
            xs = tree_map(lambda a, s=skip, i=index: a[s:].index_select(1, i), x)
            own = None if lengths is None else lengths[index]
            parts.append(self._run(xs, number, own))
            places.append(index)
        back = torch.cat(places).argsort()
        return tree_map(lambda *a: torch.cat(a, 1).index_select(1, back), *parts)

    def _run(self, x: Tree, known: int, lengths: Tensor | None) -> Tree:
        more: dict[str, Tensor] = {}
        if lengths is not None and takes_lengths(self.module):
            more["lengths"] = lengths + known
        y = self.module(x, None, **more)[0] if takes_state(self.module) else self.module(x, **more)
        return tree_map(lambda a: a[known:], y) if known else y

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(super().__getattr__("module"), name)
