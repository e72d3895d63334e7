"""Which part of the data each rank works on, chunk by chunk: pure arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from .drawn_members import longest_drawn

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
    """Time steps ``[t0, t1)`` of sequences ``[n0, n1)``, which one rank works on at once.

    `block` and `index` count from zero; index 0 starts a block, with a fresh state. An empty chunk
    (no time steps or sequences) takes part in the update with weight zero.
    """

    block: int
    index: int
    t0: int
    t1: int
    n0: int
    n1: int

    @property
    def empty(self) -> bool:
        """Whether it holds nothing for this rank."""
        return self.t0 >= self.t1 or self.n0 >= self.n1

    @property
    def shape(self) -> tuple[int, int]:
        """Its numbers of time steps and sequences."""
        return self.t1 - self.t0, self.n1 - self.n0

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return f"in steps {self.t0} to {self.t1}, sequences {self.n0} to {self.n1}"

    def shifted(self, sequences: int) -> Chunk:
        """Return the chunk shifted by `sequences` sequences."""
        return dataclasses.replace(self, n0=self.n0 + sequences, n1=self.n1 + sequences)


def whole(chunks: list[Chunk]) -> Chunk:
    """Join chunks that follow each other in time."""
    return dataclasses.replace(chunks[0], t1=chunks[-1].t1) if len(chunks) > 1 else chunks[0]


@dataclasses.dataclass(frozen=True)
class ChunkPlan:
    """The chunks of one rank: all chunks of a block in time order, then the next block.

    A block is ``size · batchsize`` consecutive sequences; every rank takes a nearly equal part of
    them. Sharded by time, it is `batchsize` sequences, and every rank takes a part of their time
    steps. If each rank has its own data, it is `batchsize` sequences of those. So every rank has
    the same number of chunks for any T and N. Short tails are kept. A block ends with its longest
    sequence.

    Parameters
    ----------
    steps, sequences
        T and N.
    batchsize, seqsize
        Sequences per block (per rank), time steps per chunk.
    rank, size
        This rank, and the number of ranks.
    by_time
        Whether ranks share time steps instead of sequences.
    lengths
        The sequences' numbers of time steps, ``(N,)``; None: all have T.
    joined
        Whether to join the last block to the one before if it would leave some rank with a single
        sequence: layers that normalise over sequences cannot be trained on one.
    given
        Whether each rank has its own data.
    counts
        The number of chunks of each block, the last ones perhaps empty; None: as many as this
        rank's longest sequence needs (`own_chunks`).

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
    lengths: np.ndarray | None = dataclasses.field(default=None, compare=False)
    joined: bool = False
    given: bool = False
    counts: list[int] | None = None

    @property
    def _block_sequences(self) -> int:
        return self.batchsize * self._sharing

    @property
    def _sharing(self) -> int:
        """How many ranks share a block's sequences."""
        return 1 if self.by_time or self.given else self.size

    @property
    def _own_blocks(self) -> int:
        blocks, left = divmod(self.sequences, self._block_sequences)
        joins = self.joined and blocks and left < 2 * self._sharing
        return blocks if not left or joins else blocks + 1

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self._own_blocks if self.counts is None else len(self.counts)

    @property
    def _begins(self) -> range:
        """The first sequence of each block."""
        return range(0, self._own_blocks * self._block_sequences, self._block_sequences)

    @property
    def own_chunks(self) -> list[int]:
        """Number of chunks in each block of this rank's data."""
        return [self._chunks_of(steps) for steps in self._block_steps]

    @cached_property
    def _block_steps(self) -> list[int]:
        """Length of each block's longest sequence."""
        if self.lengths is None:
            return [self.steps] * self._own_blocks
        return [int(n) for n in np.maximum.reduceat(self.lengths, np.array(self._begins, np.int64))]

    def _chunks_of(self, steps: int) -> int:
        """Return the number of chunks of a block: as many as the longest rank's part needs."""
        longest = -(-steps // self.size) if self.by_time else steps
        return -(-longest // self.seqsize)

    def __len__(self) -> int:
        return sum(self.own_chunks if self.counts is None else self.counts)

    @property
    def mixes(self) -> bool:
        """Whether another order of the sequences would give blocks other members."""
        return self._own_blocks > 1 and self._block_sequences > 1

    def with_room(self, spread: float) -> ChunkPlan:
        """Return the plan with as many chunks as blocks may need whose members are drawn.

        Their number must not change from epoch to epoch: schedules count updates. See
        `drawn_order`.
        """
        if self.lengths is None or not self.mixes:
            return self
        most = longest_drawn(self.lengths, spread)[self._begins]
        return dataclasses.replace(self, counts=[self._chunks_of(int(n)) for n in most])

    def reordered(self, lengths: np.ndarray) -> ChunkPlan:
        """Return the plan, with as many chunks, for sequences in a drawn order."""
        return dataclasses.replace(self, lengths=lengths)

    @property
    def padding(self) -> float:
        """Fraction of all blocks' time steps that are past the ends of sequences."""
        if self.lengths is None:
            return 0.0
        widths = np.diff([*self._begins, self.sequences])
        whole = int(np.dot(widths, self._block_steps))
        return 1 - int(self.lengths.sum()) / whole if whole else 0.0

    def chunks(self, order: Iterable[int] | None = None) -> Iterator[Chunk]:
        """Yield this rank's chunks, block by block in `order` (default: in storage order)."""
        for block in range(self.blocks) if order is None else order:
            own = block < self._own_blocks
            n0 = block * self._block_sequences if own else self.sequences
            last = block >= self._own_blocks - 1
            n1 = self.sequences if last else n0 + self._block_sequences
            steps = self._block_steps[block] if own else 0
            begin, end = 0, steps
            if self.by_time:
                begin, end = part(0, steps, self.rank, self.size)
            elif not self.given:
                n0, n1 = part(n0, n1, self.rank, self.size)
            count = self._chunks_of(steps) if self.counts is None else self.counts[block]
            for index in range(count):
                t0 = min(begin + index * self.seqsize, end)
                yield Chunk(block, index, t0, min(t0 + self.seqsize, end), n0, n1)
