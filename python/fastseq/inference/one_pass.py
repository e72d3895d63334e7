"""One pass of a model over sequences, chunk by chunk, each up to its own end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from .._util.tree import Tree, tree_leaves, tree_map
from ..data.chunk_plan import Chunk, ChunkPlan
from ..data.sequences import Sequences, to_device
from ..nn.stateful import Stateful, carries, each_step
from ..nn.token_ids import padding_id
from ..training.spec import Spec
from .native_forward import NativeForward
from .outputs import nothing
from .state_rows import put_rows, take_rows

__all__ = ["Pass"]


class Pass:
    """A pass of a model over sequences.

    Parameters
    ----------
    stateful
        The model, in evaluation mode.
    dims
        The dimension of the sequences in its state.
    data, spec
        The sequences, and how many of them and of their steps are run at once.
    finish
        Turns the model's outputs into the final ones.
    like
        Outputs of any chunk.
    start
        The state of all sequences, in the order of the pass; None: a fresh one.
    whole
        Whether the model must see whole series at once.
    pooled
        Whether outputs are ``(B, K)``, to be repeated at each step.

    Attributes
    ----------
    ends
        After `run`, the state of all sequences, in the order of the pass; of those that were run,
        at their last steps. None if no chunk was run and `start` is None.
    """

    def __init__(
        self,
        stateful: Stateful | NativeForward,
        dims: Tree,
        data: Sequences,
        spec: Spec,
        finish: Callable[[Tree], list[Tensor]],
        like: list[Tensor],
        start: Tree,
        *,
        whole: bool = False,
        pooled: bool = False,
    ) -> None:
        self._stateful = stateful
        self._dims = dims
        self._data = data
        self._batchsize = spec.batchsize
        self._seqsize = data.steps if whole else spec.seqsize
        self._carries = carries(stateful.module) and not whole
        self._told = data.lengths is not None and padding_id(stateful.module) is not None
        self._finish = finish
        self._pooled = pooled
        self._like = like
        self._start = start
        self.ends: Tree = tree_map(torch.clone, start)

    def plan(self, begin: int, end: int) -> ChunkPlan:
        """Return the plan of sequences ``[begin, end)``, which it counts from 0."""
        lengths = self._data.lengths
        return ChunkPlan(
            steps=self._data.steps,
            sequences=end - begin,
            batchsize=self._batchsize,
            seqsize=self._seqsize,
            lengths=None if lengths is None else lengths[begin:end],
        )

    def chunks(self, begin: int, end: int) -> Iterator[Chunk]:
        """Yield the chunks of sequences ``[begin, end)``."""
        chunks = self.plan(begin, end).chunks()
        return (chunk.shifted(begin) for chunk in chunks) if begin else chunks

    def tails(self, begin: int, end: int) -> Iterator[Chunk]:
        """Yield the steps that are in no chunk, past the end of a block's longest sequence."""
        lengths, steps = self._data.lengths, self._data.steps
        if lengths is None:
            return
        for block, n0 in enumerate(range(begin, end, self._batchsize)):
            n1 = min(n0 + self._batchsize, end)
            longest = int(lengths[n0:n1].max())
            for index, t0 in enumerate(range(longest, steps, self._seqsize)):
                yield Chunk(block, index, t0, min(t0 + self._seqsize, steps), n0, n1)

    def run(
        self, begin: int, end: int, device: torch.device
    ) -> Generator[list[Tensor], None, None]:
        """Yield the outputs of each chunk of sequences ``[begin, end)``."""
        last: Chunk | None = None
        batches = self._data.batches(self.chunks(begin, end))
        with closing(batches):
            for chunk, batch in batches:
                assert batch is not None
                if chunk.index == 0:
                    self._end(last)
                    self._begin(chunk)
                yield self._forward(chunk, to_device(batch.xs, device))
                last = chunk
        self._end(last)

    def _begin(self, chunk: Chunk) -> None:
        index = torch.arange(chunk.n0, chunk.n1)
        self._stateful.state = take_rows(self._start, self._dims, index)

    def _end(self, last: Chunk | None) -> None:
        if last is None:
            return
        columns = np.arange(last.n1 - last.n0)
        if self._data.lengths is not None:  # sequences without steps keep their state
            columns = np.flatnonzero(self._data.lengths[last.n0 : last.n1])
        index = torch.from_numpy(columns)
        rows = take_rows(self._stateful.state, self._dims, index)
        self.ends = put_rows(self.ends, self._dims, index + last.n0, rows, self._data.count)

    def _forward(self, chunk: Chunk, xs: Tree) -> list[Tensor]:
        """Run a chunk, each sequence up to its length."""
        model, steps, width = self._stateful, chunk.t1 - chunk.t0, chunk.n1 - chunk.n0
        if self._data.lengths is None:
            return self._outputs(xs)
        counts = np.clip(self._data.lengths[chunk.n0 : chunk.n1] - chunk.t0, 0, steps)
        if counts.min() == steps:
            return self._outputs(xs)
        start = model.state
        state = tree_map(torch.clone, start)
        outputs = [nothing((steps, width, *a.shape[2:]), a) for a in self._like]
        for a, b, columns in self._pieces(counts):
            index = torch.from_numpy(columns).to(outputs[0].device)
            before = start if a == 0 else state
            model.state = take_rows(before, self._dims, index)
            part = tree_map(lambda x, a=a, b=b, i=index: x[a:b].index_select(1, i), xs)
            for whole, y in zip(outputs, self._outputs(part), strict=True):
                whole[a:b].index_copy_(1, index, y)
            state = put_rows(state, self._dims, index, model.state, width)
        model.state = state
        return outputs

    def _outputs(self, xs: Tree) -> list[Tensor]:
        steps, count = tree_leaves(xs)[0].shape[:2]
        model = self._stateful
        if self._told and isinstance(model, Stateful):
            # Else it would take some ids at the ends for padding.
            model.lengths = torch.full((count,), steps, device=tree_leaves(xs)[0].device)
            ys = model(xs)
            model.lengths = None
        else:
            ys = model(xs)
        return self._finish(each_step(ys, steps) if self._pooled else ys)

    def _pieces(self, counts: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """Cut a chunk where sequences end: yield steps ``[a, b)`` and the sequences to run.

        A model with a state continues with the sequences that are left. Other models may look at
        later steps, so sequences are run whole, those of one length together.
        """
        a = 0
        for b in np.unique(counts[counts > 0]):
            yield a, b, np.flatnonzero(counts >= b if self._carries else counts == b)
            if self._carries:
                a = b
