"""Models as plain values: every layer that can be described, and what must not be."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import fastseq as fs
from fastseq.nn import model_description as description
from fastseq.nn.model_description import build, describe_model

# One of each kind, with no argument at its default where another is possible: (layer, input shape).
EXAMPLES = [
    (fs.nn.LSTM(3, 4, 2, bias=False, dropout=0.5, bidirectional=True, trainable_state=True), (5, 2, 3)),
    (fs.nn.LSTM(3, 4, proj_size=2, batch_first=True), (5, 2, 3)),
    (fs.nn.GRU(3, 4, 2, bidirectional=True, trainable_state=True), (5, 2, 3)),
    (fs.nn.RNN(3, 4, nonlinearity="relu", bias=False), (5, 2, 3)),
    (fs.nn.LSTMFCN(3, 2, 4, (5, 3), 6, "last", 0.5, 2), (9, 2, 3)),
    (fs.nn.InceptionTime(3, 2, 4, (5, 3), 4, "max", 0.5), (9, 2, 3)),
    (fs.nn.TCN(3, 2, 4, 3, 2, None, 0.5), (9, 2, 3)),
    (fs.nn.Transformer(3, 2, 8, 2, 1, causal=True, pool="mean", dropout=0.5), (9, 2, 3)),
    (fs.nn.PooledRNN(3, 2, "gru", 4, 2, bidirectional=True, pool="max", dropout=0.5), (9, 2, 3)),
    (fs.nn.RandomKernels(3, 12, 2, 5, (1, 2)), (9, 2, 3)),
    (fs.nn.Rocket(3, 2, 12, 2, 0.5, 5, (2, 1)), (9, 2, 3)),
    (fs.nn.Pool("max+last"), (9, 2, 3)),
    (fs.nn.ColumnEncoder((0, 3), 2, (0, 6)), None),
    (fs.nn.Averaged([fs.nn.Rocket(3, 2, 9), fs.nn.TCN(3, 2, 4)], [2]), (9, 2, 3)),
    (fs.nn.InstanceScale(beside=True, features=2), (9, 2, 3)),
    (fs.nn.OrdinalLogProbabilities(4), (9, 2, 3)),
    (fs.nn.PaddedBatchNorm(3, eps=0.1, momentum=None), (5, 3, 4)),
    (nn.LSTM(3, 4, 2, dropout=0.5, proj_size=2), (5, 2, 3)),
    (nn.GRU(3, 4, bias=False, batch_first=True), (5, 2, 3)),
    (nn.RNN(3, 4, 2, nonlinearity="relu", bidirectional=True), (5, 2, 3)),
    (nn.Linear(3, 2, bias=False), (5, 3)),
    (nn.Embedding(7, 3, padding_idx=2, max_norm=0.5, norm_type=1.0, scale_grad_by_freq=True), None),
    (nn.Conv1d(4, 2, 3, stride=2, padding=1, dilation=2, groups=2, bias=False), (5, 4, 9)),
    (nn.Conv2d(2, 4, (3, 1), padding="same", padding_mode="circular"), (5, 2, 6, 6)),
    (nn.LayerNorm((2, 3), eps=0.1, bias=False), (5, 2, 3)),
    (nn.LayerNorm(3, elementwise_affine=False), (5, 3)),
    (nn.RMSNorm(3, eps=0.1, elementwise_affine=False), (5, 3)),
    (nn.GroupNorm(2, 4, eps=0.1, affine=False), (5, 4)),
    (nn.BatchNorm1d(3, eps=0.1, momentum=None), (5, 3)),
    (nn.BatchNorm2d(3, momentum=0.5, affine=False, track_running_stats=False), (5, 3, 2, 2)),
    (nn.MaxPool2d((2, 1), 1, (1, 0), (2, 3), ceil_mode=True), (5, 2, 9, 8)),
    (nn.AdaptiveAvgPool2d((2, 3)), (5, 2, 9, 8)),
    (nn.Dropout(0.75), (5, 3)),
    (nn.Dropout1d(0.75), (5, 3, 2)),
    (nn.AlphaDropout(0.75), (5, 3)),
    (nn.Identity(), (5, 3)),
    (nn.Flatten(2, 3), (5, 3, 2, 2)),
    (nn.ReLU(inplace=True), (5, 3)),
    (nn.ReLU6(), (5, 3)),
    (nn.LeakyReLU(0.3), (5, 3)),
    (nn.PReLU(3), (5, 3)),
    (nn.ELU(0.5), (5, 3)),
    (nn.CELU(0.5), (5, 3)),
    (nn.SELU(), (5, 3)),
    (nn.GELU("tanh"), (5, 3)),
    (nn.SiLU(), (5, 3)),
    (nn.Mish(), (5, 3)),
    (nn.GLU(0), (4, 3)),
    (nn.Tanh(), (5, 3)),
    (nn.Sigmoid(), (5, 3)),
    (nn.Softsign(), (5, 3)),
    (nn.Tanhshrink(), (5, 3)),
    (nn.LogSigmoid(), (5, 3)),
    (nn.Hardsigmoid(), (5, 3)),
    (nn.Hardswish(), (5, 3)),
    (nn.Hardtanh(-0.25, 0.5), (5, 3)),
    (nn.Softplus(2.0, 0.5), (5, 3)),
    (nn.Softmax(0), (5, 3)),
    (nn.LogSoftmax(0), (5, 3)),
]  # fmt: skip


def test_every_known_layer_has_an_example():
    assert {type(layer) for layer, _ in EXAMPLES} == {*description._LAYERS, fs.nn.Averaged}


def run(layer, x, *, training):
    torch.manual_seed(1)
    return layer.train(training)(x.clone())


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("layer", "shape"), EXAMPLES, ids=lambda a: type(a).__name__)
def test_built_again_a_layer_gives_the_same_bits(layer, shape):
    x = torch.arange(6) if shape is None else torch.randn(shape)
    for p in layer.parameters():
        nn.init.normal_(p)  # some layers begin with zeros or ones
    told = json.loads(json.dumps(describe_model(layer)))  # plain values only
    again = build(told)
    again.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)  # training changes it
    assert type(again) is type(layer)
    for training in (True, False):
        state = torch.get_rng_state()
        wanted, got = run(layer, x, training=training), run(again, x, training=training)
        torch.set_rng_state(state)
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_containers_keep_their_layers_names_and_kinds():
    inner = nn.Sequential()
    inner.add_module("hidden", nn.Linear(4, 4))
    inner.add_module("squash", nn.Tanh())
    model = fs.nn.Chain(nn.LSTM(3, 4), inner, fs.nn.OnImages((2, 2, 1), nn.Flatten()))
    again = build(describe_model(model))
    assert list(again.state_dict()) == list(model.state_dict())
    assert repr(again) == repr(model)
    assert again[2].shape == (2, 2, 1)
    assert all(p.is_meta for p in again.parameters())


def test_describing_draws_no_random_numbers():
    model = fs.nn.Chain(nn.LSTM(3, 4), nn.Linear(4, 1))
    before = torch.get_rng_state()
    describe_model(model)
    assert torch.equal(torch.get_rng_state(), before)


class Own(nn.Linear):
    """Another class, though of the same parameters."""


def tied():
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = one.weight
    return fs.nn.Chain(one, other)


def changed(change):
    layer = nn.Linear(3, 3)
    change(layer)
    return fs.nn.Chain(layer)


same = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (fs.nn.Chain(nn.Tanh(), Own(3, 3)), r"layer 1 of the model is a .*\.Own"),
        (nn.Bilinear(2, 2, 2), "the model is a torch.nn.modules.linear.Bilinear"),
        (fs.nn.Chain(same, same), "parameters, buffers or options"),
        (tied(), "parameters, buffers or options"),
        (changed(lambda m: m.register_forward_hook(lambda *_: None)), "hooks"),
        (changed(lambda m: m.register_forward_pre_hook(lambda *_: None)), "hooks"),
        (changed(lambda m: setattr(m, "forward", torch.tanh)), "its own forward"),
        (changed(lambda m: m.register_buffer("more", torch.zeros(1))), "buffers"),
        (changed(nn.utils.parametrizations.weight_norm), "ParametrizedLinear"),
        (changed(lambda m: setattr(m, "weight", nn.Parameter(torch.ones(2, 3)))), "parameters"),
    ],
)
def test_what_would_not_be_the_same_is_not_described(model, why):
    with pytest.raises(ValueError, match=why):
        describe_model(model)


def test_an_argument_that_is_not_known_of_is_noticed(monkeypatch):
    """As one that a later PyTorch may give a layer."""
    monkeypatch.setitem(description._LAYERS, nn.LeakyReLU, ("inplace",))
    describe_model(nn.LeakyReLU())
    with pytest.raises(ValueError, match="options"):
        describe_model(nn.LeakyReLU(0.3))


@pytest.mark.parametrize(
    "bad",
    [
        {"layer": "os.system", "command": "true"},
        {"layer": "torch.nn.Bilinear", "in1_features": 1, "in2_features": 1, "out_features": 1},
        {"layer": "torch.nn.Tanh", "device": "cpu"},
        {"layer": "torch.nn.Linear", "in_features": 3},
        {"layer": "torch.nn.Linear", "in_features": "3", "out_features": 2, "bias": True},
        {"layer": "torch.nn.Linear", "in_features": -3, "out_features": 2, "bias": True},
        {"layer": "torch.nn.Linear", "in_features": 10**30, "out_features": 2, "bias": True},
        {"layer": "fastseq.nn.Chain", "layers": [["a.b", {"layer": "torch.nn.Tanh"}]]},
        {"layer": "fastseq.nn.Chain", "layers": 3},
        {"layer": "fastseq.nn.Chain", "layers": [], "shape": (8, 8, 1)},
        {"layer": "fastseq.nn.OnImages", "layers": []},
        {"layer": "fastseq.nn.OnImages", "layers": [], "shape": 8},
        {"layer": ["torch.nn.Tanh"]},
        {},
        [],
        None,
    ],
)
def test_nothing_else_is_built(bad):
    with pytest.raises(ValueError):  # noqa: PT011
        build(bad)
