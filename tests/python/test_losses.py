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
