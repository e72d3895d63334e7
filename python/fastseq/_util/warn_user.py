"""Warnings that point to the user's line, however deep in fastseq they arise."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

__all__ = ["warn_user"]

_OWN = str(Path(__file__).parents[1])


def warn_user(text: str, category: type[Warning] = UserWarning) -> None:
    """Give a warning at the innermost line outside of fastseq."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
