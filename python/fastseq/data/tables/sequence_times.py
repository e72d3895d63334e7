"""Times of a table's sequences: digests, to compare those of two tables, and how they go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..._util.optional_imports import need
from .row_groups import Pieces

__all__ = [
    "SequenceTimes",
    "differing",
    "keys_of",
    "longest_step",
    "read_times",
    "ticks_of",
    "told",
]

_DAY = 86_400 * 10**9
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_UNEVEN = 1.5  # how much longer the longest step is than the shortest one


class SequenceTimes:
    """Collects what is to be known of the sequences' times, batch by batch."""

    def __init__(self) -> None:
        self._digests: list[np.ndarray] = []
        self._least: list[np.ndarray] = []
        self._most: list[np.ndarray] = []

    def add(self, ticks: np.ndarray, unit: int, before: float, begins: list[int]) -> None:
        """Add a batch of rows.

        Parameters
        ----------
        ticks, unit
            Their times; see `ticks_of`.
        before
            The time of the row before them.
        begins
            The rows with which sequences begin.
        """
        continued = not begins or begins[0] > 0
        starts = [0, *begins] if continued else begins
        steps = np.empty(len(ticks))
        steps[0] = ticks[0].item() * unit - before
        steps[1:] = _differences(ticks) * unit
        _extend(self._digests, np.add, _mixed(keys_of(ticks, unit)), starts, continued)
        steps[begins] = 0
        _extend(self._most, np.maximum, steps, starts, continued)
        steps[begins] = np.inf
        _extend(self._least, np.minimum, steps, starts, continued)

    @property
    def digests(self) -> np.ndarray:
        """A hash of each sequence's times: a sum, as their order is known: they increase."""
        return np.concatenate(self._digests) if self._digests else np.zeros(0, np.uint64)

    @property
    def uneven(self) -> np.ndarray:
        """The sequences whose longest step is clearly longer than their shortest one.

        Steps of a month, which have 28 to 31 days, are not.
        """
        if not self._most:
            return np.zeros(0, np.int64)
        most, least = np.concatenate(self._most), np.concatenate(self._least)
        return np.flatnonzero(most > _UNEVEN * least)


def _extend(
    parts: list[np.ndarray], join: np.ufunc, values: np.ndarray, starts: list[int], continued: bool
) -> None:
    """Join the values of each sequence, which may have begun in an earlier batch."""
    found = join.reduceat(values, starts)
    if continued:
        parts[-1][-1:] = join(parts[-1][-1:], found[:1])
        found = found[1:]
    if len(found):
        parts.append(found)


def _differences(ticks: np.ndarray) -> np.ndarray:
    if ticks.dtype.kind == "f":
        return np.diff(ticks.astype(np.float64))
    return np.diff(ticks.astype(np.int64).view(np.uint64)).astype(np.float64)  # modulo 2**64


def longest_step(times: Iterator[Any]) -> tuple[Any, Any]:
    """Return the two times of a sequence that are furthest apart."""
    longest, found, last = -1.0, (None, None), None
    for part in times:
        ticks, unit = ticks_of(part)
        if last is not None and (ticks[0].item() * unit - last[0]) > longest:
            longest, found = ticks[0].item() * unit - last[0], (last[1], part[0])
        steps = _differences(ticks) * unit
        if len(steps) and steps.max() > longest:
            i = int(steps.argmax())
            longest, found = float(steps[i]), (part[i], part[i + 1])
        last = ticks[-1].item() * unit, part[-1]
    return found


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
