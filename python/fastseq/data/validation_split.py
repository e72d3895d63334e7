"""Validation data: which part is held out, and where its states come from."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from .sequences import Sequences

__all__ = ["Validation", "split"]


@dataclasses.dataclass
class Validation:
    """Data for the validation loss after each epoch.

    Attributes
    ----------
    data
        The sequences; they start with the warm-up, if there is one.
    carried
        Whether they continue from the states at the end of the training part.
    warmup
        Warm-up steps at the start: they update the state but do not count in the loss.
    """

    data: Sequences
    carried: bool = False
    warmup: int = 0


def split(data: Sequences, wanted: object, *, carries: bool) -> tuple[Sequences, Validation]:
    """Split data into disjoint training and validation parts.

    Parameters
    ----------
    data
        All data.
    wanted
        A fraction of the sequences, their number, or a dict with ``"sequences"`` or ``"time"``,
        again a fraction or a number, and with ``"warmup"`` for time. The last ones are held out.
    carries
        Whether the states at the end of the training part are available.

    Raises
    ------
    ValueError
        `wanted` leaves one of the parts empty, or is none of these.
    """
    axis, share, warmup = _read(wanted)
    if axis == "sequences":
        if data.count < 2:
            raise ValueError(
                "validation by sequences needs at least 2, but there is 1: validate by time, as "
                'with validation={"time": 0.2}'
            )
        count = data.count - _number(share, data.count, "sequences")
        if data.order is None:
            whole = 0, data.steps
            return data.part(*whole, 0, count), Validation(data.part(*whole, count, data.count))
        assert data.lengths is not None
        parts = [
            data.cut(which, np.zeros(len(which), np.int64), data.lengths[which])
            for which in (np.flatnonzero(data.order < count), np.flatnonzero(data.order >= count))
        ]
        return parts[0], Validation(parts[1])
    if warmup is None and not carries:
        raise ValueError(
            "validation by time continues from the states at the end of the training part, which "
            'do not exist with spec.fold, with spec.shard="time", or with sequences of different '
            'lengths: say how many steps to warm up: validation={"time": 0.2, "warmup": 50}'
        )
    if data.order is None:
        end = data.steps - _number(share, data.steps, "time steps")
        begin = end - (warmup or 0)
        _check_warmup(warmup or 0, end)
        held_out = data.part(begin, data.steps, 0, data.count)
        validation = Validation(held_out, warmup is None, end - begin)
        return data.part(0, end, 0, data.count), validation
    return _by_own_time(data, share, warmup or 0)


def _by_own_time(data: Sequences, share: Any, warmup: int) -> tuple[Sequences, Validation]:
    """Split each sequence in time by its own length."""
    lengths = data.lengths
    assert lengths is not None
    _number(share, int(lengths.max()), "time steps")
    out = np.floor(lengths * share) if isinstance(share, float) else np.minimum(share, lengths)
    ends = lengths - out.astype(np.int64)
    _check_warmup(warmup, int(ends.min()))
    everything = np.arange(data.count)
    training = data.cut(everything, np.zeros_like(ends), ends)
    return training, Validation(data.cut(everything, ends - warmup, lengths), False, warmup)


def _check_warmup(warmup: int, before: int) -> None:
    """Raise if a sequence has fewer than `warmup` time steps before its validation part."""
    if before < warmup:
        raise ValueError(
            f"validation: a warm-up of {warmup} steps needs as many before the validation part, "
            f"but one sequence has {before}"
        )


def _read(wanted: object) -> tuple[str, Any, int | None]:
    if isinstance(wanted, numbers.Real) and not isinstance(wanted, bool):
        return "sequences", wanted, None
    axes = ("sequences", "time")
    if isinstance(wanted, Mapping):
        keys = set(wanted)
        axis = next((axis for axis in axes if axis in keys), None)
        allowed = {axis, "warmup"} if axis == "time" else {axis}
        if axis is not None and keys <= allowed:
            warmup = wanted.get("warmup")
            if warmup is not None and (
                isinstance(warmup, bool) or not isinstance(warmup, numbers.Integral) or warmup < 0
            ):
                raise ValueError(f"validation's warmup must be a number of steps, got {warmup!r}")
            return axis, wanted[axis], None if warmup is None else int(warmup)
    raise ValueError(
        "validation must be (x, y) or (x, y, w), a fraction or number of sequences, or a dict such "
        f'as {{"time": 0.2}}, {{"time": 500, "warmup": 50}} or {{"sequences": 12}}, got '
        f"{_short(wanted)}"
    )


def _short(wanted: object) -> str:
    return repr(wanted) if len(repr(wanted)) <= 80 else f"a {type(wanted).__name__}"


def _number(share: object, whole: int, what: str) -> int:
    """Return a fraction or a number as a number out of `whole`; neither 0 nor all."""
    if isinstance(share, bool) or not isinstance(share, numbers.Real):
        raise TypeError(f"validation must be a fraction or a number of {what}, got {share!r}")
    if isinstance(share, numbers.Integral):
        number = int(share)
    elif 0 < float(share) < 1:
        number = min(max(round(whole * float(share)), 1), whole - 1)
    else:
        raise ValueError(f"validation must be between 0 and 1, or a whole number, got {share!r}")
    if not 0 < number < whole:
        raise ValueError(
            f"validation on {number} of {whole} {what} leaves nothing to train or to validate on"
        )
    return number
