"""Updates in C++: whole chunks without autograd, for models that consist of known layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn, optim

from .._util.progress import Progress
from .._util.torch_internals import has_hooks, is_watched
from .._util.tree import tree_leaves, tree_map
from ..data.chunk_plan import Chunk
from ..data.sequences import Batch, Sequences
from ..distributed import Bucketizer
from ..distributed.bucketizer import check_finite
from ..errors import CheckpointError
from ..nn.ops import parallel_for
from ..nn.stateful import Stateful
from .loop import AfterUpdate, Trainer
from .native_layers import (
    End,
    LossKind,
    NativeModel,
    NativeStep,
    NotNative,
    Outcome,
    dropout_of,
    has_bf16,
    layers_of,
    loss_of,
    members_of,
    native_types,
    optimizer_of,
    pools,
    rows_of,
    states_of,
    with_rows,
)
from .native_update import Updater
from .spec import Spec
from .unchanged import Seen, forwards_in, is_unchanged, loss_in, modules_in

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["NativeTrainer", "native_obstacle"]


def native_obstacle(learner: Learner) -> str | None:
    """Return why `fit` does not update in C++, or None if it does."""
    try:
        _check(learner)
    except NotNative as reason:
        return str(reason)
    return None


class _Parts(NamedTuple):
    """What is trained: the same from a fit's start to its end."""

    model: nn.Module
    loss: Callable[..., Tensor]
    optimizer: optim.Optimizer
    spec: Spec


def _check(learner: Learner) -> None:
    if learner.device.type != "cpu":
        raise NotNative(f"the device is {learner.device.type}")
    if learner.compiles:
        raise NotNative("compile=True")
    if learner.precision.scales:
        raise NotNative(f"amp={learner.precision.amp!r}")
    if learner.spec.context:
        raise NotNative(f"spec.context={learner.spec.context}")
    _check_parts(_Parts(learner.model, learner.loss, learner.optimizer, learner.spec))


def _check_parts(parts: _Parts) -> None:
    if next(parts.model.buffers(), None) is not None:
        raise NotNative("the model has buffers")
    if _operators_do_more():
        raise NotNative("torch is set to something that only its own operators do")
    loss, _ = loss_of(parts.loss)
    optimizer_of(parts.optimizer)
    layers_of(parts.model, None, lambda _: (0, 0))
    if pools(parts.model) and not getattr(parts.loss, "per_sequence", False):
        raise NotNative("one output for each sequence, but a loss of each step")
    if len(members_of(parts.model)) > 1 and not loss.of_known:
        raise NotNative("a loss that does not know of members")


def _operators_do_more() -> bool:
    """Whether torch is set to something that its operators do besides computing."""
    watched = is_watched() or torch.is_anomaly_enabled() or not torch.is_grad_enabled()
    return watched or torch.is_autocast_enabled("cpu")


