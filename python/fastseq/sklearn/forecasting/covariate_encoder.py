"""Turns columns of covariates into features of a model: embeds categories."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..._util.tree import Tree
from ...nn.column_encoder import ColumnEncoder

__all__ = ["NO_COVARIATES", "CovariateEncoder", "CovariateSizes"]


@dataclasses.dataclass(frozen=True)
class CovariateSizes:
    """Number of categories of each column; 0: it holds numbers.

    Parameters
    ----------
    ahead, past, static
        Columns known ahead, known in the past only, and constant in time.
    """

    ahead: tuple[int, ...] = ()
    past: tuple[int, ...] = ()
    static: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ahead or self.past or self.static)


NO_COVARIATES = CovariateSizes()


class CovariateEncoder(nn.Module):
    """Encode all covariates that a model sees; see `Windows.inputs`.

    Columns known ahead have the same embeddings in the past as in the horizon.

    Parameters
    ----------
    sizes
        The columns.
    lagged
        Whether rows of the past hold, before their own columns, those known ahead.

    Examples
    --------
    >>> encode = CovariateEncoder(CovariateSizes(ahead=(0, 3), static=(5,)), lagged=False)
    >>> x = torch.zeros(7, 2, 4), torch.zeros(7, 2, 3 * 2), torch.zeros(7, 2, 1)
    >>> values, ahead, past, static = encode(x)
    >>> ahead.shape, past, static.shape
    (torch.Size([7, 2, 3, 4]), None, torch.Size([7, 2, 4]))
    """

    def __init__(self, sizes: CovariateSizes, *, lagged: bool) -> None:
        super().__init__()
        self.ahead: ColumnEncoder = ColumnEncoder(sizes.ahead)
        self.past: ColumnEncoder = ColumnEncoder(sizes.past)
        self.static: ColumnEncoder = ColumnEncoder(sizes.static)
        self._both = len(sizes.ahead) if lagged else 0

    def forward(self, x: Tree) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return values unchanged, and the features of covariates, None where there are none.

        Those known ahead are ``(S, B, H, features)``, those of the past ``(S, B, lags, features)``,
        static ones ``(S, B, features)``.
        """
        parts = iter(x)
        values = next(parts)
        ahead = past = static = None
        if self.ahead.columns:
            ahead = self.ahead(next(parts).unflatten(-1, (-1, self.ahead.columns)))
        if self.past.columns or self._both:
            rows = next(parts).unflatten(-1, (-1, self._both + self.past.columns))
            seen = []
            if self._both:
                seen.append(self.ahead(rows[..., : self._both]))
            if self.past.columns:
                seen.append(self.past(rows[..., self._both :]))
            past = seen[0] if len(seen) == 1 else torch.cat(seen, -1)
        if self.static.columns:
            static = self.static(next(parts))
        return values, ahead, past, static
