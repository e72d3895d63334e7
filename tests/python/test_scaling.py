"""Scaling by streamed statistics, against NumPy's on the whole array."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fastseq as fs
from fastseq.data.scaling import affine as scalings
from fastseq.data.scaling.affine import Affine, scaling_from_state, scaling_state
from fastseq.data.scaling.moments import Moments
from fastseq.data.scaling.quantiles import Quantiles
from fastseq.distributed.replicas import Replicas
from fastseq.inference.export import DESCRIPTION, export_model
from fastseq.inference.scaled_model import ScaledModel

ALONE = Replicas(fs.distributed.Communicator())


def chunks(array, seqsize, batchsize):
    """Cut `array` (T, N, …) as a pass does."""
    return [
        array[t : t + seqsize, n : n + batchsize]
        for n in range(0, array.shape[1], batchsize)
        for t in range(0, array.shape[0], seqsize)
    ]


def measure(method, batches, structure, name="x"):
    named = (({name: tree}, counts) for tree, counts in batches)
    return scalings.measure({name: method}, named, {name: structure}, ALONE)[name]


def streamed(kind, array, keep=None, seqsize=7, batchsize=3):
    statistic = kind(array.shape[2:])
    masks = None if keep is None else chunks(torch.from_numpy(keep), seqsize, batchsize)
    for i, slab in enumerate(chunks(torch.from_numpy(array), seqsize, batchsize)):
        statistic.update(slab, None if masks is None else masks[i])
    return statistic


def expected(array, keep):
    """What counts of each feature, as fp64 vectors."""
    flat = array.reshape(-1, int(np.prod(array.shape[2:]))).astype(np.float64)
    if keep is not None:
        flat = flat[keep.reshape(-1)]
    return [column[~np.isnan(column)] for column in flat.T]


@st.composite
def datasets(draw):
    t, n, f = draw(st.integers(1, 20)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    array = rng.standard_normal((t, n, f)) * 10.0 ** rng.integers(-3, 4, f)
    array += draw(st.sampled_from([0, 1, -1000.0, 1e6])) * rng.integers(0, 2, f)
    array[..., 0] = draw(st.sampled_from([array[..., 0], np.full((t, n), 0.1)]))
    array[rng.random(array.shape) < draw(st.sampled_from([0, 0, 0.3, 0.97]))] = np.nan
    if draw(st.booleans()):
        array[: t // 2] = np.nan  # whole pieces of nothing
    keep = (
        None if draw(st.booleans()) else rng.random((t, n)) < draw(st.sampled_from([0, 0.2, 0.9]))
    )
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return array.astype(dtype), keep, draw(st.integers(1, 25)), draw(st.integers(1, 10))


@given(datasets())
def test_moments_are_those_of_the_whole(case):
    array, keep, seqsize, batchsize = case
    moments = streamed(Moments, array, keep, seqsize, batchsize)
    columns = expected(array, keep)
    np.testing.assert_array_equal(moments.count, [len(c) for c in columns])
    for f, column in enumerate(columns):
        if not len(column):
            continue
        deviation = column.std()
        rtol = 2e-6 if array.dtype == np.float32 else 1e-9
        tolerance = rtol * (deviation + (array.dtype == np.float64) * abs(column).max() * 1e-6)
        assert moments.mean[f] == pytest.approx(column.mean(), rel=1e-12, abs=tolerance)
        if (column == column[0]).all():
            assert moments.mean[f] == column[0]
            assert moments.deviation()[f] == 0
        else:
            assert moments.deviation()[f] == pytest.approx(deviation, rel=rtol, abs=tolerance)


@given(datasets())
def test_quantiles_of_few_samples_are_exact(case):
    array, keep, seqsize, batchsize = case
    found = streamed(Quantiles, array, keep, seqsize, batchsize).at([0, 0.25, 0.5, 0.9, 1])
    for f, column in enumerate(expected(array, keep)):
        if len(column):
            wanted = np.quantile(column, [0, 0.25, 0.5, 0.9, 1])
            np.testing.assert_allclose(found[:, f], wanted, rtol=1e-12, atol=1e-12)
        else:
            assert np.isnan(found[:, f]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("offset", "deviation"), [(1e6, 1.0), (0, 1e-25), (1e-20, 1e-23), (0, 1e25), (-3e30, 1e27)]
)
def test_moments_of_extreme_numbers(dtype, offset, deviation):
    rng = np.random.default_rng(0)
    array = (offset + deviation * rng.standard_normal((400, 5, 3))).astype(dtype)
    array[0, :, 1] = 0  # the first value says nothing of the others
    for part in (slice(0, 1), slice(0, None)):
        moments = streamed(Moments, array[part], seqsize=150, batchsize=5)
        whole = array[part].reshape(-1, 3).astype(np.longdouble)
        np.testing.assert_allclose(moments.deviation(), whole.std(0).astype(float), rtol=2e-6)
        error = abs(moments.mean - whole.mean(0).astype(float))
        assert (error <= 1e-6 * whole.std(0).astype(float)).all()


def test_constant_features_have_no_deviation_however_many_samples():
    values = np.array([0.1, 1e6 + 1 / 3, -1e-30, 1e30, 0])
    for dtype in (np.float32, np.float64):
        array = np.tile(values.astype(dtype), (200_001, 1, 1))
        array[:50_000, :, 1] = np.nan
        moments = streamed(Moments, array, seqsize=33_333)
        np.testing.assert_array_equal(moments.mean, values.astype(dtype))
        np.testing.assert_array_equal(moments.deviation(), 0)


def test_moments_of_slow_drifts_and_long_pieces():
    rng = np.random.default_rng(0)
    drift = np.linspace(-1e5, 1e5, 30000)[:, None, None]
    array = (rng.standard_normal((30000, 2, 20)) + drift).astype(np.float32)
    flat = array.reshape(-1, 20).astype(np.float64)
    for seqsize in (30000, 1000):
        moments = streamed(Moments, array, None, seqsize, 2)
        np.testing.assert_allclose(moments.mean, flat.mean(0), atol=1e-6 * flat.std())
        np.testing.assert_allclose(moments.deviation(), flat.std(0), rtol=1e-6)


def rank_errors(column, found, fractions):
    below, upto = np.searchsorted(column, found, "left"), np.searchsorted(column, found, "right")
    wanted = np.array(fractions) * len(column)
    return np.maximum(np.maximum(below - wanted, wanted - upto), 0) / len(column)


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "repeating", "waves"])
def test_quantiles_of_many_samples_are_close(order):
    rng = np.random.default_rng(0)
    samples = rng.standard_normal(1_500_000).astype(np.float32)
    samples = {
        "random": lambda: samples,
        "ascending": lambda: np.sort(samples),
        "descending": lambda: np.sort(samples)[::-1].copy(),
        "repeating": lambda: np.round(samples),
        "waves": lambda: np.sin(np.arange(len(samples)) / 12345).astype(np.float32),
    }[order]()
    array = samples.reshape(-1, 3, 1)
    with_gaps = np.where(rng.random(array.shape) < 0.5, array, np.nan).astype(np.float32)
    both = np.concatenate([array, with_gaps], 2)
    fractions = [0.01, 0.25, 0.5, 0.75, 0.99]
    without, found = (streamed(Quantiles, a, seqsize=20000).at(fractions) for a in (array, both))
    np.testing.assert_array_equal(without[:, 0], found[:, 0])  # whatever other features lack
    for f, column in enumerate(expected(both, None)):
        errors = rank_errors(np.sort(column), found[:, f], fractions)
        assert errors.max() < 0.01  # 4 standard errors of half of 65536 samples


def test_quantiles_depend_on_the_samples_and_their_order_alone():
    array = np.random.default_rng(0).standard_normal((300_000, 1, 2))
    found = [streamed(Quantiles, array, None, seqsize).at([0.3]) for seqsize in (1000, 4567)]
    np.testing.assert_array_equal(*found)


def test_quantiles_of_a_feature_that_begins_late():
    rng = np.random.default_rng(0)
    array = rng.standard_normal((400_000, 1, 2)).astype(np.float32)
    array[rng.random(400_000) < 0.1] = np.nan
    array[:300_000, :, 1] = np.nan
    found = streamed(Quantiles, array, None, 10_000, 1).at([0.2, 0.5])
    for f, column in enumerate(expected(array, None)):
        assert rank_errors(np.sort(column), found[:, f], [0.2, 0.5]).max() < 0.015


def test_few_points_are_kept_of_many_samples():
    quantiles = Quantiles((100,))
    for _ in range(60):
        quantiles.update(torch.randn(5000, 1, 100))
    held = [quantiles._rows, *(rows for _, rows in quantiles._waiting)]
    assert sum(part.nbytes for part in held) < 40e6 < 60 * 5000 * 100 * 4


@pytest.mark.parametrize("method", ["standard", "robust"])
def test_measure(method):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((60, 8, 3)).astype(np.float32)
    a[..., 1] = 7
    b = rng.exponential(size=(60, 8, 2, 2))
    b[:30] = np.nan
    keep = rng.random((60, 8)) < 0.8
    labels = np.ones((60, 8, 1), np.int64)
    parts = [chunks(torch.from_numpy(part), 7, 3) for part in (a, b, labels, keep)]
    batches = [({"a": pa, "rest": (pb, pl)}, pk) for pa, pb, pl, pk in zip(*parts, strict=True)]
    structure = batches[0][0]
    found = measure(method, iter(batches), structure)
    assert found["rest"][1] is None
    for affine, array in ((found["a"], a), (found["rest"][0], b)):
        flat = array.reshape(-1, int(np.prod(array.shape[2:])))[keep.reshape(-1)].astype(float)
        if method == "standard":
            center, scale = np.nanmean(flat, 0), np.nanstd(flat, 0)
        else:
            center = np.nanmedian(flat, 0)
            scale = (np.nanquantile(flat, 0.75, 0) - np.nanquantile(flat, 0.25, 0)) / 1.349
        scale[scale == 0] = 1
        assert affine.center.dtype == affine.scale.dtype == torch.float64
        assert affine.center.shape == array.shape[2:]
        np.testing.assert_allclose(affine.center.reshape(-1), center, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(affine.scale.reshape(-1), scale, rtol=1e-6)


def test_a_feature_that_is_nearly_always_zero_is_scaled_by_its_range():
    x = torch.zeros(100, 1, 1)
    x[7], x[50] = -1e-6, 3e-6
    found = measure("robust", [(x, None)], x)
    assert (found.center.item(), found.scale.item()) == (0, pytest.approx(4e-6, rel=1e-6))


@pytest.mark.parametrize("method", ["standard", "robust"])
def test_half_precision_is_measured_in_fp32(method):
    x = torch.linspace(0, 1000, 5000, dtype=torch.bfloat16).view(-1, 1, 1)
    one, other = (measure(method, [(a, None)], a) for a in (x, x.double()))
    torch.testing.assert_close(one.center, other.center, rtol=1e-6, atol=0)
    torch.testing.assert_close(one.scale, other.scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["standard", "robust"])
@pytest.mark.parametrize("bad", ["nan", "masked", "inf", "some inf", "no batch", "empty"])
def test_features_that_cannot_be_scaled_are_named(method, bad):
    x = torch.randn(30, 4, 2, 3)
    keep = torch.ones(30, 4, dtype=torch.bool)
    if bad in ("nan", "inf"):
        x[..., 1, 2] = float(bad)
    if bad == "some inf":
        x[:20, :, 1, 2] = -torch.inf
        x[0, :, 1, 2] = 3
    if bad == "masked":
        keep[:] = False
    batches = [((x[:17], x[:17]), keep[:17]), ((x[17:], x[17:]), keep[17:])]
    batches = {"no batch": [], "empty": [((x[:0], x[:0]), keep[:0])]}.get(bad, batches)
    feature = "1, 2" if bad in ("nan", "inf", "some inf") else "0, 0"
    with pytest.raises(ValueError, match=rf"y\[0\] cannot be scaled: feature {feature} has no"):
        measure(method, batches, (x, x), "y")


def test_unknown_methods_are_refused():
    with pytest.raises(
        ValueError, match=r"the scaling of x must be one of \('standard', 'robust'\)"
    ):
        measure("minmax", [], torch.zeros(0, 0, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scaling_and_undoing_are_as_accurate_as_the_dtype(dtype):
    offset = 100.0 if dtype.itemsize == 2 else 1e6
    center = torch.tensor([offset + 1 / 3], dtype=torch.float64)
    affine = Affine(center, torch.tensor([0.7], dtype=torch.float64))
    x = offset + torch.randn(50, 4, 1, dtype=torch.float64)
    exact = (x - affine.center) / affine.scale
    scaled = affine.apply(x, dtype)
    assert scaled.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(scaled.double(), exact, rtol=eps, atol=eps)
    raw = affine.undo(scaled)
    assert raw.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = scaled.double() * affine.scale + affine.center
    torch.testing.assert_close(raw.double(), exact, rtol=torch.finfo(raw.dtype).eps, atol=0)
    wide = Affine(affine.center, affine.scale, wide=True).undo(scaled)
    torch.testing.assert_close(wide, exact, rtol=1e-15, atol=0)


def affine(center, scale):
    return Affine(*(torch.tensor([float(v)], dtype=torch.float64) for v in (center, scale)))


class Pair(NamedTuple):
    one: object
    two: object


def test_saved_and_loaded_again(tmp_path):
    tree = {
        "a/b": (affine(1, 2), None),
        "tuple": Pair(affine(1e6 + 1 / 3, 4), {"center": affine(5, 6)}),
    }
    for scaling in (tree, tree["tuple"], tree["a/b"][0], None):
        torch.save(scaling_state(scaling), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        loaded = scaling_from_state(state)
        torch.testing.assert_close(scaling_state(loaded), state, rtol=0, atol=0)
        torch.testing.assert_close(scaling_state(loaded), scaling_state(scaling), rtol=0, atol=0)
    assert loaded is None
    arrays = {"center": np.array([1.5]), "scale": np.array([2.0])}
    assert scaling_from_state(arrays).center.item() == 1.5
    assert not scaling_from_state(arrays).wide
    wide = scaling_from_state(scaling_state(Affine(torch.ones(1), torch.ones(1), wide=True)))
    assert wide.wide


@pytest.mark.parametrize(
    "state",
    [
        {"center": torch.zeros(1)},
        {"center": torch.zeros(1), "scale": torch.zeros(1)},
        {"center": torch.zeros(1), "scale": torch.ones(2)},
        {"dict": {"a": {"b": {}}}},
        {"tuple": {}, "dict": {}},
    ],
)
def test_other_states_are_refused(state):
    with pytest.raises(ValueError, match="the scaling saved here was not written by fastseq"):
        scaling_from_state(state)


class TwoOutputs(nn.Module):
    def forward(self, x):
        return {"sum": x["a"] + x["b"], "class": x["b"]}


def test_a_scaled_model_takes_and_gives_raw_data():
    x = {"a": torch.full((2, 3, 1), 7.0), "b": torch.ones(2, 3, 1)}
    model = ScaledModel(
        TwoOutputs(), {"a": affine(5, 2), "b": None}, {"sum": affine(100, 10), "class": None}
    )
    y, state = model(x)
    assert state is None
    torch.testing.assert_close(y, {"sum": torch.full((2, 3, 1), 120.0), "class": x["b"]})


def test_a_scaled_model_carries_the_state():
    lstm = nn.LSTM(1, 1)
    model = ScaledModel(lstm, affine(1e4, 3), affine(-5, 0.5))
    x = 1e4 + torch.randn(12, 2, 1)
    expected = lstm((x - 1e4) / 3)[0] * 0.5 - 5
    y, state = model(x[:5])
    torch.testing.assert_close(y, expected[:5])
    y, state = model(x[5:], state)
    torch.testing.assert_close(y, expected[5:])
    assert set(model.state_dict()) > {f"module.{name}" for name in lstm.state_dict()}
    assert sum("layers" in name for name in model.state_dict()) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # of PyTorch about itself
def test_exported_with_its_scaling(tmp_path, dtype):
    net = fs.nn.Chain(fs.nn.LSTM(2, 4), nn.Linear(4, 1)).to(dtype)
    x_scaling = Affine(torch.tensor([1e6 + 0.25, -3.0]).double(), torch.tensor([2.0, 5.0]).double())
    model = ScaledModel(net, x_scaling, affine(1000, 20))
    x = torch.randn(9, 5, 2).to(dtype) * 3 + torch.tensor([1e6, -3.0], dtype=dtype)
    export_model(model, x[:1, :1], tmp_path / "model.pt2")
    extra = {DESCRIPTION: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    starts = json.loads(extra[DESCRIPTION])["state"]
    assert [s["start"] for s in starts] == [[[[0.0] * 4]]] * 2
    state = tuple(torch.zeros(1, 5, 4, dtype=dtype) for _ in starts)
    y, after = program(x[:4], state)
    rest, _ = program(x[4:], after)
    scaled = ((x.double() - x_scaling.center) / x_scaling.scale).to(dtype)
    with torch.no_grad():
        expected = net(scaled)[0].double() * 20 + 1000
    torch.testing.assert_close(torch.cat([y, rest]).double(), expected, rtol=1e-6, atol=1e-6)
