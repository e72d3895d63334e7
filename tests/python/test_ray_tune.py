"""Ray Tune: reports, early stopping, resumed trials, by its own library."""

from __future__ import annotations

import collections
import json
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest
import ray
import torch
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import StepLR

import fastseq as fs
from fastseq.callbacks import Metrics, MLflow, RayTune, Schedule

# Of Ray itself, and what MLflow's database does with this version of SQLAlchemy.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

X = torch.randn(20, 6, 3, generator=torch.Generator().manual_seed(0))
Y = X[..., :1]


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import this file
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=80_000_000,
        )  # fmt: skip
        yield
        ray.shutdown()


def fitted(*callbacks, lr=0.01, epochs=4, **options):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = fs.nn.Chain(fs.nn.GRU(3, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), lambda params: torch.optim.Adam(params, lr=lr),
        fs.Spec(epochs, 2, 5, shuffle=True), callbacks=callbacks, progress=False, seed=0,
    )  # fmt: skip
    return est.fit(X, Y, validation=2, **options)


NAMES = ("epoch", "loss", "lr", "updates", "validation_loss", "validation_r2")  # not those of time


def rows(history):
    return [{name: row[name] for name in NAMES if name in row} for row in history]


def outcome(est):
    """Return what a fit has come to, as plain values."""
    return [rows(est.history_), fs.net2vec(est.model).tolist(), est.stop_reason_]


def leave(folder, name, est):
    Path(folder, f"{name}.json").write_text(json.dumps(outcome(est)))


def found(folder, name):
    return json.loads(Path(folder, f"{name}.json").read_text())


def search(trial, folder, space, scheduler=None, failures=0, **options):
    """Return Ray's results."""
    tuner = tune.Tuner(
        trial,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="validation_loss", mode="min", scheduler=scheduler, **options
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder / "ray"),
            name="search",
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=failures),
        ),
    )
    return tuner.fit()


ONE_PROCESS = {"max_concurrent_trials": 1, "reuse_actors": True}  # unless one fails


def reports(result):
    """Return all that a trial has reported, again from a start to the next."""
    return rows(result.metrics_dataframe.to_dict("records"))


class FailsOnce(fs.callbacks.Callback):
    """Raises in the second epoch, the first time."""

    def __init__(self, folder):
        self.marker = Path(folder, "failed")

    def on_batch_end(self, run):
        if run.epoch == 2 and run.chunk > 1 and not self.marker.exists():
            self.marker.touch()
            raise ConnectionError("once")


@pytest.mark.slow
def test_trials_report_the_history_and_resume_to_the_same_bits(cluster, tmp_path):
    def trial(config):
        with pytest.raises(ValueError, match=r"neither checkpoint=… nor resume=…"):
            fitted(RayTune(), checkpoint=tmp_path / "own")
        more = [FailsOnce(tmp_path)] if config["fails"] else []
        leave(tmp_path, config["fails"], fitted(Metrics("r2"), RayTune(), *more))
        with pytest.raises(ValueError, match="RayTune serves one call of fit per trial"):
            fitted(RayTune())

    results = search(
        trial, tmp_path, {"fails": tune.grid_search([False, True])}, failures=1, **ONE_PROCESS
    )
    whole = fitted(Metrics("r2"))
    assert set(rows(whole.history_)[0]) == set(NAMES)
    assert (tmp_path / "failed").exists()
    for result in results:
        assert result.error is None
        assert found(tmp_path, result.config["fails"]) == outcome(whole)
        assert reports(result) == rows(whole.history_)
        (saved,) = Path(result.checkpoint.path).iterdir()
        assert saved.suffix == ".safetensors"


