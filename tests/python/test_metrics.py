from __future__ import annotations

import functools
import pickle
import sys

import numpy as np
import pytest
import torch
from models import adamw, chain
from sklearn import metrics as sk
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

import fastseq as fs
from fastseq.callbacks import Metrics

T, N = 13, 7
X = torch.randn(T, N, 3, generator=torch.Generator().manual_seed(1))
Y = X[..., :1] * 2 + X[..., 1:2].cumsum(0)


def still(params):
    """Training changes nothing, so that outputs are known."""
    return torch.optim.SGD(params, lr=0.0)


def fitted(callbacks, model=None, loss=mse_loss, spec=(), data=(X, Y), **options):
    if not isinstance(callbacks, list):
        callbacks = [callbacks]
    spec = {"epochs": 1, "batchsize": 2, "seqsize": 5} | dict(spec)
    optimizer = options.pop("optimizer", still)
    model = chain() if model is None else model
    est = fs.Estimator(
        model, fs.seqloss(loss), optimizer, spec, callbacks=callbacks, progress=False, seed=0
    )
    return est.fit(*data, **options)


def flat(a):
    return np.asarray(a).reshape(-1, np.asarray(a).shape[-1])


def test_validation_metrics_are_those_of_predictions():
    held_out = X[:, :5] * 0.5, Y[:, :5]
    est = fitted(
        Metrics("r2", "neg_mean_absolute_error", worst=lambda y, p: abs(y - p).max()),
        spec={"epochs": 3}, optimizer=adamw, validation=held_out,
    )  # fmt: skip
    predicted, known = est.predict(held_out[0]).ravel(), held_out[1].numpy().ravel()
    row = est.history_[-1]
    assert row["validation_r2"] == pytest.approx(sk.r2_score(known, predicted), rel=1e-5)
    mae = sk.mean_absolute_error(known, predicted)
    assert row["validation_neg_mean_absolute_error"] == pytest.approx(-mae, rel=1e-5)
    assert row["validation_worst"] == pytest.approx(abs(known - predicted).max(), rel=1e-5)
    assert "r2" not in row
    assert len({row["validation_r2"] for row in est.history_}) == 3


def test_on_the_training_part_on_request():
    est = fitted(Metrics("r2", train=True), spec={"epochs": 2}, optimizer=adamw)
    row = est.history_[-1]
    score = sk.r2_score(flat(Y), flat(est.predict(X)))
    assert row["r2"] == pytest.approx(score, rel=1e-5)
    assert "validation_r2" not in row


def test_evaluation_mode_and_several_targets():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.9))
    y = torch.cat([Y, -Y * X[..., 2:]], 2)
    est = fitted(Metrics("r2", train=True), model, data=(X, y))
    score = sk.r2_score(flat(y), flat(est.predict(X)))
    assert est.history_[-1]["r2"] == pytest.approx(score, rel=1e-5)
    assert model.training


def test_only_real_samples_count():
    w = torch.rand(T, N) + 0.1
    w[3] = 0
    mask = torch.rand(T, N) > 0.3
    lengths = torch.tensor([13, 2, 7, 13, 1, 9, 13])
    x, y = X.clone(), Y.clone()
    within = torch.arange(T).unsqueeze(1) < lengths
    counts = mask & within & (w > 0)
    x[~(mask & within)] = torch.nan
    y[~counts] = torch.nan
    calls = []
    metrics = Metrics("r2", plain=lambda a, b: calls.append((len(a), len(b))) or 0, train=True)
    est = fitted(metrics, data=(x, y, w), mask=mask, lengths=lengths)
    predicted = est.predict(torch.nan_to_num(x))
    score = sk.r2_score(Y[counts], predicted[counts], sample_weight=w[counts])
    assert est.history_[-1]["r2"] == pytest.approx(score, rel=1e-5)
    assert calls[0] == (int(counts.sum()),) * 2


