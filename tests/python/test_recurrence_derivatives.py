"""Derivatives of recurrent layers beyond a plain backward pass, against those of torch's layers."""

from __future__ import annotations

import pytest
import torch
from cells import LAYERS, operands, run

import fastseq as fs


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("how", ["carried", "twice"])
def test_second_derivatives_where_one_input_depends_on_another(kind, how):
    found = []
    layers = [getattr(torch.nn, kind)(3, 4).double(), getattr(fs.nn, kind)(3, 4).double()]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    h = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    for layer in layers:
        inputs = list(layer.parameters())
        if how == "carried":
            y, state = layer(x)
            y, state = layer(x, state)
        else:
            inputs.append(h)
            y, state = layer(x, (h, h) if kind == "LSTM" else h)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        found.append([*first, *second])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_second_derivatives_without_steps():
    layer = fs.nn.LSTM(3, 4)
    y, (h, _) = layer(torch.zeros(0, 2, 3))
    params = list(layer.parameters())
    grads = torch.autograd.grad(y.sum() + h.sum(), params, create_graph=True, allow_unused=True)
    assert all(g is None or not g.any() for g in grads)


@pytest.mark.parametrize("cell", LAYERS)
def test_gradients_without_features(cell):
    inputs = operands(cell, 3, 2, 1, 4)
    inputs["x"] = torch.zeros(3, 2, 0, dtype=torch.float64, requires_grad=True)
    inputs["w_ih"] = torch.zeros(len(inputs["b_ih"]), 0, dtype=torch.float64, requires_grad=True)
    leaves = list(inputs.values())
    junk = [torch.full((numel,), torch.nan) for numel in range(1, 200) for _ in range(8)]
    del junk  # what memory that nobody writes would be full of
    found = torch.autograd.grad(run(cell, leaves)[0].sum(), leaves)
    inputs["x"], inputs["w_ih"] = (
        torch.zeros(3, 2, 1).double(),
        torch.zeros(len(leaves[1]), 1).double(),
    )
    others = [a for name, a in inputs.items() if name not in ("x", "w_ih")]
    wanted = torch.autograd.grad(run(cell, list(inputs.values()))[0].sum(), others)
    for a, b in zip(found[2:], wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_transforms_of_torch_func(kind):
    theirs, ours = getattr(torch.nn, kind)(3, 4), getattr(fs.nn, kind)(3, 4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2, 3)

    def loss(layer, params):
        return torch.func.functional_call(layer, params, (x,))[0].square().sum()

    params = {name: p.detach() for name, p in ours.named_parameters()}
    wanted = torch.autograd.grad(theirs(x)[0].square().sum(), list(theirs.parameters()))
    found = torch.func.grad(lambda p: loss(ours, p))(params)
    for a, b in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(a, b)
    ones = {name: torch.ones_like(p) for name, p in params.items()}
    _, tangent = torch.func.jvp(lambda p: loss(ours, p), (params,), (ones,))
    torch.testing.assert_close(tangent, sum(g.sum() for g in wanted), rtol=1e-4, atol=1e-4)
