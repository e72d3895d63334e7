"""Natural order of names that contain numbers."""

from __future__ import annotations

import re

__all__ = ["natural_key"]


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders names by the numbers in them.

    Examples
    --------
    >>> sorted(["day10", "day2", "day"], key=natural_key)
    ['day', 'day2', 'day10']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]
