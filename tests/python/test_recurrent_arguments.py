"""Recurrent layers: dtypes, autocast, compilers and fit; what does not fit is said at once."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from models import assert_same_parameters
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils.rnn import pack_sequence

import fastseq as fs
from fastseq.nn.recurrent import kernels

KINDS = pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
T, N, F, H = 5, 2, 3, 4
X = torch.randn(T, N, F, generator=torch.Generator().manual_seed(1))


def make(kind, **given):
    return getattr(fs.nn, kind)(F, H, **given)


def allowed():
    """Let the compiler look into subclasses of PyTorch's layers."""
    return torch._dynamo.config.patch(allow_rnn=True)


def flat(output):
    y, state = output
    return [y, *(state if isinstance(state, tuple) else (state,))]


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_layers_compute_in_float32(kind, dtype):
    layer = make(kind, num_layers=2, bidirectional=True, dtype=dtype)
    wide = copy.deepcopy(layer).float()  # the same numbers
    x = X.to(dtype).requires_grad_()
    found, expected = flat(layer(x)), flat(wide(x.float()))
    assert {a.dtype for a in found} == {dtype}
    torch.testing.assert_close(found, [a.to(dtype) for a in expected], rtol=0, atol=0)
    cotangents = [torch.randn_like(a) for a in found]
    grads = torch.autograd.grad(found, [x, *layer.parameters()], cotangents)
    expected = torch.autograd.grad(
        expected, [x, *wide.parameters()], [g.float() for g in cotangents]
    )
    for a, b in zip(grads, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b.to(dtype))


