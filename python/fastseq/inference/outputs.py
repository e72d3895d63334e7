"""Write predictions on all ranks, to targets that are checked before."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._util.tree import Tree, tree_leaves, tree_like, tree_paths
from ..data.chunk_plan import Chunk
from ..data.sequences import Sequences
from ..distributed.replicas import Replicas
from ..errors import BusyError
from .destinations import (
    ArrayTarget,
    FileTarget,
    RaggedTarget,
    as_numpy,
    check_destination,
    forget_buffered,
    members,
    out_keys,
    place_of,
)
from .write_plan import Leaf, agree

__all__ = ["Outputs", "matched", "nothing"]


class Outputs:
    """The arrays to which a model's outputs are written, chunk by chunk, on all ranks.

    In files that all ranks see (memory maps, contiguous HDF5 datasets) each rank writes the part
    that it predicts. Other outputs are sent to all ranks in each round: every rank fills arrays and
    tensors, rank 0 other datasets.

    Parameters
    ----------
    out
        What the user passed. None: new arrays; if rank 0 was given something and other ranks
        None, only rank 0 gets the outputs.
    like
        Outputs of the model for any chunk, in its structure.
    data
        The sequences.
    replicas
        The ranks.
    computed
        The dtypes of the model's outputs before scaling is undone: `out` must be able to hold
        these.

    Raises
    ------
    ValueError, TypeError
        `out` does not fit; then nothing has been written.
    """

    def __init__(
        self,
        out: Tree,
        like: Tree,
        data: Sequences,
        replicas: Replicas,
        computed: list[torch.dtype],
    ) -> None:
        self._data = data
        self._replicas = replicas
        self._given = out is not None
        self._begun = False
        self._like = tree_leaves(like)
        names = [name for name, _ in tree_paths(like, "out")]
        parts = [None] * len(names) if out is None else matched(like, out, "out")
        if out is not None:
            containers = () if data.order is not None else (tuple, list, dict)
            if any(part is None or isinstance(part, containers) for part in parts):
                raise structure_error(like, out, "out")
            if data.order is not None:
                parts = [members(name, p, data) for name, p in zip(names, parts, strict=True)]
            for name, part, a, dtype in zip(names, parts, self._like, computed, strict=True):
                self._check(name, part, a.to(dtype))
        self._leaves = [Leaf(name, part) for name, part in zip(names, parts, strict=True)]
        if not replicas.alone:
            agree(self._leaves, replicas)
        for leaf, a in zip(self._leaves, self._like, strict=True):
            if leaf.part is None and leaf.kind == "new":
                leaf.part = self._new(a)
            self._open(leaf)
        self.result = out
        if out is None and all(leaf.part is not None for leaf in self._leaves):
            self.result = tree_like(like, (leaf.part for leaf in self._leaves))

    def _shape(self, a: Tensor, sequence: int | None = None) -> tuple[int, ...]:
        """Return the shape of an output, or of one sequence's part of it."""
        if sequence is None:
            return self._data.steps, self._data.count, *a.shape[2:]
        assert self._data.lengths is not None
        return int(self._data.lengths[sequence]), *a.shape[2:]

    def _check(self, name: str, part: object, a: Tensor) -> None:
        order = self._data.order
        if order is None:
            check_destination(name, part, self._shape(a), a)
            return
        if not isinstance(part, list | tuple) or len(part) != len(order):
            got = f"{len(part)}" if isinstance(part, list | tuple) else type(part).__name__
            raise ValueError(
                f"{name} must be a list of {len(order)} arrays, one for each sequence, or a group "
                f"of as many datasets, got {got}"
            )
        for position, index in enumerate(order):
            check_destination(f"{name}[{index}]", part[index], self._shape(a, position), a)

    def _new(self, a: Tensor) -> np.ndarray | list[np.ndarray]:
        dtype = as_numpy(a[:0]).dtype
        order = self._data.order
        if order is None:
            return np.empty(self._shape(a), dtype)
        places = np.argsort(order)
        return [np.empty(self._shape(a, place), dtype) for place in places]

    def _open(self, leaf: Leaf) -> None:
        if leaf.target is not None or leaf.part is None:
            return  # each rank writes it already; or only rank 0, which this is not
        if leaf.kind == "dataset" and not self._replicas.first:
            return
        if self._data.order is None:
            place = place_of(leaf.part) if isinstance(leaf.part, np.memmap) else None
            alone = self._replicas.alone
            leaf.target = FileTarget(place) if place and alone else ArrayTarget(leaf.part)
        else:
            assert self._data.lengths is not None
            leaf.target = RaggedTarget(list(leaf.part), self._data.lengths, self._data.order)

    def write(self, chunks: Sequence[Chunk | None], values: list[Tensor]) -> None:
        """Write what each rank has predicted in this round. Collective.

        Parameters
        ----------
        chunks
            Each rank's chunk; None: it has none left.
        values
            This rank's outputs ``(S, B, …)``; empty if it has no chunk.
        """
        self._begun = True
        rank = self._replicas.comm.rank
        for number, leaf in enumerate(self._leaves):
            for root, chunk in enumerate(chunks):
                if chunk is None or (leaf.shared and root != rank):
                    continue
                if self._replicas.alone or leaf.shared:
                    part = values[number]
                else:
                    part = self._sent(chunk, root, values[number] if root == rank else None, number)
                if leaf.target is not None:
                    _write(leaf, chunk, part)

    def _sent(self, chunk: Chunk, root: int, own: Tensor | None, number: int) -> Tensor:
        a = self._like[number]
        shape = chunk.t1 - chunk.t0, chunk.n1 - chunk.n0, *a.shape[2:]
        part = torch.empty(shape, dtype=a.dtype) if own is None else own.cpu().contiguous()
        return self._replicas.comm.broadcast_(part, root)

    def fill(self, chunk: Chunk, *, own: bool) -> None:
        """Write NaN, or 0 for integers, where there is no output.

        Parameters
        ----------
        chunk
            The steps and sequences to fill.
        own
            Whether this rank predicts these sequences; if not, it fills only outputs that are not
            shared.
        """
        for leaf, a in zip(self._leaves, self._like, strict=True):
            if leaf.target is not None and (own or not leaf.shared):
                shape = chunk.t1 - chunk.t0, chunk.n1 - chunk.n0, *a.shape[2:]
                _write(leaf, chunk, nothing(shape, a).cpu())

    def finish(self) -> None:
        """Make all that was written visible, on all ranks. Collective."""
        for leaf in self._leaves:
            if leaf.target is not None:
                with _writing(leaf, "at its end"):
                    leaf.target.close()
                leaf.target = None
        if any(leaf.shared for leaf in self._leaves):
            self._replicas.comm.barrier()
            for leaf in self._leaves:
                if leaf.shared:
                    forget_buffered(leaf.part)

    def __enter__(self) -> Outputs:
        parts = [leaf.part for leaf in self._leaves if self._given]
        self._keys = {key for part in parts for key in out_keys(part)}
        with _lock:
            busy = not _written.isdisjoint(self._keys)
            if not busy:
                _written.update(self._keys)
        if busy:
            self._close()
            raise BusyError(
                "another thread's predict writes to this out: wait for it to end, or pass another "
                "out"
            )
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with _lock:
            _written.difference_update(self._keys)
        if error is not None:
            if self._given and self._begun and hasattr(error, "add_note"):
                error.add_note("predict stopped in the middle: out is incomplete")
            self._close()

    def _close(self) -> None:
        for leaf in self._leaves:
            if leaf.target is not None:
                with suppress(Exception):  # the error that ended it says more
                    leaf.target.close()


