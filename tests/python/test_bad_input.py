"""What goes wrong is said clearly, before any work is done."""

from __future__ import annotations

import copy
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from models import adamw, assert_same_parameters, chain
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import fastseq as fs

T, N = 8, 6
RANDOM = torch.Generator().manual_seed(0)
X, Y = torch.randn(T, N, 3, generator=RANDOM), torch.randn(T, N, 1, generator=RANDOM)
SPEC = {"epochs": 1, "batchsize": 2, "seqsize": 4}
LOSS = fs.seqloss(mse_loss)


def estimator(model=None, loss=LOSS, optimizer=adamw, spec=None, seed=None):
    model = chain() if model is None else model
    return fs.Estimator(model, loss, optimizer, spec or SPEC, progress=False, seed=seed)


UNEQUAL = np.empty(2, object)
UNEQUAL[:] = [np.ones((3, 2)), np.ones((4, 2))]

FIT = [
    ("T differs", (X, Y[1:]), ValueError, r"y must have as many time steps .* \(7, 6\) and \(8, 6\)"),
    ("N differs", (X, Y[:, 1:]), ValueError, r"y must have as many .* \(8, 5\) and \(8, 6\)"),
    ("parts differ", ((X, X[:, 1:]), Y), ValueError, r"x\[1\] must have as many"),
    ("x is 2-D", (X[0], Y), ValueError, r"x must have 3 dimensions .* got shape \(6, 3\)"),
    ("x is 4-D", (X[None], Y), ValueError, r"x must have 3 dimensions"),
    ("y is 2-D", (X, Y[1:, :, 0]), ValueError, r"y must have the shape \(time, sequences, features\) or"),
    ("x is complex", (X + 0j, Y), TypeError, "x must hold floats, integers or booleans"),
    ("x holds objects", (np.empty((T, N, 3), object), Y), TypeError, "dtype object"),
    ("x holds text", (np.full((T, N, 3), "a"), Y), TypeError, "x must hold floats"),
    ("x is a string", ("data.h5", Y), TypeError, "x must be an array, .* got str"),
    ("x has no part", ((), Y), ValueError, "at least one array"),
    ("no steps", (X[:0], Y[:0]), ValueError, r"x has no time steps: its shape is \(0, 6, 3\)"),
    ("no sequences", (X[:, :0], Y[:, :0]), ValueError, "x has no sequences"),
    ("w is too short", (X, Y, torch.ones(5)), ValueError, r"w must have the shape \(6,\) or"),
    ("w is negative", (X, Y, -torch.ones(N)), ValueError, "w must not be negative, NaN or infinite, but is in"),
    ("w is NaN", (X, Y, torch.full((N,), torch.nan)), ValueError, "w must not be negative, NaN or infinite"),
    ("w is infinite", (X, Y, torch.tensor([1, torch.inf, 1, 1, 1, 1])), ValueError, "NaN or infinite"),
    ("lists in lists", ([[[1.0]], [[1.0], [2.0]]], Y), ValueError, r"x is a list of lists .* \(T_i, F\)"),
    ("array of arrays", (UNEQUAL, Y), TypeError, r"x is an array of 2 arrays: .* a list of arrays"),
    ("tuple of sequences", (tuple(X.unbind(1)), Y), ValueError, r"parts have 2 .* a list of arrays"),
    ("empty list", ([], Y), ValueError, "x has no sequences: the list is empty"),
    ("y is an empty list", (X, []), ValueError, "y has no sequences: the list is empty"),
    ("loader", (DataLoader(TensorDataset(X, Y)), Y), TypeError, "pass its dataset"),
    ("loader alone", (DataLoader(TensorDataset(X, Y)),), TypeError, "pass its dataset"),
    ("y is missing", (X, None), TypeError, "fit needs targets y"),
    ("y has other features", (X, torch.randn(T, N, 2)), ValueError, "as many outputs as y has"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "error", "message"), [row[1:] for row in FIT], ids=[r[0] for r in FIT]
)
def test_fit(args, error, message):
    model = chain()
    before = copy.deepcopy(model)
    with pytest.raises(error, match=message):
        estimator(model).fit(*args)
    assert_same_parameters(model, before, rtol=0)


