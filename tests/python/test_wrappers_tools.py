"""The wrappers in scikit-learn's tools, each on tiny data; under mpirun, too."""

from __future__ import annotations

import functools
import io
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from jobs import mpirun
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import StackingClassifier, StackingRegressor
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    TimeSeriesSplit,
    cross_val_predict,
    cross_validate,
    learning_curve,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn
from wrapped import LABELS, LAST, LIST, STEPS, X, classifier, regressor, same

import fastseq as fs

FOLDS = KFold(3)


def by_hand(model, x, y):
    """Return the scores on each fold of models fitted by hand."""
    scores = []
    for train, test in FOLDS.split(x):
        part = [[a[i] for i in index] if isinstance(a, list) else a[index]
                for index in (train, test) for a in (x, y)]  # fmt: skip
        scores.append(clone(model).fit(*part[:2]).score(*part[2:]))
    return scores


@pytest.mark.parametrize(
    ("model", "x", "y"),
    [
        (regressor(), X, LAST),
        (regressor(), X, STEPS),
        (regressor(), LIST, LAST),
        (regressor(), LIST, [x[:, 0] for x in LIST]),
        (regressor(fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 1))), X, LAST),
        (classifier(), X, LABELS),
        (classifier(), X, np.where(STEPS[..., 0] > 0, "up", "down")),
    ],
)
def test_grid_search(model, x, y):
    grid = {"lr": [0.001, 0.03], "batchsize": [8, 48]}
    search = GridSearchCV(model, grid, cv=FOLDS, error_score="raise").fit(x, y)
    for i, parameters in enumerate(search.cv_results_["params"]):
        scores = [search.cv_results_[f"split{fold}_test_score"][i] for fold in range(3)]
        assert scores == by_hand(clone(model).set_params(**parameters), x, y)
    assert same(search.best_estimator_, clone(model).set_params(**search.best_params_).fit(x, y))


@pytest.mark.parametrize(
    "search",
    [
        functools.partial(RandomizedSearchCV, n_iter=2, random_state=0),
        functools.partial(HalvingGridSearchCV, resource="epochs", max_resources=4, random_state=0),
    ],
)
def test_other_searches(search):
    found = search(
        classifier(), {"lr": [0.001, 0.03], "module": ["gru", "mlp"]}, cv=3, error_score="raise"
    ).fit(X, LABELS)
    assert found.best_estimator_.score(X, LABELS) > 0.3


@pytest.mark.parametrize(
    ("cv", "groups"), [(TimeSeriesSplit(3), None), (GroupKFold(3), np.arange(48) % 4)]
)
def test_cross_validate(cv, groups):
    found = cross_validate(
        regressor(), X, LAST, cv=cv, groups=groups, return_estimator=True, error_score="raise",
        scoring=["r2", "neg_mean_absolute_error"],
    )  # fmt: skip
    for (_, test), model, score in zip(
        cv.split(X, LAST, groups), found["estimator"], found["test_r2"], strict=True
    ):
        assert model.score(X[test], LAST[test]) == score


def test_folds_in_which_a_class_is_missing():
    labels = np.array(["rare", *LABELS[1:]])
    found = cross_validate(classifier(), X, labels, cv=KFold(3), error_score="raise",
                           return_estimator=True)  # fmt: skip
    assert [len(model.classes_) for model in found["estimator"]] == [3, 4, 4]
    with pytest.warns(RuntimeWarning, match="Number of classes in training fold"):
        found = cross_val_predict(classifier(), X, labels, cv=KFold(3), method="predict_proba")
    assert found.shape == (48, 4)
    assert not found[:16, 2].any()


def test_pipeline_with_columns_of_a_frame():
    frame = pd.DataFrame({"a": X[:, 0, 0], "b": X[:, 0, 1], "kind": LABELS})
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["a", "b"]),
            ("kinds", OneHotEncoder(sparse_output=False), ["kind"]),
        ]
    ).set_output(transform="pandas")
    model = make_pipeline(columns, regressor("mlp", epochs=30)).fit(frame, LAST)
    assert model.score(frame, LAST) > 0.7
    assert model[-1].feature_names_in_[-1] == "kinds__kind_up"
    model = make_pipeline(columns, regressor("mlp"))
    found = GridSearchCV(model, {"sequenceregressor__lr": [0.01, 0.1]}, error_score="raise")
    assert found.fit(frame, LAST).best_params_["sequenceregressor__lr"] == 0.1


def test_transformed_targets():
    y = np.exp(LAST)
    model = TransformedTargetRegressor(
        regressor("mlp"), func=np.log, inverse_func=np.exp
    ).fit(X[:, 0], y)  # fmt: skip
    np.testing.assert_allclose(
        model.predict(X[:, 0]), np.exp(regressor("mlp").fit(X[:, 0], np.log(y)).predict(X[:, 0]))
    )


def test_stacking():
    x = X[:, -1]
    model = StackingRegressor([("net", regressor("mlp", epochs=20)), ("ridge", Ridge())], cv=3)
    assert model.fit(x, LAST).score(x, LAST) > 0.3
    stack = StackingClassifier([("net", classifier("mlp")), ("line", LogisticRegression())], cv=3)
    assert stack.fit(x, LABELS).score(x, LABELS) > 0.5


