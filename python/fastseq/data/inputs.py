"""The arguments x, y, w, mask and lengths: checked against each other, and opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset

from .._util.tree import Tree, tree_map
from .paired_names import NamedSequences
from .ragged import DatasetItems, GroupItems, RaggedArrays, RaggedRows
from .reshaped import with_axis
from .sliceable import Sliceable
from .source_kinds import is_ragged, kind_error, open_ragged, open_source, target_dtype, to_tensor
from .sources import Broadcast, Source
from .user_arrays import checked

__all__ = ["Arguments", "step_input"]


class Arguments:
    """Sources made from the arguments of `Sequences`.

    Attributes
    ----------
    x, y, w, mask
        Sources, in the structure of the arguments.
    steps, count
        T and N.
    lengths, order
        As in `Sequences`.
    squeezed
        Whether a target was given without its last axis.
    """

    reference: str
    steps: int
    count: int

    def __init__(
        self,
        x: object,
        y: object,
        w: object,
        mask: object,
        lengths: object,
        dtype: torch.dtype,
        *,
        labels: bool,
        ids: bool,
    ) -> None:
        if isinstance(x, Dataset):
            x, y, w = _of_dataset(x, y, w)
        x, y, w, mask = (
            _map_arrays(tree, name, checked)
            for tree, name in ((x, "x"), (y, "y"), (w, "w"), (mask, "mask"))
        )
        self.dtype = dtype
        self.squeezed: bool = False
        self._labels, self._ids = labels, ids
        self._named = NamedSequences()
        self.lengths: np.ndarray | None = None
        self.order: np.ndarray | None = None
        inputs, targets = _paths(x, "x"), _paths(y, "y")
        for tree, name, found in ((x, "x", inputs), (y, "y", targets)):
            if tree is not None and not found:
                raise ValueError(f"{name} must hold at least one array, got none")
        named = [*inputs, *targets]
        ragged = [(name, array) for name, array in named if is_ragged(array)]
        if ragged:
            if lengths is not None:
                raise ValueError("lengths must be None for a list, whose arrays have their own")
            self._measure_lists(ragged)
        else:
            self._measure(inputs)
        self.x: Tree = _map_arrays(x, "x", self._open_input)
        self.y: Tree = _map_arrays(y, "y", self._open_target)
        # Half precision lacks the range for weights, and the digits to add them up.
        weights = torch.promote_types(dtype, torch.float32)
        self.w: Tree = None if w is None else self._open_weights(w, "w", weights)
        self.mask: Tree = (
            None if mask is None else self._open_weights(mask, "mask", _mask_dtype(mask))
        )
        if lengths is not None:
            self.lengths = _checked_lengths(lengths, self.steps, self.count)
        if self.order is not None:
            self._sort()

    def _measure(self, named: list[tuple[str, object]]) -> None:
        """Find T and N from the inputs that have both."""
        shapes = [(name, _shape(array, name)) for name, array in named]
        whole = [(name, shape) for name, shape in shapes if len(shape) == 3]
        if not whole:
            name, shape = shapes[0]
            if len(shapes) > 1 and all(len(shape) == 2 for _, shape in shapes):
                raise ValueError(
                    "x must hold an array (time, sequences, features), but its parts have 2 "
                    "dimensions: for sequences of different lengths pass a list of arrays (T_i, F)"
                )
            hint = ": one sequence is x[:, None], one feature x[..., None]"
            raise ValueError(
                f"{name} must have 3 dimensions (time, sequences, features), got shape {shape}"
                f"{hint if len(shape) == 2 else ''}"
            )
        # An input with 1 time step or 1 sequence may be shared by those of another input.
        self.reference, shape = max(whole, key=lambda one: min(one[1][0], 2) * min(one[1][1], 2))
        self.steps, self.count = shape[:2]
        if not self.steps or not self.count:
            what = "time steps" if not self.steps else "sequences"
            raise ValueError(f"{self.reference} has no {what}: its shape is {shape}")

    def _measure_lists(self, ragged: list[tuple[str, Any]]) -> None:
        """Find the sequences' lengths, which all lists must share, as groups their names."""
        self.reference, first = ragged[0]
        found = [_lengths_of(array, name) for name, array in ragged]
        for (name, array), lengths in zip(ragged, found, strict=True):
            self._named.check(name, array)
            if len(lengths) != len(found[0]):
                raise ValueError(
                    f"{name} must have as many sequences as {self.reference}, "
                    f"got {len(lengths)} and {len(found[0])}"
                )
            if (lengths != found[0]).any():
                i = int(np.flatnonzero(lengths != found[0])[0])
                raise ValueError(
                    f"{name}[{i}] must have as many time steps as {self.reference}[{i}], "
                    f"got {lengths[i]} and {found[0][i]}"
                )
        self.lengths = found[0]
        self.steps = int(self.lengths.max())
        self.count = len(first)
        if not self.steps:
            raise ValueError(
                f"{self.reference} has no time steps: its {self.count} arrays are empty"
            )
        self.order = np.argsort(-self.lengths, kind="stable")

    def _sort(self) -> None:
        """Sort all sources by length, the order of the pass."""
        assert self.order is not None
        assert self.lengths is not None
        order, lengths = self.order, self.lengths[self.order]
        begins = np.zeros_like(lengths)

        def sort(source: RaggedArrays | RaggedRows | Broadcast) -> Source:
            if isinstance(source, Broadcast):
                return source.reordered(order)
            return source.cut(order, begins, lengths)

        trees = (self.x, self.y, self.w, self.mask)
        self.x, self.y, self.w, self.mask = tree_map(sort, trees)
        self.lengths = lengths

    def _open_input(self, array: Any, name: str) -> Source:
        if is_ragged(array):
            return self._open_list(array, name)
        shape = _shape(array, name)
        if len(shape) == 2 and name != "x":
            return self._shared(array, name)
        if len(shape) != 3:
            raise ValueError(
                f"{name} must have 3 dimensions (time, sequences, features), got shape {shape}"
            )
        whole = self.steps, self.count
        if shape[:2] != whole and shape[:2] in ((1, self.count), (self.steps, 1)) and name != "x":
            return self._broadcast(name, to_tensor(array))
        self._check(name, shape)
        return open_source(array, name, self.dtype, keep_integers=self._ids)

    def _broadcast(self, name: str, tensor: Tensor) -> Broadcast:
        dtype = target_dtype(tensor, name, self.dtype, self._ids)
        return Broadcast(name, tensor, (self.steps, self.count), dtype)

    def _shared(self, array: Any, name: str) -> Source:
        """Open inputs ``(N, F)``, shared by all time steps, or ``(T, F)``, by all sequences."""
        shape = _shape(array, name)
        whole = self.steps, self.count
        if shape[0] not in whole:
            raise ValueError(
                f"{name} must have the shape (steps, sequences, features), or (sequences, "
                "features) if it does not change with time, or (steps, features) if all sequences "
                f"share it; got {shape}, with {whole[0]} steps and {whole[1]} sequences"
            )
        if self.steps == self.count:
            raise ValueError(
                f"{name} of shape {shape} may belong to the sequences or to the steps, as there "
                f"are {self.count} of both: make it (1, {self.count}, F) or ({self.steps}, 1, F)"
            )
        tensor = to_tensor(array[:])
        tensor = tensor.unsqueeze(0) if shape[0] == self.count else tensor.unsqueeze(1)
        return self._broadcast(name, tensor)

    def _open_target(self, array: Any, name: str) -> Source:
        if is_ragged(array):
            return self._open_list(array, name, target=True)
        shape = _shape(array, name)
        if len(shape) == 2 and shape == (self.steps, self.count):
            self.squeezed = True
            array = with_axis(array, 2)
        elif len(shape) == 2 and self.steps == 1 and shape[0] == self.count:
            array = with_axis(array, 0)
        elif len(shape) != 3:
            raise ValueError(
                f"{name} must have the shape (time, sequences, features) or (time, sequences) = "
                f"{(self.steps, self.count)}, got {shape}"
            )
        self._check(name, _shape(array, name))
        return open_source(array, name, self.dtype, keep_integers=self._labels)

    def _open_list(self, items: Sequence[Sliceable], name: str, *, target: bool = False) -> Source:
        assert self.lengths is not None
        features = None
        if len(items[0].shape) == 1:
            self.squeezed |= target
            features = (1,)
        source = open_ragged(
            items, name, self.lengths, self.dtype,
            keep_integers=self._labels if target else self._ids, features=features,
        )  # fmt: skip
        if isinstance(items, GroupItems):
            source.keys = items.keys
        return source

    def _open_weights(self, array: Any, name: str, dtype: torch.dtype) -> Source:
        if is_ragged(array) and self.order is not None:
            assert self.lengths is not None
            self._named.check(name, array)
            lengths = _lengths_of(array, name)
            if len(lengths) != self.count or (lengths != self.lengths).any():
                raise ValueError(f"{name} must have one entry for each step of {self.reference}")
            return open_ragged(array, name, self.lengths, dtype, features=())
        if isinstance(array, list):
            array = np.asarray(array)
        _refuse_masked(array, name)
        target_dtype(array, name, dtype, keep_integers=False)
        full = (self.steps, self.count)
        shapes: list[tuple[int, ...]] = [(self.count,)] if name == "w" else []
        if self.order is None:
            shapes += [full, (*full, 1)]
        if tuple(array.shape) not in shapes:
            allowed = [*map(str, shapes), *(["a list like x"] if self.order is not None else [])]
            raise ValueError(
                f"{name} must have the shape {' or '.join(allowed)}, got {tuple(array.shape)}"
            )
        if len(array.shape) == 1:
            return Broadcast(name, to_tensor(array, dtype)[None], full, dtype)
        return open_source(array, name, dtype)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if self.order is not None:
            raise ValueError(
                f"{name} must be a list of arrays like {self.reference}, got an array of shape "
                f"{shape}"
            )
        if shape[:2] != (self.steps, self.count):
            raise ValueError(
                f"{name} must have as many time steps and sequences as {self.reference}, "
                f"got {shape[:2]} and {(self.steps, self.count)}"
            )


