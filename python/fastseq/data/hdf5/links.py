"""Contents of a file with links followed, within it and into other files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import h5py

from .system_errors import item_of

__all__ = ["DeadLink", "dead_link", "names_in", "walk_links"]


class DeadLink(NamedTuple):
    """A link to something missing; `text` says what."""

    text: str


def dead_link(group: h5py.Group, name: str) -> DeadLink | None:
    """Return where a name in a group leads, if it is a link to something missing.

    Examples
    --------
    >>> import os, tempfile
    >>> with h5py.File(os.path.join(tempfile.mkdtemp(), "a.h5"), "w") as file:
    ...     file["x"] = h5py.ExternalLink("part.h5", "/x")
    ...     dead_link(file, "x").text
    "a link to '/x' in part.h5, which is not there or cannot be opened"
    """
    if item_of(group, name) is not None:
        return None
    try:
        link = group.get(name, getlink=True)
    except KeyError:
        return None
    if isinstance(link, h5py.ExternalLink):
        return DeadLink(
            f"a link to {link.path!r} in {link.filename}, which is not there or cannot be opened"
        )
    if isinstance(link, h5py.SoftLink):
        return DeadLink(f"a link to {link.path!r}, which is not there")
    return None


def names_in(group: h5py.Group) -> Iterator[str]:
    """Yield the names in a group.

    Raises
    ------
    ValueError
        One is not UTF-8, such as of a damaged file: h5py returns its bytes.
    """
    for name in group:
        if not isinstance(name, str):
            raise ValueError(
                f"{group.file.filename} has a name that is not UTF-8, {name!r:.100}, in "
                f"{group.name!r}"
            )
        yield name


def walk_links(
    group: h5py.Group, above: tuple[h5py.Group, ...] = ()
) -> Iterator[tuple[str, h5py.Dataset | h5py.Group | DeadLink]]:
    """Yield names and objects of a group and its subgroups; cycles are skipped.

    Raises
    ------
    KeyError
        An object cannot be opened: the file is damaged.
    """
    above = (*above, group)
    for key in names_in(group):
        item = item_of(group, key)
        if item is None:
            yield key, dead_link(group, key) or group[key]
        elif isinstance(item, h5py.Dataset):
            yield key, item
        elif isinstance(item, h5py.Group) and item not in above:
            yield key, item
            for name, inner in walk_links(item, above):
                yield f"{key}/{name}", inner
