"""Find out, by running a model, which other time steps its outputs depend on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._util.seeding import untouched
from .._util.torch_internals import uncompiled
from .._util.tree import Tree, tree_leaves, tree_map
from ..data.chunk_plan import Chunk
from ..data.sequences import Sequences, to_device
from ..nn.earlier_steps import Context, in_context, within
from ..nn.stateful import (
    Stateful,
    carries,
    in_mode,
    is_bidirectional,
    knows_ends,
    steps_apart,
    takes_lengths,
)
from .learner import Learner, Looks

__all__ = ["check_fit", "check_steps", "find_looks", "wants_whole_series"]

_SEQUENCES = 3
_LONGEST = 4096  # steps of a run that looks for dependence beyond a chunk
_SHORTEST = 16  # the fewest steps that show anything
_COMPARED = 32  # steps compared after a cut


def _looks_of(learner: Learner, data: Sequences, *, untrained: bool = False) -> Looks:
    """Return which steps a learner's model looks at, on data like these. Collective.

    The model is run on the first chunk of three sequences, in evaluation mode; between two calls of
    ``fit``, once for each model and number of steps. `untrained`: weights of 0 are replaced by
    other numbers, as training would; no other thread may use the model.
    """
    empty = data.lengths is not None and not data.lengths.any()
    if steps_apart(learner.model) or empty:
        return Looks(carries=carries(learner.model))
    key = _key(learner, min(learner.spec.seqsize, data.steps), data.steps)
    if key not in learner.looks:
        model = in_context(learner.model, learner.spec.context)
        with _without_zeros(learner.model) if untrained else contextlib.nullcontext():
            found = find_looks(model, _beginning(data, key[0]), data.steps, learner.device)
        if learner.spec.shard != "given":  # else ranks may differ in their steps
            not_so = learner.replicas.in_common([not found.back, not found.ahead])
            found = Looks(not not_so[0], not not_so[1], found.carries)
        learner.looks[key] = found
    return learner.looks[key]


def looks_at_step(learner: Learner, x: Tree) -> Looks:
    """Return the same, given only one step, ``(N, F)``; not collective."""
    if steps_apart(learner.model):
        return Looks(carries=carries(learner.model))
    key = _key(learner, 0, 0)
    if key not in learner.looks:
        known = [looks for other, looks in list(learner.looks.items()) if other[2:] == key[2:]]
        steps = max(_SHORTEST, 4 * learner.spec.context)
        generator = torch.Generator().manual_seed(0)
        rows = tree_map(lambda a: a[:_SEQUENCES], x)
        xs = tree_map(
            lambda a: torch.stack([_varied(a.roll(t, 0), generator) for t in range(steps)]), rows
        )
        model = in_context(learner.model, learner.spec.context)
        try:
            found = known[0] if known else find_looks(model, xs, _LONGEST, learner.device)
        except Exception:  # it does not take this many steps, or such inputs
            with in_mode(learner.model, training=False), torch.no_grad(), untouched(learner.device):
                Stateful(model)(to_device(x, learner.device))
            found = Looks(back=True, ahead=True)
        learner.looks[key] = found
    return learner.looks[key]


def wants_whole_series(learner: Learner, data: Sequences, *, goes_on: bool = False) -> bool:
    """Whether a model must see whole series, not chunks, outside training.

    Parameters
    ----------
    learner, data
        The model's learner, and the data.
    goes_on
        Whether the data continue the series from the current state.

    Raises
    ------
    ValueError
        ``spec.context`` is wrong for the model; or series cannot be continued.
    """
    if is_bidirectional(learner.model):
        return True
    in_one = data.steps <= learner.spec.seqsize
    told = carries(learner.model) or learner.spec.context  # then padding is run, too
    if in_one and not goes_on and (data.lengths is None or not told):
        return False
    looks = _looks_of(learner, data)
    _check_context(learner, looks)
    if goes_on and looks.around:
        raise ValueError(f"predict with reset=False cannot continue: {_what(looks)}. {_HELP}")
    return looks.around


def check_steps(learner: Learner, x: Tree) -> None:
    """Raise unless a model can be run step by step; `x` is one step, ``(N, F)``."""
    if is_bidirectional(learner.model):
        return  # the predictor refuses it
    looks = looks_at_step(learner, x)
    _check_context(learner, looks)
    if looks.around:
        raise ValueError(f"step gives the model one time step, but {_what(looks)}. {_HELP}")


def check_fit(learner: Learner, data: Sequences, *, by_time: bool) -> None:
    """Raise if training on chunks would differ from running on whole series later.

    Parameters
    ----------
    learner, data
        The model's learner, and the data.
    by_time
        Whether validation continues from the end of the training part.
    """
    steps, seqsize = data.steps, learner.spec.seqsize
    cut = steps > seqsize
    if is_bidirectional(learner.model) and carries(learner.model):
        if cut and data.lengths is not None and not Stateful(learner.model).told_ends:
            raise ValueError(
                "the model has a bidirectional layer that is not told where sequences end, so it "
                "needs whole series of different lengths in one chunk: use fastseq.nn.LSTM, GRU or "
                f"RNN, or seqsize={steps} or more, got {seqsize}"
            )
        if cut and learner.replicas.first:
            warnings.warn(
                "the model has a bidirectional layer, which looks at later steps: fit lets it see "
                "only those of the same chunk, whereas predict runs whole series at once",
                stacklevel=5,
            )
        return
    if not (cut or learner.spec.context or by_time or data.lengths is not None):
        return
    looks = _looks_of(learner, data, untrained=True)
    _check_context(learner, looks)
    plain = uncompiled(learner.model)
    told = knows_ends(plain) if isinstance(plain, nn.Sequential) else takes_lengths(plain)
    if looks.carries and looks.ahead and data.lengths is not None and not told:
        raise ValueError(
            f"{_what(looks)}: it would see the padding behind the ends of shorter sequences. "
            "Give its forward a parameter `lengths`, or pass sequences of one length"
        )
    if not looks.around or not (cut or by_time):
        return
    if looks.carries:
        if learner.replicas.first:
            warnings.warn(
                f"{_what(looks)}: fit lets it see only those of the same chunk, whereas predict "
                "runs whole series at once",
                stacklevel=5,
            )
    elif cut:
        raise ValueError(
            f"fit would train chunks of {seqsize} of the {steps} steps separately, but "
            f"{_what(looks)}. Train on whole series (seqsize={steps} or more; None in the "
            f"scikit-learn estimators). {_HELP}"
        )
    else:
        raise ValueError(
            f"validation by time starts in the middle of series, but {_what(looks)}: validate by "
            f"sequences. {_HELP}"
        )


_HELP = "If it looks back a limited number of steps, spec.context=… gives it these with every chunk"


def _what(looks: Looks) -> str:
    where = "earlier" if not looks.ahead else "later" if not looks.back else "earlier and later"
    beyond = "which are not in its state" if looks.carries else "and it carries no state"
    return f"the model's outputs depend on {where} time steps, {beyond}"


def _check_context(learner: Learner, looks: Looks) -> None:
    context = learner.spec.context
    if context and looks.ahead:
        raise ValueError(
            "spec.context gives a model earlier steps, but its outputs depend on later ones: set "
            f"it to 0, and seqsize to all steps, got {context}"
        )
    if context and looks.back:
        raise ValueError(
            f"spec.context={context} is too few: the model's outputs depend on steps further back"
        )


def _key(learner: Learner, chunk: int, steps: int) -> tuple[Any, ...]:
    layers = tuple(type(module) for module in learner.model.modules())
    shapes = tuple(p.shape for p in learner.model.parameters())
    return chunk, steps, layers, shapes, learner.spec.context


@contextlib.contextmanager
def _without_zeros(model: nn.Module) -> Iterator[None]:
    """Replace zeros in trainable parameters by small numbers.

    Layers with initial weights of 0, such as the last one of a branch, pass nothing on yet.
    """
    generator = torch.Generator().manual_seed(0)
    changed = []
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad and not bool(p.all()):
                small = (
                    torch.rand(p.shape, generator=generator)
                    / max(1, p.numel() // max(1, len(p) if p.dim() else 1)) ** 0.5
                )
                changed.append((p, p.clone()))
                p.copy_(torch.where(p == 0, small.to(p), p))
        try:
            yield
        finally:
            for p, before in changed:
                p.copy_(before)


def _beginning(data: Sequences, steps: int) -> Tree:
    """Read the first steps of a few sequences, from the longest on, as the model gets them."""
    n0 = 0 if data.lengths is None else int(np.argmax(data.lengths))
    chunk = Chunk(0, 0, 0, steps, n0, min(n0 + _SEQUENCES, data.count))
    (_, batch), *_ = data.batches([chunk])
    assert batch is not None
    return batch.xs


def find_looks(model: nn.Module, x: Tree, steps: int, device: torch.device) -> Looks:
    """Run a model on inputs, and with some steps changed; compare the outputs.

    Weights, buffers, modes and random generators stay unchanged.

    Parameters
    ----------
    model
        The model.
    x
        Inputs of a chunk, ``(S, B, F)``, or a tree of them.
    steps
        The steps of the series. If a chunk shows nothing, more steps are tried: a dilated
        convolution, for one, may reach beyond the chunk.
    device
        The model's device.

    Raises
    ------
    Exception
        The model's own, if it cannot run on as many steps as the series have.
    """
    size = min(steps, max(len(tree_leaves(x)[0]), _SHORTEST))
    longer = min(steps, max(size, _LONGEST))
    buffers = [(a, a.clone()) for a in model.buffers()]
    with in_mode(within(model), training=False), torch.no_grad(), untouched(device):
        try:
            for count in sorted({size, longer}):
                xs = tree_map(lambda a, n=count: _lengthened(a, n), x)
                try:
                    found = _Runs(model, device).find(xs)
                except Exception:
                    if count == steps:
                        raise
                    found = Looks(back=True, ahead=True)  # perhaps it takes whole series
                    if longer == steps:
                        _Runs(model, device).run(tree_map(lambda a: _lengthened(a, steps), x))
                if found.around or (found.carries and not isinstance(model, Context)):
                    break
        finally:
            for a, before in buffers:
                a.copy_(before)
    return found


class _Runs:
    """Runs a model from the start of series."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._generator = torch.Generator().manual_seed(0)
        self.after: Stateful | None = None

    def run(self, x: Tree, m: Stateful | None = None) -> list[Tensor]:
        self.after = Stateful(self._model) if m is None else m
        return tree_leaves(self.after(to_device(x, self._device)))

    def find(self, x: Tree) -> Looks:
        steps, count = tree_leaves(x)[0].shape[:2]
        outputs = self.run(x)
        assert self.after is not None
        carried = bool(tree_leaves(self.after.state))
        if any(a.shape[:2] != (steps, count) for a in outputs):
            return Looks(back=True, ahead=True, carries=carried)  # it pools
        cuts = [cut for cut in (steps // 2, steps // 2 + 1) if 0 < cut < steps]
        # In models that divide series into patches, one of two cuts is within a patch.
        ahead = any(
            _differ(a[:cut], b[:cut], 8)
            for cut in cuts
            for a, b in zip(outputs, self.run(self._otherwise(x, cut, steps)), strict=True)
        )
        back = any(self._goes_back(x, outputs, cut, carried=carried) for cut in cuts)
        if back or ahead:
            again = self.run(x)
            if any(_differ(a, b, 0) for a, b in zip(outputs, again, strict=True)):
                return Looks(carries=carried)  # it draws random numbers: nothing can be said
        return Looks(back, ahead, carried)

    def _otherwise(self, x: Tree, begin: int, end: int) -> Tree:
        """Change steps ``[begin, end)`` of inputs; inputs that all steps share stay."""

        def changed(a: Tensor) -> Tensor:
            if not a.stride(0):
                return a
            other = _varied(a[begin:end].roll(1, 1), self._generator)
            return torch.cat([a[:begin], other, a[end:]])

        return tree_map(changed, x)

    def _goes_back(self, x: Tree, outputs: list[Tensor], cut: int, *, carried: bool) -> bool:
        end = cut + _COMPARED  # rounding grows from there on
        if not carried:
            others = self.run(self._otherwise(x, 0, cut))
            return any(_differ(a[cut:], b[cut:], 8) for a, b in zip(outputs, others, strict=True))
        try:
            self.run(tree_map(lambda a: a[:cut], x))
            others = self.run(tree_map(lambda a: a[cut:], x), self.after)
        except Exception:  # it takes no chunks
            return True
        return any(
            _differ(a[cut:end], b[: end - cut], None) for a, b in zip(outputs, others, strict=True)
        )


def _differ(a: Tensor, b: Tensor, units: int | None) -> bool:
    """Whether outputs differ by more than `units` of rounding; None: by half of all digits."""
    if a.shape != b.shape:
        return True
    if not a.is_floating_point() or not a.numel():
        return not torch.equal(a, b)
    eps = torch.finfo(a.dtype).eps
    scale = torch.maximum(a.abs().amax(), b.abs().amax())
    return bool(((a - b).abs() > (eps**0.5 if units is None else units * eps) * scale).any())


def _lengthened(a: Tensor, steps: int) -> Tensor:
    """Repeat a chunk in time up to `steps` steps; NaN, which data may keep, becomes 0."""
    a = a.nan_to_num() if a.is_floating_point() and a.stride(0) else a
    if len(a) >= steps:
        return a[:steps]
    if not a.stride(0):
        return a[:1].expand(steps, *a.shape[1:])
    return a.repeat(-(-steps // len(a)), *(1,) * (a.dim() - 1))[:steps]


def _varied(a: Tensor, generator: torch.Generator) -> Tensor:
    """Return values between 0 and those given; integers stay, as they may number categories."""
    if not a.is_floating_point():
        return a
    part = torch.rand(a.shape, generator=generator).to(a)
    return torch.where(a == 0, part, a * part)
