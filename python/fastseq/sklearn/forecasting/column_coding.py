"""How columns of covariates become numbers: categories by codes, numbers scaled as in `fit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ..inputs.vocabulary import Vocabulary
from .series import Array
from .windows import center_and_scale

__all__ = ["ColumnCoding"]


@dataclasses.dataclass(frozen=True)
class ColumnCoding:
    """Coding of columns, measured on training data.

    Parameters
    ----------
    names
        Names of a table's columns; None: they come from arrays.
    vocabularies
        The categories of those columns that hold some, by name.
    center, scale
        Scaling of each column, ``(C,)``; of categories 0 and 1.

    Examples
    --------
    >>> rows = np.array([[1.0, 1.0], [3.0, 2.0], [8.0, np.nan]])
    >>> known = {"kind": Vocabulary(("a", "b"))}
    >>> coding, codes = ColumnCoding.measure(("size", "kind"), known, [rows], [2], scaled=True)
    >>> coding.sizes, coding.center, coding.scale
    ((0, 2), array([2., 0.]), array([1., 1.]))
    """

    names: tuple[str, ...] | None
    vocabularies: Mapping[str, Vocabulary]
    center: Array
    scale: Array

    @classmethod
    def measure(
        cls,
        names: tuple[str, ...] | None,
        vocabularies: Mapping[str, Vocabulary],
        arrays: list[Array],
        lengths: list[int],
        *,
        scaled: bool,
    ) -> tuple[ColumnCoding, list[Array]]:
        """Measure on the first rows of arrays ``(T_i, C)``, with codes of `vocabularies`.

        Categories that do not occur there are unseen. Returns the arrays with the final codes, too.
        """
        measured = [one[:length] for one, length in zip(arrays, lengths, strict=True)]
        width = arrays[0].shape[1]
        center, scale = np.zeros(width), np.ones(width)
        if scaled:
            center, scale = center_and_scale(measured)
        kept = {}
        places = [c for c, name in enumerate(names or ()) if name in vocabularies]
        if places:
            arrays = [one.copy() for one in arrays]
            measured = [one[:length] for one, length in zip(arrays, lengths, strict=True)]
        for c in places:
            name = (names or ())[c]
            codes = np.concatenate([one[:, c] for one in measured])
            kept[name], code = vocabularies[name].only(codes)
            center[c], scale[c] = 0, 1
            for one in arrays:
                known = ~np.isnan(one[:, c])
                one[known, c] = code[one[known, c].astype(int)]
        return cls(names, kept, center, scale), arrays

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of categories of each column; 0: it holds numbers.

        A column none of whose categories is known has one that never occurs.
        """
        names = self.names or ("",) * len(self.center)
        return tuple(
            max(1, len(self.vocabularies[name].values)) if name in self.vocabularies else 0
            for name in names
        )

    @property
    def numbers(self) -> Array:
        """Whether columns hold numbers, ``(C,)``."""
        return np.asarray(np.array(self.sizes) == 0)

    def scaled(self, array: Array) -> Array:
        """Return rows ``(T, C)`` with numbers scaled."""
        return np.asarray((array - self.center) / self.scale)
