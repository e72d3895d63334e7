"""The history of a training run, epoch by epoch."""

from __future__ import annotations

import html
import numbers
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

from .._util.optional_imports import need

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["History"]

_FIRST = ("epoch", "loss", "validation_loss")
_LAST = ("lr", "updates", "seconds", "updates_per_second")
# With more epochs than this, a table shows the first few and the last ones.
_SHOWN = 20
# Below this, numbers have an exponent anyway.
_DECIMAL = 1e-4
_AT_BEGIN = 5


class History(Sequence[dict[str, Any]]):
    """One dict per epoch: ``epoch`` (from 1), ``loss`` (mean over all samples of all ranks),
    ``lr``, ``updates`` (of the weights), ``seconds``, ``updates_per_second``; with validation,
    ``validation_loss``; and what callbacks add, such as metrics. Shown as a table, in a notebook
    too, but for ``updates_per_second``.

    Examples
    --------
    >>> history = History()
    >>> history.append({"epoch": 1, "loss": 0.5, "validation_loss": 0.75, "lr": 0.001})
    >>> history.append({"epoch": 2, "loss": 0.25, "validation_loss": 0.625, "lr": 0.001})
    >>> history[-1]["loss"], len(history)
    (0.25, 2)
    >>> history
    History: 2 epochs
    epoch     loss  validation_loss     lr
        1  0.50000          0.75000  0.001
        2  0.25000          0.62500  0.001
    """  # noqa: D205

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._updates = 0

    def append(self, row: dict[str, Any]) -> None:
        """Add an epoch.

        Parameters
        ----------
        row
            Its numbers, by name. `fit` adds the rows of its epochs itself.
        """
        self._rows.append(row)
        self._updates += row.get("updates", 0)

    def replace(self, rows: Iterable[dict[str, Any]]) -> None:
        """Replace all epochs.

        Parameters
        ----------
        rows
            The rows of the new ones.
        """
        self._rows[:] = rows
        self._updates = sum(row.get("updates", 0) for row in self._rows)

    @property
    def updates(self) -> int:
        """The updates of all epochs together."""
        return self._updates

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def columns(self) -> list[str]:
        """The keys of rows: epoch and losses, what callbacks add, learning rate and times."""
        found = dict.fromkeys(key for row in self._rows for key in row)
        first = [key for key in _FIRST if key in found]
        last = [key for key in _LAST if key in found]
        return [*first, *(key for key in found if key not in (*first, *last)), *last]

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in table
        ]
        return "\n".join([self._title(), *(line.rstrip() for line in lines if line)])

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows
        )
        return (
            f"<table>\n<caption>{self._title()}</caption>\n"
            f"<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
        )

    def _title(self) -> str:
        return f"History: {len(self)} epoch{'s' if len(self) != 1 else ''}"

    def _table(self) -> list[list[str]]:
        """Return the rows of a table, its header first."""
        columns = [key for key in self.columns if key != "updates_per_second"]
        # Rates far apart are easier to compare if all have an exponent.
        small = any(0 < row.get("lr", 1) < _DECIMAL for row in self._rows)
        forms = dict.fromkeys(_LAST, ".4g") | ({"lr": ".3e"} if small else {})
        # Losses and metrics are easier to compare with trailing zeros.
        rows = [
            [_cell(row.get(key), forms.get(key, "#.5g")) for key in columns] for row in self._rows
        ]
        if len(rows) > _SHOWN:
            left_out = ["…" for _ in columns]
            rows[_AT_BEGIN : _AT_BEGIN - _SHOWN] = [left_out]
        return [columns, *rows]

    def to_frame(self) -> pd.DataFrame:
        """Return the history as a table (needs pandas).

        Returns
        -------
        pandas.DataFrame
            One row per epoch, one column for each of `columns`; missing where an epoch has no such
            number.

        Raises
        ------
        MissingFeatureError
            pandas is not installed.
        """
        pd = need("pandas", "History.to_frame")
        return pd.DataFrame(self._rows, columns=self.columns)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw losses, metrics and learning rate over the epochs (needs matplotlib).

        The epoch with the lowest validation loss, or without validation the lowest loss, is marked.

        Parameters
        ----------
        ax
            Where to draw the losses, and nothing else. None: a new figure, with further panels for
            each metric, and for the learning rate if it has changed.

        Returns
        -------
        matplotlib.axes.Axes
            The axes of the losses; ``ax.figure.savefig("history.png")`` saves the figure.

        Raises
        ------
        MissingFeatureError
            matplotlib is not installed.
        """
        need("matplotlib", "History.plot")
        from .history_plot import plot_history

        return plot_history(self, ax)


def _cell(value: object, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):{form}}"
    return str(value)
