"""Quantiles of every feature of streamed data."""

from __future__ import annotations

import io
import math

import numpy as np
from torch import Tensor

from ...distributed import Communicator
from .moments import Array, sample_rows

__all__ = ["Quantiles"]


class Quantiles:
    """Quantiles of every feature, ignoring NaN: exact, or from a random subset of many samples.

    Each sample draws a number, and those with the smallest numbers are kept: a uniform choice, also
    when the choices of several ranks are merged, as in Cohen and Kaplan, "Summarizing data using
    bottom-k sketches" (2007). The same samples in the same order give bitwise equal results.

    With more than `exact` samples, the rank of a quantile has a standard error of at most
    ``0.5 / sqrt(exact)`` of all: 0.2 % for up to 64 features.

    Parameters
    ----------
    features
        The shape of one sample, ``(F, …)``.

    Attributes
    ----------
    exact
        How many samples are kept: 65536 for up to 64 features, fewer for more.

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
        self.exact: int = min(2**16, max(2**11, 2**22 // max(self._width, 1)))
        self._numbers: Array = np.empty(0)
        self._rows: Array = np.empty((0, self._width), np.float32)
        self._waiting: list[tuple[Array, Array]] = []
        self._count = 0
        self._generator = np.random.default_rng(0)

    def update(self, slab: Tensor, counts: Tensor | None = None) -> None:
        """Add samples, as `Moments.update` does."""
        rows = sample_rows(slab, self._features)
        if counts is not None:
            rows = rows[counts.reshape(-1).numpy()]
        numbers = self._generator.random(len(rows))
        if len(self._numbers) == self.exact:
            fits = numbers < self._numbers.max()
            numbers, rows = numbers[fits], rows[fits]
        self._waiting.append((numbers, rows.copy()))
        self._count += len(rows)
        if self._count > self.exact:
            self._choose()

    def _choose(self) -> None:
        """Keep the samples with the smallest numbers."""
        parts = [(self._numbers, self._rows), *self._waiting]
        numbers, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
        if len(numbers) > self.exact:
            kept = np.sort(np.argpartition(numbers, self.exact)[: self.exact])
            numbers, rows = numbers[kept], rows[kept]
        self._numbers, self._rows = numbers, rows
        self._waiting, self._count = [], 0

    def merge(self, comm: Communicator) -> None:
        """Merge the samples of all ranks. Collective; bitwise equal on all ranks."""
        if comm.size == 1:
            return
        self._choose()
        stream = io.BytesIO()
        np.savez(stream, numbers=self._numbers, rows=self._rows)
        mine = stream.getvalue()
        self._numbers, self._rows = self._numbers[:0], self._rows[:0]
        for root in range(comm.size):
            found = comm.broadcast_bytes(mine if root == comm.rank else b"", root)
            with np.load(io.BytesIO(found), allow_pickle=False) as parts:
                self._waiting.append((parts["numbers"], parts["rows"]))
        self._choose()

    def at(self, fractions: list[float]) -> Array:
        """Return the quantiles, fp64 ``(len(fractions), F…)``, flattened; NaN where all are NaN.

        They are interpolated between samples, as by `numpy.nanquantile`.
        """
        self._choose()
        found = np.full((len(fractions), self._width), np.nan)
        there = ~np.isnan(self._rows).all(0) if len(self._rows) else np.zeros(self._width, bool)
        if there.any():
            rows = self._rows[:, there].astype(np.float64)
            with np.errstate(invalid="ignore"):  # infinite values show in the result
                found[:, there] = np.nanquantile(rows, fractions, axis=0)
        return found
