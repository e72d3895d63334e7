"""The model of a forecaster: a body that goes through the past, and a head for what is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..seeding import seeded
from ..stateful import takes_lengths, takes_state
from ..tree import Tree

__all__ = ["ForecastNet", "KnownFuture", "StateOnly"]


class KnownFuture(nn.Module):
    """Makes forecasts of a context, and covariates known ahead, for each step of the horizon.

    The same small network for all steps of the horizon, as in the multi-horizon quantile
    forecaster of [1]_. Steps do not see each other's covariates.

    Parameters
    ----------
    horizon
        Number of steps.
    covariates
        F.
    width
        Size of each step's context.
    outputs
        Of each step.

    References
    ----------
    .. [1] R. Wen et al., "A multi-horizon quantile recurrent forecaster", NeurIPS time series
       workshop (2017), arXiv:1711.11053.

    Examples
    --------
    >>> head = KnownFuture(horizon=4, covariates=2, width=8, outputs=3)
    >>> head(torch.zeros(10, 5, 4 * 8), torch.zeros(10, 5, 4 * 2)).shape
    torch.Size([10, 5, 12])
    """

    def __init__(self, horizon: int, covariates: int, width: int, outputs: int) -> None:
        super().__init__()
        self._horizon = horizon
        self.known = nn.Linear(covariates, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, context: Tensor, known: Tensor) -> Tensor:
        """Forecast.

        Parameters
        ----------
        context
            ``(S, B, horizon · width)``.
        known
            ``(S, B, horizon · F)``.
        """
        steps = *context.shape[:-1], self._horizon, -1
        hidden = context.reshape(steps) + self.known(known.reshape(steps))
        return self.out(torch.tanh(hidden)).flatten(-2)  # type: ignore[no-any-return]


class ForecastNet(nn.Module):
    """What is trained: it takes what `Windows.inputs` returns.

    Parameters
    ----------
    body
        Any model; it gets the values that are seen at a step, and the covariates of the next.
    head
        A `KnownFuture`; None: the body makes the forecasts.
    covariates
        F, 0 if there are none.

    Examples
    --------
    >>> net = ForecastNet(nn.GRU(3, 4), None, 2)
    >>> y, state = net((torch.zeros(10, 5, 1), torch.zeros(10, 5, 2)))
    >>> y.shape
    torch.Size([10, 5, 4])
    """

    def __init__(self, body: nn.Module, head: KnownFuture | None, covariates: int) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self._covariates = covariates

    @classmethod
    def make(
        cls,
        build: Callable[[int, int], nn.Module],
        *,
        seen: int,
        covariates: int,
        horizon: int,
        width: int,
        outputs: int,
        seed: int,
    ) -> ForecastNet:
        """Make one whose body ``build(n_in, n_out)`` returns.

        Parameters
        ----------
        build
            Makes the body.
        seen, covariates
            How many values the model sees at a step, and F.
        horizon, outputs
            Steps that are forecast at once, and outputs of each.
        width
            Of the contexts that a head gets.
        seed
            Where the head's weights come from.
        """
        if horizon == 1 or not covariates:
            return cls(build(seen + covariates, horizon * outputs), None, covariates)
        with seeded(seed):
            head = KnownFuture(horizon, covariates, width, outputs)
        return cls(build(seen + covariates, horizon * width), head, covariates)

    def forward(
        self, x: Tree, state: Tree = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        """Run a chunk; see `Windows.inputs`."""
        y, state = self.run_body(x, state, lengths)
        return (y if self.head is None else self.head(y, x[1])), state

    def run_body(
        self, x: Tree, state: Tree = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        """Run a chunk, but not what makes forecasts of contexts."""
        if self._covariates:
            seen, known = x
            x = torch.cat([seen, known[..., : self._covariates]], -1)
        more = {} if lengths is None or not takes_lengths(self.body) else {"lengths": lengths}
        if takes_state(self.body):
            return self.body(x, state, **more)  # type: ignore[no-any-return]
        return self.body(x, **more), None


class StateOnly(nn.Module):
    """Runs a `ForecastNet` where just the state is wanted: returns one output alone.

    Examples
    --------
    >>> y, state = StateOnly(ForecastNet(nn.GRU(1, 4), None, 0))(torch.zeros(10, 5, 1))
    >>> y.shape, state.shape
    (torch.Size([10, 5, 1]), torch.Size([1, 5, 4]))
    """

    def __init__(self, net: ForecastNet) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, x: Tree, state: Tree = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        """Run a chunk."""
        y, state = self.net.run_body(x, state, lengths)
        return y[..., :1], state
