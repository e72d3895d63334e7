"""Updates captured once in a CUDA graph and replayed: what ``compile=True`` does on a GPU.

A graph is a recording of kernels, with their addresses and numbers. Replaying it costs one launch
and runs none of the Python behind it: inputs must be copied to the recorded addresses, and a
number such as the learning rate must not have changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, optim

from .._util.torch_internals import has_step_hooks, silence_capture_warning
from .._util.tree import Tree, tree_leaves, tree_map
from .._util.untyped_torch import backward, cuda_stream
from ..data.chunk_plan import Chunk
from ..data.sequences import Batch, to_device
from ..nn.losses import by_seqloss
from ..nn.recurrent import keeps_lengths_on_device
from .loop import Trainer, chunk_weight

__all__ = ["GraphTrainer", "Graphs", "Recorder"]

WARM_UP = 3
"""Updates of one shape that run as usual before one is captured: libraries, the autograd engine and
optimizers set up memory in the first ones. They train like all others."""


class Recorder(Protocol):
    """Runs and records work on the device."""

    def stream(self) -> AbstractContextManager[None]:
        """Run a ``with`` block on one stream, in order with the work of the current stream."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what `function` submits to that stream, without running it; return a replay."""


class CudaRecorder:
    """A stream of a GPU, on which graphs are captured.

    Parameters
    ----------
    device
        The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = cuda_stream(device)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Run a ``with`` block on one stream, in order with the work of the current stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what `function` submits to that stream, without running it; return a replay."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that reads ahead, may keep running.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            function()
        return graph.replay


class Graphs:
    """Calls functions of tensors: the first few times directly, then from a recording.

    Parameters
    ----------
    device
        Where inputs are copied to.
    recorder
        Makes the recordings.
    """

    def __init__(self, device: torch.device, recorder: Recorder) -> None:
        self._device = device
        self._recorder = recorder
        self._calls: dict[tuple[object, ...], int] = {}
        self._recordings: dict[tuple[object, ...], tuple[Tree, Callable[[], None], Tree]] = {}

    def clear(self) -> None:
        """Forget all recordings."""
        self._calls.clear()
        self._recordings.clear()

    def __call__(self, name: object, function: Callable[[Tree], Tree], inputs: Tree) -> Tree:
        """Return ``function(inputs)``, with inputs copied to the device.

        The next call with inputs of these shapes overwrites the result. `function` is known by
        `name`: it must do the same each time, and depend only on its inputs, on the contents of
        tensors, and on what never changes.
        """
        key = (name, *((a.shape, a.dtype) for a in tree_leaves(inputs)))
        with self._recorder.stream():
            if key not in self._recordings:
                calls = self._calls[key] = self._calls.get(key, 0) + 1
                if calls <= WARM_UP:
                    return function(to_device(inputs, self._device))
                self._recordings[key] = self._record(function, inputs)
            places, replay, outputs = self._recordings[key]
            tree_map(lambda place, a: place.copy_(a, non_blocking=True), places, inputs)
            replay()
        return outputs

    def _record(
        self, function: Callable[[Tree], Tree], inputs: Tree
    ) -> tuple[Tree, Callable[[], None], Tree]:
        places = tree_map(
            lambda a: torch.zeros(a.shape, dtype=a.dtype, device=self._device), inputs
        )
        outputs: list[Tree] = []
        try:
            replay = self._recorder.capture(lambda: outputs.append(function(places)))
        except Exception as error:
            raise ValueError(
                "compile=True needs a model, a loss and an optimizer that a CUDA graph can "
                "record: shapes and branches must not depend on values of tensors, and nothing "
                f"may read one (float(a), a.item(), if a: …). It says: {error}"
            ) from error
        return places, replay, outputs[0]


class GraphTrainer(Trainer):
    """A `Trainer` whose updates are replayed from graphs, one for each shape of chunks.

    With one rank a graph is the whole update. With several, with accumulated gradients, or with an
    optimizer that cannot be recorded, it is the forward and backward pass; then gradients are
    averaged or added up, and a second graph runs the optimizer.

    With ``amp="fp16"`` the scale is a tensor on the device, and torch's fused optimizers read there
    whether a gradient overflowed. Steps of others are not recorded: before each, the host waits to
    learn that.

    Chunks in which sequences end run without graphs unless it is known that nothing reads lengths
    on the host, which a graph would not do again: see `keeps_lengths_on_device`; the loss must be
    one that `seqloss` made.
    """

    recorder: Callable[[torch.device], Recorder] = CudaRecorder
    reads_norm = False  # a graph cannot branch on it

    def _begin(self) -> None:
        self._graphs = Graphs(self._device, self.recorder(self._device))
        self._settings: list[tuple[str, object]] = []
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._sums = [torch.zeros_like(p) for p in self._trained] if self._accumulates else []
        self._records_lengths: bool | None = None  # not known yet
        self._undo: Callable[[], None] = lambda: None
        super()._begin()
        waits = self._precision.waits(self._optimizer)
        self._records_update = can_record(self._optimizer) and not waits
        if self._records_update:
            self._undo = make_capturable(self._optimizer)

    def _end(self, *, failed: bool) -> None:
        self._graphs.clear()
        try:
            super()._end(failed=failed)
        finally:
            self._undo()

    def _train_on(self, chunk: Chunk, batch: Batch | None) -> bool:
        self._forget_if_changed()
        weight = chunk_weight(chunk, batch)
        if self._accumulates or batch is None or not weight or not self._records(batch):
            return super()._train_on(chunk, batch)
        inputs = (self.stateful.state, batch, None)
        if self._buckets is None and self._records_update:
            loss, self.stateful.state = self._graphs("step", self._whole_step, inputs)
            self._losses.add(chunk, loss.clone(), weight)
            return self._attention()
        loss, self.stateful.state, grads = self._graphs("backward", self._backward, inputs)
        for p, grad in zip(self._trained, grads, strict=True):
            p.grad = grad
        if self._buckets is None:
            self._losses.add(chunk, loss.clone(), weight)
            self._update()
            return self._attention()
        self._buckets.start(weight, self._value(chunk, loss), attention=self._attention())
        return self._average(chunk, weight)

    def _records(self, batch: Batch) -> bool:
        if batch.lengths is None:
            return True
        if self._records_lengths is None:
            known = by_seqloss(self._loss) and keeps_lengths_on_device(self._model)
            self._records_lengths = known
        return self._records_lengths

    def _whole_step(self, inputs: tuple[Tree, Batch, None]) -> tuple[Tensor, Tree]:
        loss, state, _ = self._backward(inputs)
        self._update()
        return loss, state

    def _backward(
        self, inputs: tuple[Tree, Batch, Tensor | None]
    ) -> tuple[Tensor, Tree, list[Tensor | None]]:
        """Return a chunk's loss, state and gradients; with a weight, add them to the sums."""
        self.stateful.state, batch, weight = inputs
        self._stepper.zero_grad()
        loss = self._forward(batch)
        with self._apart():  # hooks would not run on replay
            counted = loss if weight is None else loss * weight.to(loss.dtype)
            backward(self._precision.scaled(counted))
        grads = [p.grad for p in self._trained]
        if weight is not None:
            for total, grad in zip(self._sums, grads, strict=True):
                if grad is not None:
                    total += grad
        return loss.detach(), self.stateful.state, grads

    def _accumulate(self, batch: Batch, weight: float) -> Tensor:
        if not weight:
            return super()._accumulate(batch, weight)
        # Graphs of different shapes add to the same memory.
        held = [p.grad is not None for p in self._trained]
        for total, has in zip(self._sums, held, strict=True):
            if not has:
                total.zero_()
        there = torch.full((), weight, dtype=torch.float64, device=self._device)
        inputs = (self.stateful.state, batch, there)
        loss: Tensor
        if self._records(batch):
            loss, self.stateful.state, grads = self._graphs("accumulate", self._backward, inputs)
        else:
            loss, self.stateful.state, grads = self._backward(inputs)
        for p, total, has, grad in zip(self._trained, self._sums, held, grads, strict=True):
            p.grad = total if has or grad is not None else None
        return loss

    def _update_in_place(self, norm: float | Tensor | None = None) -> None:
        if not self._records_update:
            self._update(norm)
            return
        unused = tuple(i for i, p in enumerate(self._trained) if p.grad is None)
        self._graphs(("update", unused), lambda _: self._update(), None)

    def _forget_if_changed(self) -> None:
        """Record again if the optimizer's numbers changed, or the parameters moved.

        So a schedule that changes the learning rate at each update runs without recordings, unless
        the learning rate is a tensor, whose contents may change.
        """
        settings = [
            (key, value) for group in self._optimizer.param_groups for key, value in group.items()
        ]
        same = len(settings) == len(self._settings) and all(
            a[0] == b[0]
            and (a[1] is b[1] or (not isinstance(a[1], Tensor | list) and a[1] == b[1]))
            for a, b in zip(settings, self._settings, strict=True)
        )
        if not same:
            self._graphs.clear()
            self._settings = settings


