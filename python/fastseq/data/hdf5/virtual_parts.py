"""The parts of virtual datasets that are read from their sources' files directly."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import h5py

from .stored_chunks import StoredChunks
from .types import stored_dtype
from .virtual import plain_name, resolve_source, selected

__all__ = ["MOST_PARTS", "Part", "Span", "selected_box", "virtual_parts"]

Span = tuple[int, int]
MOST_PARTS = 64
"""Of a virtual dataset; so many files may stay open."""


class Part(NamedTuple):
    """A box of a virtual dataset, and where it starts in a source."""

    box: tuple[slice, ...]
    path: str
    name: str
    start: tuple[int, ...]


def virtual_parts(dataset: h5py.Dataset) -> list[Part] | None:
    """Return the parts of a virtual dataset; None if HDF5 has to put it together.

    That is so unless they are few boxes that do not overlap, of the dataset's own type, and one of
    them is compressed in a way that is decoded here.

    Examples
    --------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "all.h5")
    >>> layout = h5py.VirtualLayout((4, 9000), "f4")
    >>> with h5py.File(path, "w") as file:
    ...     for i in range(2):
    ...         layout[2 * i : 2 * i + 2] = h5py.VirtualSource(file.create_dataset(
    ...             f"{i}", (2, 9000), "f4", chunks=(2, 9000), compression="gzip"))
    ...         file[f"{i}"][...] = i
    ...     parts = virtual_parts(file.create_virtual_dataset("x", layout))
    >>> [part.box[0] for part in parts], [part.name for part in parts]
    ([slice(0, 2, None), slice(2, 4, None)], ['/0', '/1'])
    """
    sources = dataset.virtual_sources() if dataset.is_virtual else []
    if not 0 < len(sources) <= MOST_PARTS:
        return None
    parts: list[Part] = []
    decoded = False
    for source in sources:
        path = resolve_source(dataset, plain_name(source.file_name))
        placed = selected_box(source.vspace, dataset.shape)
        if path is None or placed is None:
            return None
        name = plain_name(source.dset_name)
        with h5py.File(path, "r") as file:
            found = file[name]
            taken = selected_box(source.src_space, found.shape)
            same = stored_dtype(found) == dataset.dtype == found.dtype
            if taken is None or not same or _lengths(taken) != _lengths(placed):
                return None
            decoded = decoded or found.is_virtual or StoredChunks.of(found) is not None
        start = tuple(first for first, _ in taken)
        parts.append(Part(tuple(map(_slice, placed)), path, name, start))
    if not decoded or any(_overlap(a, b) for a, b in itertools.combinations(parts, 2)):
        return None
    return parts


def selected_box(space: h5py.h5s.SpaceID, shape: tuple[int, ...]) -> list[Span] | None:
    """Return start and end per axis of a selection, or None if it is not a full box."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return [(0, n) for n in shape]
    part = selected(space)
    if part is None:
        return None
    box = list(zip(part.begin, part.end, strict=True))
    return box if math.prod(b - a for a, b in box) == part.points else None


def _lengths(box: list[Span]) -> list[int]:
    return [last - first for first, last in box]


def _overlap(a: Part, b: Part) -> bool:
    sides = zip(a.box, b.box, strict=True)
    return all(p.start < q.stop and q.start < p.stop for p, q in sides)


def _slice(span: Span) -> slice:
    return slice(*span)
