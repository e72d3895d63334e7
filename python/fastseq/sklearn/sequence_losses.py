"""Losses over chunks for one target per sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._util.tree import Tree
from ..data.samples_first import LastSteps
from ..nn.stateful import each_step
from .inputs.input_checks import Tensors

__all__ = ["AtLastStep", "EachMember", "PerSequence", "last_step_only", "over_steps"]

Model = Callable[[Tree], Tree]


class PerSequence:
    """A loss for one target per sequence; modules may pool, that is, return ``(B, K)``.

    Parameters
    ----------
    loss
        ``loss(m, xs, ys)``, with weights ``loss(m, xs, ys, ws)``.

    Attributes
    ----------
    per_sequence
        True: outputs without an axis of steps are intended.
    """

    per_sequence = True

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        self.loss = loss

    def __call__(self, m: Model, xs: Tree, ys: Tensor, *ws: Tensor) -> Tensor:
        """Compute the loss of a chunk."""
        return self.loss(_EachStep(m), xs, ys, *ws)


class EachMember:
    """The mean loss of networks that are trained side by side, see `fastseq.nn.Averaged`.

    In evaluation the model returns one output, and so it is the loss of that.

    Parameters
    ----------
    loss
        ``loss(m, xs, ys)``, with weights ``loss(m, xs, ys, ws)``; `m` is each network in turn.
    """

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        self.loss = loss
        self.per_sequence = getattr(loss, "per_sequence", False)
        self.at_last_step = getattr(loss, "at_last_step", False)

    def __call__(self, m: Any, xs: Tree, ys: Tensor, *ws: Tensor) -> Tensor:
        """Compute the loss of a chunk; `m` is a `Stateful`."""
        if not m.training:
            return self.loss(m, xs, ys, *ws)
        lengths, runs = m.lengths, _Runs(m)
        losses = [self.loss(_Member(runs, 0), xs, ys, *ws)]
        for number in range(1, runs.members):
            m.lengths = lengths  # a call counts them down
            losses.append(self.loss(_Member(runs, number), xs, ys, *ws))
        return torch.stack(losses).mean()


class _Runs:
    """Outputs of all members, for each time that a loss ran one of them: they run together."""

    def __init__(self, m: Any) -> None:
        self.m = m
        self.found: list[tuple[Tree, tuple[Tensor, ...]]] = []
        self.members = 1

    def outputs(self, xs: Tree, used: set[int]) -> tuple[Tensor, ...]:
        """Return outputs for `xs`, of a run that is not among those `used`."""
        for number, (inputs, outputs) in enumerate(self.found):
            if inputs is xs and number not in used:
                used.add(number)
                return outputs
        found = self.m(xs)
        outputs = found if isinstance(found, tuple) else (found,)  # a model that combines them
        used.add(len(self.found))
        self.found.append((xs, outputs))
        self.members = len(outputs)
        return outputs


class _Member:
    """One of several networks as the model that a loss gets."""

    def __init__(self, runs: _Runs, number: int) -> None:
        self._runs, self._number = runs, number
        self._used: set[int] = set()

    def __call__(self, xs: Tree) -> Tensor:
        return self._runs.outputs(xs, self._used)[self._number]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runs.m, name)


class AtLastStep(PerSequence):
    """A loss of a model's output at a chunk's last step.

    Parameters
    ----------
    loss
        ``loss(m, xs, ys)``, with weights ``loss(m, xs, ys, ws)``.

    Attributes
    ----------
    at_last_step
        True: metrics, too, look at the last steps of chunks.

    Examples
    --------
    >>> from fastseq import seqloss
    >>> x, y = torch.tensor([[[7.0]], [[3.0]]]), torch.ones(2, 1, 1)
    >>> AtLastStep(seqloss(nn.functional.mse_loss))(nn.Identity(), x, y)
    tensor(4.)
    """

    at_last_step = True

    def __call__(self, m: Model, xs: Tree, ys: Tensor, *ws: Tensor) -> Tensor:
        """Compute the loss of a chunk that holds whole sequences."""
        return self.loss(_LastStep(m), xs, ys[-1:], *(w[-1:] for w in ws))


class _EachStep:
    """A model that may return one output for all steps."""

    def __init__(self, m: Model) -> None:
        self._m = m

    def __call__(self, xs: Tree) -> Tree:
        return each_step(self._m(xs), len(xs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._m, name)


class _LastStep(_EachStep):
    """A model that returns its last output alone."""

    def __call__(self, xs: Tree) -> Tensor:
        y: Tensor = self._m(xs)
        return y.unsqueeze(0) if y.dim() == 2 else y[-1:]


def last_step_only(x: Any, y: Tensor, w: Tensor | None) -> LastSteps | list[Tensor]:
    """Return weights per step that are zero except at each sequence's last step.

    Parameters
    ----------
    x
        Samples ``(T, N, F)``, or a list of ``(T_i, F)``.
    y
        A target for each sequence, ``(N, K)``.
    w
        Weights of sequences, ``(N,)``; None: 1.
    """
    if w is None:
        w = torch.ones(len(y))
    if not isinstance(x, list):
        return LastSteps(w, len(x))
    return [torch.cat([w.new_zeros(len(a) - 1), one.view(1)]) for a, one in zip(x, w, strict=True)]


def over_steps(x: Any, y: Tensor) -> Tensors:
    """Return targets ``(N, K)`` of whole sequences, repeated at each step."""
    if not isinstance(x, list):
        return y.expand(len(x), *y.shape)
    return [one.expand(len(a), *one.shape) for a, one in zip(x, y, strict=True)]
