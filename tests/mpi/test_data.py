"""Series of different lengths, folds, scaling and validation: ranks against one process."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from models import adamw, assert_same_parameters, chain
from torch.nn.functional import mse_loss

import fastseq as fs

GENERATOR = np.random.default_rng(0)
X = (GENERATOR.standard_normal((23, 11, 3)) * 5 + 2).astype(np.float32)
Y = X.mean(2, keepdims=True)
LENGTHS = [23, 1, 7, 0, 12, 23, 5, 18, 3, 9, 20]
SERIES = [X[:n, i] for i, n in enumerate(LENGTHS)], [Y[:n, i] for i, n in enumerate(LENGTHS)]


def train(comm, model, data, batchsize, *, validation=None, lengths=None, **spec):
    spec = {"epochs": 3, "batchsize": batchsize, "seqsize": 5, **spec}
    est = fs.Estimator(
        copy.deepcopy(model), fs.seqloss(mse_loss), adamw, spec, comm=comm, progress=False, seed=3
    )
    return est.fit(*data, lengths=lengths, validation=validation)


@pytest.mark.parametrize("options", [
    {"series": True},
    {"series": True, "shuffle": True, "validation": 3},
    {"series": True, "validation": {"time": 0.25, "warmup": 0}},
    {"lengths": LENGTHS},
    {"lengths": LENGTHS, "scale_x": "standard", "scale_y": "robust"},
    {"fold": 23},
    {"scale_x": "robust", "validation": {"time": 6}},
    {"validation": {"time": 6, "warmup": 8}, "fold": 17},
    {"validation": {"sequences": 0.3}, "scale_y": "standard"},
], ids=str)  # fmt: skip
def test_equals_one_process_with_the_union_batch(comm, options):
    torch.manual_seed(0)
    model = chain()
    data = SERIES if options.get("series") else (X, Y)
    options = {key: value for key, value in options.items() if key != "series"}
    many = train(comm, model, data, 2, **options)
    one = train(None, model, data, 2 * comm.size, **options)
    assert_same_parameters(many.model, one.model, rtol=2e-5)
    for row, other in zip(many.history_, one.history_, strict=True):
        assert row.keys() == other.keys()
        for key in row.keys() & {"loss", "validation_loss"}:
            assert row[key] == pytest.approx(other[key], rel=1e-4)
    mine = fs.net2vec(many.model).detach()
    assert torch.equal(mine, comm.broadcast_(mine.clone()))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("validation", [None, {"time": 6, "warmup": 4}])
def test_shards_of_time(comm, lengths, validation):
    torch.manual_seed(0)
    est = train(comm, chain(), (X, Y), 4, lengths=lengths, validation=validation, shard="time")
    mine = fs.net2vec(est.model).detach()
    assert torch.equal(mine, comm.broadcast_(mine.clone()))
    if validation is not None:
        alone = fs.Estimator(
            est.model, fs.seqloss(mse_loss), adamw, est.spec, comm=None, progress=False
        )
        alone.optimizer.param_groups[0]["lr"] = 0.0
        alone.fit(X, Y, lengths=lengths, epochs=1, validation=validation)
        wanted = alone.history_[-1]["validation_loss"]
        assert est.history_[-1]["validation_loss"] == pytest.approx(wanted, rel=1e-4)


class Watched:
    """An array-like that remembers which sequences were read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, set()

    def __getitem__(self, index):
        self.read |= set(range(index[1].start, index[1].stop))
        return self.array[index]


def test_each_rank_reads_its_own_sequences_only(comm):
    x, y = Watched(X[:, :8]), Watched(Y[:, :8])
    train(comm, chain(), (x, y), 8)
    share = 8 * comm.rank // comm.size, 8 * (comm.rank + 1) // comm.size
    # beside the first sequence, by which ranks see whether they have the same data
    assert x.read == y.read == {0} | set(range(*share))


def test_what_one_rank_cannot_read_is_an_error_on_all(comm):
    class Broken(Watched):
        def __getitem__(self, index):
            if comm.rank == comm.size - 1 and index[0].start >= 10:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    with pytest.raises(
        (fs.ReadError, fs.RemoteError), match="x could not be read at steps 10 to 15"
    ):
        train(comm, chain(), (Broken(X), Y), 2)


def test_nan_on_one_rank_is_named_on_all(comm):
    x = X.copy()
    x[12, 10, 1] = np.nan
    with pytest.raises(
        (fs.NonFiniteError, fs.RemoteError), match="x holds NaN at step 12, sequence 10, feature 1"
    ):
        train(comm, chain(), (x, Y), 4)
    comm.barrier()
