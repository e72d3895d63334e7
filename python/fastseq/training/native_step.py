"""Updates in C++: whole chunks without autograd, for models that consist of known layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._util.progress import Progress
from .._util.torch_internals import has_hooks, is_watched, mark_stepped
from .._util.tree import tree_leaves
from ..data.chunk_plan import Chunk
from ..data.sequences import Batch, Sequences
from ..nn.members import trained_apart
from ..nn.ops import parallel_for
from .loop import AfterUpdate, Trainer
from .native_layers import (
    End,
    LossKind,
    NotNative,
    Step,
    dropout_of,
    layers_of,
    loss_of,
    optimizer_of,
    settings_of,
    states_of,
)

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


def _check(learner: Learner) -> None:
    spec = learner.spec
    if learner.device.type != "cpu":
        raise NotNative(f"the device is {learner.device.type}")
    if not learner.replicas.alone:
        raise NotNative("several ranks")
    if learner.compiles:
        raise NotNative("compile=True")
    if learner.precision.amp is not None:
        raise NotNative(f"amp={learner.precision.amp!r}")
    if spec.context:
        raise NotNative(f"spec.context={spec.context}")
    watched = is_watched() or torch.is_anomaly_enabled() or not torch.is_grad_enabled()
    if watched or torch.is_autocast_enabled("cpu"):
        raise NotNative("torch is set to something that only its own operators do")
    loss_of(learner.loss)
    optimizer_of(learner.optimizer)
    layers_of(learner.model, None, lambda _: (0, 0))
    if len(trained_apart(learner.model, list(learner.model.parameters()))) != 1:
        raise NotNative("members of an ensemble")


class NativeTrainer(Trainer):
    """A `Trainer` whose updates run in C++, as many chunks in a call as have been read together.

    It works on the memory of the model's parameters and of the optimizer's state, and on that of
    the state that is carried, so all of them are up to date after each call. What it cannot do,
    such as the first update of an optimizer, which makes its state, and batches that do not fit,
    which raise errors, is done by `Trainer`.
    """

    def __init__(self, learner: Learner, position: Any) -> None:
        super().__init__(learner, position)
        self._step: _Step | None = None

    def _begin(self) -> None:
        super()._begin()
        self._step = None

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
        while first < len(group):
            step = self._ready(batch)
            if step is None or batch is None:
                part = None if batch is None else _part(group, batch, first, first + 1)
                attention = self._train_on(group[first], part)
                done, updates = 1, 0 if self._held else 1
            else:
                done, updates = self._train_natively(step, group, batch, first)
                attention = self._attention()
            first += done
            last = group[first - 1]
            if position.ends is not None and last.t1 == end:
                position.ends[last.block] = self.stateful.get_state()
            progress.advance(position.loss, done)
            if updates and after_update(attention, updates):
                return True
        return False

    def _ready(self, batch: Batch | None) -> _Step | None:
        """Return the C++ step if it can train on a batch."""
        if self._step is None or not self._step.is_current():
            self._step = None
            if batch is not None and isinstance(batch.xs, Tensor):
                try:
                    self._step = _Step(self._learner, batch.xs)
                except NotNative:
                    return None
        if self._step is None or batch is None or not self._step.fits(batch):
            return None
        return self._step

    def _train_natively(
        self, step: _Step, group: list[Chunk], batch: Batch, first: int
    ) -> tuple[int, int]:
        """Train on chunks from number `first` on; return how many, and the number of updates."""
        each = self._spec.accumulate
        last = min(first + each - self._held, len(group)) if self.one_by_one else len(group)
        sizes = [chunk.t1 - chunk.t0 for chunk in group[first:last]]
        part = _part(group, batch, first, last)
        self.stateful.state = step.take_state(self.stateful.state, part.xs.shape[1])
        ends = range(first + each - self._held - 1, last, each)  # chunks with which updates end
        held = self._held, self._held_weight, float(self._held_loss)
        losses, end, loss, done, held = step.train(part, sizes, held)
        self._held, self._held_weight, self._held_loss = held
        for index, (value, weight) in zip(ends, losses, strict=False):
            if weight:
                self._losses.add(group[index], value, weight)
        if end == End.all:
            return done, len(losses)
        chunk = group[first + done]
        if end == End.not_finite:
            self._losses.check(chunk, loss)
        # A label that is no class: torch says so.
        self._train_on(chunk, _part(group, batch, first + done, first + done + 1))
        raise AssertionError("a label that is no class")


def _part(group: list[Chunk], batch: Batch, first: int, last: int) -> Batch:
    """Return the batch of some of a group's chunks."""
    if last - first == len(group):
        return batch
    begin = group[first].t0 - group[0].t0
    end = group[last - 1].t1 - group[0].t0
    ws, lengths = batch.ws, batch.lengths
    if lengths is not None:
        lengths = (lengths - begin).clamp(0, end - begin)
        lengths = None if int(lengths.min()) == end - begin else lengths
    return Batch(
        batch.xs[begin:end], batch.ys[begin:end], None if ws is None else ws[begin:end], lengths
    )


