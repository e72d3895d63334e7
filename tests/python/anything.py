"""Whatever may be passed as data, what it means as numbers, and which errors are fastseq's own."""

from __future__ import annotations

import datetime
import itertools
import linecache
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
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
    "list of masked": lambda v: [np.ma.masked_array(one, one == one.max()) for one in v],
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
    """Draw what is passed as an array of `shape`, and what it means in fp64; None: no numbers."""
    v, kind = draw(numbers(shape))
    if draw(st.integers(0, 3)) == 0:
        return NONSENSE[draw(st.sampled_from(list(NONSENSE)))](v), None
    finite = kind in ("plain", "constant", "offset")
    dtype = draw(st.sampled_from(FLOATS + (INTEGERS if finite else [])))
    if kind == "offset" and dtype in ("float16", "float32", ">f4"):
        dtype = "float64"
    a, meaning = of_dtype(v, dtype)
    return HOLDERS[draw(st.sampled_from(list(HOLDERS)))](a), meaning


def complete(meaning: np.ndarray | None, counts: Any = True) -> bool:
    """Whether there are numbers, and finite ones wherever they count."""
    return meaning is not None and bool((np.isfinite(meaning).all(-1) | ~np.asarray(counts)).all())


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


def refused_by_checks(error: BaseException, names: str) -> bool:
    """Whether `error` comes from scikit-learn's or pandas' checks, or is as `refused` wants it."""
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    return bool(SKLEARN.search(last.tb_frame.f_code.co_filename)) or refused(error, names)
