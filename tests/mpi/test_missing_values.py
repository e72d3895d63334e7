"""Missing values on several ranks against one process, and data in which nothing counts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from models import adamw, assert_same_parameters, chain
from torch.nn.functional import mse_loss

import fastseq as fs

OFFSET = 1e9


def fitted(comm, model, x, y, *more, batchsize=2, **options):
    spec = {"epochs": 3, "batchsize": batchsize, "seqsize": 5, "nan": "mask"}
    spec.update(scale_x="standard", scale_y="standard")
    metrics = fs.callbacks.Metrics("r2", train=True)
    est = fs.Estimator(
        copy.deepcopy(model), fs.seqloss(mse_loss), adamw, spec, comm=comm, progress=False,
        seed=0, callbacks=[metrics],
    )  # fmt: skip
    return est.fit(x, y, *more, **options)


def test_as_one_process(comm):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((21, 7, 3))
    y = np.stack([x.sum(2), x[..., 0]], 2)
    x[rng.random(x.shape) < 0.1] = np.nan
    y[:, :4][rng.random((21, 4, 2)) < 0.3] = np.nan  # some ranks' chunks have whole samples only
    model = chain(outputs=2)
    many = fitted(comm, model, x + OFFSET, y + OFFSET)
    one = fitted(None, model, x + OFFSET, y + OFFSET, batchsize=2 * comm.size)
    assert_same_parameters(many.model, one.model, rtol=1e-4)
    for name in ("loss", "r2"):
        assert many.history_[-1][name] == pytest.approx(one.history_[-1][name], rel=1e-4)
    mine = fs.net2vec(many.model).detach()
    assert torch.equal(mine, comm.broadcast_(mine.clone()))
    found, wanted = many.predict(x + OFFSET), one.predict(x + OFFSET)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found - OFFSET, wanted - OFFSET, rtol=1e-3, atol=1e-4)


def test_where_nothing_counts_all_ranks_say_so(comm):
    x = np.random.default_rng(0).standard_normal((21, 7, 3))
    y = x.sum(2, keepdims=True)
    w = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match=r"cannot be scaled: .* no value that counts"):
        fitted(comm, chain(), x, y, w)
    est = fitted(comm, chain(), x, y)
    with pytest.raises(ValueError, match="there is nothing to train on"):
        est.fit(x, y, w)
    with pytest.raises(ValueError, match="there is nothing to compute a loss on"):
        est.evaluate(x, y, w)
    w[6] = 1  # one rank alone has something
    est.fit(x, y, w)
    assert np.isfinite(est.history_[-1]["loss"])
