"""What the contenders of ``bench_fit.py`` learn: models, and how much there is to do."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar

import torch
from recurrent import Shape
from roofline import Work
from torch import Tensor, nn

import fastseq as fs
from fastseq.sklearn.forecasting.segment_rnn import SegmentRNN


def detached(state: Any) -> Any:
    """Cut a state, a tensor or a tuple of them, off what it was computed from."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else state.detach()
    return tuple(s.detach() for s in state)


@dataclasses.dataclass(frozen=True)
class Task:
    """Truncated back-propagation over `length` steps of `sequences` sequences."""

    shape: Shape
    length: int
    sequences: int

    dropout: ClassVar[float] = 0.0

    @property
    def steps(self) -> int:
        return (self.length // self.shape.s) * (self.sequences // self.shape.n)

    @property
    def model(self) -> str:
        return f"LSTM({self.shape.f},{self.shape.h})+Linear"

    def __str__(self) -> str:
        return (
            f"{self.steps} steps of {self.model}, batchsize {self.shape.n}, seqsize {self.shape.s}"
        )

    def layer(self) -> nn.Module:
        """Make torch's layer."""
        return nn.LSTM(self.shape.f, self.shape.h)

    def own(self, layer: nn.Module) -> nn.Module:
        """Return fastseq's for it, with the same weights."""
        own = fs.nn.LSTM(self.shape.f, self.shape.h)
        own.load_state_dict(layer.state_dict())
        return own

    def head(self) -> nn.Module:
        """Make what lies behind the layer."""
        return nn.Linear(self.shape.h, 1)

    def data(self) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.length, self.sequences, self.shape.f)
        return x, x.mean(2, keepdim=True)

    def work(self) -> Work:
        """Count what the recurrent layers have to do in an epoch; the rest is small."""
        return times(self.steps, self.shape.work("LSTM", backward=True))


class Deep(Task):
    """A GRU of two layers with dropout between them."""

    dropout: ClassVar[float] = 0.1

    @property
    def model(self) -> str:
        return f"GRU({self.shape.f},{self.shape.h}) of 2 layers with dropout+Linear"

    def layer(self) -> nn.Module:
        return nn.GRU(self.shape.f, self.shape.h, 2)  # `dropout` is set for the timing

    def own(self, layer: nn.Module) -> nn.Module:
        own = fs.nn.GRU(self.shape.f, self.shape.h, 2)
        own.load_state_dict(layer.state_dict())
        return own

    def work(self) -> Work:
        _, h, n, s = dataclasses.astuple(self.shape)
        first = self.shape.work("GRU", backward=True)
        above = Shape(h, h, n, s).work("GRU", backward=True)
        back = 2 * s * n * 3 * h * h  # to the layer below
        both = Work(
            first.operations + above.operations + back, first.bytes_moved + above.bytes_moved
        )
        return times(self.steps, both)


class Windows(nn.Module):
    """A network of windows, each by itself, as a layer with a state: none."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return self.net(x), state


class Forecast(Task):
    """The default model of forecasters, on windows of as many values as its shape has features."""

    horizon: ClassVar[int] = 24
    segment: ClassVar[int] = 12

    @property
    def model(self) -> str:
        return f"a forecaster's SegmentRNN, {self.shape.f} to {self.horizon}"

    def layer(self) -> nn.Module:
        net = SegmentRNN(
            horizon=self.horizon, variables=1, outputs=1, lags=self.shape.f, segment=self.segment,
            season=self.horizon, hidden_size=self.shape.h,
        )  # fmt: skip
        return Windows(net)

    def own(self, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, Windows)
        return copy.deepcopy(layer.net)

    def head(self) -> nn.Module:
        return nn.Identity()

    def data(self) -> tuple[Tensor, Tensor]:
        series = torch.randn(self.sequences, self.length + self.shape.f + self.horizon).cumsum(1)
        windows = series.unfold(1, self.shape.f + self.horizon, 1)[:, : self.length].transpose(0, 1)
        return windows[..., : self.shape.f].contiguous(), windows[..., self.shape.f :].contiguous()

    def work(self) -> Work:
        lags, h, n, s = dataclasses.astuple(self.shape)
        windows = n * s
        gru = Shape(h, h, windows, lags // self.segment).work("GRU", backward=True)
        back = 2 * windows * (lags // self.segment) * 3 * h * h  # to what embeds the segments
        forth = windows * (
            lags * self.horizon  # the linear path
            + lags // self.segment * (self.segment + 1) * h + h * h + h * self.horizon
        )  # fmt: skip
        return times(self.steps, Work(gru.operations + back + 5 * forth, gru.bytes_moved))


def times(count: int, work: Work) -> Work:
    """Return `count` times as much work."""
    return Work(count * work.operations, count * work.bytes_moved)
