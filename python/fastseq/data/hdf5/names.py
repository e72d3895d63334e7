"""Natural order of names that contain numbers; files by patterns."""

from __future__ import annotations

import errno
import glob
import os
import re

__all__ = ["matching_files", "natural_key"]


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders names by the numbers in them.

    Examples
    --------
    >>> sorted(["day10", "day2", "day"], key=natural_key)
    ['day', 'day2', 'day10']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def matching_files(name: str | os.PathLike[str], user: str) -> list[str]:
    """Return the file of this name, or in natural order those that match a pattern.

    Parameters
    ----------
    name
        The name or pattern.
    user
        What needs them: the start of the error message.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    text = os.fspath(name)
    found = [text] if os.path.exists(text) else sorted(glob.glob(text), key=natural_key)
    if not found:
        what = "no file matches" if glob.has_magic(text) else "there is no file"
        raise FileNotFoundError(errno.ENOENT, f"{user}: {what}", text)
    return found
