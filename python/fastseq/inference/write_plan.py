"""Agree on which rank writes which outputs."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np
from torch import Tensor

from ..distributed.replicas import Replicas
from .destinations import FileTarget, Place, Target, place_of

__all__ = ["Leaf", "agree"]

_TOKEN_BYTES = 16


@dataclasses.dataclass
class Leaf:
    """One array of the output: what the user passed for it, and how it is written.

    `kind` is ``"new"`` if rank 0 was given none, ``"array"`` (in memory, or a map) or
    ``"dataset"``. `shared`: it is in a file to which every rank writes its own part.
    """

    name: str
    part: Any
    target: Target | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        self.kind: str = _kind(self.part)


def _kind(part: object) -> str:
    if part is None:
        return "new"
    members = part if isinstance(part, list | tuple) else [part]
    return "array" if all(isinstance(a, np.ndarray | Tensor) for a in members) else "dataset"


def agree(leaves: list[Leaf], replicas: Replicas) -> None:
    """Find out which files all ranks can write to, and follow rank 0 in all else. Collective.

    To test whether all ranks have the same file, rank 0 writes a random token at the start of the
    outputs, and the others look for it.
    """
    comm = replicas.comm
    comm.barrier()  # all ranks have checked their arguments; from here on files are written
    places = [place_of(leaf.part) for leaf in leaves]
    places = [None if p is None or p.bytes < _TOKEN_BYTES else p for p in places]
    token = os.urandom(_TOKEN_BYTES)
    if replicas.first:
        for leaf, place in zip(leaves, places, strict=True):
            if place is not None:
                leaf.target = FileTarget(place)
                leaf.target.mark(token)
    told = [
        (leaf.kind, None if place is None else dataclasses.asdict(place))
        for leaf, place in zip(leaves, places, strict=True)
    ]
    told = json.loads(comm.broadcast_bytes(json.dumps(told).encode(), 0))
    token = comm.broadcast_bytes(token, 0)
    for leaf, place, (_, of_first) in zip(leaves, places, told, strict=True):
        if not replicas.first and of_first is not None:
            leaf.target = _same_file(leaf.part, place, Place(**of_first), token)
    shared = replicas.in_common([leaf.target is not None for leaf in leaves])
    for leaf, is_shared, (kind, _) in zip(leaves, shared, told, strict=True):
        leaf.shared = is_shared
        if leaf.target is not None and not is_shared:
            leaf.target.close()
            leaf.target = None
        if not is_shared and leaf.kind != "new" and (leaf.kind == "dataset") != (kind == "dataset"):
            what = {"new": "nothing", "array": "an array", "dataset": "a dataset"}
            raise TypeError(
                f"{leaf.name} must be of one kind on all ranks, or None on all but rank 0: "
                f"rank 0 was given {what[kind]}, rank {comm.rank} {what[leaf.kind]}"
            )
        leaf.kind = kind


def _same_file(part: object, own: Place | None, first: Place, token: bytes) -> FileTarget | None:
    """Open the file that rank 0 has marked; None if this rank has another one, or it fails."""
    if part is not None and (own is None or not own.same_layout(first)):
        return None
    try:
        target = FileTarget(own or first)
    except OSError:
        return None
    if target.marked(token):
        return target
    target.close()
    return None
