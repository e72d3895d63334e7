"""The default model of a forecaster: a linear path and a recurrent one over segments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..._util.tree import Tree
from ...nn import GRU
from ...training.native_layers import NotNative, SegmentLayers
from .covariate_encoder import NO_COVARIATES, CovariateEncoder, CovariateSizes

__all__ = ["SegmentRNN"]

_GAIN = 4.0  # of covariates' effects, which may be much larger than changes from step to step


class SegmentRNN(nn.Module):
    """Forecast all steps of the horizon as changes from the last known value, the level.

    It is the sum of two paths from the last `lags` values. The linear one leads from values less
    the level straight to the horizon, as in [1]_. The recurrent one goes over segments, as in [2]_:
    each step of a GRU sees a whole segment less its last value, and by how much that has changed
    since the segment before. The linear path starts at means of the values whole seasons before
    each step of the horizon (without a season, of all), the recurrent one at zero.

    The linear effect of covariates in the same step is subtracted from the values first and added
    back to forecasts, as in a regression whose errors are forecast; the level at the origin
    excludes it. Besides, each step of the horizon sees its covariates known ahead together with the
    recurrent path's result, segments contain the covariates of their steps, and a linear path leads
    from covariates known in the past only to the horizon. Static ones are added to the output of
    the recurrent path. All of these effects, except those in segments, start at zero.

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
        Columns of covariates.
    hidden_size, num_layers, dropout
        Units and layers of the GRU, and the dropout of the layer after it.

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
        covariates: CovariateSizes = NO_COVARIATES,
        hidden_size: int = 64,
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self._shape = horizon, variables, outputs
        self._lags = lags
        self._season = season
        self._segment = segment
        self._gain = lags**-0.5  # because the optimizer moves all weights at once
        self.linear: nn.Linear = nn.Linear(lags, horizon * outputs)
        self.embed: nn.Linear = nn.Linear((segment + 1) * variables, hidden_size)
        self.recurrent: GRU = GRU(hidden_size, hidden_size, num_layers)
        self.mix: nn.Linear = nn.Linear(hidden_size, hidden_size)
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.out: nn.Linear = nn.Linear(hidden_size, horizon * variables * outputs)
        self.encode: CovariateEncoder | None = (
            CovariateEncoder(covariates, lagged=True) if covariates else None
        )
        if self.encode is not None:
            ahead, past = self.encode.ahead.features, self.encode.past.features
            if ahead:
                width = -(-hidden_size // 4)  # each step of the horizon has its own
                self.known: nn.Linear = nn.Linear(ahead, width)
                self.context: nn.Linear = nn.Linear(hidden_size, width, bias=False)
                self.known_out: nn.Linear = nn.Linear(width, variables * outputs)
                self.effect: nn.Linear = nn.Linear(ahead, variables, bias=False)
            if ahead or past:
                self.embed_past: nn.Linear = nn.Linear(
                    segment * (ahead + past), hidden_size, bias=False
                )
            if past:
                self.delayed: nn.Linear = nn.Linear(
                    lags * past, horizon * variables * outputs, bias=False
                )
            if covariates.static:
                self.static: nn.Linear = nn.Linear(
                    self.encode.static.features, hidden_size, bias=False
                )
        self.repeat()

    def repeat(self, *, mean: bool = True) -> None:
        """Set weights to forecast means over seasons; else to repeat the last season, or value."""
        horizon, _, outputs = self._shape
        step, place = torch.arange(horizon)[:, None], torch.arange(self._lags) - self._lags
        same = (step - place) % (self._season or 1) == 0
        if not mean:
            same &= place >= -(self._season or 1)
        with torch.no_grad():
            for name in ("linear", "out", "known_out", "effect", "delayed"):
                for weight in getattr(self, name, nn.Module()).parameters():
                    nn.init.zeros_(weight)
            weights = same / same.sum(1, keepdim=True) / self._gain
            self.linear.weight.view(horizon, outputs, -1).copy_(weights.unsqueeze(1))

    def native_terms(self) -> SegmentLayers:
        """Return sizes and layers; see `fastseq.training.native_layers`."""
        if self.encode is not None:
            raise NotNative("covariates")
        horizon, variables, outputs = self._shape
        return SegmentLayers(
            horizon, variables, outputs, self._lags, self._segment, self.linear, self.embed,
            self.recurrent, self.mix, self.dropout, self.out,
        )  # fmt: skip

    def forward(self, x: Tree) -> Tensor:
        """Forecast at each step of a chunk.

        Parameters
        ----------
        x
            What is known at each step, ``(S, B, lags · P)``: the last K of P features are used.
            With covariates a tuple of it and, where there are such columns, of those of the horizon
            ``(S, B, H · F)``, of the last steps ``(S, B, lags · G)``, those known ahead first, and
            of static ones ``(S, B, C)``.

        Returns
        -------
        Tensor
            ``(S, B, H · K · Q)``.
        """
        horizon, variables, outputs = self._shape
        values, ahead, past, static = x, None, None, None
        if self.encode is not None:
            values, ahead, past, static = self.encode(x)
        steps, count = values.shape[:2]
        values = values.unflatten(-1, (self._lags, -1))[..., -variables:]
        if ahead is not None and past is not None:
            values = values - _GAIN * self.effect(past[..., : ahead.shape[-1]])
        level = values[:, :, -1]
        window = self._gain * (values - level.unsqueeze(2)).transpose(2, 3)
        straight = self.linear(window).view(steps, count, variables, horizon, outputs)
        rows = None if past is None else past.flatten(0, 1)
        mixed = self.mix(self._over_segments(values.flatten(0, 1), rows))
        if static is not None:
            mixed = mixed + self.static(static).flatten(0, 1)
        hidden = self.dropout(torch.relu(mixed))
        changes = self.out(hidden).view(steps, count, horizon, variables, outputs)
        y = level.view(steps, count, 1, variables, 1) + straight.transpose(2, 3) + changes
        if ahead is not None:
            context = self.context(hidden).view(steps, count, 1, -1)
            at = torch.relu(self.known(ahead) + context)
            y = y + self.known_out(at).view_as(y) + _GAIN * self.effect(ahead).unsqueeze(-1)
        if past is not None and self.encode is not None and self.encode.past.features:
            own = past[..., -self.encode.past.features :].flatten(2)
            y = y + self._gain * self.delayed(own).view_as(y)
        forecast: Tensor = y.flatten(2)
        return forecast

    def _over_segments(self, values: Tensor, past: Tensor | None) -> Tensor:
        """Return the GRU's last outputs ``(W, hidden)`` for windows ``(W, lags, K)``."""
        whole = self._lags // self._segment
        segments = values[:, -whole * self._segment :]
        segments = segments.reshape(values.shape[0], whole, self._segment, -1)
        level = segments[:, :, -1]
        before = torch.cat([segments[:, :1, 0], level[:, :-1]], 1)
        own = (segments - level.unsqueeze(2)).flatten(2)
        seen = self.embed(torch.cat([own, level - before], -1).transpose(0, 1))
        if past is not None:
            rows = past[:, -whole * self._segment :].reshape(values.shape[0], whole, -1)
            seen = seen + self.embed_past(rows.transpose(0, 1))
        found: Tensor = self.recurrent(torch.relu(seen))[0][-1]
        return found
