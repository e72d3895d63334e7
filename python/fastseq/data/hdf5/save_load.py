"""Saving and loading nested dicts of arrays and scalars. Loading never runs code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from .chunk_writing import ChunkWriter
from .compression import Compression, check_compression, layout
from .handles import location
from .julia import parse_julia
from .lazy_dataset import LazyDataset
from .lazy_tensor import LazyTensor
from .links import dead_link, names_in
from .memory_map import map_elements
from .open_file import reading, writing
from .system_errors import item_of
from .types import stored_dtype
from .virtual import check_readable

__all__ = ["h5load", "h5save"]

# The attribute for Python types that HDF5 lacks: "file" (on the root: written by `h5save`), "list",
# "tuple", "array" (without dimensions), "tensor", "bfloat16".
_MARK = "fastseq"


def h5save(
    dst: str | os.PathLike[str], tree: dict[str, Any], *, compression: Compression = None
) -> None:
    """Save nested dicts of arrays, tensors and scalars.

    Parameters
    ----------
    dst
        The file to write; it is written beside its target and renamed.
    tree
        A dict with strings as keys, of NumPy arrays, torch tensors, ``int``, ``float``, ``bool``,
        ``str``, None, and dicts, lists and tuples of these. Arrays become datasets named by their
        keys, dicts groups; lists become groups with the datasets ``0``, ``1``, …
    compression
        None stores each array in one piece, which is the fastest to read. ``"gzip"`` compresses
        arrays (level 4, bytes shuffled) in chunks of at most 1 MB, of whole features of about as
        many steps as sequences, with all cores. `h5mmap` then cannot map them into memory, only
        read them lazily, and reading costs their decompression.

    Raises
    ------
    TypeError
        It holds something else; the message says where.
    ValueError
        A key is not a valid HDF5 name, an integer has more than 64 bits, a string has a NUL
        character, or `compression` is unknown.
    OSError
        The disk is full; an existing file stays as it was.

    Examples
    --------
    >>> import os, tempfile, fastseq as fs
    >>> path = os.path.join(tempfile.mkdtemp(), "data.h5")
    >>> fs.h5save(path, {"x": np.zeros((5, 2, 1)), "about": {"rate": 50, "names": ("a", "b")}})
    >>> fs.h5load(path)["about"]
    {'names': ('a', 'b'), 'rate': 50}
    >>> fs.h5save(path, {"x": np.zeros((5, 2, 1))}, compression="gzip")
    >>> fs.h5load(path)["x"].shape
    (5, 2, 1)
    """
    check_compression("h5save", compression)
    if not isinstance(tree, dict):
        raise TypeError(f"h5save saves dicts, got {type(tree).__name__}")
    with (
        writing("h5save", dst) as beside,
        h5py.File(beside, "w", alignment_threshold=64, alignment_interval=64) as file,
    ):
        file.attrs[_MARK] = "file"
        _save_items(file, tree, compression)


def h5load(src: str | os.PathLike[str], *, mmap: bool = False, literals: bool = True) -> Any:
    """Load what `h5save` saved, or any HDF5 file, as nested dicts of arrays and scalars.

    Parameters
    ----------
    src
        The file. Tensors come back as tensors, lists as lists, tuples as tuples; strings in arrays
        as an array of strings; Julia's ``Bool`` as bool.
    mmap
        Return arrays and tensors as `h5mmap` does, without reading them. bfloat16 tensors become
        `LazyTensor`: also sliced lazily, with ``read()`` for the tensor itself.
    literals
        HDF5Utils.jl writes fields that are not arrays as Julia source text, in a group
        ``nonarray``. They are merged into the file's other fields and parsed as literals: numbers,
        strings, arrays, tuples, objects ``Dict``. With False, they stay text.

    Returns
    -------
    dict
        Arrays, tensors, numbers, strings, None, and dicts, lists and tuples of these, by names.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not an HDF5 file, or is damaged; a virtual dataset's sources are missing; or a text is
        not a literal (the message shows it).
    TypeError
        A dataset holds compounds, references or other things that are neither numbers nor strings.
    MemoryError
        A dataset is larger than the machine's memory.

    Examples
    --------
    >>> import os, tempfile, fastseq as fs
    >>> path = os.path.join(tempfile.mkdtemp(), "data.h5")
    >>> fs.h5save(path, {"x": torch.arange(3), "done": True, "best": None})
    >>> fs.h5load(path)
    {'best': None, 'done': True, 'x': tensor([0, 1, 2])}
    """
    path = os.path.abspath(os.fspath(src))
    with reading("h5load", path) as file:
        tree = _load_group(file, mmap, ())
        texts = tree.get("nonarray")
        if _mark(file) or not isinstance(texts, dict):
            return tree
        if not all(isinstance(text, str) for text in texts.values()):
            return tree
    del tree["nonarray"]
    return {**tree, **{name: _field(path, name, texts[name], literals) for name in texts}}


def _field(path: str, name: str, text: str, literals: bool) -> Any:
    try:
        return parse_julia(text) if literals else text
    except ValueError as error:
        raise ValueError(
            f"h5load: {name!r} in {path} is Julia source text, which is not run: {error}; load "
            "with literals=False to get the text"
        ) from error


def _save_items(group: h5py.Group, tree: Mapping[str, object], compression: Compression) -> None:
    for key, value in tree.items():
        if not isinstance(key, str) or not key or "/" in key or "\0" in key or key == ".":
            raise ValueError(
                "h5save: keys must be non-empty strings other than '.', without '/' and NUL, got "
                f"{key!r} in {group.name!r}"
            )
        _save(group, key, value, compression)


def _save(group: h5py.Group, key: str, value: object, compression: Compression) -> None:
    if isinstance(value, dict):
        _save_items(group.create_group(key), value, compression)
    elif isinstance(value, list | tuple):
        part = group.create_group(key)
        part.attrs[_MARK] = "tuple" if isinstance(value, tuple) else "list"
        _save_items(part, {str(i): item for i, item in enumerate(value)}, compression)
    elif isinstance(value, Tensor | LazyTensor):
        tensor = value if isinstance(value, Tensor) else value.read()
        _save_tensor(group, key, tensor, compression)
    elif isinstance(value, np.ndarray) or (
        isinstance(value, np.generic) and not isinstance(value, float | str | bytes)
    ):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise _type_error(group, key, f"an array of dtype {array.dtype}")
        dataset = _save_array(group, key, array, compression)
        if not array.ndim:
            dataset.attrs[_MARK] = "array"
    elif value is None:
        group[key] = h5py.Empty("f8")
    elif isinstance(value, str):
        if "\0" in value:
            raise ValueError(
                f"h5save: HDF5 has no strings with NUL characters, got one for {key!r} in "
                f"{group.name!r}"
            )
        # not by h5py's own conversion, which accepts half a surrogate pair
        group.create_dataset(key, data=value.encode(), dtype=h5py.string_dtype())
    elif isinstance(value, bool | int | float):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(
                f"h5save: {key!r} in {group.name!r} has more than 64 bits: {value:.6g}"
            )
        group[key] = np.asarray(value)
    else:
        raise _type_error(group, key, f"{type(value).__module__}.{type(value).__qualname__}")


def _save_array(
    group: h5py.Group, key: str, array: np.ndarray, compression: Compression
) -> h5py.Dataset:
    chunked = layout(array.shape, array.itemsize, compression)
    if not chunked:
        return group.create_dataset(key, data=array)
    dataset = group.create_dataset(key, array.shape, array.dtype, **chunked)
    with ChunkWriter(partial(nullcontext, dataset)) as writer:
        writer.write(tuple(slice(0, n) for n in array.shape), array)
    return dataset


def _save_tensor(group: h5py.Group, key: str, tensor: Tensor, compression: Compression) -> None:
    tensor = tensor.detach()
    if tensor.is_complex() or tensor.layout != torch.strided or tensor.is_quantized:
        raise _type_error(group, key, f"a tensor of dtype {tensor.dtype}, layout {tensor.layout}")
    tensor = tensor.cpu().resolve_neg()
    half = tensor.dtype == torch.bfloat16
    try:
        array = (tensor.contiguous().view(torch.uint16) if half else tensor).numpy()
    except (TypeError, RuntimeError) as error:
        raise _type_error(group, key, f"a tensor of dtype {tensor.dtype}") from error
    dataset = _save_array(group, key, array, compression)
    dataset.attrs[_MARK] = "bfloat16" if half else "tensor"


def _type_error(group: h5py.Group, key: str, what: str) -> TypeError:
    return TypeError(
        "h5save saves arrays and tensors of floats, integers and booleans, int, float, bool, str, "
        f"None, and dicts, lists and tuples of these; {key!r} in {group.name!r} is {what}"
    )


def _mark(item: h5py.Dataset | h5py.Group) -> str:
    mark = item.attrs.get(_MARK, "")
    return mark if isinstance(mark, str) else ""


def _load_group(group: h5py.Group, mmap: bool, above: tuple[h5py.Group, ...]) -> Any:
    if group in above:  # h5py compares the objects in the file
        raise ValueError(f"h5load: group {group.name!r} in {group.file.filename} contains itself")
    above = (*above, group)
    items: dict[str, object] = {}
    for name in names_in(group):
        item = item_of(group, name)
        if isinstance(item, h5py.Group):
            items[name] = _load_group(item, mmap, above)
        elif isinstance(item, h5py.Dataset):
            items[name] = _load_dataset(item, mmap)
        elif (dead := dead_link(group, name)) is not None:
            raise ValueError(
                f"h5load: {name!r} in {group.name!r} of {group.file.filename} is {dead.text}"
            )
    if _mark(group) in ("list", "tuple"):
        try:
            parts = [items[str(i)] for i in range(len(items))]
        except KeyError as error:
            raise ValueError(
                f"h5load: an item is missing in the {_mark(group)} {group.name!r} of "
                f"{group.file.filename}"
            ) from error
        return tuple(parts) if _mark(group) == "tuple" else parts
    return items


def _load_dataset(dataset: h5py.Dataset, mmap: bool) -> Any:
    if dataset.shape is None:
        return None
    path, mark = dataset.file.filename, _mark(dataset)
    dtype = stored_dtype(dataset)
    text = h5py.check_string_dtype(dtype)
    if text is None and dtype.kind not in "biufc":
        raise TypeError(
            f"h5load: {dataset.name!r} in {path} has dtype {dtype}, which is neither numbers nor "
            "strings"
        )
    check_readable(dataset)
    if mmap and text is None and dataset.ndim:
        path, name = location(dataset) or (path, dataset.name)
        mapped = map_elements(path, name)
        if mark == "bfloat16" and dtype == np.uint16:
            return LazyTensor(LazyDataset(path, name, dataset.shape, dtype))
        return mapped
    _check_memory(dataset)
    if text is not None:
        return _strings(dataset)
    # dtypes are equal unless it is a bitfield, which h5py treats as an integer
    array = np.asarray(dataset[()]).astype(dtype, copy=False)
    if mark == "bfloat16" and array.dtype == np.uint16:
        return torch.from_numpy(array).view(torch.bfloat16)
    if mark == "tensor":
        return torch.from_numpy(array)
    return array if array.ndim or mark == "array" else array.item()


def _check_memory(dataset: h5py.Dataset) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if dataset.nbytes > memory:
        raise MemoryError(
            f"h5load: {dataset.name!r} in {dataset.file.filename} would be {dataset.nbytes} bytes, "
            "more than this machine's memory; load with mmap=True"
        )


def _strings(dataset: h5py.Dataset) -> Any:
    def plain(value: object) -> str:
        return decode(value) if isinstance(value, bytes) else str(value)

    values = dataset[()]
    if not dataset.ndim:
        return plain(values)
    texts = [plain(value) for value in np.asarray(values).ravel()]
    return np.array(texts, dtype=np.str_).reshape(dataset.shape)


def decode(text: bytes) -> str:
    """Decode a fixed-length string: trailing NULs are padding, a truncated character is marked.

    Raises
    ------
    UnicodeDecodeError
        It is otherwise not UTF-8.

    Examples
    --------
    >>> decode("grün".encode()[:3] + bytes(2))
    'gr�'
    """
    text = text.rstrip(b"\0")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            raise
        return text[: error.start].decode() + "�"
