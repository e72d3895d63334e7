"""Fitted modules that take samples as scikit-learn has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum import attr
from torch import nn
from wrapped import LABELS, LAST, STEPS, X, classifier, parameters, regressor

MODULES = ("lstm-fcn", "inception", "tcn", "transformer", "gru", "mlp", "linear")


def scores(model, x=X):
    return model.as_module()(torch.from_numpy(x)).detach()


@pytest.mark.parametrize("module", MODULES)
def test_outputs_are_those_of_the_wrapper(module):
    labels = classifier(module, epochs=1).fit(X, LABELS)
    np.testing.assert_allclose(scores(labels).softmax(-1), labels.predict_proba(X), rtol=1e-6)
    numbers = regressor(module, epochs=1).fit(X + 100, 50 * LAST + 1000)  # needs both scalings
    np.testing.assert_allclose(scores(numbers, X + 100)[:, 0], numbers.predict(X + 100), rtol=1e-9)
    single = regressor(module, epochs=1, scale_x=None, scale_y=None)
    single.fit(X.astype(np.float32), LAST.astype(np.float32))
    expected = single.predict(X.astype(np.float32))
    np.testing.assert_allclose(scores(single)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_outputs_per_step():
    model = regressor(epochs=1).fit(X, STEPS)
    np.testing.assert_allclose(scores(model), model.predict(X), rtol=1e-9)


def test_it_is_a_copy_in_evaluation_mode():
    model = classifier("lstm-fcn", epochs=1, dropout=0.5).fit(X, LABELS)
    before, module = parameters(model), model.as_module()
    found = module(torch.from_numpy(X))
    assert torch.equal(found, module(torch.from_numpy(X)))
    assert not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in model.estimator_.model.parameters())
    model.partial_fit(X, LABELS)
    assert not torch.equal(before, parameters(model))
    assert torch.equal(found, module(torch.from_numpy(X)))


def test_samples_of_other_shapes_are_refused():
    module = classifier(epochs=1).fit(X, LABELS).as_module()
    with pytest.raises(ValueError, match=r"samples \(N, T, F\), got \(6, 3\)"):
        module(torch.zeros(6, 3))
    with pytest.raises(ValueError, match="got list"):
        module([])


@pytest.mark.parametrize(
    ("module", "x", "channels_first"),
    [
        ("gru", np.ascontiguousarray(X.swapaxes(1, 2)), True),
        ("lstm-fcn", X[:, :3], True),  # as many features as steps
        ("mlp", X[:, :3], True),
        ("lstm-fcn", X[..., 0], False),
        ("mlp", X[..., 0], False),
        ("cnn", X.reshape(48, 2, 3, 3), False),
        ("cnn", X.reshape(48, 3, 2, 3), True),
        ("cnn", X, False),
    ],
)
def test_samples_have_the_layout_of_x(module, x, channels_first):
    model = classifier(module, epochs=1, channels_first=channels_first).fit(x, LABELS)
    np.testing.assert_allclose(scores(model, x).softmax(-1), model.predict_proba(x), rtol=1e-6)


def test_images_of_other_sizes_are_refused():
    module = classifier("cnn", epochs=1).fit(X.reshape(48, 2, 3, 3), LABELS).as_module()
    with pytest.raises(ValueError, match=r"\(N, W, H, C\) with \(W, H, C\) = \(2, 3, 3\), got"):
        module(torch.zeros(5, 3, 2, 3))


@pytest.mark.parametrize("module", MODULES)
def test_gradients_with_respect_to_samples(module):
    model = regressor(module, epochs=1, hidden_size=8).fit(X, LAST)
    samples = torch.from_numpy(X[:2]).requires_grad_()
    assert torch.autograd.gradcheck(model.as_module(), samples)


@pytest.mark.parametrize("module", ["lstm-fcn", "inception", "gru"])
def test_integrated_gradients_add_up(module):
    model = classifier(module, epochs=1, scale_x="standard").fit(X, LABELS)
    net, samples = model.as_module(), torch.from_numpy(X[:4])
    found = attr.IntegratedGradients(net).attribute(samples, target=1, n_steps=400)
    assert found.shape == samples.shape
    expected = net(samples)[:, 1] - net(torch.zeros_like(samples))[:, 1]
    torch.testing.assert_close(found.sum((1, 2)), expected, rtol=0.02, atol=0.01)


def test_gradients_that_do_not_reach_samples_are_warned_of():
    samples = torch.from_numpy(X[:2]).requires_grad_()
    for module in ("rocket", "gru+rocket"):
        net = classifier(module, epochs=1).fit(X, LABELS).as_module()
        net(samples.detach())
        with pytest.warns(UserWarning, match='features of "rocket" have no gradient'):
            net(samples)


def test_users_modules():
    class Last(nn.Module):
        def __init__(self, n_in, n_out):
            super().__init__()
            self.layer = nn.Linear(n_in, n_out)

        def forward(self, x):
            return self.layer(x).mean(0)

    model = classifier(Last, epochs=1).fit(X, LABELS)
    np.testing.assert_allclose(scores(model).softmax(-1), model.predict_proba(X), rtol=1e-6)
