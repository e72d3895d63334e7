"""Models and losses through `torch.compile`: what ``compile=True`` does on the CPU."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._util.locks import Lock
from .._util.torch_internals import (
    compiles_rnns,
    dynamo_error,
    leave_open,
    recompile_limit,
    unsupported,
)
from .._util.tree import Tree, tree_leaves, tree_map
from .compiled_layers import Substitutes
from .stateful import Stateful, batch_dims, in_mode

__all__ = ["CompiledStateful", "compile_chunks"]


class CompiledStateful(Stateful):
    """A compiled model with its state."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._run = compile_chunks(module, Stateful.__call__)

    def __call__(self, x: Tree) -> Tree:
        """Run the model from the current state on a chunk or on one step."""
        return self._run(self, x)


def compile_chunks(model: nn.Module, function: Callable[..., Tree]) -> Callable[..., Tree]:
    """Compile a function of a stateful model and of chunks, as one graph.

    Parameters
    ----------
    model
        As in `Estimator`.
    function
        Called as ``function(m, *chunks)``, like a loss: it may advance the state of `m`.

    Returns
    -------
    callable
        The compiled function. Numbers of steps and sequences are left open: one graph serves
        chunks of all lengths, a second one those of length 1; the same again for a carried state.

    Raises
    ------
    ValueError
        When called: the function cannot be compiled as one graph; the message says why.
    """
    return _CompiledChunks(model, function)


def _run(
    function: Callable[..., Tree],
    m: Stateful,
    state: Tree,
    lengths: Tensor | None,
    chunks: tuple[Tree, ...],
) -> tuple[Tree, Tree]:
    m.state, m.lengths = state, lengths
    result = function(m, *chunks)
    m.detach()
    after, m.state, m.lengths = m.state, None, None
    return result, after


# The compiler's settings and tables belong to the process, the layers' substitutes to the model.
_lock = Lock()


class _CompiledChunks:
    def __init__(self, model: nn.Module, function: Callable[..., Tree]) -> None:
        self._model = model
        self._function = function
        self._inner = Stateful(model)
        self._substitutes = Substitutes(model)
        self._graphs: dict[tuple[object, ...], Callable[..., tuple[Tree, Tree]]] = {}
        self._dims: Tree = None

    def __call__(self, m: Stateful, *chunks: Tree) -> Tree:
        chunks, state = tree_map(_laid_out, chunks), tree_map(_laid_out, m.state)
        sizes = self._leave_open(chunks, state)
        lengths, m.lengths = m.lengths, None
        if lengths is not None:
            leave_open(lengths, 0)
        training = self._model.training, torch.is_grad_enabled()
        key = (state is None, lengths is None, len(chunks), training, *(n == 1 for n in sizes))
        try:
            with _lock, self._substitutes:
                result, m.state = self._call(key, state, lengths, chunks)
        except Exception as error:
            self._explain(error, m.state, lengths, chunks)
            raise
        return result

    def __getstate__(self) -> dict[str, object]:
        """Leave out what is compiled: a copy compiles again."""
        return {**vars(self), "_graphs": {}}

    def _call(
        self,
        key: tuple[object, ...],
        state: Tree,
        lengths: Tensor | None,
        chunks: tuple[Tree, ...],
    ) -> tuple[Tree, Tree]:
        args = (self._function, self._inner, state, lengths, chunks)
        if key in self._graphs:
            try:
                return self._graphs[key](*args)
            except unsupported():
                pass
            except recompile_limit():
                del self._graphs[key]  # and all that it compiled
        # Slow, and needed only to compile, the first time or again.
        with compiles_rnns():
            if key not in self._graphs:
                self._graphs[key] = torch.compile(_copied(_run), fullgraph=True)
            return self._graphs[key](*args)

    def _leave_open(self, chunks: tuple[Tree, ...], state: Tree) -> tuple[int, ...]:
        """Mark the numbers of steps and sequences as dynamic; return them."""
        x = tree_leaves(chunks[0])[0]
        open_dims = [0, 1] if x.dim() > 2 else [0]  # single steps have no time
        for a in tree_leaves(chunks):
            leave_open(a, open_dims)
        if state is not None:
            if self._dims is None:
                whole = chunks[0] if x.dim() > 2 else tree_map(lambda a: a[None], chunks[0])
                with in_mode(self._model, training=False):
                    self._dims = batch_dims(self._model, whole)
            for a, dim in zip(tree_leaves(state), tree_leaves(self._dims), strict=True):
                if dim >= 0:
                    leave_open(a, dim)
        return tuple(x.shape[: len(open_dims)])

    def _explain(
        self, error: Exception, state: Tree, lengths: Tensor | None, chunks: tuple[Tree, ...]
    ) -> None:
        """Raise the error of the function itself, or else that of compiling it."""
        with torch.no_grad():  # the function's own error comes first
            _run(self._function, self._inner, state, lengths, chunks)
        if isinstance(error, dynamo_error()):
            reason = str(error).strip().split("\n\n")[0]
            raise ValueError(
                "compile=True needs a model and a loss that torch.compile can take as one graph "
                f"(or pass compile=False). It says: {reason}"
            ) from error


def _laid_out(a: Tensor) -> Tensor:
    """Return `a` contiguous and at the start of its memory: other layouts would need new graphs."""
    if a.is_contiguous() and a.storage_offset() == 0:
        return a
    return a.clone(memory_format=torch.contiguous_format)


def _copied(function: Any) -> Callable[..., tuple[Tree, Tree]]:
    """Copy a function and its code: torch.compile limits the graphs per code object."""
    return types.FunctionType(function.__code__.replace(), function.__globals__)
