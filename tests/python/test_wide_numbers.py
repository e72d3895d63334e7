"""Numbers that the model's dtype cannot tell apart: scaled, scaled back and scored as they came."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from models import adamw, assert_same_parameters, chain
from sklearn.metrics import r2_score
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.data.chunk_plan import ChunkPlan
from fastseq.data.scaling.inputs_and_targets import Scaling
from fastseq.data.sequences import Sequences
from fastseq.distributed import Communicator
from fastseq.distributed.replicas import Replicas
from fastseq.sklearn import SequenceRegressor

RNG = np.random.default_rng(0)
T, N = 24, 10
OFFSET = 1_700_000_000  # unix seconds: fp32 knows every 128th
X = np.round(RNG.standard_normal((T, N, 3)) * 1000)
Y = X.sum(2, keepdims=True)
KINDS = {
    "fp64": lambda a, _: a,
    "tensor": lambda a, _: torch.from_numpy(a),
    "int64": lambda a, _: a.astype(np.int64),
    "uint32": lambda a, _: a.astype(np.uint32),
    "big endian": lambda a, _: a.astype(">f8"),
    "read-only": lambda a, _: np.broadcast_to(a, a.shape),
    "sliced": lambda a, _: np.asfortranarray(a),
    "memory map": lambda a, folder: mapped(a, folder),
    "contiguous": lambda a, folder: fs.h5mmap(written(folder, a), "a"),
    "contiguous >i8": lambda a, folder: fs.h5mmap(written(folder, a.astype(">i8")), "a"),
    "gzip": lambda a, folder: h5py.File(
        written(folder, a, chunks=(7, 4, 1), compression="gzip")
    )["a"],
    "list": lambda a, _: [a[:, n] for n in range(N)],
    "list of views": lambda a, _: [a[:, n, ::-1][:, ::-1] for n in range(N)],
    "group": lambda a, folder: group(a, folder),
}  # fmt: skip


def mapped(array, folder):
    path = folder / "a.npy"
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def written(folder, array, **options):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("a", data=array, **options)
    return folder / "a.h5"


def group(array, folder):
    with h5py.File(folder / "group.h5", "w") as file:
        for n in range(N):
            file[f"g/{n}"] = array[:, n]
    return h5py.File(folder / "group.h5")["g"]


def by_hand(array):
    rows = array.reshape(-1, array.shape[2])
    return (array - rows.mean(0)) / rows.std(0)


def read(source, *, method="standard", large=False, fold=1):
    """Return what the model gets, ``(T, N, F)``, and how it was scaled."""
    data = Sequences(source, dtype=torch.float32)
    data = data.folded(fold) if fold > 1 else data
    plan = ChunkPlan(
        data.steps, data.count, batchsize=data.count if large else 4, seqsize=7,
        lengths=data.lengths,
    )  # fmt: skip
    scaling = Scaling.measure(data, plan.chunks(), (method, None), Replicas(Communicator()))
    data.scaled(scaling.x, None)
    found = torch.full((data.steps, data.count, *data.leaves[0].features), torch.nan)
    for chunk, batch in data.batches(plan.chunks()):
        assert batch.xs.dtype == torch.float32
        found[chunk.t0 : chunk.t1, chunk.n0 : chunk.n1] = batch.xs
    return found.numpy(), scaling.x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["standard", "robust"])
def test_inputs_are_scaled_before_they_are_cast(kind, method, tmp_path):
    found, affine = read(KINDS[kind](X + OFFSET, tmp_path), method=method)
    rows = X.reshape(-1, 3)
    center, scale = rows.mean(0), rows.std(0)
    if method == "robust":
        lower, center, upper = np.quantile(rows, [0.25, 0.5, 0.75], 0)
        scale = (upper - lower) / 1.349
    np.testing.assert_allclose(affine.center - OFFSET, center, rtol=0, atol=1e-5)
    np.testing.assert_allclose(affine.scale, scale, rtol=1e-5)
    np.testing.assert_allclose(found, (X - center) / scale, rtol=1e-5, atol=1e-6)
    assert affine.wide


def test_folded_and_large_memory_too():
    found, _ = read(X + OFFSET, fold=3)
    wanted = by_hand(X).reshape(3, T // 3, N, 3).swapaxes(0, 1).reshape(T // 3, 3 * N, 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    x = np.round(RNG.standard_normal((14, 4000, 20)) * 1000)  # chunks that another thread reads
    for array in (x + OFFSET, (x + OFFSET).astype(np.int64)):
        found, _ = read(array, large=True)
        np.testing.assert_allclose(found, by_hand(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["int16", "float16", "float32", "bfloat16"])
def test_what_fp32_holds_is_not_wide(kind):
    x = torch.from_numpy(X[:, :, :1] / 10).to(getattr(torch, kind))
    found, affine = read(x)
    np.testing.assert_allclose(found, by_hand(x.double().numpy()), rtol=1e-4, atol=1e-5)
    assert not affine.wide


def estimator(*, dtype=torch.float32, epochs=20, model=None, **spec):
    torch.manual_seed(0)
    model = chain() if model is None else model
    spec = {"epochs": epochs, "batchsize": 5, "seqsize": 8, "scale_x": "standard", **spec}
    spec = {"scale_y": "standard", **spec}
    return fs.Estimator(
        model.to(dtype), fs.seqloss(mse_loss), adamw, spec, progress=False, seed=0,
        callbacks=[fs.callbacks.Metrics("r2", train=True)],
    )  # fmt: skip


def losses(est):
    return [row["loss"] for row in est.history_]


def test_as_at_offset_zero():
    plain, moved = estimator(), estimator()
    plain.fit(X, Y, validation={"sequences": 2})
    moved.fit(X + OFFSET, Y + OFFSET, validation={"sequences": 2})
    np.testing.assert_allclose(losses(moved), losses(plain), rtol=1e-4)
    assert moved.history_[-1]["validation_loss"] == pytest.approx(
        plain.history_[-1]["validation_loss"], rel=1e-4
    )
    assert moved.history_[-1]["r2"] == pytest.approx(plain.history_[-1]["r2"], abs=1e-4)
    wanted = plain.predict(X)
    found = moved.predict(X + OFFSET)
    assert found.dtype == np.float64
    tolerance = 1e-3 * Y.std()
    np.testing.assert_allclose(found - OFFSET, wanted, rtol=0, atol=tolerance)
    assert moved.history_[-1]["r2"] == pytest.approx(
        r2_score(Y[:, :-2].ravel() + OFFSET, found[:, :-2].ravel()), abs=1e-4
    )
    moved.reset_state()
    steps = np.stack([moved.step(x).numpy() for x in (X + OFFSET)])
    np.testing.assert_allclose(steps, found, rtol=0, atol=1e-4 * Y.std())
    assert moved.evaluate(X + OFFSET, Y + OFFSET) == pytest.approx(plain.evaluate(X, Y), rel=1e-4)


@pytest.mark.parametrize("listed", [False, True])
def test_integer_targets_of_a_loss_of_numbers_are_scaled(listed):
    plain, moved = estimator(epochs=3), estimator(epochs=3)
    plain.fit(X, Y)
    y = Y.astype(np.int64) + OFFSET
    moved.fit([X[:, n] for n in range(N)], [y[:, n] for n in range(N)]) if listed else moved.fit(
        X, y
    )
    np.testing.assert_allclose(losses(moved), losses(plain), rtol=1e-4)
    found = moved.predict(X) - OFFSET
    np.testing.assert_allclose(found, plain.predict(X), rtol=0, atol=1e-3 * Y.std())


def test_outputs_go_where_they_are_wanted(tmp_path):
    est = estimator(epochs=1).fit(X, Y + OFFSET)
    found = est.predict(X)
    for dtype in (np.float64, np.float32):  # the latter only if it is asked for
        out = np.empty((T, N, 1), dtype)
        np.testing.assert_array_equal(est.predict(X, out=out), found.astype(dtype))
    with h5py.File(tmp_path / "out.h5", "w") as file:
        est.predict(X, out=file.create_dataset("y", (T, N, 1), np.float64))
        np.testing.assert_array_equal(file["y"][:], found)
    items = est.predict([X[:n, i] for i, n in enumerate((T, 7))])
    np.testing.assert_allclose(items[1], found[:7, 1], rtol=1e-12)
    with pytest.raises(TypeError, match=r"out must hold torch.float32, got float16"):
        est.predict(X, out=np.empty((T, N, 1), np.float16))
    narrow = estimator(epochs=1).fit(X.astype(np.float32), Y.astype(np.float32))
    assert narrow.predict(X).dtype == np.float32


def test_saved_loaded_and_exported(tmp_path):
    est = estimator(epochs=2).fit(X + OFFSET, Y + OFFSET)
    found = est.predict(X + OFFSET)
    est.save(tmp_path / "model.safetensors")
    again = fs.Estimator.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.predict(X + OFFSET), found)
    est.export(tmp_path / "model.pt2", X)
    program = torch.export.load(tmp_path / "model.pt2").module()
    state = tuple(torch.zeros(1, N, 4) for _ in range(2))
    y, _ = program(torch.from_numpy(X + OFFSET), state)
    assert y.dtype == torch.float64
    np.testing.assert_allclose(y, found, rtol=0, atol=1e-4 * Y.std())


def test_inputs_that_all_steps_or_sequences_share():
    inputs = X + OFFSET, X[0] + OFFSET, X[:, 0].astype(np.int64) + OFFSET

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(9, 1)

        def forward(self, x):
            return self.inner(torch.cat(x, 2))

    def fitted(x):
        return estimator(model=Three(), epochs=3).fit(x, Y)

    plain = fitted((X, X[0], X[:, 0]))
    moved = fitted(inputs)
    assert_same_parameters(moved.model, plain.model, rtol=1e-4)
    np.testing.assert_allclose(moved.predict(inputs), plain.predict((X, X[0], X[:, 0])), rtol=1e-3)


@pytest.mark.parametrize("offset", [1e6, 1.7e9])
def test_half_precision_rounds_what_is_scaled_alone(offset):
    rounding = 2**-8  # of bf16, of numbers of a few deviations
    plain = estimator(epochs=40).fit(X, Y + offset)
    half = estimator(dtype=torch.bfloat16, epochs=40).fit(X, Y + offset)
    errors = [np.abs(est.predict(X) - Y - offset).mean() / Y.std() for est in (plain, half)]
    assert errors[1] < errors[0] + 8 * rounding
    assert half.history_[-1]["r2"] == pytest.approx(plain.history_[-1]["r2"], abs=0.1)
    narrow = estimator(dtype=torch.bfloat16, epochs=1).fit(X, np.float32(Y))
    found = narrow.predict(X)
    assert found.dtype == np.float32
    assert not np.array_equal(found, torch.from_numpy(found).bfloat16().float())


def test_weights_keep_their_digits_in_half_precision():
    w = np.full((T, N), 1e-6)
    w[:, 0] = 70_000  # beyond fp16
    data = Sequences(X, Y, w, dtype=torch.float16)
    (_, batch), = data.batches(ChunkPlan(T, N, N, T).chunks())  # fmt: skip
    np.testing.assert_allclose(batch.ws, w, rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [lambda y: y + 1e8, lambda y: y * 1e-25, lambda y: y * 1e20],
    ids=["+", "small", "big"],
)
def test_scores_do_not_depend_on_the_unit(change):
    x, y = X.swapaxes(0, 1).astype(np.float32), X.sum((0, 2)) / 1e4
    options = {"epochs": 15, "lr": 0.01, "random_state": 0}
    plain = SequenceRegressor("gru", **options).fit(x, y)
    other = SequenceRegressor("gru", **options).fit(x, change(y))
    assert other.predict(x).dtype == np.float64
    score = other.score(x, change(y))
    assert score == pytest.approx(plain.score(x, y), abs=1e-4)
    by_numpy = 1 - np.square(change(y) - other.predict(x)).sum() / change(y).var() / len(y)
    assert score == pytest.approx(by_numpy, abs=1e-6)
    # What is single precision is not squared in it.
    narrow = np.float32(y * 1e20)
    third = SequenceRegressor("gru", **options).fit(x, narrow)
    assert third.score(x, narrow) == pytest.approx(plain.score(x, y), abs=1e-3)


@pytest.mark.parametrize("kind", ["int64", "list of int64", ">f8", "uint32"])
def test_regressors_scale_their_inputs_before_they_are_cast(kind):
    x, y = X.swapaxes(0, 1), X.sum((0, 2))
    options = {"epochs": 3, "random_state": 0}

    def given(a):
        if kind.startswith("list"):
            return list(a.astype(np.int64))
        return a.astype(kind)

    moved = SequenceRegressor("gru", **options).fit(given(x + OFFSET), y)
    base = given(x + 2**14) if kind != ">f8" else x  # as exact in fp32
    plain = SequenceRegressor("gru", **options).fit(base, y)
    np.testing.assert_allclose(losses(moved), losses(plain), rtol=1e-4)
    tolerance = 1e-3 * y.std()
    np.testing.assert_allclose(
        moved.predict(given(x + OFFSET)), plain.predict(base), rtol=0, atol=tolerance
    )
    expected = torch.float64 if kind == ">f8" else torch.float32
    assert next(moved.estimator_.model.parameters()).dtype == expected
