"""Checks of the wrappers' inputs, samples first, by scikit-learn's own functions."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    _check_sample_weight,
    validate_data,
)
from torch import Tensor

from ..._util.spelling import meant
from ...data.samples_first import SamplesFirst
from ...data.tables import LongTable
from ...data.user_arrays import refuse_containers, refuse_foreign, refuse_null
from ...nn.token_ids import number_of_ids, padding_id
from ..named_modules import takes_images, wants_whole
from .category_columns import CategoryColumns, from_polars, is_frame, refuse_text
from .column_labels import check_labels, warn_if_unsorted
from .datasets import is_dataset, open_dataset, refuse_closed
from .input_forms import (
    check_order,
    is_panel,
    refuse_forms,
    sequences_of_panel,
    time_first,
    warn_if_swapped,
)

__all__ = [
    "Array", "Inputs", "Items", "as_tensor", "numbers", "read_inputs", "read_weights",
    "refuse_rounded", "take",
]  # fmt: skip

Array = np.ndarray
Items = Array | list[Array]  # one array, or one per sequence
Tensors = Tensor | list[Tensor]
_TOGETHER = 2**20  # values to look at
_LARGE = 1e18  # weights


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs whose samples are sequences.

    Parameters
    ----------
    x
        ``(N, T, F)``, or a list of ``(T_i, F)``; of a file samples ``(T, N, F)``.
    lengths
        Lengths of the sequences in time steps, ``(N,)``.
    dtype
        The dtype to compute in.
    listed
        Whether they were passed as a list; outputs are then returned as one.
    image
        ``(W, H, C)`` if each step is an image; None: it is not.
    columns
        Which features are codes of categories; None: all are numbers.
    names
        Names of the samples, an index: of a data frame's rows, or, if its index is (sequence,
        time), of the sequences; None: they have none.
    """

    x: Items | SamplesFirst
    lengths: Array
    dtype: torch.dtype
    listed: bool = False
    image: tuple[int, int, int] | None = None
    columns: CategoryColumns | None = None
    names: Any = None

    @property
    def ragged(self) -> bool:
        """Whether sequences have different lengths."""
        return isinstance(self.x, list)

    @property
    def count(self) -> int:
        """N."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """T of the longest sequence."""
        return int(self.lengths.max())

    @property
    def rounds(self) -> bool:
        """Whether there are integers that `dtype` might not hold."""
        # `numbers` has made integers fp64; what was fp64 before is computed with in fp64.
        items: list[Any] = self.x if isinstance(self.x, list) else [self.x]
        wide = self.dtype == torch.float32 and items[0].dtype == np.float64
        return wide and any(np.abs(a).max(initial=0) >= 2**24 for a in items)

    @property
    def features(self) -> int:
        """F."""
        return int(self.x[0].shape[-1] if isinstance(self.x, list) else self.x.shape[-1])

    def whole(self) -> Inputs:
        """Return each sequence as one step of all its features."""
        if isinstance(self.x, list):
            raise ValueError(
                "this module takes whole sequences as one input, so they must have one length: "
                'pass an array (N, T, F), or use a recurrent module such as "lstm"'
            )
        features = self.steps * self.features
        if isinstance(self.x, SamplesFirst):
            x: Any = self.x.like(steps=(1, features))
        else:
            x = self.x.reshape(self.count, 1, features)
        return dataclasses.replace(self, x=x, lengths=np.ones_like(self.lengths))


def take(items: Items, index: Array) -> Items:
    """Return some rows of an array, or of a list."""
    return [items[i] for i in index] if isinstance(items, list) else items[index]


def read_inputs(
    estimator: BaseEstimator,
    X: Any,  # noqa: N803
    *,
    reset: bool,
    columns: CategoryColumns | None = None,
) -> Inputs:
    """Check inputs, and set or compare the number of features and their names.

    Parameters
    ----------
    estimator
        The estimator.
    X
        ``(N, F)``, ``(N, T, F)``, also a dataset in a file; a list of ``(T_i, F)`` or ``(T_i,)``;
        or a data frame with the index (sequence, time); for modules that take images
        ``(N, W, H, C)`` or ``(N, W, H)``. With ``channels_first``, ``(N, F, T)``, ``(F, T_i)`` and
        ``(N, C, W, H)``.
    reset
        Whether `X` sets the number of features; else it must have that number.
    columns
        The columns of categories that `fit` found; unused with `reset`, which finds them.

    Raises
    ------
    ValueError, TypeError
        `X` is none of these, not finite or empty; most messages are scikit-learn's.
    """
    refuse_closed(X)
    _refuse_padding(estimator, X)
    refuse_forms(X, channels_first=estimator.channels_first)
    indexed = is_frame(X)  # frames of polars are not
    X = from_polars(X)  # noqa: N806
    columns = None if reset else columns
    _refuse_others(X)
    refuse_null(X, "X")
    if reset:
        estimator.rows_ = estimator.image_shape_ = None
    check_labels(estimator, X, reset=reset)
    if takes_images(estimator.module) if reset else estimator.image_shape_ is not None:
        return _read_images(estimator, X, reset=reset)
    whole = wants_whole(estimator.module)
    # After a fit on sequences, a frame of some that have one step each is no table.
    sequences_before = not reset and estimator.rows_ is None
    if is_panel(X, alone=sequences_before) and not whole:
        coded, columns = _coded(estimator, X, columns, reset=reset)
        sequences = sequences_of_panel(coded)
        inputs = _read_list(estimator, sequences, columns, reset=reset, coded=True)
        return dataclasses.replace(inputs, names=X.index.get_level_values(0).unique())
    inputs = _read_sequences(estimator, X, columns, reset=reset)
    inputs = dataclasses.replace(inputs, names=X.index) if indexed else inputs
    told = estimator.channels_first or whole or (inputs.listed and hasattr(X[0], "columns"))
    if reset and estimator.rows_ is None and not told:
        longest = int(inputs.lengths.argmax())
        if inputs.listed:
            warn_if_swapped((inputs.steps, inputs.features), f"X[{longest}]")
        else:
            warn_if_swapped((inputs.count, inputs.steps, inputs.features), "X")
    return inputs


def _read_sequences(
    estimator: BaseEstimator,
    X: Any,  # noqa: N803
    columns: CategoryColumns | None,
    *,
    reset: bool,
) -> Inputs:
    channels_first = estimator.channels_first
    if is_dataset(X):
        return _read_dataset(estimator, X, reset=reset)
    dims = [getattr(a, "ndim", 0) for a in X] if isinstance(X, (list, tuple)) else []
    if any(dims) and (min(dims) != max(dims) or max(dims) > 2):
        raise ValueError(
            "X must be a list of arrays that all have two dimensions, (T_i, F), or all one, "
            f"(T_i,), got {min(dims)} and {max(dims)}"
        )
    if isinstance(X, (list, tuple)) and len(X):
        if all(getattr(a, "ndim", 0) == 1 for a in X):
            series = [np.asarray(a)[:, None] for a in X]
            return _read_list(estimator, series, columns, reset=reset)
        if all(getattr(a, "ndim", 0) == 2 for a in X):
            sequences = time_first(X) if channels_first else X
            return _read_list(estimator, sequences, columns, reset=reset)
    if not reset and _are_ids(X, estimator.module):
        X = X[:, None] if channels_first else X[..., None]  # noqa: N806
    if getattr(X, "ndim", 2) < 3 and not _is_nested(X):
        return _read_table(estimator, X, columns, reset=reset)
    _need_frames([X], columns)
    x = check_array(
        X, allow_nd=True, estimator=estimator, input_name="X", ensure_all_finite=False
    )  # fmt: skip
    _check_finite(x, estimator)
    if x.ndim != 3:
        form = "(N, F, T)" if channels_first else "(N, T, F)"
        images = '; images need module="cnn", or an ImageBuilder' if x.ndim == 4 else ""
        raise ValueError(
            f"X must have the shape {form} or (N, F), or be a list of arrays "
            f"{'(F, T_i)' if channels_first else '(T_i, F)'}, got {x.shape}{images}"
        )
    given = x.shape
    x = x.swapaxes(1, 2) if channels_first else x
    if not x.shape[1]:
        raise ValueError(f"X has no time steps: its shape is {given}")
    _check_features(estimator, x.shape[2], np.empty((0, x.shape[2])), reset=reset)
    return Inputs(_values(estimator, x), np.full(len(x), x.shape[1]), _dtype(x))


def _read_dataset(estimator: BaseEstimator, X: Any, *, reset: bool) -> Inputs:  # noqa: N803
    """Read nothing yet of a dataset ``(N, T, F)`` or ``(N, T)`` in a file."""
    _check_nan(estimator)
    samples = open_dataset(X, channels_first=estimator.channels_first)
    if len(X.shape) == 2:
        _check_feature_names(estimator, X, reset=reset)
        _check_n_features(estimator, X, reset=reset)
        if reset:
            series = _are_series(X, estimator.module, None)
            estimator.rows_ = "series" if series else "samples"
        _need_rows(estimator, X)
        steps = X.shape[1], 1
        samples = samples.like(steps=steps if estimator.rows_ == "series" else steps[::-1])
    else:
        _check_features(estimator, X.shape[2], np.empty((0, X.shape[2])), reset=reset)
    return Inputs(samples, np.full(samples.count, len(samples)), _dtype(samples))


def _need_rows(estimator: BaseEstimator, x: Any) -> None:
    """Raise for a table if `fit` got sequences."""
    if estimator.rows_ is None:
        form = "(N, F, T)" if estimator.channels_first else "(N, T, F)"
        raise ValueError(
            f"X must be sequences, {form} or a list of (T_i, F), as in fit, got {x.shape}; "
            "pass one sequence as X[None], sequences of one step as X[:, None]"
        )


def _need_steps(estimator: BaseEstimator, x: Any) -> None:
    """Raise for a table of longer or shorter series than `fit` got, if these had one feature."""
    if estimator.rows_ != "series" and (estimator.rows_ or estimator.n_features_in_ > 1):
        return
    expected: int = estimator.n_features_in_
    shape: tuple[int, ...] = getattr(x, "shape", ())
    columns = shape[1] if len(shape) == 2 and not hasattr(x, "columns") else expected
    if columns != expected:
        raise ValueError(
            f"X has {columns} features, but {type(estimator).__name__} is expecting {expected} "
            "features as input; if its columns are steps, of series that are longer or shorter "
            "than in fit, pass X[..., None]"
        )


def _read_table(
    estimator: BaseEstimator,
    X: Any,  # noqa: N803
    columns: CategoryColumns | None,
    *,
    reset: bool,
) -> Inputs:
    """Read an array or a data frame with two axes."""
    coded, columns = _coded(estimator, X, columns, reset=reset)
    if reset:
        rows = "series" if _are_series(X, estimator.module, columns) else "samples"
        if rows == "series":
            coded, columns = X, None  # booleans at steps are numbers
            warn_if_unsorted(list(getattr(X, "columns", ())))
    if not reset:
        _need_steps(estimator, X)
    x = validate_data(estimator, coded, reset=reset, ensure_all_finite=False)
    x = x if columns is None else columns.settled(x, mask=estimator.nan == "mask")
    _check_finite(x, estimator)
    if reset:
        estimator.rows_ = rows
    _need_rows(estimator, x)
    axis = 2 if estimator.rows_ == "series" else 1
    x, dtype = np.expand_dims(_values(estimator, x), axis), _dtype(x)
    return Inputs(x, np.full(len(x), x.shape[1]), dtype, columns=columns)


def _coded(
    estimator: BaseEstimator,
    X: Any,  # noqa: N803
    columns: CategoryColumns | None,
    *,
    reset: bool,
) -> tuple[Any, CategoryColumns | None]:
    """Return an array or a data frame with codes in place of categories, and its columns."""
    if reset:
        columns = CategoryColumns.find([X], "X") if is_frame(X) else None
    elif columns is not None:
        _need_frames([X], columns)
        _check_feature_names(estimator, X, reset=False)
        _check_n_features(estimator, X, reset=False)
    refuse_text(X, "X", columns)
    return (X if columns is None else columns.coded([X], "X")[0]), columns


def _need_frames(items: Sequence[Any], columns: CategoryColumns | None) -> None:
    """Raise TypeError if columns hold categories, and one of the items is no data frame."""
    if columns is None:
        return
    other = next((one for one in items if not is_frame(one)), None)
    if other is not None:
        place = next(iter(columns.vocabularies))
        raise TypeError(
            f"X must be data frames, as its column {columns.names[place]!r} holds categories, got "
            f"{type(other).__name__}"
        )


def _read_images(estimator: BaseEstimator, X: Any, *, reset: bool) -> Inputs:  # noqa: N803
    """Read ``(N, W, H)`` or ``(N, W, H, C)`` as sequences of one step, an image."""
    _refuse_no_images(X)
    x = check_array(
        X, allow_nd=True, ensure_2d=False, estimator=estimator, input_name="X",
        ensure_all_finite=False,
    )  # fmt: skip
    _check_finite(x, estimator)
    given, channels_first = x.shape, estimator.channels_first
    if x.ndim == 3:
        x = x[..., None]
    elif x.ndim == 4 and channels_first:
        x = np.moveaxis(x, 1, -1)
    if x.ndim != 4 or not x.size:
        form = "(N, C, W, H)" if channels_first else "(N, W, H, C)"
        raise ValueError(f"X must be images, {form} or (N, W, H), got {given}")
    shape: tuple[int, int, int] = x.shape[1:]
    if not reset and shape != estimator.image_shape_:
        raise ValueError(
            f"X has images (W, H, C) = {shape}, but {type(estimator).__name__} was fitted on "
            f"{estimator.image_shape_}"
        )
    features = math.prod(shape)
    _check_features(estimator, features, np.empty((0, features)), reset=reset)
    if reset:
        estimator.image_shape_ = shape
        if not channels_first and shape[0] <= 4 < shape[2]:
            warnings.warn(
                f"X {given} is read as images of {shape[0]} × {shape[1]} pixels with {shape[2]} "
                "channels: if it is (N, C, W, H), pass channels_first=True",
                stacklevel=6,
            )
    steps = numbers(x, "X").reshape(len(x), 1, features)
    return Inputs(steps, np.ones(len(x), int), _dtype(x), image=shape)


def _refuse_no_images(X: Any) -> None:  # noqa: N803
    """Raise for data frames, and for images of different sizes."""
    items = list(X) if isinstance(X, (list, tuple)) else [X]
    if any(hasattr(one, "columns") for one in items):
        raise TypeError("X must be images, (N, W, H, C) or (N, W, H), but it holds data frames")
    shapes = list(dict.fromkeys(one.shape for one in items if hasattr(one, "shape")))
    if len(shapes) > 1:
        raise ValueError(
            f"X must hold images of one size, got {shapes[0]} and {shapes[1]}: scale or pad them"
        )


def _are_series(X: Any, module: object, columns: CategoryColumns | None) -> bool:  # noqa: N803
    """Whether each row of a table is a series of one feature: of modules that look along time."""
    if number_of_ids(module) is not None:
        return True
    if not isinstance(module, str) or module in ("mlp", "linear"):
        return False
    places = () if columns is None else columns.vocabularies
    text = next((place for place in places if X.dtypes.iloc[place].kind != "b"), None)
    names = [name for name in getattr(X, "columns", ()) if isinstance(name, str)]
    words = [name for name in names if not any(map(str.isdigit, name))]
    if module == "auto":
        return not words and text is None
    if text is not None:
        raise ValueError(
            f"X must hold numbers, but its column {X.columns[text]!r} of dtype "
            f"{X.dtypes.iloc[text]} does not, and module={module!r} reads each row as a series of "
            f"{X.shape[1]} steps: if columns are features, pass module='mlp'"
        )
    if words:
        warnings.warn(
            f"each row of X is read as a series of {len(names)} steps, though a column is called "
            f"{words[0]!r}: if columns are features, pass module='mlp'",
            stacklevel=8,
        )
    return True


def _refuse_padding(estimator: BaseEstimator, X: object) -> None:  # noqa: N803
    """Raise if a tokenizer, whose ids say so, pads with another id than the module knows."""
    others, own = getattr(X, "pad_token_id", None), padding_id(estimator.module)
    if None not in (others, own) and others != own:
        raise ValueError(
            f"the tokenizer's pad_token_id is {others}, but the module's is {own}, so that a word "
            f"would stand for padding: use TextBuilder(…, pad_token_id={others}), or a config with "
            "it"
        )


def _are_ids(X: Any, module: object) -> bool:  # noqa: N803
    """Whether an array holds N texts of T ids each, whatever N and T were before."""
    kind = getattr(getattr(X, "dtype", None), "kind", "")
    return kind in ("i", "u") and X.ndim == 2 and number_of_ids(module) is not None


def _is_nested(X: object) -> bool:  # noqa: N803
    """Whether `X` is a list of lists of lists."""
    try:
        return isinstance(X, list) and isinstance(X[0][0], (list, tuple))
    except (IndexError, TypeError, KeyError):
        return False


def _read_list(
    estimator: BaseEstimator,
    X: Sequence[Any],  # noqa: N803
    columns: CategoryColumns | None,
    *,
    reset: bool,
    coded: bool = False,
) -> Inputs:
    """Read sequences; `coded`: they hold codes in place of categories."""
    empty = next((i for i, a in enumerate(X) if not a.shape[0]), None)
    if empty is not None:
        raise ValueError(f"X[{empty}] has no time steps: leave sequences of length zero out")
    other = next((i for i, a in enumerate(X) if a.shape[1] != X[0].shape[1]), None)
    if other is not None:
        raise ValueError(
            f"X[{other}] has {X[other].shape[1]} features, but X[0] has {X[0].shape[1]}"
            f"{_of_channels(estimator, X)}"
        )
    _check_features(estimator, X[0].shape[1], X[0], reset=reset)
    for a in X[1:]:
        if hasattr(a, "columns"):
            _check_feature_names(estimator, a, reset=False)
    if not coded:
        if reset and (frames := list(filter(is_frame, X))):
            columns = CategoryColumns.find(frames, "X")
        _need_frames(X, columns)
        for i, a in enumerate(X):
            refuse_text(a, f"X[{i}]", columns)
        X = X if columns is None else columns.coded(X, "X")  # noqa: N806
    lengths = np.array([a.shape[0] for a in X])
    rows = np.concatenate([np.asarray(a) for a in X])
    whole = check_array(rows, input_name="X", ensure_all_finite=False)
    whole = whole if columns is None else columns.settled(whole, mask=estimator.nan == "mask")
    _check_finite(whole, estimator)
    dtype, whole = _dtype(whole), _values(estimator, whole)
    # A model that takes ids at the ends for padding must learn that there is none.
    if (lengths == lengths[0]).all() and padding_id(estimator.module) is None:
        x: Items = whole.reshape(len(X), lengths[0], -1)
    else:
        x = np.split(whole, np.cumsum(lengths)[:-1])
    return Inputs(x, lengths, dtype, listed=True, columns=columns)


def _of_channels(estimator: BaseEstimator, X: Sequence[Any]) -> str:  # noqa: N803
    """Return what to do if sequences that differ in their last axis are all of one length."""
    alike = all(a.shape[0] == X[0].shape[0] for a in X)
    if not alike or estimator.channels_first:
        return ""
    return ": if they are (F, T_i), pass channels_first=True"


def _check_nan(estimator: BaseEstimator) -> None:
    if estimator.nan not in ("raise", "mask"):
        hint = meant(estimator.nan, ["raise", "mask"])
        raise ValueError(f'nan must be "raise" or "mask", got {estimator.nan!r}{hint}')


def _check_finite(x: Array, estimator: BaseEstimator) -> None:
    """Raise if values are not finite and must not be missing."""
    _check_nan(estimator)
    if estimator.nan == "mask" or x.dtype.kind != "f":
        return
    rows = max(_TOGETHER // max(math.prod(x.shape[1:]), 1), 1)
    parts = (x[i : i + rows] for i in range(0, len(x), rows))
    if all(np.isfinite(part).all() for part in parts):
        return
    raise ValueError(
        f"Input X contains {'NaN' if np.isnan(x).any() else 'infinity'}: fill in or leave out "
        f'missing values, or let {type(estimator).__name__}(nan="mask") handle them'
    )


def _check_features(estimator: BaseEstimator, features: int, first: object, *, reset: bool) -> None:
    """Do for sequences what `validate_data` does for tables; `first` has the features' names."""
    if not features:
        raise ValueError("0 feature(s) while a minimum of 1 is required.")
    if reset:
        _check_feature_names(estimator, first, reset=True)
        estimator.n_features_in_ = features
    elif features != (expected := 1 if estimator.rows_ == "series" else estimator.n_features_in_):
        raise ValueError(
            f"X has {features} features, but {type(estimator).__name__} is expecting "
            f"{expected} features as input"
        )
    elif hasattr(first, "columns"):
        _check_feature_names(estimator, first, reset=False)


