"""NaN and infinities in the data: found, and named or masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..tree import tree_leaves
from .chunks import Chunk
from .reader import Slab

if TYPE_CHECKING:
    from .sequences import Sequences

__all__ = ["mark_nonfinite"]


def mark_nonfinite(
    data: Sequences, chunk: Chunk, slabs: list[Slab], counts: Tensor | None, ws: Tensor | None
) -> Tensor | None:
    """Find NaN and infinities in samples that count.

    Parameters
    ----------
    data
        Whose chunk it is.
    chunk
        The chunk.
    slabs
        Its inputs, then its targets.
    counts, ws
        Which samples count, and their weights; None: all.

    Returns
    -------
    Tensor or None
        Which samples count, ``(S, B)``, without those found.

    Raises
    ------
    NonFiniteError
        `data` does not want them masked: the message names the first place.
    """
    targets = {id(source) for source in tree_leaves(data.y)}
    for slab in slabs:
        if not slab.suspect or not slab.data.is_floating_point():
            continue
        bad = ~slab.data.isfinite()
        samples = bad.flatten(2).any(2) if bad.dim() > 2 else bad
        if counts is not None:
            samples = samples & counts
        if ws is not None and id(slab.source) in targets:
            samples = samples & (ws > 0)
        if not bool(samples.any()):
            continue
        if data.nan == "raise":
            raise NonFiniteError(_place(data, chunk, slab, bad, samples))
        counts = ~samples if counts is None else counts & ~samples
    return counts


def _place(data: Sequences, chunk: Chunk, slab: Slab, bad: Tensor, samples: Tensor) -> str:
    bad = bad & samples.reshape(*samples.shape, *(1,) * (bad.dim() - 2))
    first = [int(i) for i in bad.nonzero()[0]]
    value = float(slab.data[tuple(first)])
    step, sequence = data.place(chunk, first[0], first[1])
    feature = f", feature {', '.join(map(str, first[2:]))}" if first[2:] else ""
    kind = "NaN" if value != value else f"{value:g}"
    return (
        f"{slab.source.name} holds {kind} at step {step}, sequence {sequence}{feature} (there are "
        f"{int(torch.count_nonzero(bad))} such values in this chunk): leave such samples out with "
        'spec.nan="mask", or pass them on to the model with spec.nan="keep"'
    )
