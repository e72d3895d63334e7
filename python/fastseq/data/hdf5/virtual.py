"""Checks that all parts of a dataset exist: a virtual dataset's sources, filters, raw data.

HDF5 silently returns fill values for a virtual dataset's missing sources.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

import h5py

from .filters import raw_files, storage_faults
from .system_errors import item_of, raise_system_error

__all__ = [
    "check_readable",
    "missing_sources",
    "plain_name",
    "resolve_source",
    "selected",
    "source_files",
]


def check_readable(dataset: h5py.Dataset) -> None:
    """Raise unless all parts of a dataset exist.

    Raises
    ------
    ValueError
        A filter's plugin or a file of raw data is missing; or a virtual dataset's source is missing
        (file or dataset) or smaller than what is taken from it. The message names the first three.
    OSError
        The system fails to read a part.
    """
    missing = missing_sources(dataset)
    if missing and not dataset.is_virtual:
        raise ValueError(
            f"{dataset.name!r} in {dataset.file.filename} cannot be read: {'; '.join(missing[:3])}"
        )
    if missing:
        shown = "; ".join(missing[:3]) + (f"; and {len(missing) - 3} more" * (len(missing) > 3))
        raise ValueError(
            f"{dataset.name!r} in {dataset.file.filename} is virtual, and {len(missing)} of its "
            f"sources cannot be read: {shown}. Put the files back where they were, or concatenate "
            "again"
        )


def missing_sources(dataset: h5py.Dataset) -> list[str]:
    """Return why a dataset cannot be read, one line each: sources, filters, raw data.

    Examples
    --------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "all.h5")
    >>> layout = h5py.VirtualLayout((2,), "f4")
    >>> layout[:] = h5py.VirtualSource("part.h5", "x", (2,))
    >>> with h5py.File(path, "w") as file:
    ...     missing_sources(file.create_virtual_dataset("x", layout))
    ['there is no file part.h5']
    """
    return _missing(dataset, set(), set())


def source_files(dataset: h5py.Dataset) -> list[str]:
    """Return a dataset's files besides its own: a virtual dataset's sources, raw data."""
    files: set[str] = set(raw_files(dataset))
    _missing(dataset, set(), files)
    return sorted(files)


def resolve_source(dataset: h5py.Dataset, name: str) -> str | None:
    """Return the path where HDF5 finds a virtual dataset's source file, or None.

    The order is HDF5's: the name itself if it is absolute, the environment's HDF5_VDS_PREFIX, the
    folder of the virtual file, the working directory, the folder that a link to the file points to.
    """
    virtual_file: str = os.path.abspath(dataset.file.filename)
    if name == ".":
        return virtual_file
    if os.path.isabs(name):
        if os.path.isfile(name):
            return name
        name = os.path.basename(name)
    folder = os.path.dirname(virtual_file)
    prefixes = [p for p in os.environ.get("HDF5_VDS_PREFIX", "").split(":") if p]
    prefixes = [p.replace("${ORIGIN}", folder) for p in prefixes]
    prefixes += [folder, "", os.path.dirname(os.path.realpath(virtual_file))]
    found = (os.path.join(prefix, name) for prefix in prefixes)
    # realpath: ".." leads out of a linked folder's real place
    return next((os.path.realpath(path) for path in found if os.path.isfile(path)), None)


def _missing(dataset: h5py.Dataset, seen: set[tuple[str, str]], files: set[str]) -> list[str]:
    """Return what is missing; add sources found to `seen`, and their files to `files`."""
    if not dataset.is_virtual:
        return storage_faults(dataset)
    missing: list[str] = []
    for source in dataset.virtual_sources():
        file_name, name = plain_name(source.file_name), plain_name(source.dset_name)
        path = resolve_source(dataset, file_name)
        if path is None:
            missing.append(f"there is no file {file_name}")
        elif (path, name) not in seen:
            seen.add((path, name))
            files.add(path)
            try:
                with h5py.File(path, "r") as file:
                    missing += _lacking(file, name, source, seen, files)
            except (OSError, RuntimeError) as error:  # RuntimeError: on closing
                raise_system_error(error, path)
                missing.append(f"{path} cannot be read as HDF5 ({error})")
    return missing


def _lacking(
    file: h5py.File, name: str, source: Any, seen: set[tuple[str, str]], files: set[str]
) -> list[str]:
    found = item_of(file, name)
    if not isinstance(found, h5py.Dataset):
        return [f"there is no dataset {name!r} in {file.filename}"]
    files.update([os.path.abspath(found.file.filename), *raw_files(found)])  # it may be linked
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        placed = selected(source.vspace)
        if placed is not None and found.size < placed.points:
            return [f"{name!r} in {file.filename} has become smaller: its shape is {found.shape}"]
    elif (taken := selected(source.src_space)) is not None:
        needed = taken.end
        if len(needed) != found.ndim or any(
            a > b for a, b in zip(needed, found.shape, strict=True)
        ):
            return [
                f"{name!r} in {file.filename} has shape {found.shape}, at least {needed} is needed"
            ]
    lacks = _missing(found, seen, files)
    if found.is_virtual:
        return lacks
    return [f"{name!r} in {file.filename} cannot be read: {line}" for line in lacks]


class Selected(NamedTuple):
    """A part of a dataset: its bounding box, `begin` to `end`, and its number of elements."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    points: int


def selected(space: h5py.h5s.SpaceID) -> Selected | None:
    """Return what is selected of a dataset; None if it is unlimited and grows with its source."""
    try:
        first, last = space.get_select_bounds()
        points = int(space.get_select_npoints())
    except RuntimeError:  # HDF5's only sign of an unlimited selection
        return None
    return Selected(tuple(map(int, first)), tuple(int(end) + 1 for end in last), points)


def plain_name(name: str) -> str:
    """Undo HDF5's escapes; for a name of numbered blocks, return the first block's."""
    return re.sub(r"%%|%\d*b", lambda escape: "%" if escape[0] == "%%" else "0", name)
