"""Columns of X: read, checked, and coded as in `fit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .alignment import aligned, check_ids
from .categories import find_vocabularies, map_tables, with_codes
from .column_coding import ColumnCoding
from .covariate_rows import CovariateRows
from .series import Array, Series, read_series
from .times import Spacing

__all__ = ["Covariates"]


@dataclasses.dataclass(frozen=True)
class Covariates:
    """The columns of X that `fit` got.

    Parameters
    ----------
    coding
        How they become numbers.
    past
        Which of them are not known ahead.

    Examples
    --------
    >>> series = read_series(np.zeros(3), "y")
    >>> given = np.array([[1.0, 0.0], [3.0, 1.0], [5.0, np.nan]])
    >>> known, read = Covariates.start(given, series, ("1",), Spacing())
    Traceback (most recent call last):
    ValueError: past: X is an array, whose columns have positions, but got '1'
    >>> known, read = Covariates.start(given, series, (1,), Spacing())
    >>> known, read = known.measured(read, apart=np.array([1]), scaled=True)
    >>> rows = known.rows(read, series.lengths)
    >>> rows.ahead[0].T, rows.past[0].T
    (array([[-1.,  1.,  3.]]), array([[-1.,  1., nan]]))
    """

    coding: ColumnCoding
    past: tuple[int, ...]

    @classmethod
    def start(
        cls, given: Any, like: Series, past: Sequence[str | int], spacing: Spacing
    ) -> tuple[Covariates, Series]:
        """Read the covariates of training series, whose coding is not known yet.

        Parameters
        ----------
        given
            As `read_series` takes it, but columns of tables may hold categories; a panel may share
            one array.
        like
            The series.
        past
            Names or positions of columns not known ahead.
        spacing
            How far apart times must be.
        """
        vocabularies = find_vocabularies(given, "X")
        read = read_series(with_codes(given, vocabularies, "X"), "X", spacing=spacing)
        places = _places(past, read)
        width = read.variables
        coding = ColumnCoding(read.names, vocabularies, np.zeros(width), np.ones(width))
        known = cls(coding, places)
        return known, known._checked(read, like, like.lengths, "the steps of y")

    def measured(self, read: Series, *, apart: Array, scaled: bool) -> tuple[Covariates, Series]:
        """Measure the coding, without the last `apart` steps of each; also return `read`, coded."""
        arrays = read.arrays
        if read.single:
            arrays, apart = arrays[:1], apart.max(keepdims=True)
        coding, arrays = ColumnCoding.measure(
            self.coding.names, self.coding.vocabularies, arrays,
            [len(one) - steps for one, steps in zip(arrays, apart.tolist(), strict=True)],
            scaled=scaled,
        )  # fmt: skip
        if read.single:
            arrays = arrays * len(read.arrays)
        return Covariates(coding, self.past), dataclasses.replace(read, arrays=arrays)

    @property
    def ahead(self) -> tuple[int, ...]:
        """Which columns are known ahead."""
        return tuple(c for c in range(len(self.coding.center)) if c not in self.past)

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Number of categories of columns known ahead, and of the others; 0: numbers."""
        sizes = self.coding.sizes
        return tuple(sizes[c] for c in self.ahead), tuple(sizes[c] for c in self.past)

    def read(
        self,
        given: Any,
        like: Series,
        lengths: Array,
        what: str,
        spacing: Spacing,
        ahead: int = 0,
    ) -> Series:
        """Read covariates, ``(T_i, C)`` for each series.

        Parameters
        ----------
        given
            See `start`.
        like, lengths
            The series, and how many steps to cover.
        what
            Name of those steps in messages.
        spacing
            How far apart times must be.
        ahead
            How many of the steps are ahead: there, only columns known ahead matter, and later steps
            are ignored, if they have times.

        Raises
        ------
        ValueError, TypeError
            They differ from those that `fit` got, or do not cover these steps.
        """
        if given is None:
            raise ValueError(f"fit got covariates: X must cover {what}, got None")
        self._refuse_arrays(given)
        coded = with_codes(given, self.coding.vocabularies, "X")
        empty = bool((lengths == 0).any())
        read = read_series(coded, "X", self.coding.names, spacing, empty=empty)
        return self._checked(read, like, lengths, what, ahead)

    def read_ahead(
        self, given: Any, like: Series, horizon: int, what: str, spacing: Spacing
    ) -> Series | None:
        """Read covariates of the horizon: of columns known ahead, ``(horizon, F)`` each.

        Other columns are ignored, and later steps, if they have times. None: no column is known
        ahead.
        """
        if not self.ahead:
            return None
        if given is None:
            raise ValueError(f"fit got covariates: X must cover {what}, got None")
        self._refuse_arrays(given)
        names = self.coding.names
        if names is not None:
            unknown = {names[c] for c in self.past}
            names = tuple(names[c] for c in self.ahead)
            given = map_tables(
                given, lambda table, _: table[[c for c in table if str(c) not in unknown]], "X"
            )
        vocabularies = self.coding.vocabularies
        vocabularies = {name: v for name, v in vocabularies.items() if name in (names or ())}
        read = read_series(with_codes(given, vocabularies, "X"), "X", names, spacing)
        width = len(self.coding.center)
        arrays = read.arrays
        if read.variables == len(self.ahead) < width:
            whole = np.full((1, width), np.nan)
            arrays = []
            for one in read.arrays:
                rows = np.repeat(whole, len(one), axis=0)
                rows[:, self.ahead] = one
                arrays.append(rows)
        read = dataclasses.replace(read, arrays=arrays)
        lengths = np.full(len(like.arrays), horizon)
        return self._checked(read, like, lengths, what, horizon)

    def rows(self, read: Series, lengths: Array) -> CovariateRows:
        """Return covariates coded and scaled; those of the past for `lengths` steps."""
        whole = [self.coding.scaled(one) for one in read.arrays]
        ahead = past = None
        if self.ahead:
            ahead = [np.nan_to_num(one[:, self.ahead]) for one in whole]
        if self.past:
            past = [one[:steps, self.past] for one, steps in zip(whole, lengths, strict=True)]
        return CovariateRows(ahead, past)

    def _refuse_arrays(self, given: Any) -> None:
        """Raise TypeError if columns hold categories, and `given` is not a table."""
        if not self.coding.vocabularies:
            return
        tables: list[Any] = []
        map_tables(given, lambda table, _: tables.append(table), "X")
        count = len(given) if isinstance(given, list | tuple | Mapping) else 1
        if len(tables) < count:
            raise TypeError(
                f"X must be a DataFrame, as in fit: column {next(iter(self.coding.vocabularies))!r}"
                " holds categories"
            )

    def _checked(
        self, read: Series, like: Series, lengths: Array, what: str, ahead: int = 0
    ) -> Series:
        """Return covariates of each series; raise unless they cover its steps without gaps."""
        if read.gap is not None and self.ahead:
            number, time = read.gap
            place = "X" if read.single else f"X[{(read.ids or range(number + 1))[number]!r}]"
            raise ValueError(
                f"{place} has no row for {time}: covariates known ahead must have no gaps"
            )
        if read.variables != len(self.coding.center):
            raise ValueError(
                f"X must have the {len(self.coding.center)} covariates that fit got, got "
                f"{read.variables}"
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
        check_ids(read, like, "X")
        read = aligned(read, like.ids, "X")
        if len(read.arrays) != count:
            raise ValueError(f"X must be covariates of {count} series, got {len(read.arrays)}")
        read = read.until(lengths) if ahead else read
        no_gaps = self.coding.numbers.copy()
        no_gaps[list(self.past)] = False
        for index, (array, length) in enumerate(zip(read.arrays, lengths, strict=True)):
            place = "X" if read.single else f"X[{(read.ids or range(count))[index]!r}]"
            fine = len(array) == length or (not self.ahead and len(array) == length - ahead)
            if not fine and len(array) > length:
                raise ValueError(
                    f"{place} must have exactly {what}: {length} steps, got {len(array)}; leave "
                    "out the others"
                )
            if not fine:
                raise ValueError(f"{place} must cover {what}: {length} steps, got {len(array)}")
            gaps = np.isnan(array) & no_gaps
            if gaps.any():
                step = int(np.argwhere(gaps)[0][0])
                raise ValueError(
                    f"{place} is NaN at step {step}: known covariates must have no gaps; name "
                    "columns that are not known ahead in past"
                )
        return read


def _places(past: Sequence[str | int], read: Series) -> tuple[int, ...]:
    """Return the positions of columns, by their names or positions, in order."""
    found = []
    for one in past:
        if read.names is not None:
            if str(one) not in read.names:
                raise ValueError(f"past: X has no column {one!r}, but {', '.join(read.names)}")
            found.append(read.names.index(str(one)))
        elif isinstance(one, str):
            raise ValueError(f"past: X is an array, whose columns have positions, but got {one!r}")
        elif not -read.variables <= one < read.variables:
            raise ValueError(f"past: X has {read.variables} columns, so none at {one}")
        else:
            found.append(one % read.variables)
    if len(set(found)) < len(found):
        raise ValueError(f"past must name each column once, got {tuple(past)!r}")
    return tuple(sorted(found))
