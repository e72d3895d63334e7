"""Series and quick forecasters, for tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fastseq.callbacks import Callback
from fastseq.sklearn import SequenceForecaster

LEVELS = (0.1, 0.5, 0.9)
NAN = np.nan


def wave(steps, count=1, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(steps)
    rows = [np.sin(t / (3 + n)) * (1 + n) + 10 * n for n in range(count)]
    return np.stack(rows) + noise * rng.standard_normal((count, steps))


def quick(**more):
    """Return a small forecaster that scales all series alike, so that each forecast has one value."""
    given = {"horizon": 4, "season": None, "scale": "standard", "epochs": 2, "hidden_size": 8}
    return SequenceForecaster(**{**given, "random_state": 0, **more})


class Fixed(nn.Module):
    """A model that is not changed by training: its outputs are a given matrix times its inputs."""

    def __init__(self, matrix) -> None:
        super().__init__()
        self.matrix = torch.tensor(matrix, dtype=torch.float32)
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x @ self.matrix.T + 0 * self.nothing


class Weights(Callback):
    """Keeps the weights at the end of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[torch.Tensor]] = []

    def on_epoch_end(self, run) -> None:
        self.epochs.append([p.detach().clone() for p in run.model.parameters()])


def assert_same_training(f, g):
    """Two forecasters fitted with `Weights` had the same weights after each epoch, bit for bit."""
    one, two = (fitted.estimator_.callbacks[-1].epochs for fitted in (f, g))
    assert len(one) == len(two) > 0
    for before, after in zip(one, two, strict=True):
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
