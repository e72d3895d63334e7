"""Whatever is passed as data: the result that plain NumPy gives, or an error of ours, nothing else.

The model is linear and one update is one gradient over all data, so that NumPy in double precision
says what training and prediction must give. What has no meaning as data must be refused by an error
that names the argument; neither PyTorch nor NumPy may be the one who complains.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anything import (
    SIZES,
    complete,
    data,
    estimator,
    in_file,
    linear,
    outcome,
    refused,
    scaled,
    stacked,
    weights_of,
)
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import fastseq as fs


@given(st.data(), SIZES, st.booleans())
def test_predict(drawn, shape, scale):
    """`Estimator.predict` is the matrix product, whatever holds the numbers."""
    x, meaning = drawn.draw(data(shape))
    model = linear(shape[2])
    w, b = weights_of(model)
    est = estimator(model, scale_x="standard") if scale else estimator(model)
    if scale:
        known = np.random.default_rng(0).standard_normal((20, 5, shape[2])) + 3
        est.fit(known, known[..., :1])
        w, b = weights_of(model)
    found, error = outcome(lambda: est.predict(x))
    if error is not None:
        assert refused(error, "x")
        assert not complete(meaning), f"refused, but is fine: {error}"
        return
    assert complete(meaning), "taken without a word"
    if scale:
        _, center, spread = scaled(known)
        meaning = (meaning - center) / spread
    right = meaning @ w.T + b
    size = 1 + np.abs(meaning).max() * np.abs(w).sum()
    np.testing.assert_allclose(stacked(found), right, rtol=1e-5, atol=3e-6 * size)


def of_arrays(given: Any) -> bool:
    """Whether it is a list of sequences, not an array written as lists."""
    return isinstance(given, list) and all(hasattr(one, "shape") for one in given)


@given(st.data(), SIZES, st.sampled_from([(0, 0)] * 5 + [(1, 0), (0, 1), (-1, 0)]), st.booleans())
def test_fit(drawn, shape, off, scale):
    """`Estimator.fit` makes one step down the gradient over all samples that count."""
    x, x_means = drawn.draw(data(shape))
    y_shape = (max(shape[0] + off[0], 0), max(shape[1] + off[1], 0), 1)
    if 0 in y_shape:
        y, y_means = np.empty(y_shape), None
    else:
        y, y_means = drawn.draw(data(y_shape))
    fits = y_shape[:2] == shape[:2] and of_arrays(x) == of_arrays(y)
    weights = drawn.draw(st.sampled_from([None, "w", "mask", "both"]))
    rng = np.random.default_rng(drawn.draw(st.integers(0, 99)))
    counts = np.ones(shape[:2])
    options: dict[str, Any] = {}
    if weights in ("w", "both"):
        w = rng.uniform(0.1, 2, shape[1])
        counts, options["w"] = counts * w, w
    if weights in ("mask", "both"):
        mask = rng.random(shape[:2]) < 0.7
        mask[0, 0] = True
        counts, options["mask"] = counts * mask, mask
        if of_arrays(x):
            options["mask"] = [*mask.T]
    model = linear(shape[2])
    w0, b0 = weights_of(model)
    spec = {"scale_x": "standard", "scale_y": "standard"} if scale else {}
    est = estimator(model, **spec)
    _, error = outcome(lambda: est.fit(x, y, **options))
    if error is not None:
        assert refused(error, "x|y|w|mask")
        good = fits and complete(x_means, counts > 0) and complete(y_means, counts > 0)
        assert not good, f"refused, but is fine: {error}"
        for before, after in zip((w0, b0), weights_of(model), strict=True):
            assert (before == after).all(), "refused, but only after training"
        return
    assert y_shape[:2] == shape[:2], "y does not fit x"
    assert complete(x_means, counts > 0), "x taken without a word"
    assert complete(y_means, counts > 0), "y taken without a word"
    used = counts > 0
    xs, ys = (np.where(used[..., None], means, 0) for means in (x_means, y_means))
    if scale:
        _, center, spread = scaled(xs[used][None])
        _, y_center, y_spread = scaled(ys[used][None])
        xs, ys = (xs - center) / spread, (ys - y_center) / y_spread
    error = (xs @ w0.T + b0) - ys
    total = counts.sum()
    down = 2 * error[..., 0] * counts / total
    grad_w, grad_b = np.einsum("tn,tnf->f", down, xs), down.sum()
    size = 1 + np.abs(down[..., None] * xs).sum() + np.abs(down).sum()
    loss = (error[..., 0] ** 2 * counts).sum() / total
    assert est.history_[-1]["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6 * (1 + loss))
    w1, b1 = weights_of(model)
    np.testing.assert_allclose(w1[0], w0[0] - 0.01 * grad_w, atol=1e-6 * size, rtol=1e-5)
    np.testing.assert_allclose(b1, b0 - 0.01 * grad_b, atol=1e-6 * size, rtol=1e-5)


@given(st.data(), st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_step(drawn, shape):
    """`Estimator.step` is one row of `predict`."""
    x, meaning = drawn.draw(data((1, *shape)))
    x = x[0] if hasattr(x, "shape") and len(getattr(x, "shape", ())) == 3 else x
    model = linear(shape[1])
    w, b = weights_of(model)
    found, error = outcome(lambda: estimator(model).step(x))
    if error is not None:
        assert refused(error, "x")
        assert not complete(meaning) or isinstance(x, list), f"refused, but is fine: {error}"
        return
    assert complete(meaning), "taken without a word"
    right = meaning[0] @ w.T + b
    size = 1 + np.abs(meaning).max() * np.abs(w).sum()
    np.testing.assert_allclose(found.double().numpy(), right, rtol=1e-5, atol=3e-6 * size)


LENGTHS = st.one_of(
    st.lists(st.integers(-1, 5), min_size=2, max_size=4),
    st.sampled_from([[1.0, 2.0, 3.0], ["a", "b", "c"], 3, "all", [True, False, True], [[1, 2, 3]]]),
)


@given(LENGTHS, st.integers(0, 9))
@example([4, 4, 4], 0)
def test_lengths(lengths, seed):
    """What lies behind a sequence's end does not count, NaN included."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((4, 3, 2)), rng.standard_normal((4, 3, 1))
    model = linear(2)
    w, b = weights_of(model)
    counts = isinstance(lengths, list) and all(type(n) is int for n in lengths)
    good = counts and len(lengths) == 3 and all(0 <= n <= 4 for n in lengths)
    if good:
        for n, end in enumerate(lengths):
            x[end:, n] = np.nan
    found, error = outcome(lambda: estimator(model).evaluate(x, y, lengths=lengths))
    if error is not None:
        assert refused(error, "lengths")
        assert not good or not any(lengths), f"refused, but is fine: {error}"
        return
    assert good, "taken without a word"
    assert any(lengths), "a loss of nothing"
    squares = ((x @ w.T + b) - y) ** 2
    assert found == pytest.approx(np.nanmean(squares), rel=1e-5)


