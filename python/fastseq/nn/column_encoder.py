"""Columns of numbers and of categories as features of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ColumnEncoder"]

_SPREAD = 0.1  # of embeddings at the start


def _embedding_size(categories: int) -> int:
    """Return the size of the embedding of a column: ``min(50, round(1.6 · n^0.56))``.

    Without the upper bound this is fastai's rule.

    Examples
    --------
    >>> [_embedding_size(count) for count in (1, 2, 7, 168, 10_000)]
    [2, 2, 5, 28, 50]
    """
    size: int = round(1.6 * categories**0.56)
    return min(50, size)


class ColumnEncoder(nn.Module):
    """Return numbers unchanged, followed by the embeddings of categories.

    Categories are codes from 1 on. The embedding of code 0, for categories not seen in training, is
    zero and stays so. Maps rows ``(…, C)``, C = steps · columns + columns beside, which hold codes
    as floating-point numbers, to ``(…, features)``.

    Parameters
    ----------
    sizes
        Number of categories of each column; 0: it holds numbers.
    steps
        How often these columns come, one time step after the other; all steps share embeddings.
    beside
        The same of columns that come once, after all steps.

    Attributes
    ----------
    features
        Number of features returned.

    Raises
    ------
    IndexError
        In a call: a code is negative, or above the number of its column's categories; or there are
        fewer columns than `sizes` say.

    Examples
    --------
    >>> encode = ColumnEncoder((0, 3))
    >>> encode.features, encode(torch.tensor([[0.5, 0.0]]))
    (4, tensor([[0.5000, 0.0000, 0.0000, 0.0000]], grad_fn=<CatBackward0>))
    """

    def __init__(self, sizes: Sequence[int], steps: int = 1, beside: Sequence[int] = ()) -> None:
        super().__init__()
        self.sizes: tuple[int, ...] = tuple(sizes)
        self.steps: int = steps
        self.beside: tuple[int, ...] = tuple(beside)
        self.columns: int = len(self.sizes)
        every = (*self.sizes * steps, *self.beside)
        self._numbers = [place for place, size in enumerate(every) if not size]
        ends, first = self.columns * steps, self.columns
        places = [list(range(column, ends, first)) for column in range(first)]
        places += [[place] for place in range(ends, len(every))]
        kinds = [size for size in (*self.sizes, *self.beside) if size]
        self._categories = [place for place in places if every[place[0]]]
        self.embed: nn.ModuleList = nn.ModuleList(
            nn.Embedding(size + 1, _embedding_size(size), padding_idx=0) for size in kinds
        )
        with torch.no_grad():
            for layer in self.embed:
                assert isinstance(layer.weight, Tensor)
                layer.weight *= _SPREAD
        self.features: int = len(self._numbers) + sum(
            len(place) * _embedding_size(size)
            for place, size in zip(self._categories, kinds, strict=True)
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Encode columns ``(…, C)``; return ``(…, features)``."""
        if not self._categories:
            return rows
        parts = [rows[..., self._numbers]]
        for places, embed in zip(self._categories, self.embed, strict=True):
            parts.append(embed(rows[..., places].long()).flatten(-2))
        return torch.cat(parts, -1)

    def extra_repr(self) -> str:
        """Return how `repr` shows the arguments."""
        more = f", steps={self.steps}, beside={self.beside}"
        return f"{self.sizes}{more if self.steps > 1 or self.beside else ''}"
