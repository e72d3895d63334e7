"""The training loop: truncated back-propagation through time, chunk by chunk."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._util.progress import Progress
from .._util.torch_internals import multiply_each_, run_backward
from .._util.tree import tree_leaves
from ..data.chunk_plan import Chunk
from ..data.sequences import Batch, Sequences, to_device
from ..distributed import Averaged, Bucketizer
from ..distributed.bucketizer import check_finite
from ..errors import DivergedError
from ..nn.earlier_steps import in_context
from ..nn.lengths import on_host
from ..nn.members import trained_apart
from ..nn.ops import sum_of_squares
from ..nn.stateful import Stateful
from .argument_checks import check_weighted
from .first_batch import measure_first_batch, measures
from .optimizer_step import OptimizerStep
from .position import Position

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["Trainer", "chunk_loss", "chunk_weight"]

AfterUpdate = Callable[..., bool]

# On a GPU reading the loss waits for the device: done once per this many updates.
_LOSSES_IN_FLIGHT = 16


def chunk_loss(loss: Callable[..., Tensor], m: Stateful, batch: Batch) -> Tensor:
    """Call the user's loss on a chunk, with weights if there are any."""
    xs, ys, ws, m.lengths = batch
    try:
        value = loss(m, xs, ys) if ws is None else loss(m, xs, ys, ws)
    except TypeError:
        if ws is not None:
            check_weighted(loss)
        raise
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the loss must return a tensor with one element, got {what}")
    return value if value.dim() == 0 else value.reshape(())


def chunk_weight(chunk: Chunk, batch: Batch | None) -> float:
    """Return the weight of a chunk's mean loss: its samples, or the sum of their weights."""
    if batch is None:
        return 0.0
    if batch.ws is None:
        return float((chunk.t1 - chunk.t0) * (chunk.n1 - chunk.n0))
    parts = [on_host(ws) for ws in tree_leaves(batch.ws)]
    if parts[0].dim() == 2:
        return float(parts[0].sum(dtype=torch.float64))
    # Weights of each target: a sample's weight is their mean.
    total = torch.stack([ws.sum(dtype=torch.float64) for ws in parts]).sum()
    return float(total / sum(math.prod(ws.shape[2:]) for ws in parts))


class _Losses:
    """Adds the updates' losses to a position; they must be finite.

    Parameters
    ----------
    position
        Its sums are updated.
    in_flight
        What is on a device is read when this many are waiting.
    finite
        Whether gradients that were averaged must be finite, too.
    """

    def __init__(self, position: Position, in_flight: int, *, finite: bool) -> None:
        self._position = position
        self._in_flight = in_flight
        self._finite = finite
        self._waiting: list[tuple[Chunk, Tensor | Averaged, float]] = []

    def add(self, chunk: Chunk, loss: float | Tensor, weight: float) -> None:
        """Take a loss; raise `DivergedError` if one that is read now is not finite."""
        if isinstance(loss, Tensor):
            self._wait((chunk, loss.detach(), weight))
        else:
            self._add_value(self.check(chunk, loss), weight)

    def add_averaged(self, chunk: Chunk, averaged: Averaged) -> None:
        """Take the mean loss of an update of all ranks."""
        self._wait((chunk, averaged, averaged.weight))
        if averaged.facts is None:
            self.look()

    def _wait(self, update: tuple[Chunk, Tensor | Averaged, float]) -> None:
        self._waiting.append(update)
        # The first is read at once, so that there always is a loss to show.
        if len(self._waiting) >= self._in_flight or math.isnan(self._position.loss):
            self.look()

    def _add_value(self, loss: float, weight: float) -> None:
        position = self._position
        total, weights = position.sums
        position.sums = total + loss * weight, weights + weight
        position.loss = loss

    def look(self) -> None:
        """Read the waiting losses."""
        waiting, self._waiting = self._waiting, []
        for chunk, update, weight in waiting:
            value = update.item() if isinstance(update, Tensor) else update.value
            loss = self.check(chunk, value)
            if self._finite and isinstance(update, Averaged):
                check_finite(update.nonfinite_rank)
            self._add_value(loss, weight)

    def check(self, chunk: Chunk, loss: float) -> float:
        """Return `loss` if it is finite, else raise."""
        if math.isfinite(loss):
            return loss
        raise DivergedError(
            f"the loss is {loss} in epoch {self._position.epoch}, block {chunk.block}, chunk "
            f"{chunk.index} (steps {chunk.t0} to {chunk.t1}, sequences {chunk.n0} to {chunk.n1}): "
            "check x and y for NaN, lower the learning rate or set spec.clip_norm"
        )


