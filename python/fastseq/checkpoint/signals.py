"""Signals that ask a run to save itself: SIGUSR1 to continue afterwards, SIGTERM to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Signals"]


class Signals:
    """Asks for a checkpoint at SIGUSR1, and for an end at SIGTERM; a context manager.

    Only in the main thread, as Python requires; signals that the program ignores stay ignored.

    Parameters
    ----------
    ask
        Called with ``"checkpoint"`` or ``"terminate"``, between any two Python instructions.

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
                # None: not set from Python, so it could not be restored
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the earlier handlers; a SIGTERM that came too late is now handled by them."""
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
        """Raise SIGTERM again, for the earlier handler."""
        self._ends = False
        self._restore()
        signal.raise_signal(signal.SIGTERM)
