"""How long and how fast to train where `epochs` or `lr` is None."""

from __future__ import annotations

import warnings

__all__ = ["TooFewUpdatesWarning", "enough_epochs", "learning_rate", "warn_if_few"]

_LEAST, _MOST = 600, 3000  # updates
_PASSES = 20
_FEW = 50  # updates, fewer than any learning needs
_RATES = {"transformer": 2e-3}
_RATE = 1e-2
_OWN_RATE = 1e-3  # of modules that are not ours


class TooFewUpdatesWarning(UserWarning):
    """`fit` updated the weights fewer times than any learning needs."""


def enough_epochs(updates: int) -> int:
    """Return how many epochs of so many updates each are enough.

    At least 600 updates; 20 epochs if those are no more than 3000 updates, else about 3000 updates,
    and at least one epoch.

    Examples
    --------
    >>> [enough_epochs(updates) for updates in (1, 25, 100, 1000, 50_000)]
    [600, 24, 20, 3, 1]
    """
    return max(-(-_LEAST // updates), min(_PASSES, -(-_MOST // updates)))


def learning_rate(module: object, *, scheduled: bool) -> float:
    """Return the learning rate of a module, by name or of a user's own.

    Examples
    --------
    >>> learning_rate("gru", scheduled=True), learning_rate("gru", scheduled=False)
    (0.01, 0.001)
    """
    if not isinstance(module, str) or not scheduled:
        return _OWN_RATE
    return _RATES.get(module, _RATE)


def warn_if_few(updates: int, epochs: int) -> None:
    """Warn if that many updates, in so many epochs, are too few to learn anything."""
    if updates < _FEW:
        warnings.warn(
            f"the weights were updated only {updates} times in {epochs} epochs, fewer than any "
            "learning needs: pass epochs=None, more epochs, or a smaller batchsize",
            TooFewUpdatesWarning,
            stacklevel=6,
        )
