"""Many HDF5 files joined into one."""

from __future__ import annotations

import errno
import operator
import os
import shutil
from collections.abc import Sequence
from typing import Any, TypeAlias

import h5py
import numpy as np
from tqdm.auto import tqdm

from .compression import Compression, check_compression
from .concat_plan import Contents, Joined, common_names, join, read_contents
from .copying import compress_datasets, copy_datasets, create
from .names import matching_files
from .open_file import damage, writing

__all__ = ["h5concat"]

Path: TypeAlias = "str | os.PathLike[str]"


def h5concat(
    dst: Path,
    srcs: Path | Sequence[Path] | Sequence[Sequence[Path]],
    axis: int | tuple[int, int] = 0,
    *,
    virtual: bool = True,
    compression: Compression = None,
    progress: bool = True,
) -> None:
    """Join the datasets of many HDF5 files into one file, along time, sequences or features.

    Parameters
    ----------
    dst
        The file to write. It is written beside its target and renamed: if something fails, an
        existing file stays as it was.
    srcs
        Files, or patterns such as ``"parts/day*.h5"``, whose files are taken in natural order
        (``day2`` before ``day10``). All must have datasets of the same names.
    axis
        0 joins along time, 1 along sequences, 2 along features. A pair takes a list of lists:
        inner lists are joined along the second axis, the results along the first.
    virtual
        Write references to the data instead of the data: the sources must stay where they are
        relative to `dst` (a folder may be moved as a whole). Otherwise copy the data, each dataset
        in one piece, in a few MB of memory, or in some 50 MB if sources are chunked.
    compression
        ``"gzip"`` compresses copies (level 4, bytes shuffled) in chunks of at most 1 MB, of whole
        features of about as many steps as sequences, with all cores, in at most 150 MB of memory.
        `h5mmap` then cannot map them into memory, only read them lazily, and reading costs their
        decompression.
    progress
        Show a progress bar if copying takes more than half a second.

    Notes
    -----
    Links are followed; further names of a dataset are kept if all files have them. Dtypes are
    promoted as in NumPy. Datasets without such an axis, and those of strings or other things than
    numbers, must be the same in all files, and are kept once. Groups and attributes are taken from
    the first file.

    Raises
    ------
    FileNotFoundError
        A file is missing, or a pattern matches none.
    ValueError
        Names or shapes do not fit, a file is damaged, the target of a link or virtual dataset is
        missing, `dst` is one of `srcs`, or `compression` is unknown or comes with ``virtual=True``.
    TypeError
        Datasets of strings, complex numbers or compounds differ between files.
    OSError
        The disk is full.

    Examples
    --------
    >>> import os, tempfile, fastseq as fs
    >>> folder = tempfile.mkdtemp()
    >>> for day in range(3):
    ...     fs.h5save(f"{folder}/day{day}.h5", {"x": np.full((2, 4, 1), day)})
    >>> fs.h5concat(f"{folder}/all.h5", f"{folder}/day*.h5", axis=0)
    >>> fs.h5mmap(f"{folder}/all.h5", "x")[:, 0, 0].tolist()
    [0, 0, 1, 1, 2, 2]
    >>> fs.h5concat(f"{folder}/all.h5", f"{folder}/day*.h5", virtual=False, compression="gzip")
    """
    check_compression("h5concat", compression)
    if virtual and compression is not None:
        raise ValueError(
            f"h5concat: compression={compression!r} is for copies, but a virtual dataset holds no "
            "data: copy with virtual=False"
        )
    axes = _check_axis(axis)
    rows = _rows(srcs, axes)
    target = os.path.realpath(os.fspath(dst))
    if any(os.path.realpath(path) == target for row in rows for path in row):
        raise ValueError(
            f"h5concat: {os.fspath(dst)!r} is itself among the sources; choose another name, or a "
            "pattern that leaves it out"
        )
    known = {path: read_contents(path) for path in dict.fromkeys(p for row in rows for p in row)}
    if any(os.path.realpath(s.path) == target for c in known.values() for s in c.datasets.values()):
        raise ValueError(
            f"h5concat: {os.fspath(dst)!r} is the target of a link in the sources; choose another "
            "name"
        )
    joined, kept = join([[known[path] for path in row] for row in rows], axes)
    if virtual:
        _check_bitfields(joined)
    elif compression is None:
        _check_room(target, sum(part.nbytes for part in joined))
    first = known[rows[0][0]]
    with writing("h5concat", dst) as beside, _bar(joined, progress and not virtual) as bar:
        # Aligned data are better for memory maps.
        with h5py.File(beside, "w", alignment_threshold=64, alignment_interval=64) as file:
            for part in joined:
                if virtual:
                    _create_virtual(file, part, os.path.dirname(target))
                else:
                    create(file, part, compression)
            _keep(file, first, kept)
            for name, known_as in common_names(list(known.values())).items():
                file[name] = file[known_as]
            offsets = [(part, file[part.name].id.get_offset()) for part in joined]
            for written in compress_datasets(file, [p for p in joined if file[p.name].chunks]):
                bar.update(written)
        if not virtual:
            for written in copy_datasets(beside, [pair for pair in offsets if pair[1] is not None]):
                bar.update(written)


