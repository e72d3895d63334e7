"""Reading chunks ahead: rows of files and memory in a C++ thread, the rest in a Python thread."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Generator, Iterable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._util.threads import Worker
from .._util.torch_internals import storage_users
from ..errors import ReadError
from .native_reader import NO_SCALE, ElementType, SlabReader, element_type
from .sources import Box, Broadcast, RowSource, Source, has_rows

__all__ = ["Reader", "Slab"]

T = TypeVar("T")
_Type = ElementType | None  # None: the reader has no such type


class Slab:
    """A slab that has been read, or is being read.

    Attributes
    ----------
    data
        The tensor ``(S, B, …)``.
    suspect
        Whether it may hold NaN, infinity or `label`.
    label
        The integer that marks a missing label; None: there is none.
    """

    __slots__ = ("boxes", "data", "future", "label", "source", "suspect")

    def __init__(self, source: Source, boxes: list[Box], data: Tensor | None) -> None:
        self.source: Source = source
        self.boxes: list[Box] = boxes
        self.data: Any = data
        self.suspect: bool = False
        self.label: int | None = None
        self.future: Future[int] | None = None

    def read(self) -> Slab:
        """Read the slab now, from a source that is not lazy."""
        source: Any = self.source
        parts = []
        for box in self.boxes:
            parts.append(source.read(*box[:4]))
            self.suspect |= source.suspect
        self.data = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return self

    def blank(self, out: Tensor) -> None:
        """Set elements to 0 where `out` is true; `out` is ``(S, B)`` or like the data.

        A broadcast view is replaced by a new tensor.
        """
        data = self.data
        out = out.reshape(*out.shape, *(1,) * (data.dim() - out.dim()))
        repeats = isinstance(self.source, Broadcast)
        self.data = data.masked_fill(out, 0) if repeats else data.masked_fill_(out, 0)

    def look_for(self, label: int) -> None:
        """Treat integers of this value as missing."""
        if not self.data.is_floating_point():
            self.label = label
            self.suspect = bool((self.data == label).any())

    def missing(self) -> Tensor | None:
        """Return where floats are not finite or integers equal `label`; None: nowhere."""
        if not self.suspect:
            return None
        data: Tensor = self.data
        if not data.is_floating_point() and self.label is None:
            return None
        bad = ~data.isfinite() if data.is_floating_point() else torch.eq(data, self.label or 0)
        return bad if bool(bad.any()) else None

    def split(self, sizes: list[int]) -> list[Tensor]:
        """Return the data in parts of these numbers of time steps."""
        # .data: autograd must not take a change of one part for a change of another.
        return [part.data for part in self.data.split(sizes)]

    def part(self, data: Tensor) -> Slab:
        """Return one of `split`'s parts as a slab."""
        part = Slab(self.source, self.boxes, data)
        part.suspect, part.label = self.suspect, self.label
        return part


