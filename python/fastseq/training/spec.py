"""`Spec`: the settings behind `Estimator`'s `spec`."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping

import numpy as np

from .._util.arguments import FromArguments
from .._util.spelling import meant

__all__ = ["Spec"]


@dataclasses.dataclass(frozen=True)
class Spec(FromArguments):
    """How to go through the data and what to do with gradients.

    Parameters
    ----------
    epochs
        Passes over the data of one `fit`.
    batchsize
        Sequences in a block, per rank: they are trained together.
    seqsize
        Time steps in a chunk: gradients reach back at most this far; the state is carried on.
    shuffle
        Visit the blocks in a new random order each epoch. Chunks stay in time order. Lists are also
        shuffled into other blocks, of sequences of similar length (at most about a quarter longer
        than others; four times as long for a model that normalises over a batch without its
        padding). A block then has as many chunks as its longest possible member needs, of which the
        last may be empty.
    clip_norm
        Scale all gradients down together so that their 2-norm is at most this.
    clip_value
        Clip each gradient element to ± this, before `clip_norm`.
    accumulate
        Chunks whose gradients are averaged, over all their samples, for one update.
    shard
        What the ranks split: ``"sequences"``, or ``"time"`` for a few long series (every rank then
        starts its part of the series with a fresh state). ``"given"``: nothing, each rank passes
        its own data, with any number of sequences, and `predict` returns only their outputs.
    fold
        Cut every series into this many segments of equal length, trained as separate sequences: for
        a few long series. The rest at the end of each series is not trained on.
    nan
        What to do with NaN and infinities in inputs and targets that count: ``"raise"``, naming
        the first place; ``"mask"``: treat each as missing; or ``"keep"``. For a missing input the
        model gets 0, after scaling (then 0 is the mean); missing targets add nothing to loss and
        gradient. Samples with all inputs or all targets missing have weight 0 (so do, with any
        `nan`, class labels equal to the loss's ``ignore_index``). If samples of a chunk have some
        but not all of their targets, the loss gets weights ``(S, B, K)``, one for each target; with
        several targets, in their structure.
    context
        How many earlier steps the outputs of a model without state depend on, for a causal
        convolution its receptive field less 1. Each chunk is run with this many steps before it
        (fewer at the start of series); their outputs do not count.
    scale_x, scale_y
        How to scale inputs and targets, feature by feature: ``"standard"`` (by mean and standard
        deviation), ``"robust"`` (by median and quartiles), or None. Measured on the training part,
        when `fit` is first called; undone on the outputs of `predict`. Both run in fp64, before
        data are converted to the model's dtype, and after: neither large offsets nor units matter.
        Integer targets are scaled if `seqloss` made the loss from one that compares numbers; else
        they are class labels.

    Raises
    ------
    ValueError
        A number is not positive, or `shard` is unknown.
    TypeError
        A count is not an integer, a limit is not a number, or `shuffle` is not a bool.

    Examples
    --------
    >>> Spec(epochs=2, batchsize=20, seqsize=10).shuffle
    False
    """

    epochs: int
    batchsize: int
    seqsize: int
    shuffle: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None
    accumulate: int = 1
    shard: str = "sequences"
    fold: int = 1
    nan: str = "raise"
    scale_x: str | None = None
    scale_y: str | None = None
    context: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batchsize", "seqsize", "accumulate", "fold"):
            check_count(f"spec.{name}", getattr(self, name))
        if isinstance(self.context, bool) or not isinstance(self.context, numbers.Integral):
            raise TypeError(f"spec.context must be an integer, got {self.context!r}")
        if self.context < 0:
            raise ValueError(f"spec.context must be a number of steps, got {self.context}")
        for name in ("clip_norm", "clip_value"):
            limit = getattr(self, name)
            if limit is not None and (
                isinstance(limit, bool) or not isinstance(limit, numbers.Real)
            ):
                raise TypeError(f"spec.{name} must be a number or None, got {limit!r}")
            if limit is not None and not float(limit) > 0:
                raise ValueError(f"spec.{name} must be positive or None, got {limit!r}")
        if not isinstance(self.shuffle, (bool, np.bool_)):
            raise TypeError(f"spec.shuffle must be True or False, got {self.shuffle!r}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                choices = [f'"{one}"' if one else "None" for one in allowed]
                raise ValueError(
                    f"spec.{name} must be {', '.join(choices[:-1])} or {choices[-1]}, "
                    f"got {getattr(self, name)!r}"
                )

    @classmethod
    def of(cls, spec: object) -> Spec:
        """Make a `Spec` from the argument `spec` of `Estimator`.

        Parameters
        ----------
        spec
            A `Spec`, which is returned; a dict of its fields, with no other keys; or an object that
            has its fields as attributes, and may have others.

        Returns
        -------
        Spec
            The settings; fields that are not given have their defaults.

        Raises
        ------
        ValueError
            A dict has other keys; ``epochs``, ``batchsize`` or ``seqsize`` is missing; or a value
            is not allowed.
        TypeError
            A value is of a wrong type.

        Examples
        --------
        >>> Spec.of({"epochs": 2, "batchsize": 20, "seqsize": 10}).accumulate
        1
        """
        if isinstance(spec, cls):
            return spec
        names = [field.name for field in dataclasses.fields(cls)]
        if isinstance(spec, Mapping):
            unknown = [str(key) for key in spec if key not in names]
            if unknown:
                meaning = meant(unknown[0], names) or "."
                raise ValueError(
                    f"spec has no field {' or '.join(unknown)}{meaning} "
                    f"There are {', '.join(names)}"
                )
            values = dict(spec)
        else:
            values = {name: getattr(spec, name) for name in names if hasattr(spec, name)}
        missing = [name for name in ("epochs", "batchsize", "seqsize") if name not in values]
        if missing:
            raise ValueError(
                f"spec needs epochs, batchsize and seqsize, but has no {', '.join(missing)}"
            )
        return cls(**values)


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "shard": ("sequences", "time", "given"),
    "nan": ("raise", "mask", "keep"),
    "scale_x": ("standard", "robust", None),
    "scale_y": ("standard", "robust", None),
}


def check_count(name: str, value: object) -> None:
    """Raise unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be positive, got {value}")
