"""The model of a forecaster: a body for the past, and a head for covariates known ahead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..._util.seeding import seeded, untouched
from ..._util.tree import Tree, tree_leaves, tree_map
from ...nn.stateful import Stateful, in_mode, steps_apart, takes_lengths, takes_state
from ...training.argument_checks import input_dtype
from ...training.native_layers import NotNative
from ...training.time_dependence import find_looks
from .covariate_encoder import CovariateEncoder, CovariateSizes

__all__ = ["ForecastNet", "StateOnly", "check_steps_apart"]


class KnownFuture(nn.Module):
    """Forecast each step of the horizon from a context and covariates known ahead.

    One small network serves all steps of the horizon, as in the multi-horizon quantile forecaster
    of [1]_. Steps do not see each other's covariates.

    Parameters
    ----------
    horizon
        Number of steps.
    covariates
        F.
    width
        Size of each step's context.
    outputs
        Outputs per step.

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
        self.known: nn.Linear = nn.Linear(covariates, width)
        self.out: nn.Linear = nn.Linear(width, outputs)

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
        outputs: Tensor = self.out(torch.tanh(hidden))
        return outputs.flatten(-2)


class ForecastNet(nn.Module):
    """The trained model: it takes what `Windows.inputs` returns.

    Parameters
    ----------
    body
        Any model; it gets the values seen at a step, and the features of covariates: of the last
        steps those known in the past only, of the next step those known ahead, and static ones.
    head
        A `KnownFuture`; None: the body makes the forecasts.
    encoder
        Makes features of covariates; None: there are none, or the body does so.

    Examples
    --------
    >>> encoder = CovariateEncoder(CovariateSizes(ahead=(0, 0)), lagged=False)
    >>> net = ForecastNet(nn.GRU(3, 4), None, encoder)
    >>> y, state = net((torch.zeros(10, 5, 1), torch.zeros(10, 5, 2)))
    >>> y.shape
    torch.Size([10, 5, 4])
    """

    def __init__(
        self,
        body: nn.Module,
        head: KnownFuture | None = None,
        encoder: CovariateEncoder | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.encoder = encoder

    @classmethod
    def make(
        cls,
        build: Callable[[int, int], nn.Module],
        *,
        seen: int,
        lags: int,
        covariates: CovariateSizes,
        horizon: int,
        width: int,
        outputs: int,
        seed: int,
    ) -> ForecastNet:
        """Make a net whose body is ``build(n_in, n_out)``.

        Parameters
        ----------
        build
            Makes the body.
        seen, lags
            Number of values the model sees at a step, of how many steps.
        covariates
            Columns of covariates.
        horizon, outputs
            Number of steps forecast at once, and outputs of each.
        width
            Size of a head's contexts.
        seed
            Seed of the weights of the head and of embeddings.
        """
        if not covariates:
            return cls(build(seen, horizon * outputs))
        with seeded(seed):
            encoder, head = CovariateEncoder(covariates, lagged=False), None
            known = encoder.ahead.features
            if horizon > 1 and known:
                head = KnownFuture(horizon, known, width, outputs)
        seen += known + lags * encoder.past.features + encoder.static.features
        body = build(seen, horizon * (outputs if head is None else width))
        dtype = input_dtype(body)
        most = max(covariates.ahead + covariates.past + covariates.static)
        if most > 2 / torch.finfo(dtype).eps:
            raise ValueError(
                f"module computes in {dtype}, which cannot distinguish {most} categories: let it "
                "compute in torch.float32"
            )
        return cls(body, None if head is None else head.to(dtype), encoder.to(dtype))

    def native_terms(self) -> nn.Module:
        """Return the body if it does all; see `fastseq.training.native_layers`."""
        if self.encoder is not None or self.head is not None:
            raise NotNative("covariates")
        return self.body

    def forward(
        self, x: Tree, state: Tree = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        """Run a chunk; see `Windows.inputs`."""
        x, ahead = self._features(x)
        y, state = self._run(x, state, lengths)
        return (y if self.head is None else self.head(y, ahead)), state

    def run_body(
        self, x: Tree, state: Tree = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        """Run a chunk, without the head."""
        return self._run(self._features(x)[0], state, lengths)

    def _features(self, x: Tree) -> tuple[Tree, Tensor | None]:
        """Return what the body sees, and the features of covariates known ahead."""
        if self.encoder is None:
            return x, None
        values, ahead, past, static = self.encoder(x)
        parts = [values]
        if past is not None:
            parts.append(past.flatten(2))
        if ahead is not None:
            parts.append(ahead[:, :, 0])
        if static is not None:
            parts.append(static)
        return torch.cat(parts, -1), None if ahead is None else ahead.flatten(2)

    def _run(self, x: Tree, state: Tree, lengths: Tensor | None) -> tuple[Tensor, Tree]:
        more = {} if lengths is None or not takes_lengths(self.body) else {"lengths": lengths}
        if takes_state(self.body):
            y, state = self.body(x, state, **more)
            return y, state
        return self.body(x, **more), None


class StateOnly(nn.Module):
    """Run a `ForecastNet` for its state: return only one output.

    Examples
    --------
    >>> y, state = StateOnly(ForecastNet(nn.GRU(1, 4)))(torch.zeros(10, 5, 1))
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


_STEPS, _SEQUENCES = 4096, 3  # to check


def check_steps_apart(net: ForecastNet, x: Tree, outputs: int) -> None:
    """Raise unless a model run step by step, from its state, does the same as on a whole chunk.

    Parameters
    ----------
    net
        The model, on the CPU; it stays unchanged.
    x
        The training inputs, as `Windows.inputs` returns them.
    outputs
        Number of outputs it must have.

    Raises
    ------
    ValueError
        It looks at steps that are neither the current one nor in its state, or does not return
        its outputs at each step.

    Examples
    --------
    >>> check_steps_apart(ForecastNet(nn.LSTM(1, 4)), torch.rand(10, 2, 1), 4)
    """
    device, dtype = torch.device("cpu"), input_dtype(net)
    x = tree_map(lambda a: a[:_STEPS, :_SEQUENCES].to(dtype), x)
    steps, count = tree_leaves(x)[0].shape[:2]
    with in_mode(net, training=False), torch.no_grad(), untouched(device):
        shape = tuple(Stateful(net)(x).shape)
        try:
            Stateful(net)(tree_map(lambda a: a[:1], x))
        except Exception as error:  # a model may raise anything
            raise ValueError(
                "module must take single time steps, because forecasts run it step by step: "
                f"{error}"
            ) from error
    if shape != (steps, count, outputs):
        raise ValueError(
            f"module must return (steps, series, {outputs}): for {steps} steps of {count} series "
            f"it returned {shape}"
        )
    if not steps_apart(net) and find_looks(net, x, steps, device).around:
        raise ValueError(
            "module looks at other time steps than the current one without carrying them in a "
            "state, but forecasts run it step by step: let it carry a state, or give it the last "
            "values at each step by lags=…"
        )