_written: set[Hashable] = set()  # what predictions of this process are being written to
_lock = threading.Lock()


def _forget_threads() -> None:
    """Forget what other threads write: a forked child does not have them."""
    global _lock
    _lock = threading.Lock()
    _written.clear()


os.register_at_fork(after_in_child=_forget_threads)


def nothing(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return the output for steps that do not count: NaN, or 0 for integers."""
    return like.new_full(tuple(shape), torch.nan if like.is_floating_point() else 0)


def _write(leaf: Leaf, chunk: Chunk, values: Tensor) -> None:
    assert leaf.target is not None
    where = f"at steps {chunk.t0} to {chunk.t1}, sequences {chunk.n0} to {chunk.n1}"
    with _writing(leaf, where):
        leaf.target.write(chunk, values)


@contextmanager
def _writing(leaf: Leaf, where: str) -> Iterator[None]:
    """Raise an error that names what could not be written."""
    try:
        yield
    except Exception as error:
        message = (
            f"{leaf.name} could not be written {where}: {error}. "
            f"predict stopped there, and {leaf.name} is incomplete"
        )
        number = error.errno if isinstance(error, OSError) else None
        raise (OSError(number, message) if number else OSError(message)) from error


def matched(structure: Tree, tree: Tree, name: str) -> list[Any]:
    """Return the parts of `tree` in the places of the leaves of `structure`.

    Raises
    ------
    ValueError
        `tree` has another structure.
    """

    def parts(structure: Tree, tree: Tree) -> Iterator[Any]:
        if isinstance(structure, dict):
            if not isinstance(tree, dict) or tree.keys() != structure.keys():
                raise LookupError
            for key in structure:
                yield from parts(structure[key], tree[key])
        elif isinstance(structure, tuple | list):
            if not isinstance(tree, tuple | list) or len(tree) != len(structure):
                raise LookupError
            for one, other in zip(structure, tree, strict=True):
                yield from parts(one, other)
        elif structure is not None:
            yield tree

    try:
        return list(parts(structure, tree))
    except LookupError:
        raise structure_error(structure, tree, name) from None


def structure_error(structure: Tree, tree: Tree, name: str) -> ValueError:
    """Return the error for a `tree` without the structure of the model's output."""
    wanted = [path for path, _ in tree_paths(structure, name)]
    got = [path for path, _ in tree_paths(tree, name)]
    more = ", …" if len(got) > 8 else ""
    return ValueError(
        f"{name} must have the structure of the model's output: {', '.join(wanted)}; "
        f"got {', '.join(got[:8]) or 'nothing'}{more}"
    )
