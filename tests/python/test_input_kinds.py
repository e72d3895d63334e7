"""Inputs that steps or sequences share, and targets without their last axis."""

from __future__ import annotations

import copy

import h5py
import numpy as np
import pytest
import torch
from models import adamw, assert_same_parameters
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs

T, N = 12, 5
RANDOM = torch.Generator().manual_seed(0)
X, STATIC, SHARED = (
    torch.randn(T, N, 2, generator=RANDOM),
    torch.randn(N, 3, generator=RANDOM),
    torch.randn(T, 1, generator=RANDOM),
)
Y = torch.randn(T, N, 1)


class Joined(nn.Module):
    """Takes a dict of inputs, all of which have steps and sequences."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(6, 4), nn.Linear(4, 1)

    def forward(self, x, state=None):
        y, state = self.rnn(torch.cat([x["own"], x["static"], x["shared"]], -1), state)
        return self.head(y), state


def estimator(model, **spec):
    spec = {"epochs": 2, "batchsize": 2, "seqsize": 5, **spec}
    return fs.Estimator(model, fs.seqloss(mse_loss), adamw, spec, progress=False)


WHOLE = {
    "own": X,
    "static": STATIC.expand(T, N, 3).contiguous(),
    "shared": SHARED[:, None].expand(T, N, 1).contiguous(),
}
KINDS = {
    "by shape": {"own": X, "static": STATIC, "shared": SHARED.numpy()},
    "with axes": {"shared": SHARED[:, None].numpy(), "own": X, "static": STATIC[None]},
    "a list of series": {"own": [*X.unbind(1)], "static": STATIC, "shared": SHARED},
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (kind, options)
        for kind in KINDS
        for options in ({}, {"nan": "mask"}, {"fold": 3})
        if kind != "a list of series" or "fold" not in options
    ],
)
def test_as_if_they_had_been_repeated(kind, options):
    found = Joined()
    wanted = copy.deepcopy(found)
    y = [*Y.unbind(1)] if kind == "a list of series" else Y
    mask = torch.rand(T, N) < 0.8
    masks = [*mask.unbind(1)] if kind == "a list of series" else mask
    estimator(found, **options).fit(KINDS[kind], y, mask=masks)
    estimator(wanted, **options).fit(WHOLE, Y, mask=mask)
    assert_same_parameters(found, wanted, rtol=1e-6)


def test_static_inputs_with_series_of_different_lengths():
    lengths = [5, 12, 3, 9, 12]
    found = Joined()
    wanted = copy.deepcopy(found)
    pieces = [x[:n] for x, n in zip(X.unbind(1), lengths, strict=True)]
    targets = [y[:n] for y, n in zip(Y.unbind(1), lengths, strict=True)]
    x = {"own": pieces, "static": STATIC, "shared": SHARED}
    first, second = estimator(found, batchsize=5), estimator(wanted, batchsize=5)
    first.fit(x, targets)
    order = np.argsort([-n for n in lengths], kind="stable")
    second.fit(
        {k: v[:, order] for k, v in WHOLE.items()}, Y[:, order], lengths=np.array(lengths)[order]
    )
    assert_same_parameters(found, wanted, rtol=1e-6)


def test_inputs_that_may_be_either_must_say_which():
    square = torch.randn(4, 4, 2)
    x = {"own": square, "static": torch.randn(4, 3), "shared": torch.randn(4, 1)}
    with pytest.raises(ValueError, match=r"x\['static'\] .* may belong to .* make it \(1, 4, F\)"):
        estimator(Joined()).fit(x, torch.randn(4, 4, 1))
    x = {"own": square, "static": torch.randn(1, 4, 3), "shared": torch.randn(4, 1, 1)}
    estimator(Joined()).fit(x, torch.randn(4, 4, 1))
    with pytest.raises(ValueError, match=r"x\['static'\] must have the shape"):
        estimator(Joined()).fit({**x, "static": torch.randn(7, 3)}, torch.randn(4, 4, 1))


@pytest.mark.parametrize("kind", ["tensor", "array", "list", "h5", "chunked h5"])
def test_targets_without_their_last_axis(kind, tmp_path):
    flat = Y[..., 0]
    if kind == "array":
        flat = flat.numpy()
    elif kind == "list":
        flat = flat.tolist()
    elif "h5" in kind:
        file = h5py.File(tmp_path / "y.h5", "w")
        options = {"chunks": (5, 2)} if "chunked" in kind else {}
        flat = file.create_dataset("y", data=flat.numpy(), **options)
    found = fs.nn.Chain(nn.LSTM(2, 3), nn.Linear(3, 1))
    wanted = copy.deepcopy(found)
    est = estimator(found).fit(X, flat)
    full = estimator(wanted).fit(X, Y)
    assert_same_parameters(found, wanted, rtol=0)
    y = est.predict(X)
    assert y.shape == (T, N)
    np.testing.assert_array_equal(y, full.predict(X)[..., 0])
    assert est.step(X[0]).shape == (N,)


def test_one_step_may_leave_out_the_first_axis_of_the_target():
    model = nn.Linear(2, 3)
    wanted = copy.deepcopy(model)
    y = torch.randn(N, 3)
    estimator(model).fit(X[:1], y)
    estimator(wanted).fit(X[:1], y[None])
    assert_same_parameters(model, wanted, rtol=0)
