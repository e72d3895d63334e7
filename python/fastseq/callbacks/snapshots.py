"""Files of weights, one per epoch."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.hdf5.open_file import writing
from ..training.run import Callback
from .best_weights import weights_copy
from .loaded_states import numbers_like
from .monitor import Monitor, check_positive

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["Snapshots"]


class Snapshots(Callback):
    """Write the model's weights to numbered files: all, the last few, or the best few.

    Rank 0 writes ``epoch-0001.safetensors`` and so on: parameters and buffers by name, with the
    epoch and the losses in the metadata. Files are written under another name and then renamed.
    For other data the search for the best restarts, and existing files stay. Complex tensors are
    written as pairs of reals (`torch.view_as_real`) and listed in the metadata. To resume a run,
    use `Checkpoint`.

    Parameters
    ----------
    folder
        The folder, created if missing.
    every
        Write every `every` epochs.
    last
        How many of the newest to keep.
    best
        How many of the best to keep. Without `last` and `best`, all are kept.
    monitor
        The number in the history's rows that decides; None: ``"validation_loss"`` if there is
        validation, else ``"loss"``.
    mode
        ``"min"``: lower is better; ``"max"``: higher is.

    Attributes
    ----------
    paths
        The files kept so far, by epoch.

    Raises
    ------
    TypeError
        `folder` is no path, `every`, `last` or `best` is not an integer, or `monitor` not a string.
    ValueError
        `every`, `last` or `best` is not positive, or `mode` is unknown. When `fit` begins:
        `monitor` is a number of validation, and there is none; after an epoch: the history has no
        such number.
    OSError
        When `fit` begins: the folder cannot be written to.

    Examples
    --------
    >>> import fastseq as fs, tempfile
    >>> snapshots = fs.callbacks.Snapshots(tempfile.mkdtemp(), best=3)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int = 1,
        last: int | None = None,
        best: int | None = None,
        monitor: str | None = None,
        mode: str = "min",
    ) -> None:
        check_positive("every", every, integer=True)
        for name, count in (("last", last), ("best", best)):
            if count is not None:
                check_positive(name, count, integer=True)
        self.folder: Path = Path(folder)
        self.every: int = every
        self.last: int | None = last
        self.best: int | None = best
        self._monitor = Monitor(monitor, mode)
        self._costs: dict[int, float] = {}

    def on_fit_begin(self, run: Run) -> None:
        """Reset for a new estimator or other data; check that files can be written.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            The monitored number is one of validation, and there is none.
        OSError
            The folder cannot be written to.
        """
        self._monitor.check(run)
        if self.is_new_to(run):
            self._costs = {}
        if run.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass

    def on_epoch_end(self, run: Run) -> None:
        """Write a file, and remove those not kept.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            The epoch's row does not have the monitored number.
        OSError
            The file cannot be written.
        """
        if run.epoch % self.every:
            return
        self._costs[run.epoch] = math.inf if self.best is None else self._monitor.cost(run)
        if self.best is not None or self.last is not None:
            newest = sorted(self._costs)[-self.last :] if self.last else []
            # Ties: the earlier one.
            ranked = sorted(self._costs, key=lambda epoch: (self._costs[epoch], epoch))
            kept = {*newest, *ranked[: self.best or 0]}
        else:
            kept = set(self._costs)
        if run.first:
            if run.epoch in kept:
                _write(run, self._path(run.epoch))
            for epoch in self._costs.keys() - kept - {run.epoch}:
                self._path(epoch).unlink(missing_ok=True)
        self._costs = {epoch: cost for epoch, cost in self._costs.items() if epoch in kept}

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04}.safetensors"

    @property
    def paths(self) -> dict[int, Path]:
        """The files kept so far, by epoch."""
        return {epoch: self._path(epoch) for epoch in sorted(self._costs)}

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs of the files, and their costs.

        Returns
        -------
        dict
            ``"epochs"`` and ``"costs"``, lists of numbers.
        """
        return {"epochs": list(self._costs), "costs": list(self._costs.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        seen = numbers_like(state, {"epochs": [], "costs": []})
        self._costs = dict(zip(seen["epochs"], seen["costs"], strict=True))
        self._used = None


def _write(run: Run, path: Path) -> None:
    tensors = {
        name: a.cpu() for name, a in weights_copy(run.model).items() if isinstance(a, Tensor)
    }
    numbers = {key: str(value) for key, value in run.row.items()}
    pairs = [name for name, a in tensors.items() if a.is_complex()]
    if pairs:
        tensors.update((name, torch.view_as_real(tensors[name])) for name in pairs)
        numbers["complex"] = " ".join(pairs)
    with writing("Snapshots", path) as beside:
        save_file(tensors, beside, metadata=numbers)
