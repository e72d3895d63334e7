"""Statistics per feature of data that stream by: moments, and quantiles by a mergeable sketch."""

from __future__ import annotations

import io
import math
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..distributed import Communicator

__all__ = ["Moments", "Quantiles"]

_PIECE = 2**19  # elements: few enough for caches, many enough to hide the cost of calls
_RANGE = 1e-30, 1e38  # in which a sum of squares has all digits of fp32

Array: TypeAlias = np.ndarray[Any, Any]


class Moments:
    """Mean and variance of every feature, ignoring NaN.

    Pieces are centred and merged as in Chan, Golub and LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances" (1979), in fp64. Within a piece, the sums are taken
    in the dtype of the data, of differences from a value near their mean: neither a large offset
    nor very large or small numbers harm them.

    Parameters
    ----------
    features
        The shape of one sample, ``(F, …)``.

    Attributes
    ----------
    count, mean, m2
        Samples, their mean, and the sum of squared differences from it: fp64 arrays,
        ``(F, …)`` flattened.

    Examples
    --------
    >>> moments = Moments((2,))
    >>> moments.update(torch.tensor([[[1.0, 5.0]], [[3.0, torch.nan]]]))
    >>> moments.mean, moments.deviation()
    (array([2., 5.]), array([1., 0.]))
    """

    def __init__(self, features: tuple[int, ...]) -> None:
        self._features = features
        width = math.prod(features)
        self.count, self.mean, self.m2 = np.zeros((3, width))
        # What is subtracted before summing: NaN until a feature has a value.
        self._shift = np.full(width, np.nan)

    def update(self, slab: Tensor, counts: Tensor | None = None) -> None:
        """Take more samples in.

        Parameters
        ----------
        slab
            ``(S, B, F, …)`` of any floats; on the CPU.
        counts
            ``(S, B)``, true where a sample counts; None: all do.
        """
        rows = _rows(slab, self._features)
        if not rows.numel():
            return
        keep = None if counts is None else counts.reshape(-1, 1)
        step = max(1, _PIECE // rows.shape[1])
        with np.errstate(invalid="ignore", over="ignore"):  # infinite values show in the end
            for i in range(0, len(rows), step):
                self._add(rows[i : i + step], None if keep is None else keep[i : i + step])

    def _add(self, piece: Tensor, keep: Tensor | None) -> None:
        unseen = np.isnan(self._shift)
        if unseen.any():
            self._shift[unseen] = _first(piece[:, torch.from_numpy(unseen)], keep)
        for _ in range(2):
            row = torch.from_numpy(np.nan_to_num(self._shift)).to(piece.dtype)
            count, s, q = _sums(_difference(piece, row), keep)
            mean = s / np.maximum(count, 1)
            m2 = np.maximum(q - s * mean, 0)
            center = row.double().numpy() + mean
            if not (count * mean * mean > 4 * m2).any():
                break  # the differences' squares were not mostly their mean's
            self._shift = np.where((count > 0) & np.isfinite(center), center, self._shift)
        self._merge(count, np.where(count > 0, center, 0), m2)

    def _merge(self, count: Array, mean: Array, m2: Array) -> None:
        total = self.count + count
        part = count / np.maximum(total, 1)
        delta = mean - self.mean
        self.m2 += m2 + delta * delta * self.count * part
        self.mean += delta * part
        self.count = total

    def merge(self, comm: Communicator) -> None:
        """Take the samples of all ranks together. Collective; the same bits on all ranks."""
        if comm.size == 1:
            return
        ranks = torch.zeros(comm.size, 3, self.count.size, dtype=torch.float64)
        ranks[comm.rank] = torch.from_numpy(np.stack([self.count, self.mean, self.m2]))
        comm.allreduce_(ranks, "sum")
        self.count, self.mean, self.m2 = np.zeros((3, self.count.size))
        with np.errstate(invalid="ignore", over="ignore"):
            for rank in ranks.numpy():
                self._merge(*rank)

    def deviation(self) -> Array:
        """Return the standard deviation, of the population, ``(F, …)`` flattened."""
        return np.sqrt(self.m2 / np.maximum(self.count, 1))


def _rows(slab: Tensor, features: tuple[int, ...]) -> Tensor:
    """Return the samples of a slab one below the other, in fp32 or fp64."""
    samples = slab.shape[: slab.dim() - len(features)].numel()
    rows = slab.detach().reshape(samples, math.prod(features))
    return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()


def _first(piece: Tensor, keep: Tensor | None) -> Array:
    """Return every column's first finite value that counts; NaN where there is none."""
    there = piece.isfinite() if keep is None else piece.isfinite() & keep
    first = there.byte().argmax(0, keepdim=True)
    value = piece.gather(0, first)[0].double()
    return torch.where(there.any(0), value, torch.nan).numpy()


def _difference(piece: Tensor, row: Tensor) -> Tensor:
    """Return ``piece - row``; of narrow pieces several rows at a time, which is faster."""
    many = math.gcd(len(piece), 64)
    return (piece.reshape(len(piece) // many, -1) - row.repeat(many)).view_as(piece)


def _sums(d: Tensor, keep: Tensor | None) -> tuple[Array, Array, Array]:
    """Return how many values every column has, their sum, and that of their squares."""
    weight = None if keep is None else keep.to(d.dtype)
    count = np.full(d.shape[1], len(d) if keep is None else int(keep.sum()), np.float64)
    if weight is not None:
        d *= weight
    s = d.sum(0).double().numpy()
    if not np.isfinite(s).all():
        there = torch.eq(d, d, out=torch.empty_like(d))  # into floats: six times as fast
        count = (there if weight is None else there.mul_(weight)).sum(0).double().numpy()
        s = d.nan_to_num_(0.0, torch.inf, -torch.inf).sum(0).double().numpy()
    q = d.square().sum(0).double().numpy()
    if d.dtype != torch.float64:
        odd = ~((q > _RANGE[0]) & (q < _RANGE[1]))  # squares may leave the range of fp32
        if odd.any():
            columns = d[:, torch.from_numpy(odd)].double()
            s[odd], q[odd] = columns.sum(0).numpy(), columns.square().sum(0).numpy()
    return count, s, q


class Quantiles:
    """Quantiles of every feature, ignoring NaN: exact for few samples, else close.

    A buffer of samples is sorted when it is full, and `points` of equal distance in rank are kept
    of it. Two such summaries become one of the same size, and stand one level higher, as in
    Manku, Rajagopalan and Lindsay, "Approximate medians and other quantiles in one pass and with
    limited memory" (1998), and Karnin, Lang and Liberty, "Optimal quantile approximation in
    streams" (2016). Each level takes the earlier and the later of two neighbours by turns, so
    there is no chance in it: the same samples in the same order give the same bits.

    The rank of what is returned is wrong by at most ``levels / (2 · points)``, and typically by
    less than ``1 / points``.

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
        """Take more samples in; see `Moments.update`."""
        rows = _rows(slab, self._features).numpy()
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
    order = np.argsort(values, axis=1, kind="stable")
    weights = np.concatenate([np.broadcast_to(w, v.shape) for v, w in (one, other)], 1)
    last = np.cumsum(np.take_along_axis(weights, order, 1), 1)
    weight = last[:, -1:] / points
    ranks = (np.arange(points) + (0.75 if later else 0.25)) * weight
    found = torch.searchsorted(torch.from_numpy(last), torch.from_numpy(ranks), right=True)
    picked = np.take_along_axis(order, found.clamp_max(2 * points - 1).numpy(), 1)
    return np.take_along_axis(values, picked, 1), weight
