"""The contender in ``bench_fit.py`` that a user of skorch would write.

Done as in skorch's own example of a language model: the iterator makes the chunks, and the step
carries the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import skorch
import torch
from fit_tasks import detached
from torch import Tensor, nn


class Chunks:
    """Blocks of sequences, chunk by chunk; what skorch has in place of a DataLoader."""

    def __init__(self, dataset: Any, batch_size: int, seqsize: int) -> None:
        self.x, self.y = dataset.X, dataset.y
        self.batch_size, self.seqsize = batch_size, seqsize

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        for n in range(0, self.x.shape[1], self.batch_size):
            for t in range(0, self.x.shape[0], self.seqsize):
                part = slice(t, t + self.seqsize), slice(n, n + self.batch_size)
                yield self.x[part], self.y[part], t == 0


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h, state = self.layer(x, state)
        return self.head(h), state


class Net(skorch.NeuralNet):
    def train_step_single(self, batch: tuple[Tensor, Tensor, bool], **_: Any) -> dict[str, Tensor]:
        """Do what skorch's does, with the state of the chunk before."""
        self._set_training(True)
        xs, ys, first = batch
        predicted, state = self.infer(xs, state=None if first else self.state_)
        self.state_ = detached(state)
        loss = self.get_loss(predicted, ys, X=xs, training=True)
        loss.backward()
        return {"loss": loss, "y_pred": predicted}


class _Skorch:
    """Makes an epoch per call, by `partial_fit`, which continues where the last one stopped."""

    epochs: ClassVar[int] = 1

    def __init__(
        self, x: Any, y: Tensor, net: type[skorch.NeuralNet], module: nn.Module, **own: Any
    ):
        self.x, self.y = x, y
        self.net = net(
            module,
            optimizer=torch.optim.AdamW,
            optimizer__fused=True,
            lr=1e-3,
            max_epochs=1,
            train_split=None,
            callbacks__print_log=None,
            **own,
        ).initialize()

    def __call__(self) -> None:
        self.net.partial_fit(self.x, self.y)

    @property
    def loss(self) -> float:
        return float(self.net.history[-1, "train_loss"])

    def parameters(self) -> list[nn.Parameter]:
        return list(self.net.module_.parameters())


class Skorch(_Skorch):
    def __init__(
        self, layer: nn.Module, head: nn.Module, x: Tensor, y: Tensor, batchsize: int, seqsize: int
    ) -> None:
        super().__init__(
            x, y, Net, Recurrent(layer, head), criterion=nn.MSELoss, batch_size=batchsize,
            iterator_train=Chunks, iterator_train__seqsize=seqsize,
        )  # fmt: skip


class SkorchClassifier(_Skorch):
    """The same for whole sequences and their classes, as skorch is meant to be used."""

    def __init__(self, network: nn.Module, data: tuple[Tensor, ...], batchsize: int) -> None:
        x, lengths, y = data
        super().__init__(
            {"x": x, "lengths": lengths}, y, skorch.NeuralNet, network,
            criterion=nn.CrossEntropyLoss, batch_size=batchsize,
        )  # fmt: skip
