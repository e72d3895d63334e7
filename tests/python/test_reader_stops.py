"""The background reader when it is stopped, forked, interrupted, or outlives the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reads import a_read, queue_much
from waiting import until

import fastseq as fs
from fastseq import _reader


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    path = tmp_path / "floats"
    np.arange(500_000, dtype=np.float32).tofile(path)
    return path


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("end", ["close", "delete", "error"])
def test_stopping_in_the_middle_frees_threads_and_files(floats: Path, end: str) -> None:
    before = threads(), descriptors()
    reader = _reader.SlabReader()
    buffers = queue_much(reader, floats)
    reader.wait()
    assert threads() > before[0]
    assert descriptors() == before[1] + 1
    if end == "error":
        os.truncate(floats, 2)
        with pytest.raises(fs.ReadError):
            while True:
                reader.wait()
    if end != "delete":
        reader.close()
        reader.close()
        with pytest.raises(RuntimeError, match="closed"):
            reader.wait()
        with pytest.raises(RuntimeError, match="closed"):
            reader.submit([])
    del reader
    until(lambda: (threads(), descriptors()) == before)  # threads are listed for a little longer
    assert np.isnan(buffers[-1]).any()  # it did not read all before


def test_what_is_little_is_read_by_who_waits_for_it(floats: Path) -> None:
    before = threads()
    reader = _reader.SlabReader()
    number = reader.add_file(floats, True)
    outs = [np.zeros(10, np.float32) for _ in range(3)]
    for i, out in enumerate(outs):
        reader.submit([a_read([[number, 40 * i, 1, 0, 10, 0, 0]], out, "float32")])
    assert [reader.wait() for _ in outs] == [[0]] * 3
    assert np.concatenate(outs).tolist() == list(range(30))
    assert threads() == before


def test_closing_ends_a_wait_in_another_thread(floats: Path) -> None:
    reader = _reader.SlabReader()
    buffers = queue_much(reader, floats)
    ended: list[str] = []

    def wait_for_all() -> None:
        try:
            while True:
                reader.wait()
        except RuntimeError as error:
            ended.append(str(error))

    thread = threading.Thread(target=wait_for_all)
    thread.start()
    time.sleep(0.01)
    reader.close()
    thread.join(timeout=60)
    assert len(ended) == 1
    assert "closed" in ended[0]
    del buffers


def in_a_fork(body: Callable[[], None]) -> int:
    """Return the exit status of a forked child that runs `body`, 0 if all went well."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)  # a child that hangs ends
            body()
        except BaseException:
            os._exit(3)
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_can_drop_a_busy_reader(floats: Path) -> None:
    reader = _reader.SlabReader()
    buffers = queue_much(reader, floats)
    held = [reader]

    def drop() -> None:
        with pytest.raises(RuntimeError, match="forked"):
            held[0].wait()
        with pytest.raises(RuntimeError, match="forked"):
            held[0].submit([])
        before = descriptors()
        held[0].close()
        assert descriptors() == before - 1

    def delete() -> None:
        nonlocal reader
        held.clear()
        del reader

    def use_another() -> None:
        mine = _reader.SlabReader()
        out = np.zeros(10, np.float32)
        mine.submit([a_read([[mine.add_file(floats, True), 4, 1, 0, 10, 0, 0]], out, "float32")])
        assert mine.wait() == [0]
        assert out.tolist() == list(range(1, 11))
        mine.close()

    for body in (drop, delete, use_another):
        assert in_a_fork(body) == 0
    assert reader.wait() == [0]  # here it goes on
    reader.close()
    del buffers


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_reader_that_has_not_started_works_in_a_forked_child(floats: Path) -> None:
    reader = _reader.SlabReader()
    number = reader.add_file(floats, True)

    def read() -> None:
        out = np.zeros(10, np.float32)
        reader.submit([a_read([[number, 0, 1, 0, 10, 0, 0]], out, "float32")])
        assert reader.wait() == [0]
        assert out[9] == 9

    assert in_a_fork(read) == 0


def run_python(text: str, path: Path) -> subprocess.CompletedProcess[str]:
    script = f"""
import os, signal, sys, threading, time
import numpy as np
from fastseq import _reader
Type = _reader.ElementType
reader = _reader.SlabReader()
number = reader.add_file({str(path)!r}, True)
pieces = np.array([[number, 0, 1, 0, 1, 0, 0]] * 5_000, np.int64)
buffers = [np.empty(5_000, np.float32) for _ in range(2_000)]
for buffer in buffers:
    reader.submit([(Type.float32, False, Type.float32, pieces, buffer.ctypes.data, 5_000, 1, 0, 0)])
{text}
"""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )


def test_python_ends_while_the_reader_works(floats: Path) -> None:
    ended = run_python("del pieces\nprint('done')", floats)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_a_signal_reaches_python_while_it_waits(floats: Path) -> None:
    text = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
def last():
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
try:
    threading.Thread(target=last).start()
    while True:  # there is always something to wait for, however late the signal is
        reader.wait()
        reader.submit([(Type.float32, False, Type.float32, pieces, buffer.ctypes.data, 5_000, 1, 0, 0)])
except KeyboardInterrupt:
    print("interrupted")
"""
    ended = run_python(text, floats)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "interrupted\n", "")
