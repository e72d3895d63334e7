"""The training loop: truncated back-propagation through time, chunk by chunk."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import check_weighted
from .context import in_context
from .data.chunks import Chunk
from .data.sequences import Batch, Sequences
from .distributed import Bucketizer
from .errors import NonFiniteError
from .flat import FlatOptimizer
from .lengths import beside
from .parallel import Replicas
from .precision import Precision
from .progress import Progress
from .spec import Spec
from .stateful import Stateful
from .tree import Tree, tree_leaves, tree_map

__all__ = ["LossMean", "Trainer", "chunk_loss", "chunk_weight", "to_device"]

AfterStep = Callable[[float, bool], bool]

# On a GPU a look at the loss waits for the device: done once per this many steps.
_LOSSES_IN_FLIGHT = 16


def to_device(tree: Tree, device: torch.device) -> Tree:
    """Move tensors to `device`, in the order in which the device is given work."""
    if device.type == "cpu":
        return tree
    moved = tree_map(lambda a: a.to(device, non_blocking=True), tree)
    if isinstance(tree, Batch) and tree.lengths is not None and tree.lengths.is_cpu:
        beside(moved.lengths, tree.lengths)
    return moved


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
    if batch.ws is None:
        return float((chunk.t1 - chunk.t0) * (chunk.n1 - chunk.n0))
    if isinstance(batch.ws, Tensor) and batch.ws.dim() == 2:
        return float(batch.ws.sum(dtype=torch.float64))
    # Of each target: what samples count for on average.
    parts = tree_leaves(batch.ws)
    total = torch.stack([ws.sum(dtype=torch.float64) for ws in parts]).sum()
    return float(total / sum(math.prod(ws.shape[2:]) for ws in parts))


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
        self.sums = (0.0, 0.0)  # of weighted losses, of weights
        self.last = math.nan

    def add(self, chunk: Chunk, loss: Tensor, weight: float) -> None:
        """Take a chunk's loss; raise `NonFiniteError` if one that is looked at is not finite."""
        if self._in_flight == 1:
            self.add_value(self.check(chunk, loss.item()), weight)
            return
        self._waiting.append((chunk, loss.detach(), weight))
        if len(self._waiting) >= self._in_flight:
            self.look()

    def add_value(self, loss: float, weight: float) -> None:
        """Take a loss that is known to be finite."""
        total, weights = self.sums
        self.sums = total + loss * weight, weights + weight
        self.last = loss

    def look(self) -> None:
        """Look at what has not been looked at."""
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
    def weight(self) -> float:
        """The weights of all chunks so far."""
        self.look()
        return self.sums[1]

    @property
    def mean(self) -> float:
        """The mean over all chunks so far."""
        self.look()
        total, weights = self.sums
        return total / weights if weights else math.nan


