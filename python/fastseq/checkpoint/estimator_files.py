"""Estimators in files: `Estimator.save` and `Estimator.load`."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from .._util.torch_internals import uncompiled
from .._util.tree import Tree, tree_map
from ..data.scaling.inputs_and_targets import Scaling
from ..errors import CheckpointError, FastseqError
from ..nn.earlier_steps import in_context
from ..nn.model_description import build, describe_model
from ..nn.stateful import takes_state
from ..training.amp import Precision
from ..training.spec import Spec
from .encoding import decode, encode
from .format import Image, read, write
from .limited_size import no_larger_than

if TYPE_CHECKING:
    from ..training.learner import Learner

__all__ = [
    "NoOptimizer", "SavedLearner", "check_parts", "check_path", "learner_content", "no_loss",
    "read_content", "restoring", "save_learner", "saved_kind", "write_content",
]  # fmt: skip

FORMAT = 1
"""The version of the contents; files of other versions are not read."""

_KIND = "estimator"
_WRITERS = {  # of files, by what these say they hold
    "estimator": "Estimator",
    "regressor": "SequenceRegressor",
    "classifier": "SequenceClassifier",
    "forecaster": "SequenceForecaster",
}
_FITTED = ("drawn_seed", "squeezed", "example", "scaling", "history")


def save_learner(learner: Learner, path: Path, state: Tree) -> None:
    """Write an estimator to a file; see `Estimator.save`."""
    check_path(path)
    content = {"kind": _KIND, "format": FORMAT, **learner_content(learner, state)}
    write_content(path, content)


def check_path(path: Path) -> None:
    """Raise OSError if a file cannot be written there."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "save: a folder has this name", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "save: there is no such folder", str(path.parent))


def learner_content(learner: Learner, state: Tree) -> dict[str, Any]:
    """Return what a file holds of an estimator: `SavedLearner.of` reads it."""
    model = uncompiled(learner.model)
    return {
        "class": type(model).__qualname__,
        **_layers(model),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "spec": dataclasses.asdict(learner.spec),
        "options": {"amp": learner.precision.amp, "seed": learner.seed},
        "fitted": {
            "drawn_seed": learner.drawn_seed,
            "squeezed": learner.squeezed,
            "example": learner.example,
            "scaling": None if learner.scaling is None else learner.scaling.state(),
            "history": [_storable(row) for row in learner.history],
        },
        "model": dict(model.state_dict()),
        "state": _plain_structure(state, "the state"),
    }


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Write nested dicts, lists and tuples of plain values and tensors to a file.

    Raises
    ------
    TypeError
        There is something else in them.
    """
    try:
        tensors, text = encode(content)
        image = Image()
        image.take(tensors, text)
    except TypeError as error:
        raise TypeError(f"save: {error}") from error
    write(path, image)


def _layers(model: nn.Module) -> dict[str, Any]:
    try:
        return {"layers": describe_model(model), "not_described": None}
    except ValueError as error:
        return {"layers": None, "not_described": str(error)}


def _storable(row: Mapping[str, object]) -> dict[str, object]:
    """Return the parts of an epoch's row that a file can hold; callbacks may add anything."""
    return {key: value for key, value in row.items() if isinstance(value, numbers.Real | str)}


def _plain_structure(tree: Tree, where: str) -> Tree:
    """Raise if a file cannot hold the structure of a state: classes are code."""
    parts: Iterable[tuple[object, Tree]] = ()
    if isinstance(tree, dict):
        parts = tree.items()
    elif isinstance(tree, tuple | list):
        parts = enumerate(tree)
    elif tree is None or isinstance(tree, Tensor):
        return tree
    if type(tree) not in (dict, tuple, list):
        raise TypeError(
            f"save: {where} is a {type(tree).__qualname__}, which a file cannot hold: let the "
            "model return plain tuples, lists and dicts of tensors, or save with state=False"
        )
    for key, part in parts:
        _plain_structure(part, f"{where}[{key!r}]")
    return tree


@dataclasses.dataclass(frozen=True)
class SavedLearner:
    """The contents of a file that `save_learner` wrote.

    Parameters
    ----------
    model
        With the file's weights.
    spec, options
        Other arguments of `Estimator`.
    state
        The state after the last `predict` or `step`; None: it was not saved.
    """

    model: nn.Module
    spec: Spec
    options: dict[str, Any]
    state: Tree
    _fitted: dict[str, Any]

    @classmethod
    def read(cls, path: Path, model: nn.Module | Callable[[], nn.Module] | None) -> SavedLearner:
        """Read a file, as in `Estimator.load`."""
        content = read_content(path, _KIND, FORMAT, "Estimator.save")
        made = model if model is None or isinstance(model, nn.Module) else _made(model)
        with restoring(path):
            return cls.of(content, made, path)

    @classmethod
    def of(cls, content: Mapping[str, Any], model: nn.Module | None, path: Path) -> SavedLearner:
        """Take what `learner_content` returned; `path` is the file in messages."""
        made = _model(content, model, path)
        spec, saved = Spec.of(content["spec"]), content["options"]
        options = {"amp": saved["amp"], "seed": saved["seed"]}
        # They raise if the model cannot have these.
        Precision(options["amp"], torch.device("cpu")).check(made)
        takes_state(in_context(made, spec.context))
        fitted = {key: content["fitted"][key] for key in _FITTED}
        return cls(made, spec, options, content["state"], fitted)

    def restore(self, learner: Learner) -> None:
        """Set all that `fit` has set in a learner."""
        fitted = self._fitted
        learner.drawn_seed = fitted["drawn_seed"]
        learner.squeezed = fitted["squeezed"]
        learner.example = tree_map(lambda a: a.to(learner.device), fitted["example"])
        if fitted["scaling"] is not None:
            learner.scaling = Scaling.from_state(fitted["scaling"])
        learner.history.replace(fitted["history"])


