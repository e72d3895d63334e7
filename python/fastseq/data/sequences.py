"""Inputs, targets, weights and masks, loaded together in chunks."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from .._util.tree import Tree, tree_leaves, tree_map
from ..nn.lengths import beside
from .chunk_plan import Chunk, whole
from .chunk_reader import Reader, Slab
from .inputs import Arguments
from .integer_inputs import check_inputs, refuse_numbers
from .missing_values import fill_inputs, fill_targets, refuse_nonfinite
from .ragged import RaggedArrays, RaggedRows
from .scaling.affine import paired
from .sources import Box, Broadcast, Source, WindowSource
from .tables.table_source import RaggedTable
from .upload import Uploader

__all__ = ["Batch", "Sequences", "to_device"]


class Batch(NamedTuple):
    """A chunk's data.

    Inputs ``(S, B, F)``, targets ``(S, B, K)``, weights, and each sequence's number of time steps
    in this chunk, ``(B,)``, if a sequence ends in it. Weights are None if all are 1, else
    ``(S, B)``; if samples have only some of their targets, each target has its own, ``(S, B, K)``,
    in the structure of the targets.
    """

    xs: Tree
    ys: Tree
    ws: Tree
    lengths: Tensor | None = None


# From this size on, copying in another thread, ahead of time, pays off.
_AHEAD_BYTES = 2**20
_TOGETHER_BYTES = 2**18
T = TypeVar("T")


class Sequences:
    """Arrays opened together and loaded in chunks.

    Parameters
    ----------
    x, y
        Arrays ``(T, N, …)``, or tuples or dicts of them; `y` may be None. In a tuple or dict,
        inputs ``(N, F)`` are shared by all time steps, inputs ``(T, F)`` by all sequences. For
        sequences of different lengths: lists of arrays ``(T_i, …)``, an `h5py.Group` of datasets,
        a `LongTable`, or, as `x`, a `torch.utils.data.Dataset` whose items are ``(x_i, y_i)``.
    w
        Weights of samples: ``(N,)``, ``(T, N)`` or ``(T, N, 1)``; or a list like `x`.
    mask
        Which samples count: ``(T, N)`` or ``(T, N, 1)``, true (or 1) where they do; or a list.
        Masked inputs and targets are replaced by 0, so that a NaN there does no harm.
    lengths
        Number of time steps of each sequence, ``(N,)``: later ones do not count.
    dtype
        The dtype of the model.
    nan
        What to do with NaN and infinities in inputs and targets that count: ``"raise"``,
        ``"mask"`` (treat each as missing, see `Spec`) or ``"keep"``.
    device
        Device of the batches.
    strict
        Whether a file that changes while it is read is an error.
    labels
        Whether integers in `y` stay integers; else they are numbers like others.
    missing_label
        The integer in `y` that marks a missing label.
    ids
        How many ids the model knows: integers in `x` stay integers, and must be among them. None:
        they are numbers like others.
    told
        Whether batches have lengths even where no sequence ends, if there are lengths at all.

    Attributes
    ----------
    steps, count
        T and N.
    lengths
        Number of time steps of each sequence, in the order of the pass; None: all have T.
    ragged
        Whether lists of arrays of different lengths were given.
    order
        The caller's sequence at each place of the pass, sorted by length; None: unchanged.

    Raises
    ------
    ValueError
        The arrays don't fit together, or have no steps or no sequences.
    TypeError
        They are not arrays of numbers.
    """

    def __init__(
        self,
        x: object,
        y: object = None,
        w: object = None,
        mask: object = None,
        lengths: object = None,
        *,
        dtype: torch.dtype,
        nan: str = "raise",
        device: torch.device | None = None,
        strict: bool = True,
        labels: bool = True,
        missing_label: int | None = None,
        ids: int | None = None,
        told: bool = False,
    ) -> None:
        opened = Arguments(x, y, w, mask, lengths, dtype, labels=labels, ids=ids is not None)
        self.dtype = dtype
        self.nan = nan
        self.x: Tree = opened.x
        self.y: Tree = opened.y
        self.w: Tree = opened.w
        self.mask: Tree = opened.mask
        self.steps: int = opened.steps
        self.count: int = opened.count
        self.lengths: np.ndarray | None = opened.lengths
        self.order: np.ndarray | None = opened.order
        self.ragged: bool = opened.order is not None
        self.squeezed: bool = opened.squeezed
        labelled = any(not source.dtype.is_floating_point for source in tree_leaves(self.y))
        self._missing_label = missing_label if labelled else None
        inputs: list[Source] = tree_leaves(self.x)
        if ids is not None:
            refuse_numbers([(source.name, source.dtype) for source in inputs], ids)
        self._ids, self._told = ids, told
        self._t0 = self._n0 = 0
        self._series = self.count
        self._fold = 1
        self._upload = Uploader(device) if device is not None and device.type == "cuda" else None
        self._strict = strict
        self._reader: Reader | None = None
        if strict:
            for source in self.leaves:
                source.watch()

    def part(self, t0: int, t1: int, n0: int, n1: int) -> Sequences:
        """Return time steps ``[t0, t1)`` of sequences ``[n0, n1)``, in storage order."""
        assert self._fold == 1
        part = copy.copy(self)
        part.steps, part.count = t1 - t0, n1 - n0
        part._t0, part._n0, part._series = self._t0 + t0, self._n0 + n0, n1 - n0
        if self.lengths is not None:
            part.lengths = np.clip(self.lengths[n0:n1] - t0, 0, part.steps)
        return part

    def cut(self, positions: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> Sequences:
        """Return time steps ``[begin, end)`` of some sequences of different lengths."""
        lengths = ends - begins
        again = np.argsort(-lengths, kind="stable")
        return self._taken(positions[again], begins[again], lengths[again])

    def ordered(self, positions: np.ndarray) -> Sequences:
        """Return sequences of different lengths in another order, read by the same threads."""
        assert self.lengths is not None
        self._ahead()
        return self._taken(positions, np.zeros_like(positions), self.lengths[positions])

    def _taken(self, positions: np.ndarray, begins: np.ndarray, lengths: np.ndarray) -> Sequences:
        """Return `lengths` steps from `begins` on of the sequences `positions`, in this order."""
        assert self.order is not None
        part = copy.copy(self)

        def of(source: RaggedArrays | RaggedRows | Broadcast) -> Source:
            if not isinstance(source, Broadcast):
                return source.cut(positions, begins, lengths)
            if begins.any() and not source.constant:
                raise ValueError(
                    f"{source.name} is shared by all sequences, but these parts of them start at "
                    "different steps: give each sequence its own, or validate by sequences"
                )
            return source.reordered(positions)

        part.x, part.y, part.w, part.mask = tree_map(of, (self.x, self.y, self.w, self.mask))
        part.order, part.lengths = self.order[positions], lengths
        part.steps, part.count = int(lengths.max(initial=0)), len(positions)
        part._series = part.count
        return part

    def folded(self, segments: int) -> Sequences:
        """Cut the series into segments of equal length, each a sequence; a tail is left out."""
        part = copy.copy(self)
        part._fold = segments
        part.steps, part.count = self.steps // segments, self.count * segments
        if self.lengths is not None:
            begins = np.repeat(np.arange(segments) * part.steps, self.count)
            part.lengths = np.clip(np.tile(self.lengths, segments) - begins, 0, part.steps)
        return part

    def scaled(self, x: Tree, y: Tree) -> Sequences:
        """Scale inputs and targets from now on by trees of `Affine`; None: do not scale."""
        for name, sources, affines in (("x", self.x, x), ("y", self.y, y)):
            if affines is None:
                for source in tree_leaves(sources):
                    source.scale_by(None)
                continue
            for source, affine in paired(sources, affines, name, lambda source: source.features):
                source.scale_by(affine)
        return self

    def measured(self) -> Sequences:
        """Return the data for measuring: not scaled, in full precision, missing values kept."""
        part = copy.copy(self)
        part.x, part.y = tree_map(lambda source: source.wide(), (self.x, self.y))
        part.nan = "raise" if self.nan == "raise" else "keep"
        part._upload = None
        return part

    @property
    def leaves(self) -> list[Source]:
        """All sources: inputs, targets, weights, mask."""
        return tree_leaves((self.x, self.y, self.w, self.mask))

    def batches(self, chunks: Iterable[Chunk]) -> Generator[tuple[Chunk, Batch | None], None, None]:
        """Yield chunks with their batches, None for chunks that hold nothing.

        Files and large pieces of memory are read one chunk ahead; small chunks are read several at
        a time.
        """
        with closing(self._read(chunks)) as groups:
            for group, slabs in groups:
                lazy = any(slab.source.lazy for slab in slabs)
                for chunk, batch in self._split(group, slabs):
                    if batch is not None and self._upload is not None and lazy:
                        batch = self._upload(batch)
                    yield chunk, batch

    def batch_groups(
        self, chunks: Iterable[Chunk]
    ) -> Generator[tuple[list[Chunk], Batch | None], None, None]:
        """Yield chunks that follow each other in time, with a batch for all of them together.

        Lengths in a batch count from its first chunk on. Where elements may be missing, each chunk
        comes alone.
        """
        with closing(self._read(chunks)) as groups:
            for group, slabs in groups:
                if not slabs or len(group) == 1 or any(slab.suspect for slab in slabs):
                    for chunk, batch in self._split(group, slabs):
                        yield [chunk], batch
                else:
                    yield group, self._batch(whole(group), slabs)

    def _read(
        self, chunks: Iterable[Chunk]
    ) -> Generator[tuple[list[Chunk], list[Slab]], None, None]:
        """Yield groups of chunks with their slabs."""
        chunks = iter(chunks)
        first = next(chunks, None)
        if first is None:
            return
        sources = self._sources(first)
        groups = self._groups(sources, itertools.chain([first], chunks))
        if not any(source.lazy for source in sources):
            for group in groups:
                boxes = self._boxes(whole(group))
                slabs = [Slab(source, boxes, None).read() for source in sources if boxes]
                yield group, self._labelled(slabs)
            return
        reader = self._ahead()
        for source in sources:
            if isinstance(source, (WindowSource, RaggedTable)) and self._fold == 1:
                groups, again = _twice(groups)  # the second for the source's own thread
                source.expect(self._extents(map(whole, again)))
        plans = ((group, self._boxes(whole(group)), whole(group).shape) for group in groups)
        with closing(reader.run(sources, plans)) as ahead:
            for group, slabs in ahead:
                yield group, self._labelled(slabs)

    def _labelled(self, slabs: list[Slab]) -> list[Slab]:
        """Look for labels that mark missing ones, and return the slabs."""
        if self._missing_label is not None and slabs:
            first = len(tree_leaves(self.x))
            for slab in slabs[first : first + len(tree_leaves(self.y))]:
                slab.look_for(self._missing_label)
        return slabs

    def _ahead(self) -> Reader:
        """Return what reads ahead, in this process."""
        if self._reader is None or self._reader.pid != os.getpid():
            self._reader = Reader(pinned=self._upload is not None, strict=self._strict)
        return self._reader

    def _groups(self, sources: list[Source], chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
        """Yield groups of chunks to read together: small ones that follow each other in time."""
        sample = max(int(np.prod(s.features)) * s.dtype.itemsize for s in sources)
        limit = _TOGETHER_BYTES // max(sample, 1) if all(s.joins for s in sources) else 0
        group: list[Chunk] = []
        begin, end, block, alone = 0, 0, -1, True
        for chunk in chunks:
            nothing = self._nothing(chunk)
            follows = chunk.block == block and chunk.t0 == end and not (alone or nothing)
            if group and not (follows and (chunk.t1 - begin) * (chunk.n1 - chunk.n0) <= limit):
                yield group
                group = []
            if not group:
                begin, block, alone = chunk.t0, chunk.block, nothing
            end = chunk.t1
            group.append(chunk)
        if group:
            yield group

    def _split(self, group: list[Chunk], slabs: list[Slab]) -> Iterable[tuple[Chunk, Batch | None]]:
        """Return the chunks of a group, each with its part of the slabs."""
        if not slabs or len(group) == 1:
            return [(group[0], self._batch(group[0], slabs) if slabs else None)]
        sizes = [chunk.t1 - chunk.t0 for chunk in group]
        # All at once: between the updates of a small model, this would take three times as long.
        data = [slab.split(sizes) for slab in slabs]
        if not self._as_read(slabs):
            return self._parts(group, slabs, zip(*data, strict=True))
        xs, ys = data if len(data) == 2 else (data[0], [None] * len(group))
        return [(chunk, Batch(x, y, None)) for chunk, x, y in zip(group, xs, ys, strict=True)]

    def _parts(
        self, group: list[Chunk], slabs: list[Slab], data: Iterable[tuple[Tensor, ...]]
    ) -> Iterator[tuple[Chunk, Batch]]:
        for chunk, parts in zip(group, data, strict=True):
            found = [slab.part(part) for slab, part in zip(slabs, parts, strict=True)]
            yield chunk, self._batch(chunk, found)

    def check_ids(self, chunks: Iterable[Chunk]) -> None:
        """Read chunks, and raise ValueError if there are ids that the model does not know."""
        if self._ids is not None:
            for _ in self.batches(chunks):
                pass

    def _as_read(self, slabs: list[Slab]) -> bool:
        """Return whether slabs are x, or x and y, ready for the model and the loss."""
        plain = self.w is None and self.mask is None and self.lengths is None
        plain = plain and self._ids is None and not slabs[0].source.rounds
        suspect = any(slab.suspect for slab in slabs)
        return plain and not suspect and len(slabs) <= 2 and isinstance(self.x, Source)

    def _sources(self, chunk: Chunk) -> list[Source]:
        """Return the sources to read: another thread also reads large slabs of memory."""
        numel = (chunk.t1 - chunk.t0) * (chunk.n1 - chunk.n0)
        sources = []
        for source in self.leaves:
            size = numel * int(np.prod(source.features)) * source.dtype.itemsize
            ahead = source.ahead if size >= _AHEAD_BYTES else None
            sources.append(source if source.lazy or ahead is None else ahead)
        return sources

    def _nothing(self, c: Chunk) -> bool:
        """Return whether a chunk holds nothing: it is empty, or its sequences have ended."""
        return c.empty or (self.lengths is not None and self.lengths[c.n0 : c.n1].max() <= c.t0)

    def _boxes(self, c: Chunk) -> list[Box]:
        """Return a chunk's boxes in the arrays; none if it is empty."""
        if self._nothing(c):
            return []
        if self._fold == 1:
            n0 = self._n0
            return [Box(c.t0 + self._t0, c.t1 + self._t0, c.n0 + n0, c.n1 + n0)]
        boxes = []
        for segment in range(c.n0 // self._series, (c.n1 - 1) // self._series + 1):
            t, n = self._t0 + segment * self.steps, segment * self._series
            a, b = max(c.n0, n), min(c.n1, n + self._series)
            at = Box(c.t0 + t, c.t1 + t, a - n + self._n0, b - n + self._n0, a - c.n0)
            boxes.append(at)
        return boxes

    def _extents(self, chunks: Iterable[Chunk]) -> Iterator[tuple[int, int, int, int]]:
        """Yield each block's extent in the arrays, from its first time step to its last."""
        for _, block in itertools.groupby(chunks, lambda c: c.block):
            boxes = [box for chunk in block for box in self._boxes(chunk)]
            if boxes:
                yield boxes[0].t0, boxes[-1].t1, boxes[0].n0, boxes[0].n1

    def _batch(self, chunk: Chunk, slabs: list[Slab]) -> Batch:
        """Make a batch of slabs: apply weights, and blank what does not count."""
        if self._as_read(slabs):
            return Batch(slabs[0].data, slabs[1].data if len(slabs) == 2 else None, None)
        suspect = any(slab.suspect for slab in slabs)
        read = iter(slabs)
        xs = [next(read) for _ in tree_leaves(self.x)]
        ys = [next(read) for _ in tree_leaves(self.y)]
        shape = chunk.shape
        ws = None if self.w is None else self._weights(next(read).data.reshape(shape), chunk)
        counts = None if self.mask is None else self._counts(next(read).data.reshape(shape), chunk)
        lengths = self._lengths_in(chunk)
        if lengths is not None:
            within = torch.arange(shape[0]).unsqueeze(1) < lengths
            counts = within if counts is None else counts & within
        if counts is not None:
            for slab in (*xs, *ys):
                slab.blank(~counts)
            ws = self._left(ws, counts)
        if ws is not None:
            for slab in ys:  # a loss of NaN times 0 has a gradient of NaN
                slab.blank(ws == 0)
        check_inputs(xs, self._ids, functools.partial(self.place, chunk))
        each = None
        if suspect and self.nan == "raise":
            refuse_nonfinite([*xs, *ys], functools.partial(self.place, chunk))
        elif suspect and self.nan == "mask":
            ws = self._left(ws, fill_inputs(xs))
        if suspect and (self.nan == "mask" or self._missing_label is not None):
            known, each = fill_targets(ys, numbers=self.nan == "mask")
            ws = self._left(ws, known)
        data = iter([slab.data for slab in (*xs, *ys)])
        inputs, targets = tree_map(lambda _: next(data), (self.x, self.y))
        if each is None or ws is None:
            return Batch(inputs, targets, ws, lengths)
        parts = iter([known * ws.view(*shape, *(1,) * (known.dim() - 2)) for known in each])
        return Batch(inputs, targets, tree_map(lambda _: next(parts), self.y), lengths)

    def _left(self, ws: Tensor | None, counts: Tensor | None) -> Tensor | None:
        """Return weights with 0 where samples do not count; None: all count, or weigh 1."""
        if counts is None:
            return ws
        if ws is not None:
            return ws.masked_fill(~counts, 0)
        return counts.to(torch.promote_types(self.dtype, torch.float32))

    def place(self, chunk: Chunk, step: int, column: int) -> tuple[int, int]:
        """Return the caller's time step and sequence of an element of a chunk's slab."""
        for box in self._boxes(chunk):
            if box.at <= column < box.at + box.n1 - box.n0:
                step, sequence = box.t0 + step, box.n0 + column - box.at
                break
        return step, sequence if self.order is None else int(self.order[sequence])

    def _weights(self, ws: Tensor, chunk: Chunk) -> Tensor:
        if not bool(((ws >= 0) & (ws < torch.inf)).all()):
            raise ValueError(
                f"w must not be negative, NaN or infinite, but is {chunk.where}; leave samples out "
                "by giving them weight 0"
            )
        return ws

    def _counts(self, mask: Tensor, chunk: Chunk) -> Tensor:
        counts = mask if mask.dtype == torch.bool else mask == 1
        if counts is not mask and not bool((counts | (mask == 0)).all()):
            raise ValueError(
                f"mask must hold booleans, or 0 and 1 only, but holds other numbers {chunk.where}; "
                "pass weights of samples as w"
            )
        return counts

    def _lengths_in(self, chunk: Chunk) -> Tensor | None:
        """Return each sequence's number of time steps in the chunk, or None if none ends."""
        if self.lengths is None:
            return None
        lengths = self.lengths[chunk.n0 : chunk.n1] - chunk.t0
        steps = chunk.t1 - chunk.t0
        none_ends = lengths.min() >= steps and not self._told
        return None if none_ends else torch.from_numpy(np.clip(lengths, 0, steps))


def _twice(items: Iterator[T]) -> tuple[Iterator[T], Iterator[T]]:
    """Return two iterators over the same items, for two threads."""
    lock = threading.Lock()

    def locked(branch: Iterator[T]) -> Iterator[T]:
        while True:
            with lock:
                try:
                    item = next(branch)
                except StopIteration:
                    return
            yield item

    a, b = itertools.tee(items)
    return locked(a), locked(b)


def to_device(tree: Tree, device: torch.device) -> Tree:
    """Move tensors to `device` asynchronously, in the order of its current stream."""
    if device.type == "cpu":
        return tree
    moved = tree_map(lambda a: a.to(device, non_blocking=True), tree)
    if isinstance(tree, Batch):
        tree_map(beside, (moved.ws, moved.lengths), (tree.ws, tree.lengths))
    return moved
