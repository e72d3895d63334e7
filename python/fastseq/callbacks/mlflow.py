"""Logging to MLflow."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._util.optional_imports import need
from .trackers import Tracker, artifacts_of, history_figure, numbers_of, parameters

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["MLflow"]

# Losses of updates are buffered: one message costs as much as many updates.
_KEPT_BACK = 500
_SECONDS_BETWEEN = 10.0
_LONGEST_VALUE = 500  # characters, of a parameter


class MLflow(Tracker):
    """Log each call of `fit` as a run on an MLflow server or database.

    Parameters: the spec, the model's class and size, the optimizer and its settings, and the shape
    of the data. Metrics: every number in an epoch's row of the history, by epoch, and the loss of
    updates as ``update_loss``. Artifacts: the history as a table and a plot (the latter needs
    matplotlib), a description of the model and its weights. Training resumed from a checkpoint
    continues the same run. Rank 0 logs; if logging fails, training continues, and a warning says
    why.

    Put it after `Metrics`, so that it sees their values, and before `RestoreBest`, so that it logs
    the best weights.

    Parameters
    ----------
    experiment
        Name of the experiment, created if missing; None: the parent's, or the one set by
        `mlflow.set_experiment`.
    tracking_uri
        Such as ``"sqlite:///mlflow.db"`` or ``"http://server:5000"``; None: the one set by
        `mlflow.set_tracking_uri`.
    run_name
        Name of the run; None: MLflow makes one up.
    parent
        The id of the parent run, such as a search's; None: the run that `mlflow.start_run` has
        started, if any.
    tags
        Tags of the run.
    every
        Log the loss every `every` updates; 0: never.
    weights
        Log the model's weights at the end.

    Attributes
    ----------
    run_id
        The last run's id; None before.

    Raises
    ------
    ValueError
        `every` is negative, or not an integer.
    MissingFeatureError
        MLflow is not installed.

    Examples
    --------
    >>> import fastseq as fs, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> mlflow = fs.callbacks.MLflow("weather", tracking_uri=f"sqlite:///{folder}/mlflow.db")
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        tracking_uri: str | None = None,
        run_name: str | None = None,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        every: int = 10,
        weights: bool = True,
    ) -> None:
        super().__init__(every)
        need("mlflow", "callbacks.MLflow")
        self._experiment = experiment
        self._uri = tracking_uri
        self._run_name = run_name
        self._parent = parent
        self._tags = dict(tags or {})
        self._weights = weights
        self.run_id: str | None = None
        self._resumes = False
        self._client: Any = None
        self._kept: list[Any] = []
        self._sent = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the run's id.

        Returns
        -------
        dict
            ``"run_id"``; empty text before the first `fit`.
        """
        return {"run_id": self.run_id or ""}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue that run.

        Parameters
        ----------
        state
            What `state_dict` returned.
        """
        self.run_id = state["run_id"] or None
        self._resumes = self.run_id is not None

    def forget(self) -> None:
        """Start a run of its own."""
        self.run_id, self._resumes = None, False

    def _begin(self, run: Run) -> None:
        import mlflow

        self._kept, self._sent = [], time.monotonic()
        self._client = mlflow.MlflowClient(self._uri)
        if self._resumes and self._goes_on():
            return
        active = mlflow.active_run()
        parent = self._parent or (active.info.run_id if active is not None else None)
        tags = dict(self._tags)
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        made = self._client.create_run(
            self._experiment_id(parent), run_name=self._run_name, tags=tags
        )
        self.run_id = made.info.run_id
        params = [
            mlflow.entities.Param(key, str(value)[:_LONGEST_VALUE])
            for key, value in parameters(run).items()
        ]
        self._client.log_batch(self.run_id, params=params)
        self._client.log_text(self.run_id, str(run.model), "model.txt")

    def _goes_on(self) -> bool:
        """Reopen the run named in a checkpoint; return False if it no longer exists."""
        self._resumes = False
        try:
            self._client.update_run(self.run_id, "RUNNING")
        except Exception:
            return False
        return True

    def _experiment_id(self, parent: str | None) -> str:
        name = self._experiment
        if name is None and parent is not None:
            return str(self._client.get_run(parent).info.experiment_id)
        if name is None and "MLFLOW_EXPERIMENT_ID" in os.environ:
            return os.environ["MLFLOW_EXPERIMENT_ID"]  # mlflow.set_experiment sets it, too
        name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except Exception:  # another process has created it meanwhile
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _log_update(self, run: Run) -> None:
        self._keep({"update_loss": run.loss}, run.updates)
        late = time.monotonic() - self._sent > _SECONDS_BETWEEN
        if late or len(self._kept) >= _KEPT_BACK:
            self._send()

    def _log_epoch(self, run: Run) -> None:
        self._keep(numbers_of(run.row), run.epoch)
        self._send()

    def _keep(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._kept += [Metric(name, value, now, step) for name, value in values.items()]

    def _send(self) -> None:
        kept, self._kept = self._kept, []
        self._client.log_batch(self.run_id, metrics=kept)
        self._sent = time.monotonic()

    def _end(self, run: Run) -> None:
        self._send()
        if run.stopped is not None:
            self._client.set_tag(self.run_id, "stopped", run.stopped)
        if run.error is not None:
            self._client.set_tag(self.run_id, "error", f"{type(run.error).__name__}: {run.error}")
        self._log_artifacts(run)
        ended = run.error is None
        broken_off = isinstance(run.error, KeyboardInterrupt)
        status = "FINISHED" if ended else "KILLED" if broken_off else "FAILED"
        self._client.set_terminated(self.run_id, status)
        self._abandon()

    def _log_artifacts(self, run: Run) -> None:
        self._client.log_dict(self.run_id, {"history": list(run.history)}, "history.json")
        figure = history_figure(run)
        if figure is not None:
            self._client.log_figure(self.run_id, figure, "history.png")
        for name, content in artifacts_of(run).items():
            file = name.replace(" ", "_")
            if isinstance(content, str):
                self._client.log_text(self.run_id, content, f"{file}.txt")
            else:
                self._client.log_figure(self.run_id, content, f"{file}.png")
        if self._weights:
            from safetensors.torch import save_file

            state = run.model.state_dict()
            own = {name: a.detach().cpu().clone().contiguous() for name, a in state.items()}
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.safetensors")
                save_file(own, str(path))
                self._client.log_artifact(self.run_id, str(path))

    def _abandon(self) -> None:
        self._client = None
        self._kept = []
