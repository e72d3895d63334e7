"""HDF5 files on the command line: ``python -m fastseq h5 concat|info|check``."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Sequence

import h5py
import numpy as np

from .concat import h5concat
from .copying import tile_shape
from .links import DeadLink, walk_links
from .memory_map import element_offset
from .open_file import reading
from .types import is_bfloat16, stored_dtype
from .virtual import missing_sources, selected

__all__ = ["add_commands", "run"]

_SHOWN_SOURCES = 20


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the commands and their arguments."""
    commands = parser.add_subparsers(dest="h5", required=True, title="commands", metavar="COMMAND")
    concat = commands.add_parser("concat", help="join the datasets of many files into one file")
    concat.add_argument("dst", help="the file to write")
    concat.add_argument(
        "srcs",
        nargs="+",
        help="files or quoted patterns, such as 'day*.h5'; to join along two axes, groups of them "
        "with a comma as an argument in between",
    )
    concat.add_argument(
        "--axis",
        type=_axis,
        default=0,
        help="0: time, 1: sequences, 2: features; two, such as 0,1: groups are joined along the "
        "second one, the results along the first",
    )
    concat.add_argument("--copy", action="store_true", help="copy the data instead of linking them")
    concat.add_argument(
        "--compress",
        action="store_true",
        help="with --copy: compress the data (gzip); smaller, but slower to read, and not mapped "
        "into memory",
    )
    show = commands.add_parser("info", help="what a file holds, and how it is stored")
    show.add_argument("file")
    check = commands.add_parser(
        "check",
        help="read everything once; exit code 1 if something is damaged or missing "
        "(values that are not finite are counted, but not an error)",
    )
    check.add_argument("files", nargs="+")


def run(arguments: argparse.Namespace) -> int:
    """Run a command; return the exit code."""
    try:
        if arguments.h5 == "concat":
            groups = _groups(arguments.srcs)
            flat = len(groups) == 1 and isinstance(arguments.axis, int)
            srcs = groups[0] if flat else groups
            if arguments.compress and not arguments.copy:
                raise ValueError("--compress is for copies; add --copy")
            h5concat(
                arguments.dst, srcs, arguments.axis, virtual=not arguments.copy,
                compression="gzip" if arguments.compress else None,
            )  # fmt: skip
            return 0
        if arguments.h5 == "info":
            print(describe_file(arguments.file))
            return 0
        whole = [check_file(path) for path in arguments.files]
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not all(whole):
        return 1
    print(f"{len(whole)} {'file' if len(whole) == 1 else 'files'}: nothing is damaged or missing")
    return 0


def _axis(text: str) -> int | tuple[int, ...]:
    axes = tuple(map(int, text.split(",")))
    return axes[0] if len(axes) == 1 else axes


def _groups(srcs: list[str]) -> list[list[str]]:
    """Split arguments at commas."""
    groups: list[list[str]] = [[]]
    for src in srcs:
        if src == ",":
            groups.append([])
        else:
            groups[-1].append(src)
    return groups


def describe_file(path: str) -> str:
    """Return a table of a file's datasets: shape, dtype, layout, bytes, whether it can be mapped.

    Examples
    --------
    >>> import os, tempfile, fastseq as fs
    >>> path = os.path.join(tempfile.mkdtemp(), "data.h5")
    >>> fs.h5save(path, {"x": np.zeros((5, 2, 1), np.float32)})
    >>> print(describe_file(path))
    dataset  shape      dtype    layout      bytes  mapped
    x        (5, 2, 1)  float32  contiguous     40  yes
    """
    rows = [("dataset", "shape", "dtype", "layout", "bytes", "mapped")]
    notes: dict[int, list[str]] = {}
    with reading("h5 info", path) as file:
        for name, dataset in _datasets(file):
            if isinstance(dataset, DeadLink):
                rows.append((name, "", "", "", "", ""))
                notes[len(rows) - 1] = [f"  MISSING: {dataset.text}"]
                continue
            mapped = dataset.shape is not None and element_offset(dataset) is not None
            rows.append((
                name, str(dataset.shape), _dtype(dataset), _layout(dataset),
                str(dataset.nbytes if dataset.shape is not None else 0), "yes" if mapped else "no",
            ))  # fmt: skip
            notes[len(rows) - 1] = _sources(dataset)
    if len(rows) == 1:
        return f"{path} holds no dataset"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.rjust(width) if column == 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines += ["  ".join(cells).rstrip(), *notes.get(number, ())]
    return "\n".join(lines)


