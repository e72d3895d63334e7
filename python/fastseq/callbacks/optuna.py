"""Pruning of Optuna trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._util.optional_imports import need
from ..training.run import Callback
from .monitor import Monitor

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["OptunaPruning"]


class OptunaPruning(Callback):
    """Report each epoch's loss to an Optuna trial, and end `fit` if it is pruned.

    `fit` then ends after the epoch, as if it had been stopped, and raises `optuna.TrialPruned`,
    which the study expects.

    Parameters
    ----------
    trial
        The objective's argument. On several ranks, rank 0's decides; others may pass None.
    monitor
        The number in the epoch's row of the history to report, such as ``"validation_r2"`` (then
        put `Metrics` before this callback); None: the validation loss, or the loss without
        validation. The study's ``direction`` says whether lower is better.

    Raises
    ------
    MissingFeatureError
        Optuna is not installed.

    Examples
    --------
    >>> import fastseq as fs, optuna
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> x = torch.randn(20, 8, 3)
    >>> def objective(trial):
    ...     lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    ...     est = fs.Estimator(
    ...         nn.Linear(3, 1), fs.seqloss(nn.MSELoss()),
    ...         lambda p: torch.optim.Adam(p, lr=lr), dict(epochs=3, batchsize=4, seqsize=10),
    ...         callbacks=[fs.callbacks.OptunaPruning(trial)], progress=False,
    ...     )
    ...     est.fit(x, x[..., :1], validation=0.25)
    ...     return est.history_[-1]["validation_loss"]
    >>> study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    >>> study.optimize(objective, n_trials=4)
    >>> len(study.trials)
    4
    """

    def __init__(self, trial: Any, monitor: str | None = None) -> None:
        need("optuna", "callbacks.OptunaPruning")
        self._trial = trial
        self._monitor = Monitor(monitor, "min")
        self._pruned = ""

    def __deepcopy__(self, memo: dict[int, object]) -> OptunaPruning:
        # Scikit-learn copies parameters; a copied trial would report to a copy of the study.
        return OptunaPruning(self._trial, self._monitor.key)

    def on_fit_begin(self, run: Run) -> None:
        """Check `monitor` and `trial`."""
        self._monitor.check(run)
        self._pruned = ""
        if run.first and self._trial is None:
            raise TypeError("OptunaPruning needs a trial on rank 0, got None")

    def on_epoch_end(self, run: Run) -> None:
        """Report, and stop if the trial is pruned."""
        value = self._monitor.value(run)
        prune = False
        if run.first:
            self._trial.report(value, run.epoch)
            prune = self._trial.should_prune()
        if run.same(float(prune)):
            self._pruned = f"pruned after epoch {run.epoch}, at {value:.5g}"
            run.stop(self._pruned)

    def on_fit_end(self, run: Run) -> None:
        """Raise `optuna.TrialPruned` if the trial was pruned."""
        if self._pruned and run.error is None:
            from optuna import TrialPruned

            raise TrialPruned(self._pruned)
