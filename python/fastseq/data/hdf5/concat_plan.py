"""Plan of a concatenation: shapes, dtypes and places, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import h5py
import numpy as np

from .handles import location
from .links import DeadLink, walk_links
from .open_file import reading
from .types import stored_dtype
from .virtual import check_readable

__all__ = ["Contents", "Joined", "Stored", "common_names", "join", "read_contents"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A dataset of one file. `dtype` is None for what cannot be joined, such as strings.

    Its name is `name` in the given file; it is stored in the file `path`, as `inner`.
    """

    path: str
    name: str
    inner: str
    shape: Shape
    dtype: np.dtype | None
    raw: np.dtype  # as h5py reads it
    offset: int | None  # of its elements in the file, if contiguous and stored as `raw`
    chunks: Shape | None
    bitfield: bool
    attributes: dict[str, object]


@dataclass(frozen=True)
class Joined:
    """A dataset to make: its shape, and which stored datasets go where in it."""

    name: str
    shape: Shape
    pieces: list[tuple[Stored, Shape]]

    @cached_property
    def dtype(self) -> np.dtype:
        """The promoted dtype of all pieces, in this machine's byte order."""
        dtypes = {part.dtype for part, _ in self.pieces if part.dtype is not None}
        promoted: np.dtype = np.result_type(*dtypes).newbyteorder("=")
        return promoted

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


class Contents(NamedTuple):
    """A file's datasets by name, and its groups with their attributes.

    `others` are further names of datasets: hard links, and links within the file.
    """

    path: str
    datasets: dict[str, Stored]
    groups: dict[str, dict[str, object]]
    others: dict[str, str]


def read_contents(path: str) -> Contents:
    """Return a file's contents, with links followed.

    Raises
    ------
    ValueError
        There is no dataset, a link leads nowhere, or a part of a dataset is missing.
    """
    datasets: dict[str, Stored] = {}
    known: dict[h5py.Dataset, str] = {}  # datasets in the file itself, with their first names
    others: dict[str, str] = {}
    with reading("h5concat", path) as file:
        groups = {"/": _attributes(file)}
        file.visititems(
            lambda name, item: known.update({item: name} if isinstance(item, h5py.Dataset) else {})
        )
        for name, item in walk_links(file):
            if isinstance(item, DeadLink):
                raise ValueError(f"h5concat: {name!r} in {path} is {item.text}")
            if isinstance(item, h5py.Group):
                groups[name] = _attributes(item)
                continue
            check_readable(item)
            datasets[name] = _describe(path, name, item)
            if known.get(item, name) != name:
                others[name] = known[item]
    if not datasets:
        raise ValueError(f"h5concat: there is no dataset in {path}")
    return Contents(path, datasets, groups, others)


def common_names(files: Sequence[Contents]) -> dict[str, str]:
    """Return the further names of datasets that are the same in all files."""
    first = files[0].others.items()
    return {a: b for a, b in first if all(contents.others.get(a) == b for contents in files)}


def join(files: Sequence[Sequence[Contents]], axes: Shape) -> tuple[list[Joined], list[str]]:
    """Return the datasets to make from rows of files, and the names of those only kept.

    Datasets without such an axis and those of strings are not joined: all files must have the same.
    Rows are joined along the last of `axes`, then with each other along the first.

    Raises
    ------
    ValueError
        Names or shapes do not fit.
    TypeError
        Strings, complex numbers or compounds differ.
    """
    first = files[0][0]
    for contents in (c for row in files for c in row):
        _check_names(first, contents)
    joined, kept = [], []
    others = common_names([contents for row in files for contents in row])
    for name, model in first.datasets.items():
        if name in others:
            continue
        rows = [[contents.datasets[name] for contents in row] for row in files]
        parts = [part for row in rows for part in row]
        _check_attributes(parts)
        if model.dtype is None or len(model.shape) <= max(axes):
            for part in parts:
                _check_same(model, part, axes)
            if model.dtype is None:
                kept.append(name)
            else:
                joined.append(Joined(name, model.shape, [(model, (0,) * len(model.shape))]))
            continue
        for part in parts:
            if part.dtype is None:
                raise TypeError(_message(name, model, part, "dtypes", model.raw, part.raw))
        whole = [
            _row([Joined(name, p.shape, [(p, (0,) * len(p.shape))]) for p in row], axes[-1])
            for row in rows
        ]
        joined.append(_row(whole, axes[0]))
    return joined, kept