def _refuse_others(X: object) -> None:  # noqa: N803
    """Raise for containers that scikit-learn's checks do not understand."""
    if isinstance(X, (list, tuple)) and not len(X):
        raise ValueError(
            "X has no samples: Found array with 0 sample(s), while a minimum of 1 is required."
        )
    array = hasattr(X, "__array__") or hasattr(X, "toarray")  # scikit-learn refuses sparse ones
    if not array and not isinstance(X, (list, tuple)):
        hint = ": pass list(X)" if isinstance(X, LongTable) else ""
        raise TypeError(
            "X must be an array or a data frame, (N, T, F) or (N, F), or a list of arrays (T_i, F),"
            f" got {type(X).__name__}{hint}"
        )
    if not isinstance(X, list) or X:
        refuse_containers(X, "X")
    if np.ma.is_masked(X):
        raise TypeError('X is a masked array: pass X.filled(np.nan), and nan="mask"')
    refuse_foreign(X, "X")
    dtype = getattr(X, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "USMmV":
        raise TypeError(f"X must hold numbers, got dtype {dtype}; convert it")


def _dtype(x: Array | SamplesFirst) -> torch.dtype:
    """Return the dtype to compute in: double precision if `x` has it, else single precision."""
    double = x.dtype.kind == "f" and x.dtype.itemsize >= 8
    return torch.float64 if double else torch.float32


def _values(estimator: BaseEstimator, x: Array) -> Array:
    """Return what is to be scaled; ids as they are."""
    if number_of_ids(estimator.module) is None or x.dtype.kind not in "biu":
        return numbers(x, "X")
    if x.dtype.kind == "u" and x.size and x.max() > np.iinfo(np.int64).max:
        raise ValueError(
            f"X holds the id {x.max()}, but the module knows {number_of_ids(estimator.module)} "
            "ids: use the vocabulary that it was made for"
        )
    return x.astype(np.int64, copy=False)


def numbers(x: Array, name: str) -> Array:
    """Return single and double precision unchanged, other types in one that holds their values.

    Scaling needs this: the dtype to compute in might not distinguish large numbers.

    Raises
    ------
    TypeError
        Values are times, which scikit-learn's checks let pass.
    """
    if x.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold numbers, got dtype {x.dtype}; convert it")
    kind = x.dtype.newbyteorder("=")
    if kind not in (np.float64, np.float32):
        small = kind.itemsize <= 2  # at most 16 binary digits
        kind = np.dtype(np.float32 if small else np.float64)
    return x.astype(kind, copy=False)


def refuse_rounded(inputs: Inputs) -> None:
    """Raise for integers, not scaled, that the dtype to compute in might not hold."""
    if inputs.rounds:
        raise ValueError(
            "X holds integers of 2**24 or more, which float32 may round: a module that looks ids "
            "up gets them exactly if it has the attribute num_embeddings; scale other numbers by "
            "scale_x, or pass X.astype(float)"
        )


def read_weights(sample_weight: Any, inputs: Inputs, *, per_step: bool) -> Items | None:
    """Check weights: ``(N,)``, with targets per step also ``(N, T)`` or a list of ``(T_i,)``."""
    if sample_weight is None:
        return None
    dtype = np.float64 if inputs.dtype == torch.float64 else np.float32
    refuse_foreign(sample_weight, "sample_weight")
    listed = isinstance(sample_weight, (list, tuple)) and any(
        isinstance(row, (list, tuple)) or getattr(row, "ndim", 0) for row in sample_weight
    )
    if listed and not per_step:
        raise ValueError(
            "sample_weight must have one number for each sequence, (N,), as y has one target for "
            "each"
        )
    if not listed and not isinstance(sample_weight, Number):
        check_order(sample_weight, "sample_weight", inputs.names, panel=inputs.listed)
        sample_weight = _weights(sample_weight)
    if per_step and (listed or np.ndim(sample_weight) == 2):
        rows = [_weights(row) for row in sample_weight]
        if [row.shape[0] if row.ndim else -1 for row in rows] != inputs.lengths.tolist():
            raise ValueError("sample_weight must have as many steps as X, for each sample")
        flat = np.concatenate(rows)
        flat = _moderate(_check_sample_weight(flat, flat, dtype=dtype, ensure_non_negative=True))
        rows = np.split(flat, np.cumsum(inputs.lengths)[:-1])
        return rows if inputs.ragged else np.stack(rows)
    checked: Array = _check_sample_weight(
        sample_weight, np.empty((inputs.count, 1), dtype), dtype=dtype, ensure_non_negative=True
    )
    return _moderate(checked)


def _moderate(weights: Array) -> Array:
    """Return weights whose sums are finite: only their ratios count."""
    most = weights.max(initial=0)
    return weights / most if most > _LARGE else weights


def _weights(given: object) -> Array:
    """Return an array; raise for dtypes that conversion to floats would turn into numbers."""
    found = np.asarray(given)
    if found.dtype.kind not in "biufO":
        raise TypeError(f"sample_weight must hold numbers, got dtype {found.dtype}; convert it")
    return found


def as_tensor(a: Array) -> Tensor:
    """Return an array as a tensor, which must not be written to."""
    return torch.from_numpy(a if a.flags.writeable else np.asarray(_Unlocked(a)))


class _Unlocked:
    """A view of a read-only array that claims to be writable.

    Torch warns of read-only arrays, and filtering warnings would affect all threads.
    """

    def __init__(self, a: Array) -> None:
        self._array = a
        interface: dict[str, Any] = a.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