class Trainer:
    """Makes updates over chunks, averaged over the ranks; a context manager.

    Parameters
    ----------
    learner
        What is trained.
    position
        Where to start; kept up to date.

    Attributes
    ----------
    stateful
        The model with the state that is carried from chunk to chunk.
    one_by_one
        Whether somebody must know of each update.
    """

    one_by_one = True

    reads_norm = True
    """Whether an update may depend on the gradients' norm as a number."""

    def __init__(self, learner: Learner, position: Position) -> None:
        self._learner = learner
        self._position = position
        self._on_cpu = learner.device.type == "cpu"
        self._reads_at_once = self._can_read_at_once()
        self._losses = _Losses(
            position,
            1 if self._reads_at_once else _LOSSES_IN_FLIGHT,
            finite=not learner.precision.scales,
        )
        self.stateful: Stateful = Stateful(in_context(learner.model, learner.spec.context))
        self._loss = learner.objective
        self._current_optimizer = learner.current_optimizer
        self._optimizer = learner.current_optimizer()
        self._stepper = OptimizerStep(self._optimizer)
        self._spec = spec = learner.spec
        self._device = learner.device
        self._replicas = learner.replicas
        self._model = learner.model
        self._precision = learner.precision
        self._clipped: list[list[nn.Parameter]] = []  # together
        self._accumulates = spec.accumulate > 1
        self._held = 0  # accumulated chunks,
        self._held_weight = 0.0  # their weight,
        self._held_loss: float | Tensor = 0.0  # and their weighted losses
        self._buckets: Bucketizer | None = None
        self._attention: Callable[[], bool] = bool  # false

    def _forward_precision(self) -> AbstractContextManager[object]:
        """Return the context in which losses are computed."""
        return self._precision.forward

    def _can_read_at_once(self) -> bool:
        """Whether nobody waits for a device if a loss is read as soon as it is there."""
        return self._on_cpu

    def __enter__(self) -> Trainer:
        try:
            self._begin()
        except BaseException:
            self._end(failed=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(failed=kind is not None)

    def begin_epoch(self) -> None:
        """Check again what is trained: callbacks may have replaced, frozen or unfrozen layers."""
        now = self._look()
        same = len(now) == len(self._seen) and all(map(operator.is_, now, self._seen))
        if not all(self._replicas.in_common([same])):
            self._end(failed=False)
            self._begin()

    def _look(self) -> list[Any]:
        """Return the model's trainable parameters, and those of the optimizer."""
        trained: list[Any] = [p for p in self._model.parameters() if p.requires_grad]
        for group in self._optimizer.param_groups:
            trained += [None, *group["params"]]
        return trained

    def _begin(self) -> None:
        self._optimizer = self._current_optimizer()
        params = list(self._model.parameters())
        trained = [p for p in params if p.requires_grad]
        others = [p for p in params if not p.requires_grad]
        self._stepper = OptimizerStep(self._optimizer, trained, others)
        self._seen = self._look()
        self._clipped = trained_apart(self._model, self._stepper.stepped())
        if not self._replicas.alone:
            # On a GPU the answer comes late: `_Losses` reads it.
            raises = self._reads_at_once and not self._precision.scales
            nonfinite = "raise" if raises else "skip"
            self._buckets = Bucketizer(
                self._model, self._replicas.comm, nonfinite=nonfinite, norm=self._norm_is_averaged()
            )
            self._replicas.exchange = self._buckets.exchange
            self._replicas.sync(self._optimizer)
        self._stepper.__enter__()

    def _norm_is_averaged(self) -> bool:
        """Whether `clip_norm` wants the norm of just the gradients that are averaged."""
        spec = self._spec
        if spec.clip_norm is None or spec.clip_value is not None or self._precision.scales:
            return False
        return self.reads_norm and self._stepper.steps_all() and len(self._clipped) == 1

    def _end(self, *, failed: bool) -> None:
        self._stepper.__exit__()
        if self._buckets is None:
            return
        try:
            if failed:
                self._buckets.abandon()
        finally:
            self._buckets.close()
            self._buckets = None

    def run(
        self,
        data: Sequences,
        chunks: Iterable[Chunk],
        progress: Progress,
        has_requests: Callable[[], bool],
        after_update: AfterUpdate,
    ) -> None:
        """Train on `chunks`, the rest of an epoch, from the current position.

        After each update, ``after_update(attention)`` returns whether to end here. `attention`:
        whether ``has_requests()`` was true on a rank: it has something that all must agree on.
        Where nobody needs to know of each update, ``after_update(attention, updates)`` counts
        several.
        """
        position = self._position
        self._attention = has_requests
        unmeasured = measures(self._model)
        self.stateful.state = position.state
        for chunk, batch in data.batches(chunks):
            if chunk.index == 0:
                self.stateful.reset_state()
            if unmeasured:
                run = functools.partial(chunk_loss, self._learner.loss)
                measure_first_batch(self._learner, batch, chunk_weight(chunk, batch), run)
                unmeasured = measures(self._model)
            attention = self._train_on(chunk, batch)
            if chunk.t1 == data.steps:
                self._keep_end(chunk.block)
            progress.advance(position.loss)
            if not self._held and after_update(attention):
                break
        else:
            if self._held:
                after_update(self._release(chunk))
        self.settle()

    def settle(self) -> None:
        """Bring the position up to date: losses come late, the state only here."""
        self._losses.look()
        self._position.state = self.stateful.state

    def _keep_end(self, block: int) -> None:
        """Keep the state at a block's end, if validation continues from it."""
        if self._position.ends is not None:
            state = self._precision.widened(self.stateful.get_state(), self._model)
            self._position.ends[block] = state

    def _train_on(self, chunk: Chunk, batch: Batch | None) -> bool:
        """Train on a chunk; return whether a rank asks for attention."""
        if self._accumulates:
            return self._hold(chunk, batch)
        self._stepper.zero_grad()
        weight = chunk_weight(chunk, batch)
        loss = self._forward(batch) if batch is not None else None
        if not weight:
            loss = None  # nothing in it counts
        if self._buckets is not None:
            value = 0.0 if loss is None else self._value(chunk, loss)
            self._buckets.start(weight, value, attention=self._attention())
        if loss is not None:
            run_backward(self._precision.scaled(loss))
        if self._buckets is not None:
            return self._average(chunk, weight)
        if loss is not None:
            self._losses.add(chunk, self._value(chunk, loss), weight)
            self._update()
        return self._attention()

    def _value(self, chunk: Chunk, loss: Tensor) -> float | Tensor:
        """Return a loss as a finite number; on a GPU as a tensor, which nobody waits for."""
        return self._losses.check(chunk, loss.item()) if self._reads_at_once else loss.detach()

    def _forward(self, batch: Batch) -> Tensor:
        if not self._on_cpu:
            batch = to_device(batch, self._device)
        with self._forward_precision():
            loss = chunk_loss(self._loss, self.stateful, batch)
        self.stateful.detach()
        return loss

    def _average(self, chunk: Chunk, weight: float) -> bool:
        averaged = self._wait(chunk, weight)
        if averaged.weight:
            norm = averaged.norm_tensor if averaged.facts is not None else averaged.norm
            self._update_in_place(norm)
        return averaged.attention

    def _wait(self, chunk: Chunk, weight: float) -> Averaged:
        """End an update's average; `weight` is this rank's."""
        assert self._buckets is not None
        averaged = self._buckets.wait()
        self._replicas.trained(weight)
        if averaged.weight:
            self._losses.add_averaged(chunk, averaged)
        return averaged

    def _hold(self, chunk: Chunk, batch: Batch | None) -> bool:
        """Accumulate a chunk's gradients; update when there are enough."""
        if not self._held:
            self._stepper.zero_grad()
        weight = chunk_weight(chunk, batch)
        if batch is not None:
            loss = self._accumulate(batch, weight)
            if weight:
                value = self._value(chunk, loss)
                if isinstance(value, Tensor):
                    value = value.double()
                self._held_weight += weight
                self._held_loss = self._held_loss + weight * value
        self._held += 1
        return self._release(chunk) if self._held == self._spec.accumulate else False

    def _accumulate(self, batch: Batch, weight: float) -> Tensor:
        """Return a batch's loss; add its gradients, times `weight`, to those that are held."""
        loss = self._forward(batch)
        if weight:
            with self._apart():
                run_backward(self._precision.scaled(loss * weight))
        return loss

    def _apart(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager for gradients that are not yet to be averaged."""
        return contextlib.nullcontext() if self._buckets is None else self._buckets.no_sync()

    def _release(self, chunk: Chunk) -> bool:
        """Update with the mean of the accumulated gradients, over all their samples.

        `chunk` is the last of them.
        """
        weight, value = self._held_weight, self._held_loss
        self._held, self._held_weight, self._held_loss = 0, 0.0, 0.0
        value = value / (weight or 1.0)
        scale = 1 / (weight or 1.0)
        if self._buckets is not None:
            self._buckets.start(weight, value, attention=self._attention(), scale=scale)
            return self._average(chunk, weight)
        if weight:
            grads = [p.grad for p in self._model.parameters() if p.grad is not None]
            with torch.no_grad():
                multiply_each_(grads, scale)
            self._losses.add(chunk, value, weight)
            self._update_in_place()
        return self._attention()

    def _update_in_place(self, norm: float | Tensor | None = None) -> None:
        """`_update`, where each parameter's gradient is at the same place every time."""
        self._update(norm)

    def _update(self, norm: float | Tensor | None = None) -> None:
        """Make a step of the optimizer; `norm` is that of all gradients, if it is known."""
        spec = self._spec
        self._stepper.drop_others()
        self._precision.unscale(self._optimizer)
        if spec.clip_value is not None:
            nn.utils.clip_grad_value_(self._stepper.stepped(), spec.clip_value)
        if spec.clip_norm is not None:
            for params in self._clipped:
                self._clip(params, spec.clip_norm, norm)
        if self._precision.scales:
            self._precision.step(self._optimizer)
        else:
            self._stepper.step()

    def _clip(self, params: list[nn.Parameter], most: float, norm: float | Tensor | None) -> None:
        """Clip the gradients of parameters to the norm `most`."""
        if isinstance(norm, Tensor):
            nn.utils.clip_grads_with_norm_(params, most, norm)
            return
        grads = [p.grad for p in params if p.grad is not None]
        if norm is None and self.reads_norm:
            squares = sum_of_squares(grads)
            norm = None if squares is None else math.sqrt(squares)
        if norm is None:
            # Where gradients are not finite they become NaN: the scaler knows, and skips them.
            nn.utils.clip_grads_with_norm_(params, most, nn.utils.get_total_norm(grads))
            return
        factor = most / (norm + 1e-6)
        if not factor >= 1 and (not self._precision.scales or math.isfinite(norm)):
            with torch.no_grad():
                multiply_each_(grads, factor)
