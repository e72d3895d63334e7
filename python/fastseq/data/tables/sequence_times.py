"""Times of a table's sequences: digests, to compare those of two tables, and how they go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..._util.optional_imports import need
from .row_groups import Pieces

__all__ = ["SequenceTimes", "differing", "keys_of", "read_times", "ticks_of", "told"]

_DAY = 86_400 * 10**9
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


class SequenceTimes:
    """Collects a hash of each sequence's times, batch by batch.

    It is a sum over the times, whose order is known, as they increase.
    """

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, ticks: np.ndarray, unit: int, begins: list[int]) -> None:
        """Add a batch of rows; sequences begin with its rows `begins`."""
        continued = not begins or begins[0] > 0
        starts = [0, *begins] if continued else begins
        found = np.add.reduceat(_mixed(keys_of(ticks, unit)), starts)
        if continued:
            self._parts[-1][-1:] += found[:1]
            found = found[1:]
        if len(found):
            self._parts.append(found)

    @property
    def digests(self) -> np.ndarray:
        """The hashes."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.uint64)


def read_times(pieces: Pieces, name: str, begin: int, length: int) -> Iterator[Any]:
    """Yield the times of some rows that follow each other, piece by piece."""
    start, end = 0, begin + length
    for piece, rows in enumerate(pieces.rows):
        if start < end and begin < start + rows:
            at = start
            for batch in pieces.batches(piece, [name]):
                first, last = max(begin - at, 0), min(end - at, batch.num_rows)
                if first < last:
                    yield batch.column(name).slice(first, last - first)
                at += batch.num_rows
            pieces.check([piece])
        start += rows


def differing(one: Iterator[Any], two: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the times of one that are not those of two in the same place, with these."""
    none: Any = ()
    a, b = next(one, none), next(two, none)
    while count := min(len(a), len(b)):
        keys = [keys_of(*ticks_of(part.slice(0, count))) for part in (a, b)]
        for i in np.flatnonzero(keys[0] != keys[1]).tolist():
            yield a[i], b[i]
        a, b = a.slice(count), b.slice(count)
        a, b = a if len(a) else next(one, none), b if len(b) else next(two, none)


def ticks_of(times: Any) -> tuple[np.ndarray, int]:
    """Return times as numbers of a unit, and the unit in nanoseconds (of numbers: 1)."""
    arrow = need("pyarrow", "LongTable")
    kind, unit = times.type, 1
    if arrow.types.is_timestamp(kind):
        times, unit = times.cast(arrow.int64()), _NANOSECONDS[kind.unit]
    elif arrow.types.is_date32(kind):
        times, unit = times.cast(arrow.int32()), _DAY
    elif arrow.types.is_date64(kind):
        times, unit = times.cast(arrow.int64()), _NANOSECONDS["ms"]
    return times.to_numpy(zero_copy_only=False), unit


def keys_of(ticks: np.ndarray, unit: int) -> np.ndarray:
    """Return a number for each time, the same for 1 and 1.0, or 1 second and 1000 milliseconds.

    Examples
    --------
    >>> keys_of(np.array([1, 2]), 10**9) == keys_of(np.array([1000.0, 2000.5]), 10**6)
    array([ True, False])
    """
    if ticks.dtype.kind != "f":
        keys: np.ndarray = ticks.astype(np.int64).view(np.uint64)  # a copy
    else:
        ticks = ticks.astype(np.float64)
        keys = ticks.view(np.uint64).copy()
        whole = (np.floor(ticks) == ticks) & (np.abs(ticks) < 2**63)
        keys[whole] = ticks[whole].astype(np.int64).view(np.uint64)
    keys *= np.uint64(unit)  # modulo 2**64
    return keys


def _mixed(keys: np.ndarray) -> np.ndarray:
    """Return hashes that can be added up, in place: those of splitmix64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys ^= keys >> np.uint64(shift)
        keys *= np.uint64(factor)
    keys ^= keys >> np.uint64(31)
    return keys


def told(time: Any) -> str:
    """Return a time as text; one beyond Python's dates as its number."""
    try:
        return str(time)
    except (OverflowError, ValueError):
        return str(time.value)
