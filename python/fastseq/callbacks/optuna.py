"""Pruning of Optuna trials."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from .._util.optional_imports import need
from ..training.run import Callback
from .monitor import Monitor

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["OptunaPruning"]

# The last epoch that each trial of this process has reported. Copies of a callback share a trial.
_reported: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


class OptunaPruning(Callback):
    """Report each epoch's loss to an Optuna trial, and end `fit` if it is pruned.

    `fit` then ends after the epoch, as if it had been stopped, and raises `optuna.TrialPruned`,
    which the study expects. A trial is one `fit`: Optuna keeps the first report of each epoch, and
    would judge other folds of a cross-validation by those of the first.

    Parameters
    ----------
    trial
        The objective's argument. On several ranks, rank 0's decides; others may pass None.
    monitor
        The number in the epoch's row of the history to report, such as ``"validation_r2"`` (then
        put `Metrics` before this callback); None: the validation loss, or the loss without
        validation. The study's ``direction`` says whether lower is better, so one with
        ``"maximize"`` needs a number of which higher is.

    Raises
    ------
    MissingFeatureError
        Optuna is not installed.
    TypeError
        `trial` is no trial, such as the study.
    ValueError
        Before training: the study maximises, but a loss is reported, or it has several objectives;
        or the trial has had a `fit` before, which has reported these epochs.

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
        if trial is not None and not hasattr(trial, "should_prune"):
            raise TypeError(
                f"OptunaPruning needs the trial that the objective gets, got {type(trial).__name__}"
            )
        self._trial = trial
        self._monitor = Monitor(monitor, "min")
        self._pruned = ""

    def __deepcopy__(self, memo: dict[int, object]) -> OptunaPruning:
        # Scikit-learn copies parameters; a copied trial would report to a copy of the study.
        return OptunaPruning(self._trial, self._monitor.key)

    def on_fit_begin(self, run: Run) -> None:
        """Check `monitor` and `trial`.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        TypeError
            The trial is None on rank 0.
        ValueError
            The study wants something else than is reported, the trial has had a `fit`, or the
            monitored number is one of validation, and there is none.
        """
        self._monitor.check(run)
        self._pruned = ""
        if not run.first:
            return
        if self._trial is None:
            raise TypeError("OptunaPruning needs a trial on rank 0, got None")
        study = getattr(self._trial, "study", None)  # a FixedTrial has none, and is never pruned
        if study is not None:
            self._check_direction(study)
            if _reported.get(self._trial, 0) > run.epoch:
                raise ValueError(
                    "OptunaPruning serves one fit per trial, and this trial has already had one: "
                    "pass it only to the fit that Optuna should judge, not to those of other folds"
                )

    def _check_direction(self, study: Any) -> None:
        """Raise if the study wants several numbers, or one that is high, but gets a loss."""
        directions = [direction.name.lower() for direction in study.directions]
        if len(directions) > 1:
            raise ValueError(
                "OptunaPruning reports one number, but the study has several objectives, and "
                "Optuna does not prune such studies: leave the callback out"
            )
        key = self._monitor.key
        if directions == ["maximize"] and (key is None or key.endswith("loss")):
            given = "the loss" if key is None else f'"{key}"'
            raise ValueError(
                f"OptunaPruning reports {given}, for which lower is better, but the study has "
                'direction="maximize": pass a monitor for which higher is better, such as '
                'monitor="validation_r2" with Metrics("r2") before it, or minimise the loss'
            )

    def on_epoch_end(self, run: Run) -> None:
        """Report, and stop if the trial is pruned.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            The epoch's row does not have the monitored number.
        """
        value = self._monitor.value(run)
        prune = False
        if run.first:
            self._trial.report(value, run.epoch)
            if hasattr(self._trial, "study"):
                _reported[self._trial] = run.epoch
            prune = self._trial.should_prune()
        if run.same(float(prune)):
            self._pruned = f"pruned after epoch {run.epoch}, at {value:.5g}"
            run.stop(self._pruned)

    def on_fit_end(self, run: Run) -> None:
        """Raise `optuna.TrialPruned` if the trial was pruned.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        optuna.TrialPruned
            The trial was pruned; the study expects this.
        """
        if self._pruned and run.error is None:
            from optuna import TrialPruned

            raise TrialPruned(self._pruned)
