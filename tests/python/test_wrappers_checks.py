"""All of scikit-learn's own checks, on tables: real 2-D input."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastseq.sklearn import SequenceClassifier, SequenceRegressor

MINIBATCHES = (
    "a sample of weight 2 is one sample of a minibatch, the same sample twice is two of perhaps "
    "different ones: training visits them in other steps (scikit-learn's own SGD fails it too)"
)
ESTIMATORS = [
    SequenceRegressor("mlp", hidden_size=16, lr=0.02, epochs=10, batchsize=16, random_state=0),
    SequenceClassifier("mlp", hidden_size=16, lr=0.02, epochs=10, batchsize=16, random_state=0),
]


SIZES = {"hidden_size": 16, "epochs": 30, "batchsize": 16, "random_state": 0}
NETWORKS = [
    kind(name, **SIZES, **({"bidirectional": True, "pool": "last+max"} if name == "gru" else {}))
    for kind in (SequenceRegressor, SequenceClassifier)
    for name in ("auto", "gru", "lstm-fcn", "inception", "tcn", "transformer", "rocket")
]
EXPECTED = {"check_sample_weight_equivalence_on_dense_data": MINIBATCHES}
SURE = (
    "samples that are nothing like those that count, here of a class of weight 1e-7, are far from "
    "them in 2016 features, so a linear model is sure of either class"
)


def expected(estimator):
    """Return which checks fail, and why."""
    if estimator.module == "rocket":
        return {**EXPECTED, "check_class_weight_classifiers": SURE}
    return EXPECTED


@parametrize_with_checks(ESTIMATORS, expected_failed_checks=lambda _: EXPECTED)
@pytest.mark.filterwarnings("ignore")  # of what the checks try on purpose
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(NETWORKS, expected_failed_checks=expected)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_s_checks_of_networks(estimator, check):
    check(estimator)
