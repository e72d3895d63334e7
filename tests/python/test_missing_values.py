"""Missing values, one by one: inputs are filled, targets leave the loss; and where nothing is left."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from models import adamw, assert_same_parameters, chain, plain_loop
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss

import fastseq as fs

T, N, K = 20, 8, 3
RNG = np.random.default_rng(0)


def holes(array, part, *, infinite=False):
    array = array.copy()
    array[RNG.random(array.shape) < part] = np.nan
    if infinite:
        array[4, 1, 0] = -np.inf
    return array


X = (RNG.standard_normal((T, N, 4)) * [1, 10, 0.1, 1] + 50).astype(np.float32)
Y = np.stack([X[..., 0] - 50, X.sum(2) - 200, X[..., 2] * 10 - 500], 2)
XM, YM = holes(X, 0.1, infinite=True), holes(Y, 0.2)
XM[7, 3] = YM[9, 2] = np.nan  # nothing of the step is known
KEPT = np.isfinite(XM).any(2, keepdims=True) & np.isfinite(YM)


def estimator(model=None, loss=None, *, callbacks=(), **spec):
    model = chain(features=4, outputs=K) if model is None else model
    loss = fs.seqloss(mse_loss) if loss is None else loss
    spec = {"epochs": 3, "batchsize": 4, "seqsize": 7, "nan": "mask", **spec}
    return fs.Estimator(model, loss, adamw, spec, progress=False, seed=0, callbacks=callbacks)


def scaled(array):
    """Scale what is there, and fill what is not by the mean, 0."""
    rows = np.where(np.isfinite(array), array, np.nan).reshape(-1, array.shape[2]).astype(float)
    found = (array - np.nanmean(rows, 0)) / np.nanstd(rows, 0)
    return torch.from_numpy(np.where(np.isfinite(found), found, 0).astype(np.float32))


def known_only(output, target):
    """The loss as one writes it by hand, of targets that are NaN where they don't count."""
    known = target.isfinite()
    return (output - target)[known].square().mean()


KINDS = {
    "array": lambda a: a,
    "file": lambda a: a,
    "list": lambda a: [a[:, n] for n in range(N)],
    "sliced": lambda a: np.asfortranarray(a),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [None, "standard"])
def test_as_in_a_plain_loop(kind, scale, tmp_path):
    model = chain(features=4, outputs=K)
    found = copy.deepcopy(model)
    x, y = KINDS[kind](XM), KINDS[kind](YM)
    if kind == "file":
        fs.h5save(tmp_path / "data.h5", {"x": XM, "y": YM})
        x, y = (fs.h5mmap(tmp_path / "data.h5", name) for name in "xy")
    est = estimator(found, scale_x=scale, scale_y=scale).fit(x, y)
    xs = torch.from_numpy(np.where(np.isfinite(XM), XM, 0)) if scale is None else scaled(XM)
    ys = torch.from_numpy(YM) if scale is None else scaled(YM)
    ys = torch.where(torch.from_numpy(KEPT), ys, torch.nan).float()
    wanted = plain_loop(
        model, xs, ys, batchsize=4, seqsize=7, updates=3 * 2 * 3, loss=known_only
    )  # fmt: skip
    assert_same_parameters(found, wanted, rtol=1e-4)
    with torch.no_grad():
        error = known_only(found(xs)[0], ys)
    assert est.evaluate(x, y) == pytest.approx(float(error), rel=1e-5)


def test_chunks_count_for_what_they_hold():
    """The mean over chunks is that over all targets, whether their samples are whole or not."""
    y = Y.copy()
    y[:7] = YM[:7]
    est = estimator()
    with torch.no_grad():
        error = (est.model(torch.from_numpy(X))[0].numpy() - y) ** 2
    assert est.evaluate(X, y) == pytest.approx(np.nanmean(error), rel=1e-5)
    w = RNG.random((T, N)).astype(np.float32)
    each = np.broadcast_to(w[..., None], y.shape)
    there = np.isfinite(y)
    expected = np.average(error[there], weights=each[there])
    assert est.evaluate(X, y, w) == pytest.approx(expected, rel=1e-5)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 1), nn.Linear(4, 2)

    def forward(self, x):
        return {"one": self.one(x), "two": self.two(x)}


