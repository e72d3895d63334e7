"""The training loop: truncated back-propagation through time, chunk by chunk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .data.chunks import Chunk
from .data.sequences import Batch, Sequences
from .distributed import Bucketizer
from .errors import NonFiniteError
from .flat import FlatOptimizer
from .parallel import Replicas
from .progress import Progress
from .spec import Spec
from .stateful import Stateful
from .tree import Tree, tree_map

__all__ = ["LossMean", "Trainer", "chunk_loss", "chunk_weight", "to_device"]

# On a GPU a look at the loss waits for the device: done once per this many steps.
_LOSSES_IN_FLIGHT = 16


def to_device(tree: Tree, device: torch.device) -> Tree:
    """Move tensors to `device`, in the order in which the device is given work."""
    if device.type == "cpu":
        return tree
    return tree_map(lambda a: a.to(device, non_blocking=True), tree)


def chunk_loss(loss: Callable[..., Tensor], m: Stateful, batch: Batch) -> Tensor:
    """Call the user's loss on a chunk, with weights if there are any."""
    xs, ys, ws, m.lengths = batch
    value = loss(m, xs, ys) if ws is None else loss(m, xs, ys, ws)
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the loss must return a tensor with one element, got {what}")
    return value if value.dim() == 0 else value.reshape(())


def _backward(loss: Tensor) -> None:
    """Call ``loss.backward()``, less what that does to find out that it is given one number."""
    if type(loss) is not Tensor:
        loss.backward()  # type: ignore[no-untyped-call]
        return
    # Not one that is kept: a parameter's gradient may be a view of it, and be clipped in place.
    one = torch.ones_like(loss)
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def chunk_weight(chunk: Chunk, batch: Batch | None) -> float:
    """How much a chunk's mean loss counts: its samples, or their weights' sum."""
    if batch is None:
        return 0.0
    if batch.ws is not None:
        return float(batch.ws.sum(dtype=torch.float64))
    return float((chunk.t1 - chunk.t0) * (chunk.n1 - chunk.n0))


class LossMean:
    """The weighted mean of the chunks' losses, which must be finite.

    Parameters
    ----------
    where
        What errors say the chunks belong to, such as ``"epoch 3"``.
    in_flight
        Losses are looked at when this many have come in.
    """

    def __init__(self, where: str, in_flight: int = 1) -> None:
        self._where = where
        self._in_flight = in_flight
        self._waiting: list[tuple[Chunk, Tensor, float]] = []
        self._sum = 0.0
        self._weight = 0.0
        self.last = math.nan

    def add(self, chunk: Chunk, loss: Tensor, weight: float) -> None:
        """Take a chunk's loss; raise `NonFiniteError` if one that is looked at is not finite."""
        if self._in_flight == 1:
            self.add_value(self.check(chunk, loss.item()), weight)
            return
        self._waiting.append((chunk, loss.detach(), weight))
        if len(self._waiting) >= self._in_flight:
            self._look()

    def add_value(self, loss: float, weight: float) -> None:
        """Take a loss that is known to be finite."""
        self._sum += loss * weight
        self._weight += weight
        self.last = loss

    def _look(self) -> None:
        for chunk, loss, weight in self._waiting:
            self.add_value(self.check(chunk, loss.item()), weight)
        self._waiting.clear()

    def check(self, chunk: Chunk, loss: float) -> float:
        """Return `loss` if it is finite."""
        if math.isfinite(loss):
            return loss
        raise NonFiniteError(
            f"the loss is {loss} in {self._where}, block {chunk.block}, chunk {chunk.index} "
            f"(steps {chunk.t0} to {chunk.t1}, sequences {chunk.n0} to {chunk.n1}): check x and y "
            "for NaN, lower the learning rate or set spec.clip_norm"
        )

    @property
    def mean(self) -> float:
        """The mean over all chunks so far."""
        self._look()
        return self._sum / self._weight if self._weight else math.nan