class Trainer:
    """Makes steps of an optimizer over chunks; a context manager, which averages over the ranks.

    Parameters
    ----------
    model, loss
        As in `Estimator`.
    optimizer
        Returns the optimizer of what the model trains now, or raises.
    spec
        As in `Estimator`.
    device
        Where the model is.
    replicas
        The ranks to average over.
    precision
        In what the forward pass computes.

    Attributes
    ----------
    stateful
        The model with the state that goes on from chunk to chunk.
    ends
        If it is a dict: where each block's last state goes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: Callable[[], torch.optim.Optimizer],
        spec: Spec,
        device: torch.device,
        replicas: Replicas,
        precision: Precision,
    ) -> None:
        self.stateful = Stateful(in_context(model, spec.context))
        self._loss = loss
        self._current_optimizer = optimizer
        self._optimizer = optimizer()
        self._flat = FlatOptimizer(self._optimizer, ())
        self._spec = spec
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._replicas = replicas
        self._model = model
        self._precision = precision
        self._accumulates = spec.accumulate > 1
        self._held = 0  # chunks whose gradients wait for others',
        self._held_weight = 0.0  # weight,
        self._held_loss = 0.0  # and weighted losses
        self._buckets: Bucketizer | None = None
        self.ends: dict[int, Tree] | None = None
        self._attention: Callable[[], bool] = bool  # false

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
        """Look again at what is trained: callbacks may have replaced, frozen, unfrozen layers."""
        now = self._look()
        same = len(now) == len(self._seen) and all(map(operator.is_, now, self._seen))
        if not all(self._replicas.in_common([same])):
            self._end(failed=False)
            self._begin()

    def _look(self) -> list[Any]:
        """Return what the model trains, and what the optimizer has."""
        trained: list[Any] = [p for p in self._model.parameters() if p.requires_grad]
        for group in self._flat.groups():
            trained += [None, *group]
        return trained

    def _begin(self) -> None:
        self._optimizer = self._current_optimizer()
        params = list(self._model.parameters())
        trained = [p for p in params if p.requires_grad]
        others = [p for p in params if not p.requires_grad]
        self._flat = FlatOptimizer(self._optimizer, trained, self._replicas.in_common, others)
        self._seen = self._look()
        if not self._replicas.alone:
            nonfinite = "skip" if self._precision.scales else "raise"
            self._buckets = Bucketizer(self._model, self._replicas.comm, nonfinite=nonfinite)
            self._replicas.sync(self._optimizer)
        self._flat.__enter__()

    def _end(self, *, failed: bool) -> None:
        self._flat.__exit__()
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
        losses: LossMean,
        progress: Progress,
        asks: Callable[[], bool],
        after_step: AfterStep,
    ) -> None:
        """Train on `chunks`; their losses go to `losses`.

        After each step of the optimizer ``after_step(loss, attention)`` is called, which returns
        whether to end here; `attention`: whether ``asks()`` was true on a rank, which then has
        something that all must agree upon.
        """
        self._attention = asks
        for chunk, batch in data.batches(chunks):
            if chunk.index == 0:
                self.stateful.reset_state()
            attention = self._step(chunk, batch, losses)
            if self.ends is not None and chunk.t1 == data.steps:
                self.ends[chunk.block] = self.stateful.get_state()
            progress.step(losses.last)
            if not self._held and after_step(losses.last, attention):
                return
        if self._held:
            attention = self._release(losses)
            after_step(losses.last, attention)

    def optimizer_state(self) -> dict[str, Any]:
        """Return what the optimizer's ``state_dict`` would be outside of `fit`."""
        return self._flat.state_dict()

    def new_losses(self, where: str) -> LossMean:
        """Return what an epoch's losses go to; `where` names the epoch in errors."""
        waits = not self._on_cpu and self._replicas.alone
        return LossMean(where, _LOSSES_IN_FLIGHT if waits else 1)

    def _step(self, chunk: Chunk, batch: Batch | None, losses: LossMean) -> bool:
        """Train on a chunk; return whether a rank asks for attention."""
        if self._accumulates:
            return self._hold(chunk, batch, losses)
        self._flat.zero_grad()
        weight = chunk_weight(chunk, batch)
        loss = self._forward(batch) if batch is not None else None
        if not weight:
            loss = None  # nothing in it counts
        if self._buckets is not None:
            value = 0.0 if loss is None else losses.check(chunk, loss.item())
            self._buckets.start(weight, value, attention=self._attention())
        if loss is not None:
            _backward(self._precision.scaled(loss))
        if self._buckets is not None:
            return self._average(losses, weight)
        if loss is not None:
            losses.add(chunk, loss, weight)
            self._update()
        return self._attention()

    def _forward(self, batch: Batch) -> Tensor:
        if not self._on_cpu:
            batch = to_device(batch, self._device)
        with self._precision.forward:
            loss = chunk_loss(self._loss, self.stateful, batch)
        self.stateful.detach()
        return loss

    def _average(self, losses: LossMean, weight: float) -> bool:
        assert self._buckets is not None
        averaged = self._buckets.wait()
        self._replicas.trained(weight)
        if averaged.weight:
            losses.add_value(averaged.value, averaged.weight)
            self._update()
        return averaged.attention

    def _hold(self, chunk: Chunk, batch: Batch | None, losses: LossMean) -> bool:
        """Add a chunk's gradients to those that wait; make a step when there are enough."""
        if not self._held:
            self._flat.zero_grad()
        weight = chunk_weight(chunk, batch)
        if batch is not None:
            loss = self._forward(batch)
            if weight:
                value = losses.check(chunk, loss.item())
                with contextlib.nullcontext() if self._buckets is None else self._buckets.no_sync():
                    _backward(self._precision.scaled(loss * weight))
                self._held_weight += weight
                self._held_loss += weight * value
        self._held += 1
        return self._release(losses) if self._held == self._spec.accumulate else False

    def _release(self, losses: LossMean) -> bool:
        """Make a step by the mean of the gradients that wait, over all their samples."""
        weight, value = self._held_weight, self._held_loss
        self._held, self._held_weight, self._held_loss = 0, 0.0, 0.0
        if weight:
            value /= weight
            grads = [p.grad for p in self._model.parameters() if p.grad is not None]
            with torch.no_grad():
                torch._foreach_mul_(grads, 1 / weight)
        if self._buckets is not None:
            self._buckets.start(weight, value, attention=self._attention())
            return self._average(losses, weight)
        if weight:
            losses.add_value(value, weight)
            self._update()
        return self._attention()

    def _update(self) -> None:
        spec = self._spec
        self._flat.gather()
        self._precision.unscale(self._optimizer)
        if spec.clip_value is not None:
            nn.utils.clip_grad_value_(self._flat.gathered(), spec.clip_value)
        if spec.clip_norm is not None:
            params = self._flat.gathered()
            norm = nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
            if not self._precision.scales or bool(norm.isfinite()):
                nn.utils.clip_grads_with_norm_(params, spec.clip_norm, norm)
        if self._precision.scales:
            self._precision.step(self._optimizer)
        else:
            self._flat.step()
