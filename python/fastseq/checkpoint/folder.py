"""A folder of checkpoints: keep the newest ones, and find the newest whole one."""

from __future__ import annotations

import os
import re
import socket
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from .._util.file_lock import FileLock
from .._util.threads import Thread
from ..errors import BusyError, CheckpointError
from .format import Image, read, write

__all__ = ["Generations"]

_NAME = re.compile(r"checkpoint-(\d{6,})\.safetensors")
_LOCK = ".lock"
# Until the lock of a machine that has failed ends: a network's file system waits for it to return.
_FAILED_SECONDS = 120.0


class Generations:
    """Checkpoints in a folder, one file each, with increasing numbers.

    A separate thread writes a copy of the tensors, made when writing starts.

    Parameters
    ----------
    folder
        The folder, which may not exist yet.
    keep
        How many of the newest ones to keep.

    Examples
    --------
    >>> import tempfile
    >>> generations = Generations(tempfile.mkdtemp())
    >>> generations.write({"weight": torch.ones(2)}, "some text")
    >>> generations.finish()
    >>> tensors, text = generations.newest()
    >>> tensors["weight"], text
    (tensor([1., 1.]), 'some text')
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        self.folder: Path = Path(folder).absolute()
        self._keep = keep
        self._image = Image()
        self._writing: Thread | None = None
        self._error: BaseException | None = None
        self._broken: set[Path] = set()
        self._lock: FileLock | None = None

    def take(self) -> None:
        """Make the folder, keep others from writing there, and remove what killed ones have left.

        Raises
        ------
        OSError
            The folder cannot be written.
        BusyError
            Another run writes there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._taken()
            for left in self.folder.glob(".checkpoint-*"):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"checkpoint: the folder {self.folder} cannot be written: {error.strerror}; pass "
                "another folder",
            ) from error

    def _taken(self) -> FileLock:
        """Return the folder's lock; a run on another machine may have failed with it."""
        host, end = socket.gethostname(), time.monotonic() + _FAILED_SECONDS
        path = self.folder / _LOCK
        while True:
            lock = FileLock.take(path, f"process {os.getpid()} on {host}")
            if lock is not None:
                return lock
            holder = FileLock.holder(path)
            if holder.endswith(f" on {host}") or time.monotonic() > end:
                raise BusyError(
                    f"checkpoint: another run writes to the folder {self.folder} "
                    f"({holder or 'unknown'}): pass another folder, or wait until it has ended"
                )
            time.sleep(0.1)

    def release(self) -> None:
        """Let others write to the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def paths(self) -> list[Path]:
        """Return the existing files, the newest one last."""
        if not self.folder.is_dir():
            return []
        named = (path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
        return sorted((path for path in named if path.is_file()), key=_number)

    def newest(self) -> tuple[dict[str, Tensor], str] | None:
        """Return tensors and text of the newest whole checkpoint, or None.

        A warning names those that are not whole.
        """
        for path in reversed(self.paths()):
            found = self._read(path)
            if found is not None:
                return found
        return None

    def _read(self, path: Path) -> tuple[dict[str, Tensor], str] | None:
        try:
            return read(path)
        except (CheckpointError, OSError) as error:
            if isinstance(error, CheckpointError):  # else it may be whole, and readable later
                self._broken.add(path)
            warnings.warn(
                f"{error}; the previous checkpoint is used, if there is one", stacklevel=3
            )
            return None

    def write(self, tensors: Mapping[str, Tensor], text: str) -> None:
        """Copy tensors and start writing the copy, once the previous checkpoint is written.

        Raises
        ------
        OSError
            The previous one could not be written.
        """
        self.finish()
        self._image.take(tensors, text)
        # Not a daemon: a write is finished even if the program ends meanwhile.
        self._writing = Thread(self._write)
        self._writing.start()

    def _write(self) -> None:
        try:
            paths = self.paths()
            number = _number(paths[-1]) + 1 if paths else 1
            whole = [path for path in paths if path not in self._broken]
            # Before writing: else each run that is killed before it removes any leaves one more.
            _remove(whole[: -self._keep])
            write(self.folder / f"checkpoint-{number:06}.safetensors", self._image)
            _remove([*self._broken, *whole[: max(len(whole) + 1 - self._keep, 0)]])
            self._broken.clear()
        except BaseException as error:  # raised by `finish`
            self._error = error

    def raise_if_failed(self) -> None:
        """Raise the error of the last `write`, if it is known to have failed."""
        if self._error is not None:
            self.finish()

    def finish(self) -> None:
        """Wait until all is written.

        Raises
        ------
        OSError
            Writing failed.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        error, self._error = self._error, None
        if isinstance(error, OSError):
            left = "the previous one is intact" if self.folder.is_dir() else "the folder is gone"
            raise OSError(
                error.errno,
                f"a checkpoint could not be written to {self.folder}: {error.strerror}; {left}",
            ) from error
        if error is not None:
            raise error


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
