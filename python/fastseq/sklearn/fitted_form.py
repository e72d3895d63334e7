"""What a fitted classifier or regressor takes and returns, for programs that pass it on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["FittedForm", "TableForm"]


@dataclasses.dataclass(frozen=True)
class TableForm:
    """The columns of a table.

    Parameters
    ----------
    count
        Number of columns.
    names
        Their names; None: it came as an array.
    categories
        The categories of those that hold some, by the column's place.
    """

    count: int
    names: tuple[str, ...] | None
    categories: Mapping[int, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class FittedForm:
    """The form of the samples and targets that `fit` got.

    Parameters
    ----------
    features
        F, columns or channels; of images all of a pixel's.
    rows
        What a row of X is, if it is a table: ``"samples"`` or ``"series"``; None: it is none.
    image
        ``(W, H, C)`` if samples are images.
    channels_first
        Whether samples are ``(F, T)``.
    missing
        Whether numbers may be missing.
    ids
        How many ids the module knows, if samples hold ids; None: they hold numbers.
    most
        The largest number that the module's dtype holds.
    static
        Static features; None: there are none.
    targets
        K, the number of targets.
    per_step
        Whether each step has them.
    labels
        Whether they are labels, each of which is there or not.
    """

    features: TableForm
    rows: str | None
    image: tuple[int, int, int] | None
    channels_first: bool
    missing: bool
    ids: int | None
    most: float
    static: TableForm | None
    targets: int
    per_step: bool
    labels: bool
