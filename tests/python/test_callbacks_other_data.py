"""What callbacks have seen of one data set says nothing about another."""

import copy

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import ReduceLROnPlateau

import fastseq as fs
from fastseq import callbacks as cb
from fastseq.data.fingerprint import fingerprint
from fastseq.data.sequences import Sequences

X = torch.randn(12, 8, 2, generator=torch.Generator().manual_seed(0))
EASY = X.mean(2, keepdim=True)
HARD = 50 + 10 * torch.randn(12, 8, 1, generator=torch.Generator().manual_seed(1))


def estimator(*callbacks, lr=0.05):
    torch.manual_seed(0)
    model = fs.nn.Chain(fs.nn.GRU(2, 4), nn.Linear(4, 1))
    return fs.Estimator(
        model, fs.seqloss(mse_loss), torch.optim.Adam(model.parameters(), lr=lr),
        {"epochs": 4, "batchsize": 4, "seqsize": 6},
        callbacks=callbacks, progress=False, seed=0, comm=None,
    )  # fmt: skip


class Weights(fs.callbacks.Callback):
    """Keeps the weights after each epoch."""

    def __init__(self):
        self.found = []

    def on_epoch_end(self, run):
        self.found.append(fs.net2vec(run.model).detach().clone())


@pytest.mark.parametrize("how", ["fit", "partial_fit", "validation", "weights"])
def test_restore_best_is_the_best_on_the_last_data(how):
    weights, best = Weights(), cb.RestoreBest()
    est = estimator(weights, best)
    est.fit(X, EASY, validation=None if how == "partial_fit" else 0.25)
    if how == "fit":
        est.fit(X, HARD, validation=0.25)
    elif how == "validation":
        est.fit(X[:, :6], EASY[:, :6], validation=(X, HARD))
    elif how == "weights":
        est.fit(X, 100 * EASY, torch.linspace(1, 2, 12 * 8).view(12, 8), validation=0.25)
    else:
        est.partial_fit(X, HARD)
    key = "loss" if how == "partial_fit" else "validation_loss"
    losses = [row[key] for row in est.history_[4:]]
    expected = weights.found[4 + int(np.argmin(losses))]
    assert min(losses) > min(row[key] for row in est.history_[:4])
    assert torch.equal(fs.net2vec(est.model), expected)
    assert best.value == min(losses)


def test_the_best_of_two_calls_on_equal_data_counts():
    weights, best = Weights(), cb.RestoreBest(mode="max")
    est = estimator(weights, best).fit(X, EASY, validation=0.25)
    est.fit(X.numpy().copy(), EASY.clone(), validation=0.25, epochs=2)
    losses = [row["validation_loss"] for row in est.history_]
    assert best.epoch == 1 + int(np.argmax(losses))
    assert torch.equal(fs.net2vec(est.model), weights.found[best.epoch - 1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: cb.NumberSinceBest(2),
        lambda: cb.GL(1),
        lambda: cb.PQ(0.01, k=2),
        lambda: cb.Patience(1),
        lambda: cb.AnyOf(cb.NumberSinceBest(2)),
        lambda: cb.Warmup(cb.GL(1), 1),
        lambda: cb.NumberLimit(5),
    ],
)
def test_criteria_judge_other_data_as_new_ones_would(make):
    est = estimator(make())
    est.fit(X, EASY, epochs=3)
    twin = copy.deepcopy(est)
    twin.callbacks = [make()]
    for one in (est, twin):
        one.fit(X, HARD, epochs=8)
    assert len(est.history_) == len(twin.history_)
    assert est.stop_reason_ == twin.stop_reason_
    assert est.history_[-1]["loss"] == twin.history_[-1]["loss"]


def test_a_plateau_of_other_data_is_another():
    def plateau():
        return cb.Schedule(lambda o: ReduceLROnPlateau(o, patience=1, threshold=0.0))

    est = estimator(plateau()).fit(X, EASY)
    rate = est.history_[-1]["lr"]
    est.fit(X, HARD, epochs=5)  # all of these losses are far above EASY's
    losses = [row["loss"] for row in est.history_[4:]]
    assert losses == sorted(losses, reverse=True)  # each the best so far
    assert [row["lr"] for row in est.history_[4:]] == [rate] * 5


