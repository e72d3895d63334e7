from __future__ import annotations

import copy
import io
import sys
import time

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
        output = model(x) if isinstance(model, nn.Linear | LooksAhead) else model(x, None)
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
    est = estimator(model)
    expected = whole(model).numpy()
    np.testing.assert_allclose(est.predict(X), expected, rtol=1e-5, atol=1e-6)
    with pytest.warns(UserWarning, match="looks at later steps"):
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
    with pytest.raises(ValueError, match="for 11 sequences, but x has 4"):
        est.predict(X[:, :4], reset=False)
    with pytest.raises(ValueError, match="for 11 sequences, but x has 4"):
        est.step(X[0, :4])


def test_a_model_that_loses_the_time_axis_is_refused():
    class Last(nn.Module):
        def forward(self, x):
            return x[-1]

    with pytest.raises(ValueError, match=r"must be \(time, sequences, features\)"):
        estimator(nn.Sequential(nn.Linear(3, 1), Last())).predict(X)


class Plain(nn.Module):
    """Has a parameter, for there must be something to train."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))


class Learnt(nn.Module):
    """Starts from a state that it has learnt."""

    def __init__(self):
        super().__init__()
        self.rnn, self.first = nn.GRU(3, 2), nn.Parameter(torch.randn(1, 1, 2))

    def forward(self, x, state=None):
        h = self.first.expand(1, x.shape[1], 2).contiguous() if state is None else state
        return self.rnn(x, h)


class LooksAhead(Plain):
    """No recurrent layer, but its outputs depend on all steps that it is given."""

    def forward(self, x):
        return x - x.mean(0)


LENGTHS = np.array([23, 5, 0, 12, 5, 1, 23, 10, 9, 11, 0])
UNEQUAL = {
    **MODELS,
    "two layers": lambda: fs.nn.Chain(nn.GRU(3, 3), nn.RNN(3, 2)),
    "learnt": Learnt,
}


def alone(model, sequence, x=X):
    """Run the steps of one sequence that count, all by itself."""
    return whole(model, x[: LENGTHS[sequence], sequence : sequence + 1])[:, 0].numpy()


@pytest.mark.parametrize("name", UNEQUAL)
@pytest.mark.parametrize(("batchsize", "seqsize"), [(1, 1), (4, 5), (N, T), (7, 3), (N, 10)])
def test_steps_past_the_end_do_not_count(name, batchsize, seqsize):
    model = UNEQUAL[name]()
    x = X.clone()
    for n, length in enumerate(LENGTHS):
        x[length:, n] = torch.nan
    est = estimator(model, batchsize, seqsize)
    got = est.predict(x, lengths=LENGTHS)
    lists = estimator(model, batchsize, seqsize)
    ragged = lists.predict([x[:length, n] for n, length in enumerate(LENGTHS)])
    for n, length in enumerate(LENGTHS):
        assert np.isnan(got[length:, n]).all()
        assert ragged[n].shape == (length, got.shape[2])
        if length:
            np.testing.assert_allclose(got[:length, n], alone(model, n), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ragged[n], got[:length, n], rtol=1e-5, atol=1e-6)
    # Both go on where each sequence has ended.
    more = est.predict(X[:4], reset=False)
    np.testing.assert_allclose(more, lists.predict(X[:4], reset=False), rtol=1e-5, atol=1e-6)
    for n, length in enumerate(LENGTHS):
        if name == "learnt" and not length:
            continue
        series = whole(model, torch.cat([X[:length, n], X[:4, n]]).unsqueeze(1))[length:, 0]
        np.testing.assert_allclose(more[:, n], series.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["chain", "custom", "learnt"])
def test_going_on_with_lengths_keeps_what_has_ended(name):
    model = UNEQUAL[name]()
    est = estimator(model, 4, 5)
    est.predict(X[:6])
    est.predict(X[6:18], lengths=np.minimum(LENGTHS, 12), reset=False)
    for n, length in enumerate(np.minimum(LENGTHS, 12)):
        series = torch.cat([X[: 6 + length, n], X[:1, n]]).unsqueeze(1)
        np.testing.assert_allclose(
            est.predict(X[:1], reset=False, lengths=(np.arange(N) == n) * 1)[0, n],
            whole(model, series)[-1, 0].numpy(),
            rtol=1e-5,
            atol=1e-6,
        )


def test_of_unequal_lengths_what_looks_ahead_runs_each_whole():
    model = fs.nn.Chain(nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 1))
    est = estimator(model)
    for reference, one in ((model, est), (LooksAhead(), estimator(LooksAhead(), N, T))):
        got = one.predict(X, lengths=LENGTHS)
        for n in np.flatnonzero(LENGTHS):
            expected = alone(reference, n)
            np.testing.assert_allclose(got[: LENGTHS[n], n], expected, rtol=1e-5, atol=1e-6)


def test_what_a_sequence_without_steps_starts_from_may_be_unknown():
    est = estimator(Learnt())  # its GRU takes no chunk of no steps
    first = est.predict(X, lengths=LENGTHS)
    more = est.predict(X, reset=False)
    assert np.isnan(more[:, LENGTHS == 0]).all()
    assert np.isfinite(more[:, LENGTHS > 0]).all()
    assert np.isfinite(first[0, LENGTHS > 0]).all()


def test_a_state_that_grows_with_time():
    class Remembers(Plain):
        def forward(self, x, state=None):
            seen = x if state is None else torch.cat([state, x])
            return seen.cumsum(0)[-len(x) :], seen

    np.testing.assert_allclose(
        estimator(Remembers()).predict(X), X.cumsum(0).numpy(), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="grows with time cannot be kept for sequences of diff"):
        estimator(Remembers()).predict(X, lengths=LENGTHS + 23 * (LENGTHS == 0))


def test_integer_outputs_are_0_past_the_end():
    class Signs(Plain):
        def forward(self, x):
            return (x > 0).long() + 1

    got = estimator(Signs()).predict(X, lengths=LENGTHS)
    assert got.dtype == np.int64
    past = np.arange(T)[:, None] >= LENGTHS
    assert (got[past] == 0).all()
    np.testing.assert_array_equal(got[~past], ((X > 0).long() + 1).numpy()[~past])


def run(model, x, out=None, **options):
    """Predict as the estimator does, with what it adds."""
    est = estimator(model)
    return est._predictor.predict(est._learner.open(x), est.spec, out, **options)


def test_the_last_axis_can_be_left_out():
    model = chain()
    expected = estimator(model).predict(X)
    np.testing.assert_array_equal(run(model, X, squeeze=True), expected[..., 0])
    out = np.empty((T, N), np.float32)
    assert run(model, X, out, squeeze=True) is out
    np.testing.assert_array_equal(out, expected[..., 0])
    with pytest.raises(ValueError, match=r"out must have the shape \(23, 11\), got \(23, 11, 1\)"):
        run(model, X, expected, squeeze=True)
    both = run(TwoInputs(), (X, X[..., :2]), squeeze=True)
    assert both["level"].shape == (T, N)
    assert both["hidden"].shape == (T, N, 4)
    assert [a.shape for a in run(model, [X[:3, 0], X[:5, 1]], squeeze=True)] == [(3,), (5,)]
    est = estimator(model)
    assert est._predictor.step(est._learner, X[0], X[0], squeeze=True).shape == (N,)


def test_scaling_is_undone():
    model = TwoInputs()
    x = X, X[..., :2]
    raw = run(model, x)
    undo = {"hidden": None, "level": lambda a: a * 3 + 1}
    got = run(model, x, undo=undo)
    np.testing.assert_allclose(got["level"], raw["level"] * 3 + 1, rtol=1e-6)
    np.testing.assert_array_equal(got["hidden"], raw["hidden"])
    est, first = estimator(model), (x[0][0], x[1][0])
    step = est._predictor.step(est._learner, first, first, undo=undo)
    np.testing.assert_allclose(step["level"], got["level"][0], rtol=1e-5)
    with pytest.raises(ValueError, match="undo must have the structure of the model's output"):
        run(model, x, undo=(None, None))


@pytest.mark.parametrize("seconds", [1000.0, 0.1])
def test_a_bar_where_it_takes_long(seconds, monkeypatch):
    class Slow(Plain):
        def forward(self, x):
            time.sleep(0.01)
            return x

    monkeypatch.setattr("fastseq.inference.predictor._BAR_AFTER_SECONDS", seconds)
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    run(Slow(), X, progress=True)
    shown = stream.getvalue()
    if seconds == 1000:
        assert shown == ""
    else:
        assert "predict" in shown
        assert "15/15" in shown
        assert "loss" not in shown
    stream.truncate(0)
    run(Slow(), X)
    assert "15/15" not in stream.getvalue()


def test_a_failure_changes_neither_state_nor_mode():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.broken = nn.GRU(3, 2), False

        def forward(self, x, state=None):
            if self.broken and state is not None and x.shape[1] == 3:
                raise KeyError("in the last block")
            return self.rnn(x, state)

    model = Fails()
    est = estimator(model)
    est.predict(X)
    before = est.get_state()
    model.broken = True
    with pytest.raises(KeyError, match="in the last block"):
        est.predict(X, reset=False)
    assert torch.equal(est.get_state(), before)
    assert model.training
