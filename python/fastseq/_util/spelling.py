"""What a wrong name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["meant"]


def meant(name: object, names: Iterable[str]) -> str:
    """Return a "did you mean" suffix for an unknown name: one it is a prefix of, or a similar one.

    Upper case counts as lower case if no name is spelt so.

    Examples
    --------
    >>> meant("lstmm", ["lstm", "gru"]), meant("tree", ["lstm", "gru"])
    (': did you mean "lstm"?', '')
    """
    names, name = list(names), str(name)
    close = [one for one in names if name and one.startswith(name)]
    close = close or difflib.get_close_matches(name, names, 1, 0.5)
    if not close:
        lower = {one.lower(): one for one in names}
        close = [lower[one] for one in difflib.get_close_matches(name.lower(), lower, 1, 0.5)]
    return f': did you mean "{close[0]}"?' if close else ""
