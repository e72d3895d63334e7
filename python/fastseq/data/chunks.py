"""Which part of the data every rank works on at every step: pure arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Chunk", "ChunkPlan", "part", "whole"]


def part(begin: int, end: int, index: int, count: int) -> tuple[int, int]:
    """Return the `index`-th of `count` consecutive, nearly equal parts of ``[begin, end)``.

    Examples
    --------
    >>> [part(0, 5, i, 3) for i in range(3)]
    [(0, 1), (1, 3), (3, 5)]
    """
    length = end - begin
    return begin + length * index // count, begin + length * (index + 1) // count


@dataclasses.dataclass(slots=True)
class Chunk:
    """Time steps ``[t0, t1)`` of sequences ``[n0, n1)``: one step of one rank.

    `block` and `index` count from zero; index 0 starts a block, with a fresh state. A chunk
    without time steps or sequences takes part in the step with weight zero.
    """

    block: int
    index: int
    t0: int
    t1: int
    n0: int
    n1: int

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it for this rank."""
        return self.t0 >= self.t1 or self.n0 >= self.n1

    @property
    def shape(self) -> tuple[int, int]:
        """How many steps and sequences it has."""
        return self.t1 - self.t0, self.n1 - self.n0

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"in steps {self.t0} to {self.t1}, sequences {self.n0} to {self.n1}"

    def shifted(self, sequences: int) -> Chunk:
        """Return the same chunk, `sequences` further on."""
        return dataclasses.replace(self, n0=self.n0 + sequences, n1=self.n1 + sequences)


def whole(chunks: list[Chunk]) -> Chunk:
    """Return chunks that follow each other in time as one."""
    return dataclasses.replace(chunks[0], t1=chunks[-1].t1) if len(chunks) > 1 else chunks[0]


@dataclasses.dataclass(frozen=True)
class ChunkPlan:
    """The chunks of one rank: all chunks of a block in time order, then the next block.

    A block is ``size · batchsize`` consecutive sequences, of which every rank takes a nearly equal
    part, or, sharded by time, `batchsize` sequences, of whose steps every rank takes a part; where
    each rank has data of its own, `batchsize` of these. So every rank makes the same number of
    steps, whatever T and N are. Short tails are kept. A block ends where its longest sequence does.

    Parameters
    ----------
    steps, sequences
        T and N.
    batchsize, seqsize
        Sequences of a block (per rank), steps of a chunk.
    rank, size
        Whose chunks, of how many ranks.
    by_time
        Whether ranks share out steps instead of sequences.
    lengths
        The sequences' numbers of steps, ``(N,)``; None: all have T.
    joined
        Whether a last block that would leave some rank with a single sequence is joined to the one
        before: layers that normalise over sequences cannot be trained on one.
    given
        If these are data of this rank's own: how many chunks each block has, on the rank that has
        most (`own_chunks`).

    Examples
    --------
    >>> plan = ChunkPlan(steps=5, sequences=3, batchsize=2, seqsize=4)
    >>> [(c.block, (c.t0, c.t1), (c.n0, c.n1)) for c in plan.chunks()]
    [(0, (0, 4), (0, 2)), (0, (4, 5), (0, 2)), (1, (0, 4), (2, 3)), (1, (4, 5), (2, 3))]
    """

    steps: int
    sequences: int
    batchsize: int
    seqsize: int
    rank: int = 0
    size: int = 1
    by_time: bool = False
    lengths: np.ndarray[Any, Any] | None = dataclasses.field(default=None, compare=False)
    joined: bool = False
    given: list[int] | None = None

    @property
    def _block_sequences(self) -> int:
        return self.batchsize * self._sharing

    @property
    def _sharing(self) -> int:
        """How many ranks share out a block's sequences."""
        return 1 if self.by_time or self.given is not None else self.size

    @property
    def _own_blocks(self) -> int:
        blocks, left = divmod(self.sequences, self._block_sequences)
        joins = self.joined and blocks and left < 2 * self._sharing
        return blocks if not left or joins else blocks + 1

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self._own_blocks if self.given is None else len(self.given)

    @property
    def _begins(self) -> range:
        """The first sequence of each block."""
        return range(0, self._own_blocks * self._block_sequences, self._block_sequences)

    @property
    def own_chunks(self) -> list[int]:
        """How many chunks each block of this rank's data has."""
        return [self._chunks_of(steps) for steps in self._block_steps]

    @cached_property
    def _block_steps(self) -> list[int]:
        """How many steps each block's longest sequence has."""
        if self.lengths is None:
            return [self.steps] * self._own_blocks
        return [int(n) for n in np.maximum.reduceat(self.lengths, np.array(self._begins))]

    def _chunks_of(self, steps: int) -> int:
        """How many chunks a block has: as many as the longest rank's part needs."""
        longest = -(-steps // self.size) if self.by_time else steps
        return -(-longest // self.seqsize)

    def __len__(self) -> int:
        return sum(self.own_chunks if self.given is None else self.given)

    @property
    def padding(self) -> float:
        """Which part of all blocks' steps lies behind the ends of sequences."""
        if self.lengths is None:
            return 0.0
        widths = np.diff([*self._begins, self.sequences])
        whole = int(np.dot(widths, self._block_steps))
        return 1 - int(self.lengths.sum()) / whole if whole else 0.0

    def chunks(self, order: Iterable[int] | None = None) -> Iterator[Chunk]:
        """Yield this rank's chunks, block by block in `order` (default: as they lie)."""
        for block in range(self.blocks) if order is None else order:
            own = block < self._own_blocks
            n0 = block * self._block_sequences if own else self.sequences
            last = block >= self._own_blocks - 1
            n1 = self.sequences if last else n0 + self._block_sequences
            steps = self._block_steps[block] if own else 0
            begin, end = 0, steps
            if self.by_time:
                begin, end = part(0, steps, self.rank, self.size)
            elif self.given is None:
                n0, n1 = part(n0, n1, self.rank, self.size)
            for index in range(self._chunks_of(steps) if self.given is None else self.given[block]):
                t0 = min(begin + index * self.seqsize, end)
                yield Chunk(block, index, t0, min(t0 + self.seqsize, end), n0, n1)
