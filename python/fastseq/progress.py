"""A progress bar over all steps of a run: loss or label, steps per second, time left."""

from __future__ import annotations

import math
import time
from types import TracebackType

from tqdm.auto import tqdm

__all__ = ["Progress"]

_REDRAW_SECONDS = 0.1


class Progress:
    """A bar on standard error, or in the notebook.

    Parameters
    ----------
    total
        Steps of the whole run.
    shown
        Draw nothing if false.
    label
        What stands before the bar until `epoch` says otherwise.
    delay
        Draw nothing of runs that take fewer seconds.
    """

    def __init__(self, total: int, *, shown: bool, label: str = "", delay: float = 0.0) -> None:
        self._bar = None
        if shown:
            self._bar = tqdm(
                total=total, unit="step", desc=label or None, delay=delay, dynamic_ncols=True
            )
        self._done = 0
        self._loss = math.nan
        self._drawn = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.close()

    def epoch(self, number: int) -> None:
        """Show which epoch this is."""
        if self._bar is not None:
            self._bar.set_description(f"epoch {number}", refresh=False)

    def step(self, loss: float | None = None) -> None:
        """Count a step; redraw if the last time is a while ago."""
        if self._bar is None:
            return
        self._done += 1
        if loss is not None:
            self._loss = loss
        now = time.monotonic()
        if now - self._drawn >= _REDRAW_SECONDS:
            self._drawn = now
            self._draw()

    def _draw(self) -> None:
        assert self._bar is not None
        if not math.isnan(self._loss):
            self._bar.set_postfix_str(f"loss {self._loss:.4g}", refresh=False)
        self._bar.update(self._done)
        self._done = 0
