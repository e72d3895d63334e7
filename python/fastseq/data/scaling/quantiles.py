"""Quantiles of every feature of data that stream by."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from torch import Tensor

from ...distributed import Communicator
from .moments import Array, sample_rows

__all__ = ["Quantiles"]


class Quantiles:
    """Quantiles of every feature, ignoring NaN: exact for few samples, else close.

    A buffer of samples is sorted when it is full, and `points` of equal distance in rank are kept
    of it. Two such summaries become one of the same size, and stand one level higher, as in
    Manku, Rajagopalan and Lindsay, "Approximate medians and other quantiles in one pass and with
    limited memory" (1998), and Karnin, Lang and Liberty, "Optimal quantile approximation in
    streams" (2016). Each level takes the earlier and the later of two neighbours by turns, so
    there is no chance in it: the same samples in the same order give the same bits.

    The rank of what is returned, as a part of all samples, is wrong by at most about
    ``levels / (2 · points)``, and typically by less than ``1 / points``.

    Parameters
    ----------
    features
        The shape of one sample, ``(F, …)``.

    Attributes
    ----------
    exact
        How many samples give exact quantiles: 65536 of up to 64 features, fewer of more.
    points
        What is kept of more of them, per level.

    Examples
    --------
    >>> quantiles = Quantiles((1,))
    >>> quantiles.update(torch.arange(5.0).view(5, 1, 1))
    >>> quantiles.at([0.5, 0.9])
    array([[2. ],
           [3.6]])
    """

    def __init__(self, features: tuple[int, ...]) -> None:
        self._features = features
        self._width = math.prod(features)
        self.exact = min(2**16, max(2**11, 2**22 // max(self._width, 1)))
        self.points = min(2**12, self.exact // 4)
        self._pending: Array = np.empty((self._width, 0), np.float32)
        self._filled = 0
        # Per level: nothing, or values (F, points) in ascending order and how many samples each
        # of a feature's stands for, (F, 1); and how often two have become one there.
        self._levels: list[tuple[Array, Array] | None] = []
        self._merges: list[int] = []

    def update(self, slab: Tensor, counts: Tensor | None = None) -> None:
        """Take more samples in, as `Moments.update` does."""
        rows = sample_rows(slab, self._features)
        if counts is not None:
            rows = rows[counts.reshape(-1).numpy()]
        self._append(rows.T)

    def _append(self, columns: Array) -> None:
        dtype = np.result_type(self._pending, columns)
        while columns.shape[1]:
            if self._filled == self.exact:
                self._push(0, _summary(self._pending, self.points))
                self._filled = 0
            room = self._room(self._filled + columns.shape[1], dtype)
            taken = min(room.shape[1], columns.shape[1])
            room[:, :taken] = columns[:, :taken]
            self._filled += taken
            columns = columns[:, taken:]

    def _room(self, wanted: int, dtype: Any) -> Array:
        """Return the free part of the buffer, which grows with the first samples."""
        old = self._pending
        if old.dtype != dtype or min(wanted, self.exact) > old.shape[1]:
            length = max(old.shape[1], min(self.exact, 2 * wanted))
            self._pending = np.empty((self._width, length), dtype)
            self._pending[:, : self._filled] = old[:, : self._filled]
        return self._pending[:, self._filled :]

    def _push(self, level: int, summary: tuple[Array, Array]) -> None:
        while True:
            while level >= len(self._levels):
                self._levels.append(None)
                self._merges.append(0)
            other = self._levels[level]
            if other is None:
                self._levels[level] = summary
                return
            summary = _halved(other, summary, later=self._merges[level] % 2 == 1)
            self._levels[level] = None
            self._merges[level] += 1
            level += 1

    def merge(self, comm: Communicator) -> None:
        """Take the samples of all ranks together. Collective; the same bits on all ranks."""
        if comm.size == 1:
            return
        mine = self._to_bytes()
        self._levels, self._merges, self._filled = [], [], 0
        for root in range(comm.size):
            self._take(comm.broadcast_bytes(mine if root == comm.rank else b"", root))

    def _to_bytes(self) -> bytes:
        parts = {"pending": self._pending[:, : self._filled]}
        for level, summary in enumerate(self._levels):
            if summary is not None:
                parts[f"values{level}"], parts[f"weight{level}"] = summary
        stream = io.BytesIO()
        np.savez(stream, **parts)  # type: ignore[arg-type]
        return stream.getvalue()

    def _take(self, data: bytes) -> None:
        with np.load(io.BytesIO(data), allow_pickle=False) as parts:
            for key in parts:
                if key.startswith("values"):
                    level = key.removeprefix("values")
                    self._push(int(level), (parts[key], parts[f"weight{level}"]))
            self._append(parts["pending"])

    def at(self, fractions: list[float]) -> Array:
        """Return the quantiles, fp64 ``(len(fractions), F…)``, flattened; NaN where all are NaN.

        Between samples they are interpolated, as `numpy.nanquantile` does.
        """
        found = np.full((len(fractions), self._width), np.nan)
        pending = self._pending[:, : self._filled]
        for f in range(self._width):
            values, weights = [pending[f]], [np.ones(self._filled)]
            for level in self._levels:
                if level is not None:
                    values.append(level[0][f])
                    weights.append(np.broadcast_to(level[1][f], self.points))
            value, weight = np.concatenate(values), np.concatenate(weights)
            there = ~np.isnan(value)
            value, weight = value[there].astype(np.float64), weight[there]
            if value.size:
                order = np.argsort(value, kind="stable")
                # A value that stands for w samples lies in the middle of their w ranks.
                last = np.cumsum(weight[order])
                middle = last - (weight[order] + 1) / 2
                ranks = np.array(fractions) * (last[-1] - 1)
                found[:, f] = np.interp(ranks, middle, value[order])
        return found


def _summary(samples: Array, points: int) -> tuple[Array, Array]:
    """Sort the samples in place; return values of equal distance in rank, and their weight."""
    samples.sort(axis=1)  # NaN last
    count = samples.shape[1] - np.isnan(samples).sum(1, keepdims=True)
    picked = ((np.arange(points) + 0.5) / points * count).astype(np.int64)
    return np.take_along_axis(samples, picked, 1), count / points


def _halved(
    one: tuple[Array, Array], other: tuple[Array, Array], *, later: bool
) -> tuple[Array, Array]:
    """Return the summary, of the size of one, of what two stand for."""
    points = one[0].shape[1]
    values = np.concatenate([one[0], other[0]], 1)
    total = one[1] + other[1]
    if np.array_equal(one[1], other[1]):  # usual, without NaN: every second value
        values.sort(axis=1, kind="stable")
        return values[:, int(later) :: 2].copy(), total
    order = np.argsort(values, axis=1, kind="stable")  # merges what is sorted
    weights = np.where(order < points, one[1], other[1])
    weights[total[:, 0] == 0] = 0.5  # nothing but NaN: any will do
    last = np.cumsum(weights, 1)
    # Of ranks a whole weight apart, how many lie below the end of each value's: where there is one
    # more, that value is taken. None has more than a weight of the summary's.
    below = np.ceil(last * (points / last[:, -1:]) - (0.75 if later else 0.25))
    taken = np.diff(below, axis=1, prepend=0) > 0
    return np.take_along_axis(values, order, 1)[taken].reshape(-1, points), total
