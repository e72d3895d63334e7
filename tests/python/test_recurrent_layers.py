"""fs.nn.LSTM, GRU and RNN: drop-in for torch's."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from models import assert_same_parameters
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_sequence

import fastseq as fs
from fastseq.nn.recurrent import kernels

KINDS = pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
F, H = 3, 5
OPTIONS = {
    "plain": {},
    "layers": {"num_layers": 3},
    "directions": {"bidirectional": True},
    "all": {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
}
options = pytest.mark.parametrize("given", OPTIONS.values(), ids=OPTIONS)


def pair(kind, **given):
    """Return a layer of ours and torch's with the same weights."""
    given = {"dtype": torch.float64, **given}
    ours, theirs = getattr(fs.nn, kind)(F, H, **given), getattr(nn, kind)(F, H, **given)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def draw_state(layer, count, hidden=H):
    """Return a state to start from; a layer without sequences' dimension has none."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or hidden, hidden] if isinstance(layer, nn.LSTM) else [hidden]
    shapes = [(rows, n) if count is None else (rows, count, n) for n in sizes]
    state = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    return tuple(state) if len(state) == 2 else state[0]


def flat(output):
    y, state = output
    return [y, *(state if isinstance(state, tuple) else (state,))]


def assert_alike(ours, theirs, found, expected, inputs=()):
    """Compare outputs, and gradients of the weights and inputs."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    cotangents = [torch.randn_like(o) for o in expected]
    own = torch.autograd.grad(found, [*ours.parameters(), *inputs], cotangents)
    wanted = torch.autograd.grad(expected, [*theirs.parameters(), *inputs], cotangents)
    torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-10)


def by_torch(layer, x, lengths, hx):
    """Return what torch's layer makes of each sequence alone, cut to its length."""
    steps = 1 if layer.batch_first else 0
    begins = flat((None, hx))[1:]
    ys, ends = [], []
    for n, length in enumerate(lengths):
        begin = [s[:, n : n + 1] for s in begins]
        part = x.narrow(1 - steps, n, 1).narrow(steps, 0, length)
        if length == 0:
            width = begin[0].shape[2] * (2 if layer.bidirectional else 1)
            y, *end = x.new_zeros(*part.shape[:2], width), *begin
        else:
            y, *end = flat(layer(part, tuple(begin) if len(begin) == 2 else begin[0]))
        missing = list(y.shape)
        missing[steps] = x.shape[steps] - length
        ys.append(torch.cat([y, y.new_zeros(missing)], steps))
        ends.append(end)
    return [torch.cat(ys, 1 - steps), *(torch.cat(s, 1) for s in zip(*ends, strict=True))]


@KINDS
@options
def test_is_torchs_layer(kind, given):
    ours, theirs = pair(kind, **given)
    assert kernels(ours) == {"": "fastseq"}
    assert repr(ours) == repr(theirs)
    x = torch.randn(4, 6, F, dtype=torch.float64, requires_grad=True)
    assert_alike(ours, theirs, flat(ours(x)), flat(theirs(x)), [x])
    hx = draw_state(ours, 4 if ours.batch_first else 6)
    inputs = [x, *flat((None, hx))[1:]]
    assert_alike(ours, theirs, flat(ours(x, hx)), flat(theirs(x, hx)), inputs)
    single, hx = x[0].detach(), draw_state(ours, None)
    assert_alike(ours, theirs, flat(ours(single)), flat(theirs(single)))
    assert_alike(ours, theirs, flat(ours(single, hx)), flat(theirs(single, hx)))


def test_rnn_with_relu():
    ours, theirs = pair("RNN", nonlinearity="relu", num_layers=2)
    x = torch.randn(7, 2, F, dtype=torch.float64)
    assert_alike(ours, theirs, flat(ours(x)), flat(theirs(x)))


@KINDS
@options
def test_state_dict_goes_both_ways(kind, given):
    ours, theirs = getattr(fs.nn, kind)(F, H, **given), getattr(nn, kind)(F, H, **given)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert_same_parameters(ours, theirs, rtol=0)
    x = torch.randn(4, 2, F)
    torch.testing.assert_close(flat(ours(x)), flat(theirs(x)))


PROJECTED = [("LSTM", {"proj_size": 2}), ("LSTM", {"proj_size": 2, **OPTIONS["all"]})]


@pytest.mark.parametrize(
    ("kind", "given"),
    [*((k, g) for k in ("LSTM", "GRU", "RNN") for g in OPTIONS.values()), *PROJECTED],
)
def test_lengths(kind, given):
    ours, theirs = pair(kind, **given)
    lengths = [3, 0, 6, 1]
    shape = (4, 6, F) if ours.batch_first else (6, 4, F)
    x = torch.randn(shape, dtype=torch.float64)
    for n, length in enumerate(lengths):
        (x[n] if ours.batch_first else x[:, n])[length:] = torch.nan
    x.requires_grad_()
    hx = draw_state(ours, 4)
    found = flat(ours(x, hx, torch.tensor(lengths, dtype=torch.int32)))
    expected = by_torch(theirs, x, lengths, hx)
    assert_alike(ours, theirs, found, expected, [x, *flat((None, hx))[1:]])
    zeros = [torch.zeros_like(s) for s in flat((None, hx))[1:]]
    torch.testing.assert_close(
        flat(ours(x, lengths=torch.tensor(lengths))),
        flat(ours(x, tuple(zeros) if len(zeros) == 2 else zeros[0], torch.tensor(lengths))),
    )


