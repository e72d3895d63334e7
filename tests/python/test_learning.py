"""That models learn what they should, and not what they cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import adamw
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs


def test_mean_of_features_as_in_fluxutils():
    x = np.random.default_rng(0).standard_normal((1000, 1000, 10), np.float32)
    y = x.mean(2, keepdims=True)
    model = fs.nn.Chain(nn.LSTM(10, 10), nn.Linear(10, 1))
    spec = {"epochs": 2, "batchsize": 100, "seqsize": 100}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    est = fs.Estimator(model, fs.seqloss(mse_loss), optimizer, spec, progress=False)
    yhat = np.zeros_like(y)
    est.fit(x, y).predict(x, out=yhat)
    assert float(((yhat - y) ** 2).mean()) < 0.01


DELAY, SEQSIZE = 5, 4


class DelayLine(nn.Module):
    """A fixed shift register with a trained read-out: gradients need not reach back to the input.

    What came DELAY steps ago is in the state, if there is one.
    """

    def __init__(self, *, carry: bool) -> None:
        super().__init__()
        self.carry = carry
        self.rnn = nn.RNN(1, 2 * DELAY, bias=False).requires_grad_(False)
        self.rnn.weight_hh_l0.copy_(torch.diag(torch.ones(2 * DELAY - 1), -1))
        self.rnn.weight_ih_l0.zero_()[0, 0] = 0.5
        self.head = nn.Linear(2 * DELAY, 1)

    def forward(self, x, state):
        h, state = self.rnn(x, state if self.carry else None)
        return self.head(h), state


def echo_error(*, carry: bool) -> float:
    """Train to repeat what came DELAY steps ago, which lies before the chunk; return the error."""
    x = torch.randint(0, 2, (400, 16, 1)).float() * 2 - 1
    y = x.roll(DELAY, 0)
    y[:DELAY] = 0
    spec = {"epochs": 8, "batchsize": 16, "seqsize": SEQSIZE}
    model = DelayLine(carry=carry)
    est = fs.Estimator(model, fs.seqloss(mse_loss), adamw, spec, progress=False)
    return est.fit(x, y).history_[-1]["loss"]


def test_an_echo_from_before_the_chunk_is_learnt_only_if_state_is_carried():
    assert DELAY > SEQSIZE
    assert echo_error(carry=True) < 0.05
    with pytest.warns(UserWarning, match="earlier time steps, which are not in its state"):
        assert echo_error(carry=False) > 0.9
