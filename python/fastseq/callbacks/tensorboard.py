"""Logging to TensorBoard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._util.optional_imports import need
from .trackers import Tracker, artifacts_of, history_figure, numbers_of, parameters

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["TensorBoard"]


class TensorBoard(Tracker):
    """Log losses, metrics, times and parameters to a folder for ``tensorboard --logdir``.

    Every number in an epoch's row of the history is a curve over the epochs, ``epoch/loss`` and so
    on; the loss of single updates is ``update/loss``. Added at the end: a plot of the history
    (needs matplotlib) and, to compare runs, the hyperparameters with the last epoch's losses and
    metrics.
    Rank 0 logs; if logging fails, training continues, and a warning says why.

    Put it after `Metrics`, so that it sees their values.

    Parameters
    ----------
    folder
        Where to log; a later `fit` with the same folder continues the same curves.
    every
        Log the loss every `every` updates; 0: never.

    Raises
    ------
    TypeError
        `folder` is no path.
    ValueError
        `every` is negative, or not an integer.
    MissingFeatureError
        TensorBoard is not installed.

    Examples
    --------
    >>> import fastseq as fs, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp(), "first")
    >>> est = fs.Estimator(
    ...     nn.Linear(3, 1), fs.seqloss(nn.MSELoss()), torch.optim.Adam,
    ...     dict(epochs=2, batchsize=4, seqsize=10),
    ...     callbacks=[fs.callbacks.TensorBoard(folder)], progress=False,
    ... )
    >>> est = est.fit(torch.randn(20, 8, 3), torch.randn(20, 8, 1))
    >>> any(folder.glob("events.out.tfevents.*"))
    True
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 10) -> None:
        super().__init__(every)
        need("tensorboard", "callbacks.TensorBoard")
        self._folder = Path(folder)
        self._writer: Any = None

    def _begin(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder))
        table = [f"| {key} | {value} |" for key, value in parameters(run).items()]
        self._writer.add_text("parameters", "\n".join(["| name | value |", "|-|-|", *table]))
        self._writer.add_text("model", f"```\n{run.model}\n```")

    def _log_update(self, run: Run) -> None:
        self._writer.add_scalar("update/loss", run.loss, run.updates)

    def _log_epoch(self, run: Run) -> None:
        for name, value in numbers_of(run.row).items():
            self._writer.add_scalar(f"epoch/{name}", value, run.epoch)
        self._writer.flush()

    def _end(self, run: Run) -> None:
        figure = history_figure(run)
        if figure is not None:
            self._writer.add_figure("history", figure, run.epoch, close=False)
        for name, content in artifacts_of(run).items():
            if isinstance(content, str):
                self._writer.add_text(name, f"```\n{content}\n```", run.epoch)
            else:
                self._writer.add_figure(name, content, run.epoch, close=False)
        if len(run.history):
            last = numbers_of(run.history[-1])
            results = {f"last/{name}": value for name, value in last.items()}
            self._writer.add_hparams(parameters(run), results, run_name=".", global_step=run.epoch)
        self._abandon()

    def _abandon(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
