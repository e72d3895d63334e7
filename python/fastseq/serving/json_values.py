"""Arrays as JSON has them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["listed"]


def listed(given: Any) -> Any:
    """Return an array or tensor as nested lists; what is not finite becomes null, times text.

    Examples
    --------
    >>> listed(np.array([1.5, np.nan]))
    [1.5, None]
    """
    if hasattr(given, "numpy"):
        given = given.numpy(force=True)
    a = np.asarray(given)
    if a.dtype.kind in "mM":
        a = a.astype(str)
    if a.dtype.kind == "f" and not np.isfinite(a).all():
        unknown = ~np.isfinite(a)
        a = a.astype(object)
        a[unknown] = None
    return a.tolist()
