"""Checks of the times of series, of their covariates, and of the steps that follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .forecasting.series import Series
from .forecasting.times import Times, check_follows, check_order, times_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_ahead", "check_going_on", "check_together"]


def check_together(
    y: Series, x: Series | None, *, ahead: int = 0, known: Sequence[Times | None] = ()
) -> list[Times | None]:
    """Return the times of series, None where there are none; covariates' times must match.

    Parameters
    ----------
    y, x
        The series, and their covariates.
    ahead
        How many steps further the covariates reach.
    known
        Times of the training series: steps must be as far apart.

    Raises
    ------
    ValueError
        Times of series are irregular, or those of covariates differ.
    """
    return [
        times_of(own, other, names, ahead=ahead, known=known) for own, other, names in _pairs(y, x)
    ]


def check_going_on(
    y: Series, x: Series | None, before: Sequence[Times | None]
) -> list[Times | None]:
    """Return the end times of series that, with their covariates, continue earlier steps.

    Parameters
    ----------
    y, x
        The next steps, and their covariates.
    before
        Times of the earlier steps; None where there are none.

    Raises
    ------
    ValueError
        The steps do not follow.
    """
    ends: list[Times | None] = []
    for (own, other, names), last, steps in zip(_pairs(y, x), before, y.lengths, strict=True):
        if last is None:
            times = times_of(own, other, names)
        else:
            found = [
                check_follows(last, index, name)
                for index, name in zip((own, other), names, strict=True)
                if index is not None
            ]
            times = found[0] if found else last.after(int(steps))
        ends.append(None if times is None else times.end)
    return ends


def check_ahead(x: Series, before: Sequence[Times | None]) -> None:
    """Raise ValueError unless covariates directly follow the earlier steps."""
    for index, name, last in zip(x.indices, _names(x, "X"), before, strict=True):
        if index is not None:
            check_follows(last, index, name)


def _names(series: Series, name: str) -> list[str]:
    count = len(series.arrays)
    return [name] * count if series.single else [f"{name}[{number}]" for number in range(count)]


def _pairs(
    y: Series, x: Series | None
) -> list[tuple[pd.Index | None, pd.Index | None, tuple[str, str]]]:
    """Return for each series its index, its covariates' index, and their names in messages."""
    if x is None:
        return [
            (index, None, (name, "X"))
            for index, name in zip(y.indices, _names(y, "y"), strict=True)
        ]
    of_x = _names(x, "X")
    names = list(zip(_names(y, "y"), of_x, strict=True))
    for number, pair in enumerate(names):
        check_order(
            (y.indices[number], y.moved[number]), (x.indices[number], x.moved[number]), pair
        )
    return list(zip(y.indices, x.indices, names, strict=True))
