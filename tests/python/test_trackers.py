"""TensorBoard, MLflow and Optuna, by their own libraries."""

from __future__ import annotations

import json
import math
import sys

import mlflow
import optuna
import pytest
import safetensors.torch
import torch
from models import adamw, chain
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.callbacks import Metrics, MLflow, OptunaPruning, TensorBoard

# What MLflow's database does with this version of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

X = torch.randn(20, 6, 3, generator=torch.Generator().manual_seed(0))
Y = X[..., :1]
STEPS = 8  # of an epoch, with 2 sequences held out


def estimator(*callbacks, optimizer=adamw, epochs=3):
    torch.manual_seed(0)
    return fs.Estimator(
        chain(), fs.seqloss(mse_loss), optimizer, fs.Spec(epochs, 2, 5),
        callbacks=callbacks, progress=False, seed=0,
    )  # fmt: skip


def fitted(*callbacks, **options):
    return estimator(*callbacks, **options).fit(X, Y, validation=2)


def scalars(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events, {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard(tmp_path):
    board = TensorBoard(tmp_path, every=4)
    losses = []
    est = estimator(Metrics("r2", train=True), board, Losses(losses)).fit(X, Y, validation=2)
    est.fit(X, Y, validation=2, epochs=1)  # goes on with the curves
    events, found = scalars(tmp_path)
    for name in ("loss", "validation_loss", "lr", "r2", "validation_r2", "updates_per_second"):
        expected = [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in est.history_]
        assert found[f"epoch/{name}"] == expected, name
    expected = [(n, pytest.approx(losses[n - 1], rel=1e-6)) for n in range(4, 33, 4)]
    assert found["update/loss"] == expected
    texts = [
        t.tensor_proto.string_val[0].decode() for t in events.Tensors("parameters/text_summary")
    ]
    assert "| spec.batchsize | 2 |" in texts[0]
    assert "| optimizer | AdamW |" in texts[0]
    assert (
        "LSTM(3, 4)" in events.Tensors("model/text_summary")[0].tensor_proto.string_val[0].decode()
    )
    (picture,) = events.Images("history")[:1]
    assert picture.width > 300
    assert "_hparams_/session_start_info" in events.summary_metadata
    # By step: files of one second are read in the order of their numbers as text, 10 before 9.
    last = dict(found["last/validation_loss"])
    assert last[3] == pytest.approx(est.history_[2]["validation_loss"])


def test_every_counts_updates_of_several_chunks(tmp_path):
    est = fs.Estimator(
        chain(), fs.seqloss(mse_loss), adamw, fs.Spec(3, 2, 5, accumulate=5),
        callbacks=[TensorBoard(tmp_path, every=4)], progress=False,
    )  # fmt: skip
    assert est.fit(X, Y).history_.updates == 9  # for 5, 5 and 2 chunks of each epoch
    assert [update for update, _ in scalars(tmp_path)[1]["update/loss"]] == [4, 8]


class Losses(fs.callbacks.Callback):
    def __init__(self, losses):
        self.losses = losses

    def on_batch_end(self, run):
        self.losses.append(run.loss)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One for all tests: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # artifacts go below where the database is first used
        mlflow.MlflowClient(uri).create_experiment("weather")
    return uri


@pytest.fixture
def uri(database, monkeypatch):
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    mlflow.set_tracking_uri(database)
    yield database
    mlflow.set_tracking_uri(None)


def test_mlflow(uri, tmp_path):
    losses = []
    tracker = MLflow("weather", tracking_uri=uri, run_name="first", tags={"team": "north"}, every=4)
    est = fitted(Metrics("r2"), tracker, Losses(losses))
    client = mlflow.MlflowClient(uri)
    run = client.get_run(tracker.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "weather"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert run.data.tags["team"] == "north"
    params = run.data.params
    for name, value in {
        "spec.batchsize": "2", "spec.shuffle": "False", "model": "Chain", "optimizer": "AdamW",
        "optimizer.lr": str(est.optimizer.param_groups[0]["lr"]), "loss": "mse_loss",
        "model.parameters": str(sum(p.numel() for p in est.model.parameters())),
        "data.sequences": "4", "data.steps": "20", "seed": "0", "ranks": "1",
    }.items():  # fmt: skip
        assert params[name] == value, name
    for name in ("loss", "validation_loss", "validation_r2", "lr", "seconds"):
        kept = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        assert kept == [(row["epoch"], row[name]) for row in est.history_], name
    kept = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "update_loss")]
    assert kept == [(n, losses[n - 1]) for n in range(4, 25, 4)]
    folder = client.download_artifacts(run.info.run_id, "", str(tmp_path))
    files = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert files == {"history.json", "history.png", "model.safetensors", "model.txt"}
    table = json.loads((tmp_path / "history.json").read_text())["history"]
    assert table == [dict(row) for row in est.history_]
    weights = safetensors.torch.load_file(f"{folder}/model.safetensors")
    for name, value in est.model.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_mlflow_runs_of_a_search_have_a_parent(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # which set_experiment sets, is as it was then
    mlflow.set_experiment("search")
    with mlflow.start_run() as parent:
        child = MLflow(weights=False)
        fitted(child, epochs=1)
        assert mlflow.active_run().info.run_id == parent.info.run_id
    run = mlflow.get_run(child.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.info.experiment_id == parent.info.experiment_id
    other = MLflow(parent=child.run_id, weights=False)
    fitted(other, epochs=1)
    assert mlflow.get_run(other.run_id).data.tags["mlflow.parentRunId"] == child.run_id
    alone = MLflow(weights=False)
    fitted(alone, epochs=1)
    run = mlflow.get_run(alone.run_id)
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.info.experiment_id == parent.info.experiment_id


def test_mlflow_makes_experiments(uri):
    tracker = MLflow("new", weights=False)
    fitted(tracker, epochs=1)
    experiment = mlflow.get_experiment_by_name("new")
    assert mlflow.get_run(tracker.run_id).info.experiment_id == experiment.experiment_id


def test_mlflow_goes_on_with_the_run_of_a_training_that_is_resumed(uri, tmp_path):
    first, again, lost = (MLflow("weather", weights=False) for _ in range(3))
    with pytest.raises(RuntimeError):
        estimator(first, Fails(RuntimeError("power"), epoch=3), epochs=4).fit(
            X, Y, validation=2, checkpoint=tmp_path
        )
    client = mlflow.MlflowClient(uri)
    assert client.get_run(first.run_id).info.status == "FAILED"
    resumed = estimator(again, Fails(None, epoch=9), epochs=4)
    resumed.fit(X, Y, validation=2, checkpoint=tmp_path, resume="auto")
    assert again.run_id == first.run_id
    last = {m.step: m.value for m in client.get_metric_history(first.run_id, "loss")}
    assert last == {row["epoch"]: row["loss"] for row in resumed.history_}
    assert client.get_run(first.run_id).info.status == "FINISHED"
    # A checkpoint may tell of a run that another database had.
    est = fitted(Loads(lost, {"run_id": "0" * 32}), lost, epochs=1)
    assert client.get_metric_history(lost.run_id, "loss")[0].value == est.history_[0]["loss"]


class Loads(fs.callbacks.Callback):
    def __init__(self, tracker, state):
        self.tracker = tracker
        self.state = state

    def on_epoch_begin(self, run):  # noqa: ARG002 (protocol)
        self.tracker.load_state_dict(self.state)


class Fails(fs.callbacks.Callback):
    def __init__(self, error, epoch=1):
        self.error = error
        self.epoch = epoch

    def on_epoch_end(self, run):
        if run.epoch != self.epoch:
            return
        if self.error is not None:
            raise self.error
        run.stop("far enough")


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("oh"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_mlflow_knows_how_the_run_ended(uri, error, status):
    tracker = MLflow("weather")
    with pytest.raises(type(error)):
        fitted(tracker, Fails(error))
    run = mlflow.MlflowClient(uri).get_run(tracker.run_id)
    assert run.info.status == status
    assert run.data.tags["error"].startswith(type(error).__name__)
    fitted(tracker, Fails(None))
    run = mlflow.MlflowClient(uri).get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["stopped"]) == ("FINISHED", "far enough")


def test_a_tracker_that_fails_does_not_lose_the_training(uri, tmp_path):
    expected = [row["loss"] for row in fitted().history_]
    nowhere = MLflow("weather", tracking_uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    (tmp_path / "file").write_text("")
    for tracker, name in (
        (nowhere, "MLflow"),
        (TensorBoard(tmp_path / "file" / "runs"), "TensorBoard"),
    ):
        with pytest.warns(RuntimeWarning, match=f"^{name} failed .*training continues") as told:
            est = fitted(tracker)
        assert len(told) == 1
        assert [row["loss"] for row in est.history_] == expected

    breaks = MLflow("weather", tracking_uri=uri)
    with pytest.warns(RuntimeWarning, match="MLflow failed.* gone") as told:
        est = fitted(breaks, Breaks(breaks))
    assert len(told) == 1
    assert [row["loss"] for row in est.history_] == expected
    fitted(breaks)  # the next one is logged
    assert mlflow.MlflowClient(uri).get_run(breaks.run_id).info.status == "FINISHED"


class Breaks(fs.callbacks.Callback):
    def __init__(self, tracker):
        self.tracker = tracker

    def on_epoch_begin(self, run):
        def gone(*_, **__):
            raise ConnectionError("gone")

        if run.epoch == 2:
            self.tracker._client.log_batch = gone  # of this run's client alone


@pytest.mark.parametrize("module", ["mlflow", "tensorboard", "optuna"])
def test_extras_that_are_missing_say_how_to_get_them(module, monkeypatch, tmp_path):
    makes = {"mlflow": MLflow, "tensorboard": TensorBoard, "optuna": OptunaPruning}
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(fs.MissingFeatureError, match=rf"pip install {module}$"):
        makes[module](tmp_path)


def test_every_must_be_a_number_of_updates(tmp_path):
    with pytest.raises(ValueError, match="number of updates, or 0 for none, got -1"):
        TensorBoard(tmp_path, every=-1)
    fitted(TensorBoard(tmp_path, every=0), epochs=1)
    assert "update/loss" not in scalars(tmp_path)[1]


class Worse(optuna.pruners.BasePruner):
    """Prunes what is worse than 0.5 after the second epoch."""

    def prune(self, study, trial):  # noqa: ARG002 (its name is given)
        return trial.last_step >= 2 and trial.intermediate_values[trial.last_step] > 0.5


def test_optuna_prunes_trials():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ends, estimators = [], []

    def objective(trial):
        lr = trial.suggest_categorical("lr", [0.0, 0.05])
        est = estimator(
            OptunaPruning(trial), lambda run: ends.append(run.epoch),
            optimizer=lambda p: torch.optim.Adam(p, lr=lr), epochs=12,
        )  # fmt: skip
        estimators.append(est)
        est.fit(X, Y, validation=2)
        return est.history_[-1]["validation_loss"]

    study = optuna.create_study(
        sampler=optuna.samplers.GridSampler({"lr": [0.0, 0.05]}, seed=0), pruner=Worse()
    )
    study.optimize(objective)
    done = {trial.params["lr"]: trial for trial in study.trials}
    assert done[0.0].state == optuna.trial.TrialState.PRUNED
    assert done[0.05].state == optuna.trial.TrialState.COMPLETE
    for trial, est in zip(study.trials, estimators, strict=True):
        reported = trial.intermediate_values
        assert reported == {row["epoch"]: row["validation_loss"] for row in est.history_}
        pruned = trial.state == optuna.trial.TrialState.PRUNED
        assert len(reported) == (2 if pruned else 12)
        assert bool(est.stop_reason_) == pruned
    assert sorted(ends) == sorted([1, 2, *range(1, 13)])  # callbacks behind it had their turn


def test_optuna_can_watch_a_metric():
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    est = estimator(Metrics("r2"), OptunaPruning(trial, "validation_r2")).fit(X, Y, validation=2)
    values = study.trials[0].intermediate_values
    assert values == {row["epoch"]: row["validation_r2"] for row in est.history_}
    assert all(math.isfinite(value) for value in values.values())
    with pytest.raises(ValueError, match='monitor="validation_r2" needs validation data'):
        estimator(OptunaPruning(trial, "validation_r2")).fit(X, Y)
    with pytest.raises(TypeError, match="needs a trial on rank 0"):
        estimator(OptunaPruning(None)).fit(X, Y)
