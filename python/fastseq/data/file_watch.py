"""Checks that files have not changed since reading started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import ReadError

__all__ = ["FileWatch"]


class _State(NamedTuple):
    device: int | None
    inode: int
    size: int
    written: int


class FileWatch:
    """Record the state of files at the first read.

    Later writes might show up in part of the data read, so they are an error.
    """

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}

    def begin(self, paths: Callable[[], Iterable[str]]) -> None:
        """Record the state of the files `paths`; only the first call does."""
        if not self._states:
            self.record(paths())

    def record(self, paths: Iterable[str]) -> None:
        """Record the state of these files."""
        self._states = {path: _state(path) for path in paths}

    def check(self) -> None:
        """Raise if a file has changed.

        Raises
        ------
        ReadError
            A file has changed; the message says which, and how.
        """
        for path, before in self._states.items():
            try:
                now = _state(path)
            except OSError as error:
                raise ReadError(
                    f"{path} changed while it was read: it no longer exists: {error.strerror}"
                ) from error
            what = _difference(before, now)
            if what is not None:
                raise ReadError(f"{path} changed while it was read: {what}")

    def __getstate__(self) -> dict[str, object]:
        # Another machine may give the number of a shared disk to another device.
        states = {path: state._replace(device=None) for path, state in self._states.items()}
        return {**self.__dict__, "_states": states}


def _state(path: str) -> _State:
    found = os.stat(path)
    return _State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _difference(before: _State, now: _State) -> str | None:
    if before.inode != now.inode or before.device not in (None, now.device):
        return "another file replaced it"
    if now.size != before.size:
        return "its size changed"
    return "it was written to" if now.written != before.written else None