class Trainer:
    """Makes steps of an optimizer over chunks; a context manager, which averages over the ranks.

    Parameters
    ----------
    model, loss, optimizer, spec
        As in `Estimator`.
    device
        Where the model is.
    replicas
        The ranks to average over.

    Attributes
    ----------
    ends
        If it is a dict: where each block's last state goes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        spec: Spec,
        device: torch.device,
        replicas: Replicas,
    ) -> None:
        self._stateful = Stateful(model)
        self._loss = loss
        self._optimizer = optimizer
        params = (p for p in model.parameters() if p.requires_grad)
        self._flat = FlatOptimizer(optimizer, params, replicas.in_common)
        self._spec = spec
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._replicas = replicas
        self._model = model
        self._buckets: Bucketizer | None = None
        self.ends: dict[int, Tree] | None = None

    def __enter__(self) -> Trainer:
        if not self._replicas.alone:
            self._buckets = Bucketizer(self._model, self._replicas.comm)
            self._replicas.sync(self._optimizer)
        self._flat.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._flat.__exit__()
        if self._buckets is None:
            return
        try:
            if kind is not None:
                self._buckets.abandon()
        finally:
            self._buckets.close()
            self._buckets = None

    def run(
        self, data: Sequences, chunks: Iterable[Chunk], where: str, progress: Progress
    ) -> float:
        """Train on `chunks` and return the mean loss; `where` names the epoch in errors."""
        waits = not self._on_cpu and self._replicas.alone
        losses = LossMean(where, _LOSSES_IN_FLIGHT if waits else 1)
        for chunk, batch in data.batches(chunks):
            if chunk.index == 0:
                self._stateful.reset_state()
            self._step(chunk, batch, losses)
            if self.ends is not None and chunk.t1 == data.steps:
                self.ends[chunk.block] = self._stateful.get_state()
            progress.step(losses.last)
        return losses.mean

    def _step(self, chunk: Chunk, batch: Batch | None, losses: LossMean) -> None:
        self._flat.zero_grad()
        weight = chunk_weight(chunk, batch)
        loss = None
        if batch is not None:
            if not self._on_cpu:
                batch = to_device(batch, self._device)
            loss = chunk_loss(self._loss, self._stateful, batch)
            self._stateful.detach()
        if not weight:
            loss = None  # nothing in it counts
        if self._buckets is not None:
            value = 0.0 if loss is None else losses.check(chunk, loss.item())
            self._buckets.start(weight, value)
        if loss is not None:
            _backward(loss)
        if self._buckets is not None:
            averaged = self._buckets.wait()
            if averaged.weight:
                losses.add_value(averaged.value, averaged.weight)
                self._update()
        elif loss is not None:
            losses.add(chunk, loss, weight)
            self._update()

    def _update(self) -> None:
        spec = self._spec
        self._flat.gather()
        if spec.clip_value is not None:
            nn.utils.clip_grad_value_(self._flat.gathered(), spec.clip_value)
        if spec.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._flat.gathered(), spec.clip_norm)
        self._flat.step()


def evaluate(
    model: nn.Module,
    loss: Callable[..., Tensor],
    data: Sequences,
    chunks: Iterable[Chunk],
    device: torch.device,
    replicas: Replicas,
    *,
    states: dict[int, Tree] | None = None,
    warmup: int = 0,
) -> float:
    """Return the mean loss over `chunks` without training; the model is in evaluation mode.

    Parameters
    ----------
    model, loss, data, chunks, device, replicas
        What, on what, where.
    states
        The state in which each block starts; None: a fresh one.
    warmup
        How many steps at the begin of each block only bring the model into its state.
    """
    stateful = Stateful(model)
    total = weights = 0.0
    with torch.no_grad():
        for chunk, batch in data.batches(_divided(chunks, warmup)):
            if chunk.index == 0:
                stateful.set_state(None if states is None else states.get(chunk.block))
            if batch is None:
                continue
            batch = to_device(batch, device)
            if chunk.t1 <= warmup:
                stateful.lengths = batch.lengths
                stateful(batch.xs)
                continue
            weight = chunk_weight(chunk, batch)
            value: Any = chunk_loss(loss, stateful, batch)
            if weight:
                total += weight * float(value)
                weights += weight
    mean, weights = replicas.mean_loss(total / weights if weights else 0.0, weights)
    return mean if weights else math.nan


def _divided(chunks: Iterable[Chunk], step: int) -> Iterator[Chunk]:
    """Divide chunks in which `step` lies there."""
    for chunk in chunks:
        if chunk.t0 < step < chunk.t1:
            yield dataclasses.replace(chunk, t1=step)
            chunk = dataclasses.replace(chunk, t0=step, index=max(chunk.index, 1))  # goes on
        yield chunk
