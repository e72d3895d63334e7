"""Several ranks: the first writes, all read, and what fails on one raises on all."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from models import Custom, adamw, chain
from torch.nn.functional import mse_loss

import fastseq as fs

LOSS = fs.seqloss(mse_loss)
SPEC = {"epochs": 1, "batchsize": 2, "seqsize": 7, "scale_x": "standard"}


def fitted(model):
    x = torch.randn(20, 7, 3, generator=torch.Generator().manual_seed(1))
    est = fs.Estimator(model, LOSS, adamw, SPEC, device="cpu", progress=False)
    return est.fit(x, x.mean(2, keepdim=True)), x


def test_the_first_rank_writes_and_all_load(folder):
    est, x = fitted(chain())
    est.predict(x[:10])
    est.save(folder / "model", state=True)
    assert os.listdir(folder) == ["model"]  # it is there as soon as any rank goes on
    loaded = fs.Estimator.load(folder / "model", device="cpu", progress=False)
    assert torch.equal(loaded.step(x[10]), est.step(x[10]))
    wanted, got = est.predict(x), loaded.predict(x)  # together
    np.testing.assert_array_equal(got, wanted)


def test_a_file_that_one_rank_cannot_use(folder, comm):
    """The model is another one on the last rank only."""
    est, _ = fitted(Custom())
    est.save(folder / "model")
    last = comm.rank == comm.size - 1
    expected = fs.FastseqError if last else fs.RemoteError
    with pytest.raises(expected, match=r"another model: inner\.weight"):
        fs.Estimator.load(folder / "model", Custom(hidden=5 if last else 4), device="cpu")
    assert isinstance(fs.Estimator.load(folder / "model", Custom, device="cpu"), fs.Estimator)


def test_where_nothing_can_be_written(folder, comm):
    est, _ = fitted(chain())
    expected = FileNotFoundError if comm.rank == 0 else fs.RemoteError
    with pytest.raises(expected, match="no such folder"):
        est.save(folder / "nowhere" / "model")


def test_a_classifier(folder, comm):
    x = np.random.default_rng(0).standard_normal((30, 6, 2)).astype(np.float32)
    y = np.where(x.sum((1, 2)) > 0, "up", "down")
    model = fs.SequenceClassifier("gru", epochs=1, random_state=0, comm=comm, device="cpu")
    model.fit(x, y).save(folder / "model")
    again = fs.SequenceClassifier.load(folder / "model", comm=comm, device="cpu")
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    for one in (model, again):
        one.partial_fit(x, y)
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
