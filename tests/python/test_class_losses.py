"""Losses of classes: focal, smoothed, ordinal; by themselves and in the classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as fn
from wrapped import LABELS, LAST, LIST, RNG, STEPS, X, classifier

import fastseq as fs

NUMBERS = torch.from_numpy(np.unique(LABELS, return_inverse=True)[1])
ONCE = {"epochs": 1, "batchsize": 48, "scale_x": None, "shuffle": False}
SMOOTH = nn.CrossEntropyLoss(label_smoothing=0.3)
LOSSES = [SMOOTH, fs.nn.FocalLoss(), fs.nn.FocalLoss(gamma=0.5), nn.MultiMarginLoss()]


def network(outputs):
    return fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, outputs)).double()


def outputs_of(model, x=X):
    return model(torch.from_numpy(np.asarray(x)).transpose(0, 1))[0]


def each(loss, scores, numbers):
    """The loss of each sample, called one by one."""
    return torch.stack([loss(s[None], n[None]) for s, n in zip(scores, numbers, strict=True)])


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
def test_focal_loss_is_that_of_the_paper(gamma):
    scores, y = RNG.standard_normal((20, 4)), RNG.integers(0, 4, 20)
    p = (np.exp(scores) / np.exp(scores).sum(1, keepdims=True))[np.arange(20), y]
    expected = -((1 - p) ** gamma) * np.log(p)
    args = torch.from_numpy(scores).requires_grad_(), torch.from_numpy(y)
    for reduction, of in (("none", np.asarray), ("mean", np.mean), ("sum", np.sum)):
        found = fs.nn.FocalLoss(gamma, reduction=reduction)(*args)
        np.testing.assert_allclose(found.detach(), of(expected), rtol=1e-12)
    assert torch.autograd.gradcheck(fs.nn.FocalLoss(gamma), [a[:4] for a in args])


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
def test_focal_loss_of_samples_that_are_certainly_right_or_wrong(gamma):
    scores = torch.tensor([[0.0, 200.0], [200.0, 0.0]], requires_grad=True)
    losses = fs.nn.FocalLoss(gamma, reduction="none")(scores, torch.tensor([1, 1]))
    assert losses.tolist() == pytest.approx([0, 200])
    losses.sum().backward()
    np.testing.assert_allclose(scores.grad, [[0, 0], [1, -1]], atol=1e-6)


def test_focal_loss_leaves_torch_s_missing_label_out():
    scores, y = torch.randn(5, 3), torch.tensor([0, -100, 2, 1, -100])
    known = y >= 0
    expected = fs.nn.FocalLoss()(scores[known], y[known])
    torch.testing.assert_close(fs.nn.FocalLoss()(scores, y), expected)


def test_focal_loss_for_an_estimator():
    x, y = torch.randn(10, 6, 3), torch.randint(0, 4, (10, 6, 1))
    model = nn.Linear(3, 4)
    w = torch.rand(10, 6)
    y[3, 1] = -100
    known = (y >= 0).flatten()
    losses = fs.nn.FocalLoss(reduction="none")(model(x).flatten(0, 1), y.flatten()).detach()
    est = fs.Estimator(model, fs.seqloss(fs.nn.FocalLoss()), torch.optim.SGD,
                       {"epochs": 1, "batchsize": 6, "seqsize": 10}, progress=False)  # fmt: skip
    assert est.evaluate(x, y) == pytest.approx(losses[known].mean().item(), rel=1e-5)
    expected = np.average(losses[known], weights=w.flatten()[known])
    assert est.evaluate(x, y, w) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"labels in y are between .* has 4 outputs"):
        est.evaluate(x, y.clamp_min(0) + 9)


@pytest.mark.parametrize("options", [{"gamma": -1}, {"gamma": np.inf}, {"reduction": "all"}])
def test_focal_losses_that_make_no_sense(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        fs.nn.FocalLoss(**options)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_sequences_are_torch_s(loss, weighted):
    w = RNG.uniform(0.5, 2, 48) if weighted else None
    class_weight = {"down": 3.0, "flat": 0.5, "up": 1.0} if weighted else None
    begin = network(3)
    losses = each(loss, outputs_of(begin)[-1], NUMBERS).detach().numpy()
    weights = None if w is None else w * np.array([3.0, 0.5, 1.0])[NUMBERS]
    model = classifier(begin, loss=loss, class_weight=class_weight, **ONCE).fit(X, LABELS, w)
    expected = np.average(losses, weights=weights)
    assert model.history_[0]["loss"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_losses_of_steps_leave_padding_out(loss):
    begin = network(2)
    y = [(x.cumsum(0)[:, 0] > 0).astype(int) for x in LIST]
    w = [RNG.uniform(0.5, 2, len(x)) for x in LIST]
    losses = [
        each(loss, outputs_of(begin, x[None])[:, 0], torch.from_numpy(a)).detach().numpy()
        for x, a in zip(LIST, y, strict=True)
    ]
    for weights in (None, w):
        model = classifier(begin, loss=loss, **ONCE).fit(LIST, y, weights)
        flat = None if weights is None else np.concatenate(weights)
        expected = np.average(np.concatenate(losses), weights=flat)
        assert model.history_[0]["loss"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [*LOSSES, fn.cross_entropy], ids=[*map(str, LOSSES), "function"])
def test_losses_of_several_targets_are_their_mean(loss):
    second = RNG.integers(0, 2, 48)
    begin = network(5)
    scores = outputs_of(begin)[-1]
    parts = each(loss, scores[:, :3], NUMBERS), each(loss, scores[:, 3:], torch.from_numpy(second))
    y = np.stack([NUMBERS.numpy(), second], 1)
    model = classifier(begin, loss=loss, **ONCE).fit(X, y)
    assert model.history_[0]["loss"] == pytest.approx(((parts[0] + parts[1]) / 2).mean().item())
    with pytest.raises(ValueError, match="must have 5 outputs, one for each class of each target"):
        classifier(network(4), loss=loss, **ONCE).fit(X, y)


def test_losses_by_name():
    begin = network(3)
    for loss in ("focal", fs.nn.FocalLoss, fs.nn.FocalLoss(gamma=2)):
        model = classifier(begin, loss=loss, **ONCE).fit(X, LABELS)
        expected = fs.nn.FocalLoss()(outputs_of(begin)[-1], NUMBERS)
        assert model.history_[0]["loss"] == pytest.approx(expected.item())
    with pytest.raises(ValueError, match=r"'focal', .*, got 'fokal': did you mean"):
        classifier(loss="fokal").fit(X, LABELS)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5])),
            r"class_weight=\{'down': 1.0, 'flat': 2.0, 'up': 0.5\} instead",
        ),
        (nn.NLLLoss(ignore_index=2), "ignore_index=2, but that is the number of a class"),
        (nn.BCEWithLogitsLoss(), "loss='binary_cross_entropy' for labels"),
        (nn.BCELoss, "loss='binary_cross_entropy' for labels"),
        (fn.binary_cross_entropy_with_logits, "loss='binary_cross_entropy' for labels"),
    ],
)
def test_losses_with_means_of_their_own_say_what_to_pass(loss, message):
    with pytest.raises(ValueError, match=message):
        classifier(loss=loss).fit(X, LABELS)


def test_a_module_must_have_an_output_for_each_class():
    model = classifier(network(4), **ONCE).fit(X, LABELS)
    for call in (model.predict, model.predict_proba, model.decision_function):
        with pytest.raises(ValueError, match=r"has 4 outputs, .* one for each class, 3"):
            call(X)


def test_ordinal_log_probabilities_are_products():
    outputs = RNG.standard_normal((7, 5, 3))
    given = 1 / (1 + np.exp(-outputs))  # P(class > k | class > k - 1)
    above = given.cumprod(-1)
    ends = np.concatenate([np.ones((7, 5, 1)), above, np.zeros((7, 5, 1))], -1)
    found = fs.nn.OrdinalLogProbabilities(4)(torch.from_numpy(outputs))
    np.testing.assert_allclose(found.exp(), ends[..., :-1] - ends[..., 1:], rtol=1e-10)
    extreme = torch.tensor([[300.0, -300.0, 5.0], [-300.0, 300.0, 300.0]], requires_grad=True)
    found = fs.nn.OrdinalLogProbabilities(4)(extreme)
    assert found[0, 1] == found[1, 0] == 0
    found.sum().backward()
    assert extreme.grad.isfinite().all()


def test_ordinal_loss_is_corn_s():
    """The paper's tasks: task k learns from samples above class k - 1, whether they are above k."""
    outputs, y = torch.randn(30, 3, dtype=torch.float64), torch.randint(0, 4, (30,))
    total = 0.0
    for k in range(3):
        some = y >= k
        total += fn.binary_cross_entropy_with_logits(
            outputs[some, k], (y[some] > k).double(), reduction="sum"
        )
    found = fn.nll_loss(fs.nn.OrdinalLogProbabilities(4)(outputs), y, reduction="sum")
    torch.testing.assert_close(found, total)