def test_snapshots_of_other_data(tmp_path):
    snapshots = cb.Snapshots(tmp_path, best=1)
    est = estimator(snapshots).fit(X, EASY)
    first = dict(snapshots.paths)
    est.fit(X, HARD)
    losses = [row["loss"] for row in est.history_[4:]]
    assert list(snapshots.paths) == [5 + int(np.argmin(losses))]
    assert all(path.exists() for path in first.values())


def test_a_callback_that_missed_a_data_set():
    best, weights = cb.RestoreBest(), Weights()
    est = estimator(best).fit(X, EASY)
    est.callbacks = []
    est.fit(X, HARD, epochs=1)
    est.callbacks = [best, weights]
    est.fit(X, HARD, epochs=2)
    assert best.epoch == 6 + int(np.argmin([row["loss"] for row in est.history_[5:]]))


def test_resumed_and_then_other_data(tmp_path):
    def resumed(epochs):
        best = cb.RestoreBest()
        est = estimator(best)
        est.fit(X, EASY, epochs=epochs, checkpoint=tmp_path, resume="auto")
        return est, best

    resumed(2)
    est, best = resumed(4)
    assert len(est.history_) == 4
    assert best.value == min(row["loss"] for row in est.history_)
    est.fit(X, HARD, epochs=2)
    assert best.value == min(row["loss"] for row in est.history_[4:])


def test_warm_start_and_partial_fit_of_wrappers():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 5, 2))
    model = fs.SequenceRegressor(
        "gru", hidden_size=4, epochs=3, lr=0.05, warm_start=True, random_state=0,
        scale_y=None, callbacks=[cb.RestoreBest()],
    ).fit(x, x[:, -1].sum(1))  # fmt: skip
    best = model.estimator_.callbacks[1]
    model.set_params(epochs=5).fit(x, x[:, -1].sum(1))
    assert best.value == min(row["loss"] for row in model.history_)
    model.set_params(epochs=7).fit(x, 50 + rng.standard_normal(20))
    assert best.value == min(row["loss"] for row in model.history_[5:])
    model.partial_fit(x, 90 + rng.standard_normal(20))
    assert best.value == model.history_[-1]["loss"]


def opened(*arrays, **options):
    return Sequences(*arrays, dtype=torch.float32, **options)


def test_fingerprints_of_equal_and_other_data(tmp_path):
    x, w = np.random.default_rng(0).standard_normal((30, 6, 2)), np.ones(6)
    ragged = [x[:n, 0] for n in (30, 4, 9)]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = x
        file.create_dataset("packed", data=x, chunks=(7, 2, 2), compression="gzip")
    with h5py.File(tmp_path / "x.h5") as file:
        keys = [
            fingerprint(opened(*arrays))
            for arrays in [
                (x,), (x[:-1],), (x[:, :-1],), (x + (x == x[17, 3, 1]),), (x, x), (x, x, w),
                (x, x, 2 * w), (ragged,), ([*ragged[:2], ragged[2][:-1]],), (ragged[::-1],),
            ]
        ]  # fmt: skip
        assert len(set(keys)) == len(keys)
        for same in (x.copy(), torch.tensor(x), file["x"], file["packed"]):
            assert fingerprint(opened(same)) == keys[0]
        mask = np.ones((30, 6), bool)
        keys = [fingerprint(opened(x, x, mask=mask & (mask.cumsum(0) < n))) for n in (20, 21)]
        assert keys[0] != keys[1]


@pytest.mark.parametrize("shape", [(100_000, 3, 4), (50, 20_000, 2), (3, 2, 400_000)])
def test_fingerprints_of_large_data_read_little(shape):
    asked = []

    class Array:
        def __init__(self, values):
            self.values, self.shape, self.dtype = values, values.shape, values.dtype

        def __getitem__(self, index):
            asked.append(self.values[index].size)
            return self.values[index]

    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    first = fingerprint(opened(Array(x)))
    assert sum(asked) <= 16 * max(2**16, 2 * shape[2])
    assert fingerprint(opened(x)) == first
    assert fingerprint(opened(x + 1)) != first
    x[-1, -1, -1] += 1
    assert fingerprint(opened(x)) != first
