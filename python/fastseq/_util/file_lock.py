"""A lock on a file, which a process holds until it ends, in whatever way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from io import FileIO
from pathlib import Path

__all__ = ["FileLock"]

_TAKEN = (errno.EAGAIN, errno.EACCES)


class FileLock:
    """A file that exists while a process works on something, and says who does.

    If the process is killed, the file stays, but is no longer locked: the next one takes it over.

    Attributes
    ----------
    holds
        Whether others are kept out. Not where the file system has no locks: then all of them get
        one.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), ".lock")
    >>> lock = FileLock.take(path, "the first one")
    >>> FileLock.take(path) is None, FileLock.holder(path)
    (True, 'the first one')
    >>> lock.release()
    >>> path.exists()
    False
    """

    def __init__(self, path: Path, file: FileIO | None) -> None:
        self._path = path
        self._file = file
        _all.add(self)

    @property
    def holds(self) -> bool:
        """Whether others are kept out."""
        return self._file is not None

    @classmethod
    def take(cls, path: Path, text: str = "") -> FileLock | None:
        """Return the lock, which says `text` to others; None: another one has it.

        Raises
        ------
        OSError
            The file cannot be made or written.
        """
        while True:
            try:
                file = FileIO(path, "a+")  # networks' file systems lock only what can be written
            except PermissionError:
                if path.exists():  # another user's
                    return None
                raise
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.close()
                if error.errno in _TAKEN:
                    return None
                path.unlink(missing_ok=True)
                return cls(path, None)
            if _is_at(file, path):
                break
            file.close()  # who had it has removed it meanwhile
        lock = cls(path, file)
        try:
            file.truncate(0)
            file.write(text.encode())
        except OSError:
            lock.release()
            raise
        return lock

    @staticmethod
    def holder(path: Path) -> str:
        """Return the text of who has the lock; empty if it is not known."""
        try:
            return path.read_text(errors="replace")
        except OSError:
            return ""

    def release(self) -> None:
        """Remove the file. Further calls do nothing."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            self._file.close()
            self._file = None


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


_all: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_all() -> None:
    """Leave locks to the parent: a child that lives longer must not hold them."""
    for lock in list(_all):
        if lock._file is not None:
            lock._file.close()
            lock._file = None


os.register_at_fork(after_in_child=_forget_all)
