"""Mean and deviation of every feature of streamed data."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...distributed import Communicator

__all__ = ["Array", "Moments", "sample_rows"]

Array: TypeAlias = np.ndarray

# Elements per piece, which stay in a core's cache, and per row: few rows, so that plain sums are
# accurate; wide rows, so that they are fast.
_PIECE, _WIDTH = 2**18, 2**9
_RANGE = 1e-30, 1e38  # where a sum of squares has all digits of fp32


class Moments:
    """Mean and variance of every feature, ignoring NaN.

    Pieces are centred and merged as in Chan, Golub and LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances" (1979), in fp64. Within a piece, differences from a
    value near their mean are summed in the dtype of the data: large offsets and very large or small
    numbers do no harm.

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
        self._shift = np.zeros(width)  # subtracted before summing

    def update(self, slab: Tensor, counts: Tensor | None = None) -> None:
        """Add samples.

        Parameters
        ----------
        slab
            ``(S, B, F, …)`` of any floats; on the CPU.
        counts
            ``(S, B)``, true where a sample counts; None: all do.
        """
        rows = sample_rows(slab, self._features)
        if not rows.size:
            return
        keep = None if counts is None else counts.reshape(-1).numpy()
        step = max(1, _PIECE // rows.shape[1])
        with np.errstate(invalid="ignore", over="ignore"):  # infinite values show in the result
            for i in range(0, len(rows), step):
                self._add(rows[i : i + step], None if keep is None else keep[i : i + step])

    def _add(self, piece: Array, keep: Array | None) -> None:
        for _ in range(2):
            row = self._shift.astype(piece.dtype)
            count, s, q = _sums(_difference(piece, row), keep)
            mean = s / np.maximum(count, 1)
            m2 = np.maximum(q - s * mean, 0)
            center = row + mean
            if not (count * mean * mean > 4 * m2).any():
                break  # the squares were not dominated by the mean
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
        """Merge the samples of all ranks. Collective; bitwise equal on all ranks."""
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
        """Return the population standard deviation, ``(F, …)`` flattened."""
        return np.sqrt(self.m2 / np.maximum(self.count, 1))


def sample_rows(slab: Tensor, features: tuple[int, ...]) -> Array:
    """Return the samples of a slab as rows, in fp32 or fp64."""
    samples = slab.shape[: slab.dim() - len(features)].numel()
    rows = slab.detach().reshape(samples, math.prod(features))
    return (rows if rows.dtype in (torch.float32, torch.float64) else rows.float()).numpy()


# NumPy uses one core: the sums are bitwise equal for any number of threads, and do not compete for
# cores with the reading thread.


def _wide(rows: Array) -> tuple[Array, Array]:
    """Return rows reshaped to fewer, wider ones, and those left over."""
    many = max(1, _WIDTH // rows.shape[1])
    whole = len(rows) // many * many
    return rows[:whole].reshape(whole // many, many * rows.shape[1]), rows[whole:]


def _difference(piece: Array, row: Array) -> Array:
    d = np.empty(piece.shape, piece.dtype)
    (wide, rest), (wide_d, rest_d) = _wide(piece), _wide(d)
    np.subtract(wide, np.tile(row, wide.shape[1] // row.size), out=wide_d)
    np.subtract(rest, row, out=rest_d)
    return d


def _sum(rows: Array) -> Array:
    """Return the sum of each column, fp64."""
    wide, rest = _wide(rows)
    several = wide.sum(0, dtype=rows.dtype).reshape(-1, rows.shape[1])
    sums: Array = several.sum(0, dtype=np.float64) + rest.sum(0, dtype=np.float64)
    return sums


def _sums(d: Array, keep: Array | None) -> tuple[Array, Array, Array]:
    """Return each column's number of values, their sum, and the sum of their squares."""
    count = np.full(d.shape[1], len(d) if keep is None else keep.sum(), np.float64)
    if keep is not None:
        d *= keep[:, None]
    s = _sum(d)
    if not np.isfinite(s).all():
        there = np.empty(d.shape, f"i{d.itemsize}")
        np.equal(d, d, out=there)  # not NaN
        if keep is not None:
            there *= keep[:, None]
        count = _sum(there)
        bits = d.view(there.dtype)
        bits *= there  # NaN times 0 is NaN, but its bits times 0 are 0
        s = _sum(d)
    q = _sum(np.square(d))
    if d.dtype != np.float64:
        odd = ~((q > _RANGE[0]) & (q < _RANGE[1]))  # squares may leave the range of fp32
        if odd.any():
            columns = d[:, odd].astype(np.float64)
            s[odd], q[odd] = columns.sum(0), np.square(columns).sum(0)
    return count, s, q
