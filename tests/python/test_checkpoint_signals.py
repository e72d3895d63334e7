"""Signals while fit runs with checkpoints: one to save, one to save and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from interrupted import Stop, assert_same, data, estimator, files, result
from waiting import until

import fastseq as fs
from fastseq._util import threads


def test_usr1_saves_and_goes_on(tmp_path):
    class Signal(fs.callbacks.Callback):
        def on_batch_end(self, run):
            if run.updates == 7:
                signal.raise_signal(signal.SIGUSR1)
            if run.updates == 12:
                raise Stop

    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stop):
        estimator(Signal()).fit(*data(), checkpoint=tmp_path)
    assert files(tmp_path) == ["checkpoint-000001.safetensors"]
    assert before == (signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM))
    updates = []

    class Tell(fs.callbacks.Callback):
        def on_batch_end(self, run):
            updates.append(run.updates)

    est = estimator(Tell()).fit(*data(), checkpoint=tmp_path, resume="auto")
    assert updates[0] in (8, 9)
    assert_same(result(estimator().fit(*data())), result(est))


def test_signals_are_left_alone_elsewhere(tmp_path):
    seen = []

    def look(_):
        seen.append((signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)
    estimator(look, epochs=1).fit(*data())  # no checkpoints
    thread = threading.Thread(
        target=lambda: estimator(look, epochs=1).fit(*data(), checkpoint=tmp_path)
    )
    thread.start()
    thread.join()
    assert seen == [before, before]
    assert files(tmp_path) == ["checkpoint-000001.safetensors"]


TERMINATED = """
import signal, sys, time, torch, fastseq as fs
from interrupted import data, estimator
torch.set_num_threads(int(sys.argv[3]))
if sys.argv[2] == "handler":
    def leave(number, frame):
        print("handler called", flush=True)
        sys.exit(7)
    signal.signal(signal.SIGTERM, leave)
class Tell(fs.callbacks.Callback):
    def on_batch_end(self, run):
        if run.updates == 5:
            if sys.argv[2] == "ignored":
                signal.raise_signal(signal.SIGTERM)
            else:
                print("ready", flush=True)
        time.sleep(0.01)
if sys.argv[2] == "ignored":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
estimator(Tell(), epochs=2 if sys.argv[2] == "ignored" else 1000).fit(*data(), checkpoint=sys.argv[1])
print("done", flush=True)
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("default", -signal.SIGTERM),
        pytest.param("handler", 7, marks=pytest.mark.slow),
        pytest.param("ignored", 0, marks=pytest.mark.slow),
    ],
)
def test_term_saves_and_ends_as_it_would(tmp_path, how, code):
    job = subprocess.Popen(
        [sys.executable, "-c", TERMINATED, str(tmp_path), how, str(torch.get_num_threads())],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert job.stdout.readline() == ("done\n" if how == "ignored" else "ready\n"), job.communicate()
    if how != "ignored":
        job.send_signal(signal.SIGTERM)
    out = job.communicate(timeout=200)[0]
    assert job.returncode == code, out
    assert ("handler called" in out) == (how == "handler")
    assert files(tmp_path)[-1].startswith("checkpoint-")
    whole = estimator(epochs=2).fit(*data())
    est = estimator(epochs=2).fit(*data(), checkpoint=tmp_path, resume="auto")
    assert len(est.history_) == 2
    assert_same(result(whole), result(est))


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_ctrl_c_while_the_writing_thread_starts(tmp_path, monkeypatch, when):
    """An interrupt may come at any place of `Thread.start`."""
    start, started = threads.Thread.start, []

    class Interrupted:
        def acquire(self, **_):
            raise KeyboardInterrupt

    def interrupted(thread):
        if thread._call.__name__ != "_write" or started:
            return start(thread)
        started.append(thread)
        if when == "after":
            start(thread)
        if when == "between":  # the system's thread is there, and has not said so yet
            thread._begun = Interrupted()
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threads.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        estimator().fit(*data(), checkpoint=tmp_path)
    assert started
    until(lambda: not threads.waited_for)
    assert files(tmp_path) in ([], ["checkpoint-000001.safetensors"])
    est = estimator().fit(*data(), checkpoint=tmp_path, resume="auto")
    assert_same(result(estimator().fit(*data())), result(est))
