"""Metrics over all ranks: every rank has the same, that of all samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import chain
from sklearn import metrics as sk
from torch.nn.functional import cross_entropy, mse_loss

import fastseq as fs
from fastseq.callbacks import Metrics


def data(steps=11, count=7):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(steps, count, 3, generator=generator)
    return x, x[..., :1] + x[..., 1:2].cumsum(0)


def fitted(comm, metrics, x, y, w=None, *, loss=mse_loss, outputs=1, spec=(), **options):
    torch.manual_seed(0)
    spec = {"epochs": 1, "batchsize": 2, "seqsize": 4} | dict(spec)
    still = lambda params: torch.optim.SGD(params, lr=0.0)  # noqa: E731
    est = fs.Estimator(
        chain(outputs=outputs), fs.seqloss(loss), still, spec, comm=comm, callbacks=[metrics],
        progress=False, seed=0,
    )  # fmt: skip
    return est.fit(x, y, w, **options)


def assert_same_everywhere(comm, row, names):
    mine = torch.tensor([row[name] for name in names], dtype=torch.float64)
    assert torch.equal(comm.broadcast_(mine.clone()), mine)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("shard", ["sequences", "time"])
def test_on_both_parts(comm, count, shard):
    (x, y), held_out = data(count=count), data(9, 3)
    w = torch.rand(count) + 0.5
    largest = Metrics("r2", worst=lambda a, b: abs(a - b).max(), train=True)
    est = fitted(comm, largest, x, y, w, validation=held_out, spec={"shard": shard})
    row = est.history_[-1]
    predicted = est.predict(x)
    ws = w.expand(len(x), count).ravel()
    score = sk.r2_score(y.ravel(), predicted.ravel(), sample_weight=ws)
    assert row["r2"] == pytest.approx(score, abs=1e-5)
    assert row["worst"] == pytest.approx(abs(y.numpy() - predicted).max(), abs=1e-5)
    score = sk.r2_score(held_out[1].ravel(), est.predict(held_out[0]).ravel())
    assert row["validation_r2"] == pytest.approx(score, abs=1e-5)
    assert_same_everywhere(comm, row, ["r2", "worst", "validation_r2", "validation_worst"])


def test_by_time_and_masked(comm):
    x, y = data(12, 5)
    mask = torch.rand(12, 5, generator=torch.Generator().manual_seed(2)) > 0.4
    est = fitted(comm, Metrics("r2"), x, y, mask=mask, validation={"time": 4})
    predicted = est.predict(x * mask.unsqueeze(-1))
    score = sk.r2_score(y[8:][mask[8:]], predicted[8:][mask[8:]])
    assert est.history_[-1]["validation_r2"] == pytest.approx(score, abs=1e-5)


def test_classes_of_lists(comm):
    generator = torch.Generator().manual_seed(1)
    x = [torch.randn(3 + i, 3, generator=generator) for i in range(5)]
    y = [(part[:, :1] > 0).long() for part in x]
    est = fitted(
        comm, Metrics("accuracy", "roc_auc", train=True), x, y, loss=cross_entropy, outputs=2
    )
    logits, known = np.concatenate(est.predict(x)), np.concatenate(y)
    row = est.history_[-1]
    assert row["accuracy"] == sk.accuracy_score(known, logits.argmax(1))
    assert row["roc_auc"] == pytest.approx(sk.roc_auc_score(known, logits[:, 1] - logits[:, 0]))
    assert_same_everywhere(comm, row, ["accuracy", "roc_auc"])


def test_a_metric_that_fails_raises_on_all_ranks(comm):
    def fails(y_true, y_pred):
        raise ZeroDivisionError("no such thing")

    kind = ValueError if comm.rank == 0 else fs.RemoteError
    with pytest.raises(kind, match="'fails' failed on the training part: no such thing"):
        fitted(comm, Metrics(fails, train=True), *data())
    assert fitted(comm, Metrics("r2", train=True), *data()).history_[-1]["r2"] < 1
