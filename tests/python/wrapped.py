"""Samples for the scikit-learn estimators, and estimators that are quickly trained on them."""

from __future__ import annotations

import numpy as np
import torch

import fastseq as fs
from fastseq.sklearn import SequenceClassifier, SequenceRegressor

RNG = np.random.default_rng(0)
X = RNG.standard_normal((48, 6, 3))
LAST = X[:, -2:].sum((1, 2))
STEPS = X.cumsum(1)[..., :2] / 3
LABELS = np.where(LAST > 0.5, "up", np.where(LAST < -0.5, "down", "flat"))
LIST = [x[: 2 + i % 5] for i, x in enumerate(X)]
# Without a schedule, two calls do what one would have done.
QUICK = {"hidden_size": 8, "lr": 0.02, "schedule": None, "batchsize": 16, "random_state": 0}


def regressor(module="gru", **more):
    return SequenceRegressor(module, **{**QUICK, "epochs": 3, **more})


def classifier(module="gru", **more):
    return SequenceClassifier(module, **{**QUICK, "epochs": 3, **more})


def parameters(model):
    return fs.net2vec(model.estimator_.model).detach().clone()


def same(a, b):
    """Whether two wrappers have learnt the same, bit for bit."""
    losses = [[row["loss"] for row in m.history_] for m in (a, b)]
    return torch.equal(parameters(a), parameters(b)) and losses[0] == losses[1]