class NativeTrainer(Trainer):
    """A `Trainer` whose updates run in C++, as many chunks in a call as have been read together.

    It works on the memory of the model's parameters and of the optimizer's state, and on that of
    the state that is carried, so all of them are up to date after each call. What it cannot do,
    such as the first update of an optimizer, which makes its state, and batches that do not fit,
    which raise errors, is done by `Trainer`. On several ranks some may train on a chunk by torch,
    but all make the same updates.
    """

    def __init__(self, learner: Learner, position: Any) -> None:
        super().__init__(learner, position)
        self._updater: Updater | None = None
        self._step: _Step | None = None

    def _forward_precision(self) -> AbstractContextManager[object]:
        """Return a context without autocast, for what is left to torch: it rounds otherwise."""
        return contextlib.nullcontext()

    def _begin(self) -> None:
        super()._begin()
        self._updater = self._step = None
        if self._buckets is not None:
            self._buckets.stop_listening()

    def run(
        self,
        data: Sequences,
        chunks: Iterable[Chunk],
        progress: Progress,
        has_requests: Callable[[], bool],
        after_update: AfterUpdate,
    ) -> None:
        """Train on `chunks`; see `Trainer.run`."""
        position = self._position
        self._attention = has_requests
        self.stateful.state = position.state
        self._step = None  # hooks and modes may have come
        for group, batch in data.batch_groups(chunks):
            if group[0].index == 0:
                self.stateful.reset_state()
            if self._train_on_group(group, batch, data.steps, progress, after_update):
                break
        else:
            if self._held:
                after_update(self._release(group[-1]))
        self.settle()

    def _train_on_group(
        self,
        group: list[Chunk],
        batch: Batch | None,
        end: int,
        progress: Progress,
        after_update: AfterUpdate,
    ) -> bool:
        """Train on chunks of a block that ends at the step `end`; return whether to stop."""
        position = self._position
        first = 0
        refused = False
        while first < len(group):
            step = None if refused else self._ready(batch)
            outcome: Outcome | None = None
            if step is None or batch is None:
                part = None if batch is None else _part(group, batch, first, first + 1)
                attention = self._train_on(group[first], part)
                done, updates = 1, 0 if self._held else 1
            else:
                outcome, updates = self._train_natively(step, group, batch, first)
                done, attention = outcome.chunks, outcome.attention
            first += done
            if done and group[first - 1].t1 == end:
                self._keep_end(group[first - 1].block)
            progress.advance(position.loss, done)
            stops = updates > 0 and after_update(attention, updates)
            refused = outcome is not None and self._refuses(outcome, group, first)
            if stops:
                return True
        return False

    def _ready(self, batch: Batch | None) -> _Step | None:
        """Return the C++ step if it can train on a batch."""
        parts = _Parts(self._model, self._loss, self._optimizer, self._spec)
        try:
            if self._updater is None or not self._updater.is_current():
                self._updater = self._step = None
                self._updater = Updater(
                    parts.model, parts.optimizer, parts.spec, self._stepper.params, self._buckets
                )
            if self._step is not None and not self._step.is_current():
                self._step = None
            if self._step is None and batch is not None and isinstance(batch.xs, Tensor):
                bf16 = self._precision.amp == "bf16" and has_bf16()
                self._step = _Step(parts, self._updater, self._buckets, batch.xs, bf16=bf16)
        except NotNative:
            return None
        if self._step is None or batch is None or not self._step.fits(batch):
            return None
        return self._step

    def _train_natively(
        self, step: _Step, group: list[Chunk], batch: Batch, first: int
    ) -> tuple[Outcome, int]:
        """Train on chunks from number `first` on; return how that ended, and how many updates."""
        each = self._spec.accumulate
        last = min(first + each - self._held, len(group)) if self.one_by_one else len(group)
        sizes = [chunk.t1 - chunk.t0 for chunk in group[first:last]]
        part = _part(group, batch, first, last)
        self.stateful.state = step.take_state(
            self.stateful.state, part.xs.shape[1], self._position.origin
        )
        ends = range(first + each - self._held - 1, last, each)  # chunks with which updates end
        held = self._held, self._held_weight, float(self._held_loss)
        with contextlib.nullcontext() if self._buckets is None else self._buckets.reserved():
            losses, outcome, held = step.train(part, sizes, held, attention=self._attention())
        self._held, self._held_weight, self._held_loss = held
        for index, (value, weight) in zip(ends, losses, strict=False):
            if weight:
                self._losses.add(group[index], value, weight)
        return outcome, len(losses)

    def _refuses(self, outcome: Outcome, group: list[Chunk], number: int) -> bool:
        """Raise the error of the chunk before which C++ ended; true: leave the chunk to torch."""
        if outcome.end == End.not_finite:
            self._losses.check(group[number], outcome.loss)
        if outcome.end == End.nonfinite_gradient:
            check_finite(outcome.rank)
        return outcome.end not in (End.all, End.paused)  # a label that is no class

    def _update(self, norm: float | Tensor | None = None) -> None:
        """Make a step of the optimizer; on several ranks as the others do."""
        updater = self._updater
        if self._buckets is None or updater is None or isinstance(norm, Tensor):
            super()._update(norm)
        elif updater.has_gradients() and updater.is_current():
            updater.run(norm)
        else:
            super()._update(norm)


def _part(group: list[Chunk], batch: Batch, first: int, last: int) -> Batch:
    """Return the batch of some of a group's chunks."""
    if last - first == len(group):
        return batch
    begin = group[first].t0 - group[0].t0
    end = group[last - 1].t1 - group[0].t0
    lengths = batch.lengths
    if lengths is not None:
        lengths = (lengths - begin).clamp(0, end - begin)
        lengths = None if int(lengths.min()) == end - begin else lengths
    xs, ys, ws = tree_map(lambda a: a[begin:end], (batch.xs, batch.ys, batch.ws))
    return Batch(xs, ys, ws, lengths)


