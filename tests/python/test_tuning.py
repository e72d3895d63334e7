"""Searches of Optuna's, and scikit-learn's displays, with the scikit-learn estimators."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.figure
import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna_integration import OptunaSearchCV
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
from sklearn.model_selection import GridSearchCV, cross_val_score

import fastseq as fs
from fastseq.callbacks import Metrics, OptunaPruning

mpl.use("Agg")
optuna.logging.set_verbosity(optuna.logging.WARNING)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6, 2)).astype(np.float32)
Y = X[:, -1, 0] - X[:, -2, 1]
CLASSES = np.array(["down", "level", "up"])[np.digitize(Y, [-0.7, 0.7])]


def regressor(**options):
    options = {
        "module": "gru",
        "hidden_size": 8,
        "epochs": 3,
        "lr": 0.02,
        "batchsize": 12,
    } | options
    return fs.SequenceRegressor(random_state=0, **options)


# What Optuna itself says of the parts that this uses.
@pytest.mark.filterwarnings("ignore:`optuna.terminator` module has been deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_optuna_search_cv():
    space = {
        "lr": FloatDistribution(1e-4, 0.1, log=True),
        "module": CategoricalDistribution(["gru", "linear"]),
    }
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    search = OptunaSearchCV(regressor(epochs=15), space, n_trials=5, cv=3, study=study)
    search.fit(X, Y)
    assert len(search.trials_) == 5
    assert not any(trial.state == optuna.trial.TrialState.FAIL for trial in search.trials_)
    assert search.best_estimator_.lr == search.best_params_["lr"]
    assert search.best_score_ > 0.3
    assert search.score(X, Y) > search.best_score_ - 0.2


class Never(optuna.pruners.BasePruner):
    """Goes on with the first trial, and prunes the others after two epochs."""

    def prune(self, study, trial):  # noqa: ARG002 (its name is given)
        return trial.number > 0 and trial.last_step == 2


def test_pruning_in_an_objective_with_an_estimator():
    def objective(trial):
        lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        model = regressor(lr=lr, validation_fraction=0.25, callbacks=[OptunaPruning(trial)])
        return model.fit(X, Y).history_[-1]["validation_loss"]

    study = optuna.create_study(pruner=Never())
    study.optimize(objective, n_trials=3)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "PRUNED", "PRUNED"]
    assert [list(trial.intermediate_values) for trial in study.trials] == [
        [1, 2, 3],
        [1, 2],
        [1, 2],
    ]


def pruned_by_median(direction, monitor, rates, **options):
    """Return the states of trials with these learning rates, of one process, in their order."""

    def objective(trial):
        lr = trial.suggest_float("lr", 1e-9, 1.0)
        prune = OptunaPruning(trial, monitor)
        model = regressor(
            lr=lr, epochs=8, validation_fraction=0.25, schedule=None,
            callbacks=[Metrics("r2"), prune], **options,
        )  # fmt: skip
        return model.fit(X, Y).history_[-1][monitor or "validation_loss"]

    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
    study = optuna.create_study(direction=direction, pruner=pruner)
    for lr in rates:
        study.enqueue_trial({"lr": lr})
    study.optimize(objective, n_trials=len(rates))
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize(
    ("direction", "monitor"), [("minimize", None), ("maximize", "validation_r2")]
)
def test_the_median_pruner_prunes_the_worse_trials(direction, monitor):
    states = pruned_by_median(direction, monitor, [0.01, 0.01, 1e-9, 0.05])
    assert states == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]


@pytest.mark.parametrize(
    ("monitor", "given"),
    [(None, "the loss"), ("loss", '"loss"'), ("validation_loss", '"validation_loss"')],
)
def test_a_loss_in_a_study_that_maximises_is_refused(monitor, given):
    message = f'reports {given}, for which lower is better, but the study has direction="max'
    with pytest.raises(ValueError, match=message):
        pruned_by_median("maximize", monitor, [0.01])


def test_a_second_fit_of_a_trial_is_refused():
    def folds(trial):
        model = regressor(callbacks=[OptunaPruning(trial)])
        return cross_val_score(model, X, Y, cv=2, error_score="raise").mean()

    study = optuna.create_study()
    with pytest.raises(ValueError, match="OptunaPruning serves one fit per trial, and this tr"):
        study.optimize(folds, n_trials=1)
    assert study.trials[0].state.name == "FAIL"

    def continued(trial):  # its epochs are 4 to 6
        model = regressor(callbacks=[OptunaPruning(trial)], warm_start=True).fit(X, Y)
        return model.set_params(epochs=6).fit(X, Y).history_[-1]["loss"]

    study.optimize(continued, n_trials=1)
    assert list(study.trials[1].intermediate_values) == [1, 2, 3, 4, 5, 6]
    for trial in (study.best_trial, optuna.trial.FixedTrial({})):  # to look at again
        assert continued(trial) == continued(trial) == pytest.approx(study.best_value)


def test_what_is_no_trial_of_one_objective_is_refused():
    with pytest.raises(TypeError, match="needs the trial that the objective gets, got Study"):
        OptunaPruning(optuna.create_study())
    study = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="reports one number, but the study has several object"):
        regressor(callbacks=[OptunaPruning(study.ask())]).fit(X, Y)


@pytest.mark.parametrize("seqsize", [None, 4])
def test_metrics_in_a_search(seqsize):
    model = regressor(callbacks=[Metrics("r2", train=True)], seqsize=seqsize)
    search = GridSearchCV(model, {"lr": [0.001, 0.05]}, cv=2).fit(X, Y)
    row = search.best_estimator_.history_[-1]
    assert row["r2"] == pytest.approx(search.score(X, Y), abs=1e-5)


def test_confusion_matrix_display():
    model = fs.SequenceClassifier(
        module="gru", hidden_size=8, epochs=20, lr=0.02, batchsize=12, random_state=0,
        callbacks=[Metrics("accuracy", "f1_macro", train=True)],
    ).fit(X, CLASSES)  # fmt: skip
    figure = mpl.figure.Figure()
    display = ConfusionMatrixDisplay.from_estimator(model, X, CLASSES, ax=figure.subplots())
    np.testing.assert_array_equal(
        display.confusion_matrix, confusion_matrix(CLASSES, model.predict(X))
    )
    assert display.confusion_matrix.trace() > 0.6 * len(X)
    labels = [text.get_text() for text in display.ax_.get_xticklabels()]
    assert labels == ["down", "level", "up"]
    assert model.history_[-1]["accuracy"] == pytest.approx(model.score(X, CLASSES))