def test_learning_curve_and_permutation_importance():
    sizes, train, test = learning_curve(
        regressor(), X, LAST, cv=3, train_sizes=[0.5, 1.0], error_score="raise"
    )
    assert sizes.tolist() == [16, 32]
    assert np.isfinite([train, test]).all()
    x = X[:, 0]
    model = regressor("mlp", epochs=40).fit(x, 3 * x[:, 1])
    assert (
        permutation_importance(model, x, 3 * x[:, 1], random_state=0).importances_mean.argmax() == 1
    )


@pytest.mark.slow
def test_two_jobs_find_what_one_does():
    grid = {"lr": [0.01, 0.03]}
    one, two = (GridSearchCV(regressor(), grid, cv=2, n_jobs=n, error_score="raise").fit(X, LAST)
                for n in (1, 2))  # fmt: skip
    for key in ("mean_test_score", "std_test_score"):
        np.testing.assert_array_equal(one.cv_results_[key], two.cv_results_[key])
    assert same(one.best_estimator_, two.best_estimator_)


@pytest.mark.parametrize("dump", [pickle.dump, joblib.dump])
def test_pickles(dump):
    load = {pickle.dump: pickle.load, joblib.dump: joblib.load}[dump]
    for model, y in ((regressor(), LAST), (classifier(), LABELS)):
        model.fit(X, y)
        file = io.BytesIO()
        dump(model, file)
        file.seek(0)
        again = load(file)
        np.testing.assert_array_equal(again.predict(X), model.predict(X))
        assert again.history_[0] == model.history_[0]
        assert len(file.getvalue()) < 100_000  # no data in it


def test_clone_and_repr():
    net = fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 1))
    model = regressor(net, optimizer=torch.optim.SGD, callbacks=[fs.callbacks.NumberSinceBest(2)])
    assert same(model.fit(X, LAST), clone(model).fit(X, LAST))
    assert not hasattr(clone(model), "estimator_")
    assert repr(regressor(epochs=7)) == (
        "SequenceRegressor(batchsize=16, epochs=7, hidden_size=8, lr=0.02, module='gru',\n"
        "                  random_state=0, schedule=None)"
    )


def test_control_from_callbacks():
    model = regressor(
        epochs=40, lr=0.05, validation_fraction=0.3, callbacks=[fs.callbacks.NumberSinceBest(2)]
    ).fit(X[:, 0], LAST)
    losses = [row["validation_loss"] for row in model.history_]
    assert model.n_iter_ == np.argmin(losses) + 1 + 2 < 40


@pytest.mark.mpi
def test_ranks_share_a_fit_only_if_they_are_told(tmp_path):
    done = mpirun(
        tmp_path, 2,
        """
        import numpy as np, torch, fastseq as fs
        world = fs.distributed.world()
        X = np.random.default_rng(0).standard_normal((40, 5, 3))
        y = X[:, -1].sum(1)
        common = dict(hidden_size=4, epochs=3, device="cpu")
        together, alone = (
            fs.SequenceRegressor("gru", batchsize=size, comm=comm, random_state=0, **common)
            for size, comm in ((10, "auto"), (20, None))
        )
        np.testing.assert_allclose(
            together.fit(X, y).predict(X), alone.fit(X, y).predict(X), rtol=1e-9
        )
        np.random.seed(world.rank)  # each would draw another seed
        found = fs.SequenceRegressor("gru", comm="auto", **common).fit(X, y).predict(X)
        mean = world.allreduce_(torch.from_numpy(found.copy()), "mean")
        np.testing.assert_array_equal(mean, found)
        if world.rank == 0:  # others need not take part
            fs.SequenceRegressor("gru", **common).fit(X, y)
        print("same")
        """,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same") == 2


def test_clones_work_with_the_same_ranks():
    class Ranks:  # one of mpi4py's, which cannot be copied
        def py2f(self):
            return 0

        def __reduce_ex__(self, _):
            raise TypeError("cannot pickle")

    ranks = Ranks()
    original = regressor(comm=ranks, hidden_size=5)
    other = clone(original)
    assert type(other) is type(original)
    assert other is not original
    assert other.comm is original.comm is ranks
    assert other.get_params() == original.get_params()
    pipeline = clone(make_pipeline(StandardScaler(), original))
    assert pipeline[-1].comm is ranks


ON_PART_OF_THE_RANKS = """
import copy, numpy as np, fastseq as fs
from mpi4py import MPI
from sklearn.base import clone
part = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank)
x = np.random.default_rng(0).standard_normal((8, 5, 2))
for comm in (part, fs.distributed.Communicator(part)):
    model = fs.SequenceRegressor("gru", hidden_size=3, epochs=1, comm=comm, random_state=0)
    found = clone(model).fit(x, x[:, -1, 0])
    est = copy.deepcopy(found.estimator_)
    assert np.isfinite(found.predict(x)).all()
    assert np.array_equal(est.predict(x.swapaxes(0, 1)), found.estimator_.predict(x.swapaxes(0, 1)))
"""


@pytest.mark.slow
def test_clones_on_part_of_the_ranks(tmp_path):
    done = mpirun(tmp_path, 2, ON_PART_OF_THE_RANKS)
    assert done.returncode == 0, done.stderr