class Reader:
    """Read slabs of several sources into buffers that are reused.

    A buffer is reused once no tensor shares its memory, so slabs may be kept.

    Parameters
    ----------
    pinned
        Use pinned memory, so that copies to a GPU are asynchronous.
    strict
        Whether a file that changes between being opened and read is an error.

    Attributes
    ----------
    pid
        The process that owns it; threads don't survive a fork.
    """

    def __init__(self, *, pinned: bool = False, strict: bool = True) -> None:
        self._strict = strict
        self._pinned = pinned
        self.pid: int = os.getpid()
        self._native = SlabReader()
        self._files: dict[str | None, int] = {}
        self._thread: Worker | None = None
        self._buffers: dict[torch.dtype, list[_Buffer]] = {}
        self._rows: dict[int, tuple[RowSource, list[int], _Type, _Type]] = {}
        self._requests = 0  # submitted to the C++ thread and not waited for

    def run(
        self, sources: list[Source], chunks: Iterable[tuple[T, list[Box], tuple[int, int]]]
    ) -> Generator[tuple[T, list[Slab]], None, None]:
        """Yield chunks with their slabs, reading one chunk ahead, never more.

        Each chunk comes with its boxes and shape; a chunk without boxes has no slabs.
        """
        waiting: list[tuple[T, list[Slab]]] = []
        try:
            for chunk, boxes, shape in chunks:
                slabs = self._start(sources, boxes, shape) if boxes else []
                waiting.append((chunk, slabs))
                if len(waiting) == 2:
                    self._finish(waiting[0][1])
                # Not earlier: both threads would compete for Python's lock.
                self._start_own(slabs)
                if len(waiting) == 2:
                    yield waiting.pop(0)
            if waiting:
                self._finish(waiting[0][1])
                yield waiting.pop(0)
        finally:
            self._drop(itertools.chain.from_iterable(slabs for _, slabs in waiting), sources)

    def _start(self, sources: list[Source], boxes: list[Box], shape: tuple[int, int]) -> list[Slab]:
        """Start reading the slabs of a chunk that C++ can read; see `_finish`."""
        slabs = []
        reads = []
        for source in sources:
            if not source.lazy:
                slabs.append(Slab(source, boxes, None))
                continue
            slab = Slab(source, boxes, self._take((*shape, *source.features), source.dtype))
            if has_rows(source):
                files, stored, to = self._known(source)
                scale = NO_SCALE if source.scale is None else source.scale.args
                rows = source.pieces(boxes, shape[1], files)
                data = slab.data
                reads.append(
                    (stored, source.swapped, to, rows, data.data_ptr(), data.numel(), *scale)
                )
            slabs.append(slab)
        if reads:
            self._native.submit(reads)
            self._requests += 1
        return slabs

    def _start_own(self, slabs: list[Slab]) -> None:
        """Start reading the slabs that only Python can read."""
        for slab in slabs:
            fill = getattr(slab.source, "fill", None)
            if fill is not None:
                slab.future = self._own_thread().submit(fill, slab.boxes, slab.data)

    def _finish(self, slabs: list[Slab]) -> None:
        """Wait until the slabs that the oldest `_start` returned have been read."""
        native = [slab for slab in slabs if slab.data is not None and slab.future is None]
        error: BaseException | None = None
        if native:
            self._requests -= 1
            try:
                counts = self._native.wait()
                for slab, count in zip(native, counts, strict=True):
                    slab.suspect = count > 0
            except ReadError as failed:
                error = _explained(failed, native[failed.index])
        for slab in slabs:
            if slab.future is not None:
                try:
                    if not slab.future.done():
                        with slab.source.spare.awaited():
                            wait([slab.future])
                    slab.suspect = slab.future.result() > 0
                except Exception as failed:
                    error = error or _explained(failed, slab)
            elif slab.data is None:
                slab.read()
        if error is not None:
            raise error

    def _drop(self, slabs: Iterable[Slab], sources: list[Source]) -> None:
        """Stop pending reads: after an error, or if no more is wanted."""
        futures = [slab.future for slab in slabs if slab.future is not None]
        for future in futures:
            future.cancel()
        self._rows.clear()  # the next sources may be others
        if self._requests:
            self._native.close()
            self._native = SlabReader()
            self._files.clear()
            self._requests = 0
        if self._thread is not None:
            self._thread.close()
            self._thread = None
        for source in sources:
            source.close()

    def _known(self, source: RowSource) -> tuple[list[int], _Type, _Type]:
        """Return the source's files and element types for the C++ thread."""
        known = self._rows.get(id(source))
        if known is None or known[0] is not source:
            for place in source.places:
                if place not in self._files:
                    add = self._native.add_file
                    self._files[place] = (
                        self._native.add_memory(0) if place is None else add(place, self._strict)
                    )
            source.check_opened()
            files = [self._files[place] for place in source.places]
            known = (source, files, source.stored, element_type(source.dtype))
            self._rows[id(source)] = known
        return known[1:]

    def _own_thread(self) -> Worker:
        if self._thread is None:
            self._thread = Worker()
        return self._thread

    def _take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        numel = math.prod(shape)
        buffers = self._buffers.setdefault(dtype, [])
        for buffer in buffers:
            if buffer.numel >= numel and buffer.free():
                return buffer.part(numel).view(shape)
        buffers[:] = [b for b in buffers if b.numel >= numel or not b.free()][-_KEPT:]
        buffer = _Buffer(torch.empty(max(numel, 1), dtype=dtype, pin_memory=self._pinned))
        buffers.append(buffer)
        return buffer.part(numel).view(shape)


_KEPT = 32  # buffers per dtype; any more are in use, and freed by their users


class _Buffer:
    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.numel = memory.numel()
        self._storage = memory.untyped_storage()
        self._alone = storage_users(self._storage)

    def part(self, numel: int) -> Tensor:
        """Return the first elements."""
        return self.memory if numel == self.numel else self.memory[:numel]

    def free(self) -> bool:
        """Return whether it is known that no other tensor shares the memory."""
        users = storage_users(self._storage)
        return users is not None and users == self._alone


def _explained(error: BaseException, slab: Slab) -> ReadError:
    t0, t1, n0, n1 = slab.boxes[0][:4]
    found = ReadError(
        f"{slab.source.name} could not be read at steps {t0} to {t1}, sequences {n0} to {n1}: "
        f"{error or type(error).__name__}"
    )
    found.__cause__ = error
    return found
