"""Which part of the data every rank works on at every step: pure arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

__all__ = ["Chunk", "ChunkPlan", "part"]


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

    def shifted(self, sequences: int) -> Chunk:
        """Return the same chunk, `sequences` further on."""
        return dataclasses.replace(self, n0=self.n0 + sequences, n1=self.n1 + sequences)


@dataclasses.dataclass(frozen=True)
class ChunkPlan:
    """The chunks of one rank: all chunks of a block in time order, then the next block.

    A block is ``size · batchsize`` consecutive sequences, of which every rank takes a nearly equal
    part, or, sharded by time, `batchsize` sequences, of whose steps every rank takes a part. So
    every rank makes the same number of steps, whatever T and N are. Short tails are kept.

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

    @property
    def _block_sequences(self) -> int:
        return self.batchsize if self.by_time else self.batchsize * self.size

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.sequences // self._block_sequences)

    @property
    def chunks_per_block(self) -> int:
        """How many chunks each block has: as many as the longest rank's part needs."""
        longest = -(-self.steps // self.size) if self.by_time else self.steps
        return -(-longest // self.seqsize)

    def __len__(self) -> int:
        return self.blocks * self.chunks_per_block

    def chunks(self, order: Iterable[int] | None = None) -> Iterator[Chunk]:
        """Yield this rank's chunks, block by block in `order` (default: as they lie)."""
        for block in range(self.blocks) if order is None else order:
            n0 = block * self._block_sequences
            n1 = min(n0 + self._block_sequences, self.sequences)
            begin, end = 0, self.steps
            if self.by_time:
                begin, end = part(0, self.steps, self.rank, self.size)
            else:
                n0, n1 = part(n0, n1, self.rank, self.size)
            for index in range(self.chunks_per_block):
                t0 = min(begin + index * self.seqsize, end)
                yield Chunk(block, index, t0, min(t0 + self.seqsize, end), n0, n1)
