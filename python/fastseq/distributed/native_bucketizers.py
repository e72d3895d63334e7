"""The native bucketizers behind one interface: for gradients on the host, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._util.untyped_torch import external_stream
from ..errors import MissingFeatureError
from .communicators import DTYPES, Communicator, NativeBucketizer, NativeDType

__all__ = ["DeviceBucketizer", "HostBucketizer", "Update"]


class Update(NamedTuple):
    """What all ranks know after an update."""

    weight: float
    attention: bool
    unused: list[int]
    """Parameters without a gradient on any rank."""
    facts: tuple[float, int, float] | Tensor
    """The mean value, the lowest rank with a non-finite gradient or -1, and the norm of the means:
    three numbers, or, where the host does not know them, a tensor of float64 on the GPU, which the
    next update overwrites."""
    raise_if_broken: Callable[[], None] = lambda: None
    """Raises `CommunicationError` if what is in the tensor is no outcome, or will never be, as
    ranks have died: to be called before it is read, and after that."""


class HostBucketizer:
    """Averages gradients on the host.

    It has its own thread only if the rank has a second core: on a single core, the thread would
    only interrupt backward.

    Parameters
    ----------
    comm
        The ranks.
    params
        Whose gradients are averaged.
    bucket_bytes
        Bytes exchanged at a time.
    norm
        Whether the norm of the means is wanted.

    Attributes
    ----------
    exchange
        How the gradients travel.
    places
        Where the means of the parameters' gradients are, in the parameters' layouts.
    members
        The parameters of each bucket, in the order of the buckets.
    native
        The C++ object.
    """

    def __init__(
        self, comm: Communicator, params: Sequence[Tensor], bucket_bytes: int, *, norm: bool
    ) -> None:
        threaded = comm.threaded and torch.get_num_threads() > 1
        self.native: NativeBucketizer = NativeBucketizer(
            comm._native, *_lengths_and_dtypes(params), bucket_bytes, threaded, norm
        )
        self.exchange: str = comm.transport
        self.members: list[list[int]] = _members(self.native)
        groups = []
        for members, offsets, memory in self.native.buffers():
            dtype = params[members[0]].dtype.to_real()
            if memoryview(memory).nbytes:
                comm.warn_unless_shared(memory)
                flat = torch.frombuffer(memory, dtype=dtype)
            else:
                flat = torch.empty(0, dtype=dtype)
            groups.append((members, offsets, flat))
        self.places: list[Tensor] = _views(params, groups)
        self._addresses = [place.data_ptr() for place in self.places]

    def shared_places(self) -> list[Tensor]:
        """Return `places`; raise ValueError if they are elsewhere: ranks would not see them."""
        if [place.data_ptr() for place in self.places] != self._addresses:
            raise ValueError(
                "the memory of a gradient was replaced, as by p.grad.data = …, but ranks share it: "
                "write into the gradient, as by p.grad.copy_(…), or set p.grad"
            )
        return self.places

    @property
    def started(self) -> bool:
        """Whether an update is under way."""
        return self.native.started

    def start(self, weight: float, value: float | Tensor, attention: bool, scale: float) -> None:
        """Start an update; see `Bucketizer.start`."""
        self.native.start(weight, float(value), attention, scale)

    def ready(self, index: int, grad: Tensor) -> int:
        """Take a gradient in its place's layout; return how many buckets have been gathered."""
        return self.native.ready(index, grad.data_ptr())

    def finish(self) -> Update:
        """Wait for all means."""
        weight, value, rank, unused, attention, norm = self.native.finish()
        return Update(weight, attention, unused, (value, rank, norm))

    def abandon(self) -> None:
        """End an update that failed on this rank."""
        self.native.abandon()

    def stop(self) -> None:
        """End all, because the process ends."""
        self.native.stop()


