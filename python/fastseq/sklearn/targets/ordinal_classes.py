"""Targets whose classes have an order, by CORN."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ...nn import OrdinalLogProbabilities
from ..inputs.input_checks import Array, Items
from ..losses_and_optimizers import loss_over_chunks
from .class_kinds import Classes, classes_of, read_classes, shown
from .target_forms import Targets

__all__ = ["Ordinal", "order_of", "read_order"]


class Ordinal(Classes):
    """One target, whose classes have an order.

    Outputs are the log-probabilities of the classes in this order.

    Parameters
    ----------
    order
        The classes in their order.

    Examples
    --------
    >>> kind = Ordinal(np.array(["low", "mid", "high"]))
    >>> outputs = np.log([[0.4, 0.25, 0.35]])
    >>> kind.classes, kind.probabilities(outputs)[0].round(2), kind.labels(outputs)
    (array(['high', 'low', 'mid'], dtype='<U4'), array([[0.35, 0.4 , 0.25]]), array([['mid']], ...
    """

    def __init__(self, order: Array) -> None:
        super().__init__([np.sort(order)])
        self.known = [order]
        self.head = OrdinalLogProbabilities(len(order))
        self.n_out: int = len(order) - 1
        self.scores = None
        self.form = tuple(order.tolist())
        self.arguments = (order,)
        self._order = order
        self._ranks = np.argsort(np.searchsorted(self.classes, order))  # of classes by number

    @classmethod
    def read(cls, targets: Targets, weights: Items | None, known: list[Array] | None) -> Ordinal:
        """Check the target, and find its classes' order.

        Parameters
        ----------
        targets
            The targets; their own order counts before any other.
        weights
            As in `classes_of`.
        known
            The classes in their order, if they were listed or are those of earlier calls.

        Raises
        ------
        ValueError, TypeError
            There are several targets; or the order lacks a class.
        """
        if targets.form.count > 1 or (known is not None and len(known) > 1):
            raise ValueError(
                "loss='ordinal' needs one target, (N,) or per step (N, T), got "
                f"{targets.form.count}: fit one classifier for each"
            )
        if known is None:
            found = classes_of(targets, weights)[0]
            if targets.order is None:
                _warn_of_text(found, stacklevel=7)
        else:
            found = known[0]
        if targets.order is None:
            return cls(found)
        present = set(found.tolist())
        order = [label for label in targets.order if label in present]
        if len(order) < len(found):
            missing = [label for label in found.tolist() if label not in set(order)]
            raise ValueError(
                f"y is ordered, but its categories {list(targets.order)} lack {missing}"
            )
        return cls(np.array(order, found.dtype))

    def numbers(self, rows: Array) -> Array:
        """Return each label's place in the order."""
        ranks: Array = self._ranks[super().numbers(rows)]
        return ranks

    def loss(self, given: object) -> Callable[..., Tensor]:
        """Return the loss over chunks."""
        del given  # the name by which this kind was chosen
        return loss_over_chunks(F.nll_loss, {})

    def labels(self, outputs: Array) -> Array:
        """Return the medians: the lowest classes that are exceeded with a chance of at most 1/2.

        So does CORN's paper. Other than the most probable class, the median is never far from most
        of the probability, and it has the least expected distance.
        """
        up_to = np.exp(outputs.astype(np.float64)).cumsum(-1)
        found: Array = self._order[(up_to[..., :-1] < 0.5).sum(-1)]
        return found[..., None]

    def probabilities(self, outputs: Array) -> list[Array]:
        """Return the probabilities of the sorted classes."""
        return [np.exp(outputs[..., self._ranks])]


def order_of(y: Any) -> tuple[Any, ...] | None:
    """Return the order of a pandas Categorical, of a series, or of all columns of a frame or list.

    None: it has none.

    Raises
    ------
    ValueError
        Columns have different orders.

    Examples
    --------
    >>> import pandas as pd
    >>> order_of(pd.Categorical(["b", "a"], ["b", "a"], ordered=True)), order_of(["b", "a"])
    (('b', 'a'), None)
    """
    if hasattr(y, "dtypes") and hasattr(y, "columns"):
        dtypes = list(y.dtypes)
    elif isinstance(y, (list, tuple)):
        dtypes = [getattr(one, "dtype", None) for one in y]
    else:
        dtypes = [getattr(y, "dtype", None)]
    orders = {
        tuple(dtype.categories.tolist()) if getattr(dtype, "ordered", False) is True else None
        for dtype in dtypes
    }
    if len(orders) > 1:
        raise ValueError("y has columns or sequences whose categories have different orders")
    return next(iter(orders), None)


def read_order(classes: Any) -> list[Array]:
    """Return a target's classes in their order, as a user lists them; sorted if they have none.

    Raises
    ------
    ValueError
        As `read_classes`.
    """
    found, order = read_classes(classes), order_of(classes)
    if order is None:
        _warn_of_text(found[0], stacklevel=5)
        return found
    present = set(found[0].tolist())
    return [np.array([label for label in order if label in present], found[0].dtype)]


def _warn_of_text(classes: Array, *, stacklevel: int) -> None:
    if any(isinstance(label, str) for label in classes.tolist()):
        warnings.warn(
            f"loss='ordinal' takes text in alphabetical order, {shown(classes)}: for another "
            "order, and to silence this, pass an ordered pandas Categorical, or numbers",
            stacklevel=stacklevel,
        )
