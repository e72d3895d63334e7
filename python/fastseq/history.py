"""What a training run did, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["History"]


class History(Sequence[dict[str, Any]]):
    """One dict per epoch: ``epoch`` (from 1), ``loss`` (mean over all samples of all ranks),
    ``lr``, ``steps``, ``seconds``, ``steps_per_second``; with validation, ``validation_loss``.

    Examples
    --------
    >>> history = History()
    >>> history.append({"epoch": 1, "loss": 0.5})
    >>> history[-1]["loss"], len(history)
    (0.5, 1)
    """  # noqa: D205

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        """Add an epoch."""
        self._rows.append(row)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        last = f", last loss {self._rows[-1]['loss']:.6g}" if self._rows else ""
        return f"History({len(self)} epochs{last})"

    def to_frame(self) -> pd.DataFrame:
        """Return a `pandas.DataFrame` with one row per epoch (needs pandas)."""
        import pandas as pd

        return pd.DataFrame(self._rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the losses over the epochs (needs matplotlib).

        Parameters
        ----------
        ax
            Where to draw; a new figure if None.

        Returns
        -------
        matplotlib.axes.Axes
            Where it was drawn; ``ax.figure.savefig("history.png")`` saves it.
        """
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        if ax is None:
            ax = Figure(figsize=(7, 4), layout="constrained").add_subplot()
        losses: list[float] = []
        for key, label in (("loss", "training"), ("validation_loss", "validation")):
            rows = [row for row in self._rows if key in row]
            if rows or key == "loss":
                values = [row[key] for row in rows]
                marker = "o" if len(rows) <= 40 else None
                ax.plot([row["epoch"] for row in rows], values, marker=marker, ms=4, label=label)
                losses += values
        if losses and 0 < 10 * min(losses) < max(losses):
            ax.set_yscale("log")
        ax.set(xlabel="epoch", ylabel="loss (mean over samples)", title="Training history")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3, which="both")
        ax.legend(frameon=False)
        return ax
