from __future__ import annotations

import copy

import h5py
import numpy as np
import pytest
import torch
from models import Custom, TwoInputs, adamw, chain
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs

T, N = 23, 11
X = torch.randn(T, N, 3, generator=torch.Generator().manual_seed(2))


def estimator(model, batchsize=4, seqsize=5):
    spec = fs.Spec(epochs=1, batchsize=batchsize, seqsize=seqsize)
    return fs.Estimator(model, fs.seqloss(mse_loss), adamw, spec, progress=False)


def whole(model, x=X):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        output = model(x, None) if fs.stateful.takes_state(model) else model(x)
    return output[0] if isinstance(output, tuple) else output


MODELS = {
    "chain": chain,
    "custom": Custom,
    "bare": lambda: nn.GRU(3, 2, num_layers=2),
    "stateless": lambda: nn.Linear(3, 2),
    "dropout": lambda: fs.nn.Chain(nn.LSTM(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batchsize", [1, 7, N])
@pytest.mark.parametrize("seqsize", [1, 5, T])
def test_does_not_depend_on_batchsize_and_seqsize(name, batchsize, seqsize):
    model = MODELS[name]()
    got = estimator(model, batchsize, seqsize).predict(X)
    np.testing.assert_allclose(got, whole(model).numpy(), rtol=1e-5, atol=1e-6)


def test_modes_are_restored_module_by_module():
    model = fs.nn.Chain(nn.LSTM(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    model[1].eval()
    estimator(model).predict(X)
    assert model.training
    assert not model[1].training


def test_nothing_leaks_from_fit_or_an_earlier_predict():
    model = chain()
    est = estimator(model)
    est.fit(X, X[..., :1])
    first = est.predict(X)
    np.testing.assert_allclose(first, whole(model).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(est.predict(X), first)


@pytest.mark.parametrize("name", MODELS)
def test_going_on_without_reset_is_one_series(name):
    model = MODELS[name]()
    est = estimator(model)
    expected = whole(model).numpy()
    np.testing.assert_allclose(est.predict(X[:9]), expected[:9], rtol=1e-5, atol=1e-6)
    other = estimator(model, 5, 4)
    other.set_state(est.get_state())
    np.testing.assert_allclose(
        other.predict(X[9:20], reset=False), expected[9:20], rtol=1e-5, atol=1e-6
    )
    for t in range(20, T):
        np.testing.assert_allclose(other.step(X[t]).numpy(), expected[t], rtol=1e-5, atol=1e-6)
    other.reset_state()
    np.testing.assert_allclose(other.step(X[0].numpy()), expected[0], rtol=1e-5, atol=1e-6)


def test_states_are_copies():
    est = estimator(chain())
    assert fs.states(est) is None
    est.predict(X[:5])
    state = fs.states(est)
    kept = copy.deepcopy(state)
    est.predict(X[5:], reset=False)
    assert torch.equal(state[0][0], kept[0][0])
    fs.loadstates(est, state)
    est.step(X[5])
    assert torch.equal(state[0][0], kept[0][0])


@pytest.mark.parametrize("kind", ["array", "float64", "tensor", "memmap", "hdf5", "strided"])
def test_writes_into_what_it_is_given(kind, tmp_path):
    model = chain()
    if kind == "array":
        out = np.full((T, N, 1), np.nan, np.float32)
    elif kind == "float64":
        out = np.empty((T, N, 1))
    elif kind == "tensor":
        out = torch.empty(T, N, 1)
    elif kind == "memmap":
        out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(T, N, 1))
    elif kind == "hdf5":
        file = h5py.File(tmp_path / "out.h5", "w")
        out = file.create_dataset("y", (T, N, 1), np.float32, chunks=(4, 4, 1))
    else:
        out = np.empty((N, T, 2), np.float32).transpose(1, 0, 2)[..., ::2]
    assert estimator(model).predict(X, out=out) is out
    np.testing.assert_allclose(np.asarray(out), whole(model).numpy(), rtol=1e-5, atol=1e-6)
    if kind == "hdf5":
        file.close()


def test_tuples_in_dicts_out():
    model = TwoInputs()
    x = X, torch.randn(T, N, 2)
    got = estimator(model).predict(x)
    expected = whole(model, x)
    assert got.keys() == {"level", "hidden"}
    np.testing.assert_allclose(got["level"], expected["level"].numpy(), rtol=1e-5, atol=1e-6)
    out = {"level": np.empty((T, N, 1), np.float32), "hidden": np.empty((T, N, 4), np.float32)}
    assert estimator(model).predict(x, out=out) is out
    np.testing.assert_array_equal(out["hidden"], got["hidden"])


def test_layers_that_look_ahead_see_whole_series():
    model = fs.nn.Chain(nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 1))
    with pytest.warns(UserWarning, match="looks at later steps"):
        est = estimator(model)
    expected = whole(model).numpy()
    np.testing.assert_allclose(est.predict(X), expected, rtol=1e-5, atol=1e-6)
    est.fit(X, X[..., :1])
    with pytest.raises(ValueError, match="later steps"):
        est.step(X[0])
    with pytest.raises(ValueError, match="later steps"):
        est.predict(X, reset=False)


def test_integer_inputs_are_converted():
    model = chain()
    x = torch.randint(-3, 4, (T, N, 3))
    np.testing.assert_array_equal(
        estimator(model).predict(x.numpy().astype(np.int16)), estimator(model).predict(x.float())
    )
    flags = (x > 0).numpy()
    np.testing.assert_array_equal(
        estimator(model).predict(flags), estimator(model).predict(flags.astype(float))
    )


def test_state_of_another_number_of_sequences_is_refused():
    est = estimator(chain())
    est.predict(X)
    with pytest.raises(ValueError, match="one of 11 sequences, but x has 4"):
        est.predict(X[:, :4], reset=False)
    with pytest.raises(ValueError, match="one of 11 sequences, but x has 4"):
        est.step(X[0, :4])


def test_a_model_that_loses_the_time_axis_is_refused():
    class Last(nn.Module):
        def forward(self, x):
            return x[-1]

    with pytest.raises(ValueError, match=r"must be \(time, sequences, features\)"):
        estimator(nn.Sequential(nn.Linear(3, 1), Last())).predict(X)