class DeviceBucketizer:
    """Averages gradients on a GPU; see `HostBucketizer`.

    The host waits for other ranks, never for the GPU, unless the gradients travel through its
    memory: what comes after `finish` in the current stream finds the means.
    """

    def __init__(
        self, comm: Communicator, params: Sequence[Tensor], bucket_bytes: int, *, norm: bool
    ) -> None:
        devices = {p.device for p in params}
        if len(devices) != 1:
            raise ValueError(
                f"all trainable parameters must be on one device, got {sorted(map(str, devices))}"
            )
        self._device = devices.pop()
        self._native = self._module().DeviceBucketizer(
            comm._native,
            *_lengths_and_dtypes(params),
            bucket_bytes,
            comm.threaded,
            norm,
            self._device.index or 0,
            comm.gpu_exchange,
            comm.timeout,
            comm.wire_dtype == torch.bfloat16,
        )
        self.exchange: str = self._native.exchange
        self.members: list[list[int]] = _members(self._native)
        groups = []
        for members, offsets, memory in self._native.places():
            dtype = params[members[0]].dtype.to_real()
            groups.append((members, offsets, self._tensor(memory).view(dtype)))
        self.places: list[Tensor] = _views(params, groups)
        outcome = self._native.outcome()
        self._outcome = None if outcome is None else self._tensor(outcome).view(torch.float64)
        self._value: Tensor | None = None  # is read until the update has ended

    @property
    def started(self) -> bool:
        """Whether an update is under way."""
        return bool(self._native.started)

    def start(self, weight: float, value: float | Tensor, attention: bool, scale: float) -> None:
        """Start an update; see `Bucketizer.start`."""
        if isinstance(value, Tensor):
            number = value.detach().to(self._device, torch.float64)
        else:
            number = torch.full((), value, dtype=torch.float64, device=self._device)
        self._native.start(weight, number.data_ptr(), attention, scale, self._stream())
        self._value = number

    def ready(self, index: int, grad: Tensor) -> int:
        """Take a gradient in its place's layout; return how many buckets have been gathered."""
        self._keep(grad)
        return int(self._native.ready(index, grad.data_ptr(), self._stream()))

    def finish(self) -> Update:
        """Make the current stream wait for all means."""
        weight, value, rank, unused, attention, norm = self._native.finish(self._stream())
        facts = (value, rank, norm) if self._outcome is None else self._outcome
        return Update(weight, attention, unused, facts, self._native.raise_if_broken)

    def abandon(self) -> None:
        """End an update that failed on this rank."""
        self._native.abandon()

    def stop(self) -> None:
        """End all, because the process ends."""
        self._native.stop()

    def _module(self) -> Any:
        try:
            from .. import _cuda_comm
        except ImportError as error:
            raise MissingFeatureError(
                "averaging gradients on a GPU needs fastseq built with its CUDA part: install it "
                f"from source beside nvcc and a CUDA build of PyTorch ({error})"
            ) from error
        return _cuda_comm

    def _tensor(self, memory: Any) -> Tensor:
        return torch.as_tensor(memory, device=self._device)

    def _stream(self) -> int:
        """Return the handle of the current stream."""
        return torch.cuda.current_stream(self._device).cuda_stream

    def _keep(self, tensor: Tensor) -> None:
        """Make memory that is freed wait for those who read it."""
        tensor.record_stream(external_stream(self._native.packs, self._device))


def _lengths_and_dtypes(params: Iterable[Tensor]) -> tuple[list[int], list[NativeDType]]:
    """Return the number of real elements of each tensor, and their types."""
    lengths, dtypes = [], []
    for p in params:
        if p.dtype.to_real() not in DTYPES:
            raise TypeError(f"only floating-point gradients can be averaged, got {p.dtype}")
        lengths.append(p.numel() * (2 if p.is_complex() else 1))  # real and imaginary parts
        dtypes.append(DTYPES[p.dtype.to_real()])
    return lengths, dtypes


def _members(native: NativeBucketizer) -> list[list[int]]:
    return [native.members(bucket) for bucket in range(native.bucket_count)]


def _views(
    params: Sequence[Tensor], groups: Iterable[tuple[list[int], list[int], Tensor]]
) -> list[Tensor]:
    """Return each parameter's place in flat vectors, strided as the parameter is."""
    views: list[Tensor] = [torch.empty(0)] * len(params)
    for members, offsets, flat in groups:
        for i, offset in zip(members, offsets, strict=True):
            p = params[i]
            strides = p.stride() if _is_dense(p) else torch.empty(p.shape).stride()
            if p.is_complex():
                parts = flat[offset : offset + 2 * p.numel()].view(-1, 2)
                views[i] = torch.view_as_complex(parts).as_strided(p.shape, strides)
            else:
                views[i] = flat.as_strided(p.shape, strides, offset)
    return views


def _is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor's elements fill their memory without gaps, in any order."""
    expected = 1
    for size, stride in sorted(
        zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]
    ):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
