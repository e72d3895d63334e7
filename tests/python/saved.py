"""Estimators to be saved, and what comes back compared with them."""

from __future__ import annotations

import numpy as np
import torch
from models import adamw, chain
from torch.nn.functional import mse_loss

import fastseq as fs

T, N = 23, 5
SPEC = {"epochs": 2, "batchsize": 2, "seqsize": 7}
LOSS = fs.seqloss(mse_loss)


def data(features=3, outputs=1, steps=T):
    draw = torch.Generator().manual_seed(3)
    x = 5 + 3 * torch.randn(steps, N, features, generator=draw)
    return x, x.cumsum(0)[..., :outputs]


def estimator(model, loss=LOSS, optimizer=adamw, **more):
    options = {name: more.pop(name) for name in ("device", "seed", "amp", "comm") if name in more}
    options = {"device": "cpu", "progress": False} | options
    return fs.Estimator(model, loss, optimizer, SPEC | more, **options)


def load(path, model=None, **more):
    return fs.Estimator.load(path, model, progress=False, device="cpu", **more)


def fitted(model=None, **more):
    return estimator(chain() if model is None else model, **more).fit(*data())


def same(got, wanted):
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            same(got[key], wanted[key])
    else:
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))
        assert got.dtype == wanted.dtype


def fresh(est):
    est.reset_state()
    return est
