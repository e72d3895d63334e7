from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as fn

import fastseq as fs

S, B = 7, 4
identity = fs.Stateful(nn.Identity())


def reference(loss, output, y, w=None):
    """Mean over time of the step's weighted mean, the FluxUtils way, weights over the chunk."""
    total = weight = 0.0
    for t in range(S):
        for b in range(B):
            factor = 1.0 if w is None else float(w[t, b])
            total += factor * float(loss(output[t, b : b + 1], y[t, b : b + 1]))
            weight += factor
    return total / weight


@pytest.mark.parametrize(
    "loss",
    [fn.mse_loss, fn.l1_loss, fn.huber_loss, nn.MSELoss(), nn.SmoothL1Loss(beta=0.3)],
    ids=lambda loss: getattr(loss, "__name__", None) or str(loss),
)
@pytest.mark.parametrize("weighted", [False, True])
def test_regression(loss, weighted):
    output, y = torch.randn(S, B, 3), torch.randn(S, B, 3)
    w = torch.rand(S, B) if weighted else None
    args = (identity, output, y) if w is None else (identity, output, y, w)
    got = float(fs.seqloss(loss)(*args))
    assert got == pytest.approx(reference(loss, output, y, w), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "loss",
    [fn.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1)],
    ids=lambda loss: getattr(loss, "__name__", None) or str(loss),
)
def test_class_labels(loss, weighted):
    output, y = torch.randn(S, B, 5), torch.randint(0, 5, (S, B, 1))
    w = torch.rand(S, B) if weighted else None
    args = (identity, output, y) if w is None else (identity, output, y, w)
    expected = reference(lambda o, t: loss(o, t.squeeze(-1)), output, y, w)
    assert float(fs.seqloss(loss)(*args)) == pytest.approx(expected, rel=1e-5)


def test_samples_without_weight_may_be_anything():
    output = torch.randn(S, B, 2, requires_grad=True)
    y = torch.randn(S, B, 2)
    w = torch.ones(S, B)
    w[3, 1] = 0
    y[3, 1] = torch.nan
    loss = fs.seqloss(fn.mse_loss)(identity, output, y, w)
    assert torch.isfinite(loss)


def test_no_weight_at_all_is_zero():
    output = torch.randn(S, B, 2, requires_grad=True)
    loss = fs.seqloss(fn.mse_loss)(identity, output, torch.randn(S, B, 2), torch.zeros(S, B))
    assert float(loss.detach()) == 0
    loss.backward()
    assert not output.grad.any()


def correlation(output, y, w=None):
    w = torch.ones(len(y)) if w is None else w
    a, b = output.flatten(), y.flatten()
    a, b = a - (w * a).sum() / w.sum(), b - (w * b).sum() / w.sum()
    return -(w * a * b).sum() / ((w * a * a).sum() * (w * b * b).sum()).sqrt()


def test_per_step():
    output, y, w = torch.randn(S, B, 1), torch.randn(S, B, 1), torch.rand(S, B)
    loss = fs.seqloss(correlation, per_step=True)
    steps = torch.stack([correlation(output[t], y[t]) for t in range(S)])
    torch.testing.assert_close(loss(identity, output, y), steps.mean())
    steps = torch.stack([correlation(output[t], y[t], w[t]) for t in range(S)])
    torch.testing.assert_close(loss(identity, output, y, w), (steps * w.sum(1)).sum() / w.sum())


def test_the_callers_loss_module_stays_as_it_was():
    loss = nn.MSELoss()
    fs.seqloss(loss)
    assert loss.reduction == "mean"


def test_several_outputs_want_a_loss_of_their_own():
    with pytest.raises(TypeError, match="one output and one target"):
        fs.seqloss(fn.mse_loss)(lambda x: (x, x), torch.ones(2, 2, 1), torch.ones(2, 2, 1))


@pytest.mark.parametrize(
    "loss",
    [fn.mse_loss, nn.L1Loss(), fn.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss()],
    ids=lambda loss: getattr(loss, "__name__", None) or str(loss),
)
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
@pytest.mark.parametrize("weighted", [False, True])
def test_integer_targets_are_numbers_to_losses_of_elements(loss, width, dtype, weighted):
    output, y = torch.randn(S, B, width), torch.randint(0, 2, (S, B, width)).to(dtype)
    ws = (torch.rand(S, B),) if weighted else ()
    expected = reference(loss, output, y.float(), *ws)
    assert float(fs.seqloss(loss)(identity, output, y, *ws)) == pytest.approx(expected, rel=1e-5)


def squared(output, target, reduction="mean"):
    losses = (output - target) ** 2
    return losses if reduction == "none" else losses.mean()


def test_integer_targets_of_a_loss_of_ones_own():
    output, y = torch.randn(S, B, 1), torch.randint(0, 9, (S, B, 1))
    expected = ((output - y) ** 2).mean().item()
    assert float(fs.seqloss(squared)(identity, output, y)) == pytest.approx(expected, rel=1e-6)

    def of_classes(output, target, reduction="mean"):
        return fn.cross_entropy(output, target, reduction=reduction)

    output, y = torch.randn(S, B, 5), torch.randint(0, 5, (S, B, 1))
    expected = fn.cross_entropy(output.flatten(0, 1), y.flatten()).item()
    assert float(fs.seqloss(of_classes)(identity, output, y)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "width", "of_targets", "message"),
    [
        (squared, 3, 1, "one number per sample"),
        (squared, 1, 3, "differ in shape"),
        (fn.mse_loss, 3, 1, "differ in shape"),
        (fn.cross_entropy, 1, 1, "has one output"),
    ],
)
def test_a_loss_that_would_broadcast_integer_targets(loss, width, of_targets, message):
    y = torch.randint(0, 2, (3, 1, of_targets))  # as many samples as outputs
    with pytest.raises(ValueError, match=message):
        fs.seqloss(loss)(identity, torch.randn(3, 1, width), y)


@pytest.mark.parametrize("loss", [fn.cross_entropy, nn.CrossEntropyLoss(), fn.nll_loss])
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_beyond_the_outputs(loss, weighted):
    y = torch.tensor([0, 3, 1]).view(3, 1, 1)
    more = [torch.ones(3, 1)] if weighted else []
    with pytest.raises(ValueError, match=r"labels in y are between 0 and 3, .* has 3 outputs"):
        fs.seqloss(loss)(identity, torch.randn(3, 1, 3), y, *more)
    with pytest.raises(ValueError, match="or y integers if it holds class labels"):
        fs.seqloss(loss)(identity, torch.randn(3, 1, 3), y.float(), *more)


@pytest.mark.parametrize("loss", [fn.mse_loss, nn.MSELoss(), lambda a, b: a - b])
def test_losses_of_samples_are_no_losses_over_chunks(loss):
    with pytest.raises(TypeError, match=r"pass fastseq\.seqloss\("):
        fs.Estimator(nn.GRU(2, 1), loss, torch.optim.SGD, fs.Spec(1, 2, 3))