def test_targets_in_a_tree():
    seen = []

    def loss(m, xs, ys, ws=None):
        output = m(xs)
        if ws is None:
            ws = {name: torch.ones_like(a) for name, a in ys.items()}
        elif isinstance(ws, torch.Tensor):
            ws = {name: ws[..., None].expand_as(a) for name, a in ys.items()}
        else:
            seen.append({name: tuple(a.shape[2:]) for name, a in ws.items()})
        total = sum((ws[k] * (output[k] - ys[k]).square()).sum() for k in ys)
        return total / sum(a.sum() for a in ws.values()).clamp_min(1e-9)

    ys = {"one": YM[..., :1], "two": YM[..., 1:]}
    est = estimator(TwoHeads(), loss)
    with torch.no_grad():
        output = est.model(torch.from_numpy(X))
    error = np.concatenate([output["one"], output["two"]], 2) - YM
    assert est.evaluate(X, ys) == pytest.approx(np.nanmean(error**2), rel=1e-5)
    assert seen[0] == {"one": (1,), "two": (2,)}
    est.fit(X, ys)
    assert np.isfinite(est.history_[-1]["loss"])


def test_losses_of_samples_and_of_steps():
    output, target = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    ws = (torch.rand(5, 4, 3) > 0.4) * torch.rand(5, 4, 1)
    found = fs.seqloss(mse_loss)(nn.Identity(), output, target, ws)
    error = (output - target).square()
    torch.testing.assert_close(found, (error * ws).sum() / ws.sum())

    def angle(output, target, reduction="none"):
        return cosine_similarity(output, target)

    with pytest.raises(ValueError, match="not computed target by target: leave such samples"):
        fs.seqloss(angle)(nn.Identity(), output, target, ws)

    def of_step(output, target, w):
        return (w * (output - target).square()).sum() / w.sum()

    found = fs.seqloss(of_step, per_step=True)(nn.Identity(), output, target, ws)
    each = torch.stack([of_step(*parts) for parts in zip(output, target, ws, strict=True)])
    torch.testing.assert_close(found, (each * ws.sum((1, 2))).sum() / ws.sum())


def test_missing_inputs_alone_do_not_drop_the_step():
    """5 % missing in each of 20 features leave 5 % of the data out, not 64 %."""
    x = RNG.standard_normal((10, 64, 20)).astype(np.float32)
    y = x.mean(2, keepdims=True)
    x[RNG.random(x.shape) < 0.05] = np.nan
    weights = []

    def loss(m, xs, ys, ws=None):
        weights.append(xs.shape[0] * xs.shape[1] if ws is None else float(ws.sum()))
        return mse_loss(m(xs), ys)

    estimator(nn.Linear(20, 1), loss, epochs=1).fit(x, y)
    assert sum(weights) == 10 * 64


def test_metrics_of_what_is_known():
    metrics = fs.callbacks.Metrics("r2", sk.mean_squared_error, train=True)
    est = estimator(callbacks=[metrics], scale_y="standard", epochs=1).fit(X, YM)
    predicted = est.predict(X)
    there = np.isfinite(YM)
    pairs = [(YM[..., k][there[..., k]], predicted[..., k][there[..., k]]) for k in range(K)]
    row = est.history_[-1]
    assert row["r2"] == pytest.approx(np.mean([sk.r2_score(*p) for p in pairs]), rel=1e-4)
    error = np.mean([sk.mean_squared_error(*p) for p in pairs])
    assert row["mean_squared_error"] == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("scale", [None, "standard"])