def test_ordinal_log_probabilities_need_their_outputs():
    with pytest.raises(ValueError, match=r"4 classes in an order need 3 outputs .*, got 4"):
        fs.nn.OrdinalLogProbabilities(4)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        fs.nn.OrdinalLogProbabilities(1)
    assert fs.nn.OrdinalLogProbabilities(3)(torch.zeros(2).half()).dtype == torch.float32


def test_decision_functions():
    binary = classifier(epochs=10).fit(X, LAST > 0)
    scores = binary.decision_function(X)
    assert scores.shape == (48,)
    np.testing.assert_array_equal(scores > 0, binary.predict(X))
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), binary.predict_proba(X)[:, 1])
    several = classifier(epochs=10).fit(X, LABELS)
    scores = several.decision_function(X)
    np.testing.assert_array_equal(several.classes_[scores.argmax(1)], several.predict(X))
    odds = np.exp(scores)
    np.testing.assert_allclose(odds / odds.sum(1, keepdims=True), several.predict_proba(X))


def test_decision_functions_of_steps_and_of_several_targets():
    y = STEPS > 0
    steps = classifier().fit(X, y[..., 0])
    np.testing.assert_array_equal(steps.decision_function(X) > 0, steps.predict(X))
    listed = classifier().fit(LIST, [a[: len(x), 0] for a, x in zip(y, LIST, strict=True)])
    for found, wanted in zip(listed.decision_function(LIST), listed.predict(LIST), strict=True):
        np.testing.assert_array_equal(found > 0, wanted)
    both = classifier().fit(X, np.stack([LABELS.astype(object), LAST > 0], 1))
    assert not hasattr(both, "decision_function")
