"""Models that look ids up, such as those of words: they get integers as they are."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor, nn

from .._util.torch_internals import uncompiled

__all__ = ["no_padding", "number_of_ids", "padding_id"]


def number_of_ids(module: object) -> int | None:
    """Return how many ids a model knows, from 0 on; None: it takes numbers.

    That is the attribute ``num_embeddings``, as `torch.nn.Embedding` has it, of the model, of the
    first of layers in sequence, or of a builder.

    Examples
    --------
    >>> number_of_ids(nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 1)))
    100
    >>> number_of_ids(nn.Linear(8, 1)) is None
    True
    """
    return _number(module, "num_embeddings")


def padding_id(module: object) -> int | None:
    """Return the id that a model takes for padding at the ends, unless it is told lengths.

    That is the attribute ``pad_token_id``, found as in `number_of_ids`; None: there is none. Data
    with lengths tell them to such a model even where no sequence ends.

    Examples
    --------
    >>> padding_id(nn.Embedding(100, 8)) is None
    True
    """
    return _number(module, "pad_token_id")


def no_padding(ids: Tensor, pad: int) -> Tensor:
    """Return which ids, ``(T, N)``, are in no run of `pad` at the start or the end.

    Of nothing but `pad` the first id counts.

    Examples
    --------
    >>> no_padding(torch.tensor([[0, 3, 0, 4, 0], [0, 0, 0, 0, 0]]).T, pad=0).int().T
    tensor([[0, 1, 1, 1, 0],
            [1, 0, 0, 0, 0]], dtype=torch.int32)
    """
    words = ids != pad
    begun = words.int().cummax(0).values
    not_over = words.flip(0).int().cummax(0).values.flip(0)
    first = torch.arange(len(ids), device=ids.device).unsqueeze(1) == 0
    return (begun * not_over).bool() | (first & ~words.any(0))


def _number(module: object, name: str) -> int | None:
    """Return a number that a model, the first of layers in sequence, or a builder has."""
    if isinstance(module, nn.Module):
        module = uncompiled(module)
    own = getattr(module, name, None)
    if isinstance(own, Integral) and not isinstance(own, bool):
        return int(own)
    if isinstance(module, nn.Sequential) and len(module):
        return _number(module[0], name)
    return None
