"""GPU gradients copied through host memory that the ranks share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._util.untyped_torch import cuda_event, cuda_runtime, cuda_stream

__all__ = ["Staging"]


class Staging:
    """Copy gradients from a device to the host while backward runs, and the means back.

    Copies run on a separate stream, each after an event on the stream that made the gradient; the
    device as a whole is never synchronized.

    Parameters
    ----------
    params
        Parameters on one CUDA device.
    host_places
        Where each gradient goes on the host; this memory is registered with CUDA (pinned), so that
        copies are asynchronous.
    """

    def __init__(self, params: Sequence[Tensor], host_places: Sequence[Tensor]) -> None:
        devices = {p.device for p in params}
        if len(devices) != 1 or next(iter(devices)).type != "cuda":
            raise ValueError(
                f"all trainable parameters must be on one device, got {sorted(map(str, devices))}"
            )
        self._device = devices.pop()
        self._host = list(host_places)
        self.device_places = [
            torch.empty_strided(place.shape, place.stride(), dtype=place.dtype, device=self._device)
            for place in host_places
        ]
        self._stream = cuda_stream(self._device)
        self._on_the_way: list[tuple[int, torch.cuda.Event]] = []
        self._register()

    def _register(self) -> None:
        runtime = cuda_runtime()
        self._registered: dict[int, int] = {}
        for place in self._host:
            storage = place.untyped_storage()
            self._registered[storage.data_ptr()] = storage.nbytes()
        self._registered = {address: size for address, size in self._registered.items() if size}
        for address, size in self._registered.items():
            with torch.cuda.device(self._device):  # else it opens a context on the first GPU
                code = int(runtime.cudaHostRegister(address, size, 0))
            if code != 0:
                raise RuntimeError(f"cudaHostRegister of {size} bytes failed with code {code}")

    def close(self) -> None:
        """Unregister the host memory, after all copies."""
        self._stream.synchronize()
        runtime = cuda_runtime()
        for address in self._registered:
            runtime.cudaHostUnregister(address)
        self._registered.clear()

    def fetch(self, index: int, grad: Tensor) -> None:
        """Start copying a gradient to the host."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._host[index].copy_(grad, non_blocking=True)
            grad.record_stream(self._stream)
            event = cuda_event()
            event.record(self._stream)
        self._on_the_way.append((index, event))

    def fetched(self) -> Iterator[int]:
        """Yield the gradients' indices in the order of `fetch`, each once its copy is done."""
        for index, event in self._on_the_way:
            event.synchronize()
            yield index
        self._on_the_way.clear()

    def send_back(self) -> None:
        """Start copying the means to the device; later work on its current stream sees them."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for host, place in zip(self._host, self.device_places, strict=True):
                place.copy_(host, non_blocking=True)
        current.wait_stream(self._stream)
