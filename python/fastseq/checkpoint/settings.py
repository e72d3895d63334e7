"""Where and how often `fit` writes checkpoints."""

from __future__ import annotations

import dataclasses
import numbers
import os
from typing import TYPE_CHECKING, Any

from ..training.run import Callback

if TYPE_CHECKING:
    from ..training.learner import Learner
    from ..training.run import Run

__all__ = ["Checkpoint", "Keeper"]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where and how often `Estimator.fit` writes checkpoints: ``fit(…, checkpoint=Checkpoint(…))``.

    One is also written at the end, and when a signal asks for it: SIGUSR1 (training continues) or
    SIGTERM (the program ends).

    Parameters
    ----------
    folder
        A folder only for the checkpoints of one call of `fit`. With several ranks rank 0 writes.
    every_updates, every_minutes, every_epochs
        Write each time this many updates, minutes or epochs have passed; None: not.
    keep
        How many of the newest ones to keep.

    Raises
    ------
    ValueError, TypeError
        A setting is not a positive number.

    Examples
    --------
    >>> import fastseq as fs, tempfile
    >>> model = torch.nn.GRU(1, 1)
    >>> spec = dict(epochs=2, batchsize=4, seqsize=5)
    >>> est = fs.Estimator(model, fs.seqloss(nn.MSELoss()), torch.optim.SGD, spec, progress=False)
    >>> checkpoint = fs.callbacks.Checkpoint(tempfile.mkdtemp(), every_updates=100, every_minutes=5)
    >>> x = torch.zeros(10, 4, 1)
    >>> _ = est.fit(x, x, checkpoint=checkpoint, resume="auto")
    """

    folder: str | os.PathLike[str]
    every_updates: int | None = None
    every_minutes: float | None = None
    every_epochs: int | None = 1
    keep: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str | os.PathLike):
            raise TypeError(f"checkpoint needs a folder, got {self.folder!r}")
        for name in ("every_updates", "every_epochs", "keep"):
            value = getattr(self, name)
            if value is not None or name == "keep":
                _check(name, value, numbers.Integral)
        if self.every_minutes is not None:
            _check("every_minutes", self.every_minutes, numbers.Real)

    @classmethod
    def of(cls, value: Any) -> Checkpoint:
        """Return the argument of ``fit(checkpoint=…)`` as a `Checkpoint`.

        Parameters
        ----------
        value
            A `Checkpoint`, or a folder.

        Returns
        -------
        Checkpoint
            `value` itself, or one for the folder that writes at the end of each epoch.

        Raises
        ------
        TypeError
            `value` is neither.
        """
        return value if isinstance(value, cls) else cls(value)


class Keeper(Callback):
    """A callback that keeps the checkpoints of `fit`, in place of `checkpoint` and `resume`."""

    def open(self, learner: Learner) -> tuple[Checkpoint, str | os.PathLike[str] | None]:
        """Return where to write, and from what to continue.

        Parameters
        ----------
        learner
            The estimator's model, with all that is needed to train it, as the script has made it.

        Returns
        -------
        checkpoint : Checkpoint
            Where and how often to write.
        resume : path or None
            The folder or file to continue from; None: `fit` starts from scratch.
        """
        raise NotImplementedError

    def on_checkpoint(self, run: Run) -> None:
        """Run after all callbacks of an epoch, when its checkpoint is in the folder.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        raise NotImplementedError


def _check(name: str, value: Any, kind: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "an integer" if kind is numbers.Integral else "a number"
        raise TypeError(f"checkpoint: {name} must be {what}, got {value!r}")
    if not value > 0:
        raise ValueError(f"checkpoint: {name} must be positive, got {value}")
