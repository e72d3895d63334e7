"""Threads of which it is known whether they run, even if there is no memory for them."""

from __future__ import annotations

import _thread
import atexit
import functools
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from queue import SimpleQueue
from typing import Any

__all__ = ["Thread", "Worker", "call_all", "cores", "waited_for"]

_LOOK_SECONDS = 0.05  # after which to look whether a thread that has not begun is gone
_JOIN_SECONDS = 1.0  # after which to look whether one has ended


class Thread:
    """A thread that makes one call, which handles its own errors.

    `threading.Thread.start` waits for ever for a thread that ends before it has begun, for want of
    memory.

    Parameters
    ----------
    call
        What it calls.
    daemon
        Whether the program may end meanwhile; else its end waits for the thread.
    stop
        Called before the program's end waits for the thread.

    Examples
    --------
    >>> found = []
    >>> thread = Thread(lambda: found.append("in another thread"))
    >>> thread.start()
    >>> thread.join(), found
    (True, ['in another thread'])
    """

    def __init__(
        self,
        call: Callable[[], object],
        *,
        daemon: bool = False,
        stop: Callable[[], object] | None = None,
    ) -> None:
        self._call = call
        self._daemon = daemon
        self._stop = stop
        self._deciding = threading.Lock()
        self._runs = self._cancelled = self._done = False
        # Released by the thread: unlike setting an event, that takes no memory.
        self._begun, self._ended = threading.Lock(), threading.Lock()
        self._begun.acquire()
        self._ended.acquire()

    def start(self) -> None:
        """Start it; it has begun when this returns.

        Raises
        ------
        RuntimeError
            The system has no more threads.
        MemoryError
            There is no memory for it.
        """
        if not self._daemon:
            _wait_at_exit()
            waited_for.add(self)
        held = _Held()
        gone = weakref.ref(held)
        try:
            _thread.start_new_thread(self._run, (held,))
            del held
            while not self._begun.acquire(timeout=_LOOK_SECONDS):
                ended = gone() is None or not self._ended.locked()  # it has freed its arguments
                if ended and not self._begun.acquire(blocking=False):
                    raise MemoryError("there is no memory for another thread")
        except (RuntimeError, MemoryError):
            waited_for.discard(self)
            raise

    def _run(self, held: _Held) -> None:  # noqa: ARG002
        try:
            with self._deciding:
                if self._cancelled:
                    return
                self._runs = True
            self._begun.release()
            self._call()
        finally:
            del self._call  # which may hold this thread
            self._done = True
            self._ended.release()
            waited_for.discard(self)

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the call has ended; return whether it has.

        If its start was interrupted (by Ctrl-C) before it has begun, it does not begin any more.
        """
        with self._deciding:
            self._cancelled = not self._runs
        if self._cancelled:
            return True
        end = math.inf if seconds is None else time.monotonic() + seconds
        while not self._done:
            # Ctrl-C may come between the next two lines: then only _done tells that it has ended.
            left = min(end - time.monotonic(), _JOIN_SECONDS)
            if self._ended.acquire(timeout=max(left, 0)):
                self._ended.release()
            elif time.monotonic() >= end:
                return self._done
        return True


class _Held:
    """Lives as long as a thread whose argument it is."""


class Worker:
    """Threads that make calls in the order in which they come, until they are closed.

    Parameters
    ----------
    count
        How many threads; with one, calls are made one after the other.
    daemon
        Whether the program may end meanwhile. For workers that are closed by a thread for which the
        program's end waits: it must not end them first.

    Examples
    --------
    >>> worker = Worker()
    >>> worker.submit(abs, -2).result()
    2
    >>> worker.close()
    """

    def __init__(self, count: int = 1, *, daemon: bool = False) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        stop = functools.partial(self._calls.put, None)
        work = functools.partial(_work, self._calls)
        self._threads: list[Thread] = []
        try:
            for _ in range(count):
                thread = Thread(work, daemon=daemon, stop=stop)
                thread.start()
                self._threads.append(thread)
        except (RuntimeError, MemoryError):
            self.close()
            raise

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        """Make a call after those submitted before have begun."""
        future: Future[Any] = Future()
        self._calls.put((future, functools.partial(call, *args)))
        return future

    def close(self) -> None:
        """End the threads, after what they were given."""
        self._calls.put(None)
        for thread in self._threads:
            thread.join()


def _work(calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (asked := calls.get()) is not None:
        future, call = asked
        del asked
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
        del future, call
    calls.put(None)  # for the others


def call_all(calls: Iterable[Callable[[], object]], count: int, threads: Callable[[], int]) -> None:
    """Make calls in several threads, of which none is left when this returns or raises.

    Parameters
    ----------
    calls
        What is called; asked for the next one when a thread is free.
    count
        How many there are.
    threads
        Returns how many may be made at a time; asked again before each. With one, they are made in
        this thread.

    Examples
    --------
    >>> found = []
    >>> call_all((functools.partial(found.append, i) for i in range(3)), 3, lambda: 2)
    >>> sorted(found)
    [0, 1, 2]
    """
    pending: set[Future[object]] = set()
    workers: Worker | None = None
    try:
        for call in calls:
            while len(pending) >= (limit := min(threads(), count)) > 1:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            if limit > 1:
                workers = workers or Worker(min(cores(), count), daemon=True)
                pending.add(workers.submit(call))
            else:
                call()
        for future in pending:
            future.result()
    finally:
        for future in pending:
            future.cancel()
        if workers is not None:
            workers.close()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


waited_for: set[Thread] = set()
"""Those that run, and for which the program's end waits."""


@functools.cache
def _wait_at_exit() -> None:
    """Let the program's end wait, before it undoes what has been imported by now."""
    atexit.register(_end_all)


def _end_all() -> None:
    for thread in list(waited_for):
        if thread._stop is not None:
            thread._stop()
        thread.join()


def _forget_all() -> None:
    """Take threads that do not exist in the child process as ended."""
    for thread in list(waited_for):
        thread._done = True
        if thread._ended.locked():
            thread._ended.release()
    waited_for.clear()


os.register_at_fork(after_in_child=_forget_all)
