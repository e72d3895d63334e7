"""Runs of several ranks that are saved and resumed, on as many ranks and on others."""

from __future__ import annotations

import re
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted import CASES, assert_same, chain, data, estimator, files, result, run
from models import assert_same_parameters

import fastseq as fs


def whole_and_saved(comm, folder, make):
    """Return the result of a run, and the file after each of its updates."""
    whole = result(make(comm=comm))
    settings = fs.callbacks.Checkpoint(folder, every_updates=1, every_epochs=None, keep=1000)
    assert_same(whole, result(make(comm=comm, checkpoint=settings)))
    return whole, [folder / name for name in files(folder)]


@pytest.mark.parametrize("case", CASES)
def test_same_bits_on_as_many_ranks(comm, folder, case):
    whole, paths = whole_and_saved(comm, folder, lambda **options: run(case, **options))
    for path in (paths[0], paths[len(paths) // 2], paths[-2]):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert_same(whole, result(run(case, comm=comm, resume=path)))


def fitted(comm=None, epochs=3, callbacks=(), dropout=0.0, **fit):
    # Data of which all numbers of ranks make the same blocks.
    x, y = (torch.cat([a, a[:, :1]], 1) for a in data())
    size = 1 if comm is None else comm.size
    est = estimator(
        *callbacks, model=chain(dropout=dropout), epochs=epochs, comm=comm, batchsize=12 // size
    )
    return est.fit(x, y, **fit)


def test_another_number_of_ranks(comm, folder):
    """From all ranks to one and back: within an epoch, and between two."""
    # Together, one rank after the other by itself: each has a folder of its own for that.
    alone = folder.with_name(f"{folder.name}_alone{comm.rank}")
    for where, ranks in ((folder, comm), (alone, None)):
        settings = fs.callbacks.Checkpoint(where, every_updates=1, keep=1000)
        whole = fitted(ranks, checkpoint=settings)
    per_epoch = whole.history_[0]["updates"]
    theirs = Path(comm.broadcast_bytes(str(alone).encode(), 0).decode())
    comm.barrier()
    for source, ranks, before in ((folder, None, comm.size), (theirs, comm, 1)):
        own = 1 if ranks is None else comm.size
        paths = [source / name for name in files(source)]
        told = f"with ranks {before}, .*this one has ranks {own}"
        tells = before != own and (ranks is None or comm.rank == 0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            after = fitted(ranks, resume=paths[per_epoch])  # the epoch's end follows
            resumed = fitted(ranks, resume=paths[per_epoch + 2])
        texts = [str(warning.message) for warning in caught]
        assert len(texts) == 2 * tells
        assert all(re.search(told, text) for text in texts)
        assert not tells or "starts epoch 2 again" in texts[1]
        # Data, order and batches are the same: only sums are made in another order.
        assert_same_parameters(after.model, whole.model, rtol=1e-3)
        losses = [[row["loss"] for row in est.history_] for est in (after, whole)]
        np.testing.assert_allclose(*losses, rtol=1e-4)
        assert [row["epoch"] for row in resumed.history_] == [1, 2, 3]
        # On others, it made some updates more than the whole run, before its second epoch.
        more = before != own
        assert (resumed.history_[1]["loss"] < whole.history_[1]["loss"]) == more


def test_one_ranks_signal_saves_on_all(comm, folder):
    class Signal(fs.callbacks.Callback):
        def on_batch_end(self, run):
            if run.updates == 5 and run.rank == comm.size - 1:
                signal.raise_signal(signal.SIGUSR1)

    settings = fs.callbacks.Checkpoint(folder, every_epochs=None, keep=10)
    est = fitted(comm, 3, [Signal()], 0.3, checkpoint=settings)
    comm.barrier()
    assert len(files(folder)) == 2  # and at the end
    again = fitted(comm, 3, dropout=0.3, resume=folder / files(folder)[0])
    assert_same(result(est), result(again))


def test_rank_0s_clock_saves_on_all(comm, folder):
    settings = fs.callbacks.Checkpoint(folder, every_epochs=None, every_minutes=1e-9, keep=1000)
    fitted(comm, checkpoint=settings)
    comm.barrier()
    assert len(files(folder)) > 2


def test_errors_of_rank_0_are_everybodys(comm, folder):
    for rank_0s, error, message in (
        ({"checkpoint": "/proc/none"}, OSError, "cannot be written"),
        ({"resume": str(folder / "none")}, OSError, "none"),
    ):
        duplicate = comm.duplicate()
        expected = error if comm.rank == 0 else fs.RemoteError
        with pytest.raises(expected, match=message):
            fitted(duplicate, **rank_0s)
    if comm.size > 1:
        with pytest.raises(ValueError, match=r"the run differs between ranks: .*every_updates=2"):
            fitted(comm.duplicate(), checkpoint=fs.callbacks.Checkpoint(folder, comm.rank + 1))
