"""Models that look ids up, such as those of words: they get integers as they are."""

from __future__ import annotations

from numbers import Integral

from torch import nn

from .._util.torch_internals import uncompiled

__all__ = ["number_of_ids"]


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
    if isinstance(module, nn.Module):
        module = uncompiled(module)
    own = getattr(module, "num_embeddings", None)
    if isinstance(own, Integral) and not isinstance(own, bool):
        return int(own)
    if isinstance(module, nn.Sequential) and len(module):
        return number_of_ids(module[0])
    return None
