"""Checks that files have not changed since reading started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from ..errors import ReadError

__all__ = ["FileWatch"]


class FileWatch:
    """Record the state of files at the first read.

    Later writes might show up in part of the data read, so they are an error.
    """

    def __init__(self) -> None:
        self._states: dict[str, os.stat_result] = {}

    def begin(self, paths: Callable[[], Iterable[str]]) -> None:
        """Record the state of the files `paths`; only the first call does."""
        if not self._states:
            self._states = {path: os.stat(path) for path in paths()}

    def check(self) -> None:
        """Raise if a file has changed.

        Raises
        ------
        ReadError
            A file has changed; the message says which, and how.
        """
        for path, before in self._states.items():
            try:
                now = os.stat(path)
            except OSError as error:
                raise ReadError(
                    f"{path} changed while it was read: it no longer exists: {error.strerror}"
                ) from error
            what = _difference(before, now)
            if what is not None:
                raise ReadError(f"{path} changed while it was read: {what}")


def _difference(before: os.stat_result, now: os.stat_result) -> str | None:
    if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
        return "another file replaced it"
    if now.st_size != before.st_size:
        return "its size changed"
    return "it was written to" if now.st_mtime_ns != before.st_mtime_ns else None
