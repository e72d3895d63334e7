"""NaN and infinities in the data: reported, or treated as missing values."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._util.tree import Tree, tree_map, tree_paths
from ..errors import NonFiniteError
from .chunk_reader import Slab

__all__ = ["fill_inputs", "fill_step", "fill_targets", "refuse_nonfinite"]


def refuse_nonfinite(slabs: list[Slab], place: Callable[[int, int], tuple[int, int]]) -> None:
    """Raise if slabs of a chunk hold NaN or infinities.

    Parameters
    ----------
    slabs
        The chunk's data.
    place
        Returns the user's time step and sequence of a place in the chunk.

    Raises
    ------
    NonFiniteError
        The message names the first place.
    """
    for slab in slabs:
        bad = slab.missing() if slab.data.is_floating_point() else None
        if bad is not None:
            raise NonFiniteError(_place(place, slab, bad))


def fill_inputs(slabs: list[Slab]) -> Tensor | None:
    """Replace missing inputs by 0; return which samples have any inputs, or None if all do."""
    missing = _fill(slabs)
    if any(bad is None for bad in missing):
        return None
    some = torch.stack([~bad.flatten(2).all(2) for bad in missing if bad is not None]).any(0)
    return None if bool(some.all()) else some


def fill_targets(
    slabs: list[Slab], *, numbers: bool = True
) -> tuple[Tensor | None, list[Tensor] | None]:
    """Replace missing targets by 0: missing labels, and if `numbers`, NaN and infinities.

    Returns
    -------
    tuple
        Which samples have any targets, ``(S, B)``, or None if nothing is missing; and, if some
        samples have only some of their targets, which ones, ``(S, B, K)`` for each slab.
    """
    looked_at = [slab for slab in slabs if numbers or not slab.data.is_floating_point()]
    found = dict(zip(map(id, looked_at), _fill(looked_at), strict=True))
    missing = [found.get(id(slab)) for slab in slabs]
    if all(bad is None for bad in missing):
        return None, None
    each = [
        torch.ones_like(slab.data, dtype=torch.bool) if bad is None else ~bad
        for slab, bad in zip(slabs, missing, strict=True)
    ]
    some = torch.stack([known.flatten(2).any(2) for known in each]).any(0)
    whole = torch.stack([known.flatten(2).all(2) for known in each]).all(0)
    return some, None if torch.equal(some, whole) else each


def _fill(slabs: list[Slab]) -> list[Tensor | None]:
    missing = [slab.missing() for slab in slabs]
    for slab, bad in zip(slabs, missing, strict=True):
        if bad is not None:
            slab.blank(bad)
    return missing


def fill_step(xs: Tree, nan: str) -> Tree:
    """Treat NaN in the input of one time step, ``(N, F)``, as in chunks; see `Spec`.

    Raises
    ------
    NonFiniteError
        `nan` is ``"raise"`` and there are NaN or infinities.
    """
    if nan == "keep":
        return xs
    names = iter([name for name, _ in tree_paths(xs, "x")])

    def fill(values: Tensor) -> Tensor:
        name = next(names)
        if math.isfinite(values.sum().item()):
            return values
        bad = ~values.isfinite()
        if nan == "mask" or not bool(bad.any()):  # a sum may overflow
            return values.masked_fill(bad, 0)
        first = [int(i) for i in bad.nonzero()[0]]
        value = float(values[tuple(first)])
        raise NonFiniteError(_message(name, value, "at this step", first[0], first[1:], bad))

    return tree_map(fill, xs)


def _place(place: Callable[[int, int], tuple[int, int]], slab: Slab, bad: Tensor) -> str:
    first = [int(i) for i in bad.nonzero()[0]]
    step, sequence = place(first[0], first[1])
    sequence = slab.source.original(sequence)
    value = float(slab.data[tuple(first)])
    return _message(slab.source.name, value, f"at step {step}", sequence, first[2:], bad)


def _message(
    name: str, value: float, where: str, sequence: int, feature: list[int], bad: Tensor
) -> str:
    kind = "NaN" if value != value else f"{value:g}"
    at = f", feature {', '.join(map(str, feature))}" if feature else ""
    return (
        f"{name} holds {kind} {where}, sequence {sequence}{at} (there are "
        f"{int(torch.count_nonzero(bad))} such values here): treat them as missing with "
        'spec.nan="mask", or pass them on to the model with spec.nan="keep"'
    )
