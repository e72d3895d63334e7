"""Calls from several threads: on one estimator, on several, and beside a fit."""

import copy
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq._util.seeding import Draws
from fastseq.nn import train_eval_mode as modes
from fastseq.nn.train_eval_mode import in_mode

THREADS = 4


def estimator(model=None, **options):
    torch.manual_seed(0)
    model = model or fs.nn.Chain(fs.nn.LSTM(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    spec = {"epochs": 2, "batchsize": 4, "seqsize": 10, **options.pop("spec", {})}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return fs.Estimator(
        model, fs.seqloss(mse_loss), optimizer, spec, progress=False, device="cpu", **options
    )


def in_threads(function, calls):
    """Call `function` with numbers, from threads that begin together."""
    together = threading.Barrier(THREADS)

    def work(thread):
        together.wait()
        return [function(number) for number in range(thread, calls, THREADS)]

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(work, range(THREADS)))
    return [found[number % THREADS][number // THREADS] for number in range(calls)]


def equal(a, b):
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return np.array_equal(a, b)


def low_level(lengths):
    torch.manual_seed(1)
    x = torch.randn(20, 6, 3)
    est = estimator(spec={"scale_x": "standard", "scale_y": "standard"})
    est.fit(x, x.mean(2, keepdim=True))
    inputs = [
        [torch.randn(n + k, 3) for n in (3, 14, 9)] if lengths else torch.randn(14, 6, 3)
        for k in range(5)
    ]

    def call(number):
        x = inputs[number % 5]
        y = [a[:, :1] for a in x] if lengths else x[..., :1]
        if number % 3:
            return est.predict(x)
        return est.evaluate(x, y)

    return call


def wrapper(kind, ragged):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((24, 9, 2))
    y = x[:, -1].sum(1)
    y = np.where(y > 0, "up", "down") if kind is fs.SequenceClassifier else y
    model = kind("gru", hidden_size=4, epochs=2, dropout=0.3, random_state=0).fit(x, y)
    inputs = [
        [rng.standard_normal((4 + i + k, 2)) for i in range(3)]
        if ragged
        else rng.standard_normal((7, 9, 2))
        for k in range(5)
    ]
    for x in inputs[0] if ragged else inputs[:1]:
        x.flags.writeable = False  # torch warns of such

    def call(number):
        x = inputs[number % 5]
        if number % 3 == 0:
            return model.score(x, y[: len(x)])
        if number % 3 == 1 and kind is fs.SequenceClassifier:
            return model.predict_proba(x)
        return model.predict(x)

    return call


CALLS = {
    "Estimator": lambda: low_level(False),
    "Estimator, lists": lambda: low_level(True),
    "SequenceRegressor": lambda: wrapper(fs.SequenceRegressor, False),
    "SequenceRegressor, lists": lambda: wrapper(fs.SequenceRegressor, True),
    "SequenceClassifier": lambda: wrapper(fs.SequenceClassifier, False),
    "SequenceClassifier, lists": lambda: wrapper(fs.SequenceClassifier, True),
}


def compare(call, calls):
    alone = [call(number) for number in range(15)]
    found = in_threads(call, calls)
    wrong = [n for n, result in enumerate(found) if not equal(result, alone[n % 15])]
    assert not wrong, f"{len(wrong)} of {calls} calls returned something else"


@pytest.mark.parametrize("name", CALLS)
def test_threads_get_what_each_would_get_alone(name):
    compare(CALLS[name](), 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_many_calls_from_threads(name):
    compare(CALLS[name](), THREADS * 2000)


@pytest.mark.slow
def test_compiled_predictions_from_threads():
    est = estimator(fs.nn.Chain(nn.LSTM(3, 8), nn.Linear(8, 1)), compile=True)
    inputs = [torch.randn(14, 6, 3) for _ in range(5)]
    compare(lambda number: est.predict(inputs[number % 5]), 200)


def test_a_model_of_dropout_is_in_evaluation_mode_until_the_last_thread_is_done():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    model[0].eval()
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen = []

    def first():
        with in_mode(model, training=False):
            first_in.set()
            assert second_in.wait(10)
        first_out.set()

    def second():
        assert first_in.wait(10)
        with in_mode(model, training=False):
            second_in.set()
            assert first_out.wait(10)
            seen.append([m.training for m in model.modules()])

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(first), pool.submit(second)]:
            future.result(20)
    assert seen == [[False] * 3]
    assert [m.training for m in model.modules()] == [True, False, True]


def test_step_from_threads_loses_none():
    class Count(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, x, state=None):
            state = x[0] * 0 if state is None else state
            time.sleep(0.001)
            state = state + len(x)
            return self.one * state.expand(len(x), -1, -1), state

    est = estimator(Count())
    found = in_threads(lambda _: float(est.step(torch.zeros(1, 1))), 40)
    assert sorted(found) == list(range(1, 41))


def test_predict_publishes_the_state_it_ends_in():
    est = estimator(fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 1)))
    x = torch.randn(12, 2, 3)
    whole = est.predict(x)
    with pytest.raises(ValueError, match="features"):
        est.predict(torch.randn(12, 2, 5))  # fails: what was published stays
    after = est.step(torch.zeros(2, 3))
    again = est.predict(torch.cat([x, torch.zeros(1, 2, 3)]))
    np.testing.assert_allclose(again[:-1], whole, atol=1e-6)
    np.testing.assert_allclose(after.numpy(), again[-1], atol=1e-6)


def test_evaluation_in_a_callback_leaves_training_as_it_was():
    x = torch.randn(20, 4, 3)
    y = x[..., :1]

    class Predicts(fs.callbacks.Callback):
        def on_batch_end(self, run):
            run.estimator.predict(x)
            run.estimator.evaluate(x, y)
            assert all(m.training for m in run.model.modules())

    plain = estimator(seed=3).fit(x, y)
    watched = estimator(seed=3, callbacks=[Predicts()]).fit(x, y)
    assert torch.equal(fs.net2vec(plain.model), fs.net2vec(watched.model))


def test_predict_beside_a_fit_of_the_same_model_is_refused():
    x = torch.randn(20, 4, 3)
    training, tried = threading.Event(), threading.Event()

    def wait(_):
        training.set()
        assert tried.wait(20)

    est = estimator(seed=0, callbacks=[wait])
    with ThreadPoolExecutor(1) as pool:
        fit = pool.submit(est.fit, x, x[..., :1])
        assert training.wait(20)
        for call in (
            lambda: est.predict(x),
            lambda: est.step(x[0]),
            lambda: est.evaluate(x, x[..., :1]),
            lambda: est.fit(x, x[..., :1]),
        ):
            with pytest.raises(fs.BusyError, match="another thread trains this model"):
                call()
        tried.set()
        fit.result(20)
    alone = estimator(seed=0).fit(x, x[..., :1])
    assert torch.equal(fs.net2vec(est.model), fs.net2vec(alone.model))
    est.predict(x)


@pytest.mark.parametrize("kind", ["array", "tensor", "list", "map", "chunked", "handle"])
def test_predictions_to_the_same_out_are_refused(kind, tmp_path):
    entered, tried = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x):
            if len(x) == 5 and not entered.is_set():  # not the example that predict begins with
                entered.set()
                assert tried.wait(20)
            return self.layer(x)

    est = estimator(Slow(), spec={"seqsize": 5})
    x = torch.randn(20, 4, 3)
    with h5py.File(tmp_path / "out.h5", "w") as file:
        file.create_dataset("y", (20, 4, 1), "f4", chunks=(5, 2, 1) if kind == "chunked" else None)
    if kind in ("map", "chunked"):
        out, again = (fs.h5mmap(tmp_path / "out.h5", "y", "r+") for _ in range(2))
    elif kind == "handle":
        file = h5py.File(tmp_path / "out.h5", "r+")
        out, again = file["y"], file["y"]
    else:
        out = {"array": np.zeros, "tensor": torch.zeros, "list": np.zeros}[kind]((20, 4, 1))
        out = [*out.astype("f4").swapaxes(0, 1)] if kind == "list" else out
        again = out
    data = [*x.transpose(0, 1)] if kind == "list" else x
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(est.predict, data, out=out)
        assert entered.wait(20)
        with pytest.raises(fs.BusyError, match="another thread's predict writes to this out"):
            est.predict(data, out=again)
        tried.set()
        first.result(20)
    found, wanted = est.predict(data, out=again), est.predict(data)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
    if kind == "handle":
        file.close()


