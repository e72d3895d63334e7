"""Whether files are still what they were when reading began."""

from __future__ import annotations

import os

import h5py

from ...errors import ReadError
from .virtual import source_files

__all__ = ["FileWatch"]


class FileWatch:
    """Notes a dataset's file, and those of a virtual one's sources, when they are read first.

    What is written to them afterwards may be in half of what is read: it is an error, unless it is
    written so that it may be read meanwhile (SWMR).
    """

    def __init__(self) -> None:
        self._states: dict[str, os.stat_result] = {}

    def begin(self, dataset: h5py.Dataset) -> None:
        """Note what the files are now; the first call only."""
        if not self._states and not dataset.file.swmr_mode:
            paths = [os.path.abspath(dataset.file.filename), *source_files(dataset)]
            self._states = {path: os.stat(path) for path in paths}

    def check(self) -> None:
        """Raise if a file is another one than it was.

        Raises
        ------
        ReadError
            What happened to which file.
        """
        for path, before in self._states.items():
            try:
                now = os.stat(path)
            except OSError as error:
                raise ReadError(
                    f"{path} changed while it was read: it is not there any more: {error.strerror}"
                ) from error
            what = _difference(before, now)
            if what is not None:
                raise ReadError(f"{path} changed while it was read: {what}")


def _difference(before: os.stat_result, now: os.stat_result) -> str | None:
    if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
        return "another file took its place"
    if now.st_size != before.st_size:
        return "its size is another"
    return "it was written to" if now.st_mtime_ns != before.st_mtime_ns else None
