"""GPU gradients averaged by NCCL, if each rank has its own GPU."""

from __future__ import annotations

import datetime
import math
import socket
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._util.torch_internals import copy_each_
from .communicators import Communicator

__all__ = ["DeviceExchange", "nccl_fits"]


def nccl_fits(comm: Communicator, device: torch.device) -> bool:
    """Return whether all ranks can use NCCL: available, and no GPU shared. Collective."""
    fits = (
        comm.size > 1
        and device.type == "cuda"
        and torch.distributed.is_available()
        and torch.distributed.is_nccl_available()
        and comm.local_size <= torch.cuda.device_count()
    )
    return bool(comm.allreduce_(torch.tensor(float(fits))) == 1)


def _address(comm: Communicator) -> tuple[str, int]:
    """Return a host name and a free port of rank 0."""
    with socket.socket() as free:
        free.bind(("", 0))
        mine = f"{socket.gethostname()} {free.getsockname()[1]}"
    host, port = comm.broadcast_bytes(mine.encode(), 0).decode().split()
    return host, int(port)


class DeviceExchange:
    """Average gradients on the device, through a separate torch.distributed group.

    Does what the native bucketizer does for gradients on the host, in one piece: gradients are
    copied into a flat buffer per dtype, weighted, summed over the ranks by the group, and read
    from there. The group is set up through fastseq's communicator.

    Parameters
    ----------
    params
        Parameters on one device.
    comm
        The ranks.
    norm
        Whether `finish` returns the norm of the averaged gradients.
    """

    bucket_count = 1
    backend = "ProcessGroupNCCL"

    def __init__(self, params: Sequence[Tensor], comm: Communicator, *, norm: bool = False) -> None:
        self._params = list(params)
        self._norm = norm
        self._comm = comm.duplicate()  # `comm` is reserved during an update
        host, port = _address(comm)
        patience = datetime.timedelta(seconds=comm.timeout)
        distributed: Any = torch.distributed
        store = distributed.TCPStore(
            host, port, comm.size, is_master=comm.rank == 0, timeout=patience
        )
        group = getattr(distributed, self.backend)
        self._group = group(store, comm.rank, comm.size, timeout=patience)
        self._flats: list[Tensor] = []
        self.places: list[Tensor] = [torch.empty(0)] * len(self._params)
        for dtype in dict.fromkeys(p.dtype for p in self._params):
            members = [i for i, p in enumerate(self._params) if p.dtype == dtype]
            sizes = [self._params[i].numel() for i in members]
            flat = torch.zeros(sum(sizes), dtype=dtype, device=self._params[members[0]].device)
            for i, piece in zip(members, torch.split(flat, sizes), strict=True):
                self.places[i] = piece.view(self._params[i].shape)
            self._flats.append(flat)
        self.started = False

    def start(
        self, weight: float, value: float, attention: bool = False, scale: float = 1.0
    ) -> None:
        """Start an update; see `Bucketizer.start`."""
        if self.started:
            raise RuntimeError("an update is under way already: call wait() first")
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be a finite number that is not negative, got {weight}")
        self.started = True
        self._weight, self._value, self._attention = weight, value, attention
        self._scale = scale

    def finish(self) -> tuple[float, float, int, list[int], bool, float]:
        """Average the gradients; return the same as the native bucketizer's ``finish``."""
        if not self.started:
            raise RuntimeError(
                "no update is under way: wait() comes after start() or a backward pass"
            )
        self.started = False
        weight, size = self._weight, self._comm.size
        given = [i for i, p in enumerate(self._params) if p.grad is not None and weight]
        with torch.no_grad():
            pairs = [(self.places[i], g) for i in given if (g := self._params[i].grad) is not None]
            # Gradients may already be in place, as after `wait`.
            moves = [(a, g) for a, g in pairs if a.data_ptr() != g.data_ptr()]
            if moves:
                places, grads = zip(*moves, strict=True)
                copy_each_(places, grads)
            for i in set(range(len(self._params))) - set(given):
                self.places[i].zero_()
            finite = all(bool(flat.isfinite().all()) for flat in self._flats)
            facts = torch.zeros(3 + size + len(self._params), dtype=torch.float64)
            facts[0], facts[1] = weight, weight * self._value if weight else 0.0
            facts[2] = float(self._attention)
            facts[3 + self._comm.rank] = float(not finite)
            for i in given:
                facts[3 + size + i] = 1
            self._comm.allreduce_(facts, "sum")
            total = float(facts[0])
            for flat in self._flats:
                flat.mul_(weight / total * self._scale if total else 0.0)
                self._group.allreduce([flat]).wait()
            norm = float(nn.utils.get_total_norm(self._flats)) if self._norm else 0.0
        bad = facts[3 : 3 + size].nonzero().flatten().tolist()
        unused = (facts[3 + size :] == 0).nonzero().flatten().tolist()
        mean = float(facts[1]) / total if total else 0.0
        return total, mean, bad[0] if bad else -1, unused, bool(facts[2]), norm

    def abandon(self) -> None:
        """End an update; nothing is exchanged before `finish`."""
        self.started = False

    stop = abandon