def test_lists_of_sequences():
    x = [X[: 3 + 2 * i, i] for i in range(5)]
    y = [Y[: 3 + 2 * i, i] for i in range(5)]
    est = fitted(Metrics("r2", train=True), data=(x, y), validation=2)
    predicted = est.predict(x)
    for name, part in (("r2", slice(0, 3)), ("validation_r2", slice(3, 5))):
        score = sk.r2_score(np.concatenate(y[part]), np.concatenate(predicted[part]))
        assert est.history_[-1][name] == pytest.approx(score, rel=1e-5), name


@pytest.mark.parametrize("validation", [{"time": 4}, {"time": 4, "warmup": 9}])
def test_validation_by_time_goes_on_from_the_training_part(validation):
    est = fitted(Metrics("r2"), validation=validation)
    score = sk.r2_score(flat(Y[9:]), flat(est.predict(X)[9:]))
    assert est.history_[-1]["validation_r2"] == pytest.approx(score, rel=1e-5)
    fresh = sk.r2_score(flat(Y[9:]), flat(est.predict(X[9:])))
    assert abs(fresh - score) > 1e-3


def test_in_the_units_of_the_targets():
    y = 100 + 30 * Y
    scales = {"scale_x": "standard", "scale_y": "standard"}
    est = fitted(Metrics("neg_mean_absolute_error", train=True), spec=scales, data=(X, y))
    error = abs(est.predict(X) - y.numpy()).mean()
    assert error > 10
    assert est.history_[-1]["neg_mean_absolute_error"] == pytest.approx(-error, rel=1e-5)


CLASSES = (X[..., :1] > 0).long() + (X[..., 1:2] > 0.5)


def test_of_classes():
    names = ("accuracy", "f1_macro", "roc_auc_ovr", "neg_log_loss")
    metrics = Metrics(*names, sk.accuracy_score, train=True)
    est = fitted(metrics, chain(outputs=3), cross_entropy, data=(X, CLASSES))
    logits, known = torch.from_numpy(est.predict(X)).flatten(0, 1), CLASSES.flatten()
    chances = logits.double().softmax(1)
    row = est.history_[-1]
    assert row["accuracy"] == sk.accuracy_score(known, logits.argmax(1)) == row["accuracy_score"]
    assert row["f1_macro"] == sk.f1_score(known, logits.argmax(1), average="macro")
    auc = sk.roc_auc_score(known, chances, multi_class="ovr")
    assert row["roc_auc_ovr"] == pytest.approx(auc, rel=1e-6)
    assert row["neg_log_loss"] == pytest.approx(-sk.log_loss(known, chances), rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 2])
def test_of_two_classes(outputs):
    known = (X[..., :1] > 0).long()
    metrics = Metrics("accuracy", "f1", "roc_auc", "neg_log_loss", train=True)
    loss, y = (
        (binary_cross_entropy_with_logits, known.float())
        if outputs == 1
        else (cross_entropy, known)
    )
    est = fitted(metrics, chain(outputs=outputs), loss, data=(X, y))
    out = torch.from_numpy(est.predict(X)).flatten(0, 1).double()
    logit = out[:, 0] if outputs == 1 else out[:, 1] - out[:, 0]
    known, row = known.flatten(), est.history_[-1]
    assert row["accuracy"] == sk.accuracy_score(known, logit > 0)
    assert row["f1"] == sk.f1_score(known, logit > 0)
    assert row["roc_auc"] == pytest.approx(sk.roc_auc_score(known, logit), rel=1e-6)
    assert row["neg_log_loss"] == pytest.approx(-sk.log_loss(known, logit.sigmoid()), rel=1e-6)


def test_of_several_labels():
    known = (X > 0).long()
    metrics = Metrics("f1_samples", "roc_auc", "average_precision", train=True)
    y = known.float()
    est = fitted(metrics, chain(outputs=3), binary_cross_entropy_with_logits, data=(X, y))
    logits, known, row = flat(est.predict(X)), flat(known), est.history_[-1]
    expected = sk.f1_score(known, logits > 0, average="samples", zero_division=0)
    assert row["f1_samples"] == pytest.approx(expected)
    assert row["roc_auc"] == pytest.approx(sk.roc_auc_score(known, logits))


