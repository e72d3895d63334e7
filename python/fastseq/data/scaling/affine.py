"""Scaling of every feature to mean 0 and deviation 1, measured in one pass over the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._util.tree import Tree, tree_leaves, tree_map, tree_paths
from ...distributed.replicas import Replicas
from .moments import Moments
from .quantiles import Quantiles

__all__ = [
    "Affine",
    "measure",
    "paired",
    "scaling_from_state",
    "scaling_state",
]

_METHODS = ("standard", "robust")
"""Mean and standard deviation; or median and interquartile range, which outliers hardly move."""

# The interquartile range of normally distributed data of deviation 1.
_NORMAL_RANGE = 1.349


@dataclasses.dataclass(frozen=True, eq=False)
class Affine:
    """Scaling of one array's features: ``(value - center) / scale``, computed in fp64.

    Parameters
    ----------
    center, scale
        fp64, in the shape of one sample, ``(F, …)``.
    wide
        Whether the values exceed fp32's precision; values scaled back are then fp64.

    Examples
    --------
    >>> affine = Affine(torch.tensor([10.0]).double(), torch.tensor([2.0]).double())
    >>> scaled = affine.apply(torch.tensor([[[12]]]), torch.float32)
    >>> scaled, affine.undo(scaled)
    (tensor([[[1.]]]), tensor([[[12.]]]))
    """

    center: Tensor
    scale: Tensor
    wide: bool = False

    def apply(self, slab: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``(slab - center) / scale`` for ``(S, B, F, …)`` of any numbers, in `dtype`."""
        center, scale = self.center.to(slab.device), self.scale.to(slab.device)
        return ((slab.double() - center) / scale).to(dtype)

    def only(self, which: Tensor) -> Affine:
        """Return a scaling of some features, ``(F,)``, that leaves the others as they are.

        Examples
        --------
        >>> two = torch.full((2,), 2.0).double()
        >>> Affine(two, two).only(torch.tensor([True, False])).center
        tensor([2., 0.], dtype=torch.float64)
        """
        center, scale = self.center.where(which, 0.0), self.scale.where(which, 1.0)
        return dataclasses.replace(self, center=center, scale=scale)

    def undo(self, slab: Tensor) -> Tensor:
        """Return ``slab * scale + center`` for ``(S, B, F, …)``, in fp32 or, if `wide`, fp64."""
        center, scale = self.center.to(slab.device), self.scale.to(slab.device)
        return (slab.double() * scale + center).to(self.dtype_of(slab.dtype))

    def dtype_of(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of values scaled back from `dtype`."""
        return torch.promote_types(dtype, torch.float64 if self.wide else torch.float32)


def measure(
    methods: Mapping[str, str],
    batches: Iterable[tuple[Mapping[str, Tree], Tensor | None]],
    structure: Mapping[str, Tree],
    replicas: Replicas,
) -> dict[str, Tree]:
    """Measure each feature's scaling in one pass. Collective; bitwise equal on all ranks.

    Parameters
    ----------
    methods
        For each name ``"standard"`` (mean and standard deviation) or ``"robust"`` (median and
        interquartile range / 1.349; if that range is zero, the range of all values). A scale of
        zero, of a constant feature, becomes 1.
    batches
        This rank's share of the data: for each name a tree of slabs ``(S, B, F, …)`` of floats,
        NaN where there is no value, and a bool ``(S, B)`` of the samples that count, or None if
        all do.
    structure
        Trees of tensors like those in `batches`; empty ones, ``(0, 0, F, …)``, will do. fp64
        tensors here set `Affine.wide`.
    replicas
        The ranks.

    Returns
    -------
    dict
        For each name a tree with an `Affine` for every array; None for integers or booleans (class
        labels).

    Raises
    ------
    ValueError
        An unknown method, or a feature without finite values or with infinite ones.

    Examples
    --------
    >>> from fastseq.distributed import Communicator
    >>> x = torch.tensor([[[1.0, 7.0]], [[3.0, 7.0]]])
    >>> replicas = Replicas(Communicator())
    >>> measure({"x": "standard"}, [({"x": x}, None)], {"x": x[:0]}, replicas)["x"]
    Affine(center=tensor([2., 7.], dtype=torch.float64),
           scale=tensor([1., 1.], dtype=torch.float64), wide=False)
    """
    statistics: list[Moments | Quantiles | None] = []
    named: list[tuple[str, Tensor]] = []
    for name, method in methods.items():
        check_method(method, name)
        kind = Moments if method == "standard" else Quantiles
        for path, leaf in tree_paths(structure[name], name):
            named.append((path, leaf))
            statistics.append(kind(leaf.shape[2:]) if leaf.is_floating_point() else None)
    for trees, counts in batches:
        slabs = [slab for name in methods for slab in tree_leaves(trees[name])]
        for statistic, slab in zip(statistics, slabs, strict=True):
            if statistic is not None:
                statistic.update(slab, counts)
    found = iter(
        [
            None if statistic is None else _affine(statistic, path, leaf, replicas)
            for statistic, (path, leaf) in zip(statistics, named, strict=True)
        ]
    )
    return {name: tree_map(lambda _: next(found), structure[name]) for name in methods}


def check_method(method: object, name: str) -> None:
    """Raise unless `method` is one of `_METHODS`."""
    if method not in _METHODS:
        raise ValueError(f"the scaling of {name} must be one of {_METHODS} or None, got {method!r}")


def _affine(statistic: Moments | Quantiles, path: str, leaf: Tensor, replicas: Replicas) -> Affine:
    shape = leaf.shape[2:]
    statistic.merge(replicas.comm)
    if isinstance(statistic, Moments):
        center = np.where(statistic.count > 0, statistic.mean, np.nan)
        scale = statistic.deviation()
    else:
        least, lower, center, upper, most = statistic.at([0.0, 0.25, 0.5, 0.75, 1.0])
        with np.errstate(invalid="ignore"):  # infinite values
            scale = (upper - lower) / _NORMAL_RANGE
            scale = np.where(scale == 0, most - least, scale)
    bad = np.flatnonzero(~(np.isfinite(center) & np.isfinite(scale)))
    if bad.size:
        feature = ", ".join(map(str, np.unravel_index(bad[0], shape)))
        raise ValueError(
            f"{path} cannot be scaled: feature {feature} has no finite center and deviation (they "
            f"are {center[bad[0]]} and {scale[bad[0]]}), because it has infinite values, or no "
            "value that counts: leave it out"
        )
    scale = np.where(scale > 0, scale, 1.0)
    parts = [torch.from_numpy(part.reshape(shape)) for part in (center, scale)]
    return Affine(parts[0], parts[1], wide=leaf.dtype == torch.float64)


def paired(
    tree: Tree, affines: Tree, name: str, features: Callable[[Any], tuple[int, ...]]
) -> list[tuple[Any, Affine | None]]:
    """Return the leaves of a tree with their scalings; `features` returns a leaf's features.

    Raises
    ------
    ValueError
        Structure or features differ from those that were measured.

    Examples
    --------
    >>> affine = Affine(torch.zeros(1).double(), torch.ones(1).double())
    >>> paired({"a": torch.zeros(5, 2)}, {"a": affine}, "x", lambda a: a.shape[1:])
    Traceback (most recent call last):
    ValueError: x['a'] has features (2,), but those that fit has scaled are (1,)
    """
    found: list[tuple[Any, Affine | None]] = []
    try:
        tree_map(lambda leaf, affine: found.append((leaf, affine)), tree, affines)
        alike = {path for path, _ in tree_paths(affines, name)} <= set(dict(tree_paths(tree, name)))
    except (AttributeError, KeyError, TypeError, ValueError):
        alike = False
    if not alike:
        raise ValueError(
            f"{name} must have the structure that fit has scaled, with "
            f"{', '.join(path for path, _ in tree_paths(affines, name))}; got "
            f"{', '.join(path for path, _ in tree_paths(tree, name))}"
        )
    for (path, leaf), (_, affine) in zip(tree_paths(tree, name), found, strict=True):
        if affine is not None and tuple(features(leaf)) != tuple(affine.center.shape):
            raise ValueError(
                f"{path} has features {tuple(features(leaf))}, but those that fit has scaled are "
                f"{tuple(affine.center.shape)}"
            )
    return found


def scaling_state(scaling: Tree) -> dict[str, Any]:
    """Return a tree of `Affine` and None as nested dicts of tensors, for saving.

    Examples
    --------
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> scaling_state((Affine(0 * one, one), None))
    {'tuple': {'0': {'center': tensor([0.], dtype=torch.float64),
                     'scale': tensor([1.], dtype=torch.float64),
                     'wide': tensor(False)},
               '1': {}}}
    """
    if scaling is None:
        return {}
    if isinstance(scaling, Affine):
        return {
            "center": scaling.center, "scale": scaling.scale, "wide": torch.tensor(scaling.wide)
        }  # fmt: skip
    if isinstance(scaling, dict):
        return {"dict": {key: scaling_state(part) for key, part in scaling.items()}}
    return {"tuple": {str(index): scaling_state(part) for index, part in enumerate(scaling)}}


def scaling_from_state(state: Mapping[str, Any]) -> Tree:
    """Return the tree of `Affine` and None that `scaling_state` got; lists become tuples.

    Parameters
    ----------
    state
        As returned by `scaling_state`, of tensors or arrays.

    Raises
    ------
    ValueError
        It is something else.

    Examples
    --------
    >>> scaling_from_state({"dict": {"a": {}, "b": {}}})
    {'a': None, 'b': None}
    """
    keys = set(state)
    if not keys:
        return None
    if keys - {"wide"} == {"center", "scale"}:  # files of earlier versions have no "wide"
        parts = (torch.tensor(np.asarray(state[key])) for key in ("center", "scale"))
        center, scale = (part.double() for part in parts)
        if center.shape == scale.shape and bool(((scale > 0) & center.isfinite()).all()):
            return Affine(center, scale, wide=bool(np.asarray(state.get("wide", False))))
    elif keys == {"dict"}:
        return {key: scaling_from_state(part) for key, part in state["dict"].items()}
    elif keys == {"tuple"}:
        parts = state["tuple"]
        return tuple(scaling_from_state(parts[str(index)]) for index in range(len(parts)))
    raise ValueError(f"the scaling saved here was not written by fastseq: it holds {sorted(keys)}")