def can_record(optimizer: optim.Optimizer) -> bool:
    """Whether `optimizer` keeps all that its updates change in tensors on the device."""
    if has_step_hooks(optimizer):
        return False
    if not type(optimizer).__module__.startswith("torch.optim."):
        return False
    if type(optimizer) is optim.SGD:  # it reads a learning rate that is a tensor
        return not any(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)
    return "capturable" in optimizer.defaults


def make_capturable(optimizer: optim.Optimizer) -> Callable[[], None]:
    """Make an optimizer count its updates on the device, as torch requires for graphs.

    Its ``state_dict`` keeps the old setting: the run may continue on a CPU, without graphs. Returns
    a function that undoes the change.
    """
    before = [group.get("capturable") for group in optimizer.param_groups]

    def set_back(groups: list[dict[str, Any]]) -> None:
        for group, capturable in zip(groups, before, strict=False):
            if capturable is not None:
                group["capturable"] = capturable

    hook = optimizer.register_state_dict_post_hook(lambda _, state: set_back(state["param_groups"]))
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
            for p in group["params"]:
                _move_counts(optimizer.state.get(p, {}), p.device)
    # Otherwise it warns in the updates before the first capture.
    silence_capture_warning(optimizer)

    def undo() -> None:
        hook.remove()
        set_back(optimizer.param_groups)
        for group in optimizer.param_groups:
            if group.get("capturable") is False and not group.get("fused"):
                for p in group["params"]:
                    _move_counts(optimizer.state.get(p, {}), torch.device("cpu"))

    return undo


def _move_counts(state: dict[str, Any], device: torch.device) -> None:
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() == 0:
            state[key] = value.to(device)