@KINDS
def test_under_autocast_the_weights_dtype_counts(kind):
    layer, head = make(kind), nn.Linear(F, F)
    narrow = flat(layer(X))[1:]
    state = tuple(s.detach().bfloat16() for s in narrow)
    state = state if len(state) == 2 else state[0]
    with torch.autocast("cpu", torch.bfloat16):
        z = head(X)
        assert z.dtype == torch.bfloat16
        found = flat(layer(z, state))
        mixed = flat(layer(z.float(), state))
        found[0].sum().backward()
    wide = tuple(s.float() for s in state) if isinstance(state, tuple) else state.float()
    torch.testing.assert_close(found, flat(layer(z.float(), wide)), rtol=0, atol=0)
    torch.testing.assert_close(found, mixed, rtol=0, atol=0)
    assert {a.dtype for a in found} == {torch.float32}
    assert head.weight.grad.dtype == torch.float32
    assert head.weight.grad.any()
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(TypeError, match=r"input is torch\.int64"),
    ):
        layer(X.long())


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("LSTM", "aot_eager"),
        ("GRU", "aot_eager"),
        ("RNN", "aot_eager"),
        pytest.param("LSTM", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_into_one_graph(kind, backend):
    torch._dynamo.reset()
    layer = make(kind, num_layers=2, bidirectional=True, trainable_state=True)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for lengths in (None, torch.tensor([2, 0])):
        with allowed():
            found = flat(compiled(X, None, lengths))
        expected = flat(layer(X, None, lengths))
        torch.testing.assert_close(found, expected)
        cotangents = [torch.randn_like(a) for a in expected]
        parameters = list(layer.parameters())
        torch.testing.assert_close(
            torch.autograd.grad(found, parameters, cotangents),
            torch.autograd.grad(expected, parameters, cotangents),
        )


@KINDS
def test_exported_with_time_and_sequences_open(kind):
    layer = make(kind, num_layers=2, batch_first=True)
    steps, count = torch.export.Dim("steps"), torch.export.Dim("count")
    state = flat(layer(X))[1:]
    hx = tuple(s.detach() for s in state) if kind == "LSTM" else state[0].detach()
    open_ = ({1: count},) * 2 if kind == "LSTM" else {1: count}
    shapes = ({0: count, 1: steps}, open_, {0: count})
    lengths = torch.full((T,), N)
    program = torch.export.export(layer, (X, hx, lengths), dynamic_shapes=shapes)
    calls = [str(node.target) for node in program.graph.nodes if "fastseq" in str(node.target)]
    assert len(calls) == 2
    for sequences, length in ((T, N), (7, 3), (3, 31)):
        x, lengths = torch.randn(sequences, length, F), torch.randint(0, length + 1, (sequences,))
        hx = tuple(torch.randn(2, sequences, H) for _ in state)
        hx = hx if kind == "LSTM" else hx[0]
        torch.testing.assert_close(
            flat(program.module()(x, hx, lengths)), flat(layer(x, hx, lengths))
        )


@KINDS
def test_no_steps_and_no_sequences(kind):
    layer = make(kind, num_layers=2, trainable_state=True)
    with torch.no_grad():
        layer.h0.normal_()
    y, *state = flat(layer(X[:0]))
    assert y.shape == (0, N, H)
    assert torch.equal(state[0], layer.h0.expand(2, N, H))
    y.sum().backward()
    assert not any(p.grad.any() for p in layer.parameters())
    y, *state = flat(layer(X[:, :0], lengths=torch.zeros(0, dtype=torch.int64)))
    assert y.shape == (T, 0, H)
    assert state[0].shape == (2, 0, H)


@KINDS
def test_frozen_weights_and_unused_outputs(kind):
    layer, theirs = make(kind), getattr(nn, kind)(F, H)
    theirs.load_state_dict(layer.state_dict())
    for module in (layer, theirs):
        for p in module.parameters():
            p.requires_grad_(False)
        module.weight_hh_l0.requires_grad_()
        flat(module(X))[-1].square().sum().backward()
        assert module.weight_ih_l0.grad is None
    torch.testing.assert_close(layer.weight_hh_l0.grad, theirs.weight_hh_l0.grad)
    layer.weight_hh_l0.requires_grad_(False)
    assert not layer(X)[0].requires_grad
    assert layer(X.clone().requires_grad_())[0].requires_grad


@pytest.mark.parametrize("change", [{}, {"num_layers": 2, "bias": False}], ids=["plain", "layers"])
@KINDS
def test_fit_is_as_with_torchs_layers(kind, change):
    x = torch.randn(45, 10, F)
    y = x.mean(2, keepdim=True).roll(1, 0)
    models = []
    for module in (fs.nn, nn):
        torch.manual_seed(0)
        models.append(fs.nn.Chain(getattr(module, kind)(F, H, **change), nn.Linear(H, 1)))
        adam = lambda p: torch.optim.Adam(p, lr=1e-2)  # noqa: E731
        spec = {"epochs": 3, "batchsize": 4, "seqsize": 7}
        est = fs.Estimator(models[-1], fs.seqloss(mse_loss), adam, spec, progress=False)
        est.fit(x, y)
    assert_same_parameters(*models, rtol=1e-4)
    assert kernels(models[0]) == {"0": "fastseq"}
    assert kernels(models[1]) == {"0": f"torch: the layer is torch.nn.{kind}"}


def test_kernels_of_other_devices_and_projections():
    layers = {"far": fs.nn.GRU(2, 3, device="meta"), "thin": fs.nn.LSTM(2, 3, proj_size=1)}
    model = nn.ModuleDict({**layers, "head": nn.Linear(2, 2), "own": fs.nn.RNN(2, 2)})
    assert kernels(model) == {
        "far": "torch: the device is meta",
        "thin": "torch: projections",
        "own": "fastseq",
    }
    y, h = layers["far"](torch.zeros(5, 2, 2, device="meta"))
    assert (y.shape, h.shape, y.device.type) == ((5, 2, 3), (1, 2, 3), "meta")


S = torch.zeros(1, N, H)
FAR = torch.device("meta")


def first(layer):
    return torch.zeros(1, N, layer.proj_size or H)


CALLS = {
    "no tensor": (lambda m: m(X.numpy()), TypeError, "input must be a tensor or a PackedSeq.* ndarray"),
    "1-D": (lambda m: m(X[0, 0]), ValueError, r"input must be \(time.*got \(3,\)"),
    "4-D": (lambda m: m(X[None]), ValueError, r"input must be \(time.*got \(1, 5, 2, 3\)"),
    "features": (lambda m: m(X[..., :2]), ValueError, "input has 2 features, .* made for 3"),
    "input's dtype": (lambda m: m(X.double()), TypeError, "input is torch.float64, .* torch.float32"),
    "integers": (lambda m: m(X.long()), TypeError, "input is torch.int64"),
    "input's device": (lambda m: m(X.to(FAR)), ValueError, "input is on meta, .* weights are on cpu"),
    "weights' device": (lambda m: copy.deepcopy(m).to(FAR)(X), ValueError, "input is on cpu, .* on meta"),
    "one of two": (lambda m: m(X, S), TypeError, "hx must be a tuple of two tensors, h0 and c0, got 1"),
    "three": (lambda m: m(X, (S, S, S)), TypeError, "hx must be a tuple of two .* got 3"),
    "no state": (lambda m: m(X, (None, None)), TypeError, "hx must be .* NoneType"),
    "h0's batch": (lambda m: m(X, (S.new_zeros(1, 3, H), S)), ValueError, r"h0 must be .*\(1, 2, \d\), got \(1, 3, 4\)"),
    "c0's hidden": (lambda m: m(X, (first(m), S[..., 1:])), ValueError, r"c0 must be .*\(1, 2, 4\), got \(1, 2, 3\)"),
    "h0's layers": (lambda m: m(X, (S.new_zeros(2, N, H), S)), ValueError, r"h0 must be .* got \(2, 2, 4\)"),
    "h0 is 2-D": (lambda m: m(X, (S[0], S[0])), ValueError, r"h0 must be .* got \(2, 4\)"),
    "c0's dtype": (lambda m: m(X, (first(m), S.double())), TypeError, "c0 is torch.float64"),
    "c0's device": (lambda m: m(X, (first(m), S.to(FAR))), ValueError, "c0 is on meta, but input is on cpu"),
    "a list": (lambda m: m(X, lengths=[1, 2]), TypeError, "lengths must be a tensor of integers, got list"),
    "floats": (lambda m: m(X, lengths=torch.ones(N)), TypeError, "lengths must be .* got torch.float32"),
    "a mask": (lambda m: m(X, lengths=torch.ones(N).bool()), TypeError, "lengths must be .* got torch.bool"),
    "too long": (lambda m: m(X, lengths=torch.tensor([1, 6])), ValueError, "lengths must be between 0 and 5, .* 1 to 6"),
    "negative": (lambda m: m(X, lengths=torch.tensor([1, -1])), ValueError, "lengths must be between .* -1 to 1"),
    "too many": (lambda m: m(X, lengths=torch.ones(3).long()), ValueError, r"lengths must be \(2,\).* got \(3,\)"),
    "2-D": (lambda m: m(X, lengths=torch.ones(1, N).long()), ValueError, r"lengths must be .* got \(1, 2\)"),
    "far lengths": (lambda m: m(X, lengths=torch.ones(N, device=FAR).long()), ValueError, "lengths must be on cpu"),
    "packed": (lambda m: m(pack_sequence([X[:, 0]]), lengths=torch.ones(1).long()), ValueError, "lengths cannot be given with"),
}  # fmt: skip


@pytest.mark.parametrize("proj_size", [0, 2], ids=["kernels", "projections"])
@pytest.mark.parametrize(("call", "error", "message"), CALLS.values(), ids=CALLS)
def test_what_does_not_fit_is_named(call, error, message, proj_size):
    with pytest.raises(error, match=re.compile(message)):
        call(make("LSTM", proj_size=proj_size))


def test_one_state_is_wanted():
    layer = make("GRU")
    with pytest.raises(TypeError, match="hx must be a tensor, got 2: Tensor, Tensor"):
        layer(X, (S, S))
    with pytest.raises(ValueError, match=r"h0 must be .* \(1, 1, 4\), got \(1, 2, 4\)"):
        layer(X[:, 0], S)  # one sequence
    with pytest.raises(ValueError, match="trainable_state and proj_size"):
        make("LSTM", proj_size=2, trainable_state=True)
    with pytest.raises(RuntimeError, match="h0"):
        make("GRU", trainable_state=True).load_state_dict(nn.GRU(F, H).state_dict())


def test_lengths_are_looked_at_where_compiled():
    torch._dynamo.reset()
    compiled = torch.compile(make("GRU"), fullgraph=True, backend="aot_eager")
    with allowed(), pytest.raises(RuntimeError, match="lengths must be between 0 and 5"):
        compiled(X, None, torch.tensor([1, 6]))
