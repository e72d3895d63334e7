"""Opening HDF5 files with errors that name them, and writing them beside their target."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import h5py

from ..._util import atomic_file
from .handles import open_file
from .system_errors import raise_system_error, system_error

__all__ = ["damage", "reading", "writing"]

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def damage(caller: str, path: str) -> Iterator[None]:
    """Turn errors of HDF5 and h5py about a file into ones that name it.

    Raises
    ------
    ValueError, TypeError
        It is damaged, or holds what cannot be read.
    OSError
        The system failed.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if path in str(error):
            raise  # it says what is wrong
        # h5py's about types and texts in a damaged file, or ours about one that this links to
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{caller}: {path} cannot be read ({error!s:.500})") from error
    except (OSError, RuntimeError, KeyError, ArithmeticError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's errors: permissions, too many open files
        raise_system_error(error, path)
        raise ValueError(
            f"{caller}: {path} cannot be read: it is damaged, or not an HDF5 file ({error})"
        ) from error


@contextlib.contextmanager
def reading(caller: str, path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Open a file for reading; the body must do nothing else that can fail.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not an HDF5 file, or is damaged.
    """
    path = os.path.abspath(os.fspath(path))
    with damage(caller, path), open_file(path) as file:
        yield file


@contextlib.contextmanager
def writing(caller: str, path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the name of a new file beside `path` that replaces it if the body succeeds.

    Otherwise the new file is removed and `path` stays as it was.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    OSError
        The disk is full, or cannot be written.
    """
    target = os.path.realpath(os.fspath(path))
    if not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(
            errno.ENOENT, f"{caller}: there is no such folder", os.path.dirname(target)
        )
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, f"{caller}: a folder has this name", target)
    try:
        with atomic_file.replacing(Path(target)) as beside:
            yield str(beside)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        number = system_error(error)
        if number is None or (isinstance(error, OSError) and number not in _NO_SPACE):
            raise
        what = "no space left for the new file"
        if number not in _NO_SPACE:
            what = f"the new file cannot be written: {os.strerror(number)}"
        raise OSError(
            number, f"{caller}: {what} (a previous file of this name is unchanged)", target
        ) from error
