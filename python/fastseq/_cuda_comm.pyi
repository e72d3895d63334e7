"""The bucketizer of gradients on a GPU; built from csrc/python/cuda_comm_module.cpp."""

from collections.abc import Sequence
from typing import Any

from ._comm import Bucketizer, Communicator, DType

class Memory:
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...

class DeviceBucketizer(Bucketizer):
    def __init__(
        self,
        comm: Communicator,
        numels: Sequence[int],
        dtypes: Sequence[DType],
        bucket_bytes: int,
        threaded: bool,
        norm: bool,
        device: int,
        exchange: str,
        timeout: float,
        half_wire: bool,
    ) -> None: ...
    @property
    def exchange(self) -> str: ...
    @property
    def packs(self) -> int: ...
    def outcome(self) -> Memory | None: ...
    def places(self) -> list[tuple[list[int], list[int], Memory]]: ...
    def start(  # type: ignore[override]
        self, weight: float, value: int, attention: bool, scale: float, reader: int
    ) -> None: ...
    def ready(self, index: int, address: int, producer: int) -> int: ...  # type: ignore[override]
    def finish(  # type: ignore[override]
        self, reader: int
    ) -> tuple[float, float, int, list[int], bool, float]: ...
