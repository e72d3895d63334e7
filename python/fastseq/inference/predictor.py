"""Predict whole series, on all ranks together, and carry their state."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import pairwise, zip_longest

import numpy as np
import torch
from torch import Tensor, nn

from .._util.locks import Lock
from .._util.progress import Progress
from .._util.seeding import untouched
from .._util.tree import Tree, tree_leaves, tree_like, tree_map, tree_paths
from ..data.chunk_plan import part
from ..data.sequences import Sequences, to_device
from ..data.sources import Source
from ..distributed.replicas import Replicas
from ..nn.earlier_steps import within
from ..nn.stateful import Stateful, batch_dims, each_step, in_mode, is_bidirectional
from ..training.learner import Learner
from ..training.native_layers import NotNative
from ..training.spec import Spec
from .export import first_state
from .native_forward import NativeForward
from .native_time_steps import NativeTimeSteps
from .one_pass import Pass
from .outputs import Outputs, matched, nothing
from .state_rows import put_rows, take_rows

__all__ = ["Predictor"]

_BAR_AFTER_SECONDS = 1.0


class Predictor:
    """Runs a model over series, and keeps their last state.

    Parameters
    ----------
    stateful
        The model.
    device
        The model's device.
    replicas
        The ranks that share the work.

    Attributes
    ----------
    state
        The state of all sequences after the last call, in the caller's order, each at its last
        step; None if there is none.
    """

    def __init__(self, stateful: Stateful, device: torch.device, replicas: Replicas) -> None:
        self._stateful = stateful
        self._model: nn.Module = stateful.module
        self._device = device
        self._replicas = replicas
        self._dims: Tree = None  # the same for all calls
        self._lock = Lock()  # for calls that continue from `state`
        self._native = NativeTimeSteps()
        self.state: Tree = None

    def predict(
        self,
        data: Sequences,
        spec: Spec,
        out: Tree = None,
        *,
        reset: bool = True,
        squeeze: bool = False,
        undo: Tree = None,
        progress: bool = False,
        whole: bool = False,
        pooled: bool = False,
    ) -> Tree:
        """Run over all steps of all sequences; see `Estimator.predict`.

        Several threads may call it at once: they share only `state`, which each sets at its end.

        Parameters
        ----------
        data
            The sequences. Steps past their `lengths` do not count: outputs are NaN there (0 for
            integers), and the state stays. With an `order`, outputs are lists of arrays
            ``(T_i, K)`` in the caller's order.
        spec
            Its `batchsize` and `seqsize` set how much is run at once.
        out
            Where to write, see `Outputs`; None: new arrays.
        reset
            Start with a fresh state; False: continue from `state`.
        squeeze
            Leave out the last axis of outputs ``(T, N, 1)``.
        undo
            Applied to outputs before they are written: functions of a tensor, in the structure of
            the outputs, None for those that stay unchanged.
        progress
            Show a bar, on rank 0, if it takes longer than a second.
        whole
            Run whole series at once.
        pooled
            Repeat outputs ``(B, K)`` of whole sequences at each step.

        Raises
        ------
        ValueError, TypeError
            `data` or `out` are invalid; then nothing has been written.
        OSError
            An output could not be written; the message says where.
        """
        more = (squeeze, undo, progress, whole, pooled)
        if reset:
            return self._predict(data, spec, out, None, *more)
        with self._lock:
            return self._predict(data, spec, out, self.state, *more)

    def _predict(
        self,
        data: Sequences,
        spec: Spec,
        out: Tree,
        begin: Tree,
        squeeze: bool,
        undo: Tree,
        progress: bool,
        whole: bool,
        pooled: bool,
    ) -> Tree:
        """Run from the state `begin`."""
        if begin is not None:
            self._refuse_to_go_on_backwards()
        stateful = self._stateful.fresh()
        with in_mode(within(self._model), training=False), torch.no_grad():
            steps = data.steps if whole else min(spec.seqsize, data.steps)
            example, fresh = self._probe(stateful, data, steps, pooled=pooled)
            self._check_state(begin, data.count)
            finish = _finisher(example, undo, squeeze=squeeze)
            like = finish(example)
            computed = [a.dtype for a in tree_leaves(example)]
            with Outputs(out, tree_like(example, like), data, self._replicas, computed) as outputs:
                order = None if data.order is None else torch.from_numpy(data.order)
                start = self._reordered(begin, order)
                run = Pass(
                    self._runner(stateful, data, begin),
                    self._dims,
                    data,
                    spec,
                    finish,
                    like,
                    start,
                    whole=whole,
                    pooled=pooled,
                )
                if start is None:
                    run.ends = self._states_without_steps(data, fresh)
                bounds = _shares(data, self._replicas.comm.size)
                self._run(run, bounds, outputs, shown=progress and self._replicas.first)
                end = begin
                if tree_leaves(self._dims):
                    end = self._gather_states(run.ends, fresh, bounds)
                    end = self._reordered(end, None if order is None else order.argsort())
                outputs.finish()
        self.state = end
        return outputs.result

    def _runner(self, stateful: Stateful, data: Sequences, begin: Tree) -> Stateful | NativeForward:
        """Return what runs the model over chunks: C++ if it can."""
        if self._device.type != "cpu" or not isinstance(data.x, Source) or len(data.x.shape) != 3:
            return stateful
        try:
            native = NativeForward(self._model, data.x.shape[2])
        except NotNative:
            return stateful
        fits = native.dtype == data.dtype and (begin is None or native.can_start_from(begin))
        return native if fits else stateful

    def get_state(self) -> Tree:
        """Return a copy of `state`, as it is between two steps."""
        with self._lock:
            return tree_map(torch.clone, self.state)

    def native_step(self, x: object) -> Tensor | None:
        """Run one step in C++, given what the user has passed; None: `step` must run it."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self._native.run(x, self.state)
        finally:
            self._lock.release()

    def step(
        self, learner: Learner, given: object, x: Tree, *, squeeze: bool = False, undo: Tree = None
    ) -> Tree:
        """Run one step of all sequences, ``(N, F)``, from `state`; see `predict`.

        `given` is what the user has passed, of which `x` was made.
        """
        self._refuse_to_go_on_backwards()
        stateful = self._stateful.fresh()
        with self._lock:
            before = self.state
            with in_mode(within(self._model), training=False), torch.no_grad():
                count = tree_leaves(x)[0].shape[0]
                if self._dims is None:
                    self._dims = batch_dims(self._model, tree_map(lambda a: a.unsqueeze(0), x))
                self._check_state(before, count)
                stateful.state = before
                y = stateful(x)
                whole = tree_map(lambda a: a.unsqueeze(0), y)
                finished = _finisher(whole, undo, squeeze=squeeze)(whole)
            y = tree_like(y, [a.squeeze(0) for a in finished])
            self.state = stateful.state
            y, self.state = self._native.follow(
                learner, self._model, given, y, before, stateful.state
            )
        return y

    def _refuse_to_go_on_backwards(self) -> None:
        if is_bidirectional(self._model):
            raise ValueError(
                "the model has a bidirectional layer, which looks at later steps: it can predict "
                "whole series only, not continue from a state"
            )

    def _input(
        self, data: Sequences, make: Callable[[tuple[int, ...]], Tensor], steps: int = 2
    ) -> Tree:
        """Make an input of `steps` steps of three sequences."""
        x = tree_map(lambda s: make((steps, 3, *s.shape[2:])).to(s.dtype), data.x)
        return to_device(x, self._device)

    def _probe(
        self, stateful: Stateful, data: Sequences, most: int, *, pooled: bool
    ) -> tuple[Tree, Tree]:
        """Run the model on zeros, for three sequences; return its outputs and its state."""
        with untouched(self._device):
            try:
                steps = 2
                zeros = self._input(data, torch.zeros, steps)
                outputs = stateful(zeros)
            except Exception:  # a convolution needs more; a layer over all steps, as many
                steps = most if data.lengths is None else min(most, int(data.lengths.max()))
                zeros = self._input(data, torch.zeros, steps)
                stateful.state = None
                outputs = stateful(zeros)
        state, stateful.state = stateful.state, None
        if pooled:
            outputs = each_step(outputs, steps)
        for name, leaf in tree_paths(outputs, "the model's output"):
            if leaf.dim() < 3 or leaf.shape[:2] != (steps, 3):
                raise ValueError(
                    f"{name} must be (time, sequences, features): for an input of {steps} steps "
                    f"and 3 sequences it has the shape {tuple(leaf.shape)}"
                )
        if self._dims is None:
            self._dims = batch_dims(self._model, zeros) if tree_leaves(state) else state
        return outputs, state

    def _states_without_steps(self, data: Sequences, like: Tree) -> Tree:
        """Return the initial state of series if some have no steps, as these end in it.

        NaN if it cannot be found, so that predictions from it are noticed.
        """
        if data.lengths is None or data.lengths.all() or not tree_leaves(self._dims):
            return None
        generator = torch.Generator().manual_seed(0)
        x = self._input(data, lambda shape: torch.rand(shape, generator=generator))
        try:
            first = first_state(self._model, x)
        except (ValueError, TypeError):
            first = tree_map(lambda a: nothing(a.shape, a), like)
        return take_rows(first, self._dims, torch.zeros(data.count, dtype=torch.int64))

    def _check_state(self, state: Tree, count: int) -> None:
        if state is None:
            return
        wanted, got = ([name for name, _ in tree_paths(s, "state")] for s in (self._dims, state))
        if wanted != got:
            raise ValueError(
                "the state must be like what get_state returns after a step, with "
                f"{', '.join(wanted) or 'nothing'}; got {', '.join(got)}"
            )
        for dim, a in zip(tree_leaves(self._dims), tree_leaves(state), strict=True):
            if dim >= 0 and a.shape[dim] != count:
                raise ValueError(
                    f"the state is for {a.shape[dim]} sequences, but x has {count}: predict with "
                    "reset=True, or call reset_state() first"
                )

    def _run(
        self, run: Pass, bounds: list[tuple[int, int]], outputs: Outputs, *, shown: bool
    ) -> None:
        """Predict this rank's share, and in each round write what all ranks have predicted."""
        own = bounds[self._replicas.comm.rank]
        total = max(len(run.plan(*share)) for share in bounds)
        bar = Progress(total, shown=shown, label="predict", delay=_BAR_AFTER_SECONDS)
        with bar, closing(run.run(*own, self._device)) as predicted:
            for chunks in zip_longest(*(run.chunks(*share) for share in bounds)):
                outputs.write(chunks, next(predicted, []))
                bar.advance()
            next(predicted, None)  # past the last chunk, to set its last state
        for share in bounds:
            for chunk in run.tails(*share):
                outputs.fill(chunk, own=share == own)

    def _reordered(self, state: Tree, order: Tensor | None) -> Tree:
        return state if order is None else take_rows(state, self._dims, order)

    def _gather_states(self, state: Tree, like: Tree, bounds: list[tuple[int, int]]) -> Tree:
        """Join the states of all ranks' sequences."""
        if self._replicas.alone:
            return state
        count = bounds[-1][1]
        if state is None:  # a rank without sequences allocates it
            nobody = torch.empty(0, dtype=torch.int64)
            few = take_rows(like, self._dims, nobody)
            state = put_rows(None, self._dims, nobody, few, count)

        def gather(a: Tensor, dim: int) -> Tensor:
            if dim < 0:
                holder = next(r for r, (b, e) in enumerate(bounds) if e > b)
                return self._replicas.comm.broadcast_(a.contiguous(), holder)
            self._replicas.gather_(a, bounds, dim)
            return a

        return tree_map(gather, state, self._dims)


def _shares(data: Sequences, size: int) -> list[tuple[int, int]]:
    """Return each rank's consecutive sequences, with about the same number of steps on each."""
    if data.lengths is None:
        return [part(0, data.count, rank, size) for rank in range(size)]
    done = np.cumsum(data.lengths)
    ends = [int(np.searchsorted(done, done[-1] * (rank + 1) / size)) for rank in range(size - 1)]
    cuts = [0, *ends, data.count]
    return list(pairwise(cuts))


def _finisher(example: Tree, undo: Tree, *, squeeze: bool) -> Callable[[Tree], list[Tensor]]:
    """Return a function that turns a model's outputs into a list of the final ones."""
    count = len(tree_leaves(example))
    undoing = [None] * count if undo is None else matched(example, undo, "undo")

    def finish(outputs: Tree) -> list[Tensor]:
        finished = []
        # Dicts are read in the order of the example's keys.
        for a, back in zip(matched(example, outputs, "outputs"), undoing, strict=True):
            a = a if back is None else back(a)
            finished.append(a.squeeze(2) if squeeze and a.dim() == 3 and a.shape[2] == 1 else a)
        return finished

    return finish
