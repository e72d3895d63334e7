"""Plots of a training run."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .._util.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_history"]

_NO_METRICS = ("epoch", "loss", "validation_loss", "lr", "updates", "seconds", "updates_per_second")
_LOSS_HEIGHT, _PANEL_HEIGHT = 3.6, 1.7  # inches
_MARKED = 40  # up to this many epochs, each gets a marker

_Rows = Sequence[dict[str, Any]]


def _best_epoch(rows: _Rows) -> int | None:
    """Return the epoch with the lowest validation loss; without validation, the lowest loss.

    Examples
    --------
    >>> _best_epoch([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    2
    """
    key = "validation_loss" if any("validation_loss" in row for row in rows) else "loss"
    known = [row for row in rows if _is_number(row.get(key))]
    return min(known, key=lambda row: float(row[key]))["epoch"] if known else None


def plot_history(rows: _Rows, ax: Axes | None) -> Axes:
    """Draw losses and, in a new figure, metrics and learning rate; see `History.plot`."""
    if ax is not None:
        _plot_losses(ax, rows)
        _finish(ax, rows)
        ax.set_xlabel("epoch")
        return ax
    metrics = _metrics(rows)
    rates = {row["lr"] for row in rows if "lr" in row}
    axes = _panels(len(metrics) + (len(rates) > 1))
    _plot_losses(axes[0], rows)
    for panel, name in zip(axes[1:], metrics, strict=False):
        _plot_lines(panel, rows, name)
        panel.set_title(name, loc="left", fontsize="medium")
    if len(rates) > 1:
        axes[-1].plot(*_points(rows, "lr"), color="0.35", label="learning rate")
        axes[-1].set_title("learning rate", loc="left", fontsize="medium")
        if min(rates) > 0 and max(rates) > 10 * min(rates):
            axes[-1].set_yscale("log")
    for panel in axes:
        _finish(panel, rows)
    axes[-1].set_xlabel("epoch")
    return axes[0]


def _panels(more: int) -> list[Axes]:
    """Make a figure with a panel for the losses and `more` flatter ones below it."""
    heights = [_LOSS_HEIGHT] + [_PANEL_HEIGHT] * more
    size = (7, sum(heights) + 0.4)
    figure = new_figure("plot", figsize=size, layout="constrained")
    axes = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    return list(axes[:, 0])


def _plot_losses(ax: Axes, rows: _Rows) -> None:
    losses = _plot_lines(ax, rows, "loss")
    if losses and 0 < 10 * min(losses) < max(losses):
        ax.set_yscale("log")
    ax.set(ylabel="loss (mean over samples)", title="Training history")


def _plot_lines(ax: Axes, rows: _Rows, name: str) -> list[float]:
    """Draw a number for the training and the validation part; return the values drawn."""
    drawn: list[float] = []
    marker = "o" if len(rows) <= _MARKED else None
    for key, label, color in ((name, "training", "C0"), (f"validation_{name}", "validation", "C1")):
        epochs, values = _points(rows, key)
        if values:
            ax.plot(epochs, values, marker=marker, ms=4, color=color, label=label)
            drawn += values
    return drawn


def _finish(ax: Axes, rows: _Rows) -> None:
    """Mark the best epoch; add grid, ticks and legend."""
    from matplotlib.ticker import MaxNLocator

    best = _best_epoch(rows)
    if best is not None and len(rows) > 1:
        ax.axvline(best, color="0.4", ls=":", zorder=0, label=f"best epoch: {best}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3, which="both")
    if ax.get_legend_handles_labels()[0] and ax.get_title():
        ax.legend(frameon=False)


def _metrics(rows: _Rows) -> list[str]:
    """Return the names of numbers that callbacks added, without the prefix ``validation_``."""
    keys: Iterable[str] = dict.fromkeys(
        key for row in rows for key, value in row.items() if _is_number(value)
    )
    names = dict.fromkeys(key.removeprefix("validation_") for key in keys)
    return [name for name in names if name not in _NO_METRICS]


def _points(rows: _Rows, key: str) -> tuple[list[int], list[float]]:
    known = [row for row in rows if _is_number(row.get(key))]
    return [row["epoch"] for row in known], [float(row[key]) for row in known]


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)
