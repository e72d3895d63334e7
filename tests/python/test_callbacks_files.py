"""Weights that are kept, lines and pictures."""

from __future__ import annotations

import copy
import logging
import math
import os
import sys
import types

import matplotlib as mpl
import pytest
import torch
from models import adamw, chain
from safetensors import safe_open
from safetensors.torch import load_file
from scripted import ScriptedRun, play, row, through_a_file
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs

mpl.use("Agg")
cb = fs.callbacks
X = torch.randn(15, 6, 3, generator=torch.Generator().manual_seed(2))
Y = X.mean(2, keepdim=True)


def estimator(*callbacks, epochs=4, **options):
    torch.manual_seed(3)
    return fs.Estimator(
        chain(), fs.seqloss(mse_loss), adamw, fs.Spec(epochs, 3, 5),
        **{"callbacks": callbacks, "progress": False, "seed": 1, **options},
    )  # fmt: skip


class Numbered(nn.Module):
    """A parameter and a buffer that tell after which epoch they are looked at."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))


def train(run):
    with torch.no_grad():
        run.model.weight.fill_(run.epoch)
        run.model.count.fill_(run.epoch)


def best_of(losses, **options):
    best, run = cb.RestoreBest(**options), ScriptedRun(model=Numbered())
    play(best, [row(loss) for loss in losses], run, train=train)
    best.on_fit_end(run)
    return best, run.model


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [
        ([3.0, 2.0, 1.0, 2.0, 1.0], 3),  # the first of equals
        ([1.0, 2.0], 1),
        ([3.0, 2.0, 1.0], 3),
        ([math.nan, 2.0, math.inf, math.nan], 2),
    ],
)
def test_restore_best(losses, epoch):
    best, model = best_of(losses)
    assert (best.epoch, best.value) == (epoch, losses[epoch - 1])
    assert model.weight.tolist() == [epoch, epoch]
    assert model.count == epoch
    best, model = best_of([-loss for loss in losses], mode="max")
    assert (best.epoch, best.value) == (epoch, -losses[epoch - 1])
    assert model.weight.tolist() == [epoch, epoch]


def test_without_a_best_weights_stay():
    best, model = best_of([math.nan, math.nan])
    assert best.epoch is None
    assert model.weight.tolist() == [2, 2]


@pytest.mark.parametrize("done", range(6))
def test_restore_best_goes_on(done):
    rows = [row(loss) for loss in (3.0, 1.5, 2.0, 1.0, 2.0)]
    before, after, run = cb.RestoreBest(), cb.RestoreBest(), ScriptedRun(model=Numbered())
    play(before, rows[:done], run, train=train)
    state = through_a_file(before.state_dict())
    after.on_fit_begin(run)
    after.load_state_dict(state)
    play(after, rows[done:], run, begin=False, train=train)
    after.on_fit_end(run)
    assert after.epoch == 4
    assert run.model.weight.tolist() == [4, 4]


class Keep(cb.Callback):
    """A copy of the weights after each epoch."""

    def __init__(self):
        self.weights = []

    def on_epoch_end(self, run):
        self.weights.append(copy.deepcopy(run.model.state_dict()))


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_fit_gives_back_the_best_weights():
    keep, best = Keep(), cb.RestoreBest(mode="max")  # of falling losses, the first
    est = estimator(keep, best).fit(X, Y, validation=(X, Y))
    assert best.epoch == 1
    assert best.value == est.history_[0]["validation_loss"]
    assert_equal(est.model.state_dict(), keep.weights[0])
    assert est.evaluate(X, Y) == pytest.approx(best.value, rel=1e-6)
    assert not torch.equal(keep.weights[0]["1.weight"], keep.weights[3]["1.weight"])
    est.fit(X, Y, validation=(X, Y), epochs=1)
    assert best.epoch in (1, 5)
    assert_equal(est.model.state_dict(), keep.weights[0 if best.epoch == 1 else 4])
    value = best.value
    other = estimator(best).fit(X, Y / 10, validation=(X, Y / 10), epochs=1)  # starts from scratch
    assert best.value == other.history_[0]["validation_loss"] < value


def test_fit_gives_back_the_best_weights_after_an_error():
    def fail(run):
        if run.epoch == 3:
            raise RuntimeError("on purpose")

    keep, best = Keep(), cb.RestoreBest(monitor="loss")
    est = estimator(keep, best, fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        est.fit(X, Y)
    assert best.epoch == 3
    assert_equal(est.model.state_dict(), keep.weights[2])


LOSSES = [5.0, 3.0, 4.0, 2.0, 2.0, 3.5, 6.0, 1.0]
ROWS = [row(loss) for loss in LOSSES]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"every": 3}, [3, 6]),
        ({"last": 2}, [7, 8]),
        ({"last": 2, "every": 3}, [3, 6]),
        ({"best": 3}, [4, 5, 8]),  # 2, 2 and 1
        ({"best": 2}, [4, 8]),  # the earlier of equals
        ({"best": 1, "last": 1}, [8]),
        ({"best": 3, "last": 2}, [4, 5, 7, 8]),
        ({"best": 2, "mode": "max"}, [1, 7]),
        ({"best": 1, "monitor": "loss"}, [1]),
        ({"best": 100}, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
@pytest.mark.parametrize("resumed_after", [None, 0, 1, 5])
def test_snapshots(tmp_path, options, kept, resumed_after):
    snapshots, run = cb.Snapshots(tmp_path / "new" / "folder", **options), ScriptedRun()
    run.model = Numbered()
    rows = ROWS
    if resumed_after is not None:
        play(snapshots, ROWS[:resumed_after], run, train=train)
        state, rows = through_a_file(snapshots.state_dict()), ROWS[resumed_after:]
        snapshots = cb.Snapshots(tmp_path / "new" / "folder", **options)
        run.updates = max(run.updates, 1)
        snapshots.load_state_dict(state)
    play(snapshots, rows, run, train=train)
    names = sorted(os.listdir(tmp_path / "new" / "folder"))
    assert names == [f"epoch-{epoch:04}.safetensors" for epoch in kept]
    assert list(snapshots.paths) == kept
    for epoch, path in snapshots.paths.items():
        tensors = load_file(path)
        assert tensors["weight"].tolist() == [epoch, epoch]
        assert tensors["count"] == epoch
        with safe_open(path, "pt") as file:
            about = file.metadata()
        assert (about["epoch"], about["validation_loss"]) == (str(epoch), str(LOSSES[epoch - 1]))


def test_snapshots_of_fit_fit_into_the_model(tmp_path):
    keep, snapshots = Keep(), cb.Snapshots(tmp_path, last=2)
    est = estimator(snapshots, keep).fit(X, Y)
    assert list(snapshots.paths) == [3, 4]
    for epoch, path in snapshots.paths.items():
        assert_equal(load_file(path), keep.weights[epoch - 1])
    est.model.load_state_dict(load_file(snapshots.paths[3]))
    est.fit(X, Y, epochs=1)
    assert list(snapshots.paths) == [4, 5]


def test_snapshots_of_tied_weights(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = nn.Linear(2, 2)

    snapshots, run = cb.Snapshots(tmp_path), ScriptedRun(model=Tied())
    play(snapshots, ROWS[:1], run)
    run.model.load_state_dict(load_file(snapshots.paths[1]))


def test_other_ranks_write_nothing(tmp_path, capsys):
    run = ScriptedRun(model=Numbered())
    run.first = False
    snapshots, log = cb.Snapshots(tmp_path, best=2), cb.Log()
    for callback in (snapshots, log, cb.LivePlot(tmp_path / "a.png"), cb.LivePlot()):
        play(callback, ROWS[:3], run)
        callback.on_fit_end(run)
    assert os.listdir(tmp_path) == []
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    est = estimator(cb.Snapshots(tmp_path / "file" / "folder"))
    with pytest.raises(OSError, match="folder"):
        est.fit(X, Y)
    assert len(est.history_) == 0


def test_a_snapshot_that_fails_leaves_nothing_half(tmp_path, monkeypatch):
    def fail(tensors, path, metadata):
        with open(path, "w") as file:
            file.write("half")
        raise OSError("the disk is full")

    monkeypatch.setattr("fastseq.callbacks.snapshots.save_file", fail)
    with pytest.raises(OSError, match="the disk is full"):
        play(cb.Snapshots(tmp_path), ROWS[:1], ScriptedRun(model=Numbered()))
    assert os.listdir(tmp_path) == []


def test_log_prints(capsys):
    est = estimator(cb.Log(), cb.NumberLimit(2)).fit(X, Y, validation=(X, Y))
    lines = capsys.readouterr().out.splitlines()
    first = est.history_[0]
    assert lines[0].startswith(f"epoch 1/4: loss {first['loss']:.4g}, ")
    assert f"validation_loss {first['validation_loss']:.4g}" in lines[0]
    assert "lr 0.01" in lines[0]
    assert [line[:9] for line in lines] == ["epoch 1/4", "epoch 2/4", "stopped i"]
    assert lines[2] == "stopped in epoch 2: 2 epochs are done"


def test_log_to_a_logger_every_few_epochs_and_the_last(caplog):
    with caplog.at_level(logging.INFO, "training"):
        estimator(cb.Log(2, logger="training"), epochs=5).fit(X, Y)
        estimator(cb.Log(2, logger=logging.getLogger("training"))).fit(X, Y)
    numbers = [message.split()[1] for message in caplog.messages]
    assert numbers == ["2/5:", "4/5:", "5/5:", "2/4:", "4/4:"]


def test_live_plot_rewrites_a_file(tmp_path):
    sizes = []
    path = tmp_path / "history.png"

    def look(run):
        sizes.append(path.read_bytes() if path.exists() else b"")

    estimator(cb.LivePlot(path, every=2), look, epochs=5).fit(X, Y)
    assert [data[:4] == b"\x89PNG" for data in sizes] == [False, True, True, True, True]
    assert sizes[1] == sizes[2] != sizes[3] == sizes[4]
    assert path.read_bytes() != sizes[4]  # the last epoch is drawn at the end
    assert os.listdir(tmp_path) == ["history.png"]


def test_live_plot_in_a_notebook(monkeypatch):
    shown = []

    class Handle:
        def update(self, picture):
            shown.append(("update", picture.data[:4]))

    def display(picture, display_id):
        shown.append(("display", picture.data[:4]))
        return Handle()

    class Image:
        def __init__(self, data):
            self.data = data

    ipython, displays = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=None)
    displays.display, displays.Image = display, Image
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    estimator(cb.LivePlot(), epochs=3).fit(X, Y)
    png = b"\x89PNG"
    assert shown == [("display", png), ("update", png), ("update", png)]


def test_live_plot_without_a_place_or_matplotlib(tmp_path, monkeypatch):
    for path, message in [
        (None, "LivePlot\\(\\) without a path draws in notebooks only"),
        (tmp_path / "a.doc", "its name must end in .png"),
        (tmp_path / "no" / "a.png", "no' does not exist"),
    ]:
        with pytest.raises(ValueError, match=message):
            estimator(cb.LivePlot(path)).fit(X, Y)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(fs.MissingFeatureError, match="pip install matplotlib"):
        estimator(cb.LivePlot(tmp_path / "a.png")).fit(X, Y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cb.Snapshots("a", every=0), "every must be positive, got 0"),
        (lambda: cb.Snapshots("a", last=0), "last must be positive, got 0"),
        (lambda: cb.Snapshots("a", best=1.5), "best must be an integer, got 1.5"),
        (lambda: cb.Snapshots("a", mode="up"), "mode must be"),
        (lambda: cb.RestoreBest(mode="up"), "mode must be"),
        (lambda: cb.Log(0), "every must be positive, got 0"),
        (lambda: cb.Log(logger=3), "logger must be a logging.Logger, its name or None, got 3"),
        (lambda: cb.LivePlot(every=-2), "every must be positive, got -2"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
