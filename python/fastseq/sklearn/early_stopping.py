"""Early stopping: which samples to hold out, and whose epoch's weights to keep."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..callbacks.best_weights import RestoreBest
from ..callbacks.stopping import NumberSinceBest

if TYPE_CHECKING:
    from ..estimator import Estimator

__all__ = ["FRACTION", "keeping_best", "stops_early", "warn_if_tiny"]

FRACTION = 0.1  # held out if none is given
_MANY = 10_000  # samples, of which a tenth says something
_PATIENCE = 10  # epochs
_FEW_OF_CLASS, _FEW = 10, 30  # samples held out


def stops_early(wanted: object, count: int) -> bool:
    """Return whether `fit` stops early, given the hyperparameter and the number of samples.

    Examples
    --------
    >>> stops_early("auto", 10_000), stops_early("auto", 10_001), stops_early(True, 20)
    (False, True, True)
    """
    if isinstance(wanted, bool | np.bool_):
        return bool(wanted)
    if isinstance(wanted, str) and wanted == "auto":
        return count > _MANY
    raise ValueError(f'early_stopping must be "auto", True or False, got {wanted!r}')


def warn_if_tiny(count: int, classes: np.ndarray | None, known: np.ndarray | None) -> None:
    """Warn if the samples held out are too few to tell which epoch was best.

    Parameters
    ----------
    count
        How many there are.
    classes, known
        Their classes, and those of all samples; None: there are none.
    """
    if classes is None or known is None:
        few = f"only {count} samples" if count < _FEW else None
    else:
        least = min(int((classes == one).sum()) for one in np.unique(known))
        few = f"only {least} samples of one class" if least < _FEW_OF_CLASS else None
    if few is not None:
        warnings.warn(
            f"early_stopping=True holds out {few}, too few to tell which epoch was best: raise "
            "validation_fraction, or pass early_stopping=False to train on all samples",
            stacklevel=5,
        )


@contextlib.contextmanager
def keeping_best(est: Estimator, *, best: bool, stop: bool) -> Iterator[None]:
    """Let an estimator end with the weights of its best epoch, by validation.

    Parameters
    ----------
    est
        The estimator.
    best
        Whether to; otherwise nothing changes.
    stop
        Whether to stop if no epoch has been better for a while.
    """
    own = est.callbacks
    if best:
        # Last, so that weights which a user's own callback restores come after these.
        est.callbacks = [*own, RestoreBest(monitor="validation_loss")]
        if stop:
            est.callbacks.append(NumberSinceBest(_PATIENCE, monitor="validation_loss"))
    try:
        yield
    finally:
        est.callbacks = own
