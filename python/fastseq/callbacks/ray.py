"""Reports and checkpoints for Ray Tune."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._util.optional_imports import need
from ..checkpoint.settings import Checkpoint, Keeper
from ..training.known_optimizers import set_in_group
from .schedules import Schedule
from .trackers import Tracker, numbers_of

if TYPE_CHECKING:
    from ..training.learner import Learner
    from ..training.run import Run

__all__ = ["RayTune"]

# Ray starts a trial's function in a thread of its own each time, also in a process used before.
_begun = threading.local()


class RayTune(Keeper):
    """Report each epoch to Ray Tune, with a checkpoint of `fit`, in a trial's function.

    Reported are the numbers in the epoch's row of the history, which other callbacks may add to:
    ``"epoch"``, ``"loss"``, ``"lr"``, ``"updates"``, ``"seconds"``, ``"updates_per_second"`` and,
    only with validation, ``"validation_loss"``. Ray ends a search for a metric that is not reported
    with an error. If Ray stops the trial, `fit` ends after the epoch, as if it had
    been stopped, and raises `SystemExit`, which Ray expects.

    A trial that Ray starts again, after an error, a pause, or by `ray.tune.Tuner.restore`,
    continues `fit` from the last epoch that it has reported, to the same bits. If Ray gives it
    another trial's checkpoint, with other hyperparameters, as `PopulationBasedTraining` does, the
    optimizer takes this trial's learning rate and similar settings, and trackers start a run of
    their own.

    Raises
    ------
    MissingFeatureError
        Ray Tune is not installed.
    ValueError
        Before training: this is no trial of Ray Tune, or its second call of `fit`; or `fit` got
        `checkpoint` or `resume`, which this callback takes care of. After continuing with another
        learning rate: a `Schedule` sets it.

    Examples
    --------
    >>> import fastseq as fs
    >>> def trial(config):  # for ray.tune.Tuner(trial, param_space={"lr": ...})
    ...     x = torch.randn(20, 8, 3)
    ...     est = fs.Estimator(
    ...         nn.Linear(3, 1), fs.seqloss(nn.MSELoss()),
    ...         lambda p: torch.optim.Adam(p, lr=config["lr"]),
    ...         dict(epochs=3, batchsize=4, seqsize=10),
    ...         callbacks=[fs.callbacks.RayTune()], progress=False,
    ...     )
    ...     est.fit(x, x[..., :1], validation=0.25)  # reports loss, validation_loss, …
    """

    def __init__(self) -> None:
        need("ray.tune", "callbacks.RayTune")
        self._folder = ""
        self._stop: SystemExit | None = None
        self._trial: str | None = None
        self._settings: list[dict[str, Any]] = []  # the optimizer's, as the script has made it
        self._loaded: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> RayTune:
        return RayTune()

    def open(self, learner: Learner) -> tuple[Checkpoint, str | os.PathLike[str] | None]:
        """Return a folder, with the trial's last checkpoint in it if there is one.

        Parameters
        ----------
        learner
            The estimator's model, with all that is needed to train it, as the script has made it.

        Returns
        -------
        checkpoint : Checkpoint
            A new folder, with one checkpoint, of the last epoch.
        resume : path or None
            The folder, if the trial continues; None: it starts.

        Raises
        ------
        ValueError
            This is no trial of Ray Tune, or its second call of `fit`.
        """
        from ray import tune

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's, outside of a trial
            self._trial = tune.get_context().get_trial_id()
        if self._trial is None:
            raise ValueError(
                "RayTune reports to a trial of Ray Tune, but fit does not run in one: call fit in "
                "the function that you pass to ray.tune.Tuner, or leave RayTune out"
            )
        if getattr(_begun, "fit", False):
            raise ValueError(
                "RayTune serves one call of fit per trial, and this trial has already had one: use "
                "it only in the fit that Ray should judge"
            )
        _begun.fit = True
        self._settings = [_numbers(group) for group in learner.optimizer.param_groups]
        self._stop, self._loaded = None, {}
        self._folder = tempfile.mkdtemp(prefix="fastseq-")
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        saved = tune.get_checkpoint()
        if saved is not None:
            saved.to_directory(self._folder)
        return Checkpoint(self._folder, keep=1), None if saved is None else self._folder

    def on_fit_begin(self, run: Run) -> None:
        """Let Ray wait for the end of `fit` when it stops the trial.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        # Ray joins the thread of a trial without waiting, and then ends the process, in which
        # trackers would not be closed.
        thread = threading.current_thread()
        if "join" not in vars(thread):
            join = thread.join
            thread.join = lambda timeout=None: join()  # type: ignore[method-assign]  # noqa: ARG005

    def on_epoch_begin(self, run: Run) -> None:
        """After another trial's checkpoint, keep this one's settings and trackers.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            The learning rate is another than the checkpoint's, but a `Schedule` sets it.
        """
        loaded, self._loaded = self._loaded, {}
        if not loaded:
            return
        if loaded["trial"] != self._trial:
            for callback in run.callbacks:
                if isinstance(callback, Tracker):
                    callback.forget()
        groups = zip(run.optimizer.param_groups, self._settings, loaded["settings"], strict=True)
        for group, new, old in groups:
            changed = {key: value for key, value in new.items() if value != old.get(key)}
            if "lr" in changed and any(isinstance(each, Schedule) for each in run.callbacks):
                raise ValueError(
                    f"RayTune continues from a checkpoint of lr={old['lr']} with lr={new['lr']}, "
                    "but a Schedule sets the learning rate: leave out the schedule, or do not "
                    "let Ray change lr"
                )
            for key, value in changed.items():
                set_in_group(group, key, value)

    def on_checkpoint(self, run: Run) -> None:
        """Report, and stop if Ray ends the trial.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        from ray import tune

        with tempfile.TemporaryDirectory(prefix="fastseq-") as reported:
            # The checkpoint without the folder's lock.
            shutil.copytree(
                self._folder, reported, copy_function=os.link, dirs_exist_ok=True,
                ignore=shutil.ignore_patterns(".*"),
            )  # fmt: skip
            saved = tune.Checkpoint.from_directory(reported)
            try:
                tune.report({"epoch": run.epoch, **numbers_of(run.row)}, checkpoint=saved)
            except SystemExit as stop:
                self._stop = stop
                run.stop(f"stopped by Ray Tune after epoch {run.epoch}")

    def on_fit_end(self, run: Run) -> None:
        """Raise what ends the trial if Ray has stopped it.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        SystemExit
            Ray has stopped the trial, and expects this.
        """
        self._remove()
        if self._stop is not None and run.error is None:
            raise self._stop

    def state_dict(self) -> dict[str, Any]:
        """Return the trial, and the settings with which its optimizer was made.

        Returns
        -------
        dict
            ``"trial"``, the trial's id, and ``"settings"``, numbers by name of each group of
            parameters.
        """
        return {"trial": self._trial, "settings": self._settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with these before the next epoch.

        Parameters
        ----------
        state
            What `state_dict` returned, in this trial or in another.
        """
        self._loaded = state


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a group of parameters that are numbers, or pairs of them."""
    plain = {
        key: value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        for key, value in group.items()
        if key not in ("params", "initial_lr")
    }
    return {
        key: value
        for key, value in plain.items()
        if all(type(one) in (int, float) for one in (value if type(value) is tuple else [value]))
    }
