"""Random kernels: features against NumPy, thresholds, and which batch is measured."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from fastseq.nn import RandomKernels, Rocket, ops
from fastseq.nn.ops.random_kernels import plain_random_kernels

NATIVE = torch.ops.fastseq
CHOSEN = list(itertools.combinations(range(9), 3))
PATHS = {"native": ops.random_kernels, "plain": plain_random_kernels}


def convolved(series, dilation, steps):
    """Return three times all kernels' convolutions of a series of integers, ``(84, steps)``."""
    weights = np.full((84, 9), -1)
    for row, chosen in zip(weights, CHOSEN, strict=True):
        row[list(chosen)] = 2
    padded = np.zeros(steps + 8 * dilation, int)
    padded[4 * dilation :][: len(series)] = series
    taps = np.stack([padded[j * dilation :][:steps] for j in range(9)])
    return weights @ taps


def features(x, lengths, members, dilations, thresholds, least):
    """Compute with integers; thresholds are between integers."""
    found = []
    for n, length in enumerate(lengths):
        for group, dilation, least_of_all in zip(members, dilations, thresholds, strict=True):
            series = sum(x[:length, n, f] for f in group if f < x.shape[2])
            steps = max(length, least)
            above = convolved(np.broadcast_to(series, length), dilation, steps)
            found.append((above > 3 * least_of_all[:, None]).mean(1))
    return np.reshape(found, (len(lengths), 84 * len(dilations)))


