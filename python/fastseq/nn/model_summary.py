"""Tables of a model's layers."""

from __future__ import annotations

import copy
import dataclasses
import html
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._util.seeding import untouched
from .._util.tree import Tree, tree_leaves, tree_map
from .stateful import takes_state

__all__ = ["ModelSummary", "model_title", "summarize"]

_NO_ROW = (nn.ModuleList, nn.ModuleDict)  # they only hold others


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """A table of a model's layers.

    Attributes
    ----------
    title
        The model's class, numbers of parameters, dtypes and devices.
    rows
        For each module its name, class, the shape of its output ("" if unknown), how many
        parameters it has besides those of modules within it, and how many of these are frozen.
        Parameters that several modules share count in the first.
    trainable, frozen
        Numbers of all parameters.
    """

    title: str
    rows: tuple[tuple[str, str, str, int, int], ...]
    trainable: int
    frozen: int

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place < 3 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        return "\n".join([self.title, *(line.rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        head, *rows = (
            "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row)
            for kind, row in zip(["th"] + ["td"] * len(self.rows), self._table(), strict=True)
        )
        body = "\n".join(f"<tr>{row}</tr>" for row in rows)
        return (
            f"<table>\n<caption>{html.escape(self.title)}</caption>\n"
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        )

    def _table(self) -> list[list[str]]:
        """Return the rows of the table, its header first; numbers of frozen ones if there are."""
        shown = 5 if self.frozen else 4
        rows = [[*row[:3], f"{row[3]:,}", f"{row[4]:,}"][:shown] for row in self.rows]
        return [["layer", "type", "output", "parameters", "frozen"][:shown], *rows]


def summarize(model: nn.Module, example: Tree, steps: int) -> ModelSummary:
    """Return a table of a model's layers.

    Parameters
    ----------
    model
        The model; it is not run itself, but a copy.
    example
        One step of one sequence, ``(1, 1, F)``, in the structure of its inputs; None: unknown.
    steps
        How many steps to run it on.
    """
    shapes = {} if example is None else _symbolic(model, example, steps)
    seen: set[nn.Parameter] = set()
    rows = []
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p not in seen]
        seen.update(own)
        if not isinstance(module, _NO_ROW):
            count = sum(p.numel() for p in own)
            frozen = sum(p.numel() for p in own if not p.requires_grad)
            rows.append((name, type(module).__name__, shapes.get(name, ""), count, frozen))
    frozen = sum(p.numel() for p in seen if not p.requires_grad)
    trainable = sum(p.numel() for p in seen) - frozen
    return ModelSummary(model_title(model), tuple(rows), trainable, frozen)


def model_title(model: nn.Module) -> str:
    """Return a model's class, and how many parameters it has, of which dtypes, on which devices.

    Examples
    --------
    >>> model_title(nn.Linear(2, 3))
    'Linear: 9 parameters, float32 on cpu'
    """
    params = list(model.parameters())
    frozen = sum(p.numel() for p in params if not p.requires_grad)
    total = sum(p.numel() for p in params)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in params})
    places = sorted({str(p.device) for p in params})
    where = f", {', '.join(kinds)} on {', '.join(places)}" if params else ""
    of_which = f", {frozen:,} of them frozen" if frozen else ""
    return f"{type(model).__name__}: {total:,} parameters{of_which}{where}"


def _symbolic(model: nn.Module, example: Tree, steps: int) -> dict[str, str]:
    """Return the shapes of outputs, with T and N for the numbers of steps and sequences."""
    sizes = [(steps, 2), (steps, 3), (steps + 8, 2)]
    try:
        runs = [_shapes(model, example, *size) for size in sizes[:2]]
    except Exception:  # a model may refuse zeros, or so few steps
        return {}
    try:
        runs.append(_shapes(model, example, *sizes[2]))
    except Exception:  # or another number of steps
        sizes.pop()
    shapes = {}
    for name in runs[0]:
        found = [run.get(name, ()) for run in runs]
        if len(set(map(len, found))) == 1:
            dims = [_dimension(one, sizes) for one in zip(*found, strict=True)]
            shapes[name] = f"({', '.join(dims)})"
    return shapes


def _dimension(found: Sequence[int], sizes: Sequence[tuple[int, int]]) -> str:
    """Return how a dimension depends on the sizes of the input: T, N, T - 2, …; or a number."""
    if len(set(found)) == 1:
        return str(found[0])
    if all(d == n for d, (_, n) in zip(found, sizes, strict=True)):
        return "N"
    apart = {d - t for d, (t, _) in zip(found, sizes, strict=True)}
    if len(apart) > 1:
        return "…"
    more = apart.pop()
    return f"T {'+' if more > 0 else '-'} {abs(more)}" if more else "T"


def _shapes(model: nn.Module, example: Tree, steps: int, count: int) -> dict[str, tuple[int, ...]]:
    """Run a copy of a model on zeros; return the shape of the first output of each module."""
    model = copy.deepcopy(model).eval()  # others may use the model, and would see its hooks
    found: dict[str, tuple[int, ...]] = {}

    def noting(name: str) -> Any:
        def note(module: nn.Module, args: object, output: Any) -> None:  # noqa: ARG001
            leaves = [a for a in tree_leaves(output) if isinstance(a, Tensor)]
            if leaves:
                found.setdefault(name, tuple(leaves[0].shape))

        return note

    for name, module in model.named_modules():
        module.register_forward_hook(noting(name))
    x = tree_map(lambda a: a.expand(steps, count, *a.shape[2:]).contiguous(), example)
    with torch.no_grad(), untouched(tree_leaves(x)[0].device):
        if takes_state(model):
            model(x, None)
        else:
            model(x)
    return found
