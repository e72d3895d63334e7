"""Covariates that are known ahead: read, checked and scaled as those of `fit` were."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .series import Array, Series, read_series

__all__ = ["Covariates"]


@dataclasses.dataclass(frozen=True)
class Covariates:
    """What is known of covariates after `fit`.

    Parameters
    ----------
    center, scale
        What scales them, ``(F,)``.
    names
        What a table called its columns.

    Examples
    --------
    >>> series = read_series(np.zeros(3), "y")
    >>> known = Covariates.measure(np.array([[1.0], [3.0], [5.0]]), series, scaled=True)
    >>> known.read(np.array([[3.0]]), series, np.array([1]), "the horizon")
    [array([[0.]])]
    """

    center: Array
    scale: Array
    names: tuple[str, ...] | None

    @classmethod
    def measure(cls, given: Any, series: Series, *, scaled: bool) -> Covariates:
        """Learn how to scale covariates of the same steps as `series`."""
        read = _read(given, series, series.lengths, "the steps of y")
        together = np.concatenate(read.arrays[:1] if read.single else read.arrays)
        center, scale = np.zeros(together.shape[1]), np.ones(together.shape[1])
        if scaled:
            center, scale = together.mean(axis=0), together.std(axis=0)
            scale = np.where(scale > 0, scale, 1.0)
        return cls(center, scale, read.names)

    def read(self, given: Any, like: Series, lengths: Array, what: str) -> list[Array]:
        """Return covariates of series, ``(T_i, F)`` each, scaled.

        Parameters
        ----------
        given
            As `read_series` takes it; a panel may share one array.
        like, lengths
            The series, and how many steps to cover.
        what
            What those steps are, for messages.

        Raises
        ------
        ValueError, TypeError
            They are others than `fit` got, or do not cover these steps.
        """
        if given is None:
            raise ValueError(f"fit got covariates: X must cover {what}, got None")
        read = _read(given, like, lengths, what)
        if read.variables != len(self.center):
            raise ValueError(
                f"X must have the {len(self.center)} covariates that fit got, got {read.variables}"
            )
        if self.names is not None and read.names is not None and read.names != self.names:
            raise ValueError(
                f"X must have the columns that fit got, {', '.join(self.names)}, in this order; "
                f"got {', '.join(read.names)}"
            )
        return [(one - self.center) / self.scale for one in read.arrays]


def _read(given: Any, like: Series, lengths: Array, what: str) -> Series:
    """Read covariates, one array for each series."""
    read = read_series(given, "X")
    count, arrays = len(like.arrays), read.arrays
    if read.single and not like.single:
        if len(set(lengths.tolist())) > 1:
            raise ValueError(
                f"X is one array for {count} series of different lengths: pass a list, one array "
                "for each"
            )
        arrays = arrays * count
    if len(arrays) != count:
        raise ValueError(f"X must be covariates of {count} series, got {len(arrays)}")
    for index, (array, length) in enumerate(zip(arrays, lengths, strict=True)):
        place = "X" if read.single else f"X[{index}]"
        if len(array) != length:
            raise ValueError(f"{place} must cover {what}: {length} steps, got {len(array)}")
        if np.isnan(array).any():
            step = int(np.argwhere(np.isnan(array))[0][0])
            raise ValueError(f"{place} is NaN at step {step}: known covariates have no gaps")
    return dataclasses.replace(read, arrays=arrays)