def test_single_steps_as_predict(scale):
    est = estimator(scale_x=scale, scale_y=scale, epochs=1).fit(XM, YM)
    expected = est.predict(XM)
    assert np.isfinite(expected).all()
    est.reset_state()
    found = np.stack([est.step(torch.from_numpy(x)).numpy() for x in XM])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_single_steps_that_are_refused_leave_the_state():
    est = estimator(nan="raise", epochs=1).fit(X, Y)
    est.predict(X)
    before = est.get_state()
    x = X[0].copy()
    x[3, 2] = np.inf
    with pytest.raises(fs.NonFiniteError, match="x holds inf at this step, sequence 3, feature 2"):
        est.step(x)
    for a, b in zip(before, est.get_state(), strict=True):
        torch.testing.assert_close(a, b)
    big = np.full((N, 4), 3e38, np.float32)  # finite, though their sum is not
    assert est.step(big).shape == (N, K)
    est.reset_state()
    est.spec = fs.Spec(1, 4, 7, nan="keep")
    x[3, 2] = np.nan
    assert est.step(x).isnan().any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_folded_series_are_looked_at_in_all_segments(bad):
    for step in (3, 13, 23, 33):
        x = RNG.standard_normal((40, 2, 2)).astype(np.float32)
        y = x.mean(2, keepdims=True)
        x[step, 1, 0] = bad
        model = chain(features=2)
        with pytest.raises(fs.NonFiniteError, match=f"at step {step}, sequence 1, feature 0"):
            estimator(model, nan="raise", fold=4).fit(x, y)
        assert bool(fs.net2vec(model).isfinite().all())
        found = chain(features=2)
        wanted = copy.deepcopy(found)
        estimator(found, fold=4).fit(x, y)
        x[step, 1, 0] = 0
        estimator(wanted, fold=4).fit(x, y)
        assert_same_parameters(found, wanted)


@pytest.mark.parametrize("ignore", [-100, 2])
@pytest.mark.parametrize("kind", ["array", "list"])
@pytest.mark.parametrize("nan", ["raise", "keep", "mask"])
def test_labels_that_the_loss_ignores_are_missing(ignore, kind, nan):
    labels = RNG.integers(0, 2, (T, N))
    labels[RNG.random(labels.shape) < 0.3] = ignore
    labels[:7, 4:] = ignore  # a chunk that has none
    loss = fs.seqloss(nn.CrossEntropyLoss(ignore_index=ignore) if ignore > 0 else cross_entropy)
    x, y = KINDS[kind](X), KINDS[kind](labels)
    model = chain(features=4, outputs=3)
    w = (labels != ignore).astype(np.float32)
    found = estimator(copy.deepcopy(model), loss, nan=nan, seqsize=9).fit(x, y)
    wanted = estimator(copy.deepcopy(model), fs.seqloss(cross_entropy), seqsize=9)
    wanted.fit(X, np.where(labels == ignore, 0, labels), w)
    assert_same_parameters(found.model, wanted.model)
    with torch.no_grad():
        output = found.model(torch.from_numpy(X))[0].flatten(0, 1)
    expected = cross_entropy(output, torch.from_numpy(labels).flatten(), ignore_index=ignore)
    assert found.evaluate(x, y) == pytest.approx(float(expected), rel=1e-5)


ZEROS = np.zeros((T, N), np.float32)
NOTHING = {
    "weights": {"w": ZEROS},
    "weights of sequences": {"w": ZEROS[0]},
    "mask": {"mask": ZEROS.astype(bool)},
    "lengths": {"lengths": np.zeros(N, np.int64)},
    "targets": {"y": np.full_like(Y, np.nan)},
    "inputs": {"x": np.full_like(X, np.nan)},
}


@pytest.mark.parametrize("what", NOTHING)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_where_nothing_counts_it_is_said(what, accumulate):
    est = estimator(accumulate=accumulate)
    before = fs.net2vec(est.model).clone()
    given = {"x": X, "y": Y, **NOTHING[what]}
    with pytest.raises(ValueError, match="there is nothing to train on: no sample of y counts"):
        est.fit(**given)
    assert torch.equal(fs.net2vec(est.model), before)
    assert not len(est.history_)
    with pytest.raises(ValueError, match="there is nothing to compute a loss on: no sample"):
        est.evaluate(**given)
    with pytest.raises(ValueError, match="there is nothing to compute a loss on: no sample"):
        est.fit(X, Y, validation=(X, Y, ZEROS))


def test_one_sample_is_enough():
    w = ZEROS.copy()
    w[13, 2] = 1
    est = estimator(epochs=1).fit(X, Y, w)
    assert np.isfinite(est.history_[-1]["loss"])
