"""Turns at drawing from PyTorch's random number generators, which all threads share.

Seeded code draws the same numbers regardless of other threads: one thread draws at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .locks import Lock
from .untyped_torch import cuda_is_in_use

__all__ = ["Draws", "seeded", "untouched"]

_turn = Lock()  # to draw


class Draws:
    """Context manager for code that may draw random numbers.

    One thread has its turn at a time; the others wait. If nothing is drawn between `watch` and
    `look`, the turn is given back, and several threads run side by side.

    Parameters
    ----------
    seed
        Seed; the generators are restored afterwards. None: do not seed.
    device
        Device that the code draws on, besides the CPU.
    turns
        Whether threads take turns. False where ranks wait for each other: threads may arrive in a
        different order on each rank.

    Examples
    --------
    >>> def drawn():
    ...     with Draws(5, torch.device("cpu"), turns=True):
    ...         return torch.rand(2)
    >>> torch.equal(drawn(), drawn())
    True
    """

    def __init__(self, seed: int | None, device: torch.device, *, turns: bool) -> None:
        self._seed = seed
        self._device = device
        self._has_turn = turns
        self._state: torch.Tensor | None = None

    def __enter__(self) -> Draws:
        if self._has_turn:
            _turn.acquire()
        if self._seed is not None:
            _forks.begin(self._device)
            _set_seed(self._seed, self._device)
        return self

    def watch(self) -> None:
        """Start to watch what is drawn."""
        if self._has_turn and self._device.type == "cpu":
            self._state = torch.get_rng_state()

    def look(self) -> None:
        """Give the turn back if nothing was drawn between `watch` and the first call of this."""
        if self._state is not None:
            drawn = not torch.equal(self._state, torch.get_rng_state())
            self._state = None
            if not drawn:
                self._has_turn = False
                _turn.release()

    def __exit__(self, *_: object) -> None:
        if self._seed is not None:
            _forks.end()
        if self._has_turn:
            _turn.release()


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed PyTorch's generators for the body of a ``with``, and restore them afterwards.

    Parameters
    ----------
    seed
        The seed.
    device
        Device that the body draws on, besides the CPU. None: the current GPU if CUDA is in use.

    Examples
    --------
    >>> with seeded(0):
    ...     a = torch.rand(1)
    >>> with seeded(0):
    ...     b = torch.rand(1)
    >>> torch.equal(a, b)
    True
    """
    if device is None:
        device = torch.device("cuda" if cuda_is_in_use() else "cpu")
    with Draws(seed, device, turns=True):
        yield


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """Keep PyTorch's generators unchanged, even if the body of the ``with`` draws numbers.

    While another thread has its turn, the generators are not restored: that would undo the other
    thread's draws too.
    """
    if not _turn.acquire(blocking=False):
        yield
        return
    try:
        with torch.random.fork_rng(_indices(device)):
            yield
    finally:
        _turn.release()


class _Forks:
    """Generator states from before the first of several threads seeded them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0
        self._before: dict[int | None, torch.Tensor] = {}
        self._own = threading.local()  # nested forks

    def begin(self, device: torch.device) -> None:
        stack = self._own.__dict__.setdefault("stack", [])
        if stack:
            stack.append(_states(device))
            return
        stack.append(None)
        with self._lock:
            self._count += 1
            self._before = {**_states(device), **self._before}

    def end(self) -> None:
        within = self._own.stack.pop()
        if within is not None:
            _restore(within)
            return
        with self._lock:
            self._count -= 1
            if not self._count:
                before, self._before = self._before, {}
                _restore(before)


_forks = _Forks()


def _indices(device: torch.device) -> list[int]:
    """Return the indices of the GPUs concerned; the others are not initialized."""
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]


def _set_seed(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    for index in _indices(device):
        with torch.cuda.device(index):
            torch.cuda.manual_seed(seed)


def _states(device: torch.device) -> dict[int | None, torch.Tensor]:
    states: dict[int | None, torch.Tensor] = {None: torch.get_rng_state()}
    for index in _indices(device):
        states[index] = torch.cuda.get_rng_state(index)
    return states


def _restore(states: dict[int | None, torch.Tensor]) -> None:
    for index, state in states.items():
        if index is None:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, index)