def _check_axis(axis: object) -> tuple[int, ...]:
    try:
        axes = tuple(map(operator.index, axis if isinstance(axis, (tuple, list)) else (axis,)))
    except TypeError as error:
        raise TypeError(f"axis must be one integer or two, got {axis!r}") from error
    if len(axes) not in (1, 2) or min(axes) < 0 or len(set(axes)) < len(axes):
        raise ValueError(f"axis must be 0, 1, 2, …, or two different ones of these, got {axis!r}")
    return axes


def _rows(srcs: Any, axes: tuple[int, ...]) -> list[list[str]]:
    if len(axes) == 1:
        return [_expand(srcs)]
    if isinstance(srcs, (str, os.PathLike)) or any(isinstance(r, (str, os.PathLike)) for r in srcs):
        raise TypeError("h5concat along two axes takes a list of lists of files, got a flat one")
    rows = [_expand(row) for row in srcs]
    if not rows:
        raise ValueError("h5concat needs at least one file, got none")
    return rows


def _expand(srcs: Any) -> list[str]:
    """Return absolute paths for files and patterns."""
    paths: list[str] = []
    for name in [srcs] if isinstance(srcs, (str, os.PathLike)) else srcs:
        if not isinstance(name, (str, os.PathLike)):
            raise TypeError(
                f"srcs must be names of files, got {type(name).__name__}; a list of lists needs "
                "two axes, such as axis=(0, 1)"
            )
        paths += matching_files(name, "h5concat")
    if not paths:
        raise ValueError("h5concat needs at least one file, got none")
    # Both the folder and the file may be links: only the folder's link is resolved, so that paths
    # from another folder hold.
    return [os.path.join(os.path.realpath(os.path.dirname(p)), os.path.basename(p)) for p in paths]


def _check_bitfields(joined: Sequence[Joined]) -> None:
    """Raise if bitfields would be converted, which HDF5 cannot do."""
    for whole in joined:
        if whole.dtype != bool and any(part.bitfield for part, _ in whole.pieces):
            raise TypeError(
                f"h5concat: {whole.name!r} is Bool from Julia in some files and numbers in others: "
                "a virtual dataset cannot convert it; copy with virtual=False"
            )


def _check_room(target: str, needed: int) -> None:
    folder = os.path.dirname(target)
    if os.path.isdir(folder) and shutil.disk_usage(folder).free < needed:
        raise OSError(
            errno.ENOSPC,
            f"h5concat: {needed / 1e9:.3g} GB are needed, "
            f"{shutil.disk_usage(folder).free / 1e9:.3g} GB are free",
            target,
        )


def _create_virtual(file: h5py.File, whole: Joined, folder: str) -> None:
    layout = h5py.VirtualLayout(whole.shape, whole.dtype)
    for part, start in whole.pieces:
        if 0 in part.shape:
            continue
        # HDF5 looks from the virtual file's folder; the percent sign is its escape character.
        name = os.path.relpath(part.path, folder).replace("%", "%%")
        source = h5py.VirtualSource(name, part.inner.replace("%", "%%"), part.shape)
        ends = map(operator.add, start, part.shape)
        layout[tuple(slice(a, b) for a, b in zip(start, ends, strict=True))] = source
    # If a source gets lost, it shows.
    lost = np.nan if whole.dtype.kind == "f" else None
    file.create_virtual_dataset(whole.name, layout, fillvalue=lost)


def _keep(file: h5py.File, first: Contents, kept: Sequence[str]) -> None:
    """Copy groups, attributes and datasets that are not joined from the first file."""
    for name in kept:
        with damage("h5concat", first.path), h5py.File(first.path, "r") as opened:
            source = opened[name]
            if source.is_virtual or source.external:  # its paths would not hold elsewhere
                file.create_dataset(name, data=source[()], dtype=source.dtype)
            else:
                opened.copy(source, file, name, without_attrs=True)
    for name, attributes in first.groups.items():
        file.require_group(name).attrs.update(attributes)
    for name, stored in first.datasets.items():
        if name in file:  # else it is a further name of another dataset
            file[name].attrs.update(stored.attributes)


def _bar(joined: Sequence[Joined], shown: bool) -> tqdm:
    total = sum(part.nbytes for part in joined)
    return tqdm(
        total=total, unit="B", unit_scale=True, desc="h5concat", delay=0.5, disable=not shown
    )
