"""The inputs of metrics, made from a model's outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np

from ..inference.samples import Samples

__all__ = ["classes_of", "column", "takes_weights", "weights_of"]

_Array = np.ndarray


def classes_of(outputs: _Array, *, one_logit: bool) -> _Array:
    """Return predicted classes: the argmax of ``(n, C)``, or whether each logit is positive.

    Examples
    --------
    >>> logits = np.array([[0.1, 2.0], [3.0, -1.0]])
    >>> classes_of(logits, one_logit=False).tolist(), classes_of(logits, one_logit=True).tolist()
    ([1, 0], [[1, 1], [1, 0]])
    """
    classes: _Array = (outputs > 0).astype(np.int64) if one_logit else outputs.argmax(-1)
    return classes


def column(values: _Array) -> _Array:
    """Return ``(n, 1)`` as ``(n,)``, anything else unchanged."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def weights_of(samples: Samples) -> dict[str, _Array]:
    """Return the argument ``sample_weight`` of a metric; empty if all weights are equal."""
    weights = samples.weights
    return {} if (weights == weights[0]).all() else {"sample_weight": weights}


def takes_weights(function: Callable[..., object]) -> bool:
    """Whether a metric takes ``sample_weight``."""
    try:
        return "sample_weight" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False
