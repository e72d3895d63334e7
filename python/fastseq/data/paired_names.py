"""Sequences with names: those given beside each other must have the same ones."""

from __future__ import annotations

from .hdf5.names import natural_key
from .ragged import GroupItems
from .tables.long_table import TableItems

__all__ = ["NamedSequences"]

_SHOWN = 3  # names shown in messages


class NamedSequences:
    """The groups and tables among the arguments of a call; lists have no names.

    Examples
    --------
    >>> import numpy as np
    >>> named = NamedSequences()
    >>> named.check("x", GroupItems([np.zeros(3)], ["a"]))
    >>> named.check("y", GroupItems([np.zeros(3)], ["b"]))
    Traceback (most recent call last):
    ValueError: y must have the same names as x, but only x has 'a', and only y has 'b'; lists ...
    """

    def __init__(self) -> None:
        self._first: tuple[str, GroupItems] | None = None
        self._table: tuple[str, TableItems] | None = None

    def check(self, name: str, array: object) -> None:
        """Compare an argument with the first of them, a table with the first table.

        Raises
        ------
        ValueError
            It has other names, or has them in another order; or a table has other times.
        """
        if not isinstance(array, GroupItems):
            return
        if self._first is None:
            self._first = name, array
        _check_names(name, array, *self._first)
        if isinstance(array, TableItems):
            if self._table is None:
                self._table = name, array
            other, table = self._table
            array.check_times(name, table, other)


def _check_names(name: str, array: GroupItems, reference: str, first: GroupItems) -> None:
    if array.keys != first.keys:
        tables = isinstance(array, TableItems) and isinstance(first, TableItems)
        must = f"{name} must have the same {'ids' if tables else 'names'} as {reference}"
        found, known = set(array.keys), set(first.keys)
        parts = [
            f"only {one} has {_shown(names)}"
            for one, names in ((reference, known - found), (name, found - known))
            if names
        ]
        if parts:
            raise ValueError(f"{must}, but {', and '.join(parts)}; lists are paired by position")
        i = [a == b for a, b in zip(array.keys, first.keys, strict=True)].index(False)
        raise ValueError(
            f"{must}, in the same order, but its sequence {i} is {array.keys[i]!r}, that of "
            f"{reference} {first.keys[i]!r}"
        )


def _shown(names: set[str]) -> str:
    text = ", ".join(map(repr, sorted(names, key=natural_key)[:_SHOWN]))
    return f"{text}, …" if len(names) > _SHOWN else text
