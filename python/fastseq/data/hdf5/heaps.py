"""Global heaps of HDF5 files, checked before HDF5 reads them.

They hold the names of virtual datasets' sources, and variable-length strings. HDF5 (at least 2.0)
loops forever in a heap with an object of size 0, and writes out of bounds when it decodes a damaged
selection, since it verifies the checksum only after decoding.
"""

from __future__ import annotations

import os
import re

__all__ = ["check_heaps"]

# Virtual files are small, 100 bytes per source. Larger files are not searched: that takes as long
# as copying them.
_MAX_BYTES = 2 * 2**20
_SIGNATURE = b"GCOL\x01\0\0\0"
# A virtual dataset's sources: version, count, then the first source's file and dataset names.
_SOURCES = re.compile(rb"[\0\1].{4}\0\0\0\0[^\0]+\0[^\0]+\0", re.DOTALL)


def check_heaps(path: str) -> None:
    """Raise if a global heap in a small file is damaged; larger files are not checked.

    Raises
    ------
    ValueError
        The message names the file and the place.
    """
    if not 0 < os.path.getsize(path) <= _MAX_BYTES:
        return
    # Read, not mapped: if another process cuts the file short, that would end this one.
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES)
    at = data.find(_SIGNATURE) if _wide(data) else -1
    while at >= 0:
        end = at + _number(data, at + 8)
        if end > len(data) or not _walk(data, at + 16, end):
            raise ValueError(f"{path} is damaged: its heap at byte {at} is inconsistent")
        at = data.find(_SIGNATURE, at + 1)


def _wide(data: bytes) -> bool:
    """Return whether sizes are 8 bytes, as in all files but some that were made small."""
    start = 0
    while data[start : start + 8] != b"\x89HDF\r\n\x1a\n":  # after a user block
        start = start * 2 or 512
        if start >= len(data):
            return False
    if start + 15 > len(data):
        return False
    return data[start + (14 if data[start + 8] < 2 else 10)] == 8


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def _walk(data: bytes, at: int, end: int) -> bool:
    """Return whether objects fill the heap up to its end, and sources match their checksums."""
    while at + 16 <= end:
        index, size = int.from_bytes(data[at : at + 2], "little"), _number(data, at + 8)
        needed = 16 + -(-size // 8) * 8 if index else size  # object 0 is all the free space
        if needed < 16 or at + needed > end:
            return False
        content = data[at + 16 : at + 16 + size] if index else b""
        if _SOURCES.match(content) and _lookup3(content[:-4]) != int.from_bytes(
            content[-4:], "little"
        ):
            return False
        at += needed
    return True


def _lookup3(text: bytes) -> int:
    """Return Bob Jenkins' hash (lookup3.c, May 2006), which HDF5 uses as a checksum."""
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(text)) & mask

    def rotated(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    words = [
        int.from_bytes(text[i : i + 4].ljust(4, b"\0"), "little") for i in range(0, len(text), 4)
    ]
    words += [0] * (-len(words) % 3)
    for i in range(0, len(words), 3):
        a, b, c = (a + words[i]) & mask, (b + words[i + 1]) & mask, (c + words[i + 2]) & mask
        if i + 3 == len(words):
            break
        a = ((a - c) & mask) ^ rotated(c, 4)
        c = (c + b) & mask
        b = ((b - a) & mask) ^ rotated(a, 6)
        a = (a + c) & mask
        c = ((c - b) & mask) ^ rotated(b, 8)
        b = (b + a) & mask
        a = ((a - c) & mask) ^ rotated(c, 16)
        c = (c + b) & mask
        b = ((b - a) & mask) ^ rotated(a, 19)
        a = (a + c) & mask
        c = ((c - b) & mask) ^ rotated(b, 4)
        b = (b + a) & mask
    if words:
        c = ((c ^ b) - rotated(b, 14)) & mask
        a = ((a ^ c) - rotated(c, 11)) & mask
        b = ((b ^ a) - rotated(a, 25)) & mask
        c = ((c ^ b) - rotated(b, 16)) & mask
        a = ((a ^ c) - rotated(c, 4)) & mask
        b = ((b ^ a) - rotated(a, 14)) & mask
        c = ((c ^ b) - rotated(b, 24)) & mask
    return c
