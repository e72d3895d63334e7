"""The default model of a forecaster: a linear path and a recurrent one over segments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..._util.tree import Tree
from ...nn import GRU

__all__ = ["SegmentRNN"]


class SegmentRNN(nn.Module):
    """Forecast all steps of the horizon as changes from the last known value, the level.

    Two paths from the last `lags` values add up. The linear one leads from values less the level
    straight to the horizon, as in [1]_. The recurrent one goes over segments, as in [2]_: each step
    of a GRU sees a whole segment less its last value, and by how much that has changed since the
    segment before. The linear path starts at means of the values whole seasons before each step of
    the horizon (without a season, of all), the recurrent one at zero.

    Parameters
    ----------
    horizon, variables, outputs
        Number of steps H and of variables K to forecast, and of outputs for each value Q.
    lags
        Number of last values to see, at least `segment`.
    segment
        Steps of a segment.
    season
        Steps of a season, at most `lags`; None: there is none.
    covariates
        Number of covariates known ahead, F.
    hidden_size, num_layers, dropout
        Units and layers of the GRU, and the dropout of what is made of its last output.

    References
    ----------
    .. [1] A. Zeng et al., "Are transformers effective for time series forecasting?", AAAI 37
       (2023), arXiv:2205.13504.
    .. [2] S. Lin et al., "SegRNN: segment recurrent neural network for long-term time series
       forecasting" (2023), arXiv:2308.11200.

    Examples
    --------
    >>> net = SegmentRNN(horizon=4, variables=1, outputs=1, lags=6, segment=2, season=3)
    >>> net(torch.arange(6.0).reshape(1, 1, 6)).detach()
    tensor([[[1.5000, 2.5000, 3.5000, 1.5000]]])
    """

    def __init__(
        self,
        *,
        horizon: int,
        variables: int,
        outputs: int,
        lags: int,
        segment: int,
        season: int | None = None,
        covariates: int = 0,
        hidden_size: int = 64,
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self._shape = horizon, variables, outputs
        self._lags = lags
        self._season = season
        self._segment = segment
        self._covariates = covariates
        self._gain = lags**-0.5  # for the optimizer moves all weights at once
        self.linear = nn.Linear(lags, horizon * outputs)
        self.embed = nn.Linear((segment + 1) * variables, hidden_size)
        self.recurrent = GRU(hidden_size, hidden_size, num_layers)
        self.mix = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_size, horizon * variables * outputs)
        if covariates:
            self.known = nn.Linear(covariates, hidden_size)
            self.known_out = nn.Linear(hidden_size, variables * outputs)
        self.repeat()

    def repeat(self, *, mean: bool = True) -> None:
        """Set weights to forecast means over seasons; else to repeat the last season, or value."""
        horizon, _, outputs = self._shape
        step, place = torch.arange(horizon)[:, None], torch.arange(self._lags) - self._lags
        same = (step - place) % (self._season or 1) == 0
        if not mean:
            same &= place >= -(self._season or 1)
        with torch.no_grad():
            for layer in (self.linear, self.out, *([self.known_out] if self._covariates else [])):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
            weights = same / same.sum(1, keepdim=True) / self._gain
            self.linear.weight.view(horizon, outputs, -1).copy_(weights.unsqueeze(1))

    def forward(self, x: Tree) -> Tensor:
        """Forecast at each step of a chunk.

        Parameters
        ----------
        x
            What is known at each step, ``(S, B, lags · P)``: the last K of P features are used.
            With covariates a pair of it and those of the horizon, ``(S, B, H · F)``.

        Returns
        -------
        Tensor
            ``(S, B, H · K · Q)``.
        """
        horizon, variables, outputs = self._shape
        values, known = x if self._covariates else (x, None)
        steps, count = values.shape[:2]
        values = values.unflatten(-1, (self._lags, -1))[..., -variables:]
        level = values[:, :, -1]
        past = self._gain * (values - level.unsqueeze(2)).transpose(2, 3)
        straight = self.linear(past).view(steps, count, variables, horizon, outputs)
        hidden = self.dropout(torch.relu(self.mix(self._over_segments(values.flatten(0, 1)))))
        changes = self.out(hidden).view(steps, count, horizon, variables, outputs)
        y = level.view(steps, count, 1, variables, 1) + straight.transpose(2, 3) + changes
        if known is not None:
            known = self.known(known.unflatten(-1, (horizon, self._covariates)))
            at = torch.tanh(known + hidden.view(steps, count, 1, -1))
            y = y + self.known_out(at).view_as(y)
        return y.flatten(2)  # type: ignore[no-any-return]

    def _over_segments(self, values: Tensor) -> Tensor:
        """Return what the GRU makes of windows ``(W, lags, K)`` at their ends, ``(W, hidden)``."""
        whole = self._lags // self._segment
        segments = values[:, -whole * self._segment :]
        segments = segments.reshape(values.shape[0], whole, self._segment, -1)
        level = segments[:, :, -1]
        before = torch.cat([segments[:, :1, 0], level[:, :-1]], 1)
        own = (segments - level.unsqueeze(2)).flatten(2)
        seen = torch.cat([own, level - before], -1).transpose(0, 1)
        return self.recurrent(torch.relu(self.embed(seen)))[0][-1]  # type: ignore[no-any-return]
