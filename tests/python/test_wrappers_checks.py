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


@parametrize_with_checks(
    ESTIMATORS,
    expected_failed_checks=lambda _: {"check_sample_weight_equivalence_on_dense_data": MINIBATCHES},
)
@pytest.mark.filterwarnings("ignore")  # of what the checks try on purpose
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)
