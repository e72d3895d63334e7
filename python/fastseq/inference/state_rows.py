"""Take the states of some sequences out of a state of all, and put them back."""

from __future__ import annotations

import torch
from torch import Tensor

from .._util.tree import Tree, tree_map

__all__ = ["put_rows", "take_rows"]


def take_rows(state: Tree, dims: Tree, index: Tensor) -> Tree:
    """Return a copy of the state of the sequences in `index`.

    Parameters
    ----------
    state
        A state of all sequences; None: a fresh one.
    dims
        The dimension of the sequences, as from `stateful.batch_dims`. Parts that all sequences
        share are returned unchanged.
    index
        Integers, ``(B,)``.

    Examples
    --------
    >>> take_rows(torch.tensor([[1.0, 2.0, 3.0]]), 1, torch.tensor([2, 0]))
    tensor([[3., 1.]])
    """
    index = index.to(_device(state))
    return tree_map(lambda a, dim: a if dim < 0 else a.index_select(dim, index), state, dims)


def put_rows(into: Tree, dims: Tree, index: Tensor, rows: Tree, count: int) -> Tree:
    """Write the state of some sequences into a state of all, in place, and return it.

    Parameters
    ----------
    into
        A state of all sequences; None: a new one, zero for all other sequences.
    dims, index
        As in `take_rows`.
    rows
        The state of the sequences in `index`.
    count
        The number of all sequences.

    Raises
    ------
    ValueError
        The states of different sequences have different shapes.
    """
    index = index.to(_device(rows))

    def room(a: Tensor, dim: int) -> Tensor:
        return a if dim < 0 else a.new_zeros([*a.shape[:dim], count, *a.shape[dim + 1 :]])

    def put(a: Tensor, dim: int, r: Tensor) -> Tensor:
        if dim < 0:
            return r
        if (*a.shape[:dim], *a.shape[dim + 1 :]) != (*r.shape[:dim], *r.shape[dim + 1 :]):
            raise ValueError(
                "a state that grows with time cannot be kept for sequences of different lengths: "
                f"it has the shape {tuple(r.shape)} for some and {tuple(a.shape)} for others"
            )
        return a.index_copy_(dim, index, r.to(a.dtype))

    return tree_map(put, tree_map(room, rows, dims) if into is None else into, dims, rows)


def _device(state: Tree) -> torch.device:
    devices: list[torch.device] = []
    tree_map(lambda a: devices.append(a.device), state)
    return devices[0] if devices else torch.device("cpu")
