"""Whatever is passed as data: the result that plain NumPy gives, or an error of ours, nothing else.

The model is linear and one update is one gradient over all data, so that NumPy in double precision
says what training and prediction must give. What has no meaning as data must be refused by an error
that names the argument; neither PyTorch nor NumPy may be the one who complains.
"""

from __future__ import annotations

import datetime
import itertools
import linecache
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs

PACKAGE = str(Path(fs.__file__).parent)
SKLEARN = re.compile(r"[/\\](sklearn|pandas)[/\\]")


torch.set_warn_always(True)  # each time, not once for all examples


def outcome(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Return what `call` returns, or an error of the kinds that bad data may raise."""
    try:
        return call(), None
    except (ValueError, TypeError, fs.FastseqError) as error:
        return None, error


def refused(error: BaseException, names: str) -> bool:
    """Whether fastseq itself raised `error`, on purpose, and says which argument it is about."""
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    where = last.tb_frame.f_code.co_filename
    line = linecache.getline(where, last.tb_lineno).strip()
    assert where.startswith(PACKAGE), f"not by fastseq, but in {where}: {error!r}"
    assert line.startswith("raise "), f"by chance, in {where}:{last.tb_lineno} {line}: {error!r}"
    assert re.search(rf"(?<![\w.])({names})(?!\w)", str(error)), f"names no argument: {error!r}"
    return True


# What kinds of things hold the numbers of an array (T, N, F), and what they then mean.

FLOATS = ["float32", "float64", "float16", ">f4", ">f8"]
INTEGERS = ["int8", "uint8", "int16", ">i2", "uint16", "int32", "uint32", "int64", "uint64", "bool"]


def of_dtype(v: np.ndarray, dtype: str) -> tuple[Any, np.ndarray]:
    if dtype == "bool":
        v = v > 0
    elif np.dtype(dtype).kind == "u":
        v = np.abs(np.round(v))
    elif np.dtype(dtype).kind == "i":
        v = np.clip(np.round(v), -100, 100)
    with np.errstate(over="ignore"):
        a = v.astype(dtype)
    return a, a.astype(np.float64)


FILES = tempfile.TemporaryDirectory()
NUMBERS = itertools.count()


def in_file(v: np.ndarray, **options: Any) -> h5py.Dataset:
    file = h5py.File(Path(FILES.name, f"{next(NUMBERS)}.h5"), "w")
    return file.create_dataset("x", data=v, **options)


def mapped(v: np.ndarray) -> np.ndarray:
    path = Path(FILES.name, f"{next(NUMBERS)}.npy")
    np.save(path, v)
    return np.load(path, mmap_mode="r")


def read_only(v: np.ndarray) -> np.ndarray:
    v = v.copy()
    v.flags.writeable = False
    return v


HOLDERS = {
    "array": lambda v: v,
    "tensor": lambda v: torch.from_numpy(np.ascontiguousarray(v.astype(v.dtype.newbyteorder("=")))),
    "fortran": np.asfortranarray,
    "backwards": lambda v: v[::-1].copy()[::-1],
    "strided": lambda v: np.repeat(v, 2, axis=1)[:, ::2],
    "read-only": read_only,
    "mapped": mapped,
    "dataset": in_file,
    "compressed": lambda v: in_file(v, chunks=(1, 1, 1), compression="gzip"),
    "nested list": lambda v: v.tolist(),
    "series": lambda v: [v[:, n] for n in range(v.shape[1])],
    "series of tensors": lambda v: [torch.tensor(v[:, n].tolist()) for n in range(v.shape[1])],
}

NONSENSE = {
    "complex": lambda v: v + 1j,
    "objects": lambda v: v.astype(object),
    "text": lambda v: v.astype(str),
    "bytes": lambda v: v.astype("S4"),
    "dates": lambda v: np.full(v.shape, np.datetime64("2024-01-01")),
    "spans": lambda v: np.full(v.shape, np.timedelta64(1, "s")),
    "records": lambda v: np.zeros(v.shape, [("a", "f4"), ("b", "f4")]),
    "missing": lambda v: np.full(v.shape, None),
    "ragged nest": lambda _: [[[1.0]], [[1.0], [2.0]]],
    "list of text": lambda _: ["a", "b"],
    "list of dates": lambda _: [datetime.date(2024, 1, 1)] * 3,
    "string": lambda _: "data.h5",
    "number": lambda _: 3.0,
    "integer": lambda _: 3,
    "function": lambda _: len,
    "set": lambda _: {1.0, 2.0},
    "generator": lambda v: (a for a in v),
    "empty list": lambda _: [],
    "empty tuple": lambda _: (),
    "empty dict": lambda _: {},
    "list of None": lambda _: [None, None],
    "sparse": lambda v: torch.from_numpy(v).to_sparse(),
    "nested tensor": lambda _: torch.nested.nested_tensor(
        [torch.zeros(2, 3), torch.zeros(3, 3)], layout=torch.jagged
    ),
    "packed": lambda _: nn.utils.rnn.pack_sequence([torch.zeros(3, 3), torch.zeros(2, 3)]),
    "meta": lambda v: torch.empty(v.shape, device="meta"),
    "no axis": lambda _: np.float64(1.0),
    "one axis": lambda v: v.reshape(-1),
    "four axes": lambda v: v[None],
    "scalar tensor": lambda _: torch.tensor(1.0),
    "data frame of text": lambda _: pd.DataFrame({"a": ["x", "y"]}),
    "masked": lambda v: np.ma.masked_array(v, np.ones(v.shape, bool)),
}


@st.composite
def numbers(draw: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, str]:
    """Draw values, and what they are like."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    v = rng.standard_normal(shape) * 3
    kind = draw(st.sampled_from(["plain"] * 6 + ["offset", "constant", "nan", "inf", "-inf"]))
    if kind == "offset":
        v += draw(st.sampled_from([1e3, -1e6, 1.7e9]))
    elif kind == "constant":
        v[..., 0] = draw(st.sampled_from([0.0, 0.1, 14.62, 1e6]))
    elif kind != "plain":
        v[tuple(draw(st.integers(0, n - 1)) for n in shape)] = float(kind)
    return v, kind


@st.composite
def data(draw: Any, shape: tuple[int, int, int]) -> tuple[Any, np.ndarray | None]:
    """Draw what is passed as an array of `shape`, and what it means in fp64; None: nothing."""
    v, kind = draw(numbers(shape))
    if draw(st.integers(0, 3)) == 0:
        return NONSENSE[draw(st.sampled_from(list(NONSENSE)))](v), None
    finite = kind in ("plain", "constant", "offset")
    dtype = draw(st.sampled_from(FLOATS + (INTEGERS if finite else [])))
    if kind == "offset" and dtype in ("float16", "float32", ">f4"):
        dtype = "float64"
    a, meaning = of_dtype(v, dtype)
    return HOLDERS[draw(st.sampled_from(list(HOLDERS)))](a), meaning if finite else None


SIZES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))


