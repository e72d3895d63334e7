"""Integers in inputs: ids that a model does not know, and numbers that its dtype would round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._util.tree import Tree, tree_paths
from .chunk_reader import Slab
from .sources import largest, rounds

__all__ = ["check_inputs", "check_step", "refuse_numbers"]


def check_inputs(
    slabs: list[Slab], ids: int | None, place: Callable[[int, int], tuple[int, int]]
) -> None:
    """Raise if inputs of a chunk hold integers that the model must not get.

    Parameters
    ----------
    slabs
        The chunk's inputs.
    ids
        How many ids the model knows, see `fastseq.nn.token_ids`; None: it takes numbers.
    place
        Returns the user's time step and sequence of a place in the chunk.

    Raises
    ------
    ValueError
        An id is unknown; or an integer is so large that the model's dtype might not hold it. The
        message names the first place.
    """
    for slab in slabs:
        bad = _bad(slab.data, ids, wide=slab.source.rounds)
        if bad is None or not bool(bad.any()):
            continue
        first = [int(i) for i in bad.nonzero()[0]]
        step, sequence = place(first[0], first[1])
        where = f"at step {step}, sequence {slab.source.original(sequence)}"
        value = slab.data[tuple(first)]
        raise _error(slab.source.name, value, where, ids, most=slab.source.largest)


def check_step(xs: Tree, ids: int | None, dtype: torch.dtype, *, scaled: bool) -> None:
    """Check inputs of one time step, ``(N, F)``, as `check_inputs` does.

    Parameters
    ----------
    xs
        The inputs, of any dtypes.
    ids
        As in `check_inputs`.
    dtype
        The model's.
    scaled
        Whether inputs will be scaled.

    Raises
    ------
    TypeError
        The model takes ids, but there are no integers.
    ValueError
        As in `check_inputs`.
    """
    named = list(tree_paths(xs, "x"))
    if ids is not None:
        refuse_numbers([(name, a.dtype) for name, a in named], ids)
    for name, a in named:
        wide = ids is None and not scaled and rounds(largest(a.dtype), dtype)
        most = largest(a.dtype)
        values = a.to(dtype) if wide else a if a.is_floating_point() else a.long()
        bad = _bad(values, ids, wide=wide)
        if bad is not None and bool(bad.any()):
            first = [int(i) for i in bad.nonzero()[0]]
            where = f"at this step, sequence {first[0]}"
            raise _error(name, values[tuple(first)], where, ids, most=most)


def refuse_numbers(named: list[tuple[str, torch.dtype]], ids: int) -> None:
    """Raise TypeError for a model that takes ids, if no input holds integers."""
    if not any(not dtype.is_floating_point for _, dtype in named):
        name, dtype = named[0]
        raise TypeError(
            f"{name} must hold integers, as the model looks up {ids} ids, got {dtype}: pass them "
            "as they are, neither scaled nor converted"
        )


def _bad(data: Tensor, ids: int | None, *, wide: bool) -> Tensor | None:
    """Return which elements must not reach the model; None: none can be wrong."""
    if not data.is_floating_point():
        return None if ids is None else (data < 0) | (data >= ids)
    return data.abs() >= 2 / torch.finfo(data.dtype).eps if wide else None


def _error(name: str, value: Tensor, where: str, ids: int | None, *, most: int) -> ValueError:
    """Return the error for a value; `most` is the largest that its stored dtype has."""
    if ids is not None and not value.is_floating_point():
        number = int(value)
        if number < 0 and most > torch.iinfo(torch.int64).max:  # int64 has no such number
            number += 2**64
        return ValueError(
            f"{name} holds the id {number} {where}, but the model knows {ids} ids, from 0 to "
            f"{ids - 1}: use the vocabulary that it was made for"
        )
    dtype = str(value.dtype).removeprefix("torch.")
    return ValueError(
        f"{name} holds an integer of about {float(value):.10g} {where}, which {dtype} may round: a "
        "model that looks ids up gets them exactly if it has the attribute num_embeddings; scale "
        "other numbers, or pass them as floats"
    )
