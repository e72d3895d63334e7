"""Networks with one output for each sequence, updated in C++ beside updates by autograd."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy, mse_loss
from updates import FEATURES, compared, drawn_runs

import fastseq as fs
from fastseq.nn import Pool, PooledRNN
from fastseq.nn.per_sequence import AtLastStep, PerSequence

STEPS = 9
SPEC = {"epochs": 1, "batchsize": 2, "seqsize": STEPS}
POOLS = ["last", "mean", "max", "last+mean+max", "max+max"]


def drawn_network(rng: random.Random, outputs: int) -> nn.Module:
    pool = rng.choice(POOLS)
    parts = len(pool.split("+"))
    if rng.random() < 0.5:
        return PooledRNN(
            FEATURES, outputs, rng.choice(["lstm", "gru", "rnn"]), rng.choice([1, 4, 10, 19]),
            rng.choice([1, 2]), bidirectional=rng.random() < 0.5, pool=pool,
        )  # fmt: skip
    # Many of the rectified values are equal: zero.
    body = rng.choice([
        lambda: (fs.nn.RNN(FEATURES, 5, nonlinearity="relu"), 5),
        lambda: (fs.nn.LSTM(FEATURES, 17, bidirectional=True), 34),
        lambda: (nn.GRU(FEATURES, 4), 4),
        lambda: (nn.Sequential(nn.Linear(FEATURES, 6), nn.ReLU()), 6),
        lambda: (nn.Identity(), FEATURES),
    ])  # fmt: skip
    layer, width = body()
    if width * parts == outputs:
        return fs.nn.Chain(layer, Pool(pool))
    head = nn.Linear(width * parts, outputs)
    return fs.nn.Chain(layer, Pool(pool), *rng.choice([[head], [nn.ReLU(), head, nn.Tanh()]]))


def drawn(number: int) -> tuple[Any, dict[str, Any], int]:
    """Return a function that makes an estimator, its data, and the size of its numbers."""
    rng = random.Random(number)  # noqa: S311
    torch.manual_seed(number)
    dtype = rng.choice([torch.float32, torch.float64, torch.float64])
    fn, outputs = rng.choice([(mse_loss, 1), (nn.HuberLoss(delta=0.3), 2), (cross_entropy, 4)])
    network = drawn_network(rng, outputs).to(dtype)
    loss = rng.choice([PerSequence, AtLastStep])(fs.seqloss(fn))
    count = rng.choice([1, 5, 12])
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(STEPS, count, FEATURES, generator=draw, dtype=dtype)
    y = torch.randn(STEPS, count, outputs, generator=draw, dtype=dtype)
    if fn is cross_entropy:
        y = torch.randint(outputs, (STEPS, count, 1), generator=draw)
    data: dict[str, Any] = {"x": x, "y": y}
    if rng.random() < 0.6:
        data["lengths"] = torch.randint(1, STEPS + 1, (count,), generator=draw)
    if rng.random() < 0.4:
        data["w"] = torch.rand(STEPS, count, generator=draw).round(decimals=1)
    spec = {"epochs": 2, "batchsize": rng.choice([2, 5, 64]), "seqsize": STEPS}

    def make(*callbacks: Any) -> fs.Estimator:
        own = copy.deepcopy(network)
        optimizer = optim.AdamW(own.parameters(), 1e-2, eps=1e-8 if dtype.itemsize == 8 else 1e-3)
        return fs.Estimator(
            own, loss, optimizer, spec, callbacks=list(callbacks), progress=False
        )  # fmt: skip

    return make, data, dtype.itemsize


@pytest.mark.filterwarnings("ignore:.*bidirectional", "ignore:.*reads the chunks")
@pytest.mark.parametrize("number", drawn_runs(100, sample=30))
def test_drawn_networks_are_trained_as_by_torch(number, by_torch, natively):
    make, data, itemsize = drawn(number)
    native, _ = compared(make, data, itemsize, by_torch)
    assert natively
    assert fs.info(native)["updates"].startswith("in C++")


@pytest.mark.parametrize("how", POOLS)
def test_long_sequences_are_pooled_as_by_torch(how, by_torch, natively):
    """Beyond what a thread gets, and features side by side."""
    torch.manual_seed(0)
    network = fs.nn.Chain(nn.Linear(2, 37), Pool(how), nn.Linear(37 * len(how.split("+")), 3))
    x, y = torch.randn(700, 6, 2), torch.randn(1, 6, 3).expand(700, -1, -1)
    lengths = torch.tensor([700, 1, 650, 3, 17, 699])

    def fitted(train):
        own = copy.deepcopy(network)
        spec = {"epochs": 3, "batchsize": 6, "seqsize": 700}
        optimizer = optim.SGD(own.parameters(), lr=1e-2)
        est = fs.Estimator(own, PerSequence(fs.seqloss(mse_loss)), optimizer, spec, progress=False)
        train(est, x, y, lengths=lengths)
        return own.parameters(), est.history_[-1]["loss"]

    own, loss = fitted(lambda est, *data, **more: est.fit(*data, **more))
    other, other_loss = fitted(by_torch)
    assert natively
    assert loss == pytest.approx(other_loss, rel=1e-5)
    for p, q in zip(own, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def replaced(network: PooledRNN, head: nn.Module) -> PooledRNN:
    network.head = head
    return network


def strange(network: PooledRNN) -> PooledRNN:
    network.head.pool.parts = ["last", "min"]
    return network


@pytest.mark.parametrize(
    ("what", "network"),
    [
        ("a Pool behind a Pool", fs.nn.Chain(nn.Linear(3, 1), Pool("last+max"), Pool("last"))),
        ("a Pool of ['last', 'min']", strange(PooledRNN(3, 1))),
        ("a GRU behind a Pool", fs.nn.Chain(Pool("last"), fs.nn.GRU(3, 1))),
        (
            "a Sequential, which passes no state and no lengths",
            nn.Sequential(Pool("last"), nn.Linear(3, 1)),
        ),
        ("a PooledRNN with a Linear", replaced(PooledRNN(3, 1), nn.Linear(32, 1))),
    ],
)
def test_info_says_which_pooling_is_left_to_torch(what, network):
    optimizer = optim.SGD(network.parameters(), lr=0.1)
    loss = PerSequence(fs.seqloss(mse_loss))
    est = fs.Estimator(network, loss, optimizer, SPEC, progress=False)
    assert fs.info(est)["updates"] == f"by PyTorch: {what}"


def test_pooled_outputs_need_a_loss_of_sequences():
    network = PooledRNN(3, 1)
    optimizer = optim.SGD(network.parameters(), lr=0.1)
    est = fs.Estimator(network, fs.seqloss(mse_loss), optimizer, SPEC, progress=False)
    assert "one output for each sequence" in fs.info(est)["updates"]


def test_classifiers_that_look_both_ways_are_trained_in_c():
    rng = torch.Generator().manual_seed(0)
    x = [torch.randn(n, 2, generator=rng).numpy() for n in (5, 9, 7, 8, 6, 9)]
    found = fs.SequenceClassifier("gru", bidirectional=True, epochs=2).fit(x, [0, 1] * 3)
    assert fs.info(found.estimator_)["updates"].startswith("in C++")
