"""Tables of models' layers."""

from __future__ import annotations

import copy

import pytest
import torch
from models import TwoInputs
from torch import nn
from torch.nn.functional import mse_loss
from wrapped import LABELS, LAST, LIST, X, classifier, regressor

import fastseq as fs


def estimator(model):
    spec = {"epochs": 1, "batchsize": 4, "seqsize": 50}
    return fs.Estimator(
        model, fs.seqloss(mse_loss), torch.optim.SGD, spec, device="cpu", progress=False
    )


class Shared(nn.Module):
    """Ties the weights of two layers, one of them frozen, beside a fixed number of steps."""

    def __init__(self, steps=None):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(requires_grad=False)
        self.over_time = None if steps is None else nn.Linear(steps, 7)

    def forward(self, x):
        x = self.second(self.first(x))
        return x if self.over_time is None else self.over_time(x.permute(1, 2, 0))


def shapes(summary):
    return {row[0]: row[2] for row in summary.rows}


def test_shared_and_frozen_parameters_count_once():
    model = Shared()
    summary = estimator(model).summary()
    assert summary.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad) == 20
    assert summary.frozen == 4
    assert [row[3:] for row in summary.rows] == [(0, 0), (20, 0), (4, 4)]
    assert shapes(summary) == {"": "", "first": "", "second": ""}  # there were no data
    assert repr(summary).splitlines() == [
        "Shared: 24 parameters, 4 of them frozen, float32 on cpu",
        "layer   type    output  parameters  frozen",
        "        Shared                   0       0",
        "first   Linear                  20       0",
        "second  Linear                   4       4",
    ]


def test_shapes_are_those_of_the_outputs():
    model = fs.nn.Chain(nn.LSTM(3, 4), nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 1))
    est = estimator(model).fit(torch.zeros(20, 8, 3), torch.zeros(20, 8, 1))
    assert shapes(est.summary()) == {
        "": "(T, N, 1)", "0": "(T, N, 4)", "1": "(T, N, 5)", "1.0": "(T, N, 5)",
        "1.1": "(T, N, 5)", "2": "(T, N, 1)",
    }  # fmt: skip
    found = shapes(estimator(Shared(20)).summary(torch.zeros(20, 8, 4)))
    assert found[""] == found["over_time"] == "(N, 4, 7)"  # though it runs on 20 steps only
    assert found["first"] == "(20, N, 4)"
    unpadded = nn.Sequential(nn.Conv1d(4, 2, 5), nn.Conv1d(2, 2, 3, stride=2))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = unpadded

        def forward(self, x):
            return self.conv(x.permute(1, 2, 0)).permute(2, 0, 1)

    found = shapes(estimator(Net()).summary(torch.zeros(20, 8, 4)))
    assert found["conv.0"] == "(N, 2, T - 4)"
    assert found["conv.1"] == "(N, 2, …)"
    assert set(shapes(estimator(Net()).summary(torch.zeros(2, 8, 4))).values()) == {""}


def test_inputs_and_outputs_may_be_trees():
    x = (torch.zeros(10, 4, 3), torch.zeros(10, 4, 2))
    found = shapes(estimator(TwoInputs()).summary(x))
    assert found == {"": "(T, N, 1)", "rnn": "(T, N, 4)", "head": "(T, N, 1)"}


@pytest.mark.parametrize(
    "module", ["lstm-fcn", "inception", "tcn", "transformer", "rocket", "lstm", "mlp"]
)
def test_fitted_wrappers(module):
    model = classifier(module, epochs=1).fit(X, LABELS)
    summary = model.estimator_.summary()
    net = model.estimator_.model
    assert summary.trainable == sum(p.numel() for p in net.parameters())
    per_step = module in ("lstm", "mlp")  # the whole sequence is one step of the latter
    assert shapes(summary)[""] == ("(T, N, 3)" if per_step else "(N, 3)")
    assert regressor("lstm-fcn").fit(LIST, LAST).estimator_.summary().rows[0][2] == "(N, 1)"


def test_the_model_is_left_alone():
    model = fs.nn.Chain(nn.Linear(3, 4), nn.Dropout(), nn.BatchNorm1d(4))
    est = estimator(fs.nn.Chain(nn.Linear(3, 4), nn.Dropout(), nn.LSTM(4, 2)))
    before = copy.deepcopy(est.model.state_dict())
    state = torch.get_rng_state()
    est.summary(torch.zeros(10, 4, 3))
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training and not m._forward_hooks for m in est.model.modules())
    assert all(torch.equal(a, before[name]) for name, a in est.model.state_dict().items())
    model.double()
    assert "float64 on cpu" in repr(estimator(model).summary())


def test_html():
    text = estimator(nn.Linear(3, 1)).summary(torch.zeros(10, 4, 3))._repr_html_()
    assert "<caption>Linear: 4 parameters, float32 on cpu</caption>" in text
    assert "<tr><td></td><td>Linear</td><td>(T, N, 1)</td><td>4</td></tr>" in text
