"""Transforms of the target: applied to series, and undone in forecasts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .series import Array, Series

__all__ = [
    "TRANSFORMS", "applied", "check_domain", "smeared", "smearing_terms", "transformed", "undone",
]  # fmt: skip


class _Transform(NamedTuple):
    apply: Callable[[Array], Array]
    undo: Callable[[Array], Array]  # of any number; never negative
    zero: bool  # whether 0 is in its domain


TRANSFORMS = {
    "log1p": _Transform(np.log1p, lambda z: np.expm1(np.maximum(z, 0)), zero=True),
    "log": _Transform(np.log, np.exp, zero=False),
    "sqrt": _Transform(np.sqrt, lambda z: np.maximum(z, 0) ** 2, zero=True),
}
"""Transforms by name."""

_TERMS = 200  # of a mean


def check_domain(series: Series, name: str | None, what: str) -> None:
    """Raise ValueError if a value is outside the domain of a transform.

    Parameters
    ----------
    series
        The series.
    name
        One of `TRANSFORMS`; None: all values pass.
    what
        Their name in messages.
    """
    if name is None:
        return
    zero = TRANSFORMS[name].zero
    for number, array in enumerate(series.arrays):
        bad = array < 0 if zero else array <= 0
        if not bad.any():
            continue
        step, variable = (int(index) for index in np.argwhere(bad)[0])
        key = number if series.ids is None else series.ids[number]
        place = what if series.single else f"{what}[{key!r}]"
        column = f" of variable {variable}" if series.variables > 1 else ""
        raise ValueError(
            f'{place} is {array[step, variable]:g} at step {step}{column}, but transform="{name}" '
            f"takes {'no negative' if zero else 'only positive'} values: choose another "
            f"transform{'' if zero else ', such as log1p for values that may be 0'}, or mark wrong "
            "values as missing (NaN)"
        )


def applied(values: Array, name: str | None) -> Array:
    """Return transformed values; NaN stays.

    Examples
    --------
    >>> applied(np.array([1.0, 4.0]), "sqrt")
    array([1., 2.])
    """
    return values if name is None else np.asarray(TRANSFORMS[name].apply(values))


def transformed(series: Series, name: str | None) -> Series:
    """Return series whose values are transformed."""
    return dataclasses.replace(series, arrays=[applied(one, name) for one in series.arrays])


def undone(values: Array, name: str | None) -> Array:
    """Undo the transform of values; it is increasing, so quantiles stay quantiles.

    Examples
    --------
    >>> undone(np.array([-1.0, 3.0]), "sqrt")
    array([0., 9.])
    """
    return values if name is None else np.asarray(TRANSFORMS[name].undo(values))


def smearing_terms(errors: Array) -> tuple[Array, Array]:
    """Return errors, or means of similar ones, over which `smeared` takes the mean.

    Parameters
    ----------
    errors
        ``(M, H, K)``, NaN where unknown.

    Returns
    -------
    tuple of numpy.ndarray
        The errors of each step and variable, or the means of 200 parts of the sorted errors,
        ``(R, H, K)``, and how much each counts. A step without errors gets those of the step
        before.

    Examples
    --------
    >>> terms, shares = smearing_terms(np.array([3.0, np.nan, 1.0]).reshape(3, 1, 1))
    >>> terms.ravel(), shares.ravel()
    (array([1., 3.]), array([0.5, 0.5]))
    """
    errors = np.sort(errors, axis=0)  # NaN last
    counts = np.isfinite(errors).sum(axis=0)
    most = min(_TERMS, max(int(counts.max()), 1))
    terms, shares = np.zeros((2, most, *counts.shape))
    shares[0] = 1
    for h, k in np.ndindex(counts.shape):
        if count := int(counts[h, k]):
            parts = np.array_split(errors[:count, h, k], min(most, count))
            terms[: len(parts), h, k] = [part.mean() for part in parts]
            shares[: len(parts), h, k] = [len(part) / count for part in parts]
        elif h:
            terms[:, h, k], shares[:, h, k] = terms[:, h - 1, k], shares[:, h - 1, k]
    return terms, shares


def smeared(values: Array, terms: Array, shares: Array, name: str) -> Array:
    """Return means of untransformed values, by smearing [1]_: over the errors of forecasts.

    Parameters
    ----------
    values
        Means of transformed values, of any shape.
    terms, shares
        Errors, and how much each counts, ``(R, …)``, of that shape.
    name
        The transform.

    References
    ----------
    .. [1] N. Duan, "Smearing estimate: a nonparametric retransformation method", Journal of the
       American Statistical Association 78 (1983).

    Examples
    --------
    >>> smeared(np.zeros(1), np.log([[1.0], [3.0]]), np.full((2, 1), 0.5), "log")
    array([2.])
    """
    total = np.zeros(values.shape)
    for term, share in zip(terms, shares, strict=True):
        total += undone(values + term, name) * share
    return total
