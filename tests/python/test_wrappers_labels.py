"""`SequenceClassifier` of several labels, each there or not, and of classes in an order."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.metrics import f1_score, log_loss, roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict, cross_val_score
from sklearn.utils import estimator_checks
from torch import nn
from torch.nn import functional as fn
from wrapped import LAST, LIST, RNG, STEPS, X, classifier, parameters, same

import fastseq as fs

Y = np.stack([LAST > 0, X[:, -1, 0] > 0, np.zeros(48)], 1).astype(int)
YS = STEPS > 0
YL = [a[: len(x)] for a, x in zip(YS, LIST, strict=True)]
ONCE = {"epochs": 1, "batchsize": 48, "scale_x": None, "shuffle": False}
GRADES = np.digitize(LAST, [-1.5, 0, 1.5])
WORDS = np.array(["poor", "fair", "good", "best"])  # not in alphabetical order
ORDERED = pd.Series(pd.Categorical(WORDS[GRADES], WORDS, ordered=True))


def labels(module="gru", **more):
    return classifier(module, loss="binary_cross_entropy", **more)


def ordinal(module="gru", **more):
    return classifier(module, loss="ordinal", **more)


def network(outputs):
    return fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, outputs)).double()


def logits(model):
    return model(torch.from_numpy(X).transpose(0, 1))[0][-1]


@pytest.mark.parametrize("dtype", [np.int64, bool, float, np.uint8])
def test_labels(dtype):
    y = Y.astype(dtype)
    model = labels(epochs=30).fit(X, y)
    found, scores = model.predict(X), model.decision_function(X)
    assert found.dtype == dtype
    assert found.shape == scores.shape == (48, 3)
    np.testing.assert_array_equal(found, scores > 0)
    np.testing.assert_allclose(model.predict_proba(X), 1 / (1 + np.exp(-scores)))
    assert model.classes_.tolist() == [[0, 1]] * 3
    assert model.score(X, y) == np.mean((found == y).all(1)) > 0.6
    assert same(model, labels(epochs=30).fit(X, Y))


@pytest.mark.parametrize(
    "of", [pd.DataFrame, torch.from_numpy, np.ndarray.tolist, lambda y: y.astype(object)]
)
def test_containers_of_labels(of):
    assert same(labels().fit(X, of(Y)), labels().fit(X, Y))


def test_labels_of_steps():
    model = labels(epochs=25).fit(X, YS)
    assert model.predict(X).shape == model.predict_proba(X).shape == (48, 6, 2)
    assert model.score(X, YS) > 0.5
    model = labels(epochs=2).fit(LIST, YL)
    for call in (model.predict, model.predict_proba, model.decision_function):
        assert [a.shape for a in call(LIST)] == [(len(x), 2) for x in LIST]
    assert model.predict(LIST)[0].dtype == bool


@pytest.mark.parametrize(
    ("class_weight", "of_0", "of_1"),
    [
        (None, [1, 1, 1], [1, 1, 1]),
        ({1: 3.0}, [1, 1, 1], [3, 3, 3]),
        ([{1: 3.0}, {}, {0: 0.5, 1: 2}], [1, 1, 0.5], [3, 1, 2]),
        ("balanced", *(np.where(Y.any(0), 24 / (c == Y).sum(0).clip(1), 1) for c in (0, 1))),
    ],
)
def test_the_loss_of_labels_is_torch_s(class_weight, of_0, of_1):
    begin, w = network(3), RNG.uniform(0.5, 2, 48)
    y = torch.from_numpy(Y).double()
    losses = fn.binary_cross_entropy_with_logits(logits(begin), y, reduction="none").detach()
    each = (losses.numpy() * np.where(Y == 1, of_1, of_0)).mean(1)
    for weights in (None, w):
        model = labels(begin, class_weight=class_weight, **ONCE).fit(X, Y, weights)
        expected = np.average(each, weights=weights)
        assert model.history_[0]["loss"] == pytest.approx(expected, rel=1e-9)


def test_labels_balanced_are_as_scikit_learn_weighs_one_label_after_the_other():
    """With one label, balanced weights are those of a classifier of two classes."""
    y = (LAST > 1).astype(int)
    begin = network(1)
    model = labels(begin, class_weight="balanced", **ONCE).fit(X, y[:, None])
    score = logits(begin)
    both = torch.cat([torch.zeros_like(score), score], 1)
    weights = torch.tensor([48 / (2 * (y == c).sum()) for c in (0, 1)])
    expected = fn.cross_entropy(both, torch.from_numpy(y), weights.double())
    assert model.history_[0]["loss"] == pytest.approx(expected.item())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_scikit_learn_s_metrics_of_labels(count):
    y = Y[:, [0, 1, 0]][:, :count]
    cv, scores = KFold(2), {}
    for name in ("f1_macro", "roc_auc", "average_precision", "accuracy"):
        scores[name] = cross_val_score(labels(), X, y, scoring=name, cv=cv, error_score="raise")
    for number, (train, test) in enumerate(cv.split(X)):
        model = labels().fit(X[train], y[train])
        true, found = y[test], model.predict(X[test])
        assert scores["f1_macro"][number] == f1_score(true, found, average="macro")
        probabilities = model.predict_proba(X[test])
        assert scores["roc_auc"][number] == roc_auc_score(true, probabilities)
        assert scores["accuracy"][number] == model.score(X[test], true)
    found = cross_val_predict(labels(), X, y, cv=cv, method="predict_proba")
    np.testing.assert_allclose(found[test], probabilities)


@pytest.mark.parametrize(
    "check",
    [
        "check_classifiers_multilabel_output_format_predict",
        "check_classifiers_multilabel_output_format_predict_proba",
        "check_classifiers_multilabel_output_format_decision_function",
    ],
)
def test_scikit_learn_s_checks_of_labels(check):
    model = labels("mlp", epochs=2)
    assert model.__sklearn_tags__().classifier_tags.multi_label
    getattr(estimator_checks, check)("SequenceClassifier", model)


def test_metrics_in_training_know_labels():
    metrics = fs.callbacks.Metrics("f1_macro", "roc_auc", train=True)
    model = labels(callbacks=[metrics], **ONCE).fit(X, Y[:, :2])
    row = model.history_[0]
    assert row["f1_macro"] == pytest.approx(f1_score(Y[:, :2], model.predict(X), average="macro"))
    assert row["roc_auc"] == pytest.approx(roc_auc_score(Y[:, :2], model.predict_proba(X)))


def test_labels_go_on():
    model = labels().partial_fit(X, Y).partial_fit(X, Y == 1, classes=[0, 1])
    assert model.n_iter_ == 2
    assert model.predict(X).dtype == bool
    with pytest.raises(ValueError, match=r"classes must be \[0, 1\], .* got \[0, 2\]"):
        model.partial_fit(X, Y, classes=[0, 2])
    with pytest.raises(ValueError, match="other features, targets or classes"):
        model.partial_fit(X, Y[:, :2])
    with pytest.raises(ValueError, match="partial_fit does not know all labels"):
        labels(class_weight="balanced").partial_fit(X, Y)
    warm = labels(warm_start=True, class_weight="balanced").fit(X, Y).set_params(epochs=5)
    assert same(warm.fit(X, Y), labels(class_weight="balanced", epochs=5).fit(X, Y))
    assert not warm.set_params(epochs=7).fit(X[:20], Y[:20]).continued_  # with other weights
    again = pickle.loads(pickle.dumps(warm))  # noqa: S301
    np.testing.assert_array_equal(again.predict_proba(X), warm.predict_proba(X))


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (Y[:, 0], ValueError, r"y has one per sequence: pass loss='cross_entropy'"),
        (YS[..., 0], ValueError, r"y has one per step: .* pass per_step=False; .*'cross_entropy'"),
        (2 * Y, ValueError, r"labels that are 0 or 1 \(or False and True\), got \[2\]"),
        (Y.astype(str), ValueError, r"labels that are 0 or 1 .*, got \['0', '1'\]"),
        (Y.astype(object) * "a", ValueError, r"labels that are 0 or 1 .*, got \['', 'a'\]"),
        (scipy.sparse.csr_array(Y), TypeError, r"y is a sparse matrix, .* pass y.toarray\(\)"),
    ],
)
def test_what_are_no_labels(y, error, message):
    with pytest.raises(error, match=message):
        labels().fit(X, y)


def test_as_many_labels_as_steps():
    y = np.concatenate([Y, Y], 1)
    assert labels(per_step=False).fit(X, y).predict(X).shape == (48, 6)


@pytest.mark.parametrize("weight", [{2: 1.0}, [{1: 2.0}], {1: -1.0}, {1: np.nan}, "balance"])
def test_weights_of_labels_that_make_no_sense(weight):
    with pytest.raises(ValueError, match=r"class_weight (of labels )?must"):
        labels(class_weight=weight).fit(X, Y)


def test_classes_in_an_order():
    model = ordinal(epochs=40).fit(X, ORDERED)
    assert model.classes_.tolist() == ["best", "fair", "good", "poor"]
    by_rank = model.predict_proba(X)[:, [3, 1, 2, 0]]
    np.testing.assert_allclose(by_rank.sum(1), 1)
    median = (by_rank.cumsum(1) < 0.5).sum(1)
    np.testing.assert_array_equal(model.predict(X), WORDS[median])
    distances = abs(np.arange(4)[:, None] - np.arange(4)) @ by_rank.T
    np.testing.assert_allclose(distances[median, np.arange(48)], distances.min(0))
    assert np.mean(abs(median - GRADES)) < 0.5
    numbers = ordinal(epochs=40).fit(X, GRADES)
    assert torch.equal(parameters(model), parameters(numbers))
    np.testing.assert_array_equal(by_rank, numbers.predict_proba(X))
    np.testing.assert_array_equal(WORDS[numbers.predict(X)], model.predict(X))


def test_the_loss_of_an_order_is_the_likelihood():
    begin, w = network(3), RNG.uniform(0.5, 2, 48)
    given = 1 / (1 + np.exp(-logits(begin).detach().numpy()))
    above = np.concatenate([np.ones((48, 1)), given.cumprod(1), np.zeros((48, 1))], 1)
    losses = -np.log((above[:, :-1] - above[:, 1:])[np.arange(48), GRADES])
    weights = {"poor": 2.0, "fair": 1.0, "good": 1.0, "best": 0.5}
    each = w * np.array([2.0, 1.0, 1.0, 0.5])[GRADES]
    model = ordinal(begin, class_weight=weights, **ONCE).fit(X, ORDERED, w)
    assert model.history_[0]["loss"] == pytest.approx(np.average(losses, weights=each))


def test_orders_of_steps_and_of_unequal_lengths():
    steps = np.digitize(STEPS[..., 0], [-0.5, 0.5])
    names = np.array(["down", "even", "about"])[steps]
    model = ordinal(epochs=20).fit(X, steps)
    assert model.predict_proba(X).shape == (48, 6, 3)
    assert model.score(X, steps) > 0.7
    kind = pd.CategoricalDtype(["down", "even", "about"], ordered=True)
    frame = pd.DataFrame(names).astype(kind)
    assert same(ordinal(epochs=20).fit(X, frame), model)
    listed = [pd.Series(a[: len(x)], dtype=kind) for a, x in zip(names, LIST, strict=True)]
    numbers = [a[: len(x)] for a, x in zip(steps, LIST, strict=True)]
    found = ordinal().fit(LIST, listed)
    assert same(found, ordinal().fit(LIST, numbers))
    assert [a.shape for a in found.predict_proba(LIST)] == [(len(x), 3) for x in LIST]
    listed[3] = pd.Series(listed[3].astype(object))
    with pytest.raises(ValueError, match="whose categories have different orders"):
        ordinal().fit(LIST, listed)


def test_scikit_learn_s_tools_read_the_columns_of_an_order_right():
    cv = KFold(2)
    scores = cross_val_score(
        ordinal(epochs=20), X, ORDERED, scoring="neg_log_loss", cv=cv, error_score="raise"
    )
    for score, (train, test) in zip(scores, cv.split(X), strict=True):
        model = ordinal(epochs=20).fit(X[train], GRADES[train])
        assert -score == pytest.approx(log_loss(GRADES[test], model.predict_proba(X[test])))


def test_an_order_goes_on():
    all_of_them = pd.Categorical(WORDS, WORDS, ordered=True)
    model = ordinal().partial_fit(X, ORDERED, classes=all_of_them)
    few = ORDERED[ORDERED != "poor"]
    model.partial_fit(X[few.index], few).partial_fit(X, WORDS[GRADES], classes=all_of_them)
    numbers = ordinal().partial_fit(X, GRADES)
    numbers.partial_fit(X[few.index], GRADES[few.index]).partial_fit(X, GRADES)
    assert same(model, numbers)
    other = ORDERED.cat.reorder_categories(WORDS[::-1], ordered=True)
    with pytest.raises(ValueError, match="other features, targets or classes"):
        model.partial_fit(X, other)
    with pytest.raises(ValueError, match=r"lack \['poor'\]"):
        model.partial_fit(X[few.index], few.cat.remove_unused_categories())
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_what_has_no_order():
    with pytest.warns(UserWarning, match=r"in alphabetical order, \['best', 'fair', 'good', 'poor"):
        ordinal().fit(X, WORDS[GRADES])
    with pytest.raises(ValueError, match="loss='ordinal' needs one target"):
        ordinal().fit(X, np.stack([GRADES, GRADES], 1))
    with pytest.raises(ValueError, match="4 classes in an order need 3 outputs"):
        ordinal(network(4), **ONCE).fit(X, GRADES)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, y: model.fit(X, y),
        lambda model, y: model.partial_fit(X, y),
        lambda model, y: model.partial_fit(X, y, WORDS),
        lambda model, y: model.find_lr(X, y, updates=10),
    ],
)
def test_the_warning_points_at_the_callers_line(call):
    with pytest.warns(UserWarning, match="in alphabetical order") as caught:
        call(ordinal(), WORDS[GRADES])
    found = [one.filename for one in caught if "alphabetical" in str(one.message)]
    assert found == [__file__]


def test_an_order_has_no_decision_function():
    model = ordinal()
    assert not hasattr(model, "decision_function")
    assert hasattr(classifier(), "decision_function")
    model.fit(X, GRADES).set_params(loss="cross_entropy")  # not yet fitted with it
    assert not hasattr(model, "decision_function")
    assert hasattr(clone(model), "decision_function")
