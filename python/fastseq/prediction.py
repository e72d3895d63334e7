"""Running a model over whole series, and where its outputs go."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .data.chunks import ChunkPlan, part
from .data.sequences import Sequences
from .parallel import Replicas
from .spec import Spec
from .stateful import Stateful, batch_dims, in_mode, is_bidirectional
from .training import to_device
from .tree import Tree, tree_leaves, tree_map, tree_paths

__all__ = ["Predictor"]


class Predictor:
    """Runs a model over series, remembering the state in which they end.

    Parameters
    ----------
    stateful
        The model.
    device
        Where it is.
    replicas
        The ranks that share the work.

    Attributes
    ----------
    state
        The state of all sequences after the last call; None if there was none.
    """

    def __init__(self, stateful: Stateful, device: torch.device, replicas: Replicas) -> None:
        self._stateful = stateful
        self._model: nn.Module = stateful.module
        self._device = device
        self._replicas = replicas
        self._dims: Tree = None
        self._fresh_state: Tree = None
        self.state: Tree = None

    def predict(self, data: Sequences, spec: Spec, out: Any) -> Any:
        """Run over all steps of all sequences, from `state`; see `Estimator.predict`."""
        if self.state is not None:
            self._refuse_to_go_on_backwards()
        with in_mode(self._model, training=False), torch.no_grad():
            outputs = self._probe(data)
            self._check_state(data.count)
            out = _outputs(out, outputs, (data.steps, data.count), self._replicas.alone)
            size, rank = self._replicas.comm.size, self._replicas.comm.rank
            bounds = [part(0, data.count, r, size) for r in range(size)]
            ends = self._run(data, spec, out, *bounds[rank])
            if tree_leaves(self._dims):
                self.state = self._gather_states(ends, bounds)
            if not self._replicas.alone:
                for whole in tree_leaves(out):
                    tensor = whole if isinstance(whole, Tensor) else torch.from_numpy(whole)
                    self._replicas.gather_(tensor, bounds, 1)
        return out

    def step(self, x: Tree) -> Tree:
        """Run one step of all sequences, ``(N, F)``, from `state`."""
        self._refuse_to_go_on_backwards()
        with in_mode(self._model, training=False), torch.no_grad():
            count = tree_leaves(x)[0].shape[0]
            if self._dims is None:
                self._dims = batch_dims(self._model, tree_map(lambda a: a.unsqueeze(0), x))
            self._check_state(count)
            self._stateful.state = self.state
            y = self._stateful(x)
            self.state = self._stateful.state
        return y

    def _refuse_to_go_on_backwards(self) -> None:
        if is_bidirectional(self._model):
            raise ValueError(
                "the model has a bidirectional layer, which looks at later steps: it can predict "
                "whole series only, not go on from a state"
            )

    def _probe(self, data: Sequences) -> Tree:
        """Learn from zeros, two steps of three sequences, what the model returns."""
        zeros = tree_map(lambda s: torch.zeros(2, 3, *s.shape[2:], dtype=data.dtype), data.x)
        zeros = to_device(zeros, self._device)
        with torch.random.fork_rng():
            self._stateful.reset_state()
            outputs = self._stateful(zeros)
        for name, leaf in tree_paths(outputs, "the model's output"):
            if leaf.dim() < 3 or leaf.shape[:2] != (2, 3):
                raise ValueError(
                    f"{name} must be (time, sequences, features): for an input of 2 steps and 3 "
                    f"sequences it has the shape {tuple(leaf.shape)}"
                )
        self._fresh_state = self._stateful.state
        if self._dims is None:
            self._dims = batch_dims(self._model, zeros)
        return outputs

    def _check_state(self, count: int) -> None:
        if self.state is None:
            return
        for dim, a in zip(tree_leaves(self._dims), tree_leaves(self.state), strict=True):
            if dim >= 0 and a.shape[dim] != count:
                raise ValueError(
                    f"the state is one of {a.shape[dim]} sequences, but x has {count}: "
                    "predict with reset=True, or call reset_state() first"
                )

    def _run(self, data: Sequences, spec: Spec, out: Any, begin: int, end: int) -> list[Tree]:
        """Predict sequences ``[begin, end)``; returns the states in which the blocks end."""
        # A layer that looks at later steps needs the whole series at once.
        whole = is_bidirectional(self._model)
        plan = ChunkPlan(
            steps=data.steps,
            sequences=end - begin,
            batchsize=spec.batchsize,
            seqsize=data.steps if whole else spec.seqsize,
        )
        ends: list[Tree] = []
        for chunk, batch in data.batches(c.shifted(begin) for c in plan.chunks()):
            assert batch is not None
            if chunk.index == 0:
                self._stateful.state = self._slice_state(chunk.n0, chunk.n1)
            y = self._stateful(to_device(batch.xs, self._device))
            tree_map(lambda o, a, c=chunk: _write(o, c.t0, c.t1, c.n0, c.n1, a), out, y)
            if chunk.t1 == data.steps:
                ends.append(self._stateful.state)
        return ends

    def _slice_state(self, n0: int, n1: int) -> Tree:
        if self.state is None:
            return None

        def cut(a: Tensor, dim: int) -> Tensor:
            return a if dim < 0 else a.narrow(dim, n0, n1 - n0).contiguous()

        return tree_map(cut, self.state, self._dims)

    def _gather_states(self, ends: list[Tree], bounds: list[tuple[int, int]]) -> Tree:
        """Join the blocks' states, and those of all ranks."""
        whole = None
        if ends:
            whole = tree_map(
                lambda dim, *parts: parts[0] if dim < 0 else torch.cat(parts, dim),
                self._dims,
                *ends,
            )
        if self._replicas.alone:
            return whole
        # A rank without sequences makes room by a state of the right kind.
        like = whole if whole is not None else self._fresh_state
        count = bounds[-1][1]
        begin, end = bounds[self._replicas.comm.rank]

        def gather(a: Tensor, dim: int) -> Tensor:
            if dim < 0:
                holder = next(r for r, (b, e) in enumerate(bounds) if e > b)
                return self._replicas.comm.broadcast_(a.contiguous(), holder)
            full = a.new_zeros([count if d == dim else n for d, n in enumerate(a.shape)])
            if end > begin:
                full.narrow(dim, begin, end - begin).copy_(a)
            self._replicas.gather_(full, bounds, dim)
            return full

        return tree_map(gather, like, self._dims)


