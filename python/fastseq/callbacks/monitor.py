"""The number of an epoch that a callback monitors."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["Monitor", "check_positive"]


class Monitor:
    """A number in each epoch's row of the history, with a sign for which lower is better.

    Parameters
    ----------
    key
        Its name; None: ``"validation_loss"`` if there is one, else ``"loss"``.
    mode
        ``"min"``: lower is better; ``"max"``: higher is.

    Raises
    ------
    TypeError
        `key` is not a string.
    ValueError
        `mode` is unknown.

    Examples
    --------
    >>> Monitor(None, "min").name({"loss": 0.5, "validation_loss": 0.7})
    'validation_loss'
    """

    def __init__(self, key: str | None, mode: str) -> None:
        if key is not None and not isinstance(key, str):
            raise TypeError(f"monitor must be the name of a number of the history, got {key!r}")
        if mode not in ("min", "max"):
            raise ValueError(f'mode must be "min" or "max", got {mode!r}')
        self.key = key
        self.sign: float = 1.0 if mode == "min" else -1.0

    def check(self, run: Run) -> None:
        """Raise `ValueError` if the number needs validation and there is none."""
        if self.key is not None and self.key.startswith("validation_") and run.validation is None:
            raise ValueError(
                f'monitor="{self.key}" needs validation data: pass validation=… to fit, or watch '
                '"loss"'
            )

    def name(self, row: dict[str, Any]) -> str:
        """Return the number's name in `row`."""
        if self.key is None:
            return "validation_loss" if "validation_loss" in row else "loss"
        if self.key not in row:
            raise ValueError(
                f'monitor="{self.key}" is not in the history, which has {", ".join(row)}; a '
                "callback sees only what those before it in the list add"
            )
        return self.key

    def value(self, run: Run) -> float:
        """Return this epoch's number."""
        return float(run.row[self.name(run.row)])

    def cost(self, run: Run) -> float:
        """Return this epoch's number, signed so that lower is better; NaN is the worst."""
        value = self.value(run)
        return math.inf if math.isnan(value) else self.sign * value


def check_positive(name: str, value: object, *, integer: bool = False) -> None:
    """Raise unless `value` is a positive number."""
    kind, what = (numbers.Integral, "an integer") if integer else (numbers.Real, "a number")
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, got {value!r}")
    if not float(value) > 0:
        raise ValueError(f"{name} must be positive, got {value}")