def _describe(path: str, name: str, item: h5py.Dataset) -> Stored:
    stored, raw = stored_dtype(item), item.dtype
    numbers = stored.kind in "biuf" and item.shape is not None
    offset = None
    # Only elements that are stored in NumPy's format can be copied without h5py.
    if numbers and item.id.get_type() == h5py.h5t.py_create(raw, logical=True):
        offset = item.id.get_offset()
    bitfield = item.id.get_type().get_class() == h5py.h5t.BITFIELD
    home, inner = path, name
    if not os.path.samefile(item.file.filename, path):
        home, inner = location(item) or (item.file.filename, item.name)
    return Stored(
        home, name, inner, item.shape or (), stored if numbers else None, raw, offset,
        item.chunks, bitfield, _attributes(item),
    )  # fmt: skip


def _attributes(item: h5py.Dataset | h5py.Group) -> dict[str, object]:
    """Return attributes without references, which point into their own file."""
    names = [
        name for name in item.attrs
        if not h5py.check_ref_dtype(_base(item.attrs.get_id(name).dtype))
    ]  # fmt: skip
    return {name: item.attrs[name] for name in names}


def _base(dtype: np.dtype) -> np.dtype:
    if dtype.names:  # a compound, such as a dimension scale's: use its first field
        return _base(dtype[0])
    inner = h5py.check_vlen_dtype(dtype)
    return dtype if inner in (None, str, bytes) else np.dtype(inner)


def _check_names(first: Contents, other: Contents) -> None:
    lacking = sorted(first.datasets.keys() - other.datasets.keys())
    extra = sorted(other.datasets.keys() - first.datasets.keys())
    if lacking or extra:
        poor, rich = (other.path, first.path) if lacking else (first.path, other.path)
        names = ", ".join(map(repr, (lacking or extra)[:5]))
        raise ValueError(f"h5concat: {poor} has no {names}, which {rich} has")


def _check_attributes(parts: list[Stored]) -> None:
    """Raise if only some datasets are bfloat16, which only an attribute says."""
    marks = [str(part.attributes.get("fastseq")) for part in parts]
    for part, mark in zip(parts, marks, strict=True):
        if mark != marks[0] and "bfloat16" in (mark + marks[0]):
            raise TypeError(
                f"h5concat: {part.name!r} is bfloat16 in only one of {parts[0].path} and "
                f"{part.path}; save both with one dtype"
            )


def _check_same(model: Stored, part: Stored, axes: Shape) -> None:
    if (model.shape, model.raw) == (part.shape, part.raw) and _same(model, part):
        return
    if model.dtype is None or part.dtype is None:
        raise TypeError(
            f"h5concat: {model.name!r} has dtype {model.raw} in {model.path} and {part.raw} in "
            f"{part.path}; only numbers and booleans can be joined, all else must be equal in all "
            "files"
        )
    raise ValueError(
        f"h5concat: {model.name!r} of shape {model.shape} has no axis {max(axes)} to be joined "
        f"along, and is not the same in {model.path} and {part.path}"
    )


def _same(model: Stored, part: Stored) -> bool:
    if model is part:
        return True
    with reading("h5concat", model.path) as a, reading("h5concat", part.path) as b:
        one, two = a[model.inner], b[part.inner]
        if not model.shape:
            return _equal(one[()], two[()])
        rows = max(1, 2**20 * model.shape[0] // max(one.size, 1))
        return all(
            _equal(one[i : i + rows], two[i : i + rows]) for i in range(0, model.shape[0], rows)
        )


def _equal(a: object, b: object) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return bool((a == b).all()) if a.dtype.hasobject else a.tobytes() == b.tobytes()


def _row(blocks: list[Joined], axis: int) -> Joined:
    first = blocks[0]
    pieces, end = [], 0
    for block in blocks:
        a, b = list(first.shape), list(block.shape)
        if len(a) != len(b) or [*a[:axis], *a[axis + 1 :]] != [*b[:axis], *b[axis + 1 :]]:
            one, two = first.pieces[0][0], block.pieces[0][0]
            raise ValueError(
                _message(first.name, one, two, "shapes", first.shape, block.shape)
                + f", which cannot be joined along axis {axis}"
            )
        for part, start in block.pieces:
            pieces.append((part, (*start[:axis], start[axis] + end, *start[axis + 1 :])))
        end += block.shape[axis]
    shape = (*first.shape[:axis], end, *first.shape[axis + 1 :])
    return Joined(first.name, shape, pieces)


def _message(name: str, one: Stored, two: Stored, what: str, a: object, b: object) -> str:
    return f"h5concat: {name!r} has the {what} {a} in {one.path} and {b} in {two.path}"