def _outputs(out: Any, outputs: Tree, shape: tuple[int, int], alone: bool) -> Any:
    """Check the arrays that outputs go into, or make them."""
    if out is None:
        return tree_map(
            lambda a: np.empty((*shape, *a.shape[2:]), _as_numpy(a[:0, :0]).dtype), outputs
        )
    names = [name for name, _ in tree_paths(outputs, "out")]
    leaves = list(tree_paths(out, "out"))
    if [name for name, _ in leaves] != names:
        raise ValueError(
            f"out must have the structure of the model's output: {', '.join(names)}; "
            f"got {', '.join(name for name, _ in leaves) or 'nothing'}"
        )
    for (name, target), a in zip(leaves, tree_leaves(outputs), strict=True):
        wanted = (*shape, *a.shape[2:])
        if tuple(getattr(target, "shape", ())) != wanted:
            got = tuple(target.shape) if hasattr(target, "shape") else type(target).__name__
            raise ValueError(f"{name} must have the shape {wanted}, got {got}")
        if not alone and not isinstance(target, Tensor | np.ndarray):
            raise TypeError(
                f"{name} must be an array or a tensor when several ranks predict, got "
                f"{type(target).__name__}"
            )
        if isinstance(target, Tensor):
            fits = torch.can_cast(a.dtype, target.dtype) and target.is_floating_point()
            writeable = True
        else:
            fits = np.can_cast(_as_numpy(a).dtype, target.dtype, "safe")
            writeable = target.flags.writeable if isinstance(target, np.ndarray) else True
        if not fits:
            raise TypeError(f"{name} must hold {a.dtype}, got {target.dtype}")
        if not writeable:
            raise ValueError(f"{name} is read-only; pass an array that can be written to")
    return out


def _as_numpy(a: Tensor) -> np.ndarray[Any, Any]:
    """View a tensor as an array; bfloat16, which NumPy lacks, becomes float32."""
    a = a.detach().cpu()
    return (a.float() if a.dtype == torch.bfloat16 else a).numpy()


def _write(out: Any, t0: int, t1: int, n0: int, n1: int, a: Tensor) -> None:
    if isinstance(out, Tensor):
        out[t0:t1, n0:n1] = a
    else:
        out[t0:t1, n0:n1] = _as_numpy(a)
