"""Data apart for validation: which they are, and which state they start from."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from models import Custom, chain
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.data.sequences import Sequences
from fastseq.data.validation_split import split

T, N = 23, 7
RANDOM = torch.Generator().manual_seed(0)
X, Y = torch.randn(T, N, 3, generator=RANDOM), torch.randn(T, N, 1, generator=RANDOM)


def estimator(model=None, lr=0.05, **spec):
    model = chain() if model is None else model
    spec = {"epochs": 1, "batchsize": 3, "seqsize": 4, **spec}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return fs.Estimator(model, fs.seqloss(mse_loss), optimizer, spec, progress=False)


def validation_loss(est):
    return est.history_[-1]["validation_loss"]


@pytest.mark.parametrize(("wanted", "apart"), [(0.3, 2), (2, 2), ({"sequences": 0.01}, 1)])
def test_sequences_apart(wanted, apart):
    model = chain()
    other = copy.deepcopy(model)
    est = estimator(model).fit(X, Y, validation=wanted)
    plain = estimator(other).fit(X[:, : N - apart], Y[:, : N - apart])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    expected = plain.evaluate(X[:, N - apart :], Y[:, N - apart :])
    assert validation_loss(est) == pytest.approx(expected, rel=1e-6)


def test_other_data_with_weights():
    w = torch.rand(N)
    est = estimator().fit(X, Y, validation=(X[:5], Y[:5], w))
    assert validation_loss(est) == pytest.approx(est.evaluate(X[:5], Y[:5], w), rel=1e-6)


@pytest.mark.parametrize("make", [chain, Custom])
def test_time_apart_goes_on_from_where_training_ended(make):
    """Without learning, it is as if the whole series had been run at once."""
    model = make()
    with torch.no_grad():
        output = fs.Stateful(model)(X)
    expected = mse_loss(output[18:], Y[18:]).item()
    est = estimator(model, lr=0.0, shuffle=True).fit(X, Y, validation={"time": 5})
    assert validation_loss(est) == pytest.approx(expected, rel=1e-5)
    fresh = mse_loss(fs.Stateful(model)(X[18:]), Y[18:]).item()
    assert validation_loss(est) != pytest.approx(fresh, rel=1e-3)


@pytest.mark.parametrize(("warmup", "seqsize"), [(0, 4), (3, 4), (6, 4), (18, 5), (3, 100)])
def test_time_apart_with_a_warm_up(warmup, seqsize):
    model = chain()
    est = estimator(model, seqsize=seqsize)
    est.fit(X, Y, validation={"time": 5, "warmup": warmup})
    with torch.no_grad():
        output = fs.Stateful(model)(X[18 - warmup :])[warmup:]
    assert validation_loss(est) == pytest.approx(mse_loss(output, Y[18:]).item(), rel=1e-5)


@pytest.mark.parametrize("share", [2, 0.25])
def test_time_apart_of_series_of_different_lengths(share):
    lengths = [9, 23, 12, 17]
    x = [X[:n, i] for i, n in enumerate(lengths)]
    y = [Y[:n, i] for i, n in enumerate(lengths)]
    model = chain()
    est = estimator(model, lr=0.0).fit(x, y, validation={"time": share, "warmup": 3})
    total = count = 0
    for one, target in zip(x, y, strict=True):
        n = share if share == 2 else int(len(one) * share)
        with torch.no_grad():
            output = fs.Stateful(model)(one[len(one) - n - 3 :, None])[3:, 0]
        total += mse_loss(output, target[len(one) - n :], reduction="sum").item()
        count += n
    assert validation_loss(est) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("wanted", [0.4, 3, {"time": 0.2, "warmup": 0}, {"time": 3, "warmup": 0}])
@pytest.mark.parametrize("ragged", [True, False])
def test_parts_do_not_overlap(wanted, ragged):
    lengths = [5, 9, 7, 3, 8, 9]
    numbers = np.arange(1.0, 55).reshape(6, 9).T[..., None]
    x = [numbers[:n, i] for i, n in enumerate(lengths)] if ragged else numbers
    data = Sequences(x, x, dtype=torch.float64)
    training, validation = split(data, wanted, carries=True)

    def seen(part):
        from fastseq.data.chunk_plan import ChunkPlan

        found = []
        for _, batch in part.batches(ChunkPlan(part.steps, part.count, 4, 3).chunks()):
            if batch is not None:
                found += batch.xs[batch.xs > 0].tolist()
        return found

    parts = seen(training) + seen(validation.data)
    assert sorted(parts) == sorted(np.concatenate([n[:, 0] for n in x]) if ragged else x.ravel())
    assert seen(validation.data)


def test_fold_cuts_the_training_part_only():
    with pytest.warns(UserWarning, match="leaves the last 2 of 23 steps out"):
        est = estimator(fold=3).fit(X, Y, validation=2)
    assert est.history_[-1]["updates"] == 5 * 2  # 15 segments of 7 steps
    assert validation_loss(est) == pytest.approx(est.evaluate(X[:, 5:], Y[:, 5:]), rel=1e-6)


@pytest.mark.parametrize(("wanted", "options", "message"), [
    (0.0, {}, "must be between 0 and 1"),
    (7, {}, "on 7 of 7 sequences leaves nothing"),
    ({"time": 23}, {}, "on 23 of 23 time steps leaves nothing"),
    ({"time": 0.2}, {"fold": 2}, "how many steps to warm up"),
    ({"time": 0.2}, {"shard": "time"}, "how many steps to warm up"),
    ({"sequences": 2, "warmup": 3}, {}, "validation must be"),
    ({"time": 0.2, "warmup": -1}, {}, "warmup must be a number of steps, got -1"),
    ("a fifth", {}, "validation must be .* got 'a fifth'"),
    ((X,), {}, r"validation must be \(x, y\) or \(x, y, w\), got 1 parts"),
])  # fmt: skip
def test_bad_input(wanted, options, message):
    model = chain()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        estimator(model, **options).fit(X, Y, validation=wanted)
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("ragged", [True, False])
def test_a_warm_up_longer_than_what_is_before_it(ragged):
    x, y = ([*X.unbind(1)], [*Y.unbind(1)]) if ragged else (X, Y)
    with pytest.raises(ValueError, match=r"a warm-up of 19 steps .* but one sequence has 18"):
        estimator().fit(x, y, validation={"time": 5, "warmup": 19})


def test_one_series_is_told_to_validate_by_time():
    with pytest.raises(ValueError, match="needs at least 2, but there is 1: validate by time"):
        estimator().fit(X[:, :1], Y[:, :1], validation=0.2)
    with pytest.raises(ValueError, match="how many steps to warm up"):
        estimator().fit(X, Y, lengths=[T] * N, validation={"time": 0.2})


def test_the_picture_shows_both_losses():
    est = estimator().fit(X, Y, validation=2, epochs=3)
    lines = est.history_.plot().get_lines()
    assert [line.get_label() for line in lines][:2] == ["training", "validation"]
    assert list(lines[1].get_ydata()) == [row["validation_loss"] for row in est.history_]


class Normalised(nn.Module):
    """Carries a state, and normalises over sequences."""

    def __init__(self):
        super().__init__()
        self.rnn, self.norm, self.head = (
            nn.GRU(3, 4),
            nn.BatchNorm1d(4, momentum=0),
            nn.Linear(4, 1),
        )

    def forward(self, x, state=None):
        h, state = self.rnn(x, state)
        return self.head(self.norm(h.flatten(0, 1)).view_as(h)), state


def test_states_go_on_in_the_same_blocks_where_a_single_sequence_is_joined():
    """Blocks of 3 and 4 of the 7 sequences; with nothing learnt, the loss is that of one block."""
    torch.manual_seed(3)
    model = Normalised()
    many, one = (
        estimator(copy.deepcopy(model), lr=0, batchsize=size).fit(X, Y, validation={"time": 0.3})
        for size in (3, 7)
    )
    assert validation_loss(many) == pytest.approx(validation_loss(one), rel=1e-5)
