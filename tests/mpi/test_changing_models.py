"""Models that change while several ranks train them: replicas stay equal, and as in one process."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from models import assert_same_parameters
from torch import nn, optim
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

import fastseq as fs
from fastseq.distributed import Bucketizer

LOSS = fs.seqloss(mse_loss)


def data(steps=20, count=13):
    x = torch.randn(steps, count, 3, generator=torch.Generator().manual_seed(1))
    return x, x.mean(2, keepdim=True).roll(1, 0)


def trained(comm, model, optimizer, callbacks=(), epochs=3, batchsize=2):
    spec = {"epochs": epochs, "batchsize": batchsize, "seqsize": 5}
    est = fs.Estimator(
        model, LOSS, optimizer, spec, comm=comm, callbacks=callbacks, seed=0, progress=False
    )
    return est.fit(*data())


def assert_identical(comm, tensors):
    mine = torch.cat([t.detach().double().flatten() for t in tensors])
    assert torch.equal(mine, comm.broadcast_(mine.clone()))


class Unfreeze(fs.callbacks.Callback):
    def on_epoch_begin(self, run):
        run.model[0].requires_grad_(run.epoch > 1)


class UnfreezeEarly(fs.callbacks.Callback):
    def on_batch_end(self, run):
        run.model[0].requires_grad_(True)


class Replace(fs.callbacks.Callback):
    def __init__(self, head):
        self.head = head

    def on_epoch_begin(self, run):
        if run.epoch == 2:
            run.model[1] = copy.deepcopy(self.head)


@pytest.mark.parametrize("callback", [Unfreeze, UnfreezeEarly, "replace"])
@pytest.mark.parametrize("fused", [False, True])
def test_changes_within_a_fit(comm, callback, fused):
    torch.manual_seed(0)
    model, head = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), nn.Linear(4, 1)
    model[0].requires_grad_(callback == "replace")
    make = partial(optim.AdamW, lr=0.01, fused=fused)

    def run(ranks, batchsize):
        own = copy.deepcopy(model)
        if callback == "replace":
            return trained(ranks, own, make, [Replace(head)], batchsize=batchsize).model
        optimizer = make(own.parameters())
        return trained(ranks, own, optimizer, [callback()], batchsize=batchsize).model

    many, one = run(comm, 2), run(None, 2 * comm.size)
    assert_identical(comm, many.parameters())
    assert_same_parameters(many, one, rtol=1e-4)
    assert not torch.equal(one[0].weight, model[0].weight)


def test_a_change_on_one_rank_alone_is_told(comm):
    if comm.size == 1:
        return

    class Odd(fs.callbacks.Callback):
        def on_epoch_begin(self, run):
            if run.epoch == 2 and comm.rank == 1:
                run.model[0].requires_grad_(False)

    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    with pytest.raises((ValueError, fs.RemoteError), match="the model differs between ranks"):
        trained(comm, model, optim.SGD(model.parameters(), lr=0.1), [Odd()])


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x):
        z = self.inner(x)
        return self.head(self.norm(z.flatten(0, 1)).view_as(z))


def by_hand(comm, model, x, y):
    """Train one epoch, the ranks' parts one after the other; return each rank's own statistics."""
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    models = [copy.deepcopy(model) for _ in range(comm.size)]
    seen = [0] * comm.size
    width = 3 * comm.size
    for n in range(0, x.shape[1], width):
        whole = min(n + width, x.shape[1]) - n
        for t in range(0, x.shape[0], 5):
            optimizer.zero_grad()
            for rank, own in enumerate(models):
                a, b = n + whole * rank // comm.size, n + whole * (rank + 1) // comm.size
                if a == b:
                    continue
                with torch.no_grad():
                    for p, q in zip(own.parameters(), model.parameters(), strict=True):
                        p.copy_(q)
                own.zero_grad()
                mse_loss(own(x[t : t + 5, a:b]), y[t : t + 5, a:b]).backward()
                seen[rank] += 5 * (b - a)
                for p, q in zip(own.parameters(), model.parameters(), strict=True):
                    part = p.grad * ((b - a) / whole)
                    q.grad = part if q.grad is None else q.grad + part
            optimizer.step()
    return [own.norm for own in models], np.array(seen, float)


def test_statistics_of_batchnorm_are_common(comm, folder):
    """The mean over the samples that each rank has seen; what is saved is what predicts."""
    count = 9 * comm.size - 1  # the last block has a sequence less
    x, y = data(20, count)
    x = x + torch.arange(float(count))[:, None]  # every rank sees another part
    model = Normed()
    norms, seen = by_hand(comm, copy.deepcopy(model), x, y)
    est = fs.Estimator(
        model, LOSS, partial(optim.SGD, lr=0.01), {"epochs": 1, "batchsize": 3, "seqsize": 5},
        comm=comm, progress=False,
    )  # fmt: skip
    est.fit(x, y)
    assert_identical(comm, model.buffers())
    for name in ("running_mean", "running_var"):
        ranks = torch.stack([getattr(norm, name).double() for norm in norms])
        wanted = (ranks * torch.from_numpy(seen / seen.sum())[:, None]).sum(0)
        torch.testing.assert_close(getattr(model.norm, name).double(), wanted, rtol=1e-4, atol=1e-5)
    assert model.norm.num_batches_tracked == max(int(n.num_batches_tracked) for n in norms)
    est.save(folder / "normed.safetensors")
    again = fs.Estimator.load(folder / "normed.safetensors", Normed, comm=comm)
    np.testing.assert_array_equal(again.predict(x), est.predict(x))
    comm.barrier()


@pytest.mark.parametrize("hook", ["on_batch_end", "on_epoch_end"])
def test_statistics_are_common_whenever_a_callback_looks(comm, hook, folder):
    x, _ = data()
    found = []

    def look(run):
        if hook == "on_epoch_end" or run.chunk == 2:
            found.append(run.estimator.evaluate(*data()))
            assert_identical(comm, run.model.buffers())
            if run.epoch == 2:
                run.estimator.save(folder / "in-fit.safetensors")
                found.append(run.estimator.predict(x))
                again = fs.Estimator.load(folder / "in-fit.safetensors", Normed, comm=comm)
                np.testing.assert_array_equal(again.predict(x), found.pop())

    callback = type("Look", (fs.callbacks.Callback,), {hook: lambda _, run: look(run)})()
    est = trained(comm, Normed(), partial(optim.SGD, lr=0.01), [callback])
    assert len(found) == 3
    assert_identical(comm, est.model.buffers())
    comm.barrier()


def test_statistics_are_common_where_no_sample_counted(comm):
    class Stop(fs.callbacks.Callback):
        def on_batch_end(self, run):
            run.stop("early")

    x, y = data()
    w = torch.ones(x.shape[:2])
    w[:10] = 0  # the chunks before the end
    est = fs.Estimator(
        Normed(), LOSS, partial(optim.SGD, lr=0.01), {"epochs": 1, "batchsize": 2, "seqsize": 5},
        comm=comm, callbacks=[Stop()], progress=False,
    )  # fmt: skip
    est.fit(x + torch.arange(13.0)[:, None], y, w)  # every rank sees another part
    assert est.model.norm.num_batches_tracked == 2
    assert_identical(comm, est.model.buffers())


def test_buffers_that_are_equal_keep_their_bits(comm):
    class Fixed(Normed):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.rand(7))
            self.register_buffer("missing", torch.tensor([torch.nan, torch.inf]))
            self.register_buffer("turn", torch.rand(3, dtype=torch.complex64))
            self.register_buffer("order", torch.tensor([2**40 + 1, 5]))

    model = Fixed()
    before = {name: b.clone() for name, b in model.named_buffers()}
    trained(comm, model, partial(optim.SGD, lr=0.01))
    for name in ("table", "missing", "turn", "order"):
        first = comm.broadcast_(
            torch.view_as_real(before[name]) if name == "turn" else before[name]
        )
        now = torch.view_as_real(getattr(model, name)) if name == "turn" else getattr(model, name)
        torch.testing.assert_close(now, first, rtol=0, atol=0, equal_nan=True)


class Checkpointed(nn.Module):
    """Computes each half of a chunk again in backward, which gives parameters two gradients."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.rnn, self.head = nn.LSTM(3, 5), nn.Linear(5, 1)

    def forward(self, x, state=None):
        if state is None:
            state = (x.new_zeros(1, x.shape[1], 5),) * 2

        def run(part, h, c):
            y, (h, c) = self.rnn(part, (h, c))
            return y, h, c

        outputs = []
        for part in x.split(3):
            part = part.clone().requires_grad_()
            y, *state = checkpoint(run, part, *state, use_reentrant=self.reentrant)
            outputs.append(y)
        return self.head(torch.cat(outputs)), tuple(state)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations(comm, monkeypatch, reentrant):
    monkeypatch.setattr(fs.training.loop, "Bucketizer", partial(Bucketizer, bucket_bytes=64))
    torch.manual_seed(0)
    model = Checkpointed(reentrant)
    many = trained(comm, copy.deepcopy(model), partial(optim.SGD, lr=0.1)).model
    one = trained(None, model, partial(optim.SGD, lr=0.1), batchsize=2 * comm.size).model
    assert_identical(comm, many.parameters())
    assert_same_parameters(many, one, rtol=1e-4)
