"""What `fit` measures of columns: categories that training saw, and the scaling of statics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..forecasting.windows import center_and_scale
from ..named_modules import ColumnSizes
from .category_columns import CategoryColumns
from .input_checks import Array, Inputs, Items
from .static_features import StaticFeatures

__all__ = ["Coding", "FittedColumns", "counted"]


@dataclasses.dataclass(frozen=True)
class Coding:
    """How columns become what the module gets.

    Parameters
    ----------
    codes
        For each column of categories, by its place, the code of the module for each of the codes
        read: categories that training did not see become 0.
    center, scale
        Scaling of numbers; of codes 0 and 1.
    """

    codes: Mapping[int, Array]
    center: Array
    scale: Array

    @classmethod
    def measure(
        cls, columns: CategoryColumns | None, width: int, training: Callable[[int], Array]
    ) -> Coding:
        """Measure on the values of columns in training data; nothing is scaled yet."""
        vocabularies = {} if columns is None else columns.vocabularies
        codes = {place: known.only(training(place))[1] for place, known in vocabularies.items()}
        return cls(codes, np.zeros(width), np.ones(width))

    def scaled_by(self, rows: Array) -> Coding:
        """Return the same with numbers scaled to mean 0 and deviation 1 of `rows`."""
        center, scale = center_and_scale([rows])
        places = list(self.codes)
        center[places], scale[places] = 0, 1
        return dataclasses.replace(self, center=center, scale=scale)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of categories; if training saw none of a column's, there is one that is never."""
        return tuple(
            max(1, int(self.codes[place].max())) if place in self.codes else 0
            for place in range(len(self.center))
        )

    def apply(self, x: Array) -> Array:
        """Return ``(…, steps · C)`` with the module's codes; it may be the same array."""
        width = len(self.center)
        changed = {
            place: code
            for place, code in self.codes.items()
            if not np.array_equal(code, np.arange(len(code)))
        }
        x = x.copy() if changed else x
        for place, code in changed.items():
            part = x[..., place::width]
            known = ~np.isnan(part)
            part[known] = code[part[known].astype(int)]
        return x


@dataclasses.dataclass(frozen=True)
class FittedColumns:
    """The columns of X and the static features that `fit` got.

    Parameters
    ----------
    columns
        The columns of X; None: all are numbers.
    static
        Static features; None: there are none.
    own, beside
        How both are coded; None: all columns of X are numbers; there are no static features.
    """

    columns: CategoryColumns | None = None
    static: StaticFeatures | None = None
    own: Coding | None = None
    beside: Coding | None = None

    @property
    def plain(self) -> bool:
        """Whether there are numbers of X only."""
        return self.own is None and self.beside is None

    @classmethod
    def measure(
        cls, inputs: Inputs, static: StaticFeatures | None, training: Array
    ) -> FittedColumns:
        """Measure on some of the samples, ``(N,)``."""
        own = beside = None
        x: Any = inputs.x  # datasets in files have neither categories nor static features
        if inputs.columns is not None:
            width = len(inputs.columns.names)

            def values(place: int) -> Array:
                parts = [a[..., place::width].ravel() for a in _of(x, training)]
                return np.concatenate(parts)

            own = Coding.measure(inputs.columns, width, values)
        if static is not None:
            rows = static.rows[training]
            unknown = np.flatnonzero(np.isnan(rows).all(0))
            if len(unknown):
                name = unknown[0] if static.names is None else repr(static.names[unknown[0]])
                raise ValueError(f"static has no value in column {name}: leave it out")
            beside = Coding.measure(static.columns, rows.shape[1], lambda place: rows[:, place])
            beside = beside.scaled_by(rows)
            static = dataclasses.replace(static, rows=rows[:0])
        return cls(inputs.columns, static, own, beside)

    def sizes(self, inputs: Inputs) -> ColumnSizes | None:
        """Return the sizes of the columns of `inputs`, not `joined` yet; None: all are numbers."""
        if self.plain:
            return None
        own = (0,) * inputs.features if self.own is None else self.own.sizes
        static = () if self.beside is None else self.beside.sizes
        return ColumnSizes(own, inputs.features // len(own), static)

    def joined(self, inputs: Inputs, static: StaticFeatures | None) -> Inputs:
        """Return inputs with the module's codes, and static features at each step."""
        x: Any = inputs.x
        if self.own is not None:
            code = self.own.apply
            x = [code(a) for a in x] if isinstance(x, list) else code(x)
        if static is not None and self.beside is not None:
            rows = (self.beside.apply(static.rows) - self.beside.center) / self.beside.scale
            x = _appended(x, rows)
        return dataclasses.replace(inputs, x=x)


def counted(count: int, training: Array | None, weights: Items | None) -> Array:
    """Return which samples training learns from, ``(N,)``: those that have a weight.

    Parameters
    ----------
    count
        N.
    training
        The samples not held out; None: all.
    weights
        Weights of samples, or of their steps; None: all 1.

    Examples
    --------
    >>> counted(4, np.array([0, 1, 3]), np.array([1.0, 0.0, 1.0, 1.0]))
    array([ True, False, False,  True])
    """
    found = np.ones(count, bool)
    if training is not None:
        found[:] = False
        found[training] = True
    if weights is not None:
        if isinstance(weights, list):
            found &= np.array([bool(one.any()) for one in weights])
        else:
            found &= weights.reshape(count, -1).any(1)
    return found


def _of(items: Items, which: Array) -> list[Array]:
    """Return some samples as a list of arrays."""
    if isinstance(items, list):
        return [items[i] for i in np.flatnonzero(which)] or [items[0][:0]]
    return [items[which]]


def _appended(x: Items, rows: Array) -> Items:
    """Return sequences with a row of features appended at each of their steps."""
    if isinstance(x, list):
        return [
            np.concatenate([a, np.repeat(row[None].astype(a.dtype), len(a), 0)], 1)
            for a, row in zip(x, rows, strict=True)
        ]
    steps = np.repeat(rows[:, None].astype(x.dtype), x.shape[1], 1)
    return np.concatenate([x, steps], 2)