def loss_of(model: nn.Linear, x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> float:
    w, b = weights_of(model)
    squares = ((x @ w.T + b - y) ** 2).mean(-1)
    return float((squares * counts).sum() / counts.sum())


WEIGHTS = {
    "sequences": lambda rng, t, n: (w := rng.uniform(0, 2, n), np.broadcast_to(w, (t, n))),
    "steps": lambda rng, t, n: (w := rng.uniform(0, 2, (t, n)), w),
    "axis": lambda rng, t, n: (w := rng.uniform(0, 2, (t, n, 1)), w[..., 0]),
    "integers": lambda rng, t, n: (w := rng.integers(1, 4, (t, n)), w),
    "booleans": lambda rng, t, n: (w := np.arange(t * n).reshape(t, n) % 3 == 0, w),
    "half": lambda rng, t, n: (w := rng.uniform(0.5, 2, (t, n)).astype("f2"), w.astype(float)),
    "tensor": lambda rng, t, n: (torch.from_numpy(w := rng.uniform(0, 2, (t, n))), w),
    "list": lambda rng, t, n: ((w := rng.uniform(0, 2, (t, n))).tolist(), w),
    "dataset": lambda rng, t, n: (in_file(w := rng.uniform(0, 2, (t, n))), w),
    "none": lambda rng, t, n: (None, np.ones((t, n))),
    "negative": lambda rng, t, n: (np.where(np.arange(n) == 0, -1.0, 1.0), None),
    "NaN": lambda rng, t, n: (np.where(np.arange(n) == 0, np.nan, 1.0), None),
    "infinite": lambda rng, t, n: (np.where(np.arange(n) == 0, np.inf, 1.0), None),
    "zeros": lambda rng, t, n: (np.zeros((t, n)), None),
    "short": lambda rng, t, n: (np.ones((t, n + 1)), None),
    "turned": lambda rng, t, n: (np.ones((n + 1, t)), None),
    "three axes": lambda rng, t, n: (np.ones((t, n, 2)), None),
    "number": lambda rng, t, n: (2.0, None),
    "text": lambda rng, t, n: (np.ones((t, n)).astype(str), None),
    "dates": lambda rng, t, n: (np.full((t, n), np.datetime64("2024-01-01")), None),
    "spans": lambda rng, t, n: (np.full((t, n), np.timedelta64(1, "s")), None),
    "complex": lambda rng, t, n: (np.ones((t, n)) + 1j, None),
    "objects": lambda rng, t, n: (np.full((t, n), None), None),
    "objects of sequences": lambda rng, t, n: (np.full(n, None), None),
    "dates of sequences": lambda rng, t, n: (np.full(n, np.datetime64("2024-01-01")), None),
    "text of sequences": lambda rng, t, n: (np.ones(n).astype(str), None),
    "complex of sequences": lambda rng, t, n: (np.ones(n) + 1j, None),
    "words": lambda rng, t, n: (["a"] * n, None),
    "string": lambda rng, t, n: ("balanced", None),
    "empty": lambda rng, t, n: ([], None),
    "dict": lambda rng, t, n: ({"a": np.ones(n)}, None),
    "tuple": lambda rng, t, n: ((np.ones((t, n)),), None),
    "ragged": lambda rng, t, n: ([[1.0], [1.0, 2.0]], None),
    "series": lambda rng, t, n: (pd.Series(np.ones(n)), ...),
    "meta": lambda rng, t, n: (torch.ones(t, n, device="meta"), None),
    "masked": lambda rng, t, n: (np.ma.masked_array(np.ones(n), np.arange(n) == 0), None),
    "sparse": lambda rng, t, n: (torch.ones(t, n).to_sparse(), None),
}


@given(st.data(), SIZES, st.sampled_from(list(WEIGHTS)), st.sampled_from(["evaluate", "fit"]))
def test_weights(drawn, shape, name, call):
    """`w` and `mask` weigh the losses of samples, or are refused."""
    rng = np.random.default_rng(drawn.draw(st.integers(0, 99)))
    x, y = rng.standard_normal(shape), rng.standard_normal((*shape[:2], 1))
    w, counts = WEIGHTS[name](rng, *shape[:2])
    model = linear(shape[2])
    right = None if counts is None or counts is ... else loss_of(model, x, y, counts)
    est = estimator(model)

    def run() -> float:
        if call == "evaluate":
            return est.evaluate(x, y, w)
        return est.fit(x, y, w).history_[-1]["loss"]

    found, error = outcome(run)
    if error is not None:
        assert refused(error, "w")
        assert counts is None or counts is ..., f"refused, but is fine: {error}"
        return
    assert counts is not None, "w taken without a word"
    if counts is not ...:
        assert found == pytest.approx(right, rel=1e-4)


class Sum(nn.Linear):
    """A linear model of the sum of a tuple's or dict's parts."""

    def forward(self, x: Any) -> torch.Tensor:
        parts = list(x.values()) if isinstance(x, dict) else x
        return super().forward(sum(parts[1:], parts[0]))


@given(st.data(), st.integers(2, 4), st.integers(5, 7), st.integers(1, 3), st.integers(0, 9))
def test_parts(drawn, steps, count, features, seed):
    """Tuples and dicts of inputs reach the model part by part, what is shared at every step."""
    rng = np.random.default_rng(seed)
    shape = (steps, count, features)
    kinds = {
        "whole": shape, "of sequences": (count, features), "of steps": (steps, features),
        "one step": (1, count, features), "one sequence": (steps, 1, features),
        "step more": (steps + 1, count, features), "one less": (steps, count - 1, features),
        "sequences more": (count + 1, features), "axis less": (count,), "no part": None,
        "drawn": shape,
    }  # fmt: skip
    kind = drawn.draw(st.sampled_from(list(kinds)))
    first = rng.standard_normal(shape)
    if kind == "drawn":
        second, meaning = drawn.draw(data(shape))
        good = complete(meaning) and not of_arrays(second)
    elif kinds[kind] is None:
        second, meaning, good = None, None, False
    else:
        second = meaning = rng.standard_normal(kinds[kind])
        good = kind in ("whole", "of sequences", "of steps", "one step", "one sequence")
    if kind == "of steps":
        meaning = meaning[:, None]
    order = drawn.draw(st.booleans())
    parts = (first, second) if order else (second, first)
    x = drawn.draw(st.sampled_from([parts, {"a": parts[0], "b": parts[1]}]))
    torch.manual_seed(0)
    model = Sum(features, 1)
    est = estimator(model)
    found, error = outcome(lambda: est.predict(x))
    if error is not None:
        assert refused(error, r"x(\[.*?\])?|x")
        assert not good, f"refused, but is fine: {error}"
        return
    assert good, "x taken without a word"
    w, b = weights_of(model)
    total = first + meaning
    right = total @ w.T + b
    size = 1 + np.abs(total).max() * np.abs(w).sum()
    np.testing.assert_allclose(stacked(found), right, rtol=1e-5, atol=3e-6 * size)


def of_other(x: np.ndarray, y: np.ndarray) -> dict[str, tuple[Any, Any]]:
    """Return what may be passed as validation, and the inputs, targets and weights it means."""
    t, n, _ = x.shape
    one = np.ones
    w = np.arange(1.0, n + 1)
    both = {
        "pair": ((x, y), (x, y, one((t, n)))),
        "triple": ((x, y, w), (x, y, one((t, n)) * w)),
        "longer": ((np.tile(x, (2, 1, 1)), np.tile(y, (2, 1, 1))), (x, y, one((t, n)))),
        "sequence": ((x[:, :1], y[:, :1]), (x[:, :1], y[:, :1], one((t, 1)))),
        "lists": (([*x.swapaxes(0, 1)], [*y.swapaxes(0, 1)]), (x, y, one((t, n)))),
        "fewer features": ((x[..., 1:], y), None),
        "more features": ((np.concatenate([x, x], 2), y), None),
        "targets of others": ((x, np.concatenate([y, y], 2)), None),
        "fewer targets": ((x, y[1:]), None),
        "alone": ((x,), None),
        "list": ([x, y], (x, y, one((t, n)))),
        "no targets": ((x, None), None),
        "four": ((x, y, w, w), None),
        "NaN": ((x * np.nan, y), None),
        "text": ((x.astype(str), y), None),
        "dates": ((x.astype("M8[s]"), y), None),
        "negative weights": ((x, y, -w), None),
        "array": (x, None),
        "string": ("0.2", None),
        "true": (True, None),
        "zero": (0, None),
        "one": (1.0, None),
        "all": (n, None),
        "many": (n + 3, None),
        "negative": (-1, None),
        "negative part": (-0.2, None),
        "NaN part": (float("nan"), None),
        "empty dict": ({}, None),
        "other key": ({"steps": 2}, None),
        "two keys": ({"time": 1, "sequences": 1}, None),
        "all time": ({"time": t}, None),
        "time text": ({"time": "1"}, None),
        "time None": ({"time": None}, None),
        "long warm-up": ({"time": 1, "warmup": t}, None),
        "negative warm-up": ({"time": 1, "warmup": -1}, None),
        "warm-up of sequences": ({"sequences": 1, "warmup": 1}, None),
    }
    if n > 1:
        k = min(max(round(n * 0.4), 1), n - 1)
        part = slice(n - k, n)
        both["number"] = (1, (x[:, -1:], y[:, -1:], one((t, 1))))
        both["NumPy number"] = (np.int64(1), (x[:, -1:], y[:, -1:], one((t, 1))))
        both["fraction"] = (0.4, (x[:, part], y[:, part], one((t, k))))
    if t > 1:
        both["time"] = ({"time": 1}, (x[-1:], y[-1:], one((1, n))))
        both["warm-up"] = ({"time": 1, "warmup": 1}, (x[-1:], y[-1:], one((1, n))))
    return both


@given(st.data(), SIZES)
def test_validation(drawn, shape):
    """The loss after an epoch is that of the model then, on what `validation` says."""
    rng = np.random.default_rng(drawn.draw(st.integers(0, 99)))
    x, y = rng.standard_normal(shape), rng.standard_normal((*shape[:2], 1))
    others = of_other(x, y)
    name = drawn.draw(st.sampled_from(list(others)))
    validation, meaning = others[name]
    model = linear(shape[2])
    before = weights_of(model)
    est = estimator(model)
    _, error = outcome(lambda: est.fit(x, y, validation=validation))
    if error is not None:
        assert refused(error, r"validation|x|y|w")
        assert meaning is None, f"refused, but is fine: {error}"
        read = isinstance(error, fs.NonFiniteError)  # which is told when it is read
        for old, new in zip(before, weights_of(model), strict=True):
            assert read or (old == new).all(), "refused, but only after training"
        return
    assert meaning is not None, "taken without a word"
    assert est.history_[-1]["validation_loss"] == pytest.approx(loss_of(model, *meaning), rel=1e-4)


@given(st.sampled_from(["predict", "fit", "evaluate", "step", "y"]), SIZES)
def test_frames(call, shape):
    """A data frame has no third axis: it is refused, in each place."""
    x = np.random.default_rng(0).standard_normal(shape)
    y = x[..., :1]
    frame = pd.DataFrame(x[:, 0])
    est = estimator(linear(shape[2]))
    calls = {
        "predict": lambda: est.predict(frame),
        "fit": lambda: est.fit(frame, y),
        "evaluate": lambda: est.evaluate(frame, y),
        "step": lambda: est.step(frame),
        "y": lambda: est.fit(x, pd.DataFrame(y[..., 0])),
    }
    _, error = outcome(calls[call])
    assert error is not None, "taken without a word"
    assert refused(error, "x|y")
