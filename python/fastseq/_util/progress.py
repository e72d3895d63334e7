"""Progress of a run: a bar over all its chunks or, where nothing is redrawn, a line per epoch."""

from __future__ import annotations

import math
import numbers
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tqdm.asyncio import tqdm as terminal_tqdm
from tqdm.auto import tqdm

__all__ = ["Progress", "epoch_line"]

_REDRAW_SECONDS = 0.1
# Numbers of an epoch that its line leaves out, or has at another place.
_ELSEWHERE = ("epoch", "loss", "validation_loss", "lr", "updates", "seconds", "updates_per_second")


class Progress:
    """Progress bar on standard error, or in the notebook (with ipywidgets).

    The bar reads, for example::

        epoch 3/10:  25%|██▌       | 500/2000 [00:04<00:12, 121chunk/s, loss 0.1234, val 0.1345]

    that is: epoch (or label), fraction of this call's chunks done, chunks done of the total, time
    taken and estimated time left, recent chunks per second, loss of the last update, and validation
    loss of the last epoch. It is redrawn at most ten times a second.

    Standard error that is no terminal, such as a batch job's log, gets a line for each epoch
    instead, see `epoch_line`.

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

    def epoch(self, number: int, last: int | None = None) -> None:
        """Show which epoch this is, and which is the last one."""
        if self._bar is not None:
            of = "" if last is None else f"/{last}"
            self._bar.set_description(f"epoch {number}{of}", refresh=False)

    def ended(self, row: Mapping[str, float], last: int | None = None) -> None:
        """Show an epoch's row of the history, and which epoch is the last one."""
        self._validation_loss = row.get("validation_loss", math.nan)
        if self._lines:
            print(epoch_line(row, last), file=sys.stderr, flush=True)

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


def epoch_line(row: Mapping[str, Any], last: int | None = None) -> str:
    """Return the line of an epoch: its losses, metrics, learning rate and time.

    Parameters
    ----------
    row
        Its row of the history; what is no number is left out.
    last
        The last epoch's number, if it is known.

    Examples
    --------
    >>> row = {"epoch": 3, "loss": 0.1234, "lr": 0.001, "seconds": 4.2, "r2": 0.9}
    >>> epoch_line(row, 10)
    'epoch 3/10: loss 0.1234, r2 0.9, lr 0.001, 4.2 s'
    """
    of = "" if last is None else f"/{last}"
    metrics = [name for name in row if name not in _ELSEWHERE]
    numbers_of = [
        f"{name} {float(row[name]):.4g}"
        for name in ("loss", "validation_loss", *metrics, "lr")
        if isinstance(row.get(name), numbers.Real)
    ]
    if "seconds" in row:
        numbers_of.append(f"{row['seconds']:.1f} s")
    return f"epoch {row['epoch']}{of}: {', '.join(numbers_of)}"


def _text(loss: float, validation_loss: float) -> list[str]:
    losses = (("loss", loss), ("val", validation_loss))
    return [f"{name} {value:.4g}" for name, value in losses if not math.isnan(value)]


def _redraws() -> bool:
    """Return whether something can be redrawn: in a terminal, or in a notebook."""
    return tqdm is not terminal_tqdm or sys.stderr.isatty()
