"""The contenders in ``bench_fit.py`` that a user of Lightning would write."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any, ClassVar

import lightning
import torch
from fit_tasks import detached
from harness import Seconds
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, Dataset, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
# Workers would copy between processes what is in memory already.
warnings.filterwarnings("ignore", ".*does not have many workers.*")
warnings.filterwarnings("ignore", ".*treespec.*")  # what torch says of Lightning's own code


class Blocks(Dataset[tuple[Tensor, Tensor]]):
    """Whole blocks of sequences, which the module splits in time."""

    def __init__(self, x: Tensor, y: Tensor, batchsize: int) -> None:
        self.x, self.y = x.split(batchsize, 1), y.split(batchsize, 1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Chunks(Dataset[tuple[Tensor, Tensor, bool]]):
    """The chunks of all blocks in their order, and whether one is its block's first."""

    def __init__(self, x: Tensor, y: Tensor, batchsize: int, seqsize: int) -> None:
        self.items = [
            (xs, ys, t == 0)
            for xb, yb in zip(x.split(batchsize, 1), y.split(batchsize, 1), strict=True)
            for t, (xs, ys) in enumerate(zip(xb.split(seqsize), yb.split(seqsize), strict=True))
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, bool]:
        return self.items[index]


class Module(lightning.LightningModule):
    def __init__(self, layer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, head
        self.state: Any = None

    def loss(self, xs: Tensor, ys: Tensor) -> Tensor:
        h, state = self.layer(xs, self.state)
        self.state = detached(state)
        return mse_loss(self.head(h), ys)

    def log_loss(self, loss: Tensor) -> None:
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


class ManualModule(Module):
    """Gets blocks, splits them in time and optimizes by hand.

    This is what Lightning's page on truncated back-propagation through time shows.
    """

    def __init__(self, layer: nn.Module, head: nn.Module, seqsize: int) -> None:
        super().__init__(layer, head)
        self.automatic_optimization = False
        self.seqsize = seqsize

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        optimizer = self.optimizers()
        self.state = None
        losses = []
        for xs, ys in zip(*(a.split(self.seqsize) for a in batch), strict=True):
            loss = self.loss(xs, ys)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        self.log_loss(torch.stack(losses).mean())


class AutomaticModule(Module):
    """Gets a chunk per batch and leaves the step to Lightning."""

    def training_step(self, batch: tuple[Tensor, Tensor, bool], _: int) -> Tensor:
        xs, ys, first = batch
        if first:
            self.state = None
        loss = self.loss(xs, ys)
        self.log_loss(loss)
        return loss


class Clock(lightning.Callback):
    """Notes when epochs end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())


class Lightning:
    """Makes two epochs per call, and times the second one, from the end of the first.

    So what counts is a whole epoch in the midst of a longer `Trainer.fit`, without what that call
    sets up once (some 20 ms).
    """

    epochs: ClassVar[int] = 2

    def __init__(
        self, module: lightning.LightningModule, data: Dataset[Any], batchsize: int | None = None
    ) -> None:
        self.module = module
        # Blocks and chunks are slices: nothing has to be put together.
        self.loader = DataLoader(data, batchsize)

    def __call__(self) -> Seconds:
        clock = Clock()
        trainer = lightning.Trainer(
            max_epochs=self.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        trainer.fit(self.module, self.loader)
        self.loss = float(trainer.callback_metrics["train_loss"])
        return Seconds(clock.ends[1] - clock.ends[0])

    def parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters())


class Manual(Lightning):
    def __init__(
        self, layer: nn.Module, head: nn.Module, x: Tensor, y: Tensor, batchsize: int, seqsize: int
    ) -> None:
        super().__init__(ManualModule(layer, head, seqsize), Blocks(x, y, batchsize))


class Automatic(Lightning):
    def __init__(
        self, layer: nn.Module, head: nn.Module, x: Tensor, y: Tensor, batchsize: int, seqsize: int
    ) -> None:
        super().__init__(AutomaticModule(layer, head), Chunks(x, y, batchsize, seqsize))


class ClassifierModule(lightning.LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> Tensor:
        x, lengths, y = batch
        loss = cross_entropy(self.network(x, lengths), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


class Classifier(Lightning):
    def __init__(self, network: nn.Module, data: tuple[Tensor, ...], batchsize: int) -> None:
        super().__init__(ClassifierModule(network), TensorDataset(*data), batchsize)