def test_asha_stops_trials(cluster, tmp_path):
    def trial(config):
        ends = []

        class Ends(fs.callbacks.Callback):
            def on_fit_end(self, run):
                time.sleep(0.5)  # as a tracker that logs the rest; Ray must not end the process
                ends.append(run.error)
                leave(tmp_path, config["lr"], run.estimator)

        try:
            fitted(Ends(), RayTune(), lr=config["lr"], epochs=6)
        finally:
            assert ends == [None]

    scheduler = AsyncHyperBandScheduler(max_t=6, grace_period=2, reduction_factor=2)
    space = {"lr": tune.grid_search([0.05, 0.0])}
    for result in search(trial, tmp_path, space, scheduler, **ONE_PROCESS):
        epochs = 6 if result.config["lr"] else 2
        whole = fitted(lr=result.config["lr"], epochs=epochs)
        history, weights, reason = found(tmp_path, result.config["lr"])
        assert reports(result) == history == rows(whole.history_)
        assert weights == fs.net2vec(whole.model).tolist()
        assert reason == f"stopped by Ray Tune after epoch {epochs}"
        assert result.error is None


@pytest.mark.slow
def test_a_trial_goes_on_from_another_with_its_own_rate_and_mlflow_run(cluster, tmp_path):
    """As after what PopulationBasedTraining does, whose order depends on the machine."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("search", artifact_location=str(tmp_path / "artifacts"))
    parent = client.create_run(experiment).info.run_id

    def trial(config):
        if config["other"] is not None:
            tune.get_checkpoint = lambda: tune.Checkpoint(config["other"])
        lr = config["lr"]
        tracker = MLflow(tracking_uri=uri, parent=parent, run_name=str(lr))
        leave(tmp_path, lr, fitted(tracker, RayTune(), lr=lr, epochs=config["epochs"]))

    (first,) = search(trial, tmp_path, {"lr": 0.05, "epochs": 3, "other": None})
    search(trial, tmp_path, {"lr": 0.03, "epochs": 5, "other": first.checkpoint.path})
    whole = fitted(lr=0.05, epochs=3)
    assert found(tmp_path, 0.05) == outcome(whole)
    whole.optimizer.param_groups[0]["lr"] = 0.03
    whole.fit(X, Y, validation=2, epochs=2)
    assert found(tmp_path, 0.03) == outcome(whole)

    losses = [(row["epoch"], row["validation_loss"]) for row in whole.history_]
    runs = [run for run in client.search_runs([experiment]) if run.info.run_id != parent]
    assert sorted(run.info.run_name for run in runs) == ["0.03", "0.05"]
    for run in runs:
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.info.status == "FINISHED"
        logged = client.get_metric_history(run.info.run_id, "validation_loss")
        expected = losses[:3] if run.info.run_name == "0.05" else losses[3:]
        assert [(metric.step, metric.value) for metric in logged] == expected


@pytest.mark.slow
def test_a_search_that_ended_with_an_error_is_restored(cluster, tmp_path):
    def trial(config):
        stop = fs.callbacks.NumberSinceBest(9)
        model = fs.SequenceRegressor(
            "gru", hidden_size=4, epochs=4, validation_fraction=0.2, random_state=0, dropout=0.2,
            num_layers=2, callbacks=[stop, RayTune(), FailsOnce(config["folder"])], **config["more"],
        )  # fmt: skip
        leave(tmp_path, "wrapper", model.fit(X.swapaxes(0, 1), Y[-1]).estimator_)

    space = {"folder": str(tmp_path), "more": {"lr": 0.01, "batchsize": 2}}
    (failed,) = search(trial, tmp_path, space)
    assert "once" in str(failed.error)
    assert [row["epoch"] for row in reports(failed)] == [1]
    tuner = tune.Tuner.restore(str(tmp_path / "ray" / "search"), trial, resume_errored=True)
    (result,) = tuner.fit()
    assert [row["epoch"] for row in reports(result)] == [1, 2, 3, 4]
    torch.set_num_threads(1)
    model = fs.SequenceRegressor(
        "gru", hidden_size=4, epochs=4, validation_fraction=0.2, random_state=0, dropout=0.2,
        num_layers=2, **space["more"],
    )  # fmt: skip
    whole = model.fit(X.swapaxes(0, 1), Y[-1]).estimator_
    assert found(tmp_path, "wrapper") == outcome(whole)
    assert reports(result) == rows(whole.history_)


def test_a_fit_outside_of_a_trial_is_refused():
    with pytest.raises(ValueError, match="RayTune reports to a trial of Ray Tune, but fit does"):
        fitted(RayTune())
    with pytest.raises(ValueError, match=r"RayTune keeps the checkpoints of fit.*: pass one such"):
        fitted(RayTune(), RayTune())


def test_ray_that_is_missing_says_how_to_get_it(monkeypatch, tmp_path):
    (tmp_path / "space.yaml").write_text("lr: 1")
    space = fs.SearchSpace(tmp_path / "space.yaml")
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    for use in (RayTune, space.for_ray):
        with pytest.raises(fs.MissingFeatureError, match=r"pip install ray\[tune\]$"):
            use()


SPACE = """
module: [gru, lstm, none]
lr: {low: 1e-3, high: 0.1, log: true}
rate: {low: 2.0, high: 3.0}
hidden_size: {low: 5, high: 14, step: 4}
dropout: {low: 0.1, high: 0.5, step: 0.2}
num_layers: {low: 1, high: 3}
width: {low: 3, high: 6, step: 1}
batchsize: {low: 2, high: 5, log: true}
decay_biases: [true, false]
epochs: 1
"""


@pytest.mark.filterwarnings("ignore:The distribution is specified by:UserWarning")  # the end 14
def test_a_space_of_ray_is_that_of_optuna(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    space = fs.SearchSpace(tmp_path / "space.yaml")
    ours = space.for_ray()
    generator = np.random.default_rng(0)
    draws = {
        name: [domain.sample(random_state=generator) for _ in range(2000)]
        for name, domain in ours.items()
        if isinstance(domain, tune.search.sample.Domain)
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    theirs = [space.suggest(study.ask()) for _ in range(400)]
    assert list(ours) == list(theirs[0])
    assert ours["epochs"] == 1
    for name in ("module", "hidden_size", "num_layers", "width", "batchsize", "decay_biases"):
        counts = collections.Counter(draws[name])
        assert set(counts) == {values[name] for values in theirs}, name
        assert {type(value) for value in counts} == {type(values[name]) for values in theirs}
        if name != "batchsize":  # uniform, the ends too
            assert min(counts.values()) > 0.8 * 2000 / len(counts), name
    assert set(draws["hidden_size"]) == {5, 9, 13}
    assert set(draws["batchsize"]) == {2, 3, 4, 5}
    few = collections.Counter(draws["batchsize"])
    assert few[2] > 1.5 * few[5]  # on the logarithmic scale
    assert set(draws["dropout"]) == {0.1, 0.3, 0.5}
    assert sorted({round(values["dropout"], 9) for values in theirs}) == [0.1, 0.3, 0.5]
    assert min(collections.Counter(draws["dropout"]).values()) > 0.8 * 2000 / 3
    rates = np.log10(draws["lr"])
    assert -3 <= rates.min() < -2.98
    assert -1.02 < rates.max() <= -1
    assert abs(rates.mean() + 2) < 0.05
    assert 2 <= min(draws["rate"]) < 2.01
    assert 2.99 < max(draws["rate"]) <= 3


def test_a_rate_that_a_schedule_sets_is_not_taken_from_another_trial():
    """As after a checkpoint of another trial, without two trials."""
    report, schedule = RayTune(), Schedule(lambda optimizer: StepLR(optimizer, 1))

    class Loaded(fs.callbacks.Callback):
        def on_fit_begin(self, run):
            report._settings = [{"lr": 0.1}]
            report.load_state_dict({"trial": "other", "settings": [{"lr": 0.2}]})
            report.on_epoch_begin(run)

    with pytest.raises(ValueError, match=r"of lr=0.2 with lr=0.1, but a Schedule sets"):
        fitted(Loaded(), schedule)
