"""Text logs: one line per epoch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from .._util.progress import epoch_line
from ..training.run import Callback
from .monitor import check_positive

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["Log"]


class Log(Callback):
    """Print one line per epoch, and why `fit` stopped early, on rank 0.

    Parameters
    ----------
    every
        Print every `every` epochs, and after the last.
    logger
        A `logging.Logger` or its name, which gets the lines at level INFO. None: standard output.

    Raises
    ------
    TypeError
        `every` is not an integer, or `logger` is something else.
    ValueError
        `every` is not positive.

    Examples
    --------
    >>> import fastseq as fs
    >>> log = fs.callbacks.Log(10, logger="training")
    """

    def __init__(self, every: int = 1, *, logger: str | logging.Logger | None = None) -> None:
        check_positive("every", every, integer=True)
        if isinstance(logger, str):
            logger = logging.getLogger(logger)
        if logger is not None and not isinstance(logger, logging.Logger | logging.LoggerAdapter):
            raise TypeError(f"logger must be a logging.Logger, its name or None, got {logger!r}")
        self.every = every
        # tqdm.write does not break the progress bar.
        self._tell = tqdm.write if logger is None else logger.info
        self._untold = ""

    def on_epoch_end(self, run: Run) -> None:
        """Write a line.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        self._untold = epoch_line(run.row, run.epochs)
        if run.first and run.epoch % self.every == 0:
            self._flush()

    def on_fit_end(self, run: Run) -> None:
        """Write the last line.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        if run.first:
            self._flush()
            if run.stopped is not None:
                self._tell(f"stopped in epoch {run.epoch}: {run.stopped}")

    def _flush(self) -> None:
        if self._untold:
            self._tell(self._untold)
        self._untold = ""