class _Step:
    """The C++ step of a model and a loss, as they are now.

    Parameters
    ----------
    parts
        Has them.
    updater
        Makes the updates.
    buckets
        Averages the gradients over ranks; None: one rank.
    x
        An input, ``(S, B, F)``.
    bf16
        Whether factors of products are rounded to bf16.

    Raises
    ------
    NotNative
        It cannot be made.
    """

    def __init__(
        self, parts: _Parts, updater: Updater, buckets: Bucketizer | None, x: Tensor, *, bf16: bool
    ) -> None:
        _check_parts(parts)
        if x.dim() != 3:
            raise NotNative("inputs have several dimensions of features")
        self._updater = updater
        self._model = parts.model
        self._dtype, self._features = updater.dtype, x.shape[2]
        accumulate = parts.spec.accumulate
        # Where layers write gradients: those of several chunks are added up.
        fresh = (
            [torch.zeros_like(p) for p in updater.params] if accumulate > 1 else updater.gradients
        )
        place = {id(p): gradient for p, gradient in zip(updater.params, fresh, strict=True)}

        def weights(p: Tensor | None) -> tuple[int, int]:
            return (0, 0) if p is None else (p.data_ptr(), place[id(p)].data_ptr())

        layers, self._outputs = layers_of(self._model, self._features, weights)
        self._loss, self._last_only = loss_of(parts.loss)
        self._loss.members = len(members_of(self._model))
        self._seen: Seen = self._look(parts.loss)
        self._told_ends = Stateful(self._model).told_ends
        self._draws = any(dropout_of(module) > 0 for module in self._model.modules())
        self._fresh = fresh  # keeps the memory
        model_type, _, step_type = native_types(self._dtype)
        self._layers: NativeModel = model_type(layers, parallel_for)
        self._step: NativeStep = step_type(
            self._layers, self._loss, updater.native, accumulate, updater.numbered(fresh),
            None if buckets is None else buckets.host.native, bf16,
        )  # fmt: skip
        self._tree: Any = None

    def _look(self, loss: Callable[..., Tensor]) -> Seen:
        """Return what it is made for."""
        (objects, containers), (more, of_loss) = modules_in(self._model), loss_in(loss)
        return (*objects, *more), (*containers, *of_loss), tuple(forwards_in(self._model)), ()

    def is_current(self) -> bool:
        """Whether the model still is that which it was made for, and nobody looks on."""
        watched = _operators_do_more() or any(map(has_hooks, self._updater.params))
        return not watched and is_unchanged(*self._seen)

    def fits(self, batch: Batch) -> bool:
        """Whether it can train on a batch: if not, torch raises, or can."""
        x, y, ws = batch.xs, batch.ys, batch.ws
        if batch.lengths is not None and not self._told_ends:
            return False
        if self._loss.of_known and isinstance(y, tuple):  # with weights
            y, weights = y
            if not (isinstance(weights, Tensor) and weights.shape == y.shape):
                return False
        elif self._loss.part_weights:
            return False
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() == y.dim() == 3):
            return False
        if x.shape[:2] != y.shape[:2] or x.shape[2] != self._features or x.dtype != self._dtype:
            return False
        if ws is not None and not (isinstance(ws, Tensor) and ws.dim() == 2):
            return False
        if self._loss.kind == LossKind.cross_entropy:
            return y.shape[2] == 1 and self._outputs > 1 and y.dtype in _LABELS
        each = len(self._loss.parameters) if self._loss.kind == LossKind.pinball else 1
        wanted = y.shape[2] * each * self._loss.members
        return wanted == self._outputs and (y.is_floating_point() or y.dtype in _LABELS)

    def take_state(self, state: Any, sequences: int, origin: str | None) -> Any:
        """Continue from a state; return that which is kept up to date.

        `origin` is the file that it may be from, which another program may have written.
        """
        if state is not None and state is self._tree:
            return state
        self._tree, own = states_of(self._model, sequences, self._updater.params[0].detach())
        if state is not None:
            leaves = tree_leaves(state)
            there, here = ([tuple(a.shape) for a in states] for states in (leaves, own))
            if there != here:
                raise CheckpointError(
                    f"{origin} is from another model: its state has the shapes {there}, this "
                    f"model's {here}"
                )
            for to, given in zip(own, leaves, strict=True):
                to.copy_(given)
        self._layers.set_state([tensor.data_ptr() for tensor in own])
        return self._tree

    def train(
        self, batch: Batch, sizes: list[int], held: tuple[int, float, float], *, attention: bool
    ) -> tuple[list[tuple[float, float]], Outcome, tuple[int, float, float]]:
        """Train on chunks of these numbers of time steps; see ``_step.pyi``."""
        if held[1]:
            self._updater.take_gradients()
        labels = self._loss.kind == LossKind.cross_entropy
        x = with_rows(batch.xs)
        ys, weights = batch.ys if isinstance(batch.ys, tuple) else (batch.ys, None)
        y = with_rows(ys.to(torch.int64 if labels else self._dtype))
        if weights is not None:
            y, weights = y.contiguous(), weights.to(self._dtype).contiguous()
        w = None if batch.ws is None else batch.ws.to(self._dtype)
        lengths = None if batch.lengths is None else batch.lengths.contiguous()
        before = torch.get_rng_state() if self._draws else None
        seeds = _seeds(len(sizes)) if self._draws else []
        found = self._step.train(
            rows_of(x), rows_of(y), 0 if weights is None else weights.data_ptr(), labels,
            self._last_only, (0, 0, 0) if w is None else rows_of(w), sizes, x.shape[1],
            0 if lengths is None else lengths.data_ptr(), seeds,
            *self._updater.numbers(), attention, held,
        )  # fmt: skip
        losses, outcome, (chunks, weight, _) = found
        if before is not None and outcome.chunks < len(sizes):
            torch.set_rng_state(before)  # as if only these had been drawn
            _seeds(outcome.chunks)
        counts = weight > 0 or (not chunks and (not losses or losses[-1][1] > 0))
        self._updater.give_gradients(some=counts)
        return found


def _seeds(count: int) -> list[int]:
    """Draw seeds of chunks, the same ones together or one by one."""
    return torch.randint(2**62, (count,)).tolist()


_LABELS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