def check_file(path: str) -> bool:
    """Read a file's datasets once and print the findings; return whether nothing is wrong.

    Raises
    ------
    FileNotFoundError, ValueError
        The file cannot be opened at all.
    """
    whole = True
    print(path)
    with reading("h5 check", path) as file:
        read: dict[h5py.Dataset, str] = {}
        for name, dataset in _datasets(file):
            if isinstance(dataset, DeadLink):
                whole = False
                print(f"  {name}: WRONG; {dataset.text}")
            elif dataset in read:
                print(f"  {name}: the same as {read[dataset]}")
            else:
                read[dataset] = name
                wrong = missing_sources(dataset)
                count, bad = (0, 0) if wrong else _read(dataset, wrong)
                whole = whole and not wrong
                found = f"{bad} of {count} values are not finite" if bad else f"{count} values"
                print(f"  {name}: {'; '.join(['WRONG', *wrong]) if wrong else found}")
    return whole


def _datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset | DeadLink]]:
    return [(name, item) for name, item in walk_links(file) if not isinstance(item, h5py.Group)]


def _dtype(dataset: h5py.Dataset) -> str:
    dtype = stored_dtype(dataset)
    if is_bfloat16(dataset):
        return "bfloat16"
    return "string" if h5py.check_string_dtype(dtype) else str(dtype)


def _layout(dataset: h5py.Dataset) -> str:
    if dataset.shape is None:
        return "empty"
    if dataset.is_virtual:
        return f"virtual, {len(dataset.virtual_sources())} sources"
    if dataset.chunks is None:
        layout = dataset.id.get_create_plist().get_layout()
        return "compact" if layout == h5py.h5d.COMPACT else "contiguous"
    plist = dataset.id.get_create_plist()
    filters = [dataset.compression] if dataset.compression else []
    filters += ["shuffle"] * dataset.shuffle + ["fletcher32"] * dataset.fletcher32
    if not filters and plist.get_nfilters():
        filters = [plist.get_filter(i)[3].decode() for i in range(plist.get_nfilters())]
    return f"chunked {dataset.chunks}" + (f", {' + '.join(filters)}" if filters else "")


def _sources(dataset: h5py.Dataset) -> list[str]:
    if not dataset.is_virtual:
        return []
    sources = [f"  {s.file_name}: {s.dset_name}" for s in dataset.virtual_sources()]
    lines = sources[:_SHOWN_SOURCES]
    if len(sources) > len(lines):
        lines.append(f"  and {len(sources) - len(lines)} more")
    return [*lines, *(f"  MISSING: {line}" for line in missing_sources(dataset))]


def _read(dataset: h5py.Dataset, wrong: list[str]) -> tuple[int, int]:
    """Count all and non-finite values; append a line to `wrong` for what cannot be read."""
    count = bad = 0
    for box in _boxes(dataset):
        try:
            values = np.asarray(dataset[box])
        except (OSError, RuntimeError, ValueError) as error:
            place = ", ".join(f"{piece.start}:{piece.stop}" for piece in box)
            wrong.append(f"[{place}] cannot be read ({error})")
            if len(wrong) == 3:
                wrong.append("and maybe more")
                break
            continue
        count += values.size
        if values.dtype.kind in "fc":
            bad += values.size - int(np.count_nonzero(np.isfinite(values)))
    return count, bad


def _boxes(dataset: h5py.Dataset) -> Iterator[tuple[slice, ...]]:
    """Yield the parts of a dataset that were written: chunks, or pieces of contiguous data."""
    if dataset.shape is None or not math.prod(dataset.shape):
        return
    if not dataset.shape:
        yield ()
    elif dataset.chunks is not None:
        corners: list[tuple[int, ...]] = []
        dataset.id.chunk_iter(lambda info: corners.append(info.chunk_offset))
        for corner in corners:
            yield _box(corner, dataset.chunks, dataset.shape)
    elif dataset.is_virtual:
        for source in dataset.virtual_sources():
            part = selected(source.vspace)
            if part is None:  # unlimited: all of the dataset
                yield from _pieces([0] * dataset.ndim, dataset.shape, dataset)
                return
            yield from _pieces(part.begin, part.end, dataset)
    elif dataset.id.get_storage_size():
        yield from _pieces([0] * dataset.ndim, dataset.shape, dataset)


def _pieces(
    low: Sequence[int], high: Sequence[int], dataset: h5py.Dataset
) -> Iterator[tuple[slice, ...]]:
    shape = tuple(int(b) - int(a) for a, b in zip(low, high, strict=True))
    tile = tile_shape(shape, [], dataset.dtype.itemsize)
    starts = [range(int(a), int(b), k) for a, b, k in zip(low, high, tile, strict=True)]
    for corner in itertools.product(*starts):
        yield _box(corner, tile, high)


def _box(corner: Sequence[int], lengths: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    ends = zip(corner, lengths, shape, strict=True)
    return tuple(slice(int(a), min(int(a) + int(k), int(n))) for a, k, n in ends)
