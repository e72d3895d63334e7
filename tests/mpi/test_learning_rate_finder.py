"""The test of learning rates on several ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import chain
from torch.nn.functional import mse_loss

import fastseq as fs


def estimator(comm, batchsize, loss=mse_loss, model=None):
    spec = {"epochs": 1, "batchsize": batchsize, "seqsize": 5}
    torch.manual_seed(0)
    model = chain() if model is None else model
    sgd = torch.optim.SGD
    return fs.Estimator(model, fs.seqloss(loss), sgd, spec, comm=comm, seed=3, progress=False)


def data(count):
    x = torch.randn(10, count, 3, generator=torch.Generator().manual_seed(1))
    return x, x.sum(2, keepdim=True)


def test_equals_one_process_with_the_union_batch(comm):
    x, y = data(4 * comm.size)
    est = estimator(comm, 2)
    weights = fs.net2vec(est.model).detach().clone()
    many = est.find_lr(x, y, least=1e-4)
    one = estimator(None, 2 * comm.size).find_lr(x, y, least=1e-4)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-4)
    np.testing.assert_array_equal(many.rates, one.rates)
    assert torch.equal(comm.broadcast_(torch.from_numpy(many.losses)).clone(),
                       torch.from_numpy(many.losses))  # fmt: skip
    assert torch.equal(weights, fs.net2vec(est.model))


def breaks_on(comm, rank, error=None):
    calls = []

    def loss(output, target, reduction="mean"):
        calls.append(1)
        value = mse_loss(output, target, reduction=reduction)
        if comm.rank != rank or len(calls) != 15:
            return value
        if error is not None:
            raise error
        return value * torch.inf

    return loss


def test_a_loss_that_diverges_on_one_rank_ends_it_on_all(comm):
    x, y = data(4 * comm.size)
    est = estimator(comm, 2, breaks_on(comm, comm.size - 1))
    found = est.find_lr(x, y, most=1e-3)
    assert len(found.losses) == 14
    est.fit(x, y)  # the ranks still work together
    assert len(est.history_) == 1


def test_gradients_that_are_infinite_end_it(comm):
    x, y = data(4 * comm.size)
    est = estimator(comm, 2, model=torch.nn.Linear(3, 1))
    found = est.find_lr(x, y, least=1e-3, most=1e38)
    assert 5 < len(found.losses) < 60
    assert np.isfinite(found.losses).all()
    est.fit(x, y)


def test_other_errors_are_raised_on_all(comm):
    x, y = data(4 * comm.size)
    est = estimator(comm, 2, breaks_on(comm, comm.size - 1, KeyError("my own bug")))
    weights = fs.net2vec(est.model).detach().clone()
    with pytest.raises((KeyError, fs.RemoteError), match="my own bug"):
        est.find_lr(x, y, most=1e-3)
    assert torch.equal(weights, fs.net2vec(est.model))
    est.fit(x, y)


def test_ranks_with_other_ranges_are_told(comm):
    if comm.size == 1:
        return
    with pytest.raises(ValueError, match="the run differs between ranks"):
        estimator(comm, 2).find_lr(*data(4 * comm.size), updates=20 + comm.rank)
    comm.barrier()
