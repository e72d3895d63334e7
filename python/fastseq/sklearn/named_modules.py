"""Modules by name: what a wrapper makes from its hyperparameter `module`."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import nn

from .._util.seeding import seeded
from .._util.spelling import meant
from ..nn import (
    LSTMFCN,
    TCN,
    Averaged,
    Chain,
    ColumnEncoder,
    InceptionTime,
    InstanceScale,
    OnImages,
    PooledRNN,
    Rocket,
    Transformer,
)
from ..nn.builders import MLP, ImageBuilder, Linear, Recurrent
from ..nn.stateful import carries
from ..nn.token_ids import number_of_ids, padding_id
from ..training.argument_checks import check_features

__all__ = [
    "NETWORKS",
    "ColumnSizes",
    "Sizes",
    "make_module",
    "members_of",
    "takes_images",
    "wants_whole",
]

_CELLS = ("lstm", "gru", "rnn")
_POOLING = ("lstm-fcn", "inception", "tcn", "transformer")
NETWORKS = (*_POOLING, "rocket")
_KERNELS = {"lstm-fcn": 31, "inception": 39}  # steps of the largest, if sequences are long
_SHORT = 512  # steps that the convolutions of "lstm-fcn" see
_MODULES = ("auto", *_CELLS, *NETWORKS, "cnn", "mlp", "linear")
# Names in a module's constructor for the sizes inferred from the data.
_INPUTS = ("n_in", "input_size", "in_features", "input_dim")
_OUTPUTS = ("n_out", "output_size", "out_features", "output_dim")


@dataclasses.dataclass(frozen=True)
class ColumnSizes:
    """Numbers of categories of the columns that a module gets; 0: a column holds numbers.

    Parameters
    ----------
    own
        Of the columns of X.
    steps
        How many steps of these come as one input.
    static
        Of the static features, which come after them.
    """

    own: tuple[int, ...]
    steps: int = 1
    static: tuple[int, ...] = ()

    @property
    def numbers(self) -> np.ndarray:
        """Which features of an input are numbers of X, ``(steps · C + S,)``."""
        every = (*self.own * self.steps, *(1 for _ in self.static))
        return np.asarray(np.array(every) == 0)

    @property
    def any(self) -> bool:
        """Whether there are categories."""
        return any(self.own) or any(self.static)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a named module, or a class of modules, is made with.

    Parameters
    ----------
    hidden_size
        Width of its layers.
    num_layers
        Number of its layers; None: as many as the module has by default.
    dropout
        Their dropout rate.
    bidirectional
        Whether recurrent layers have a second direction.
    pool
        How the outputs at a sequence's steps are summarised, see `fastseq.nn.Pool`; None: as the
        module does by default.
    per_step
        Whether the module returns an output for each step, so that nothing is pooled.
    instance
        ``"instance"``: sequences are scaled by themselves, see `fastseq.nn.InstanceScale`;
        ``"both"``: beside the sequences as they are; None: they are not.
    steps
        Time steps of the longest sequence, for the sizes of kernels; None: unknown.
    image
        ``(W, H, C)`` if each step is an image; None: it is not.
    columns
        Which features are categories, and which are numbers of X; None: all are the latter.
    scores
        How many outputs are scores of each target's classes; None: they are no scores.
    parts
        How many inputs are features as they are, and how many scaled by themselves, if there are
        both.
    """

    hidden_size: int = 32
    num_layers: int | None = None
    dropout: float = 0.0
    bidirectional: bool = False
    pool: str | None = None
    per_step: bool = False
    instance: str | None = None
    steps: int | None = None
    image: tuple[int, int, int] | None = None
    columns: ColumnSizes | None = None
    scores: list[int] | None = None
    parts: tuple[int, int] | None = None

    @property
    def layers(self) -> int:
        """The number of layers of modules that have one by default."""
        return 1 if self.num_layers is None else self.num_layers

    def by_name(self) -> dict[str, Any]:
        """Return those that constructors of classes may have."""
        found = {
            "hidden_size": self.hidden_size,
            "num_layers": self.layers,
            "dropout": self.dropout,
        }
        return {**found, "bidirectional": True} if self.bidirectional else found


