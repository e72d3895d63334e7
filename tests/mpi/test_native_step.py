"""Updates in C++ on several ranks: those of one process and of torch, the same bits on all ranks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy, mse_loss

import fastseq as fs

LOSS = fs.seqloss(mse_loss)


def data(steps=21, count=13):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(steps, count, 3, generator=generator, dtype=torch.float64)
    return x, x.mean(2, keepdim=True).roll(1, 0)


def lstm(outputs=1, **more):
    torch.manual_seed(0)
    return fs.nn.Chain(fs.nn.LSTM(3, 7, **more), nn.Linear(7, outputs)).double()


OPTIMIZERS = {
    "sgd": lambda params: optim.SGD(params, lr=0.1, momentum=0.8),
    "adamw": lambda params: optim.AdamW(params, lr=0.02),
    "rmsprop": lambda params: optim.RMSprop(params, lr=0.01),
}


def train(comm, *given, model=None, optimizer="adamw", loss=LOSS, callbacks=(), **spec):
    model = copy.deepcopy(lstm() if model is None else model)
    spec = {"epochs": 3, "batchsize": 2, "seqsize": 5, **spec}
    made = OPTIMIZERS[optimizer](model.parameters())
    est = fs.Estimator(
        model, loss, made, spec, comm=comm, progress=False, seed=3, callbacks=list(callbacks)
    )
    return est.fit(*given)


def assert_close(a, b):
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def assert_identical_on_all_ranks(comm, est):
    mine = fs.net2vec(est.model).detach()
    state = [v for own in est.optimizer.state.values() for v in own.values()]
    for tensor in (mine, *state):
        assert torch.equal(tensor, comm.broadcast_(tensor.clone()))


MORE = [
    {},
    {"clip_norm": 0.02},
    {"clip_value": 0.01, "clip_norm": 0.02},
    {"accumulate": 3, "clip_norm": 0.02},
]


@pytest.mark.parametrize("more", MORE, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("count", [12, 13, 1])
def test_equal_one_process_with_the_union_batch(comm, natively, more, optimizer, count):
    """With one sequence, other ranks have none."""
    x, y = data(21, count)
    w = torch.rand(21, count, dtype=torch.float64) * (torch.arange(count) % 4 != 1)
    many = train(comm, x, y, w, optimizer=optimizer, **more)
    assert natively or count == 1
    one = train(None, x, y, w, optimizer=optimizer, batchsize=2 * comm.size, **more)
    assert_close(many, one)
    assert [row["updates"] for row in many.history_] == [row["updates"] for row in one.history_]
    losses = [torch.tensor([row["loss"] for row in est.history_]) for est in (many, one)]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)
    assert_identical_on_all_ranks(comm, many)


@pytest.mark.parametrize("more", MORE, ids=str)
def test_buckets_are_exchanged_while_gradients_come(comm, natively, monkeypatch, more):
    monkeypatch.setattr("fastseq.distributed.bucketizer.BUCKET_BYTES", 64)
    x, y = data(20, 12)
    model = lstm(num_layers=2)
    many = train(comm, x, y, model=model, **more)
    assert natively
    assert_close(many, train(None, x, y, model=model, batchsize=2 * comm.size, **more))
    assert_identical_on_all_ranks(comm, many)


def test_updates_are_alike_where_one_rank_trains_by_torch(comm, natively):
    """What it trains by torch, such as a model with hooks, it updates as the others do."""

    class Watch(fs.callbacks.Callback):
        def on_batch_end(self, run):
            if run.updates == 7 and run.rank == comm.size - 1:
                run.model[1].register_forward_hook(lambda *args: None)

    x, y = data(40, 12)
    many = train(comm, x, y, callbacks=[Watch()])
    assert_identical_on_all_ranks(comm, many)
    assert_close(many, train(None, x, y, batchsize=2 * comm.size))


def test_dropout_differs_between_ranks_and_repeats(comm, natively):
    x, y = data(40, 12)
    model = lstm(num_layers=2, dropout=0.5)
    many = [train(comm, x, y, model=model) for _ in range(2)]
    assert natively
    for p, q in zip(many[0].model.parameters(), many[1].model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert_identical_on_all_ranks(comm, many[0])


@pytest.mark.parametrize("calm", [True, False])
def test_a_stop_that_one_rank_asks_for_ends_all_at_one_update(comm, natively, calm):
    """Calm: nobody looks at each update, as when a signal comes."""

    class Stop(fs.callbacks.Callback):
        def on_epoch_begin(self, run):
            if run.epoch == 2 and run.rank == comm.size - 1:
                run.stop("enough")

    class Look(fs.callbacks.Callback):
        def on_batch_end(self, run):
            pass

    x, y = data(40, 12)
    est = train(comm, x, y, callbacks=[Stop()] if calm else [Stop(), Look()])
    assert natively
    assert len(est.history_) == 1
    assert_identical_on_all_ranks(comm, est)


def test_a_loss_that_is_not_finite_is_told_to_all(comm):
    x, y = data(20, 2 * comm.size)
    y[7, 2 * (comm.size - 1)] = 1e300
    error = fs.NonFiniteError if comm.rank == comm.size - 1 else fs.RemoteError
    with pytest.raises(error, match="loss is inf"):
        train(comm, x, y)
    comm.barrier()


def test_a_label_that_is_no_class_is_told_to_all(comm):
    x, _ = data(20, 2 * comm.size)
    y = torch.zeros(20, 2 * comm.size, 1, dtype=torch.int64)
    y[7, 2 * (comm.size - 1)] = 3
    error = ValueError if comm.rank == comm.size - 1 else fs.RemoteError
    with pytest.raises(error, match="must be class numbers"):
        train(comm, x, y, model=lstm(3), loss=fs.seqloss(cross_entropy))
