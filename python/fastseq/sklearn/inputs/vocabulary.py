"""Categories of a column, and their codes."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._util.warn_user import warn_user

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Unseen", "Vocabulary", "check_hashable", "holds_categories", "refuse_texts",
]  # fmt: skip

Array = np.ndarray

_SHOWN = 5  # values, at most, in a warning
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60  # characters of a value
_DIFFERENT = 50  # values, more than which are too many if rows hardly repeat them


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The categories of a column; the code of each is its place, from 1 on.

    Code 0 is for categories that are not among them.

    Parameters
    ----------
    values
        The categories, sorted: their order does not depend on that of rows.

    Examples
    --------
    >>> import pandas as pd
    >>> known = Vocabulary.of([pd.Series(["b", "a", None]), pd.Series(["c"])])
    >>> known.values, known.codes(pd.Series(["c", "x", None]), "X")
    (('a', 'b', 'c'), array([ 3.,  0., nan]))
    """

    values: tuple[Any, ...]

    @classmethod
    def of(cls, columns: Iterable[pd.Series]) -> Vocabulary:
        """Return the categories that occur in columns; dtypes may declare more."""
        found = {value for column in columns for value in column.dropna().unique().tolist()}
        return cls(tuple(sorted(found, key=_rank)))

    def codes(self, column: pd.Series, name: str) -> Array:
        """Return a column's codes, NaN where values are missing.

        Raises
        ------
        TypeError
            Its values are numbers, and the categories are not, or the other way round.
        """
        import pandas as pd

        rows, values = pd.factorize(column.astype(object))
        numbers = {_rank(value)[0] for value in self.values}
        if len(values) and numbers and numbers.isdisjoint({_rank(value)[0] for value in values}):
            raise TypeError(
                f"{name} holds {values[0]!r}, but in fit it held categories such as "
                f"{self.values[0]!r}: pass the same kind of values"
            )
        code = {value: place for place, value in enumerate(self.values, 1)}
        found = np.array([*(code.get(value, 0) for value in values), np.nan])
        return np.asarray(found[rows])

    def only(self, codes: Array) -> tuple[Vocabulary, Array]:
        """Return the vocabulary of some `codes` alone, and the new code of each old one.

        Examples
        --------
        >>> Vocabulary(("a", "b", "c")).only(np.array([3.0, np.nan, 2.0]))
        (Vocabulary(values=('b', 'c')), array([0., 0., 1., 2.]))
        """
        kept = np.unique(codes[codes > 0]).astype(int)
        code = np.zeros(len(self.values) + 1)
        code[kept] = np.arange(1, len(kept) + 1)
        return Vocabulary(tuple(self.values[place - 1] for place in kept)), code


class Unseen:
    """Values of columns that are not among their categories, to warn of all of them at once.

    Examples
    --------
    >>> import pandas as pd
    >>> known, column, unseen = Vocabulary(("no", "yes")), pd.Series(["yes", "Yes"]), Unseen()
    >>> unseen.add("promo", known, column, known.codes(column, "promo"))
    >>> print(unseen.text("X").partition(": ")[2])
    in column 'promo' 'Yes' (it saw 'no', 'yes')
    """

    def __init__(self) -> None:
        self._columns: dict[str, tuple[Vocabulary, dict[Any, None]]] = {}

    def add(self, label: str, known: Vocabulary, column: pd.Series, codes: Array) -> None:
        """Note the values of a column whose code is 0."""
        if (codes == 0).any():
            values = self._columns.setdefault(label, (known, {}))[1]
            values.update(dict.fromkeys(column[codes == 0].unique().tolist()))

    def text(self, name: str) -> str:
        """Return what to warn of; nothing if all values are known."""
        parts = [
            f"in column {label!r} {_shown(values)} (it saw {_shown(known.values)})"
            for label, (known, values) in self._columns.items()
        ]
        what = f"{name} holds categories that fit did not see, which have no effect: "
        return what + ", ".join(parts) if parts else ""

    def warn(self, name: str) -> None:
        """Warn of the values, if there are some; `name`: what holds the columns."""
        if self._columns:
            warn_user(self.text(name))


def _shown(values: Iterable[Any]) -> str:
    every = list(values)
    more = ["…"] if len(every) > _SHOWN else []
    return ", ".join([*map(_SHORT.repr, every[:_SHOWN]), *more]) or "none"


def _rank(value: object) -> tuple[int, float, str]:
    if isinstance(value, bool | int | float | np.bool_ | np.number):
        return 0, float(value), ""
    kind = "" if isinstance(value, str) else type(value).__name__
    return 1, 0.0, f"{kind} {value}"


def holds_categories(column: pd.Series) -> bool:
    """Whether a column's dtype is one of categories, text, objects or booleans."""
    import pandas as pd

    types, dtype = pd.api.types, column.dtype
    return isinstance(dtype, pd.CategoricalDtype) or any(
        is_kind(dtype)
        for is_kind in (types.is_bool_dtype, types.is_string_dtype, types.is_object_dtype)
    )


def check_hashable(column: pd.Series, name: str) -> None:
    """Raise TypeError if a value is none of a category, such as a list."""
    for value in column.dropna():
        if not isinstance(value, str | int | float | np.generic):
            try:
                hash(value)
            except TypeError:
                raise TypeError(
                    f"{name} must hold numbers or categories, got {value!r}: leave it out, or "
                    "split it into columns"
                ) from None


def refuse_texts(column: pd.Series, name: str) -> None:
    """Raise ValueError if texts differ from row to row, such as broken numbers or dates."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        return
    known = column.dropna()
    count = known.nunique()
    if count > _DIFFERENT and 2 * count > len(known):
        raise ValueError(
            f"{name} has {count} different values in {len(known)} rows, such as "
            f"{known.iloc[0]!r}, too many for categories: convert them to numbers by "
            'pandas.to_numeric, leave the column out, or insist by astype("category")'
        )
