"""Combinations of criteria."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .monitor import check_positive
from .stopping import Criterion

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["AllOf", "AnyOf", "Warmup"]


class _Combined(Criterion):
    def __init__(self, *criteria: Criterion) -> None:
        super().__init__()
        if not criteria:
            raise TypeError(
                f"{type(self).__name__} needs at least one criterion, such as NumberSinceBest(5)"
            )
        for criterion in criteria:
            if not isinstance(criterion, Criterion):
                raise TypeError(
                    f"{type(self).__name__} takes criteria such as NumberSinceBest(5), got "
                    f"{criterion!r}"
                )
        self._criteria = criteria

    def on_fit_begin(self, run: Run) -> None:
        super().on_fit_begin(run)
        for criterion in self._criteria:
            criterion.on_fit_begin(run)

    def _reasons(self, run: Run) -> list[str]:
        # All of them: each must see every epoch, and ranks must communicate alike.
        reasons = [criterion.update(run) for criterion in self._criteria]
        return [reason for reason in reasons if reason]

    def state_dict(self) -> dict[str, Any]:
        states = [criterion.state_dict() for criterion in self._criteria]
        return {**super().state_dict(), "criteria": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = {**state}
        for criterion, part in zip(self._criteria, own.pop("criteria"), strict=True):
            criterion.load_state_dict(part)
        super().load_state_dict(own)


class AnyOf(_Combined):
    """Stop when one of several criteria is met (as a list of callbacks does by itself).

    Parameters
    ----------
    criteria
        The criteria.

    Raises
    ------
    TypeError
        There are no criteria, or one is no `Criterion`.
    ValueError
        In `fit`: as the criteria.

    Examples
    --------
    >>> import fastseq as fs
    >>> cb = fs.callbacks
    >>> criterion = cb.Warmup(cb.AnyOf(cb.Patience(3), cb.GL(5)), 10)
    """

    def update(self, run: Run) -> str | None:
        return "; ".join(self._reasons(run)) or None


class AllOf(_Combined):
    """Stop when several criteria are met in the same epoch.

    Parameters
    ----------
    criteria
        The criteria.

    Raises
    ------
    TypeError
        There are no criteria, or one is no `Criterion`.
    ValueError
        In `fit`: as the criteria.

    Examples
    --------
    >>> import fastseq as fs
    >>> cb = fs.callbacks
    >>> criterion = cb.AllOf(cb.NumberSinceBest(5), cb.Threshold(0.1, monitor="loss"))
    """

    def update(self, run: Run) -> str | None:
        reasons = self._reasons(run)
        return "; ".join(reasons) if len(reasons) == len(self._criteria) else None


class Warmup(_Combined):
    """Hide the first `n` epochs from a criterion.

    Parameters
    ----------
    criterion
        The criterion.
    n
        Number of epochs.

    Raises
    ------
    TypeError
        `criterion` is no `Criterion`, or `n` is not an integer.
    ValueError
        `n` is not positive; in `fit`: as the criterion.

    Examples
    --------
    >>> import fastseq as fs
    >>> criterion = fs.callbacks.Warmup(fs.callbacks.NumberSinceBest(5), 20)
    """

    _start = {"epochs": 0}  # noqa: RUF012 (a class variable, as in its base)

    def __init__(self, criterion: Criterion, n: int = 1) -> None:
        super().__init__(criterion)
        check_positive("n", n, integer=True)
        self.n = n

    def update(self, run: Run) -> str | None:
        if self._seen["epochs"] < self.n:
            self._seen["epochs"] += 1
            return None
        return "; ".join(self._reasons(run)) or None
