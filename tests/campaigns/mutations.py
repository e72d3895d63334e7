"""Hostile inputs made from whole ones: bytes, trees of plain values, and files of tensors."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any

__all__ = ["HOSTILE", "SavedFile", "bytes_of_json", "havoc", "mutated"]

_DEEP = "\x01deep"  # stands for lists in lists, which json could not write
HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 1000, 65536, 10**5, 10**7, 2**31 - 1, 2**31, -(2**31),
    2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**15, 10**30, -(10**30), 0.5, -0.0, 1e-320,
    1e308, -1e308, float("nan"), float("inf"), "", " ", "\0", "x", "x" * 3000, "é\ud800"[:1], "-1", "1e9",
    "nan", "auto", "none", "../outside/secret", "/etc/passwd", "outside/secret.h5", "canary_module",
    "canary_module.run", "os.system", "__class__", "__init__", "__reduce__", "builtins.eval",
    "float64", "datetime64[ns]", "<M8[D]", "object", "O", "save", "load", "hub", "D", "999999h", "UTC",
    [], {}, [[]], [None], {"": None}, [0] * 50, {"tensor": "tensor"}, {"tuple": []}, {"dict": []},
    {"float": "nan"}, {"float": "inf"}, {"float": "canary"}, {"dict": [[[], 1]]}, {"dict": [[1, 1], [1, 2]]},
    {"__class__": "os.system"}, _DEEP,
]  # fmt: skip
_BYTES = [b"\0", b"\xff", b"\x80", b"\n", b'"', b"{", b"]", b",", b"-", b"9" * 20, b"\xef\xbb\xbf",
          b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\xed\xa0\x80",
          b"NaN", b"null", b"../", b"[" * 2000]  # fmt: skip


def havoc(rng: Random, whole: bytes, other: bytes = b"", front: int = 0) -> bytes:
    """Return bytes with some of them flipped, replaced, inserted, deleted, repeated or spliced.

    Half of the places are among the first `front` bytes, if there are as many: the structure.
    """
    data = bytearray(whole)
    if rng.random() < 0.1:
        del data[rng.randrange(len(data) + 1) :]
    if other and rng.random() < 0.1:
        data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other)) :]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8, 30))):
        size = len(data)
        if not size:
            break
        at = rng.randrange(min(front, size) if front and rng.random() < 0.5 else size)
        end = min(at + rng.choice((1, 2, 4, 8, 64)), size)
        how = rng.randrange(8)
        if how <= 1:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            data[at] = rng.randrange(256)
        elif how == 3:
            del data[at:end]
        elif how == 4:
            data[at:at] = rng.choice(_BYTES)
        elif how == 5:
            value = rng.choice(_BYTES)[: end - at]
            data[at : at + len(value)] = value
        elif how == 6:
            data[at:at] = data[at:end]
        else:
            number = int.from_bytes(data[at : at + 4], "little") + rng.choice((-1, 1, 16, -16))
            data[at : at + 4] = (number % 2**32).to_bytes(4, "little")[: size - at]
    return bytes(data)


def mutated(rng: Random, tree: Any, words: Sequence[Any] = ()) -> Any:
    """Return a copy of nested dicts and lists with one to four of its parts changed.

    Values come from `HOSTILE`, from `words`, and from other places of the tree.
    """
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            return rng.choice(HOSTILE)
        holder, key = rng.choice(places)
        other = rng.choice(places)
        how = rng.randrange(10)
        if how <= 3:
            holder[key] = _new(rng, holder[key], words)
        elif how == 4:
            del holder[key]
        elif how == 5:
            holder[key] = copy.deepcopy(other[0][other[1]])
        elif how == 6:
            value = copy.deepcopy(other[0][other[1]])
            if isinstance(holder, list):
                holder.insert(key, value)
            else:
                holder[str(rng.choice([*words, "more", "", "__class__", key]))] = value
        elif how == 7 and isinstance(holder, dict):
            holder[str(_new(rng, key, words))] = holder.pop(key)
        elif how == 8:
            holder[key] = [holder[key]]
        elif isinstance(holder[key], list) and holder[key]:
            holder[key] = holder[key] * 2 if rng.random() < 0.5 else holder[key][:-1]
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    left = [tree]
    while left:
        one = left.pop()
        keys = range(len(one)) if isinstance(one, list) else list(one)
        for key in keys:
            found.append((one, key))
            if isinstance(one[key], dict | list):
                left.append(one[key])
    return found


def _new(rng: Random, old: Any, words: Sequence[Any]) -> Any:
    if type(old) in (int, float) and rng.random() < 0.6:
        return rng.choice((old + 1, old - 1, -old, old * 2, 2 * old + 1, old + 0.5, old * 1000))
    if isinstance(old, str) and old and rng.random() < 0.4:
        return havoc(rng, old.encode(errors="replace")).decode(errors="replace")
    if isinstance(old, bool) and rng.random() < 0.6:
        return not old
    return copy.deepcopy(rng.choice(words if words and rng.random() < 0.5 else HOSTILE))


def bytes_of_json(rng: Random, tree: Any) -> bytes:
    """Return JSON, with numbers that JSON does not have, and lists as deep as the parser goes."""
    text = json.dumps(tree)
    mark = json.dumps(_DEEP)
    if mark in text:
        depth = rng.choice((50, 900, 5000, 100_000))
        text = text.replace(mark, rng.choice(("[" * depth + "]" * depth, '{"a":' * depth)))
    return text.encode()


class SavedFile:
    """A file of tensors and text that fastseq has written, to be changed and put together again."""

    def __init__(self, whole: bytes) -> None:
        self.whole = whole
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        self.text: str = header.pop("__metadata__")["fastseq"]
        self.tree: Any = json.loads(self.text)
        self.entries: dict[str, Any] = header
        self.data = whole[8 + length :]

    def changed(self, rng: Random, other: SavedFile, words: Sequence[Any]) -> tuple[str, bytes]:
        """Return a file that is not what was written, and how it was made."""
        how = rng.choice(("bytes", "header", "text", "tree", "tree", "tree", "tensors", "spliced"))
        if how == "bytes":
            return how, havoc(rng, self.whole, other.whole, front=len(self.whole) - len(self.data))
        if how == "header":
            entries = mutated(rng, {"__metadata__": self._about(self.text), **self.entries}, words)
            return how, self._joined(bytes_of_json(rng, entries), self.data)
        if how == "text":
            text = havoc(rng, self.text.encode(), other.text.encode()).decode(errors="replace")
            return how, self.rebuilt(text)
        if how == "tree":
            text = bytes_of_json(rng, mutated(rng, self.tree, words)).decode()
            return how, self.rebuilt(text)
        if how == "tensors":
            return how, self._other_tensors(rng)
        tree = copy.deepcopy(self.tree)
        places, others = _places(tree), _places(other.tree)
        for _ in range(rng.choice((1, 2, 5))):
            holder, key = rng.choice(places)
            there, its = rng.choice(others)
            if isinstance(holder, dict) or key < len(holder):
                holder[key] = copy.deepcopy(there[its])
        return how, self.rebuilt(json.dumps(tree))

    def rebuilt(self, text: str) -> bytes:
        """Return the file with another text, whose checksum is right."""
        header = {"__metadata__": self._about(text), **self.entries}
        return self._joined(json.dumps(header).encode(), self.data)

    def _other_tensors(self, rng: Random) -> bytes:
        """Return the file with other numbers, shapes, types or names of tensors, and checksum."""
        entries = copy.deepcopy(self.entries)
        data = bytearray(self.data)
        names = list(entries)
        for name in rng.sample(names, min(rng.choice((1, 1, 2, 5)), len(names))):
            entry = entries[name]
            begin, end = entry["data_offsets"]
            how = rng.randrange(6)
            if how == 0 and end > begin:
                for at in range(begin, end):
                    data[at] = 0xFF  # NaN, or -1
            elif how == 1 and end - begin >= 8:
                extreme = struct.pack("<q", rng.choice((2**62, -(2**62), 10**9, -1, 2**31)))
                data[begin : begin + 8] = extreme
            elif how == 2:
                sizes = {"F64": "I64", "I64": "F64", "F32": "I32", "I32": "F32", "U8": "BOOL"}
                entry["dtype"] = sizes.get(entry["dtype"], entry["dtype"])
            elif how == 3:
                entry["shape"] = entry["shape"][::-1]
            elif how == 4:
                entry["shape"] = rng.choice(([*entry["shape"], 1], [1, *entry["shape"]]))
            else:
                other = rng.choice(names)
                if (
                    entries[other]["data_offsets"][1] - entries[other]["data_offsets"][0]
                    == end - begin
                ):
                    entries[name], entries[other] = entries[other], entries[name]
        header = {"__metadata__": self._about(self.text, bytes(data), entries), **entries}
        return self._joined(json.dumps(header).encode(), bytes(data))

    def _about(
        self, text: str, data: bytes | None = None, entries: dict[str, Any] | None = None
    ) -> dict[str, str]:
        """Return the text with the checksum of text and tensors, in the order in which it goes."""
        data = self.data if data is None else data

        def order(pair: tuple[str, Any]) -> tuple[int, str]:
            kind = pair[1]["dtype"]
            size = (
                1
                if kind == "BOOL" or "F8" in kind
                else int("".join(filter(str.isdigit, kind))) // 8
            )
            return -size, pair[0]

        checksum = zlib.crc32(text.encode(errors="surrogatepass"))
        for _, entry in sorted((entries or self.entries).items(), key=order):
            begin, end = entry["data_offsets"]
            checksum = zlib.crc32(data[begin:end], checksum)
        return {"fastseq": text, "crc32": str(checksum)}

    def _joined(self, header: bytes, data: bytes) -> bytes:
        return len(header).to_bytes(8, "little") + header + data
