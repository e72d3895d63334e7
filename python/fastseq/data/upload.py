"""Copies of chunks to a GPU, overlapping its work."""

from __future__ import annotations

import torch

from .._util.tree import Tree, tree_map
from .._util.untyped_torch import cuda_stream
from ..nn.lengths import beside

__all__ = ["Uploader"]

_IN_FLIGHT = 2


class Uploader:
    """Copy batches to a GPU on a separate stream, so that the next copy overlaps an update.

    Batches in pinned memory are kept until their copies are done, so that their buffers are not
    refilled before. This part has not yet run on a GPU.

    Parameters
    ----------
    device
        The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = cuda_stream(device)
        self._kept: list[tuple[torch.cuda.Event, Tree]] = []

    def __call__(self, batch: Tree) -> Tree:
        """Return a copy on the GPU; later work on the current stream may use it."""
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            copied = tree_map(lambda a: a.to(self._device, non_blocking=True), batch)
            done = self._stream.record_event()
        current.wait_event(done)
        tree_map(beside, (copied.ws, copied.lengths), (batch.ws, batch.lengths))
        tree_map(lambda a: a.record_stream(current), copied)
        self._kept.append((done, batch))
        while len(self._kept) > _IN_FLIGHT:
            event, _ = self._kept.pop(0)
            event.synchronize()
        return copied
