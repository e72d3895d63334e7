"""What ``bench_fit.py`` compares for classes of whole sequences of different lengths."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from fit_tasks import times
from recurrent import Shape
from roofline import Work
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastseq as fs
from fastseq.nn.per_sequence import PerSequence


@dataclasses.dataclass(frozen=True)
class Classify:
    """Classes of `sequences` sequences; the steps of its shape are those of the longest."""

    shape: Shape
    sequences: int
    classes: int

    @property
    def steps(self) -> int:
        return self.sequences // self.shape.n

    def __str__(self) -> str:
        f, h, n, s = dataclasses.astuple(self.shape)
        return (
            f"{self.steps} steps of LSTM({f},{h}) both ways+mean+Linear, batchsize {n}, seqsize {s}"
        )

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return sequences ``(N, T, F)``, zero where they have ended, their lengths, classes."""
        steps = self.shape.s
        lengths = torch.randint(steps // 2, steps + 1, (self.sequences,))
        lengths[:: self.shape.n] = steps  # all batches are as long
        x = torch.randn(self.sequences, steps, self.shape.f)
        x[torch.arange(steps) >= lengths.unsqueeze(1)] = 0
        return x, lengths, torch.randint(self.classes, (self.sequences,))

    def network(self) -> Network:
        return Network(self.shape, self.classes)

    def work(self) -> Work:
        """Count the LSTM's, which ends with each sequence: after three quarters on average."""
        f, h, n, s = dataclasses.astuple(self.shape)
        return times(2 * self.steps, Shape(f, h, n, 3 * s // 4).work("LSTM", backward=True))


class Network(nn.Module):
    """What a user of torch writes: packed sequences, means over the steps that they have."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.layer = nn.LSTM(shape.f, shape.h, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * shape.h, classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True)
        scores: Tensor = self.head(h.sum(1) / lengths.unsqueeze(1))
        return scores


class PlainClassifier:
    """The loop that a good PyTorch user writes. A call is an epoch."""

    epochs = 1

    def __init__(self, network: Network, data: tuple[Tensor, ...], batchsize: int) -> None:
        self.network, self.batches = network, [a.split(batchsize) for a in data]
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def __call__(self) -> None:
        total = 0.0
        for x, lengths, y in zip(*self.batches, strict=True):
            loss = cross_entropy(self.network(x, lengths), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        self.loss = total / len(self.batches[0])

    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())


class FitClassifier:
    """The same by `Estimator.fit`."""

    epochs = 1

    def __init__(self, network: Network, data: tuple[Tensor, ...], batchsize: int) -> None:
        x, lengths, y = data
        layer, head = network.layer, network.head
        own = fs.nn.PooledRNN(
            layer.input_size, head.out_features, "lstm", layer.hidden_size, bidirectional=True,
            pool="mean",
        )  # fmt: skip
        own.rnn.load_state_dict(layer.state_dict())
        own.head.linear.load_state_dict(head.state_dict())
        self.x, self.lengths = x.transpose(0, 1).contiguous(), lengths
        steps = len(self.x)
        self.y = y.view(1, -1, 1).expand(steps, -1, -1)
        # One target for each sequence: the one at its last step.
        self.w = (torch.arange(steps).unsqueeze(1) == lengths - 1).float()
        optimizer = torch.optim.AdamW(own.parameters(), lr=1e-3, fused=True)
        spec: dict[str, Any] = {"epochs": 1, "batchsize": batchsize, "seqsize": steps}
        self.est = fs.Estimator(
            own, PerSequence(fs.seqloss(cross_entropy)), optimizer, spec, progress=False, comm=None
        )

    def __call__(self) -> None:
        self.est.fit(self.x, self.y, self.w, lengths=self.lengths)

    @property
    def loss(self) -> float:
        return float(self.est.history_[-1]["loss"])

    def parameters(self) -> list[nn.Parameter]:
        return list(self.est.model.parameters())
