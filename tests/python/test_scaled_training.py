"""An estimator that scales trains as on data scaled by hand, and takes and gives them as they are."""

from __future__ import annotations

import copy
import json

import h5py
import numpy as np
import pytest
import torch
from models import adamw, assert_same_parameters, chain
from torch.nn.functional import cross_entropy, mse_loss

import fastseq as fs

RNG = np.random.default_rng(0)
T, N = 30, 6
X = (RNG.standard_normal((T, N, 3)) * [1, 100, 0.01] + [1e4, -5, 3]).astype(np.float32)
Y = (RNG.standard_normal((T, N, 1)) * 50 + 1000).astype(np.float32)


def estimator(model=None, loss=mse_loss, **spec):
    spec = {"epochs": 2, "batchsize": 4, "seqsize": 7, **spec}
    model = chain() if model is None else model
    return fs.Estimator(model, fs.seqloss(loss), adamw, spec, progress=False, seed=0)


BOTH = {"scale_x": "standard", "scale_y": "standard"}


def by_hand(array, part):
    part = part.reshape(-1, array.shape[2]).astype(float)
    return ((array - part.mean(0)) / part.std(0)).astype(np.float32)


def stored(kind, folder):
    if kind == "memory":
        return X, Y
    options = {"chunks": (7, 4, 1), "compression": "gzip"} if kind == "gzip" else {}
    with h5py.File(folder / "data.h5", "w") as file:
        file.create_dataset("x", data=X, **options)
        file.create_dataset("y", data=Y, **options)
    return [fs.h5mmap(folder / "data.h5", name) for name in "xy"]


@pytest.mark.parametrize("kind", ["memory", "file", "gzip"])
def test_as_if_scaled_by_hand(kind, tmp_path):
    found = chain()
    wanted = copy.deepcopy(found)
    x, y = stored(kind, tmp_path)
    est = estimator(found, **BOTH).fit(x, y, validation={"sequences": 2})
    xs, ys = by_hand(X, X[:, :4]), by_hand(Y, Y[:, :4])
    plain = estimator(wanted).fit(xs, ys, validation={"sequences": 2})
    assert_same_parameters(found, wanted, rtol=1e-3)
    for row, other in zip(est.history_, plain.history_, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert row["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-3)
    yhat = est.predict(x)
    expected = plain.predict(xs) * Y[:, :4].std() + Y[:, :4].mean()
    np.testing.assert_allclose(yhat, expected, rtol=1e-4)
    one = est.reset_state() or est.step(torch.from_numpy(X[0]))
    np.testing.assert_allclose(one, expected[0], rtol=1e-4)
    assert est.evaluate(x, y) == pytest.approx(plain.evaluate(xs, ys), rel=1e-3)


@pytest.mark.parametrize("method", ["standard", "robust"])
def test_what_does_not_count_does_not_count(method):
    x, y = X.copy(), Y.copy()
    x[3, 2, 1], y[5, 1] = np.nan, np.inf
    lengths = np.full(N, T)
    lengths[4] = 11
    x[11:, 4], y[11:, 4] = 1e9, 1e9
    keep = np.arange(T)[:, None] < lengths
    spec = {"scale_x": method, "scale_y": method, "nan": "mask"}
    est = estimator(**spec).fit(x, y, lengths=lengths)
    part = x[keep].astype(float)
    center = np.nanmean(part, 0) if method == "standard" else np.nanmedian(part, 0)
    np.testing.assert_allclose(est.scaling_.x.center, center, rtol=1e-6)
    series = [x[:n, i] for i, n in enumerate(lengths)], [y[:n, i] for i, n in enumerate(lengths)]
    again = estimator(**spec).fit(*series)
    np.testing.assert_allclose(again.scaling_.x.scale, est.scaling_.x.scale, rtol=1e-6)
    np.testing.assert_allclose(again.scaling_.y.center, est.scaling_.y.center, rtol=1e-6)


def test_later_fits_keep_it_and_it_can_be_carried_over(tmp_path):
    est = estimator(**BOTH).fit(X, Y)
    first = est.scaling_
    est.partial_fit(X * 7, Y)
    assert est.scaling_ is first
    other = estimator(copy.deepcopy(est.model), **BOTH)
    for call in (
        lambda: other.step(X[0]),
        lambda: other.export(tmp_path / "model.pt2", X),
        lambda: other.evaluate(X, Y),
    ):
        with pytest.raises(ValueError, match="has not been measured yet: call fit first"):
            call()
    with pytest.raises(ValueError, match="has not been measured yet: call fit first"):
        other.predict(X)
    other.scaling_ = copy.deepcopy(first)
    np.testing.assert_array_equal(other.predict(X), est.predict(X))


def test_labels_are_not_scaled():
    labels = RNG.integers(0, 3, (T, N, 1))
    est = estimator(chain(outputs=3), cross_entropy, **BOTH).fit(X, labels)
    assert est.scaling_.y is None
    assert est.predict(X).shape == (T, N, 3)


def test_outputs_unlike_the_targets_cannot_be_scaled_back():
    def loss(m, xs, ys):
        return mse_loss(m(xs)[..., :1], ys)

    est = fs.Estimator(chain(outputs=2), loss, adamw, {**SPEC, **BOTH}, progress=False).fit(X, Y)
    with pytest.raises(ValueError, match="outputs with 2 features cannot be scaled back"):
        est.predict(X)


SPEC = {"epochs": 1, "batchsize": 4, "seqsize": 7}


@pytest.mark.parametrize("make", [chain, lambda: torch.nn.Linear(3, 1)])
def test_exported_programs_take_and_give_what_is_not_scaled(make, tmp_path):
    est = estimator(make(), **BOTH).fit(X, Y)
    est.export(tmp_path / "model.pt2")
    files = {"fastseq.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    states = json.loads(files["fastseq.json"])["state"]
    x = torch.from_numpy(X[:9, :5])
    if states:
        start = tuple(torch.tensor(s["start"]).repeat_interleave(5, s["batch_dim"]) for s in states)
        y, _ = program(x, start)
    else:
        y = program(x)
    np.testing.assert_allclose(y, est.predict(x), rtol=1e-5)


def test_bad_methods():
    with pytest.raises(ValueError, match=r'spec.scale_x must be "standard", "robust" or None'):
        estimator(scale_x="minmax")
