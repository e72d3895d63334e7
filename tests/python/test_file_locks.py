"""Files that are written beside their target, and locks, when who had them was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import time

import pytest
from interrupted import assert_same, data, estimator, files, in_a_process, interrupted, result

import fastseq as fs
from fastseq._util.atomic_file import replacing
from fastseq._util.file_lock import FileLock
from fastseq.checkpoint import folder as checkpoint_folder


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed(function):
    assert in_a_process(function) == signal.SIGKILL


def write_half(path):
    with replacing(path) as beside:
        beside.write_text("half of the new one")
        die()


@pytest.mark.parametrize("name", ["x.txt", "[*?].txt"])
def test_what_a_killed_writer_has_left_is_removed_by_the_next(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    other = tmp_path / ".y.txt.0.tmp"
    other.write_text("somebody's")
    for _ in range(2):
        killed(lambda: write_half(path))
        assert path.read_text() == "old"
        assert len(files(tmp_path)) == 4  # no more with each
    with replacing(path) as beside:
        assert not beside.exists()
        beside.write_text("new")
    assert path.read_text() == "new"
    assert files(tmp_path) == sorted([other.name, name])


def test_what_two_killed_writers_have_left_is_removed_and_a_third_goes_on(tmp_path):
    path = tmp_path / "x"

    def both():
        with replacing(path) as beside:
            beside.write_text("half")
            write_half(path)

    with replacing(path) as first:
        first.write_text("first")
        killed(both)
        assert len(files(tmp_path)) == 6
        with replacing(path) as second:
            assert second != first
            second.write_text("second")
        assert path.read_text() == "second"
        assert first.read_text() == "first"
    assert path.read_text() == "first"
    assert files(tmp_path) == ["x"]


def test_a_child_that_lives_longer_has_no_lock(tmp_path):
    path, (read, write) = tmp_path / ".lock", os.pipe()

    def fork():
        lock = FileLock.take(path, "parent")
        if not os.fork():
            os.close(write)
            lock.release()  # the parent's lock stays
            os.read(read, 1)
            os._exit(0)
        assert FileLock.take(path) is None
        die()

    killed(fork)
    lock = FileLock.take(path)
    assert lock.holds
    lock.release()
    os.close(write)
    assert files(tmp_path) == []


def test_a_lock_that_was_removed_meanwhile_is_made_again(tmp_path, monkeypatch):
    path, flock = tmp_path / ".lock", fcntl.flock
    first = FileLock.take(path)

    def late(*args):
        first.release()
        return flock(*args)

    monkeypatch.setattr(fcntl, "flock", late)
    second = FileLock.take(path)
    assert second.holds
    assert files(tmp_path) == [".lock"]
    monkeypatch.undo()
    assert FileLock.take(path) is None
    second.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_locks(tmp_path, monkeypatch, number):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    path = tmp_path / "x"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert files(tmp_path) == ["x"]
    run = tmp_path / "run"
    est = estimator(epochs=1).fit(*data(), checkpoint=run)
    assert files(run) == ["checkpoint-000001.safetensors"]
    assert_same(
        result(est), result(estimator(epochs=1).fit(*data(), checkpoint=run, resume="auto"))
    )


def test_a_second_run_with_the_folder_is_refused_and_the_first_goes_on(tmp_path):
    here = rf"another run writes to the folder {tmp_path} \(process {os.getpid()} on "

    class Second(fs.callbacks.Callback):
        def on_epoch_end(self, _):
            with pytest.raises(fs.BusyError, match=here):
                estimator(epochs=1, seed=None).fit(*data(), checkpoint=tmp_path)

    estimator(Second(), epochs=2).fit(*data(), checkpoint=tmp_path)
    assert files(tmp_path) == [f"checkpoint-00000{n}.safetensors" for n in (1, 2)]


def test_a_run_that_was_killed_or_failed_keeps_nobody_out(tmp_path):
    killed(lambda: estimator(lambda _: die()).fit(*data(), checkpoint=tmp_path))
    assert ".lock" in files(tmp_path)
    interrupted(tmp_path, 3)
    assert ".lock" not in files(tmp_path)
    with pytest.raises(ValueError, match="validation"):
        estimator().fit(*data(), validation=2.0, checkpoint=tmp_path)
    est = estimator(epochs=1).fit(*data(), checkpoint=tmp_path, resume="auto")
    assert len(est.history_) >= 1
    assert ".lock" not in files(tmp_path)


@pytest.mark.parametrize("ends", [True, False])
def test_a_machine_that_may_have_failed_is_waited_for(tmp_path, monkeypatch, ends):
    lock = FileLock.take(tmp_path / ".lock", "process 7 on elsewhere")
    monkeypatch.setattr(checkpoint_folder, "_FAILED_SECONDS", 20.0 if ends else 0.2)
    sleep = time.sleep

    def wait(seconds):
        sleep(seconds)
        if ends:
            lock.release()

    monkeypatch.setattr(checkpoint_folder.time, "sleep", wait)
    if ends:
        assert socket.gethostname() != "elsewhere"
        estimator(epochs=1).fit(*data(), checkpoint=tmp_path)
    else:
        with pytest.raises(fs.BusyError, match="process 7 on elsewhere"):
            estimator(epochs=1).fit(*data(), checkpoint=tmp_path)
        lock.release()
