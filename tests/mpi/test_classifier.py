"""Classifiers on several ranks: they learn what one process learns from the union of batches."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import fastseq as fs
from fastseq.sklearn import SequenceClassifier

RNG = np.random.default_rng(0)
X = RNG.standard_normal((48, 6, 3))
GRADES = RNG.integers(0, 3, 48)
FRAMES = [
    pd.DataFrame(x[: 3 + i % 4], columns=list("abc")).assign(d=list("xyyxzx")[: 3 + i % 4])
    for i, x in enumerate(X)
]
STATIC = pd.DataFrame({"n": RNG.standard_normal(48), "c": RNG.choice(["u", "v"], 48)})
HOLES = np.where(X > 1.2, np.nan, X)


def fitted(comm, batchsize, x, y, static, **more):
    model = SequenceClassifier(
        **{"module": "gru", "epochs": 2, "hidden_size": 8, "random_state": 0, **more},
        comm=comm, batchsize=batchsize, device="cpu",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few updates
        return model.fit(x, y, static=static)


def alike(comm, a):
    """Whether an array is the same on all ranks, bit for bit."""
    mine = torch.from_numpy(np.ascontiguousarray(a)).clone()
    return torch.equal(comm.broadcast_(mine.clone()), mine)


@pytest.mark.parametrize(
    ("x", "y", "static", "more"),
    [
        (FRAMES, GRADES, None, {}),
        (X, GRADES, STATIC, {"validation_fraction": 0.25}),
        (FRAMES, GRADES, STATIC, {"module": "lstm", "bidirectional": True, "pool": "mean+max"}),
        (X, np.stack([GRADES > 0, GRADES > 1], 1), None,
         {"loss": "binary_cross_entropy", "class_weight": "balanced"}),
        (X, GRADES, STATIC, {"loss": "ordinal", "class_weight": "balanced"}),
        (HOLES, GRADES, None, {"nan": "mask", "loss": "focal"}),
    ],
)  # fmt: skip
def test_equals_one_process_with_the_union_batch(comm, x, y, static, more):
    batchsize = 12 // comm.size
    many = fitted(comm, batchsize, x, y, static, **more)
    one = fitted(None, batchsize * comm.size, x, y, static, **more)
    assert alike(comm, fs.net2vec(many.estimator_.model).detach().numpy())
    found = many.predict_proba(x, static=static)
    assert alike(comm, found)
    np.testing.assert_allclose(found, one.predict_proba(x, static=static), atol=1e-7)
    name = "validation_loss" if "validation_fraction" in more else "loss"
    assert many.history_[-1][name] == pytest.approx(one.history_[-1][name], rel=1e-6)


@pytest.mark.parametrize(
    ("module", "x"), [("cnn", X.reshape(48, 2, 3, 3)), ("lstm-fcn", X), ("tcn", X), ("rocket", X)]
)
def test_ranks_have_the_same_running_statistics(comm, module, x):
    model = fitted(comm, 12 // comm.size, x, GRADES, None, module=module)
    buffers = [b for b in model.estimator_.model.buffers() if b.is_floating_point()]
    assert buffers
    assert all(alike(comm, b.detach().numpy()) for b in buffers)
    assert alike(comm, model.predict_proba(x))
