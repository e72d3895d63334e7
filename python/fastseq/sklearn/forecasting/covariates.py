"""Covariates known ahead: read, checked, and scaled as in `fit`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..alignment import aligned
from .series import Array, Series, read_series
from .times import Spacing
from .windows import center_and_scale

__all__ = ["Covariates"]


@dataclasses.dataclass(frozen=True)
class Covariates:
    """Scaling and names of the covariates that `fit` got.

    Parameters
    ----------
    center, scale
        Their scaling, ``(F,)``.
    names
        Column names of a table.

    Examples
    --------
    >>> series = read_series(np.zeros(3), "y")
    >>> read = Covariates.read(np.array([[1.0], [3.0], [5.0]]), series, np.array([3]), "y")
    >>> known = Covariates.measure(read, scaled=True)
    >>> known.scaled(Covariates.read(np.array([[3.0]]), series, np.array([1]), "y", known))
    [array([[0.]])]
    """

    center: Array
    scale: Array
    names: tuple[str, ...] | None

    @classmethod
    def measure(cls, read: Series, *, scaled: bool, apart: int = 0) -> Covariates:
        """Measure how to scale covariates, without the last `apart` steps."""
        center, scale = np.zeros(read.variables), np.ones(read.variables)
        if scaled:
            arrays = read.arrays[:1] if read.single else read.arrays
            center, scale = center_and_scale([one[: len(one) - apart] for one in arrays])
        return cls(center, scale, read.names)

    def scaled(self, read: Series) -> list[Array]:
        """Return scaled covariates of series, ``(T_i, F)`` each."""
        return [(one - self.center) / self.scale for one in read.arrays]

    @staticmethod
    def read(
        given: Any,
        like: Series,
        lengths: Array,
        what: str,
        known: Covariates | None = None,
        spacing: Spacing = Spacing(),  # noqa: B008 (it is frozen)
    ) -> Series:
        """Read covariates, ``(T_i, F)`` for each series.

        Parameters
        ----------
        given
            As `read_series` takes it; a panel may share one array.
        like, lengths
            The series, and how many steps to cover.
        what
            Name of those steps in messages.
        known
            The covariates that `fit` got, if it was called before.
        spacing
            How far apart times must be.

        Raises
        ------
        ValueError, TypeError
            They differ from those that `fit` got, or do not cover these steps.
        """
        if given is None:
            raise ValueError(f"fit got covariates: X must cover {what}, got None")
        read = read_series(given, "X", None if known is None else known.names, spacing)
        if read.gap is not None:
            number, time = read.gap
            place = "X" if read.single else f"X[{(read.ids or range(number + 1))[number]!r}]"
            raise ValueError(f"{place} has no row for {time}: covariates known ahead have no gaps")
        if known is not None and read.variables != len(known.center):
            raise ValueError(
                f"X must have the {len(known.center)} covariates that fit got, got {read.variables}"
            )
        count = len(like.arrays)
        if read.single and not like.single:
            if len(set(lengths.tolist())) > 1:
                raise ValueError(
                    f"X is one array for {count} series of different lengths: pass a list, one "
                    "array for each"
                )
            read = dataclasses.replace(
                read, arrays=read.arrays * count, indices=read.indices * count,
                moved=read.moved * count, freqs=read.freqs * count,
            )  # fmt: skip
        read = aligned(read, like.ids, "X")
        if len(read.arrays) != count:
            raise ValueError(f"X must be covariates of {count} series, got {len(read.arrays)}")
        for index, (array, length) in enumerate(zip(read.arrays, lengths, strict=True)):
            place = "X" if read.single else f"X[{(read.ids or range(count))[index]!r}]"
            if len(array) != length:
                raise ValueError(f"{place} must cover {what}: {length} steps, got {len(array)}")
            if np.isnan(array).any():
                step = int(np.argwhere(np.isnan(array))[0][0])
                raise ValueError(f"{place} is NaN at step {step}: known covariates have no gaps")
        return read
