"""The native reader; built from csrc/python/reader_module.cpp."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

class ElementType:
    __members__: ClassVar[dict[str, ElementType]]
    bool: ClassVar[ElementType]
    int8: ClassVar[ElementType]
    uint8: ClassVar[ElementType]
    int16: ClassVar[ElementType]
    uint16: ClassVar[ElementType]
    int32: ClassVar[ElementType]
    uint32: ClassVar[ElementType]
    int64: ClassVar[ElementType]
    uint64: ClassVar[ElementType]
    float16: ClassVar[ElementType]
    bfloat16: ClassVar[ElementType]
    float32: ClassVar[ElementType]
    float64: ClassVar[ElementType]
    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class SlabReader:
    def __init__(self) -> None: ...
    def add_file(self, path: str | os.PathLike[str], strict: bool) -> int: ...
    def add_memory(self, address: int) -> int: ...
    # (from_type, swapped, to_type, pieces (P, 7), address, numel, features, center, inverse)
    def submit(self, reads: list[Any]) -> None: ...
    def wait(self) -> list[int]: ...
    def close(self) -> None: ...

def convert(
    from_type: ElementType,
    swapped: bool,
    to_type: ElementType,
    from_address: int,
    numel: int,
    to_address: int,
    features: int = 1,
    center: int | None = None,
    inverse: int | None = None,
) -> int: ...

_Bytes = bytes | bytearray | memoryview | np.ndarray

def unshuffle(source: _Bytes, item: int, to: np.ndarray) -> None: ...
def fletcher32(source: _Bytes) -> int: ...
def undo_scale_offset(source: _Bytes, parameters: Sequence[int], to: np.ndarray) -> None: ...
