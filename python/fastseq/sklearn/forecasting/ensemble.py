"""Models of several seeds as one: trained side by side, their forecasts averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..._util.tree import Tree
from ...nn.members import Members
from ...nn.stateful import takes_state
from ...training.native_layers import NotNative, SideBySide
from .forecast_net import ForecastNet

__all__ = ["Ensemble", "ensemble_of"]


class Ensemble(nn.Module):
    """Several models as one: in training it returns all outputs side by side, else their mean.

    Parameters
    ----------
    members
        The models, with equally many outputs.
    quantiles
        Number of quantiles, the last axis of their outputs: they are sorted before their mean is
        taken.
    """

    def __init__(self, members: list[ForecastNet], quantiles: int) -> None:
        super().__init__()
        self.members: Members = Members(members)
        self._quantiles = quantiles

    def side_by_side(self) -> SideBySide:
        """Return the members; see `fastseq.training.native_layers`."""
        if not self.training:
            raise NotNative("an ensemble in evaluation mode")
        return SideBySide(list(self.members))

    def _together(self, outputs: list[Tensor]) -> Tensor:
        if self.training:
            return torch.cat(outputs, -1)
        if self._quantiles > 1:
            parts = [one.reshape(*one.shape[:-1], -1, self._quantiles) for one in outputs]
            outputs = [one.sort(-1).values.flatten(-2) for one in parts]
        return torch.stack(outputs).mean(0)


class StatelessEnsemble(Ensemble):
    """An `Ensemble` of models that carry no state.

    Examples
    --------
    >>> both = StatelessEnsemble([ForecastNet(nn.Linear(1, 2)) for _ in range(2)], 1)
    >>> both(torch.zeros(10, 5, 1)).shape, both.eval()(torch.zeros(10, 5, 1)).shape
    (torch.Size([10, 5, 4]), torch.Size([10, 5, 2]))
    """

    native_terms = Ensemble.side_by_side

    def forward(self, x: Tree) -> Tensor:
        """Run a chunk."""
        return self._together([net(x)[0] for net in self.members])


class StatefulEnsemble(Ensemble):
    """An `Ensemble` of models that carry states.

    Examples
    --------
    >>> both = StatefulEnsemble([ForecastNet(nn.GRU(1, 2)) for _ in range(2)], 1)
    >>> y, state = both(torch.zeros(10, 5, 1))
    >>> y.shape, len(state)
    (torch.Size([10, 5, 4]), 2)
    """

    native_terms = Ensemble.side_by_side

    def forward(
        self, x: Tree, state: Tree = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        """Run a chunk."""
        states = [None] * len(self.members) if state is None else state
        found = [net(x, own, lengths) for net, own in zip(self.members, states, strict=True)]
        return self._together([y for y, _ in found]), tuple(own for _, own in found)


def ensemble_of(
    build: Callable[[int], ForecastNet], seed: int, count: int, quantiles: int
) -> ForecastNet:
    """Return a net of `count` members, made by ``build(seed)`` with different seeds; 1: alone."""
    nets = [build(seed + number) for number in range(count)]
    if count == 1:
        return nets[0]
    kind = StatefulEnsemble if takes_state(nets[0].body) else StatelessEnsemble
    return ForecastNet(kind(nets, quantiles))
