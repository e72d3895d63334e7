"""Losses over chunks for one target per sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._util.tree import Tree
from ..data.samples_first import LastSteps
from ..nn.per_sequence import AtLastStep, PerSequence
from .inputs.input_checks import Tensors

__all__ = ["AtLastStep", "EachMember", "PerSequence", "last_step_only", "over_steps"]

Model = Callable[[Tree], Tree]


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
        self.per_sequence: Any | bool = getattr(loss, "per_sequence", False)
        self.at_last_step: Any | bool = getattr(loss, "at_last_step", False)

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
