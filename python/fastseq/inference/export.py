"""Write a model to a file that runs without fastseq's Python: `Estimator.export`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .._util.atomic_file import replacing
from .._util.seeding import untouched
from .._util.tree import Tree, tree_leaves, tree_map, tree_paths
from ..data.scaling.inputs_and_targets import Scaling
from ..nn.compiled_layers import Substitutes
from ..nn.recurrent import kernels
from ..nn.stateful import batch_dims, in_mode, is_bidirectional, takes_state
from .onnx_translation import onnx_program
from .scaled_model import ScaledModel

__all__ = ["DESCRIPTION", "check_path", "export_model"]

DESCRIPTION = "fastseq.json"
"""The extra file of an exported program that holds the initial state of series."""

# Size of the inputs for tracing: neither 0 nor 1, which torch treats as special.
_STEPS, _COUNT = 5, 3


def check_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a program's file; raise if it cannot be written there."""
    target = Path(path)
    if target.suffix not in (".pt2", ".onnx"):
        raise ValueError(
            f"path must end in .pt2, for a program of torch.export, or in .onnx, got {target}"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists, got {target}")
    return target


def export_model(model: nn.Module, x: Tree, path: Path, scaling: Scaling | None = None) -> None:
    """Write `model`, in evaluation mode, as a program of `torch.export`; see `Estimator.export`.

    Parameters
    ----------
    model
        As in `Estimator`.
    x
        One step of one sequence, ``(1, 1, F)``, in the structure of the model's inputs.
    path
        The file. It is written completely, or left as it was.
    scaling
        Applied to inputs by the program, and undone on outputs.

    Raises
    ------
    ValueError
        The model cannot be exported; the message says why.
    """
    with (
        in_mode(model, training=False), torch.no_grad(), untouched(tree_leaves(x)[0].device),
        _constant(model), Substitutes(model),
    ):  # fmt: skip
        x = tree_map(lambda a: torch.rand(_STEPS, _COUNT, *a.shape[2:]).to(a), x)
        if scaling is not None:
            model, x = ScaledModel(model, scaling.x, scaling.y).eval(), scaling.raw(x)
        # Models that look at later steps take whole series, and have no state to continue from.
        first = None if is_bidirectional(model) else first_state(model, x)
        dims = [] if first is None else tree_leaves(batch_dims(model, x))
        program = _trace(_Program(model, x, first), x, first, dims)
        states = [
            {
                "name": name,
                "dtype": str(a.dtype).removeprefix("torch."),
                "batch_dim": dim if dim >= 0 else None,
                "start": (a if dim < 0 else a.narrow(dim, 0, 1)).tolist(),
            }
            for (name, a), dim in zip(tree_paths(first, "state"), dims, strict=True)
        ]
        description = json.dumps({"state": states})
        if path.suffix == ".onnx":
            _write_onnx(program, path, description)
            return
        with replacing(path) as beside, open(beside, "wb") as file:
            torch.export.save(program, file, extra_files={DESCRIPTION: description})


def _write_onnx(program: ExportedProgram, path: Path, description: str) -> None:
    """Write a program in ONNX: inputs x, state_0, …, outputs y, next_state_0 and so on."""
    states = range(len(json.loads(description)["state"]))
    xs = len(program.graph_signature.user_inputs) - len(states)
    ys = len(program.graph_signature.user_outputs) - len(states)
    names = ["x"] if xs == 1 else [f"x_{n}" for n in range(xs)]
    made = ["y"] if ys == 1 else [f"y_{n}" for n in range(ys)]
    found = onnx_program(
        program,
        [*names, *(f"state_{n}" for n in states)],
        [*made, *(f"next_state_{n}" for n in states)],
    )
    found.model.metadata_props[DESCRIPTION] = description
    with replacing(path) as beside:
        found.save(beside)


class _Program(nn.Module):
    """Calls a model with its state as a flat tuple, without named tuples, which are code."""

    def __init__(self, model: nn.Module, x: Tree, state: Tree) -> None:
        super().__init__()
        self.model = model
        self._x = _numbered(x)
        self._state = _numbered(state)

    def forward(self, x: Tree, state: tuple[Tensor, ...] = ()) -> Tree:
        x = _filled(self._x, tree_leaves(x))
        y, after = _run(self.model, x, _filled(self._state, state))
        return _plain(y) if self._state is None else (_plain(y), tuple(tree_leaves(after)))


def _run(model: nn.Module, x: Tree, state: Tree) -> tuple[Tree, Tree]:
    if takes_state(model):
        y, after = model(x, state)
        return y, after
    return model(x), None


def _trace(program: _Program, x: Tree, first: Tree, dims: list[int]) -> ExportedProgram:
    time, batch = Dim("time"), Dim("batch")
    inputs: tuple[Tree, ...] = (_plain(x),)
    shapes: tuple[Tree, ...] = (_plain(tree_map(lambda _: {0: time, 1: batch}, x)),)
    if first is not None:
        inputs += (tuple(tree_leaves(first)),)
        shapes += (tuple({dim: batch} if dim >= 0 else {} for dim in dims),)
    try:
        return torch.export.export(program, inputs, dynamic_shapes=shapes)
    except Exception as error:
        unrolled = {name: why for name, why in kernels(program.model).items() if why != "fastseq"}
        hint = (
            f"recurrent layers would be unrolled over time where no kernel runs them: {unrolled}"
            if unrolled
            else "some of its operations fix one of them, or ask for values, as a branch does"
        )
        reason = str(error).strip().split("\n\n")[0]
        raise ValueError(
            "the model cannot be exported for any number of time steps and sequences; "
            f"{hint}. torch.export says: {reason}"
        ) from error


def first_state(model: nn.Module, x: Tree) -> Tree:
    """Find the state that is equivalent to None: zeros, or the state after a chunk of no steps.

    Returns
    -------
    Tree
        In the structure of the model's state; None if the model has none.
    """
    expected = _run(model, x, None)
    state = expected[1]
    if not tree_leaves(state):
        return None
    shorter = _run(model, tree_map(lambda a: a[:-1], x), None)[1]
    for (name, a), b in zip(tree_paths(state, "state"), tree_leaves(shorter), strict=True):
        if not isinstance(a, Tensor):
            raise TypeError(f"{name} must be a tensor to be exported, got {type(a).__name__}")
        if a.shape != b.shape:
            raise ValueError(
                f"{name} grows with time: it has the shape {tuple(b.shape)} after {_STEPS - 1} "
                f"steps, {tuple(a.shape)} after {_STEPS}; only a state of constant shape can be "
                "exported"
            )
    zeros = tree_map(torch.zeros_like, state)
    if _alike(_run(model, x, zeros), expected):
        return zeros
    try:
        first = _run(model, tree_map(lambda a: a[:0], x), None)[1]
        if _alike(_run(model, x, first), expected):
            return first
    except (RuntimeError, ValueError, IndexError):
        pass  # not every model accepts zero steps
    raise ValueError(
        "the model cannot be exported: its initial state is neither zeros nor what it returns for "
        "a chunk of no steps"
    )


def _alike(one: Tree, other: Tree) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True) for a, b in pairs)


@contextmanager
def _constant(model: nn.Module) -> Iterator[None]:
    """Freeze all parameters, in the file too: running it then records nothing."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def _numbered(tree: Tree) -> Tree:
    """Replace leaves by their numbers."""
    numbers = iter(range(len(tree_leaves(tree))))
    return tree_map(lambda _: next(numbers), tree)


def _filled(numbered: Tree, leaves: Sequence[Tensor]) -> Tree:
    return tree_map(lambda number: leaves[number], numbered)


def _plain(tree: Tree) -> Tree:
    """Convert sequences to plain tuples, and dicts to plain ones."""
    if isinstance(tree, dict):
        return {key: _plain(part) for key, part in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(_plain(part) for part in tree)
    return tree