@contextlib.contextmanager
def restoring(path: object, caller: str = "load") -> Iterator[None]:
    """Turn what goes wrong with a file's contents into a CheckpointError that names the file.

    Their checksum tells damage. Of a file of another version, or one that was not written by
    fastseq, any part may be missing, of another type, or unlike the others.

    Raises
    ------
    CheckpointError
        It could not be restored.
    """
    try:
        yield
    except (MemoryError, FastseqError):
        raise
    except Exception as error:
        if isinstance(error, ValueError | TypeError | OSError) and str(path) in str(error):
            raise  # it says what is wrong
        lacks = isinstance(error, KeyError | AttributeError)
        what = "lacks a part of what this version of fastseq saves"
        if not lacks:
            what = f"has parts that this version of fastseq cannot read ({error!s:.300})"
        raise CheckpointError(
            f"{caller}: {path} {what}: load it with the version that wrote it"
        ) from error


def read_content(path: Path, kind: str, version: int, writer: str) -> dict[str, Any]:
    """Return what `write_content` wrote to a file.

    Parameters
    ----------
    path
        The file.
    kind, version
        What it must have as ``kind`` and ``format``.
    writer
        What writes such files, in messages.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "load: this is a folder, not a file", str(path))
    tensors, text = read(path)
    try:
        content: Any = decode(text, tensors)
    except ValueError as error:
        raise CheckpointError(f"load: {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        held = content.get("kind") if isinstance(content, dict) else None
        other = f", but by that of {_WRITERS[held]}" if held in _WRITERS else ""
        raise CheckpointError(f"load: {path} was not written by {writer}{other}")
    if content.get("format") != version:
        raise CheckpointError(
            f"load: {path} has format {content.get('format')!r:.100}, but this version of fastseq "
            f"reads format {version}: load it with the version that wrote it"
        )
    return content


def saved_kind(path: Path) -> str:
    """Return what a file that `write_content` wrote says it is.

    Raises
    ------
    CheckpointError, OSError
        It is no such file, or cannot be read.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "load: this is a folder, not a file", str(path))
    tensors, text = read(path)
    try:
        content: Any = decode(text, tensors)
        return str(content["kind"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"load: {path} was not written by save") from error


def _made(model: Any) -> nn.Module:
    """Return what a callable makes."""
    made = model() if callable(model) else model
    if not isinstance(made, nn.Module):
        raise TypeError(
            "load: model must be a torch.nn.Module, or a callable that returns one, got "
            f"{type(made).__name__}"
        )
    return made


def _model(content: Mapping[str, Any], given: nn.Module | None, path: Path) -> nn.Module:
    """Return a model with the file's weights: the given one, or one built from its description."""
    weights = content["model"]
    if given is None:
        if content["layers"] is None:
            raise ValueError(
                f"load: {path} has the weights of a {content['class']}, but not how to build it "
                f"({content['not_described']}): pass model=, a model or a callable that returns one"
            )
        with no_larger_than(weights, path):
            made = build(content["layers"])
        _compare(made, weights, path)
        made.load_state_dict(weights, assign=True)
        for name in content["frozen"]:
            made.get_parameter(name).requires_grad_(False)
        return made
    _compare(uncompiled(given), weights, path, dtypes=True)
    uncompiled(given).load_state_dict(weights)
    return given


def _compare(
    model: nn.Module, weights: Mapping[str, Any], path: Path, *, dtypes: bool = False
) -> None:
    """Raise unless the model has the file's parameters and buffers."""
    own = model.state_dict()
    for name, a in own.items():
        if name not in weights:
            _refuse(path, f"{name}, {_kind(a)} in the model, is missing from the file")
        b = weights[name]
        if _kind(a) != _kind(b) and (dtypes or _shape(a) != _shape(b)):
            _refuse(path, f"{name} is {_kind(a)} in the model, but {_kind(b)} in the file")
    for name, b in weights.items():
        if name not in own:
            _refuse(path, f"{name}, {_kind(b)} in the file, is missing from the model")


def _shape(a: object) -> object:
    return tuple(a.shape) if isinstance(a, Tensor) else type(a)


def _kind(a: object) -> str:
    if not isinstance(a, Tensor):
        return f"a {type(a).__name__}"
    return f"{str(a.dtype).removeprefix('torch.')} {tuple(a.shape)}"


def _refuse(path: Path, difference: str) -> None:
    raise CheckpointError(f"load: {path} is from another model: {difference}")


def no_loss(*_: object, **__: object) -> Tensor:
    """Raise: stands in for a loss that `load` was not given."""
    raise ValueError("the estimator was loaded without a loss: pass loss= to load")


no_loss.per_sequence = True  # type: ignore[attr-defined]  # the model may return (B, K), as in fit


class NoOptimizer(torch.optim.Optimizer):
    """Stands in for an optimizer that `load` was not given."""

    def __init__(self, _: object) -> None:
        super().__init__([{"params": []}], {})

    def step(self, closure: object = None) -> NoReturn:  # noqa: ARG002
        """Raise."""
        raise ValueError("the estimator was loaded without an optimizer: pass optimizer= to load")


def check_parts(learner: Learner, caller: str) -> None:
    """Raise if `caller`, ``"fit"`` or ``"evaluate"``, needs a part that `load` was not given."""
    if learner.loss is no_loss:
        raise ValueError(f"{caller} needs a loss, which files do not hold: pass loss= to load")
    if caller == "fit" and isinstance(learner.optimizer, NoOptimizer):
        raise ValueError("fit needs an optimizer, which files do not hold: pass optimizer= to load")