def members_of(module: object) -> list[str]:
    """Return the names in a hyperparameter such as "lstm-fcn+rocket", whose networks are averaged.

    Examples
    --------
    >>> members_of("lstm-fcn+rocket"), members_of(nn.Linear)
    (['lstm-fcn', 'rocket'], [])
    """
    return module.split("+") if isinstance(module, str) else []


def _of_member(name: str, sizes: Sizes) -> Sizes:
    """Return the sizes for one of several networks: those that it has."""
    pooled = name in (*_CELLS, *_POOLING)
    deep = name not in ("lstm-fcn", "rocket")
    return dataclasses.replace(
        sizes,
        pool=(sizes.pool or "last") if name in _CELLS else sizes.pool if pooled else None,
        bidirectional=sizes.bidirectional and name in _CELLS,
        num_layers=sizes.num_layers if deep else None,
    )


def _averaged(module: str, sizes: Sizes) -> Callable[..., nn.Module]:
    """Return a builder of networks whose outputs are averaged."""
    names = members_of(module)
    other = next((name for name in names if name not in (*_CELLS, *NETWORKS)), None)
    if other is not None:
        raise ValueError(
            f"module={module!r} averages {(*_CELLS, *NETWORKS)}, got {other!r}"
            f"{meant(other, (*_CELLS, *NETWORKS))}"
        )
    if sizes.per_step:
        raise ValueError(
            f"module={module!r} needs one target per sequence, but y has them per step"
        )
    own = [_of_member(name, sizes) for name in names]
    for key, unset in (("pool", None), ("bidirectional", False), ("num_layers", None)):
        asked = getattr(sizes, key) != unset
        if asked and all(getattr(one, key) == unset for one in own):
            raise ValueError(f"{key} is for none of module={module!r}, got {getattr(sizes, key)!r}")
    builds = [_builder(name, one) for name, one in zip(names, own, strict=True)]

    def build(n_in: int, n_out: int, rng: torch.Generator) -> nn.Module:
        return Averaged([one(n_in, n_out, rng) for one in builds], sizes.scores)

    return build


def _builder(module: str | nn.Module | Callable[..., nn.Module], sizes: Sizes) -> Any:
    """Return a name's builder; anything else unchanged."""
    if len(members_of(module)) > 1:
        return _averaged(str(module), sizes)
    recurrent = isinstance(module, str) and module in _CELLS
    known = isinstance(module, type) and "bidirectional" in inspect.signature(module).parameters
    if sizes.bidirectional and not (recurrent or known):
        raise ValueError(
            f"bidirectional is for {_CELLS}, and classes with this argument, got module={module!r}"
        )
    if sizes.pool is not None and not (recurrent or module in _POOLING):
        raise ValueError(f"pool is for {(*_CELLS, *_POOLING)}, not for module={module!r}")
    if sizes.pool is not None and sizes.per_step:
        raise ValueError(
            f"pool={sizes.pool!r} needs one target per sequence, but y has them per step"
        )
    if not isinstance(module, str):
        return module
    if module == "linear":
        return Linear()
    _check_sizes(module, sizes)
    if module == "cnn":
        layers = 2 if sizes.num_layers is None else sizes.num_layers
        widths = tuple(sizes.hidden_size * 2**number for number in range(layers))
        return ImageBuilder(widths, dropout=sizes.dropout)
    if module == "mlp":
        return MLP((sizes.hidden_size,) * (sizes.layers), sizes.dropout)
    whole = sizes.pool is not None or sizes.bidirectional or sizes.instance is not None
    if recurrent and not whole:
        return Recurrent(module, sizes.hidden_size, sizes.layers, sizes.dropout)
    if module in _MODULES:
        return functools.partial(_network, module, sizes)
    raise ValueError(
        f"module must be one of {_MODULES}, several joined by '+', an nn.Module, its class or a "
        f"builder, got {module!r}{meant(module, _MODULES)}"
    )


def _check_sizes(module: str, sizes: Sizes) -> None:
    """Raise if a named module cannot be that wide or deep."""
    if not isinstance(sizes.hidden_size, Integral) or sizes.hidden_size < 1:
        raise ValueError(
            f"hidden_size must be at least 1, and a whole number, got {sizes.hidden_size}"
        )
    if not 0 <= sizes.dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {sizes.dropout}")
    if sizes.num_layers is not None and sizes.num_layers < (module != "mlp"):
        raise ValueError(f"num_layers must be at least 1 or None, got {sizes.num_layers}")
    if module == "transformer" and sizes.hidden_size % 8:
        raise ValueError(
            "hidden_size must be a multiple of 8 for module='transformer', which has 4 heads, got "
            f"{sizes.hidden_size}"
        )


