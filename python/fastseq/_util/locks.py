"""Locks for objects that are copied, in programs that fork."""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["Lock"]


class Lock:
    """A reentrant lock; copies are new locks, and a forked child starts with it free.

    Examples
    --------
    >>> lock = Lock()
    >>> with lock, lock:
    ...     print("in one thread at a time")
    in one thread at a time
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _all.add(self)

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take the lock; return whether it was taken."""
        return self._lock.acquire(blocking)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


_all: weakref.WeakSet[Lock] = weakref.WeakSet()


def _free_all() -> None:
    """Free locks held by threads that do not exist in the child process."""
    for lock in list(_all):
        lock._lock = threading.RLock()


os.register_at_fork(after_in_child=_free_all)
