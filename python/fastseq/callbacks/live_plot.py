"""A plot of the history, redrawn during training."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._util.optional_imports import need
from ..data.hdf5.open_file import writing
from ..training.run import Callback
from .monitor import check_positive

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["LivePlot"]


class LivePlot(Callback):
    """Plot the history after each epoch, on rank 0 (needs matplotlib).

    Parameters
    ----------
    path
        A file, rewritten each time; its suffix sets the format. None: the output of the notebook's
        cell.
    every
        Plot every `every` epochs, and after the last.

    Raises
    ------
    TypeError
        `path` is no path, or `every` is not an integer.
    ValueError
        `every` is not positive. When `fit` begins: `path` is None outside a notebook, its folder
        does not exist, or its format is unknown.
    MissingFeatureError
        When `fit` begins: matplotlib is not installed.

    Examples
    --------
    >>> import fastseq as fs
    >>> plot = fs.callbacks.LivePlot("history.png", every=5)
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, every: int = 1) -> None:
        check_positive("every", every, integer=True)
        self.path: Path | None = None if path is None else Path(path)
        self.every = every
        self._drawn = 0
        self._display: Any = None

    def on_fit_begin(self, run: Run) -> None:
        """Check that matplotlib is installed and `path` can be written.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        MissingFeatureError
            matplotlib is not installed.
        ValueError
            The plot cannot be shown, or written to the file.
        """
        self._drawn, self._display = len(run.history), None
        if not run.first:
            return
        figure = need("matplotlib.figure", "LivePlot").Figure()
        if self.path is None and not _in_notebook():
            raise ValueError(
                "LivePlot() without a path draws in notebooks only: pass the name of a file, such "
                'as "history.png"'
            )
        if self.path is not None:
            if not self.path.parent.is_dir():
                raise ValueError(f"LivePlot: the folder {str(self.path.parent)!r} does not exist")
            if self.path.suffix[1:] not in figure.canvas.get_supported_filetypes():
                raise ValueError(
                    f"LivePlot cannot write {self.path.name!r}: its name must end in .png, .svg, "
                    ".pdf or another of matplotlib's formats"
                )

    def on_epoch_end(self, run: Run) -> None:
        """Plot the history.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        if run.epoch % self.every == 0:
            self._draw(run)

    def on_fit_end(self, run: Run) -> None:
        """Plot the last epochs.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        if len(run.history) > self._drawn:
            self._draw(run)

    def _draw(self, run: Run) -> None:
        self._drawn = len(run.history)
        if not run.first:
            return
        figure: Any = run.history.plot().figure
        if self.path is not None:
            with writing("LivePlot", self.path) as beside:
                figure.savefig(beside, format=self.path.suffix[1:])
            return
        show = need("IPython.display", "LivePlot")
        png = io.BytesIO()
        figure.savefig(png, format="png")
        picture = show.Image(png.getvalue())
        if self._display is None:
            self._display = show.display(picture, display_id=True)
        else:
            self._display.update(picture)


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")