def _network(name: str, sizes: Sizes, n_in: int, n_out: int, rng: torch.Generator) -> nn.Module:
    """Make a network over whole sequences."""
    if name == "rocket":
        return _rocket(sizes, n_in, n_out, rng)
    more: dict[str, Any] = {"dropout": sizes.dropout}
    if sizes.per_step:
        more["pool"] = None
    elif sizes.pool is not None:
        more["pool"] = sizes.pool
    if name in _CELLS:
        more.setdefault("pool", "last")
        return PooledRNN(
            n_in, n_out, name, sizes.hidden_size, sizes.layers,
            bidirectional=sizes.bidirectional, **more,
        )  # fmt: skip
    if name in _KERNELS and sizes.steps is not None:
        more["kernels"] = kernels_for(sizes.steps, _KERNELS[name])
    if name == "lstm-fcn":
        if sizes.num_layers is not None:
            raise ValueError("num_layers must be None for module='lstm-fcn', which has one depth")
        if sizes.steps is not None and not sizes.per_step:
            more["stride"] = stride_for(sizes.steps)
        return LSTMFCN(n_in, n_out, sizes.hidden_size, **more)
    if sizes.num_layers is not None:
        more["depth"] = sizes.num_layers
    if name == "inception":
        return InceptionTime(n_in, n_out, max(1, sizes.hidden_size // 2), **more)
    kind = TCN if name == "tcn" else Transformer
    return kind(n_in, n_out, sizes.hidden_size, **more)


def _rocket(sizes: Sizes, n_in: int, n_out: int, rng: torch.Generator) -> nn.Module:
    if sizes.per_step:
        raise ValueError(
            "module='rocket' needs one target per sequence, but y has them per step: use 'lstm'"
        )
    if sizes.num_layers is not None:
        raise ValueError("num_layers must be None for module='rocket', which has one layer")
    assert sizes.steps is not None
    seed = int(torch.randint(2**31, (), generator=rng))
    return Rocket(n_in, n_out, sizes.steps, dropout=sizes.dropout, seed=seed, parts=sizes.parts)


def kernels_for(steps: int, largest: int) -> tuple[int, int, int]:
    """Return the sizes of three kernels, odd, each half as large as the one before.

    The first is at most a quarter of the sequences' steps.

    Examples
    --------
    >>> kernels_for(251, 31), kernels_for(60, 31), kernels_for(8, 39)
    ((31, 15, 7), (15, 7, 3), (3, 3, 3))
    """
    first = min(largest, steps // 4)
    sizes = [max(3, (first >> i) - 1 | 1) for i in range(3)]
    return sizes[0], sizes[1], sizes[2]


def stride_for(steps: int) -> int:
    """Return a power of 2, by which sequences become at most 512 steps long.

    Examples
    --------
    >>> stride_for(251), stride_for(512), stride_for(513), stride_for(1460)
    (1, 1, 2, 4)
    """
    return 1 << (-(-steps // _SHORT) - 1).bit_length()


def wants_whole(module: object) -> bool:
    """Whether a module takes a whole sequence as one input, if it has one target."""
    return (
        module in ("mlp", "linear")
        if isinstance(module, str)
        else getattr(module, "whole", False) is True
    )


def takes_images(module: object) -> bool:
    """Whether a module takes images, see `Builder`."""
    if isinstance(module, str):
        return module == "cnn"
    return getattr(module, "images", False) is True


def make_module(
    module: str | nn.Module | Callable[..., nn.Module],
    n_in: int,
    n_out: int,
    sizes: Sizes,
    *,
    seed: int,
) -> nn.Module:
    """Make the module from the hyperparameter ``module``.

    Parameters
    ----------
    module
        A name, an `nn.Module` (which is copied), a class of modules, or a builder.
    n_in, n_out
        Numbers of features and of outputs.
    sizes
        For names, and for classes whose constructor has these parameters.
    seed
        Seed of the weights; torch's global generator stays unchanged.

    Raises
    ------
    TypeError, ValueError
        `module` is none of these, or did not return an `nn.Module`; or it carries a state, but
        needs whole sequences.
    """
    if sizes.image is not None:
        return OnImages(sizes.image, _made(module, sizes.image, n_out, sizes, seed))
    before: list[nn.Module] = []
    if sizes.columns is not None and sizes.columns.any:
        with seeded(seed + 1):  # other numbers than the module's
            encode = ColumnEncoder(sizes.columns.own, sizes.columns.steps, sizes.columns.static)
        before, n_in = [encode], encode.features
    if sizes.instance is not None:
        own = n_in if sizes.columns is None else int(sizes.columns.numbers.sum())
        beside = sizes.instance == "both"
        before.append(InstanceScale(beside=beside, features=None if own == n_in else own))
        if beside:
            sizes = dataclasses.replace(sizes, parts=(n_in, own) if own else None)
            n_in += own
    made = _made(module, n_in, n_out, sizes, seed)
    if number_of_ids(made) is not None:
        _check_ids(module, made, sizes)
    if sizes.columns is not None:
        try:
            check_features(made, torch.empty(0, n_in))
        except ValueError as error:
            raise ValueError(f"with static features and embedded categories, {error}") from None
    if sizes.instance is not None and carries(made):
        raise ValueError(
            f"scale_x={sizes.instance!r} needs whole sequences, but {type(made).__name__} carries "
            "a state from chunk to chunk: use 'standard', or fastseq.nn.PooledRNN"
        )
    return Chain(*before, made) if before else made


def _check_ids(module: object, made: nn.Module, sizes: Sizes) -> None:
    """Raise if a module that looks ids up would get something else."""
    if number_of_ids(module) is None:
        raise ValueError(
            "the module looks ids up, as it has the attribute num_embeddings: its builder needs "
            "it, too, so that X is not scaled"
        )
    if padding_id(module) != padding_id(made):
        raise ValueError(
            f"the module takes the id {padding_id(made)} for padding, as it has the attribute "
            "pad_token_id: its builder needs it, too, so that lengths of lists are kept"
        )
    if sizes.columns is not None:
        raise ValueError(
            "the module looks up ids, so X must hold these only: no categories, no static features"
        )


def _made(
    module: str | nn.Module | Callable[..., nn.Module],
    n_in: int | tuple[int, int, int],
    n_out: int,
    sizes: Sizes,
    seed: int,
) -> nn.Module:
    build = _builder(module, sizes)
    _refuse_bare(module)
    if isinstance(module, nn.Module):
        return copy.deepcopy(module)
    if not callable(build):
        raise TypeError(
            f"module must be a name, an nn.Module, its class or a builder, got {module!r}"
        )
    with seeded(seed):
        if isinstance(build, type) and issubclass(build, nn.Module):
            made = build(**_sizes_by_name(build, n_in, n_out, sizes.by_name()))
        else:
            made = build(n_in, n_out, torch.Generator().manual_seed(seed))
    if not isinstance(made, nn.Module):
        raise TypeError(f"module must build an nn.Module, got {type(made).__name__}")
    _refuse_bare(made)
    return made


def _refuse_bare(module: object) -> None:
    """Raise for models and configs of transformers, whose inputs and outputs are others."""
    if any(kind.__module__.startswith("transformers.") for kind in type(module).__mro__):
        raise TypeError(
            "module must be TextBuilder(config), TextModel(model) or SeriesModel(model) of "
            f"fastseq.huggingface, got {type(module).__name__} itself"
        )


def _sizes_by_name(
    kind: type[nn.Module], n_in: int | tuple[int, int, int], n_out: int, more: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a class's constructor that are known by name."""
    known = {**dict.fromkeys(_INPUTS, n_in), **dict.fromkeys(_OUTPUTS, n_out), **more}
    parameters = list(inspect.signature(kind).parameters.values())
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.name not in known
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if missing:
        raise TypeError(
            f"{kind.__name__} needs {', '.join(missing)}, but it can be given only "
            f"{', '.join((_INPUTS[0], _OUTPUTS[0], *more))}: pass a builder, such as lambda n_in, "
            f"n_out, rng: {kind.__name__}(...)"
        )
    return {p.name: known[p.name] for p in parameters if p.name in known}