def step_input(x: object) -> Tree:
    """Return the input of one time step as tensors, ``(N, F)``; dtypes are kept."""

    def as_step(array: object, name: str) -> Tensor:
        array = np.asarray(array) if isinstance(array, list) else array
        shape = _shape(array, name)
        target_dtype(array, name, torch.float32, keep_integers=False)
        if len(shape) != 2 or not shape[0]:
            raise ValueError(f"{name} must be one step (sequences, features), got shape {shape}")
        return to_tensor(array)

    if isinstance(x, (tuple, dict)) and not x:
        raise ValueError("x must hold at least one array, got none")
    return _map_arrays(x, "x", lambda array, name: as_step(checked(array, name), name))


def _of_dataset(dataset: object, y: object, w: object) -> tuple[object, object, object]:
    """Return the parts of a dataset's items as x, y and w."""
    parts = DatasetItems.split(dataset, "x")
    if len(parts) > 1 and (y is not None or (w is not None and len(parts) > 2)):
        raise ValueError("the dataset's items hold targets and weights: do not pass others")
    if len(parts) > 3:
        raise ValueError(f"items of a dataset must be (x, y) or (x, y, w), got {len(parts)} parts")
    return parts[0], parts[1] if len(parts) > 1 else y, parts[2] if len(parts) > 2 else w


