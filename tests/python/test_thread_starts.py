"""Threads that end before they have begun, as those do for which there is no memory."""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from interrupted import assert_same, data, estimator, files, result

import fastseq as fs
from fastseq._util import threads
from fastseq.distributed.stores import in_time
from fastseq.serving.batcher import Batcher


@pytest.fixture
def no_memory(monkeypatch):
    """Let each new thread end at once; it frees its arguments."""
    start = _thread.start_new_thread
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", lambda _, args: start(lambda *_: None, args))
        yield patch
    assert not threads.waited_for


def test_a_checkpoint(tmp_path, no_memory):
    with pytest.raises(MemoryError, match="another thread"):
        estimator().fit(*data(), checkpoint=tmp_path)
    assert files(tmp_path) == []
    no_memory.undo()
    est = estimator().fit(*data(), checkpoint=tmp_path, resume="auto")
    assert_same(result(estimator().fit(*data())), result(est))


class Sliced:
    """What is read by slicing."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, index):
        return self.array[index]


@pytest.mark.parametrize("kind", ["sliced", "windows"])
def test_reading_ahead(tmp_path, kind, no_memory):
    x, y = (np.asarray(part) for part in data())
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(2, 1, x.shape[2]), compression="gzip")
    read = Sliced(x) if kind == "sliced" else fs.h5mmap(tmp_path / "data.h5", "x")
    est = estimator()
    with pytest.raises(MemoryError, match="another thread"):
        est.fit(read, y)
    no_memory.undo()
    assert_same(result(estimator().fit(x, y)), result(estimator().fit(read, y)))


def test_a_store_and_a_server(no_memory):
    with pytest.raises(MemoryError):
        in_time(lambda: 1, 60)
    with pytest.raises(MemoryError):
        Batcher(list, batchsize=1, waiting=1, timeout=1.0)
    no_memory.undo()
    assert in_time(lambda: 1, 60) == 1


def test_one_that_ends_while_its_error_is_kept(monkeypatch):
    """As in a debugger: its arguments stay, but it has said that it has ended."""
    kept = []
    start = _thread.start_new_thread

    def failing(run, args):
        kept.append(args)
        run.__self__._deciding = None
        return start(run, args)

    monkeypatch.setattr(_thread, "start_new_thread", failing)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with pytest.raises(MemoryError):
        threads.Thread(lambda: None).start()


LEFT = """
import sys, time
from fastseq._util.threads import Thread, Worker

worker, slow = Worker(), Worker()
worker.submit(int).result()
Thread(lambda: (time.sleep(0.2), print("written"))).start()
Thread(lambda: time.sleep(600), daemon=True).start()
"""


def test_the_end_of_the_program_waits():
    done = subprocess.run(
        [sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=200, check=True
    )
    assert done.stdout == "written\n"


def test_a_child_process_waits_for_none():
    thread = threads.Thread(lambda: time.sleep(0.2))
    thread.start()
    child = os.fork()
    if not child:
        signal.alarm(60)
        os._exit(0 if thread.join() and not threads.waited_for else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert thread.join()


def test_a_join_that_ctrl_c_interrupts_can_be_made_again():
    """The interrupt may come when the lock has been taken, and not been given back."""
    thread = threads.Thread(lambda: None)
    thread.start()
    assert thread.join()
    thread._ended.acquire()  # and then KeyboardInterrupt
    assert thread.join(5)
    assert thread.join()
