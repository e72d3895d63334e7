"""Named networks, pooling and schedules of the scikit-learn wrappers."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

import fastseq as fs
from fastseq.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor

RNG = np.random.default_rng(0)
BUMPS = 0.1 * RNG.standard_normal((48, 30, 2)).astype(np.float32)
LATE = RNG.integers(0, 2, 48)
for n, late in enumerate(LATE):  # early or late; the last step does not tell
    BUMPS[n, 4 + 12 * late : 12 + 12 * late, 0] += np.hanning(8) * (1 + RNG.random())
BUMPS[:, :, 1] = np.linspace(-1, 1, 30)
LIST = [x[: 26 + n % 5] for n, x in enumerate(BUMPS)]
NAMES = {
    "lstm-fcn": {}, "inception": {"hidden_size": 8}, "tcn": {"num_layers": 3},
    "transformer": {"hidden_size": 16, "lr": 3e-3},
    "gru": {"bidirectional": True, "pool": "last+mean+max"}, "lstm": {"pool": "max"},
    "rnn": {"bidirectional": True},
}  # fmt: skip


def classifier(name, **kw):
    options = {"hidden_size": 12, "lr": 1e-2, "epochs": 40, "random_state": 0, **NAMES[name], **kw}
    return SequenceClassifier(name, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "x", [pytest.param(BUMPS, marks=pytest.mark.slow), LIST], ids=["array", "list"]
)
def test_named_modules_see_whole_sequences(name, x):
    model = classifier(name).fit(x, LATE)
    if name != "rnn":  # which reads the last step, far from the bump
        assert model.score(x, LATE) > 0.95
    proba = model.predict_proba(x)
    for i in (0, 3, 7):  # in a batch as alone
        np.testing.assert_allclose(model.predict_proba([x[i]])[0], proba[i], rtol=1e-4, atol=1e-5)
    longer = np.concatenate([x[0], x[0]])
    assert model.predict([longer, x[1][:9]]).shape == (2,)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own)
    np.testing.assert_array_equal(again.predict_proba(x), proba)
    assert clone(model).get_params() == model.get_params()


@pytest.mark.parametrize("name", NAMES)
def test_named_modules_with_a_target_per_step(name):
    more = {"pool": None} if "pool" in NAMES[name] else {}
    kw = {**NAMES[name], **more, "epochs": 3, "random_state": 0}
    model = SequenceRegressor(name, **kw).fit(LIST, [a[:, 0] for a in LIST])
    found = model.predict(LIST)
    assert [len(a) for a in found] == [len(a) for a in LIST]
    np.testing.assert_allclose(model.predict([LIST[1]])[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kw", "match"),
    [
        ({"module": "tcn", "bidirectional": True}, "bidirectional is for"),
        ({"module": nn.LSTM(2, 1), "bidirectional": True}, "bidirectional is for"),
        ({"module": "mlp", "pool": "mean"}, "pool is for"),
        ({"module": "gru", "pool": "sum"}, "pool must be some of"),
        ({"module": "lstm-fcn", "num_layers": 2}, "num_layers must be None"),
        ({"module": "gru", "num_layers": 0}, "num_layers must be at least 1"),
        ({"module": "lstmfcn"}, 'did you mean "lstm-fcn"'),
        ({"module": "inception", "num_layers": 0}, "num_layers must be at least 1"),
        ({"module": "transformer", "num_layers": 0}, "num_layers must be at least 1"),
        (
            {"module": "lstm-fcn", "hidden_size": 0},
            "hidden_size must be at least 1, and a whole number, got 0",
        ),
        ({"module": "transformer", "hidden_size": 10}, "hidden_size must be a multiple of 8"),
        ({"schedule": "one-cycle"}, "schedule must be one of"),
    ],
)
def test_what_does_not_fit_together_is_refused(kw, match):
    with pytest.raises(ValueError, match=match):
        SequenceClassifier(**{"epochs": 1, **kw}).fit(BUMPS, LATE)


def test_pools_need_one_target_per_sequence_and_forecasters_other_networks():
    with pytest.raises(ValueError, match="pool='max' needs one target per sequence"):
        SequenceRegressor("gru", pool="max").fit(BUMPS, BUMPS[:, :, 0])
    with pytest.raises(ValueError, match="module='tcn' looks at whole sequences"):
        SequenceForecaster(3, module="tcn").fit(BUMPS[0])


def test_a_class_gets_bidirectional_if_it_has_it():
    class Net(fs.nn.PooledRNN):
        def __init__(self, n_in, n_out, hidden_size, bidirectional):
            super().__init__(n_in, n_out, "gru", hidden_size, bidirectional=bidirectional)

    model = SequenceClassifier(Net, bidirectional=True, epochs=1).fit(BUMPS, LATE)
    assert model.estimator_.model.rnn.bidirectional


class Rates(fs.callbacks.Callback):
    """Keeps the learning rate after each update."""

    def __init__(self):
        self.seen = []

    def __deepcopy__(self, _):
        return self

    def on_batch_end(self, run):
        self.seen.append(run.optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("name", ["onecycle", "cosine"])
def test_schedules_are_those_of_torch_over_all_updates(name):
    rates = Rates()
    model = SequenceRegressor(
        "linear", lr=0.03, schedule=name, epochs=4, batchsize=20, callbacks=[rates], warm_start=True
    ).fit(BUMPS, BUMPS.sum((1, 2)))
    updates = 4 * 3  # of 20, 20 and 8 samples
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.03)
    if name == "cosine":
        scheduler = CosineAnnealingLR(optimizer, updates)
    else:
        scheduler = OneCycleLR(optimizer, 0.03, updates + 1, pct_start=0.1, cycle_momentum=False)
    expected = []
    for _ in range(updates):
        optimizer.step()
        scheduler.step()
        expected.append(optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates.seen, expected, rtol=1e-6)
    assert expected[-1] < 1e-4
    rates.seen.clear()
    model.partial_fit(BUMPS, BUMPS.sum((1, 2)))
    assert rates.seen == [0.03] * 3
    rates.seen.clear()
    model.set_params(epochs=7).fit(BUMPS, BUMPS.sum((1, 2)))  # two more: a schedule of their own
    assert model.continued_
    assert len(rates.seen) == 6
    assert rates.seen[-1] < 1e-4


@pytest.mark.parametrize("name", ["lstm", "lstm-fcn"])
@pytest.mark.parametrize("x", [BUMPS, LIST], ids=["array", "list"])
def test_sequences_scaled_by_themselves_may_have_any_level_and_size(name, x):
    model = classifier(name, pool="last+mean+max", scale_x="instance").fit(x, LATE)
    assert model.score(x, LATE) > 0.95
    levels, sizes = RNG.uniform(-3, 3, 48), 10 ** RNG.uniform(-1, 1, 48)
    moved = [a * size + level for a, size, level in zip(x, sizes, levels, strict=True)]
    np.testing.assert_allclose(
        model.predict_proba(moved), model.predict_proba(x), rtol=1e-3, atol=1e-3
    )
    both = classifier(name, pool="last+mean+max", scale_x="both").fit(x, LATE)
    assert both.score(x, LATE) > 0.95
    longer = [np.concatenate([one, one]) for one in x[:4]]
    alone = np.concatenate([both.predict_proba([one]) for one in longer])
    np.testing.assert_allclose(both.predict_proba(longer), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kw", "y", "message"),
    [
        ({"module": "mlp"}, LATE, "sequences of several steps"),
        ({"seqsize": 12}, LATE, "whole sequences, but seqsize is 12"),
        ({"nan": "mask"}, LATE, "sequences without missing values"),
        ({"module": fs.nn.Chain(fs.nn.LSTM(4, 3), nn.Linear(3, 2))}, LATE, "Chain carries a state"),
        ({}, np.repeat(LATE[:, None], 30, 1), "one target per sequence"),
    ],
)
def test_scaling_by_themselves_needs_whole_sequences(kw, y, message):
    with pytest.raises(ValueError, match=f"scale_x='both' needs.*{message}"):
        SequenceClassifier(**kw, scale_x="both").fit(BUMPS, y)


def test_scalings_are_known_by_name():
    with pytest.raises(ValueError, match="or None, got 'bth': did you mean \"both\""):
        SequenceRegressor(scale_x="bth").fit(BUMPS, LATE)


@pytest.mark.parametrize(
    ("count", "batchsize", "accumulate", "epochs"),
    [(48, 16, 1, 200), (48, 1, 1, 20), (48, 16, 2, 300), (4, 32, 1, 600)],
)
def test_enough_updates_are_made(count, batchsize, accumulate, epochs):
    model = SequenceRegressor("linear", batchsize=batchsize, accumulate=accumulate)
    model.fit(BUMPS[:count, :2], LATE[:count])
    assert model.n_iter_ == epochs
    assert 600 <= sum(row["updates"] for row in model.history_) <= 3000
    model.set_params(warm_start=True).fit(BUMPS[:count, :2], LATE[:count])
    assert (model.continued_, model.n_iter_) == (True, 2 * epochs)


def test_chunks_and_lengths_count_as_updates():
    x = [one[: 8 + n % 20] for n, one in enumerate(BUMPS)]
    model = SequenceRegressor("gru", hidden_size=4, seqsize=8).fit(x, [one[:, 0] for one in x])
    assert model.history_[0]["updates"] == 4 + 2  # of the 32 longest, up to 27 steps, and of 16
    assert model.n_iter_ == 100


def test_too_few_updates_are_warned_of():
    with pytest.warns(UserWarning, match="updated only 6 times in 3 epochs"):
        SequenceRegressor(epochs=3).fit(BUMPS, LATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SequenceRegressor("linear", epochs=25).fit(BUMPS, LATE)
        SequenceRegressor("linear", epochs=3).partial_fit(BUMPS, LATE)


def test_the_rate_is_that_of_the_module():
    rates = [
        SequenceRegressor(module, epochs=1, **kw).fit(BUMPS, LATE).estimator_.optimizer
        .param_groups[0]["lr"]
        for module, kw in (
            ("gru", {}), ("transformer", {}), ("gru", {"schedule": None}), ("gru", {"lr": 0.3}),
            (fs.nn.Chain(fs.nn.GRU(2, 4), nn.Linear(4, 1)), {}),
        )
    ]  # fmt: skip
    assert rates == [0.01, 0.002, 0.001, 0.3, 0.001]


@pytest.mark.parametrize("epochs", [1, 2, 9, 10])
def test_schedules_of_few_updates(epochs):
    model = SequenceRegressor("linear", epochs=epochs).fit(BUMPS[:8], LATE[:8])
    rates = [row["lr"] for row in model.history_]
    assert len(rates) == epochs
    assert 0 < max(rates) <= 0.01


FIRST = BUMPS[:, :, 0]


@pytest.mark.parametrize("module", ["gru", "lstm-fcn", "auto"])
def test_rows_of_an_array_are_series_of_one_feature(module):
    kw = {"hidden_size": 8, "epochs": 3, "random_state": 0}
    model = SequenceClassifier(module, **kw).fit(FIRST, LATE)
    same = SequenceClassifier(module, **kw).fit(FIRST[:, :, None], LATE)
    proba = model.predict_proba(FIRST)
    np.testing.assert_array_equal(proba, same.predict_proba(FIRST[:, :, None]))
    assert (model.n_features_in_, same.n_features_in_) == (30, 1)
    # the same series in other forms, and longer ones
    np.testing.assert_allclose(model.predict_proba(list(FIRST)), proba, rtol=1e-5)
    np.testing.assert_allclose(model.predict_proba(FIRST[:, :, None]), proba, rtol=1e-5)
    assert model.predict([np.tile(one, 2) for one in FIRST[:3]]).shape == (3,)
    with pytest.raises(ValueError, match="expecting 30 features"):
        model.predict(FIRST[:, :29])
    with pytest.raises(ValueError, match=r"2 features, but .* expecting 1"):
        model.predict(BUMPS)
    with pytest.raises(ValueError, match="X must be sequences"):
        same.predict(FIRST[:, :1])


def test_rows_of_a_table_with_words_as_columns():
    plain = pd.DataFrame(FIRST)
    weeks = plain.rename(columns=lambda n: f"week {n}")
    words = plain.rename(columns=lambda n: "abcdefghijklmnopqrstuvwxyzäöüß"[n])
    kw = {"epochs": 2, "random_state": 0}
    assert [
        SequenceClassifier(**kw).fit(x, LATE).module_ for x in (FIRST, plain, weeks, words)
    ] == ["lstm-fcn+rocket"] * 3 + ["mlp"]
    with pytest.warns(UserWarning, match="series of 30 steps, though a column is called 'a'"):
        model = SequenceClassifier("gru", **kw).fit(words, LATE)
    assert model.estimator_.model[0].input_size == 1
    own = SequenceClassifier(fs.builders.Recurrent("gru", 4), **kw).fit(words, LATE)
    assert own.estimator_.model[0].input_size == 30


@pytest.mark.parametrize(
    ("x", "y", "kw", "module", "features"),
    [
        (BUMPS, LATE, {}, "lstm-fcn+rocket", 4),
        (LIST, LATE, {}, "lstm-fcn+rocket", 4),
        (BUMPS, LATE, {"nan": "mask"}, "lstm-fcn+rocket", 2),
        (BUMPS, LATE, {"scale_x": "standard"}, "lstm-fcn+rocket", 2),
        (BUMPS[:, :9], LATE, {}, "lstm-fcn+rocket", 4),
        (BUMPS[:, :8], LATE, {}, "lstm-fcn", 4),
        (BUMPS, LATE, {"seqsize": 10}, "lstm", 2),
        (BUMPS, np.repeat(LATE[:, None], 30, 1), {}, "lstm", 2),
        (BUMPS[:, :1], LATE, {}, "mlp", 2),
    ],
)
def test_auto_chooses_by_what_there_is_to_learn(x, y, kw, module, features):
    model = SequenceClassifier("auto", epochs=2, random_state=0, **kw).fit(x, y)
    assert model.module_ == module
    first = next(iter(model.estimator_.model.parameters()))
    assert features in first.shape
    assert model.predict(x[:3]).shape[0] == 3


def test_what_auto_chose_stays_while_training_goes_on():
    short, long = BUMPS[:, :7], BUMPS[:, :12]
    for first, then, module in ((long, short, "lstm-fcn+rocket"), (short, long, "lstm-fcn")):
        model = SequenceClassifier(epochs=2, random_state=0)
        model.partial_fit(list(first), LATE, classes=np.unique(LATE)).partial_fit(list(then), LATE)
        assert model.module_ == module
        model = SequenceClassifier(epochs=2, warm_start=True).fit(list(first), LATE)
        assert model.set_params(epochs=3).fit(list(then), LATE).continued_
        assert model.set_params(warm_start=False).fit(then, LATE).module_ != module


def test_kernels_are_no_longer_than_the_sequences_allow():
    def kernels(module, steps):
        model = SequenceRegressor(module, epochs=1).fit(np.tile(FIRST, 6)[:, :steps], LATE)
        return model.estimator_.model.kernels

    assert [kernels("lstm-fcn", steps) for steps in (8, 30, 60, 180)] == [
        (3, 3, 3), (7, 3, 3), (15, 7, 3), (31, 15, 7),
    ]  # fmt: skip
    assert kernels("inception", 180) == (39, 19, 9)
