"""The cores that decompression may use beside the training that it reads for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from .._util.threads import cores

__all__ = ["SpareCores"]

_SECONDS = 0.1


class SpareCores:
    """Tells a reader how many threads may decompress: those that nobody else needs now.

    Threads that compute wait for each other: one that shares its core with a thread that
    decompresses delays all. Where no core is spare, it is faster to decompress much at a time, on
    all cores, while the training waits for data.

    Examples
    --------
    >>> spare = SpareCores()
    >>> with spare.awaited():
    ...     spare.threads() == cores()
    True
    """

    def __init__(self) -> None:
        self._awaited = threading.Event()

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Hold while the caller waits for data, and computes nothing."""
        self._awaited.set()
        try:
            yield
        finally:
            self._awaited.clear()

    def some(self) -> bool:
        """Return whether PyTorch leaves a core idle."""
        return cores() > torch.get_num_threads()

    def threads(self) -> int:
        """Return how many threads may decompress now, 1 at least."""
        spare = cores() if self._awaited.is_set() else cores() - torch.get_num_threads()
        return max(spare, 1)

    def wait(self) -> None:
        """Wait until a core is spare, but no longer than it takes to decompress a few chunks."""
        if not self.some():
            self._awaited.wait(_SECONDS)

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        SpareCores.__init__(self)