def linear(features: int, outputs: int = 1) -> nn.Linear:
    torch.manual_seed(features)
    return nn.Linear(features, outputs)


def estimator(model: nn.Module, **spec: Any) -> fs.Estimator:
    spec = {"epochs": 1, "batchsize": 10, "seqsize": 10, **spec}
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    return fs.Estimator(model, fs.seqloss(mse_loss), sgd, spec, progress=False, seed=0)


def scaled(v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre and scale every feature."""
    flat = v.reshape(-1, v.shape[-1])
    center = flat.mean(0)
    spread = np.sqrt(((flat - center) ** 2).mean(0))
    # As far as double precision tells a constant from rounding.
    spread = np.where(spread > 1e-12 * np.abs(center), spread, 1.0)
    return (v - center) / spread, center, spread


def weights_of(model: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    return model.weight.detach().double().numpy(), model.bias.detach().double().numpy()


def stacked(y: Any) -> np.ndarray:
    """Return predictions as one array, fp64."""
    y = np.stack(y, 1) if isinstance(y, list) else y
    return np.asarray(y, dtype=np.float64)


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
        assert meaning is None, f"refused, but is fine: {error}"
        return
    assert meaning is not None, "taken without a word"
    if scale:
        _, center, spread = scaled(known)
        meaning = (meaning - center) / spread
    right = meaning @ w.T + b
    size = 1 + np.abs(meaning).max() * np.abs(w).sum()
    np.testing.assert_allclose(stacked(found), right, rtol=1e-5, atol=3e-6 * size)


@given(st.data(), SIZES, st.sampled_from([(0, 0)] * 5 + [(1, 0), (0, 1), (-1, 0)]), st.booleans())
def test_fit(drawn, shape, off, scale):
    """`Estimator.fit` makes one step down the gradient over all samples that count."""
    x, x_means = drawn.draw(data(shape))
    y_shape = (max(shape[0] + off[0], 0), max(shape[1] + off[1], 0), 1)
    plain = [*HOLDERS].index("array")
    if 0 in y_shape:
        y, y_means = np.empty(y_shape), None
    else:
        y, y_means = drawn.draw(data(y_shape))
    fits = y_shape[:2] == shape[:2] and (isinstance(x, list) == isinstance(y, list) or plain < 0)
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
        if isinstance(x, list) and all(hasattr(a, "shape") for a in x):
            options["mask"] = [*mask.T]
    model = linear(shape[2])
    w0, b0 = weights_of(model)
    spec = {"scale_x": "standard", "scale_y": "standard"} if scale else {}
    est = estimator(model, **spec)
    _, error = outcome(lambda: est.fit(x, y, **options))
    if error is not None:
        assert refused(error, "x|y|w|mask")
        good = x_means is not None and y_means is not None and fits
        assert not good, f"refused, but is fine: {error}"
        for before, after in zip((w0, b0), weights_of(model), strict=True):
            assert (before == after).all(), "refused, but only after training"
        return
    assert x_means is not None, "x taken without a word"
    assert y_means is not None, "y taken without a word"
    assert y_shape[:2] == shape[:2], "y does not fit x"
    xs, ys = x_means, y_means
    if scale:
        used = counts > 0
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
        assert meaning is None or isinstance(x, list), f"refused, but is fine: {error}"
        return
    assert meaning is not None, "taken without a word"
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


# scikit-learn's side: samples first. It checks arrays by its own means, whose messages users know.


def refused_by_checks(error: BaseException, names: str) -> bool:
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    if SKLEARN.search(last.tb_frame.f_code.co_filename):
        return True
    return refused(error, names)


SAMPLES = {
    **{name: HOLDERS[name] for name in ("array", "tensor", "fortran", "strided", "read-only")},
    "nested list": HOLDERS["nested list"],
    "list": lambda v: list(v),
    "list of tensors": lambda v: [torch.tensor(a.tolist()) for a in v],
    "list of frames": lambda v: [pd.DataFrame(a, columns=[*"abc"[: a.shape[1]]]) for a in v],
}


@given(st.data(), st.tuples(st.integers(8, 12), st.integers(1, 4), st.integers(1, 3)))
def test_regressor(drawn, shape):
    """`SequenceRegressor` is what its module says of scaled sequences, scaled back."""
    v, kind = drawn.draw(numbers(shape))
    finite = kind in ("plain", "constant", "offset")
    if drawn.draw(st.integers(0, 3)) == 0:
        name = drawn.draw(st.sampled_from([n for n in NONSENSE if n not in ("objects", "text")]))
        x, meaning = NONSENSE[name](v), None
    else:
        dtype = drawn.draw(
            st.sampled_from(["float64", "float32", "int64", "int16"] if finite else ["float64"])
        )
        dtype = "float64" if kind == "offset" else dtype
        a, meaning = of_dtype(v, dtype)
        x = SAMPLES[drawn.draw(st.sampled_from(list(SAMPLES)))](a)
        meaning = meaning if finite else None
    rng = np.random.default_rng(drawn.draw(st.integers(0, 99)))
    offset = drawn.draw(st.sampled_from([0.0, 1e8, -3.0]))
    size = drawn.draw(st.sampled_from([1.0, 1e-20, 1e15]))
    y = (rng.standard_normal(shape[0]) + offset) * size
    model = fs.SequenceRegressor(
        OrderedLinear, epochs=1, lr=0.01, random_state=0, verbose=False, batchsize=100
    )
    found, error = outcome(lambda: model.fit(x, y).predict(x))
    if error is not None:
        assert refused_by_checks(error, "X|y")
        assert meaning is None, f"refused, but is fine: {error}"
        return
    assert meaning is not None, "taken without a word"
    xs, _, _ = scaled(meaning)
    _, y_center, y_spread = scaled(y[:, None])
    w, b = weights_of(model.estimator_.model.layer)
    right = (xs[:, -1] @ w.T + b) * y_spread + y_center
    span = np.abs(right - y_center).max() + np.abs(y_center) * 1e-6 * (found.dtype == np.float32)
    np.testing.assert_allclose(found, right[:, 0], rtol=0, atol=1e-4 * span.max())
    score = model.score(x, y)
    residual = ((y - found.astype(np.float64)) ** 2).sum()
    r2 = 1 - residual / ((y - y.mean()) ** 2).sum()
    assert score == pytest.approx(r2, rel=1e-6, abs=1e-6)


class OrderedLinear(nn.Module):
    """Looks at one step alone."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(OrderedDict(layer=nn.Linear(n_in, n_out)))

    @property
    def layer(self) -> nn.Linear:
        return self.layers["layer"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)
