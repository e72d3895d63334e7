"""ClassificationReport beside scikit-learn's own functions, and in trackers."""

from __future__ import annotations

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import classification_report, confusion_matrix
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import fastseq as fs
from fastseq.callbacks import ClassificationReport, MLflow, RestoreBest, TensorBoard

# What MLflow's database does with this version of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

X = torch.randn(20, 8, 3, generator=torch.Generator().manual_seed(0))
Y = (X[..., 0] > 0.5).long() + (X[..., 0] > -0.5).long()
HELD_OUT = X[:, -2:]


def logistic(outputs, y, reduction="mean"):
    return binary_cross_entropy_with_logits(outputs, y.to(outputs), reduction=reduction)


def fitted(*callbacks, outputs=3, loss=cross_entropy, y=Y, epochs=3, **more):
    torch.manual_seed(0)
    est = fs.Estimator(
        nn.Linear(3, outputs), fs.seqloss(loss), lambda p: torch.optim.Adam(p, lr=0.05),
        fs.Spec(epochs, 2, 10), callbacks=callbacks, progress=False,
    )  # fmt: skip
    return est.fit(X, y, validation=2, **more)


def test_it_is_scikit_learn_s_of_the_validation_part():
    names = ["low", "middle", "high"]
    report = ClassificationReport(names)
    est = fitted(report)
    y_true = Y[:, -2:].numpy().ravel()
    y_pred = est.predict(HELD_OUT).argmax(-1).ravel()
    expected = {"labels": [0, 1, 2], "target_names": names, "zero_division": 0}
    assert report.report == classification_report(y_true, y_pred, output_dict=True, **expected)
    assert str(report) == classification_report(y_true, y_pred, **expected)
    assert np.array_equal(report.matrix, confusion_matrix(y_true, y_pred, labels=[0, 1, 2]))
    assert report.matrix.sum() == 40
    texts = [text.get_text() for text in report.plot().get_xticklabels()]
    assert texts == names


def test_one_logit_and_classes_that_never_occur():
    report = ClassificationReport()
    est = fitted(report, outputs=1, loss=logistic, y=(Y > 0).long()[..., None])  # fmt: skip
    y_pred = est.predict(HELD_OUT).ravel() > 0
    assert np.array_equal(report.matrix, confusion_matrix((Y[:, -2:] > 0).ravel(), y_pred))
    float_report = ClassificationReport()
    fitted(float_report, outputs=1, loss=nn.BCEWithLogitsLoss(), y=(Y > 0).float()[..., None])
    assert float_report.matrix.sum() == 40
    report = ClassificationReport()
    fitted(report, outputs=5)
    assert report.matrix.shape == (5, 5)
    assert report.report["4"]["support"] == 0


def test_weights_count_and_masked_samples_do_not():
    report = ClassificationReport()
    weights = torch.rand(20, 8, generator=torch.Generator().manual_seed(1))
    weights[:5] = 0
    est = fitted(report, w=weights)
    y_pred = est.predict(HELD_OUT).argmax(-1).ravel()
    expected = confusion_matrix(Y[:, -2:].ravel(), y_pred, sample_weight=weights[:, -2:].ravel())
    np.testing.assert_allclose(report.matrix, expected, rtol=1e-6)


def test_it_sees_the_best_weights_and_starts_anew():
    report = ClassificationReport()
    est = fitted(report, RestoreBest(), epochs=6)
    y_pred = est.predict(HELD_OUT).argmax(-1).ravel()
    assert np.array_equal(report.matrix, confusion_matrix(Y[:, -2:].ravel(), y_pred))
    est.callbacks = [report, lambda run: 1 / 0]
    with pytest.raises(ZeroDivisionError):
        est.fit(X, Y, validation=2)
    assert report.matrix is None
    assert str(report) == "ClassificationReport: fit has not ended"
    with pytest.raises(ValueError, match="there is no confusion matrix before fit has ended"):
        report.plot()


def test_trackers_log_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MLflow puts files
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MLflow("classes", tracking_uri=uri)
    report = ClassificationReport()
    fitted(TensorBoard(tmp_path / "board"), tracker, report)
    client = mlflow.MlflowClient(uri)
    files = {a.path for a in client.list_artifacts(tracker.run_id)}
    assert {"classification_report.txt", "confusion_matrix.png"} < files
    where = client.download_artifacts(tracker.run_id, "classification_report.txt", str(tmp_path))
    with open(where) as file:
        assert file.read() == str(report)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert "confusion matrix" in events.Tags()["images"]
    assert "classification report/text_summary" in events.Tags()["tensors"]


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([ClassificationReport(), "board"], "put ClassificationReport behind TensorBoard"),
        ([RestoreBest(), ClassificationReport()], "put ClassificationReport before RestoreBest"),
    ],
)
def test_wrong_use(tmp_path, callbacks, message):
    callbacks = [TensorBoard(tmp_path) if each == "board" else each for each in callbacks]
    with pytest.raises(ValueError, match=message):
        fitted(*callbacks)


def test_what_has_no_classes_is_refused():
    with pytest.warns(RuntimeWarning, match="class_names has 2 names, but there are 3 classes"):
        est = fitted(report := ClassificationReport(["a", "b"]))
    assert report.matrix is None
    assert len(est.history_) == 3
    with pytest.warns(RuntimeWarning, match="for classes, which are integers; the targets are fl"):
        fitted(ClassificationReport(), outputs=1, loss=nn.MSELoss(), y=X[..., :1])
    with pytest.raises(TypeError, match="class_names must be a list of names, got 'ab'"):
        ClassificationReport("ab")
    est = fs.Estimator(
        nn.Linear(3, 3), fs.seqloss(cross_entropy), torch.optim.Adam, fs.Spec(1, 2, 10),
        callbacks=[ClassificationReport()], progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="nothing to report on: pass validation to fit"):
        est.fit(X, Y)


SAMPLES = np.random.default_rng(0).normal(size=(60, 5, 2))
LEVELS = np.repeat([0, 1, 2], [30, 20, 10])  # and as many in proportion in the held-out part


@pytest.mark.parametrize(
    ("loss", "labels", "given", "expected"),
    [
        ("cross_entropy", np.array(["c", "a", "b"]), None, ["a", "b", "c"]),
        ("cross_entropy", np.array([30, 10, 20]), None, ["10", "20", "30"]),
        ("cross_entropy", np.array(["c", "a", "b"]), ["x", "y", "z"], ["x", "y", "z"]),
        ("ordinal", np.array(["low", "mid", "high"]), None, ["low", "mid", "high"]),
    ],
)
def test_a_classifier_names_its_classes(loss, labels, given, expected):
    model = fs.SequenceClassifier(
        "gru", loss=loss, epochs=1, validation_fraction=0.3, random_state=0,
        callbacks=[ClassificationReport(given)],
    )  # fmt: skip
    y = labels[LEVELS]
    if loss == "ordinal":
        y = pd.Categorical(y, categories=expected, ordered=True)
    model.fit(SAMPLES, y)
    (report,) = [c for c in model.estimator_.callbacks if isinstance(c, ClassificationReport)]
    assert [*report.report][:3] == expected
    if given is None:
        counts = [report.report[str(label)]["support"] for label in labels]
        assert counts == [9, 6, 3]
    assert str(report).split()[4] == expected[0]
