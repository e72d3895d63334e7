"""Signals that ask a run to save itself: SIGUSR1 to go on afterwards, SIGTERM to end."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Signals"]


class Signals:
    """Remembers SIGUSR1 and SIGTERM instead of what they do by default; a context manager.

    Only in the main thread, as Python wants it; a signal that the program ignores stays so.

    Attributes
    ----------
    came
        Whether one has come that was not taken yet.
    """

    def __init__(self) -> None:
        self.came = False
        self._received: set[int] = set()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGUSR1, signal.SIGTERM):
                # None: set by something other than Python, which could not be set again
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Set the handlers there were; a SIGTERM that nobody has taken does what it does then."""
        self._restore()
        if signal.SIGTERM in self._received:
            self._received.clear()
            signal.raise_signal(signal.SIGTERM)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received.add(number)
        self.came = True

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def take(self) -> bool:
        """Return whether a SIGTERM is among those that came, and forget the others."""
        self.came = False
        self._received.discard(signal.SIGUSR1)
        return signal.SIGTERM in self._received
