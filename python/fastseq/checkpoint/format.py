"""One file of tensors and text: written under another name and renamed, checked when read.

The format is safetensors, with the text and a checksum of everything in the header's metadata.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._util.atomic_file import replacing
from ..errors import CheckpointError

__all__ = ["DTYPES", "Image", "read", "tensors_checksum", "write"]

_KEY, _SUM = "fastseq", "crc32"

# The data starts at a multiple of this, in memory and in the file: writing past the page cache
# needs alignment to blocks of the disk, which are no larger.
_ALIGNED = 4096
_AT_ONCE = 4 << 20  # bytes per call

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


class Image:
    """The contents of a file, in its own memory, which is reused.

    Examples
    --------
    >>> image = Image()
    >>> image.take({"a": torch.ones(2)}, "some text")
    >>> image.nbytes
    8
    """

    def __init__(self) -> None:
        self._layout: Any = None
        self._data = torch.empty(0, dtype=torch.uint8)
        self._places: list[Tensor] = []
        self._entries: dict[str, Any] = {}
        self._text = ""

    @property
    def nbytes(self) -> int:
        """The size of the tensors in bytes."""
        return self._data.numel()

    def take(self, tensors: Mapping[str, Tensor], text: str) -> None:
        """Copy tensors, from any device."""
        self._text = text
        named = _in_order(tensors)
        layout = [(name, a.shape, a.dtype) for name, a in named]
        if layout != self._layout:
            self._lay_out(layout)
        with torch.no_grad():
            for place, (_, a) in zip(self._places, named, strict=True):
                place.copy_(a)

    def _lay_out(self, layout: list[tuple[str, torch.Size, torch.dtype]]) -> None:
        self._entries = {}
        end = 0
        for name, shape, dtype in layout:
            begin, end = end, end + shape.numel() * dtype.itemsize
            self._entries[name] = {
                "dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]
            }  # fmt: skip
        memory = torch.empty(end + _ALIGNED, dtype=torch.uint8)
        self._data = memory[-memory.data_ptr() % _ALIGNED :][:end]
        self._places = []
        for name, shape, dtype in layout:
            begin, end = self._entries[name]["data_offsets"]
            place = self._data[begin:end]
            self._places.append(place.view(dtype).view(shape))
        self._layout = layout

    def parts(self) -> tuple[bytes, memoryview]:
        """Return header and data, in the order of the file."""
        data = _memory(self._data)
        checksum = zlib.crc32(data, zlib.crc32(self._text.encode()))
        about = {_KEY: self._text, _SUM: str(checksum)}
        header = json.dumps({"__metadata__": about, **self._entries}).encode()
        header += b" " * (-(len(header) + 8) % _ALIGNED)
        return len(header).to_bytes(8, "little") + header, data


def _in_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return tensors in the order of a file, in which each is aligned for its dtype."""
    return sorted(tensors.items(), key=lambda pair: (-pair[1].element_size(), pair[0]))


def write(path: Path, image: Image) -> None:
    """Write a file, which gets its name only when it is whole.

    Raises
    ------
    OSError
        It could not be written; an earlier file of this name is still there.
    """
    header, data = image.parts()
    with replacing(path) as beside, open(beside, "wb", buffering=0) as file:
        _write_all(file, memoryview(header))
        _write_all(file, data[_write_directly(file, data) :])


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _write_directly(file: FileIO, data: memoryview) -> int:
    """Write whole blocks past the page cache; return the number of bytes written.

    Copying into the cache would take processor time from the training that runs meanwhile. If this
    fails, as on some file systems, the rest is left to be written in the usual way, which raises.
    """
    if not hasattr(os, "O_DIRECT"):  # not on every system
        return 0
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    done, whole = 0, len(data) // _ALIGNED * _ALIGNED
    with contextlib.suppress(OSError):
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
        while done < whole:
            done += file.write(data[done : min(done + _AT_ONCE, whole)])
    fcntl.fcntl(file, fcntl.F_SETFL, flags)
    return done


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return tensors and text of a file.

    Raises
    ------
    CheckpointError
        It is not whole, or not such a file; pickles are named as such, and not opened.
    OSError
        It does not exist, or cannot be read.
    """
    with open(path, "rb") as file:
        begin = file.read(9)
    if begin[8:] != b"{" and (begin[:1] == b"\x80" or begin[:2] == b"PK"):
        raise CheckpointError(
            f"{path} looks like a pickle, as torch.save writes: opening one could run code, so "
            "fastseq reads only safetensors files that it wrote"
        )
    try:
        with safe_open(path, framework="pt") as opened:
            about = opened.metadata() or {}
            # Copies: the file may be removed or overwritten while they are in use.
            names = opened.keys()
            tensors = {name: opened.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is incomplete, or was not written by fastseq: {error!s:.300}"
        ) from error
    if _KEY not in about or _SUM not in about:
        raise CheckpointError(f"{path} holds tensors, but was not written by fastseq")
    checksum = tensors_checksum(tensors, zlib.crc32(about[_KEY].encode()))
    if str(checksum) != about[_SUM]:
        raise CheckpointError(f"{path} is damaged: its checksum does not match its contents")
    return tensors, about[_KEY]


def tensors_checksum(tensors: Mapping[str, Tensor], checksum: int = 0) -> int:
    """Return the CRC-32 of the contents of tensors, in the order of a file.

    Examples
    --------
    >>> tensors_checksum({"a": torch.zeros(1)})
    558161692
    """
    for _, tensor in _in_order(tensors):
        if tensor.numel():
            data = tensor.detach().cpu().reshape(-1).view(torch.uint8)
            checksum = zlib.crc32(_memory(data), checksum)
    return checksum


def _memory(data: Tensor) -> memoryview:
    array: Any = data.numpy()
    return memoryview(array)
