"""Layers and networks over whole sequences: against NumPy and torch, and padding changes nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastseq as fs
from fastseq.nn import (
    LSTMFCN,
    TCN,
    InceptionTime,
    InstanceScale,
    PaddedBatchNorm,
    PaddedConv,
    Pool,
    PooledRNN,
    Transformer,
)

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=5)
NETWORKS = {
    "lstm-fcn": lambda **kw: LSTMFCN(3, 2, width=4, kernels=(8, 5, 3), hidden_size=4, **kw),
    "strided lstm-fcn": lambda pool="mean": LSTMFCN(
        3, 2, width=4, kernels=(8, 5, 3), hidden_size=4, pool=pool, stride=3 if pool else 1
    ),
    "fcn": lambda **kw: LSTMFCN(3, 2, width=4, kernels=(7, 4), hidden_size=0, **kw),
    "inception": lambda **kw: InceptionTime(3, 2, width=2, kernels=(9, 6, 3), depth=4, **kw),
    "inception of one feature": lambda **kw: InceptionTime(1, 2, width=2, depth=3, **kw),
    "pooled gru": lambda **kw: PooledRNN(3, 2, "gru", 4, 2, bidirectional=True, **kw),
    "pooled lstm": lambda **kw: PooledRNN(3, 2, "lstm", 4, **kw),
    "tcn": lambda **kw: TCN(3, 2, width=4, kernel_size=3, depth=2, **kw),
    "transformer": lambda **kw: Transformer(3, 2, width=8, heads=2, dropout=0.0, **kw),
    "causal transformer": lambda **kw: Transformer(
        3, 2, width=8, heads=2, dropout=0.0, causal=True, **kw
    ),
}


def batch(lengths, features=3, past=float("nan"), steps=None):
    """Return padded sequences, with `past` in the padding, their lengths, and each alone."""
    rng = torch.Generator().manual_seed(sum(lengths))
    each = [torch.randn(n, features, generator=rng) for n in lengths]
    x = torch.full((steps or max(lengths), len(lengths), features), past)
    for n, one in enumerate(each):
        x[: len(one), n] = one
    return x, torch.tensor(lengths), each


def network(name, **kw):
    torch.manual_seed(0)
    model = NETWORKS[name](**kw)
    for module in model.modules():  # as after training
        if isinstance(module, PaddedBatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias)
    return model, 1 if "one feature" in name else 3


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS)
def test_a_batch_is_its_sequences_alone(name, lengths):
    for pool in ("last+mean+max", None):
        model, features = network(name, pool=pool)
        model.eval()
        x, n, each = batch(lengths, features)
        found = model(x, lengths=n)
        for i, one in enumerate(each):
            alone = model(one.unsqueeze(1))
            mine = found[i : i + 1] if pool else found[: len(one), i : i + 1]
            torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_more_padding_changes_nothing_in_training(name):
    results = []
    for past, steps in ((float("nan"), None), (7.0, 30)):
        model, features = network(name)
        x, n, _ = batch([12, 5, 9], features, past, steps)
        loss = model.train()(x, lengths=n).square().sum()
        loss.backward()
        buffers = dict(model.named_buffers())
        results.append((loss, {k: p.grad for k, p in model.named_parameters()}, buffers))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["tcn", "causal transformer"])
def test_a_causal_network_sees_no_later_step(name):
    model = network(name, pool=None)[0].eval()
    x = torch.randn(20, 2, 3)
    changed = torch.cat([x[:12], torch.randn(8, 2, 3)])
    torch.testing.assert_close(model(changed)[:12], model(x)[:12], rtol=0, atol=1e-6)
    assert not torch.allclose(model(changed)[12:], model(x)[12:])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("pooled lstm", "tcn") else pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_a_long_sequence_is_told_by_its_shape(name):
    """A network learns where a bump lies, whatever its height: the last step does not tell."""
    torch.manual_seed(0)
    model, features = network(name)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 64)
    x = 0.1 * rng.standard_normal((40, 64, features)).astype(np.float32)
    for n, late in enumerate(y):
        x[8 + 16 * late : 16 + 16 * late, n] += np.hanning(8)[:, None] * (1 + rng.random())
    if "fcn" in name or "inception" in name:  # a mean does not tell when
        x += np.linspace(-1, 1, 40, dtype=np.float32)[:, None, None]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    data, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model.train()(data), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.eval()(data).argmax(1) == labels).float().mean() > 0.95


@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, stride=st.integers(2, 5))
def test_strides_are_those_of_numpy(lengths, stride):
    """Convolutions get maxima, and the LSTM means, of each few steps of a sequence alone."""
    model, seen = LSTMFCN(3, 2, width=4, kernels=(3, 3), hidden_size=4, stride=stride).eval(), []
    for layer in (model.blocks[0], model.blocks[1], model.lstm):
        layer.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    x, n, each = batch(lengths)
    model(x, lengths=n)
    (_, first), (pooled, _), (means, _) = seen
    for i, one in enumerate(each):
        cuts = range(stride, len(one), stride)
        alone = np.split(first[i, :, : len(one)].detach().numpy(), cuts, 1)
        own = pooled[i, :, : len(alone)].detach().numpy()
        np.testing.assert_array_equal(own, np.stack([part.max(1) for part in alone], 1))
        expected = [part.mean(0) for part in np.split(one.numpy(), cuts)]
        np.testing.assert_allclose(means[: len(alone), i], np.stack(expected), atol=1e-6)


def test_a_stride_needs_one_output_per_sequence():
    with pytest.raises(ValueError, match="stride must be 1 with pool=None"):
        LSTMFCN(3, 2, pool=None, stride=2)


@given(lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5))
def test_pool_is_that_of_numpy(lengths):
    x, n, each = batch([max(k, 1) for k in lengths], steps=8)
    n = torch.tensor(lengths)
    found = Pool("max+last+mean")(x, lengths=n)
    for row, one, k in zip(found, each, lengths, strict=True):
        values = one.numpy()
        expected = np.concatenate([values.max(0), values[-1], values.mean(0)]) if k else np.zeros(9)
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
    whole = torch.randn(8, 3, 2)
    torch.testing.assert_close(
        Pool("last+mean+max")(whole), Pool("last+mean+max")(whole, lengths=torch.full((3,), 8))
    )


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, beside=st.booleans(), features=st.sampled_from([None, 0, 1, 2]))
def test_instance_scaling_is_that_of_numpy(lengths, beside, features):
    x, n, each = batch(lengths)
    each[0][:, 1] = x[: lengths[0], 0, 1] = 7.0  # a constant feature
    found = InstanceScale(beside=beside, features=features)(x, lengths=n).double().numpy()
    for i, one in enumerate(each):
        one = one.double().numpy()
        with np.errstate(invalid="ignore"):
            expected = np.nan_to_num((one - one.mean(0)) / one.std(0))
        if i == 0:
            expected[:, 1] = 0
        expected = expected[:, :features]
        rest = one[:, expected.shape[1] :]
        if beside:
            rest = np.concatenate([np.arcsinh(one[:, : expected.shape[1]]), rest], 1)
        expected = np.concatenate([rest, expected] if beside else [expected, rest], 1)
        np.testing.assert_allclose(found[: len(one), i], expected, rtol=1e-4, atol=1e-5)
        assert not found[len(one) :, i].any()


def test_pool_refuses_other_words():
    with pytest.raises(ValueError, match=r"got 'last\+avg'"):
        Pool("last+avg")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
@pytest.mark.parametrize(("size", "dilation"), [(5, 1), (4, 1), (3, 2), (1, 1)])
def test_convolution_is_that_of_torch(size, dilation):
    conv = PaddedConv(2, 3, size, dilation=dilation)
    x = torch.randn(4, 2, 11)
    expected = nn.functional.conv1d(x, conv.weight, conv.bias, dilation=dilation, padding="same")
    torch.testing.assert_close(conv(x), expected)
    conv.causal = True
    more = dilation * (size - 1)
    expected = nn.functional.conv1d(
        nn.functional.pad(x, (more, 0)), conv.weight, conv.bias, dilation=dilation
    )
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_normalisation_is_that_of_torch_over_the_steps_that_count(momentum):
    ours = PaddedBatchNorm(3, momentum=momentum)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs = nn.BatchNorm1d(3, momentum=momentum)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for lengths in ([6, 2, 9], [1, 1], [9, 9]):
        x, n, each = batch(lengths)
        mask = torch.arange(len(x)) < n.unsqueeze(1)
        found = ours(x.permute(1, 2, 0), mask.unsqueeze(1))
        rows = torch.cat(each)  # (steps that count, C)
        expected = theirs(rows)
        torch.testing.assert_close(found.permute(0, 2, 1)[mask], expected, rtol=1e-5, atol=1e-6)
        assert not found.permute(0, 2, 1)[~mask].any()
        found.square().sum().backward()
        expected.square().sum().backward()
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_a_single_value_is_normalised_to_the_bias():
    norm = PaddedBatchNorm(2)
    nn.init.normal_(norm.bias)
    found = norm(torch.randn(1, 2, 1))
    torch.testing.assert_close(found, norm.bias.detach().view(1, 2, 1), check_stride=False)
    assert norm.running_mean.tolist() == [0, 0]
    assert norm.running_var.tolist() == [1, 1]


@pytest.mark.filterwarnings("error")
def test_fit_does_not_warn_of_padding_that_is_left_out():
    each = batch([12, 5, 9, 7])[2]
    model = LSTMFCN(3, 1, width=4, pool=None)
    spec = {"epochs": 2, "batchsize": 4, "seqsize": 12}
    loss = fs.seqloss(nn.functional.mse_loss)
    est = fs.Estimator(model, loss, torch.optim.AdamW, spec, comm=None, progress=False)
    est.fit(each, [one[:, :1] for one in each])
    found = est.predict(each)
    for one, y in zip(each, found, strict=True):
        np.testing.assert_allclose(est.predict(one[:, None])[:, 0], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*NETWORKS, "pool"])
def test_files_restore_networks_without_their_code(name, tmp_path):
    model = Pool("mean") if name == "pool" else network(name, pool=None)[0].eval()
    if name == "pool":
        model = nn.Sequential(nn.Linear(3, 2), model)
    loss = fs.seqloss(nn.functional.mse_loss)
    spec = {"epochs": 1, "batchsize": 4, "seqsize": 12}
    est = fs.Estimator(model, loss, torch.optim.AdamW, spec, comm=None, progress=False)
    est.save(tmp_path / "file")
    again = fs.Estimator.load(tmp_path / "file").model.eval()
    x = torch.randn(12, 4, 1 if "one feature" in name else 3)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    "nested",
    [
        fs.nn.Chain,
        nn.Sequential,
        lambda net: fs.nn.Chain(nn.Sequential(net)),
        lambda net: fs.nn.Chain(nn.Identity(), fs.nn.Chain(net)),
    ],
    ids=["Chain", "Sequential", "Sequential in Chain", "Chain in Chain"],
)
def test_networks_within_others_know_where_sequences_end(nested):
    each = batch([12, 5, 9, 7])[2]
    net = network("lstm-fcn", pool=None)[0]
    loss = fs.seqloss(nn.functional.mse_loss)
    spec = {"epochs": 1, "batchsize": 4, "seqsize": 12}
    est = fs.Estimator(nested(net), loss, torch.optim.AdamW, spec, comm=None, progress=False)
    errors = []
    for one, y in zip(each, est.predict(each), strict=True):
        alone = net.eval()(one[:, None])[:, 0].detach()
        np.testing.assert_allclose(y, alone, rtol=1e-4, atol=1e-5)
        errors.append(alone.square())
    zeros = [torch.zeros(len(one), 2) for one in each]
    expected = torch.cat(errors).mean().item()
    assert est.evaluate(each, zeros) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_count_in_whatever_units_a_sequence_is(dtype):
    rng = np.random.default_rng(0)
    shapes = rng.standard_normal((30, 1, 2))
    sizes = 10.0 ** np.arange(-8, 16, 4)
    x = torch.tensor(shapes * sizes[:, None], dtype=dtype)
    expected = (shapes - shapes.mean(0)) / shapes.std(0)
    for found in InstanceScale()(x).double().numpy().swapaxes(0, 1):
        np.testing.assert_allclose(found[:, None], expected, rtol=1e-4, atol=1e-4)
    constant = (
        torch.full((1000, 4, 1), 0.1, dtype=dtype) * torch.tensor([1.0, 3, 7e5, 1e-9])[:, None]
    )
    assert not InstanceScale()(constant).any()
    far = torch.tensor(1e6 + shapes, dtype=torch.float64)
    np.testing.assert_allclose(InstanceScale()(far).numpy(), expected, rtol=1e-7)


@pytest.mark.parametrize("size", ["n_in", "n_out", "width"])
@pytest.mark.parametrize("kind", [fs.nn.LSTMFCN, fs.nn.InceptionTime, fs.nn.TCN, fs.nn.Transformer])
def test_sizes_are_checked(kind, size):
    sizes = {"n_in": 2, "n_out": 1}
    with pytest.raises(ValueError, match=f"{size} must be at least 1, got 0"):
        kind(**{**sizes, size: 0})
    with pytest.raises(TypeError, match=f"{size} must be an integer, got 2.5"):
        kind(**{**sizes, size: 2.5})


@pytest.mark.parametrize(
    ("kind", "size"),
    [(fs.nn.InceptionTime, "depth"), (fs.nn.TCN, "depth"), (fs.nn.TCN, "kernel_size"),
     (fs.nn.Transformer, "depth"), (fs.nn.Transformer, "heads")],
)  # fmt: skip
def test_further_sizes_are_checked(kind, size):
    with pytest.raises(ValueError, match=f"{size} must be at least 1, got 0"):
        kind(2, 1, **{size: 0})


@pytest.mark.parametrize("kind", [fs.nn.LSTMFCN, fs.nn.InceptionTime, fs.nn.TCN, fs.nn.Transformer])
@pytest.mark.parametrize(
    ("lengths", "what"), [([3, 7], "between 0 and 6"), ([-1, 3], "between 0"), ([3], r"\(2,\)")]
)
def test_lengths_are_checked(kind, lengths, what):
    with pytest.raises(ValueError, match=what):
        kind(2, 1)(torch.zeros(6, 2, 2), torch.tensor(lengths))


def test_pool_says_what_it_takes():
    with pytest.raises(TypeError, match='such as "last\\+mean", got 3'):
        fs.nn.Pool(3)


def test_batch_norm_refuses_other_channels_in_training_too():
    norm = fs.nn.PaddedBatchNorm(3)
    for mask in (None, torch.ones(2, 1, 5, dtype=torch.bool)):
        with pytest.raises(RuntimeError, match=r"input must be \(N, 3, T\), got \(2, 1, 5\)"):
            norm(torch.zeros(2, 1, 5), mask)
