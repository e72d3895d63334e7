"""The system's errors behind those of HDF5, which tells of them in words only."""

from __future__ import annotations

import os
import re
from typing import Any

import h5py

__all__ = ["item_of", "raise_system_error", "system_error"]


def system_error(error: BaseException) -> int | None:
    """Return the number of the system's error that one of HDF5 is about; None: about none.

    Examples
    --------
    >>> system_error(RuntimeError("unable to close file, errno = 5, error message = '...'"))
    5
    >>> system_error(OSError("file signature not found"))
    """
    told = re.search(r"errno = (\d+)", str(error))
    return (int(told[1]) if told else getattr(error, "errno", None)) or None


def raise_system_error(error: BaseException, path: str) -> None:
    """Raise OSError if an error of HDF5 about a file is the system's.

    Such a file need not be damaged: a disk failed, or too many files are open.
    """
    number = system_error(error)
    if number is not None:
        raise OSError(number, f"{os.strerror(number)}: HDF5 reports {error}", path) from error


def item_of(group: h5py.Group, name: str) -> Any:
    """Return a member of a group; None if there is none, or if it is a link to nothing.

    Raises
    ------
    OSError
        The system failed to read it.
    """
    try:
        return group[name]
    except KeyError as error:
        raise_system_error(error, group.file.filename)
        return None
