"""Scikit-learn's calibration and displays of `SequenceClassifier`."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV, CalibrationDisplay, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    DetCurveDisplay,
    PrecisionRecallDisplay,
    RocCurveDisplay,
    confusion_matrix,
    roc_auc_score,
    roc_curve,
)
from wrapped import LABELS, LAST, LIST, X, classifier

RNG = np.random.default_rng(5)
SERIES = RNG.standard_normal((400, 6, 3))
TRUE = np.where(RNG.random(400) < expit(1.5 * SERIES[:, -1].sum(1)), "yes", "no")
TRAINING, CALIBRATION, TEST = slice(100), slice(100, 250), slice(250, None)
UP = np.where(LAST > 0, "up", "down")
METHODS = ("sigmoid", "isotonic", "temperature")


@pytest.fixture(scope="module")
def sure():
    """A classifier that has learnt its few noisy samples by heart."""
    model = classifier("mlp", hidden_size=32, epochs=60)
    return model.fit(SERIES[TRAINING], TRUE[TRAINING])


def calibration_error(model):
    """ECE: the mean distance of bins' probabilities from what happened, weighted by their size."""
    p, happened = model.predict_proba(SERIES[TEST])[:, 1], TRUE[TEST] == "yes"
    bins = np.digitize(p, np.linspace(0, 1, 11)[1:-1])
    return sum(
        abs((p[bins == b] - happened[bins == b]).sum()) / len(p) for b in np.unique(bins)
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_calibration_helps_who_is_too_sure(sure, method):
    calibrated = CalibratedClassifierCV(FrozenEstimator(sure), method=method)
    calibrated.fit(SERIES[CALIBRATION], TRUE[CALIBRATION])
    before, after = calibration_error(sure), calibration_error(calibrated)
    assert before > 0.12
    assert after < before - 0.05


def test_platt_s_method_starts_from_the_decision_function(sure):
    """A logistic regression on the scores, with targets a little inside of 0 and 1."""
    x, y = SERIES[CALIBRATION], TRUE[CALIBRATION] == "yes"
    calibrated = CalibratedClassifierCV(FrozenEstimator(sure)).fit(x, TRUE[CALIBRATION])
    scores = sure.decision_function(x)[:, None]
    target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    logistic = LogisticRegression(C=1e9, tol=1e-8).fit(
        np.tile(scores, (2, 1)), np.repeat([0, 1], len(y)), np.concatenate([1 - target, target])
    )
    expected = logistic.predict_proba(sure.decision_function(SERIES[TEST])[:, None])
    np.testing.assert_allclose(calibrated.predict_proba(SERIES[TEST]), expected, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x", [X, LIST], ids=["array", "list"])
def test_calibration_by_cross_validation(method, x):
    for y in (UP, LABELS):
        found = CalibratedClassifierCV(classifier(), method=method, cv=2).fit(x, y)
        probabilities = found.predict_proba(x)
        np.testing.assert_array_equal(found.classes_, np.unique(y))
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
        assert np.mean(found.predict(x) == y) > 0.4


def test_reliability(sure):
    axes = Figure().subplots()
    shown = CalibrationDisplay.from_estimator(sure, SERIES[TEST], TRUE[TEST], n_bins=5, ax=axes)
    p = sure.predict_proba(SERIES[TEST])[:, 1]
    happened, claimed = calibration_curve(TRUE[TEST] == "yes", p, n_bins=5)
    np.testing.assert_allclose([shown.prob_true, shown.prob_pred], [happened, claimed])


@pytest.mark.parametrize("x", [X, LIST], ids=["array", "list"])
def test_displays_of_two_classes(x):
    model = classifier().fit(x, UP)
    axes = Figure().subplots()
    shown = RocCurveDisplay.from_estimator(model, x, UP, ax=axes)
    p = model.predict_proba(x)[:, 1]
    np.testing.assert_allclose(shown.roc_auc, roc_auc_score(UP == "up", p))
    scores = model.decision_function(x)
    shown = RocCurveDisplay.from_estimator(
        model, x, UP, ax=axes, response_method="decision_function", pos_label="down"
    )
    np.testing.assert_allclose(shown.tpr, roc_curve(UP == "down", -scores)[1])
    for display in (PrecisionRecallDisplay, DetCurveDisplay):
        display.from_estimator(model, x, UP, ax=axes, response_method="decision_function")


@pytest.mark.parametrize("x", [X, LIST], ids=["array", "list"])
@pytest.mark.parametrize("y", [UP, LABELS], ids=["two", "three"])
def test_confusion_matrices(x, y):
    model = classifier().fit(x, y)
    shown = ConfusionMatrixDisplay.from_estimator(model, x, y, ax=Figure().subplots())
    np.testing.assert_array_equal(shown.confusion_matrix, confusion_matrix(y, model.predict(x)))
    assert shown.display_labels.tolist() == model.classes_.tolist()
