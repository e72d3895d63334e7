"""Runs of fit that are saved, killed and resumed: bits, signals, other programs, bad input."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from interrupted import (
    EPOCH,
    Stop,
    assert_same,
    chain,
    data,
    estimator,
    files,
    interrupted,
    result,
    run,
    stop_after,
)
from torch import nn

import fastseq as fs
from fastseq.checkpoint.folder import Generations

CASE = "validation by time"


def test_killed_at_any_update_and_resumed_to_the_same_bits():
    script = Path(__file__).with_name("interrupted.py")
    job = subprocess.run(
        [sys.executable, script, "2"], capture_output=True, text=True, timeout=200, check=False
    )
    assert job.returncode == 0, job.stdout + job.stderr


def test_saving_changes_nothing(tmp_path):
    plain = result(run(CASE))
    saved = run(CASE, checkpoint=fs.callbacks.Checkpoint(tmp_path, every_updates=1, keep=3))
    assert_same(plain, result(saved))
    assert files(tmp_path) == [f"checkpoint-0000{n}.safetensors" for n in (66, 67, 68)]


@pytest.mark.parametrize("updates", [1, 7, EPOCH, EPOCH + 1, 3 * EPOCH])
def test_goes_on_within_and_between_epochs(tmp_path, updates):
    whole = estimator().fit(*data())
    interrupted(tmp_path, updates)
    seen = []

    class Tell(fs.callbacks.Callback):
        def on_batch_end(self, run):
            seen.append((run.epoch, run.chunk, run.updates))

    est = estimator(Tell())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est.fit(*data(), checkpoint=tmp_path, resume="auto")
    assert_same(result(whole), result(est))
    first = updates - 1  # the run stopped before this update was saved
    assert seen == [(n // EPOCH + 1, n % EPOCH + 1, n + 1) for n in range(first, 3 * EPOCH)]


def test_times_are_those_of_the_whole_run(tmp_path):
    class Slow(fs.callbacks.Callback):
        def on_batch_end(self, _):
            time.sleep(0.02)

    with pytest.raises(Stop):
        checkpoint = fs.callbacks.Checkpoint(tmp_path, every_updates=1)
        estimator(Slow(), stop_after(15)).fit(*data(), checkpoint=checkpoint)
    seconds = []
    est = estimator(lambda run: seconds.append(run.seconds), epochs=1)
    est.fit(*data(), checkpoint=tmp_path, resume="auto")
    assert seconds[0] > 14 * 0.02
    assert est.history_[0]["seconds"] > 14 * 0.02


def test_how_often(tmp_path):
    def written(**settings):
        folder = tmp_path / "-".join(f"{key}{value}" for key, value in settings.items())
        checkpoint = fs.callbacks.Checkpoint(folder, keep=100, **settings)
        estimator(epochs=5).fit(*data(), checkpoint=checkpoint)
        updates = []
        for path in Generations(folder).paths():
            text = fs.checkpoint.format.read(path)[1]
            tree = fs.checkpoint.encoding.decode(text, _Anything())
            updates.append(tree["updates"])
        return updates

    ends = [EPOCH * n for n in range(1, 6)]
    assert written() == ends
    assert written(every_epochs=2) == [2 * EPOCH, 4 * EPOCH, 5 * EPOCH]
    assert written(every_updates=30, every_epochs=None) == [30, 60, 90, 100]
    assert len(written(every_minutes=1e-9, every_epochs=None)) > 20
    assert written(every_minutes=60, every_epochs=None) == [100]


class _Anything(dict):
    def __missing__(self, _):
        return torch.zeros(1)


def test_a_finished_run_is_not_trained_further(tmp_path):
    est = estimator(fs.callbacks.NumberLimit(2), epochs=4).fit(*data(), checkpoint=tmp_path)
    assert len(est.history_) == 2
    again = estimator(fs.callbacks.NumberLimit(2), epochs=4)
    again.fit(*data(), checkpoint=tmp_path, resume="auto")
    assert_same(result(est), result(again))
    assert again.stop_reason_ == est.stop_reason_ is not None


class AskOnce(fs.callbacks.Callback):
    """Asks within an epoch to stop, which happens with the next update."""

    asked = False

    def on_batch_end(self, run):
        if run.updates >= 7 and not self.asked:
            self.asked = True
            run.stop("asked")

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked = state["asked"]


def test_stops_within_an_epoch(tmp_path):
    checkpoint = fs.callbacks.Checkpoint(tmp_path, every_updates=1, keep=100)
    whole = estimator(AskOnce()).fit(*data(), checkpoint=checkpoint)
    assert whole.stop_reason_ == "asked"
    assert len(files(tmp_path)) == 8
    for name in files(tmp_path)[4:]:  # before it asked, after that, and stopped
        est = estimator(AskOnce()).fit(*data(), resume=tmp_path / name)
        assert_same(result(whole), result(est))


def test_more_epochs_are_counted_from_where_the_call_began(tmp_path):
    whole = estimator().fit(*data(), epochs=5)
    estimator().fit(*data(), epochs=2, checkpoint=tmp_path)
    est = estimator().fit(*data(), epochs=5, checkpoint=tmp_path, resume="auto")
    assert_same(result(whole), result(est))

    first = estimator().fit(*data(), epochs=2)
    with pytest.raises(Stop):
        first.callbacks.append(stop_after(3 * EPOCH + 7))
        first.fit(*data(), epochs=3, checkpoint=tmp_path / "second", resume="auto")
    second = estimator().fit(*data(), epochs=3, checkpoint=tmp_path / "second", resume="auto")
    assert_same(result(whole), result(second))


def test_one_program_calls_fit_again(tmp_path):
    """The end of its own first call is nothing to go back to."""
    whole = estimator().fit(*data(), epochs=5)
    est = estimator().fit(*data(), epochs=2, checkpoint=tmp_path, resume="auto")
    est.fit(*data(), epochs=3, checkpoint=tmp_path, resume="auto")
    assert_same(result(whole), result(est))


def test_after_an_error_the_same_estimator_goes_on(tmp_path):
    whole = estimator().fit(*data())
    est = estimator(stop_after(EPOCH + 8))
    with pytest.raises(Stop):
        checkpoint = fs.callbacks.Checkpoint(tmp_path, every_updates=3)
        est.fit(*data(), checkpoint=checkpoint)
    est.callbacks.clear()
    est.fit(*data(), checkpoint=tmp_path, resume="auto")
    assert_same(result(whole), result(est))


def test_resume_from_a_path(tmp_path):
    whole = estimator().fit(*data())
    interrupted(tmp_path, 9)
    for path in (tmp_path, str(tmp_path), tmp_path / files(tmp_path)[0]):
        assert_same(result(whole), result(estimator().fit(*data(), resume=path)))
    assert len(files(tmp_path)) == 2  # nothing was written


def test_damaged_ones(tmp_path):
    whole = estimator().fit(*data())
    interrupted(tmp_path, 9)
    newest = tmp_path / files(tmp_path)[-1]
    os.truncate(newest, 1000)
    with pytest.raises(fs.CheckpointError, match="incomplete"):
        estimator().fit(*data(), resume=newest)
    est = estimator()
    with pytest.warns(UserWarning, match=f"{newest.name} is incomplete.*the previous checkpoint"):
        est.fit(*data(), checkpoint=tmp_path, resume="auto")
    assert_same(result(whole), result(est))
    assert len(files(tmp_path)) == 2


class Wide(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x, state=None):
        return self.base(x, state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": chain(7)}, r"parameter 0\.weight_ih_l0 is \(24, 3\) torch.float32, this model"),
        ({"model": Wide(chain())}, r"parameter base\.0\.weight_ih_l0 is missing from the file"),
        ({"optimizer": torch.optim.SGD}, "optimizer AdamW, not SGD"),
    ],
)
def test_other_models_and_optimizers(tmp_path, options, message):
    interrupted(tmp_path, 9)
    est = estimator(**options)
    before = copy.deepcopy(est.model.state_dict())
    with pytest.raises(fs.CheckpointError, match=message):
        est.fit(*data(), checkpoint=tmp_path, resume="auto")
    assert_same(before, est.model.state_dict())
    assert len(est.history_) == 0


def test_bad_arguments(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "file").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "empty").mkdir()
    cases = [
        ({"resume": "auto"}, ValueError, r"resume=\"auto\" needs a folder: fit\(…, checkpoint="),
        ({"resume": True}, TypeError, 'resume must be None, "auto", a folder or a file, got True'),
        ({"resume": tmp_path / "empty"}, fs.CheckpointError, "there is no complete checkpoint in"),
        ({"resume": tmp_path / "none"}, FileNotFoundError, "none"),
        ({"resume": tmp_path / "file"}, fs.CheckpointError, "looks like a pickle"),
        ({"checkpoint": 3}, TypeError, "checkpoint needs a folder, got 3"),
        ({"checkpoint": tmp_path / "file" / "x"}, OSError, "checkpoint: the folder .* cannot be"),
        ({"checkpoint": "/proc/none"}, OSError, "checkpoint: the folder .* cannot be written"),
    ]
    for arguments, error, message in cases:
        est = estimator(stop_after(1))
        with pytest.raises(error, match=message):
            est.fit(*data(), **arguments)
    assert not (tmp_path / "exploded").exists()


def test_states_that_cannot_be_saved_are_told_before_training(tmp_path):
    class Odd(fs.callbacks.Callback):
        def state_dict(self):
            return {"a": {"b": threading.Lock()}}

    with pytest.raises(TypeError, match=r"callbacks\.0\.1\.a\.b is a _thread\.lock"):
        estimator(Odd(), stop_after(1)).fit(*data(), checkpoint=tmp_path)


def test_another_run_in_the_folder_is_told(tmp_path):
    interrupted(tmp_path, 9)
    with pytest.warns(UserWarning, match=r'has checkpoints of another run.*resume="auto"'):
        est = estimator(epochs=1).fit(*data(), checkpoint=tmp_path)
    assert len(est.history_) == 1
    again = estimator(epochs=1).fit(*data(), checkpoint=tmp_path, resume="auto")
    assert_same(result(est), result(again))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"batchsize": 2}, r"spec\.batchsize 3, this one has spec\.batchsize 2"),
        ({"seed": 2}, "seed 1"),
    ],
)
def test_other_plans_begin_the_epoch_anew(tmp_path, options, what):
    interrupted(tmp_path, EPOCH + 9)
    est = estimator(**options)
    with pytest.warns(UserWarning, match=f"{what}.*epoch 2 again.*not bitwise"):
        est.fit(*data(), checkpoint=tmp_path, resume="auto")
    assert [row["epoch"] for row in est.history_] == [1, 2, 3]
    assert est.history_[0]["loss"] == estimator().fit(*data(), epochs=1).history_[0]["loss"]
    assert est.history_[1]["loss"] < est.history_[0]["loss"]


def test_rounding_that_may_differ_is_told(tmp_path, monkeypatch):
    interrupted(tmp_path, 9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.warns(UserWarning, match=r"threads \d+, this one has threads 77: .* rounding may"):
        estimator().fit(*data(), checkpoint=tmp_path, resume="auto")


def test_callbacks_that_are_not_there_any_more(tmp_path):
    with pytest.raises(Stop):
        estimator(fs.callbacks.Patience(3), stop_after(EPOCH + 2)).fit(*data(), checkpoint=tmp_path)
    with pytest.warns(UserWarning, match="callbacks that are not in this fit: Patience"):
        estimator().fit(*data(), checkpoint=tmp_path, resume="auto")


def test_errors_of_writing_surface(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    seen = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"a checkpoint could not be written to .*No space left"):
            estimator(lambda run: seen.append(run.epoch)).fit(*data(), checkpoint=tmp_path)
        assert len(seen) < 3
        with pytest.raises(OSError, match="No space left"):  # nobody looks after the last one
            estimator(epochs=1).fit(*data(), checkpoint=tmp_path)
    assert files(tmp_path) == []


def test_the_error_of_the_run_counts_more(tmp_path, monkeypatch):
    ended = threading.Event()

    class End(fs.callbacks.Callback):
        def on_batch_end(self, run):
            if run.updates == 5:
                ended.set()
                raise Stop

    def full(_):
        ended.wait(30)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Stop):
        checkpoint = fs.callbacks.Checkpoint(tmp_path, every_updates=4)
        estimator(End()).fit(*data(), checkpoint=checkpoint)


def test_what_is_written_is_whole_when_fit_ends(tmp_path, monkeypatch):
    slow = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (time.sleep(0.2), slow(file)))
    estimator(epochs=1).fit(*data(), checkpoint=tmp_path)
    assert files(tmp_path) == ["checkpoint-000001.safetensors"]
