"""Progress of a run: a bar over all its chunks or, where nothing is redrawn, a line per epoch."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm.asyncio import tqdm as terminal_tqdm
from tqdm.auto import tqdm

__all__ = ["Progress"]

_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 1.0


class Progress:
    """Progress bar on standard error, or in the notebook (with ipywidgets).

    The bar reads, for example::

        epoch 3/10:  25%|██▌       | 500/2000 [00:04<00:12, 121chunk/s, loss 0.1234, val 0.1345]

    that is: epoch (or label), fraction of this call's chunks done, chunks done of the total, time
    taken and estimated time left, recent chunks per second, loss of the last update, and validation
    loss of the last epoch. It is redrawn at most ten times a second.

    Standard error that is no terminal, such as a batch job's log, gets a line for an epoch instead,
    at most one a second, and always that of the last epoch::

        epoch 3/10: loss 0.1234, val 0.1345, 4.2 s

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
        self._lines = shown and not _redraws()
        self._line, self._written = "", -math.inf
        if shown and not self._lines:
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
        self._write()

    def epoch(self, number: int, last: int | None = None) -> None:
        """Show which epoch this is, and which is the last one."""
        if self._bar is not None:
            of = "" if last is None else f"/{last}"
            self._bar.set_description(f"epoch {number}{of}", refresh=False)

    def ended(self, row: Mapping[str, float], last: int | None = None) -> None:
        """Show an epoch's row of the history, and which epoch is the last one."""
        self._validation_loss = row.get("validation_loss", math.nan)
        if not self._lines:
            return
        of = "" if last is None else f"/{last}"
        losses = _text(row["loss"], self._validation_loss)
        self._line = f"epoch {row['epoch']}{of}: {', '.join(losses)}, {row['seconds']:.1f} s"
        if time.monotonic() - self._written >= _LINE_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._line:
            print(self._line, file=sys.stderr, flush=True)
            self._line, self._written = "", time.monotonic()

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
        shown = _text(self._loss, self._validation_loss)
        if shown:
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.update(self._done)
        self._done = 0


def _text(loss: float, validation_loss: float) -> list[str]:
    losses = (("loss", loss), ("val", validation_loss))
    return [f"{name} {value:.4g}" for name, value in losses if not math.isnan(value)]


def _redraws() -> bool:
    """Return whether something can be redrawn: in a terminal, or in a notebook."""
    return tqdm is not terminal_tqdm or sys.stderr.isatty()
