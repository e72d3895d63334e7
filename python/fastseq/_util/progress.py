"""Progress bar over all chunks of a run: losses or label, chunks per second, time left."""

from __future__ import annotations

import math
import time
from types import TracebackType

from tqdm.auto import tqdm

__all__ = ["Progress"]

_REDRAW_SECONDS = 0.1


class Progress:
    """Progress bar on standard error, or in the notebook (with ipywidgets).

    It reads, for example::

        epoch 3/10:  25%|██▌       | 500/2000 [00:04<00:12, 121chunk/s, loss 0.1234, val 0.1345]

    that is: epoch (or label), fraction of this call's chunks done, chunks done of the total, time
    taken and estimated time left, recent chunks per second, loss of the last update, and validation
    loss of the last epoch. It is redrawn at most ten times a second.

    Parameters
    ----------
    total
        Chunks of the whole run.
    shown
        Whether to draw anything.
    label
        Text before the bar until `epoch` is called.
    delay
        Draw nothing before this many seconds have passed.
    """

    def __init__(self, total: int, *, shown: bool, label: str = "", delay: float = 0.0) -> None:
        self._bar = None
        if shown:
            self._bar = tqdm(
                total=total, unit="chunk", desc=label or None, delay=delay, dynamic_ncols=True
            )
        self._done = 0
        self._loss = self._validation_loss = math.nan
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

    def epoch(self, number: int, last: int | None = None) -> None:
        """Show which epoch this is, and which is the last one."""
        if self._bar is not None:
            of = "" if last is None else f"/{last}"
            self._bar.set_description(f"epoch {number}{of}", refresh=False)

    def validated(self, loss: float) -> None:
        """Show a validation loss from now on."""
        self._validation_loss = loss

    def advance(self, loss: float | None = None, chunks: int = 1) -> None:
        """Count chunks; redraw if the last redraw is long enough ago."""
        if self._bar is None:
            return
        self._done += chunks
        if loss is not None:
            self._loss = loss
        now = time.monotonic()
        if now - self._drawn >= _REDRAW_SECONDS:
            self._drawn = now
            self._draw()

    def _draw(self) -> None:
        assert self._bar is not None
        losses = (("loss", self._loss), ("val", self._validation_loss))
        shown = [f"{name} {loss:.4g}" for name, loss in losses if not math.isnan(loss)]
        if shown:
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.update(self._done)
        self._done = 0
