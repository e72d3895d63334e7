"""What an estimator is and how far it is trained, in a few lines."""

from __future__ import annotations

import dataclasses
import html
from typing import TYPE_CHECKING

from ..nn.model_summary import model_title

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["html_table", "learner_table", "text_table"]

_Rows = list[tuple[str, str]]


def learner_table(learner: Learner) -> _Rows:
    """Return names and values of a learner's parts."""
    optimizer = learner.optimizer
    rates = sorted({float(group["lr"]) for group in optimizer.param_groups})
    spec = [
        f"{field.name}={getattr(learner.spec, field.name)!r}"
        for field in dataclasses.fields(learner.spec)
        if getattr(learner.spec, field.name) != field.default
    ]
    history = learner.history
    trained = "not yet"
    if len(history):
        count = len(history)
        loss = history[-1].get("loss")
        trained = f"{count} epoch{'s' if count > 1 else ''}, {history.updates:,} updates"
        trained += "" if loss is None else f", loss {loss:.5g}"
    rows = [
        ("model", model_title(learner.model)),
        ("optimizer", f"{type(optimizer).__name__}, lr {', '.join(f'{r:.3g}' for r in rates)}"),
        ("spec", ", ".join(spec)),
        ("trained", trained),
    ]
    if learner.precision.amp is not None:
        rows.insert(2, ("amp", learner.precision.amp))
    return rows


def text_table(title: str, rows: _Rows) -> str:
    """Return lines, the names of equal width."""
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name.ljust(width)}  {value}" for name, value in rows)])


def html_table(title: str, rows: _Rows) -> str:
    """Return a table for notebooks."""
    cells = "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>\n<caption>{html.escape(title)}</caption>\n<tbody>\n{cells}\n</tbody>\n</table>"