def test_functions_get_weights_if_they_take_them():
    seen = {}

    def with_weights(y_true, y_pred, sample_weight=None):
        seen["weights"] = sample_weight
        return float(np.average(abs(y_true - y_pred), weights=sample_weight))

    w = torch.rand(N) + 0.5
    half = functools.partial(with_weights)
    est = fitted(Metrics(with_weights, "neg_max_error", train=True, again=half), data=(X, Y, w))
    assert len(seen["weights"]) == T * N
    error = abs(est.predict(X) - Y.numpy())[..., 0]
    row = est.history_[-1]
    assert row["with_weights"] == pytest.approx(np.average(error.mean(0), weights=w), rel=1e-5)
    assert row["again"] == row["with_weights"]
    assert row["neg_max_error"] == pytest.approx(-error.max(), rel=1e-5)
    fitted(Metrics(with_weights, train=True))
    assert seen["weights"] is None


def test_callbacks_that_come_later_see_the_values():
    seen = []
    fitted([lambda run: seen.append(set(run.row)), Metrics("r2", train=True),
            lambda run: seen.append(set(run.row))])  # fmt: skip
    assert seen[1] - seen[0] == {"r2"}


def test_training_goes_on_as_without_them():
    dropping = lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))  # noqa: E731
    torch.manual_seed(3)
    model = dropping()
    twin = dropping()
    twin.load_state_dict(model.state_dict())
    spec = {"epochs": 3, "shuffle": True}
    with_metrics = fitted(
        Metrics("r2", train=True), model, spec=spec, optimizer=adamw, validation=2
    )
    without = fitted([], twin, spec=spec, optimizer=adamw, validation=2)
    assert [r["loss"] for r in with_metrics.history_] == [r["loss"] for r in without.history_]


def test_can_be_pickled():
    metrics = pickle.loads(pickle.dumps(Metrics("r2", sk.max_error, train=True)))  # noqa: S301
    assert set(fitted(metrics).history_[-1]) > {"r2", "max_error"}


def test_what_cannot_be_computed():
    with pytest.raises(
        ValueError, match="nothing to compute on: pass validation to fit, or train="
    ):
        fitted(Metrics("r2"))
    with pytest.raises(ValueError, match=r"'r22' is not one of .*metrics: did you mean \"r2\"\? "):
        Metrics("r22")
    with pytest.raises(ValueError, match="at least one metric"):
        Metrics()
    with pytest.raises(ValueError, match="has a column 'r2' already"):
        Metrics("r2", r2=sk.r2_score)
    with pytest.raises(ValueError, match="a column 'loss' already"):
        Metrics(loss=sk.r2_score)
    with pytest.raises(TypeError, match=r"a name or a function of \(y_true, y_pred\), got 3"):
        Metrics(3)
    with pytest.raises(ValueError, match=r"metric 'f1' failed on the training part: .*multiclass"):
        fitted(Metrics("f1", train=True), chain(outputs=3), cross_entropy, data=(X, CLASSES))
    with pytest.raises(ValueError, match="there is nothing to compute a loss on: no sample of y"):
        mask = torch.ones(T, N, dtype=torch.bool)
        mask[:, 5:] = False
        fitted(Metrics("r2"), mask=mask, validation=2)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 1)

    def forward(self, x):
        return self.one(x), self.one(x)


def test_one_output_and_one_target():
    est = fs.Estimator(
        Pair(), lambda m, xs, ys: (m(xs)[0] - ys[0]).pow(2).mean(), still,
        fs.Spec(1, 2, 5), callbacks=[Metrics("r2", train=True)], progress=False,
    )  # fmt: skip
    with pytest.raises(TypeError, match="one output and one target of the model, not several"):
        est.fit(X, (Y, Y))


def test_names_need_scikit_learn_and_functions_do_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        fs.MissingFeatureError, match=r"'r2' needs .*scikit-learn: pip install scikit-learn"
    ):
        Metrics("r2")
    row = fitted(Metrics(bias=lambda y, p: (p - y).mean(), train=True)).history_[-1]
    assert np.isfinite(row["bias"])