def test_fit_waits_for_predictions_under_way():
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)
            self.wrong = 0

        def forward(self, x):
            training = self.training
            time.sleep(0.02)
            self.wrong += training != self.training
            return self.layer(x)

    est = estimator(Slow())
    x = torch.randn(20, 4, 3)
    with ThreadPoolExecutor(1) as pool:
        predicted = pool.submit(est.predict, x)
        while est.model.training and not predicted.done():
            time.sleep(0.001)
        est.fit(x, x[..., :1])
        predicted.result(20)
    assert not est.model.wrong


@pytest.mark.parametrize("dropout", [0.5, 0.0])
def test_seeded_fits_in_threads_are_repeatable(dropout):
    x = torch.randn(40, 8, 3)
    model = fs.nn.Chain(fs.nn.LSTM(3, 8), nn.Dropout(dropout), nn.Linear(8, 1))
    estimators = [estimator(copy.deepcopy(model), seed=n // 2) for n in range(4)]
    alone = [estimator(copy.deepcopy(model), seed=n).fit(x, x[..., :1]) for n in range(2)]
    before = torch.get_rng_state()
    in_threads(lambda n: estimators[n].fit(x, x[..., :1]), 4)
    assert torch.equal(torch.get_rng_state(), before)
    for n, est in enumerate(estimators):
        assert torch.equal(fs.net2vec(est.model), fs.net2vec(alone[n // 2].model))


def test_seeded_wrappers_in_threads_are_repeatable():
    x = np.random.default_rng(0).standard_normal((12, 5, 2))
    y = x.sum((1, 2))

    def fit(_):
        model = fs.SequenceRegressor("gru", hidden_size=4, dropout=0.5, epochs=2, random_state=3)
        return model.fit(x, y).predict(x)

    first, *others = [fit(0), *in_threads(fit, 8)]
    assert all(np.array_equal(first, other) for other in others)


def test_a_fit_that_draws_nothing_does_not_wait():
    entered = threading.Barrier(2)

    def meet(_):
        entered.wait(20)  # both are within an epoch

    class Meets(fs.callbacks.Callback):
        on_batch_end = staticmethod(meet)

    x = torch.randn(10, 4, 3)
    model = fs.nn.Chain(fs.nn.LSTM(3, 8), nn.Linear(8, 1))
    pair = [
        estimator(copy.deepcopy(model), seed=1, callbacks=[Meets()], spec={"epochs": 1})
        for _ in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:
        fits = [pool.submit(est.fit, x, x[..., :1]) for est in pair]
        assert torch.equal(*(fs.net2vec(fit.result(30).model) for fit in fits))


def test_seeded_within_seeded():
    torch.manual_seed(3)
    before, cpu = torch.get_rng_state(), torch.device("cpu")
    with Draws(1, cpu, turns=True):
        first = torch.rand(2)
        with Draws(2, cpu, turns=True):
            torch.rand(3)
        second = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(torch.cat([first, second]), torch.rand(4))


def test_a_forked_child_does_not_wait_for_threads_it_has_not():
    torch.set_num_threads(1)  # torch itself hangs in a child after parallel work
    model = nn.Sequential(nn.Linear(3, 1), nn.Dropout())
    est = estimator(model, seed=1)
    x = torch.randn(10, 4, 3)
    inside, done = threading.Event(), threading.Event()

    def hold():
        with in_mode(model, training=False), Draws(0, torch.device("cpu"), turns=True):
            inside.set()
            done.wait(60)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        assert inside.wait(10)
        child = os.fork()
        if not child:
            threading.Timer(30, os._exit, (3,)).start()
            ok = model.training and np.isfinite(est.fit(x, x[..., :1]).predict(x)).all()
            os._exit(0 if ok else 1)
        status = os.waitpid(child, 0)[1]
        done.set()
        held.result(10)
    assert status == 0


def test_estimators_that_served_threads_are_copied_and_pickled():
    est = estimator(fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 1)))
    x = torch.randn(12, 2, 3)
    whole = est.predict(x)
    other = copy.deepcopy(est)
    other.step(torch.zeros(2, 3))
    predictor = pickle.loads(pickle.dumps(est._predictor))  # noqa: S301
    assert torch.equal(predictor.state[0], est.get_state()[0])
    assert np.array_equal(other.predict(x), whole)


def test_training_waits_for_evaluations_within_evaluations():
    model = nn.Dropout()
    inside, waits = threading.Event(), threading.Event()

    def evaluate():
        with in_mode(model, training=False):
            inside.set()
            assert waits.wait(10)
            time.sleep(0.05)  # the other thread waits by now
            with in_mode(model, training=False):
                assert not model.training
            assert not model.training

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(evaluate)
        assert inside.wait(10)
        waits.set()
        with in_mode(model, training=True):
            assert model.training
        done.result(10)
    assert model.training


class RefusesMode(nn.Linear):
    """Fails when it is put into a mode, as an interrupt at that place would."""

    refused: bool | None = None

    def train(self, mode=True):
        super().train(mode)
        if mode == self.refused:
            raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("training", [True, False])
def test_a_mode_that_could_not_be_entered_is_left(training):
    model = RefusesMode(3, 1).train(not training)
    model.refused = training
    with pytest.raises(KeyboardInterrupt), in_mode(model, training=training):
        pass
    assert model.training is not training
    model.refused = None

    def train():
        with in_mode(model, training=True):
            return model.training

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train).result()


def test_an_interrupt_of_what_waits_to_train_leaves_the_model_free(monkeypatch):
    model = nn.Linear(3, 1)
    began, end = threading.Event(), threading.Event()

    def evaluate():
        with in_mode(model, training=False):
            began.set()
            end.wait()

    def interrupt():
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(evaluate)
        began.wait()
        monkeypatch.setattr(modes._changed, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt), in_mode(model, training=True):
            pass
        monkeypatch.undo()
        end.set()
        done.result()
        assert pool.submit(lambda: estimator(model).predict(torch.zeros(2, 2, 3))).result().any()