@pytest.mark.parametrize(("kind", "given"), PROJECTED)
def test_projections_run_in_torch(kind, given):
    ours, theirs = pair(kind, **given)
    assert kernels(ours) == {"": "torch: projections"}
    for x, count in (
        (torch.randn(4, 6, F), 4 if ours.batch_first else 6),
        (torch.randn(7, F), None),
    ):
        x, hx = x.double().requires_grad_(), draw_state(ours, count)
        assert_alike(ours, theirs, flat(ours(x)), flat(theirs(x)), [x])
        assert_alike(ours, theirs, flat(ours(x, hx)), flat(theirs(x, hx)), [x, *hx])


@KINDS
@pytest.mark.parametrize("trainable", [False, True])
def test_packed_sequences_run_in_torch(kind, trainable):
    ours = getattr(fs.nn, kind)(F, H, trainable_state=trainable, dtype=torch.float64)
    x = [torch.randn(steps, F, dtype=torch.float64) for steps in (2, 5, 3)]
    if trainable:
        with torch.no_grad():
            ours.h0.normal_()
    y, state = ours(pack_sequence(x, enforce_sorted=False))
    expected = [flat(ours(part)) for part in x]
    padded, lengths = nn.utils.rnn.pad_packed_sequence(y)
    assert lengths.tolist() == [2, 5, 3]
    for n, part in enumerate(expected):
        torch.testing.assert_close(padded[: len(part[0]), n], part[0])
        torch.testing.assert_close([s[:, n] for s in flat((y, state))[1:]], part[1:])


@KINDS
def test_dropout_is_between_layers_in_training(kind):
    x = torch.randn(4, 2, F, dtype=torch.float64)
    for p in (0.4, 1.0):
        ours, theirs = pair(kind, num_layers=3, dropout=p)
        torch.manual_seed(1)
        found = flat(ours(x))
        torch.manual_seed(1)
        torch.testing.assert_close(found, flat(theirs(x)))
        ours.eval(), theirs.eval()
        torch.testing.assert_close(flat(ours(x)), flat(theirs(x)))
    ours.train()
    assert not torch.equal(found[0], flat(ours(x * 2))[0][:1])
    assert torch.equal(flat(ours(x))[0], flat(ours(x * 2))[0])  # p = 1: nothing of x arrives


@KINDS
@options
def test_a_trainable_state(kind, given):
    layer = getattr(fs.nn, kind)(F, H, trainable_state=True, dtype=torch.float64, **given)
    plain = getattr(nn, kind)(F, H, dtype=torch.float64, **given)
    names = ["h0", "c0"] if kind == "LSTM" else ["h0"]
    assert set(layer.state_dict()) - set(plain.state_dict()) == set(names)
    assert all(not getattr(layer, name).any() for name in names)  # zero at first
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k not in names})
    with torch.no_grad():
        for name in names:
            getattr(layer, name).normal_()
    x = torch.randn(4, 4, F, dtype=torch.float64)
    begin = [getattr(layer, name) for name in names]
    wide = tuple(s.expand(-1, 4, -1) for s in begin)
    expected = flat(plain(x, wide if len(names) == 2 else wide[0]))
    torch.testing.assert_close(flat(layer(x)), expected)
    found = torch.autograd.grad(flat(layer(x))[0].sum(), begin)
    torch.testing.assert_close(found, torch.autograd.grad(expected[0].sum(), begin))
    fresh = getattr(fs.nn, kind)(F, H, trainable_state=True, dtype=torch.float64, **given)
    fresh.load_state_dict(layer.state_dict())
    assert_same_parameters(fresh, layer, rtol=0)
    assert "trainable_state=True" in repr(layer)
    given_state = wide if len(names) == 2 else wide[0]
    torch.testing.assert_close(flat(layer(2 * x, given_state)), flat(plain(2 * x, given_state)))
    layer.reset_parameters()
    assert all(not getattr(layer, name).any() for name in names)


@KINDS
def test_copies_and_files(kind):
    layer = getattr(fs.nn, kind)(F, H, num_layers=2, trainable_state=True)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = getattr(fs.nn, kind)(F, H, num_layers=2, trainable_state=True)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(4, 2, F)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):  # noqa: S301
        assert torch.equal(other(x)[0], layer(x)[0])
        with torch.no_grad():
            other.weight_hh_l1.zero_()
        assert not torch.equal(other(x)[0], layer(x)[0])
    doubled = copy.deepcopy(layer).double()
    torch.testing.assert_close(doubled(x.double())[0].float(), layer(x)[0])


@KINDS
def test_functional_call(kind):
    layer, theirs = pair(kind, num_layers=2)
    x = torch.randn(4, 2, F, dtype=torch.float64)
    before = layer(x)[0]
    other = {name: torch.randn_like(p, requires_grad=True) for name, p in layer.named_parameters()}
    found, expected = (flat(functional_call(m, other, (x,))) for m in (layer, theirs))
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(part[0].sum(), other.values()) for part in (found, expected)]
    torch.testing.assert_close(*grads)
    assert torch.equal(layer(x)[0], before)