def _paths(tree: object, name: str) -> list[tuple[str, Any]]:
    """Return the arrays of a tuple or dict with their names; a list counts as one array."""
    found: list[tuple[str, Any]] = []
    _map_arrays(tree, name, lambda array, path: found.append((path, array)))
    return found


def _map_arrays(tree: object, name: str, fn: Callable[[Any, str], object]) -> Tree:
    """Apply `fn` to each array of a tuple or dict and its name."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: _map_part(part, f"{name}[{key!r}]", fn) for key, part in tree.items()}
    if isinstance(tree, tuple) and not isinstance(tree, PackedSequence):
        parts = [_map_part(part, f"{name}[{i}]", fn) for i, part in enumerate(tree)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return fn(tree, name)


def _map_part(tree: object, name: str, fn: Callable[[Any, str], object]) -> Tree:
    if tree is None:
        raise kind_error(name, tree)
    if isinstance(tree, (tuple, dict)) and not tree:
        raise ValueError(f"{name} must hold at least one array, got none")
    return _map_arrays(tree, name, fn)


def _shape(array: Any, name: str) -> tuple[int, ...]:
    if isinstance(array, list):
        array = np.asarray(array)
    _refuse_masked(array, name)
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):  # a data frame
        raise kind_error(name, array)
    return tuple(array.shape)


def _refuse_masked(array: object, name: str) -> None:
    if np.ma.is_masked(array):
        raise TypeError(f"{name} is a masked array: pass its data, and which steps count as mask")


def _mask_dtype(mask: object) -> torch.dtype:
    """Return the dtype to read a mask as: fp32 for numbers, to check that they are 0 and 1."""
    parts = mask if isinstance(mask, list) and hasattr(mask[0], "dtype") else [mask]
    dtypes = {getattr(part, "dtype", None) for part in parts}
    return torch.bool if dtypes <= {torch.bool, np.dtype(bool)} else torch.float32


def _lengths_of(items: Sequence[Any], name: str) -> np.ndarray:
    lengths = []
    for index in range(len(items)):
        shape = _shape(items[index], f"{name}[{index}]")
        if not 1 <= len(shape) <= 2:
            raise ValueError(
                f"{name}[{index}] must have 2 dimensions (time, features), got shape {tuple(shape)}"
            )
        lengths.append(shape[0])
    return np.array(lengths, np.int64)


def _checked_lengths(lengths: object, steps: int, count: int) -> np.ndarray:
    found = np.asarray(lengths)
    if found.shape != (count,):
        raise ValueError(f"lengths must have the shape ({count},), got {found.shape}")
    if found.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, got dtype {found.dtype}")
    wrong = np.flatnonzero((found < 0) | (found > steps))
    if len(wrong):
        n = int(wrong[0])
        raise ValueError(f"lengths must be between 0 and {steps}, but lengths[{n}] is {found[n]}")
    return found.astype(np.int64)
