"""`SequenceClassifier`: labels of any dtype, one or several, weighted."""

import numpy as np
import pytest
import torch
from torch import nn
from wrapped import LABELS, LAST, LIST, RNG, STEPS, X, classifier, same

import fastseq as fs


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        LABELS.astype(object),
        LAST > 0,
        (LAST > 0) * 7 - 3,
        (LAST > 0) * 1.0,
        LABELS.tolist(),
    ],
)
def test_classes_of_any_dtype(labels):
    model = classifier(epochs=25).fit(X, labels)
    assert np.array_equal(model.classes_, np.unique(labels))
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (48, len(model.classes_))
    np.testing.assert_allclose(probabilities.sum(1), 1)
    found = model.predict(X)
    assert found.dtype == model.classes_.dtype
    assert np.array_equal(found, model.classes_[probabilities.argmax(1)])
    assert model.score(X, labels) == np.mean(found == np.asarray(labels)) > 0.7


def test_classes_per_step():
    y = np.where(STEPS[..., 0] > 0, "up", "down")
    model = classifier(epochs=25).fit(X, y)
    assert model.predict(X).shape == (48, 6)
    assert model.predict_proba(X).shape == (48, 6, 2)
    assert model.score(X, y) == np.mean(model.predict(X) == y) > 0.8
    listed = [row[: len(x)] for row, x in zip(y, LIST, strict=True)]
    model = classifier(epochs=2).fit(LIST, listed)
    assert [a.shape for a in model.predict_proba(LIST)] == [(len(x), 2) for x in LIST]
    assert [a.shape for a in model.predict(LIST)] == [(len(x),) for x in LIST]


def test_several_targets_with_their_own_classes():
    y = np.stack([LABELS.astype(object), X[:, -1, 0] > 0], 1)
    model = classifier(epochs=30).fit(X, y)
    assert [len(classes) for classes in model.classes_] == [3, 2]
    assert [p.shape for p in model.predict_proba(X)] == [(48, 3), (48, 2)]
    found = model.predict(X)
    assert found.shape == (48, 2)
    assert model.score(X, y) == np.mean((found == y).all(1))
    assert np.mean(found == y) > 0.75


def test_cross_entropy_is_torch_s():
    begin = fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 3))
    once = {"epochs": 1, "batchsize": 48, "scale_x": None, "shuffle": False}
    outputs = begin.double()(torch.from_numpy(X).transpose(0, 1))[0][-1]
    numbers = torch.from_numpy(np.unique(LABELS, return_inverse=True)[1])
    weights = {"down": 3.0, "flat": 0.5, "up": 1.0}
    for class_weight, tensor in ((None, None), (weights, torch.tensor([3.0, 0.5, 1.0]).double())):
        model = classifier(begin, class_weight=class_weight, **once).fit(X, LABELS)
        expected = nn.functional.cross_entropy(outputs, numbers, tensor)
        assert model.history_[0]["loss"] == pytest.approx(expected.item())


def test_class_weights_and_sample_weights_multiply():
    w = RNG.uniform(0.5, 2, 48)
    weights = {"down": 3.0, "flat": 0.5, "up": 1.0}
    product = w * np.array([weights[label] for label in LABELS])
    assert same(
        classifier(class_weight=weights).fit(X, LABELS, w), classifier().fit(X, LABELS, product)
    )
    y = np.where(STEPS[..., 0] > 0, "up", "down")
    each = w[:, None] * np.where(y == "up", 2.0, 1.0)
    assert same(
        classifier(class_weight={"up": 2.0, "down": 1.0}).fit(X, y, w), classifier().fit(X, y, each)
    )


def test_one_class_only_is_refused():
    with pytest.raises(ValueError, match="one class only"):
        classifier().fit(X, np.full(48, "up"))
    with pytest.raises(ValueError, match="one class only"):
        classifier().fit(X, LABELS, (LABELS == "up") * 1.0)


def test_labels_that_were_not_seen_count_as_wrong():
    model = classifier().fit(X, LABELS)
    assert model.score(X, np.full(48, "sideways")) == 0
    with pytest.raises(
        ValueError, match=r"not among the classes \['down', 'flat', 'up'\]: \['no'\]"
    ):
        model.partial_fit(X, np.full(48, "no"))


def test_classes_may_come_later():
    model = classifier().partial_fit(X, LAST > 0, classes=[False, True, 2])
    assert model.predict_proba(X).shape == (48, 3)
    model.partial_fit(X, np.full(48, 2))
    assert model.n_iter_ == 2


def test_other_classes_than_those_of_the_first_call_are_refused():
    model = classifier().partial_fit(X, LABELS)
    model.partial_fit(X, LABELS, classes=["up", "flat", "down"])
    assert model.n_iter_ == 2
    with pytest.raises(
        ValueError, match=r"classes other than .*\['down', 'flat', 'up'\]; call fit"
    ):
        model.partial_fit(X, LABELS, classes=["up", "down"])
