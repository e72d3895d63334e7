"""Send trees of tensors from one rank to all."""

from __future__ import annotations

import json

import torch

from .._util.tree import Tree
from ..distributed import Communicator
from .encoding import decode, encode

__all__ = ["broadcast_tree", "gather_trees"]


def broadcast_tree(tree: Tree, comm: Communicator, root: int = 0) -> Tree:
    """Return rank `root`'s tree, of anything that `encode` takes, on all ranks. Collective.

    Examples
    --------
    >>> import fastseq as fs
    >>> broadcast_tree({"a": 1}, fs.distributed.Communicator())
    {'a': 1}
    """
    if comm.size == 1:
        return tree
    sends = comm.rank == root
    tensors, text = encode(tree) if sends else ({}, "")
    about = [[name, str(a.dtype).removeprefix("torch."), a.shape] for name, a in tensors.items()]
    text, about = json.loads(comm.broadcast_bytes(json.dumps([text, about]).encode(), root))
    for name, dtype, shape in about:
        if not sends:
            tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
        if tensors[name].numel():
            comm.broadcast_(tensors[name], root)
    return tree if sends else decode(text, tensors)


def gather_trees(tree: Tree, comm: Communicator) -> list[Tree]:
    """Return all ranks' trees, in order. Collective."""
    return [broadcast_tree(tree, comm, root) for root in range(comm.size)]