class _Step:
    """The C++ step of a model, a loss and an optimizer, as they are now.

    Parameters
    ----------
    learner
        Has them.
    x
        An input, ``(S, B, F)``.

    Raises
    ------
    NotNative
        It cannot be made, or not yet.
    """

    def __init__(self, learner: Learner, x: Tensor) -> None:
        _check(learner)
        self._model, self._optimizer, spec = learner.model, learner.optimizer, learner.spec
        self._clip = spec.clip_value, spec.clip_norm
        self._params = list(self._model.parameters())
        if not self._params or x.dim() != 3:
            raise NotNative("nothing to train")
        self._like = self._params[0].detach()
        self._features = x.shape[2]
        self._gradients = [torch.zeros_like(p) for p in self._params]
        # Where layers write gradients: those of several chunks are added up.
        accumulates = spec.accumulate > 1
        self._fresh = (
            [torch.zeros_like(p) for p in self._params] if accumulates else self._gradients
        )
        place: dict[Tensor, int] = {p: i for i, p in enumerate(self._params)}

        def weights(p: Tensor | None) -> tuple[int, int]:
            return (0, 0) if p is None else (p.data_ptr(), self._fresh[place[p]].data_ptr())

        layers, self._outputs = layers_of(self._model, self._features, weights)
        self._loss, parameter, self._last_only = loss_of(learner.loss)
        kind, names = optimizer_of(self._optimizer)
        self._tensors: list[tuple[dict[str, Any], str, Tensor]] = []
        stepped = self._parameters(place, names)
        self._known = self._optimizer.param_groups, self._optimizer.state
        self._seen = self._look()
        self._draws = any(dropout_of(module) > 0 for module in self._model.modules())
        self._step = Step(
            self._like.dtype == torch.float64, layers, self._loss, parameter, kind, stepped,
            spec.accumulate, self._sums() if accumulates else [], parallel_for,
        )  # fmt: skip
        self._state: list[Tensor] = []
        self._tree: Any = None

    def _sums(self) -> list[tuple[int, int, int]]:
        """Describe where gradients of several chunks are added up."""
        return [
            (fresh.data_ptr(), gradient.data_ptr(), p.numel())
            for p, fresh, gradient in zip(self._params, self._fresh, self._gradients, strict=True)
            if p.requires_grad
        ]

    def _parameters(
        self, place: dict[Tensor, int], names: tuple[str, str, str]
    ) -> list[tuple[int, int, int, int, int, int, int, bool, int]]:
        """Describe the parameters that the optimizer updates."""
        found = []
        for number, group in enumerate(self._optimizer.param_groups):
            wanted = _state_names(type(self._optimizer), group)
            for p in group["params"]:
                if not p.requires_grad:
                    continue
                if p not in place:
                    raise NotNative("the optimizer has parameters that are not the model's")
                state = self._optimizer.state.get(p, {})
                if not wanted <= set(state):
                    raise NotNative("the optimizer has made no step yet")
                average, square, other, step = (
                    self._address(state, name) if name in wanted else 0 for name in (*names, "step")
                )
                wide = "step" in wanted and state["step"].dtype == torch.float64
                gradient = self._gradients[place[p]].data_ptr()
                found.append(
                    (p.data_ptr(), gradient, p.numel(), average, square, other, step, wide, number)
                )
        return found

    def _address(self, state: dict[str, Any], name: str) -> int:
        """Return the address of a tensor of the optimizer's."""
        tensor = state[name]
        plain = isinstance(tensor, Tensor) and tensor.is_cpu and tensor.is_contiguous()
        dtypes = (torch.float32, torch.float64) if name == "step" else (self._like.dtype,)
        if not plain or tensor.dtype not in dtypes:
            raise NotNative(f"the optimizer's {name} is unusual")
        self._tensors.append((state, name, tensor))
        return int(tensor.data_ptr())

    def _look(self) -> list[Any]:
        """Return what the step was made for, besides the optimizer's state."""
        found: list[Any] = []
        for module in self._model.modules():
            found += [id(module), module.training, has_hooks(module)]
        for p in self._params:
            found += [p.data_ptr(), p.requires_grad]
        kind = type(self._optimizer)
        for group in self._optimizer.param_groups:
            found += [id(p) for p in group["params"]]
            found += sorted(_state_names(kind, group))
        return found

    def is_current(self) -> bool:
        """Whether model and optimizer still are those that it was made for."""
        groups, state = self._known
        same = self._optimizer.param_groups is groups and self._optimizer.state is state
        return (
            same
            and all(own.get(name) is tensor for own, name, tensor in self._tensors)
            and self._look() == self._seen
        )

    def fits(self, batch: Batch) -> bool:
        """Whether it can train on a batch: if not, torch raises, or can."""
        x, y, ws = batch.xs, batch.ys, batch.ws
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() == y.dim() == 3):
            return False
        if (
            x.shape[:2] != y.shape[:2]
            or x.shape[2] != self._features
            or x.dtype != self._like.dtype
        ):
            return False
        if ws is not None and not (isinstance(ws, Tensor) and ws.dim() == 2):
            return False
        if self._loss == LossKind.cross_entropy:
            return y.shape[2] == 1 and self._outputs > 1 and y.dtype in _LABELS
        return y.shape[2] == self._outputs and (y.is_floating_point() or y.dtype in _LABELS)

    def take_state(self, state: Any, sequences: int) -> Any:
        """Continue from a state; return that which is kept up to date."""
        if state is not None and state is self._tree:
            return state
        self._tree, self._state = states_of(self._model, sequences, self._like)
        if state is not None:
            for own, given in zip(self._state, tree_leaves(state), strict=True):
                own.copy_(given)
        self._step.set_state([own.data_ptr() for own in self._state])
        return self._tree

    def train(
        self, batch: Batch, sizes: list[int], held: tuple[int, float, float]
    ) -> tuple[list[tuple[float, float]], End, float, int, tuple[int, float, float]]:
        """Train on chunks of these numbers of time steps; see ``_step.pyi``."""
        if held[1]:
            self._take_gradients()
        labels = self._loss == LossKind.cross_entropy
        x = _with_rows(batch.xs)
        y = _with_rows(batch.ys.to(torch.int64 if labels else self._like.dtype))
        w = None if batch.ws is None else batch.ws.to(self._like.dtype)
        lengths = None if batch.lengths is None else batch.lengths.contiguous()
        seeds = torch.randint(2**62, (len(sizes),)).tolist() if self._draws else []
        mark_stepped(self._optimizer)
        found = self._step.train(
            _rows(x), _rows(y), labels, self._last_only, (0, 0, 0) if w is None else _rows(w),
            sizes, x.shape[1], 0 if lengths is None else lengths.data_ptr(), seeds,
            settings_of(self._optimizer), *self._clip, held,
        )  # fmt: skip
        losses, _, _, _, (chunks, weight, _) = found
        counts = weight > 0 or (not chunks and (not losses or losses[-1][1] > 0))
        for p, gradient in zip(self._params, self._gradients, strict=True):
            if p.requires_grad:
                p.grad = gradient if counts else None
        return found

    def _take_gradients(self) -> None:
        """Go on from gradients that torch has accumulated."""
        for p, gradient in zip(self._params, self._gradients, strict=True):
            if p.grad is None:
                gradient.zero_()
            elif p.grad is not gradient:
                gradient.copy_(p.grad)


_LABELS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _state_names(kind: type[torch.optim.Optimizer], group: dict[str, Any]) -> set[str]:
    """Return what an optimizer keeps for a parameter."""
    if kind is torch.optim.SGD:
        return {"momentum_buffer"} if group["momentum"] else set()
    if kind is torch.optim.RMSprop:
        more = {"grad_avg"} if group["centered"] else set()
        return {"step", "square_avg"} | more | ({"momentum_buffer"} if group["momentum"] else set())
    return {"step", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if group["amsgrad"] else set())


def _with_rows(a: Tensor) -> Tensor:
    """Return a tensor whose features are contiguous."""
    return a if a.stride(2) == 1 or a.shape[2] == 1 else a.contiguous()


def _rows(a: Tensor) -> tuple[int, int, int]:
    return a.data_ptr(), a.stride(0), a.stride(1)
