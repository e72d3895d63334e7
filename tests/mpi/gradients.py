"""Models, and their averaged gradients as one process computes them."""

from __future__ import annotations

import torch
from torch import nn


class Odd(nn.Module):
    """Parameters of every awkward kind."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1).to(memory_format=torch.channels_last)
        self.empty = nn.Parameter(torch.zeros(0))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.tied = nn.Linear(3, 3)
        self.again = nn.Linear(3, 3)
        self.again.weight = self.tied.weight
        self.transposed = nn.Parameter(torch.randn(5, 3).T)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(11))

    def forward(self, x):
        x = self.conv(x.reshape(-1, 2, 4, 4)).mean((2, 3)) * self.scalar + self.frozen
        return self.again(self.tied(self.tied(x))) @ self.transposed + self.empty.sum()


def ranks_models(comm, make, inputs, weights=None):
    """Return rank-averaged gradients of a model as one process would compute them."""
    weights = weights or [1.0] * comm.size
    total = {}
    for rank in range(comm.size):
        torch.manual_seed(0)
        model = make()
        model(inputs(rank)).square().sum().backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total.setdefault(name, torch.zeros_like(p))
                total[name] += p.grad * (weights[rank] / sum(weights))
    return total


def inputs_of(*shape):
    def inputs(rank):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + rank))

    return inputs


def step(comm, model, buckets, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return buckets.wait()


def small():
    return nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 5), nn.Linear(5, 1))


def made(make):
    torch.manual_seed(0)
    return make()


def assert_close(model, wanted):
    for name, p in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(p.grad, wanted[name], rtol=1e-5, atol=1e-6)
        else:
            assert p.grad is None, name


def assert_same_bits_on_all_ranks(comm, model):
    for p in model.parameters():
        if p.grad is not None:
            assert torch.equal(comm.broadcast_(p.grad.clone()), p.grad)
