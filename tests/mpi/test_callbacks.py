"""What callbacks decide is the same on every rank, and as in one process with all the data."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import pytest
import torch
from models import adamw, chain
from torch.nn.functional import mse_loss
from torch.optim import lr_scheduler

import fastseq as fs

cb = fs.callbacks


def fit(comm, *callbacks, epochs=8, batchsize=2, noise=0.5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 13, 3, generator=generator)
    y = x.mean(2, keepdim=True) + noise * torch.randn(12, 13, 1, generator=generator)
    torch.manual_seed(0)
    est = fs.Estimator(
        chain(hidden=8), fs.seqloss(mse_loss), adamw, fs.Spec(epochs, batchsize, 5), comm=comm,
        seed=3, progress=False, callbacks=callbacks,
    )  # fmt: skip
    return est.fit(x, y, validation=0.4)


def on_all_ranks(comm, *numbers):
    """Each rank's numbers, one row per rank."""
    mine = torch.zeros(comm.size, len(numbers), dtype=torch.float64)
    mine[comm.rank] = torch.tensor(numbers, dtype=torch.float64)
    return comm.allreduce_(mine, "sum").tolist()


def assert_same_everywhere(comm, *numbers):
    rows = on_all_ranks(comm, *numbers)
    assert all(row == rows[0] for row in rows), rows


def shared_folder(comm, tmp_path):
    return Path(comm.broadcast_bytes(str(tmp_path).encode(), 0).decode())


CRITERIA = [
    lambda limit: cb.Threshold(limit),
    lambda _: cb.NumberSinceBest(2, mode="max"),
    lambda _: cb.Warmup(cb.Patience(1, mode="max"), 2),
    lambda limit: cb.AllOf(cb.Threshold(limit), cb.NumberLimit(5)),
    lambda _: cb.AnyOf(cb.PQ(0.75, k=2), cb.GL(2, mode="max")),
]


@pytest.mark.parametrize("number", range(len(CRITERIA)))
def test_stops_at_the_same_epoch_on_all_ranks_and_as_one_process_would(comm, number):
    losses = [row["validation_loss"] for row in fit(comm, noise=0.0).history_]
    make = functools.partial(CRITERIA[number], (losses[3] + losses[4]) / 2)
    many = fit(comm, make(), noise=0.0)
    one = fit(None, make(), batchsize=2 * comm.size, noise=0.0)
    assert 1 < len(many.history_) == len(one.history_) < 8
    assert bool(many.stop_reason_)
    assert_same_everywhere(comm, len(many.history_), many.history_[-1]["validation_loss"])


def test_restores_the_same_weights_on_all_ranks(comm):
    best = cb.RestoreBest(mode="max")
    est = fit(comm, best)
    assert best.epoch < 8
    assert_same_everywhere(comm, best.epoch, best.value, *fs.net2vec(est.model).tolist())


@pytest.mark.parametrize("per", ["update", "epoch"])
def test_schedules_are_the_same_on_all_ranks(comm, per):
    rates = []

    class Note(cb.Callback):
        def on_batch_end(self, run):
            rates.append(run.optimizer.param_groups[0]["lr"])

    make = functools.partial(lr_scheduler.ExponentialLR, gamma=0.9)
    est = fit(comm, Note(), cb.Schedule(make, per=per), epochs=3)
    updates = est.history_[0]["updates"]
    every = 1 if per == "update" else updates
    powers = [n // every for n in range(3 * updates)]
    assert rates == pytest.approx([0.01 * 0.9**power for power in powers], rel=1e-12)
    assert_same_everywhere(comm, *rates, *fs.net2vec(est.model).tolist())


def test_plateau_and_cycle(comm):
    plateau = functools.partial(
        lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0, threshold=0.999
    )
    est = fit(comm, cb.Schedule(plateau), epochs=4)
    assert [row["lr"] for row in est.history_] == [0.01, 0.01, 0.005, 0.0025]
    assert_same_everywhere(comm, *fs.net2vec(est.model).tolist())
    est = fit(comm, cb.CycleLearningRate(2, lower=0.01, upper=0.03), epochs=4)
    assert [row["lr"] for row in est.history_] == pytest.approx([0.01, 0.02, 0.03, 0.02])


@pytest.mark.parametrize("slow", ["first", "last", "all"])
@pytest.mark.parametrize("inside", [False, True])
def test_time_limit_ends_all_ranks_at_the_same_update(comm, slow, inside):
    """Each rank looks at its own clock, or all at rank 0's; ranks also start at different times."""
    updates = []
    here = {"first": comm.rank == 0, "last": comm.rank == comm.size - 1, "all": True}[slow]

    class Work(cb.Callback):
        def on_fit_begin(self, _):
            if here:
                time.sleep(0.05)

        def on_batch_end(self, run):
            updates.append(run.updates)
            if here:
                time.sleep(0.01)

    limit = cb.TimeLimit(0.3)
    begin = time.monotonic()
    est = fit(comm, Work(), cb.Warmup(limit, 1) if inside else limit, epochs=10_000)
    assert 0.25 < time.monotonic() - begin < 60
    assert est.stop_reason_ == "the time limit of 0.3 seconds is reached"
    assert_same_everywhere(comm, len(updates), len(est.history_), *fs.net2vec(est.model).tolist())


def test_one_rank_s_wish_stops_all(comm):
    def stop(run):
        if run.rank == comm.size - 1 and run.epoch == 3:
            run.stop("the last rank says so")

    est = fit(comm, stop)
    assert (len(est.history_), est.stop_reason_) == (3, "the last rank says so")


def test_rank_0_writes(comm, tmp_path, capsys):
    folder = shared_folder(comm, tmp_path)
    snapshots = cb.Snapshots(folder, best=2)
    plot = cb.LivePlot(folder / "history.png")
    est = fit(comm, snapshots, plot, cb.Log(4))
    assert_same_everywhere(comm, *snapshots.paths)
    order = sorted(range(8), key=lambda i: est.history_[i]["validation_loss"])
    assert sorted(snapshots.paths) == sorted(i + 1 for i in order[:2])
    comm.barrier()
    names = sorted(os.listdir(folder))
    assert names == [
        *(path.name for path in snapshots.paths.values()), "history.png"
    ]  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert [line[:7] for line in lines] == (["epoch 4", "epoch 8"] if comm.rank == 0 else [])


def test_a_folder_that_cannot_be_written_is_told_on_all_ranks(comm, tmp_path):
    folder = shared_folder(comm, tmp_path)
    if comm.rank == 0:
        (folder / "file").write_text("")
    comm.barrier()
    error = OSError if comm.rank == 0 else fs.RemoteError
    with pytest.raises(error, match="file"):
        fit(comm, cb.Snapshots(folder / "file" / "more"))


def test_other_data_are_other_data_on_all_ranks(comm):
    best = cb.RestoreBest()
    est = fit(comm, best, epochs=3, noise=0.0)
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(12, 13, n, generator=generator) for n in (3, 1))
    est.fit(x, 50 * y, validation=0.4, epochs=2)
    losses = [row["validation_loss"] for row in est.history_]
    assert min(losses[3:]) > max(losses[:3])
    assert best.value == min(losses[3:])
    assert_same_everywhere(comm, best.epoch, *fs.net2vec(est.model).tolist())