def case(steps, count, features, lengths=None, seed=0):
    """Return small integers, and a layer's other arguments."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-20, 21, (steps, count, features))
    lengths = rng.integers(0, steps + 1, count) if lengths is None else lengths
    members = np.sort(rng.integers(0, features + 1, (2, 2)), 1)
    dilations = [1, 1 + int(rng.integers(0, max(1, steps // 2)))]
    thresholds = (rng.integers(-40, 40, (2, 84)) + 0.5) / 3
    return x, lengths, members, dilations, thresholds


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=25, deadline=None)
@given(
    steps=st.sampled_from([0, 1, 3, 8, 9, 16, 17, 40]), count=st.integers(0, 3),
    features_=st.integers(1, 3), longer=st.sampled_from([-30, 0, 1, 30]), seed=st.integers(0, 99),
)  # fmt: skip
def test_features_are_those_of_numpy(path, dtype, steps, count, features_, longer, seed):
    x, lengths, members, dilations, thresholds = case(steps, count, features_, seed=seed)
    least = max(1, steps + longer)
    expected = features(x, lengths, members, dilations, thresholds, least)
    given_x = torch.from_numpy(x).to(dtype)
    for n, length in enumerate(lengths):
        given_x[length:, n] = torch.nan  # never read
    args = torch.from_numpy(members), dilations, torch.from_numpy(thresholds).to(dtype), least
    found = PATHS[path](given_x, torch.from_numpy(lengths), *args)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    strided = torch.full((count, features_, 2 * steps), 7.0).to(dtype).permute(2, 0, 1)[::2]
    strided.copy_(torch.from_numpy(x))
    expected = features(x, [steps] * count, members, dilations, thresholds, least)
    found = PATHS[path](strided, None, *args)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 60), n_in=st.integers(1, 12), double=st.booleans(), few=st.booleans())
def test_both_paths_give_the_same_bits(steps, n_in, double, few):
    """Thresholds are quantiles of few values, so that rounding decides."""
    rng = torch.Generator().manual_seed(steps)
    x = torch.randn(steps, 3, n_in, generator=rng, dtype=torch.float64 if double else torch.float32)
    x = x.round(decimals=1) if few else x
    layer = RandomKernels(n_in, steps, groups=3).to(x.dtype)
    layer(x)
    lengths = torch.randint(1, steps + 1, (3,), generator=rng)
    for given_lengths in (None, lengths):
        args = layer.members, layer.dilations, layer.thresholds, layer.steps
        found = [run(x, given_lengths, *args) for run in PATHS.values()]
        assert torch.equal(*found)


@pytest.mark.parametrize("run", PATHS.values(), ids=PATHS)
def test_values_that_are_not_finite_show(run):
    members, thresholds = torch.tensor([[0, 2], [1, 2]]), torch.zeros(2, 84)
    x = torch.randn(20, 2, 2)
    before = run(x, None, members, [1, 2], thresholds, 30)
    for bad in (torch.nan, torch.inf):
        x[7, 1, 0] = bad
        after = run(x, None, members, [1, 2], thresholds, 30)
        assert after[1, :84].isnan().all()
        after[1, :84] = before[1, :84]
        assert torch.equal(after, before)


def test_operators_are_registered_as_torch_wants():
    layer = RandomKernels(2, 12, groups=2)
    args = torch.randn(12, 3, 2), torch.tensor([12, 5, 9]), layer.members, layer.dilations
    opcheck(NATIVE.random_kernels.default, (*args, layer.thresholds, 12))
    buffers = layer.thresholds.clone(), layer.ready.clone()
    opcheck(NATIVE.measure_thresholds_.default, (*buffers, *args, 0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(9, 1)}, "x must be"),
        ({"x": torch.zeros(9, 1, 2).half()}, "float32 or float64"),
        ({"lengths": torch.tensor([10])}, "between 0 and 9"),
        ({"lengths": torch.tensor([1, 2])}, "1 int64 numbers"),
        ({"members": torch.tensor([[3]])}, "between 0 and 2"),
        ({"dilations": [0]}, "dilations must be"),
        ({"dilations": [1, 2]}, "for 2 dilations"),
        ({"thresholds": torch.zeros(1, 83)}, r"thresholds must be \(1, 84\)"),
        ({"least_steps": 0}, "least_steps must be"),
    ],
)
def test_the_operator_checks_its_arguments(changed, message):
    args = {
        "x": torch.zeros(9, 1, 2), "lengths": None, "members": torch.tensor([[0]]),
        "dilations": [1], "thresholds": torch.zeros(1, 84), "least_steps": 1, **changed,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        NATIVE.random_kernels(*args.values())


def test_thresholds_are_quantiles_of_the_first_batch():
    layer = RandomKernels(3, 20, groups=4)
    x, lengths, *_ = case(20, 9, 3)
    given_x, given_lengths = torch.from_numpy(x).float(), torch.from_numpy(lengths)
    given_x[lengths.max() :] = torch.nan
    layer(given_x, given_lengths)
    assert layer.ready
    levels = np.arange(1, 4 * 84 + 1) * (1 + 5**0.5) / 2 % 1
    for group, dilation, found, level in zip(
        layer.members.tolist(), layer.dilations, layer.thresholds, levels.reshape(4, 84),
        strict=True,
    ):  # fmt: skip
        sums = [sum(x[:length, n, f] for f in group if f < 3) for n, length in enumerate(lengths)]
        values = np.concatenate([convolved(s, dilation, len(s)) for s in sums], 1) / 3
        expected = [np.quantile(row, q) for row, q in zip(values, level, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_rounding_does_not_decide_where_values_repeat():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(12, 8, 2, generator=rng).repeat_interleave(20, 0)  # flat parts
    layer = RandomKernels(2, 240)
    layer(x)
    found = layer.eval()(x)
    torch.testing.assert_close(layer.double()(x.double()), found.double(), rtol=1e-6, atol=0)


def test_long_batches_are_sampled():
    layer = RandomKernels(1, 500, groups=2)
    x = torch.randn(500, 40, 1)
    rows = layer(x).mean(0)
    levels = torch.arange(1, 169) * (1 + 5**0.5) / 2 % 1
    assert (rows - (1 - levels)).abs().max() < 0.08  # five deviations of 1024 steps


def test_only_the_first_batch_in_training_is_measured():
    layer = RandomKernels(2, 30)
    x = torch.randn(30, 4, 2)
    layer.eval()(x)
    assert not layer.ready
    assert not layer.thresholds.any()
    layer.train()(torch.full_like(x, torch.nan))
    layer(x, torch.zeros(4, dtype=torch.long))
    assert not layer.ready  # there was nothing to measure
    layer(x)
    kept = layer.thresholds.clone()
    layer(7 * x)
    assert torch.equal(layer.thresholds, kept)
    again = copy.deepcopy(layer)
    again.load_state_dict(pickle.loads(pickle.dumps(layer)).state_dict())  # noqa: S301 (our own)
    assert torch.equal(again.eval()(x), layer.eval()(x))


def test_compiled_layers_measure_too():
    torch.manual_seed(0)
    x, model = torch.randn(30, 4, 2), Rocket(2, 1, 30, groups=2)
    other = copy.deepcopy(model)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), model(x))
    assert torch.equal(other.kernels.thresholds, model.kernels.thresholds)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    layer = RandomKernels(2, 30, groups=2)
    x = torch.randn(30, 4, 2).to(dtype)
    assert layer(x).dtype == dtype
    expected = copy.deepcopy(layer).float()(x.float())
    torch.testing.assert_close(layer(x).float(), expected, rtol=1e-2, atol=1e-2)


def test_what_is_drawn():
    layer = RandomKernels(20, 1000, groups=200)
    sizes = (layer.members < 20).sum(1)
    assert layer.members.shape == (200, 9)
    assert set(sizes.tolist()) == set(range(1, 10))
    for row, size in zip(layer.members.tolist(), sizes, strict=True):
        assert len({*row} - {20}) == size
    assert (layer.dilations[0], layer.dilations[-1]) == (1, int(999 / 8))
    assert torch.equal(RandomKernels(20, 1000, 200).members, layer.members)
    assert not torch.equal(RandomKernels(20, 1000, 200, seed=1).members, layer.members)
    assert set(RandomKernels(1, 5).dilations) == {1}
    with pytest.raises(ValueError, match="at least 1, got 3, 0 and 24"):
        RandomKernels(3, 0)
    with pytest.raises(ValueError, match=r"x must be \(T, N, 3\), got \(5, 2, 4\)"):
        RandomKernels(3, 9)(torch.zeros(5, 2, 4))


def test_features_of_different_parts_are_not_summed_up():
    layer = RandomKernels(20, 1000, 100, parts=(15, 5))
    for own, size, other in ((layer.members[:100], 15, 0), (layer.members[100:], 5, 15)):
        drawn = [set(row.tolist()) - {20} for row in own]
        assert {len(one) for one in drawn} >= set(range(1, min(size, 9) - 2))
        assert set().union(*drawn) == set(range(other, other + size))
    assert layer.dilations[:100] == layer.dilations[100:]
    whole = RandomKernels(3, 50, 4, parts=(2, 1))
    x = torch.randn(50, 6, 3)
    whole(x)
    whole.eval()
    first, second = whole(x).split(4 * 84, 1)
    changed = x.clone()
    changed[..., 2] = 0
    assert torch.equal(whole(changed)[:, : 4 * 84], first)
    assert not torch.equal(whole(changed)[:, 4 * 84 :], second)
    with pytest.raises(ValueError, match="parts must be at least 1 and 3 in all"):
        RandomKernels(3, 50, parts=(2, 2))


def test_a_batch_that_is_constant_over_time_is_not_measured():
    layer = RandomKernels(2, 60)
    layer(torch.zeros(60, 4, 2))
    assert not layer.ready
    x = torch.randn(60, 4, 2)
    x[..., 1] = 0  # a feature may be
    layer(x)
    assert layer.ready
