"""Whatever is passed to the scikit-learn estimators: what plain NumPy gives, or an error of ours.

See `test_any_input`; samples come first here, and scikit-learn checks arrays by its own means, whose
messages users know.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anything import (
    HOLDERS,
    NONSENSE,
    numbers,
    of_dtype,
    outcome,
    refused_by_checks,
    scaled,
    weights_of,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fastseq as fs

SAMPLES = {
    **{name: HOLDERS[name] for name in ("array", "tensor", "fortran", "strided", "read-only")},
    "nested list": HOLDERS["nested list"],
    "list": lambda v: list(v),
    "list of tensors": lambda v: [torch.tensor(a.tolist()) for a in v],
    "list of frames": lambda v: [pd.DataFrame(a, columns=[*"abc"[: a.shape[1]]]) for a in v],
}
SHAPES = st.tuples(st.integers(8, 12), st.integers(1, 4), st.integers(1, 3))
OPTIONS = {
    "epochs": 1, "random_state": 0, "verbose": False, "batchsize": 100, "optimizer": "sgd",
    "schedule": None, "clip_norm": None,
}  # fmt: skip


@st.composite
def samples(draw: Any, shape: tuple[int, int, int]) -> tuple[Any, np.ndarray | None]:
    """Draw what is passed as samples of `shape`, and what it means in fp64; None: nothing."""
    v, kind = draw(numbers(shape))
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from([n for n in NONSENSE if n not in ("objects", "text")]))
        return NONSENSE[name](v), None
    finite = kind in ("plain", "constant", "offset")
    dtypes = ["float64", "float32", "int64", "int16"] if kind in ("plain", "constant") else []
    a, meaning = of_dtype(v, draw(st.sampled_from(dtypes or ["float64"])))
    return SAMPLES[draw(st.sampled_from(list(SAMPLES)))](a), meaning if finite else None


class Linear(nn.Module):
    """Looks at one step alone."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(n_in, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def trained(make: Callable[..., Any], fit: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    """Return an estimator after one update, its weights, and those before."""
    model = make(Linear, lr=0.1, **OPTIONS)
    fit(model)
    before = make(Linear, lr=0.0, **OPTIONS)
    fit(before)
    after, start = (weights_of(m.estimator_.model.layer) for m in (model, before))
    return model, after, start


def went_down(after: Any, start: Any, xs: np.ndarray, down: np.ndarray) -> None:
    """Compare an update with the gradient of a loss by outputs ``(N, K)`` of inputs ``(N, F)``."""
    size = 1 + np.abs(xs).max() * np.abs(down).sum()
    np.testing.assert_allclose(after[0], start[0] - 0.1 * down.T @ xs, rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose(after[1], start[1] - 0.1 * down.sum(0), rtol=0, atol=1e-6 * size)


WEIGHTS = {
    "none": (lambda _: None, True),
    "array": (lambda w: w, True),
    "zeros": (lambda w: w * (np.arange(len(w)) % 2), True),
    "list": (lambda w: w.tolist(), True),
    "series": (lambda w: pd.Series(w, index=np.arange(len(w))[::-1]), True),
    "tensor": (lambda w: torch.from_numpy(w), True),
    "integers": (lambda w: np.ceil(w).astype(int), True),
    "number": (lambda _: 2.0, True),
    "negative": (lambda w: -w, False),
    "short": (lambda w: w[1:], False),
    "long": (lambda w: np.append(w, 1.0), False),
    "two axes": (lambda w: w[:, None], False),
    "NaN": (lambda w: np.where(np.arange(len(w)) == 1, np.nan, w), False),
    "infinite": (lambda w: np.where(np.arange(len(w)) == 1, np.inf, w), False),
    "text": (lambda w: w.astype(str), False),
    "words": (lambda w: ["a"] * len(w), False),
    "dates": (lambda w: np.full(len(w), np.datetime64("2024-01-01")), False),
    "spans": (lambda w: np.full(len(w), np.timedelta64(1, "s")), False),
    "complex": (lambda w: w + 1j, False),
    "objects": (lambda w: np.array([None, *w[1:]], object), False),
    "string": (lambda _: "balanced", False),
    "masked": (lambda w: np.ma.masked_array(w, np.arange(len(w)) == 1), False),
    "bfloat16": (lambda w: torch.from_numpy(w).bfloat16(), False),
    "with gradient": (lambda w: torch.from_numpy(w).requires_grad_(), False),
    "empty": (lambda _: [], False),
    "dict": (lambda _: {"a": 1.0}, False),
    "ragged": (lambda w: [w[:1], *w[:-1]], False),
}


def weighted(name: str, count: int, seed: int) -> tuple[Any, np.ndarray | None]:
    """Return weights of samples, and what they mean; None: nothing."""
    w = np.random.default_rng(seed).uniform(0.1, 2, count)
    make, good = WEIGHTS[name]
    given = make(w)
    if not good:
        return given, None
    meaning = np.ones(count) if given is None else np.broadcast_to(given, count)
    return given, np.asarray(meaning, float)


NUMBERS = {
    "array": (lambda y: y, True),
    "list": (lambda y: y.tolist(), True),
    "tuple": (lambda y: tuple(y.tolist()), True),
    "tensor": (lambda y: torch.from_numpy(y), True),
    "series": (lambda y: pd.Series(y, index=np.arange(len(y))[::-1]), True),
    "nullable": (lambda y: pd.Series(y, dtype="Float64"), True),
    "column": (lambda y: y[:, None], True),
    "frame": (lambda y: pd.DataFrame({"y": y}), True),
    "backwards": (lambda y: y[::-1].copy()[::-1], True),
    "big endian": (lambda y: y.astype(">f8"), True),
    "short": (lambda y: y[1:], False),
    "long": (lambda y: np.append(y, 0.0), False),
    "NaN": (lambda y: np.where(np.arange(len(y)) == 2, np.nan, y), False),
    "infinite": (lambda y: np.where(np.arange(len(y)) == 2, -np.inf, y), False),
    "None": (lambda y: [None, *y[1:]], False),
    "NA": (lambda y: pd.Series([pd.NA, *y[1:]], dtype="Float64"), False),
    "words": (lambda y: ["a"] * len(y), False),
    "dates": (lambda y: np.full(len(y), np.datetime64("2024-01-01")), False),
    "spans": (lambda y: np.full(len(y), np.timedelta64(1, "s")), False),
    "times": (lambda y: pd.Series(pd.date_range("2024", periods=len(y))), False),
    "complex": (lambda y: y + 1j, False),
    "category": (lambda y: pd.Series(["a"] * len(y), dtype="category"), False),
    "four axes": (lambda y: y[:, None, None, None], False),
    "one number": (lambda _: 3.0, False),
    "string": (lambda _: "y", False),
    "nothing": (lambda _: None, False),
    "dict": (lambda y: dict(enumerate(y)), False),
    "ragged": (lambda y: [y[:1], y[:2], *y[2:]], False),
    "empty": (lambda _: [], False),
    "sparse": (lambda y: torch.from_numpy(y).to_sparse(), False),
    "masked": (lambda y: np.ma.masked_array(y, np.arange(len(y)) == 1), False),
    "records": (lambda y: np.zeros(len(y), [("a", "f4")]), False),
}


@given(st.data(), SHAPES)
def test_regressor(drawn, shape):
    """`SequenceRegressor` is what its module says of scaled sequences, scaled back."""
    x, meaning = drawn.draw(samples(shape))
    rng = np.random.default_rng(drawn.draw(st.integers(0, 99)))
    offset = drawn.draw(st.sampled_from([0.0, 1e8, -3.0]))
    size = drawn.draw(st.sampled_from([1.0, 1e-20, 1e15]))
    y = (rng.standard_normal(shape[0]) + offset) * size
    holder = drawn.draw(st.sampled_from(["array"] * 20 + list(NUMBERS)))
    good = NUMBERS[holder][1]
    y_given = NUMBERS[holder][0](y)
    w, counts = weighted(drawn.draw(st.sampled_from(["none"] * 15 + list(WEIGHTS))), shape[0], 0)
    found, error = outcome(
        lambda: trained(fs.SequenceRegressor, lambda m: m.fit(x, y_given, sample_weight=w))
    )
    if error is not None:
        assert refused_by_checks(error, "X|y|sample_weight|weights|w")
        fine = meaning is not None and good and counts is not None
        assert not fine, f"refused, but is fine: {error}"
        return
    assert meaning is not None, "X taken without a word"
    assert good, "y taken without a word"
    assert counts is not None, "sample_weight taken without a word"
    model, after, start = found
    used = counts > 0
    _, center, spread = scaled(meaning[used])
    xs = ((meaning - center) / spread)[:, -1]
    _, y_center, y_spread = scaled(y[used, None])
    ys = (y[:, None] - y_center) / y_spread
    error = xs @ start[0].T + start[1] - ys
    went_down(after, start, xs, 2 * error * (counts / counts.sum())[:, None])
    predicted = model.predict(x)
    right = ((xs @ after[0].T + after[1]) * y_spread + y_center)[:, 0]
    span = np.abs(right - y_center) + np.abs(y_center) * 1e-6 * (predicted.dtype == np.float32)
    np.testing.assert_allclose(np.ravel(predicted), right, rtol=0, atol=1e-4 * span.max())
    score = model.score(x, y_given, w)
    mean = np.average(y, weights=counts)
    residual = ((y - np.ravel(predicted).astype(float)) ** 2 * counts).sum()
    r2 = 1 - residual / ((y - mean) ** 2 * counts).sum()
    assert score == pytest.approx(r2, rel=1e-6, abs=1e-6)


LETTERS = np.array(["down", "flat", "up"])
LABELS = {
    "words": (lambda k: LETTERS[k], True),
    "integers": (lambda k: k - 1, True),
    "bytes": (lambda k: LETTERS[k].astype("S4"), False),
    "small": (lambda k: k.astype("int8"), True),
    "unsigned": (lambda k: k.astype("uint64") + np.uint64(2**63), True),
    "big endian": (lambda k: k.astype(">i4"), True),
    "large": (lambda k: k + 2**60, True),
    "booleans": (lambda k: k > 0, True),
    "whole floats": (lambda k: k * 2.0, True),
    "halves": (lambda k: k / 2, False),
    "list": (lambda k: LETTERS[k].tolist(), True),
    "list of integers": (lambda k: k.tolist(), True),
    "tuple": (lambda k: tuple(k.tolist()), True),
    "tensor": (lambda k: torch.from_numpy(k), True),
    "series": (lambda k: pd.Series(LETTERS[k], index=np.arange(len(k))[::-1]), True),
    "nullable": (lambda k: pd.Series(k, dtype="Int64"), True),
    "text": (lambda k: pd.Series(LETTERS[k], dtype="string"), True),
    "category": (lambda k: pd.Series(pd.Categorical(LETTERS[k], [*LETTERS[::-1], "no"])), True),
    "objects": (lambda k: LETTERS[k].astype(object), True),
    "column": (lambda k: LETTERS[k][:, None], True),
    "frame": (lambda k: pd.DataFrame({"y": LETTERS[k]}), True),
    "one class": (lambda k: k * 0, False),
    "short": (lambda k: k[1:], False),
    "long": (lambda k: np.append(k, 0), False),
    "None": (lambda k: [None, *LETTERS[k[1:]]], False),
    "None alone": (lambda k: [None] * len(k), False),
    "NaN": (lambda k: np.where(np.arange(len(k)) == 2, np.nan, k), False),
    "NaN among words": (lambda k: np.array([np.nan, *LETTERS[k[1:]]], object), False),
    "infinite": (lambda k: np.where(np.arange(len(k)) == 2, np.inf, k), False),
    "NA": (lambda k: pd.Series([pd.NA, *k[1:]], dtype="Int64"), False),
    "NA of text": (lambda k: pd.Series([pd.NA, *LETTERS[k[1:]]], dtype="string"), False),
    "category without": (lambda k: pd.Series([None, *LETTERS[k[1:]]], dtype="category"), False),
    "mixed": (lambda k: np.array(["a", 1, *k[2:]], object), False),
    "masked": (lambda k: np.ma.masked_array(k, np.arange(len(k)) == 1), False),
    "list of masked": (lambda k: [np.ma.masked_array(k, k == 1)] * len(k), False),
    "no time": (lambda k: pd.Series([pd.NaT] * len(k)), False),
    "complex": (lambda k: k + 1j, False),
    "four axes": (lambda k: k[:, None, None, None], False),
    "one label": (lambda _: 3, False),
    "string": (lambda _: "up", False),
    "nothing": (lambda _: None, False),
    "dict": (lambda k: dict(enumerate(k)), False),
    "ragged": (lambda k: [k[:1], k[:2], *k[2:]], False),
    "lists": (lambda k: [[i] * (i + 1) for i in k.tolist()], False),
    "empty": (lambda _: [], False),
}


def meant(name: str, k: np.ndarray) -> np.ndarray:
    """Return labels as NumPy sorts them."""
    return np.array(np.ravel(LABELS[name][0](k)).tolist())


@pytest.mark.filterwarnings("ignore:y has the shape:sklearn.exceptions.DataConversionWarning")
@given(st.data(), SHAPES)
def test_classifier(drawn, shape):
    """`SequenceClassifier` is the softmax of what its module says of scaled sequences."""
    x, meaning = drawn.draw(samples(shape) if drawn.draw(st.booleans()) else fine_samples(shape))
    rng = np.random.default_rng(drawn.draw(st.integers(0, 99)))
    k = rng.permutation([0, 1, 2, *rng.integers(0, 3, shape[0] - 3)])
    name = drawn.draw(st.sampled_from(list(LABELS)))
    y, good = LABELS[name][0](k), LABELS[name][1]
    w, counts = weighted(drawn.draw(st.sampled_from(["none"] * 15 + list(WEIGHTS))), shape[0], 0)
    balanced = drawn.draw(st.sampled_from([None, "balanced"]))
    found, error = outcome(
        lambda: trained(
            functools.partial(fs.SequenceClassifier, class_weight=balanced),
            lambda m: m.fit(x, y, sample_weight=w),
        )
    )
    if error is not None:
        assert refused_by_checks(error, "X|y|sample_weight|weights|w")
        fine = meaning is not None and good and counts is not None
        assert not fine, f"refused, but is fine: {error}"
        return
    assert meaning is not None, "X taken without a word"
    assert good, "y taken without a word"
    assert counts is not None, "sample_weight taken without a word"
    model, after, start = found
    labels = meant(name, k)
    classes, number = np.unique(labels, return_inverse=True)
    assert model.classes_.tolist() == classes.tolist()
    score_weights = counts
    if balanced:
        counts = counts * (len(k) / len(classes) / np.bincount(number))[number]
    _, center, spread = scaled(meaning[counts > 0])
    xs = ((meaning - center) / spread)[:, -1]
    error = softmax(xs @ start[0].T + start[1]) - np.eye(len(classes))[number]
    went_down(after, start, xs, error * (counts / counts.sum())[:, None])
    right = softmax(xs @ after[0].T + after[1])
    size = 1e-5 * (1 + np.abs(xs).max())
    np.testing.assert_allclose(model.predict_proba(x), right, rtol=0, atol=size)
    predicted = model.predict(x)
    assert np.ravel(predicted).tolist() == classes[right.argmax(1)].tolist()
    hits = right.argmax(1) == number
    assert model.score(x, y, w) == pytest.approx(np.average(hits, weights=score_weights))
    # Labels that fit has not seen are wrong.
    unseen = np.where(np.arange(len(k)) % 2, "never", labels.astype(str))
    score, error = outcome(lambda: model.score(x, unseen, w))
    if error is not None:
        assert refused_by_checks(error, "y")
    elif labels.dtype.kind == "U":
        hits &= np.arange(len(k)) % 2 == 0
        assert score == pytest.approx(np.average(hits, weights=score_weights))


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def fine_samples(shape: tuple[int, int, int]) -> Any:
    return st.integers(0, 99).map(
        lambda seed: (v := np.random.default_rng(seed).normal(size=shape), v)
    )
