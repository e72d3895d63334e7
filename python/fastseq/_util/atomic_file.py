"""Atomic file writes: write a temporary file beside the target, then rename it."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from .file_lock import FileLock

__all__ = ["TEMPORARY", "replacing"]

TEMPORARY = ".tmp"
"""Suffix of files that are still being written."""

_LOCK = ".lock"  # of files that tell that somebody still writes


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a new file beside `path` that replaces it if the body succeeds.

    Otherwise the new file is removed and `path` stays as it was. What writers of `path` have left
    that were killed is removed, too.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "numbers.txt")
    >>> with replacing(path) as beside:
    ...     _ = beside.write_text("1 2 3")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('1 2 3', 1)
    """
    lock, beside = _beside(path)
    try:
        yield beside
        _sync(beside)  # first: a crash of the machine must not leave the new name without its data
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        lock.release()
    with contextlib.suppress(OSError):  # not every file system can
        _sync(path.parent)


def _beside(path: Path) -> tuple[FileLock, Path]:
    """Return a name for this writer alone: several processes may write the same file.

    Names have numbers, so that one that was left by a killed process is the next one's.
    """
    numbers = itertools.count()
    lock = None
    while lock is None:
        beside = _name(path, next(numbers))
        lock = FileLock.take(beside.with_suffix(_LOCK))
    if not lock.holds:
        return lock, _name(path, os.urandom(4).hex())
    beside.unlink(missing_ok=True)
    _remove_left(path, numbers)
    return lock, beside


def _remove_left(path: Path, numbers: Iterator[int]) -> None:
    """Remove what writers have left that were killed at the same time."""
    for number in numbers:
        left = _name(path, number)
        if not left.with_suffix(_LOCK).exists():
            return
        lock = FileLock.take(left.with_suffix(_LOCK))
        if lock is not None:
            left.unlink(missing_ok=True)
            lock.release()


def _name(path: Path, number: int | str) -> Path:
    return path.with_name(f".{path.name}.{number}{TEMPORARY}")


def _sync(path: Path) -> None:
    """Make what was written to a file, or renamed in a folder, survive a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
