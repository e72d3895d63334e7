"""What, how long and how fast to train where a hyperparameter is "auto" or None."""

from __future__ import annotations

import warnings
from typing import Any

from ..nn.token_ids import number_of_ids
from .named_modules import members_of

__all__ = [
    "WHOLE", "TooFewUpdatesWarning", "automatic_module", "automatic_scaling", "enough_epochs",
    "learning_rate", "warn_if_few",
]  # fmt: skip

_ALONE, _AVERAGED = "lstm-fcn", "lstm-fcn+rocket"
WHOLE = (_ALONE, _AVERAGED)  # look at whole sequences
_TAPS = 9  # of Rocket's kernels
_LEAST, _MOST = 600, 3000  # updates
_PASSES = 20
_FEW = 50  # updates, fewer than any learning needs
_RATES = {"transformer": 2e-3}
_RATE = 1e-2
_OWN_RATE = 1e-3  # of modules that are not ours


def automatic_module(
    module: Any, steps: int, *, per_step: bool, cut: int | None, before: object = None
) -> Any:
    """Return the module, or what "auto" stands for.

    "lstm" where each step has a target, or sequences are cut into chunks of fewer steps, so that a
    state is carried; "mlp" for sequences of one step; "lstm-fcn" for those of fewer steps than
    Rocket's kernels have taps, 9; else "lstm-fcn+rocket", see `fastseq.nn.LSTMFCN`, `Rocket` and
    `Averaged`.

    Parameters
    ----------
    module
        The hyperparameter.
    steps
        Time steps of the longest sequence.
    per_step
        Whether each step has a target.
    cut
        Time steps of a chunk, if given.
    before
        What it stood for in training that may go on; networks of whole sequences stay the same.

    Examples
    --------
    >>> automatic_module("auto", 50, per_step=False, cut=None)
    'lstm-fcn+rocket'
    """
    if not isinstance(module, str) or module != "auto":
        return module
    if per_step or (cut is not None and cut < steps):
        return "lstm"
    if before in WHOLE:
        return before
    if steps == 1:
        return "mlp"
    return _ALONE if steps < _TAPS else _AVERAGED


def automatic_scaling(
    scale_x: str | None, module: object, chosen: object, *, nan: str
) -> str | None:
    """Return how inputs are scaled, or what "auto" stands for.

    "both" if `module` is "auto" and was `chosen` to look at whole sequences, without missing values
    among them; else "standard". Ids are not scaled.
    """
    if number_of_ids(chosen) is not None:
        if scale_x not in ("auto", None):
            raise ValueError(
                f"scale_x must be None, as the module looks up ids, which are not scaled, got "
                f"{scale_x!r}"
            )
        return None
    if scale_x != "auto":
        return scale_x
    whole = module == "auto" and chosen in WHOLE
    return "both" if whole and nan == "raise" else "standard"


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
    return min(_RATES.get(name, _RATE) for name in members_of(module))


def warn_if_few(updates: int, epochs: int) -> None:
    """Warn if that many updates, in so many epochs, are too few to learn anything."""
    if updates < _FEW:
        warnings.warn(
            f"the weights were updated only {updates} time{'s' * (updates != 1)} in {epochs} "
            f"epoch{'s' * (epochs != 1)}, too few to learn anything: pass epochs=None, more "
            "epochs, or a smaller batchsize",
            TooFewUpdatesWarning,
            stacklevel=5,
        )
