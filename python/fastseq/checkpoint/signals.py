"""Signals that ask a run to save itself: SIGUSR1 to go on afterwards, SIGTERM to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Signals"]


class Signals:
    """Asks for a checkpoint at SIGUSR1, and for an end at SIGTERM; a context manager.

    Only in the main thread, as Python wants it; a signal that the program ignores stays so.

    Parameters
    ----------
    ask
        Called with ``"checkpoint"`` or ``"terminate"``, between two instructions of whatever runs.

    Examples
    --------
    >>> asked = []
    >>> with Signals(asked.append):
    ...     signal.raise_signal(signal.SIGUSR1)
    >>> asked
    ['checkpoint']
    """

    def __init__(self, ask: Callable[[str], None]) -> None:
        self._ask = ask
        self._ends = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGUSR1, signal.SIGTERM):
                # None: set by something other than Python, which could not be set again
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Set the handlers there were; a SIGTERM that came too late does now what they do."""
        self._restore()
        if self._ends:
            self.terminate()

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self._ends = True
        self._ask("terminate" if number == signal.SIGTERM else "checkpoint")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def terminate(self) -> None:
        """Do what SIGTERM did before."""
        self._ends = False
        self._restore()
        signal.raise_signal(signal.SIGTERM)