def test_mask_of_another_shape():
    with pytest.raises(ValueError, match=r"mask must have the shape \(8, 6\) or"):
        estimator().fit(X, Y, mask=torch.ones(N, dtype=torch.bool))


@pytest.mark.parametrize("bad", [0.3, torch.nan, -1.0, 2.0])
@pytest.mark.parametrize("kind", ["array", "nested", "list"])
def test_mask_of_other_numbers(bad, kind):
    x, y, mask = X, Y, torch.ones(T, N)
    mask[2, 3] = 0
    whole = {"array": mask, "nested": mask.tolist(), "list": [*mask.unbind(1)]}
    if kind == "list":
        x, y = [*X.unbind(1)], [*Y.unbind(1)]
    est, same = estimator(), mask == 1
    expected = est.evaluate(x, y, mask=[*same.unbind(1)] if kind == "list" else same)
    assert est.evaluate(x, y, mask=whole[kind]) == expected
    mask[5, 3] = bad
    whole = {"array": mask, "nested": mask.tolist(), "list": [*mask.unbind(1)]}
    with pytest.raises(ValueError, match=r"mask must hold .* 0 and 1 only, .* sequences 2 to"):
        estimator().fit(x, y, mask=whole[kind])


SPECS = [
    *[
        (f"{field} {value!r}", {**SPEC, field: value}, error, f"spec.{field} must be")
        for field in ("epochs", "batchsize", "seqsize")
        for value, error in [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
    ],
    (
        "unknown field",
        {**SPEC, "batch_size": 3},
        ValueError,
        'has no field batch_size: did you mean "batchsize"[?] There are',
    ),
    ("missing field", {"epochs": 1}, ValueError, "has no batchsize, seqsize"),
    ("nothing", None, ValueError, "has no epochs, batchsize, seqsize"),
    ("clip_norm", {**SPEC, "clip_norm": 0}, ValueError, "clip_norm must be positive"),
    ("shard", {**SPEC, "shard": "auto"}, ValueError, "shard must be"),
]


@pytest.mark.parametrize(
    ("spec", "error", "message"), [r[1:] for r in SPECS], ids=[r[0] for r in SPECS]
)
def test_spec(spec, error, message):
    with pytest.raises(error, match=message):
        fs.Estimator(chain(), LOSS, adamw, spec)


def test_unknown_field_of_spec_class():
    with pytest.raises(TypeError, match="batch_size"):
        fs.Spec(epochs=1, batchsize=1, seqsize=1, batch_size=2)


CONSTRUCTORS = [
    ("model", {"model": "lstm"}, TypeError, "model must be a torch.nn.Module, got str"),
    ("loss", {"loss": None}, TypeError, "loss must be callable"),
    ("optimizer", {"optimizer": "adam"}, TypeError, "optimizer must be a torch.optim.Optimizer"),
    ("builder", {"optimizer": list}, TypeError, "must return a torch.optim.Optimizer, got list"),
    ("stranger", {"optimizer": torch.optim.SGD(chain().parameters(), lr=1)}, ValueError,
     "6 of the optimizer's 6 parameters are not the model's"),
    ("closure", {"optimizer": torch.optim.LBFGS}, TypeError, "evaluates the loss several times"),
    ("batch_first", {"model": fs.nn.Chain(nn.LSTM(3, 1, batch_first=True))}, ValueError, "time-major"),
    ("sequential", {"model": nn.Sequential(nn.GRU(3, 1))}, TypeError, "use fastseq.nn.Chain"),
    ("seed", {"seed": 1.5}, TypeError, "seed must be an integer or None, got 1.5"),
    ("cell", {"model": nn.LSTMCell(3, 1)}, TypeError, "use nn.LSTM"),
    ("three inputs", {"model": nn.MultiheadAttention(4, 1)}, TypeError, "needs query, key, value"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"), [r[1:] for r in CONSTRUCTORS], ids=[r[0] for r in CONSTRUCTORS]
)
def test_constructor(change, error, message):
    with pytest.raises(error, match=message):
        estimator(**change)


@pytest.mark.parametrize("epochs", [0, -2, 1.0])
def test_epochs_of_one_call(epochs):
    with pytest.raises((ValueError, TypeError), match="epochs must be"):
        estimator().fit(X, Y, epochs=epochs)


def read_only():
    out = np.empty((T, N, 1), np.float32)
    out.flags.writeable = False
    return out


OUTS = [
    ("shape", np.empty((T, N, 2), np.float32), ValueError, r"out must have the shape \(8, 6, 1\), got"),
    ("dtype", np.empty((T, N, 1), int), TypeError, "out must hold torch.float32, got int64"),
    ("half", np.empty((T, N, 1), np.float16), TypeError, "out must hold torch.float32"),
    ("tensor", torch.empty(T, N, 1, dtype=torch.int32), TypeError, "out must hold torch.float32"),
    ("read-only", read_only(), ValueError, "out is read-only"),
    ("structure", (np.empty((T, N, 1)),), ValueError,
     r"structure of the model's output: out; got out\[0\]"),
    ("no array", 3, ValueError, r"out must have the shape \(8, 6, 1\), got int"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("out", "error", "message"), [r[1:] for r in OUTS], ids=[r[0] for r in OUTS]
)
def test_predict_out(out, error, message):
    with pytest.raises(error, match=message):
        estimator().predict(X, out=out)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_loss_that_is_not_finite(bad):
    y = Y.clone()
    y[5, 3] = bad
    message = (
        r"the loss is (nan|inf) in epoch 1, block 1, chunk 1 \(steps 4 to 8, sequences 2 to 4\)"
    )
    with pytest.raises(fs.NonFiniteError, match=message):
        estimator(spec={**SPEC, "nan": "keep"}).fit(X, y)


def test_loss_that_is_no_scalar():
    with pytest.raises(TypeError, match=r"one element, got \(4, 2, 1\)"):
        estimator(loss=lambda m, xs, ys: m(xs) - ys).fit(X, Y)


def test_hdf5(tmp_path: Path):
    path = tmp_path / "data.h5"
    with pytest.raises(FileNotFoundError, match="no file"):
        fs.h5mmap(path, "x")
    with h5py.File(path, "w") as file:
        file["train/x"] = X.numpy()
        file["y"] = Y.numpy()
    with pytest.raises(ValueError, match=r"'x' is not there .*train/x \(8, 6, 3\), y \(8, 6, 1\)"):
        fs.h5mmap(path, "x")
    with pytest.raises(ValueError, match=r"'train' is a group .*train/x"):
        fs.h5mmap(path, "train")
    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        fs.h5mmap(text, "x")


def test_step():
    with pytest.raises(ValueError, match=r"x must be one step .* got shape \(8, 6, 3\)"):
        estimator().step(X)


def test_seqloss():
    with pytest.raises(TypeError, match="pass per_step=True"):
        fs.seqloss(lambda a, b: (a - b).mean())
    with pytest.raises(ValueError, match="mean"):
        fs.seqloss(nn.MSELoss(reduction="sum"))


def test_utilities():
    with pytest.raises(ValueError, match=r"length 149, got shape \(3,\)"):
        fs.vec2net(chain(), torch.ones(3))
    with pytest.raises(TypeError, match="got int"):
        fs.net2vec(3)
    with pytest.raises(TypeError, match="wrap the model"):
        fs.states(chain())


def test_communicator():
    with pytest.raises(TypeError, match='comm must be "auto"'):
        fs.distributed.communicator("mpi")
    comm = fs.distributed.Communicator()
    with pytest.raises(TypeError, match="floating-point"):
        comm.allreduce_(torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="op must be"):
        comm.allreduce_(torch.ones(2), "max")
    with pytest.raises(fs.CommunicationError, match="root"):
        comm.broadcast_(torch.ones(2), root=1)
