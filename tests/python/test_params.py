from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from models import chain
from torch import nn

import fastseq as fs


def test_net2vec_is_all_parameters_in_order():
    model = chain()
    expected = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    np.testing.assert_array_equal(fs.net2vec(model).detach().numpy(), expected)
    assert torch.equal(fs.net2vec(fs.Stateful(model)), fs.net2vec(model))


def test_net2vec_is_differentiable():
    model = nn.Linear(3, 2)
    fs.net2vec(model).pow(2).sum().backward()
    for p in model.parameters():
        torch.testing.assert_close(p.grad, 2 * p)


def test_vec2net_inverts_net2vec_and_checks_the_length():
    a, b = chain(), chain()
    vector = fs.net2vec(a).detach()
    fs.vec2net(b, vector)
    assert torch.equal(fs.net2vec(b), vector)
    for wrong in (vector[:-1], torch.cat([vector, vector]), vector[None]):
        with pytest.raises(ValueError, match="length 149"):
            fs.vec2net(b, wrong)
    assert torch.equal(fs.net2vec(b), vector)


def test_vec2net_tells_autograd():
    model = nn.Linear(2, 1)
    y = (model.weight**2).sum()
    fs.vec2net(model, torch.zeros(3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_net2grad():
    model = chain()
    assert not fs.net2grad(model).any()
    model(torch.randn(4, 2, 3))[0].sum().backward()
    model[0].weight_hh_l0.grad = None
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    assert torch.equal(fs.net2grad(model), torch.cat([g.flatten() for g in grads]))


def test_mixed_dtypes_are_promoted():
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(2, 1).double(), nn.Linear(1, 1).bfloat16())
    vector = fs.net2vec(model)
    assert vector.dtype == torch.float64
    fs.vec2net(model, torch.arange(8.0))
    assert fs.net2vec(model).tolist() == list(range(8))


def test_empty_models_and_shared_parameters():
    assert fs.net2vec(nn.ReLU()).shape == (0,)
    layer = nn.Linear(2, 2)
    tied = nn.Sequential(layer, layer)
    assert fs.net2vec(tied).numel() == 6
    assert list(fs.namedparams(tied)) == ["0.weight", "0.bias"]


def test_weights_leave_biases_out():
    names = {id(p): name for name, p in fs.namedparams(chain()).items()}
    model = chain()
    names = {id(p): name for name, p in fs.namedparams(model).items()}
    assert [names[id(p)] for p in fs.weights(model)] == [
        "0.weight_ih_l0",
        "0.weight_hh_l0",
        "1.weight",
    ]


def test_notrack_shares_memory():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    frozen = fs.notrack(model)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model[0].weight.fill_(3)
        model[1].running_mean.fill_(4)
    assert (frozen[0].weight == 3).all()
    assert (frozen[1].running_mean == 4).all()
    assert not frozen.eval()(torch.ones(1, 2)).requires_grad
    pickle.loads(pickle.dumps(frozen))  # noqa: S301


def test_utilities_take_estimators():
    spec = fs.Spec(1, 1, 1)
    est = fs.Estimator(chain(), fs.seqloss(nn.MSELoss()), torch.optim.SGD, spec)
    assert fs.net2vec(est).numel() == 149
    with pytest.raises(TypeError, match="got str"):
        fs.namedparams("model")


def test_utilities_take_what_a_loss_gets():
    x = np.random.default_rng(0).standard_normal((20, 3))
    found = []

    def loss(m, xs, ys):
        found.append([len(fs.weights(m)), fs.net2vec(m).numel(), *fs.namedparams(m)])
        return (m(xs) - ys).square().mean()

    fs.SequenceRegressor("linear", loss=loss, epochs=1).fit(x, x[:, 0])
    assert found == [[1, 4, "0.weight", "0.bias"]]


@pytest.mark.parametrize("width", [3, 16])  # of gradients that Bucketizer lays out one by one
def test_net2grad_is_a_copy(width):
    model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, width))
    buckets = fs.distributed.Bucketizer(model, None)
    model(torch.ones(2, 4)).sum().backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
    buckets.wait()
    vector = fs.net2grad(model)
    assert torch.equal(vector, wanted)
    vector.zero_()
    assert torch.equal(fs.net2grad(model), wanted)


def test_vectors_of_complex_parameters():
    model = nn.Linear(2, 2, dtype=torch.complex64)
    model(torch.ones(1, 2, dtype=torch.complex64)).abs().sum().backward()
    vector = fs.net2vec(model)
    assert torch.equal(vector, torch.cat([model.weight.flatten(), model.bias]))
    assert torch.equal(
        fs.net2grad(model), torch.cat([model.weight.grad.flatten(), model.bias.grad])
    )
    fs.vec2net(model, 2 * vector.detach())
    assert torch.equal(fs.net2vec(model), 2 * vector)
