"""NaN and infinities in the data: named, masked, or passed on."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from models import adamw, assert_same_parameters, chain
from torch.nn.functional import mse_loss

import fastseq as fs

RANDOM = torch.Generator().manual_seed(0)
X, Y = torch.randn(20, 6, 3, generator=RANDOM), torch.randn(20, 6, 1, generator=RANDOM)


def estimator(model=None, **spec):
    model = chain() if model is None else model
    spec = {"epochs": 2, "batchsize": 4, "seqsize": 7, **spec}
    return fs.Estimator(model, fs.seqloss(mse_loss), adamw, spec, progress=False)


def stored(array, kind, folder):
    if kind == "tensor":
        return array
    if kind == "list":
        return [array[:, n].numpy() for n in range(array.shape[1])]
    path = folder / f"{array.shape[2]}.npy"
    np.save(path, array.numpy())
    mapped = np.load(path, mmap_mode="r")
    return mapped if kind == "memory map" else np.asfortranarray(mapped)[:]


KINDS = ["tensor", "memory map", "list", "sliced"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_the_first_place_is_named(kind, bad, tmp_path):
    x, y = X.clone(), Y.clone()
    x[16, 5, 2] = x[9, 4, 1] = bad
    name = r"x\[4\]|x" if kind == "list" else "x"
    what = f"({name}) holds {'NaN' if bad != bad else '-inf'} at step 9, sequence 4, feature 1"
    model = chain()
    with pytest.raises(fs.NonFiniteError, match=what):
        estimator(model).fit(stored(x, kind, tmp_path), stored(Y, kind, tmp_path))
    with pytest.raises(fs.NonFiniteError, match=what):
        estimator(model).predict(stored(x, kind, tmp_path))
    y[3, 0] = bad
    with pytest.raises(fs.NonFiniteError, match=r"y holds .* at step 3, sequence 0, feature 0"):
        estimator(model).fit(stored(X, kind, tmp_path), stored(y, kind, tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_whole_is_left_out(kind, tmp_path):
    x, y = X.clone(), Y.clone()
    x[8:12, 5] = torch.inf
    y[15, 0], y[3, 2] = torch.nan, -torch.inf
    mask = torch.ones(20, 6, dtype=torch.bool)
    mask[8:12, 5] = False  # the model gets 0 there
    w = torch.ones(20, 6)
    w[15, 0] = w[3, 2] = 0  # it gets the inputs, but the loss no target
    found = chain()
    wanted = copy.deepcopy(found)
    estimator(found, nan="mask").fit(stored(x, kind, tmp_path), stored(y, kind, tmp_path))
    estimator(wanted).fit(X, Y, w, mask=mask)
    assert_same_parameters(found, wanted)
    assert x.isinf().any()
    assert y.isnan().any()


def test_kept_for_models_that_know_what_to_do():
    class Fills(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 1)

        def forward(self, x):
            return self.inner(x.nan_to_num(7.0))

    x = X.clone()
    x[2] = torch.nan
    found = Fills()
    wanted = copy.deepcopy(found)
    estimator(found, nan="keep").fit(x, Y)
    estimator(wanted).fit(x.nan_to_num(7.0), Y)
    assert_same_parameters(found, wanted, rtol=0)


def test_what_does_not_count_may_be_anything():
    x, y, w = X.clone(), Y.clone(), torch.ones(20, 6)
    y[4, 2], w[4, 2] = torch.nan, 0
    mask = torch.ones(20, 6, dtype=torch.bool)
    x[7, 1], mask[7, 1] = torch.nan, False
    lengths = np.full(6, 20)
    y[18:, 5], lengths[5] = torch.inf, 18
    estimator().fit(x, y, w, mask=mask, lengths=lengths)
    with pytest.raises(fs.NonFiniteError, match="y holds inf at step 18, sequence 5"):
        estimator().fit(x, y, w, mask=mask)


def test_labels_and_integers_are_never_suspect():
    labels = torch.randint(0, 3, (20, 6, 1))
    loss = fs.seqloss(torch.nn.functional.cross_entropy)
    est = fs.Estimator(chain(outputs=3), loss, adamw, fs.Spec(1, 4, 7), progress=False)
    est.fit(torch.randint(0, 9, (20, 6, 3)), labels)
