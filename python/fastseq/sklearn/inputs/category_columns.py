"""Columns of data frames that hold categories: which they are, and their codes."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .polars_frames import is_polars, to_pandas
from .vocabulary import Unseen, Vocabulary, check_hashable, refuse_texts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CategoryColumns", "from_polars", "is_frame", "refuse_text"]

Array = np.ndarray

_NUMBERS = 10  # different ones beside text, more than which are numbers with marks for missing ones
_TIMES = (
    datetime.date, datetime.time, datetime.timedelta, np.datetime64, np.timedelta64,
)  # fmt: skip
_DATE = re.compile(
    r"\s*(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})?"
    r"([T ]*\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?\s*(Z|[+-]\d{2}:?\d{2}|[AaPp][Mm])?)?\s*"
)


@dataclasses.dataclass(frozen=True)
class CategoryColumns:
    """The columns of data frames, some of which hold categories.

    Parameters
    ----------
    names
        Names of all columns.
    vocabularies
        The categories of those that hold some, by the column's place.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"n": [0.5, 1.5], "c": ["b", "a"]})
    >>> known = CategoryColumns.find([frame], "X")
    >>> known.vocabularies
    {1: Vocabulary(values=('a', 'b'))}
    >>> known.coded([frame.assign(c=["a", "b"])], "X")[0].to_numpy()
    array([[0.5, 1. ],
           [1.5, 2. ]])
    """

    names: tuple[str, ...]
    vocabularies: Mapping[int, Vocabulary]

    @classmethod
    def find(cls, frames: Sequence[pd.DataFrame], name: str) -> CategoryColumns | None:
        """Return the columns of frames with the same columns; None: no column holds categories.

        Those do whose dtype is of categories or booleans, and those of text or objects that are not
        all numbers.

        Raises
        ------
        ValueError, TypeError
            Text or objects seem to be numbers, dates or names of rows.
        """
        found = {}
        for place, label in enumerate(frames[0].columns):
            parts = [frame.iloc[:, place] for frame in frames]
            if _hold_categories(parts, f"column {label!r} of {name}"):
                found[place] = Vocabulary.of(parts)
        if not found:
            return None
        names = tuple(map(str, frames[0].columns))
        twice = next((one for one in names if names.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"{name} has two columns {twice!r}: rename one")
        return cls(names, found)

    @property
    def form(self) -> tuple[tuple[int, tuple[Any, ...]], ...]:
        """Places and categories, to compare."""
        return tuple((place, known.values) for place, known in self.vocabularies.items())

    def coded(self, frames: Sequence[pd.DataFrame], name: str) -> list[pd.DataFrame]:
        """Return frames of the same columns with codes in place of categories.

        It warns of categories that are unseen.

        Codes are NaN where values are missing, but 0 beside columns that are all integers. Their
        dtype leaves that of all columns together as it is for the numbers alone.

        Raises
        ------
        ValueError, TypeError
            Columns have other names, or hold numbers where they held categories.
        """
        many, unseen = len(frames) > 1, Unseen()
        coded = [
            self._coded(frame, f"{name}[{number}]" if many else name, unseen)
            for number, frame in enumerate(frames)
        ]
        unseen.warn(name)
        return coded

    def _coded(self, frame: pd.DataFrame, name: str, unseen: Unseen) -> pd.DataFrame:
        import pandas as pd

        own = tuple(map(str, frame.columns))
        if own != self.names:
            raise ValueError(
                f"{name} must have the columns {', '.join(self.names)}, as in fit, in this order; "
                f"got {', '.join(own)}"
            )
        rest = [place for place in range(len(own)) if place not in self.vocabularies]
        dtype = _dtype_beside(np.asarray(frame.iloc[:0, rest]).dtype) if rest else np.float32
        columns = []
        for place, (label, column) in enumerate(frame.items()):
            if place not in self.vocabularies:
                columns.append(column)
                continue
            where = f"column {label!r} of {name}"
            if column.dtype.kind in "iufcmM" and column.notna().any():
                raise TypeError(
                    f"{where} held categories in fit, but now its dtype is {column.dtype}: pass "
                    'categories, for instance by astype("category")'
                )
            codes = self.vocabularies[place].codes(column, where)
            unseen.add(str(label), self.vocabularies[place], column, codes)
            codes = codes if np.dtype(dtype).kind == "f" else np.nan_to_num(codes)
            columns.append(pd.Series(codes.astype(dtype), frame.index, name=label))
        return pd.concat(columns, axis=1)

    def settled(self, x: Array, *, mask: bool) -> Array:
        """Return rows ``(…, C)`` whose missing codes are 0, as those of unseen categories.

        `mask`: NaN where a row has no value at all, so that it counts as missing.
        """
        places = list(self.vocabularies)
        codes = x[..., places]
        missing = np.isnan(codes)
        if mask:
            missing &= np.isfinite(x).any(-1, keepdims=True)
        if missing.any():
            x = x.copy()
            x[..., places] = np.where(missing, 0, codes)
        return x


def _hold_categories(parts: list[pd.Series], name: str) -> bool:
    """Whether a column, in parts, holds categories."""
    import pandas as pd

    if any(part.dtype.kind in "iufc" and part.notna().any() for part in parts):
        return False
    if any(isinstance(part.dtype, pd.CategoricalDtype) for part in parts):
        return True
    kinds = {part.dtype.kind for part in parts}
    if kinds == {"b"}:
        return True
    if kinds & set("mM") or not kinds & set("bO"):
        return False
    known = pd.concat([part.astype(object) for part in parts]).dropna()
    if len(known) and all(isinstance(value, bool | np.bool_) for value in known):
        return True
    with contextlib.suppress(ValueError, TypeError):
        np.asarray(known).astype(float)
        return False
    check_hashable(known, name)
    values = known.unique().tolist()
    if any(isinstance(value, (*_TIMES, pd.Period)) for value in values):
        return False
    _refuse_broken(values, name)
    refuse_texts(known, name)
    return True


def _refuse_broken(values: list[Any], name: str) -> None:
    """Raise ValueError if values are dates as text, or numbers beside text that is none."""
    if all(isinstance(value, str) and value.strip() and _DATE.fullmatch(value) for value in values):
        raise ValueError(
            f"{name} holds dates or times as text, such as {values[0]!r}: make features of them, "
            'such as month or hour, leave the column out, or insist by astype("category")'
        )
    found = [(value, number) for value in values if (number := _number(value)) is not None]
    broken = next((value for value, number in found if number % 1), None)
    if broken is None and len(found) > _NUMBERS:
        broken = found[0][0]
    if broken is not None:
        text = next((value for value in values if _number(value) is None), values[-1])
        raise ValueError(
            f"{name} holds numbers, such as {broken!r}, beside {text!r}: convert it to numbers by "
            'pandas.to_numeric(…, errors="coerce"), or to categories by astype("category")'
        )


def _number(value: object) -> float | None:
    if isinstance(value, str | Real | Decimal):
        with contextlib.suppress(ValueError):
            number = float(value)
            return number if np.isfinite(number) else None
    return None


def _dtype_beside(numbers: np.dtype[Any]) -> Any:
    """Return the dtype of codes that leaves the common dtype of `numbers` as precise as it is."""
    if numbers.kind in "iu":
        return np.result_type(numbers, np.int32 if numbers.kind == "i" else np.uint32)
    return np.result_type(numbers, np.float32) if numbers.kind == "f" else np.float32


def is_frame(given: Any) -> bool:
    """Whether it is a pandas DataFrame."""
    return hasattr(given, "columns") and hasattr(given, "iloc")


def from_polars(given: Any) -> Any:
    """Return polars frames that hold other columns than numbers, or are in a list, as pandas ones.

    Examples
    --------
    >>> import polars as pl
    >>> type(from_polars(pl.DataFrame({"c": ["a"]}))).__module__.partition(".")[0]
    'pandas'
    """
    if isinstance(given, list | tuple):
        if any(map(is_polars, given)):
            return [to_pandas(one) if is_polars(one) else one for one in given]
        return given
    if is_polars(given) and not all(kind.is_numeric() for kind in given.schema.values()):
        return to_pandas(given)
    return given


def refuse_text(frame: Any, name: str, columns: CategoryColumns | None = None) -> None:
    """Raise if a column of a data frame holds neither numbers nor known categories."""
    if not is_frame(frame):
        return
    for number, column in enumerate(frame.columns):
        dtype = frame.dtypes.iloc[number]
        if dtype.kind in "biuf" or (columns is not None and number in columns.vocabularies):
            continue
        try:
            if dtype.kind in "mM":
                raise TypeError("times are not numbers")
            np.asarray(frame.iloc[:, number]).astype(float)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{name} must hold numbers, but its column {column!r} of dtype {dtype} does not "
                f"({error}): encode it, or leave it out"
            ) from error
