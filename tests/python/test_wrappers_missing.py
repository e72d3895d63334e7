"""Missing values in the scikit-learn estimators, and sequences that come in unusual containers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import r2_score
from torch.nn.utils.rnn import pack_sequence

import fastseq as fs
from fastseq.sklearn import SequenceClassifier, SequenceRegressor

RNG = np.random.default_rng(0)
N, T = 30, 8
X = RNG.standard_normal((N, T, 4)) * [1, 5, 0.1, 1] + [3, 0, 1, 100]
Y = np.stack([X[:, -1, 0], X[:, -2:, 1].sum(1)], 1)
XM, YM = X.copy(), Y.copy()
XM[RNG.random(X.shape) < 0.1] = np.nan
YM[RNG.random(Y.shape) < 0.2] = np.nan
OPTIONS = {"epochs": 4, "lr": 0.01, "batchsize": 10, "random_state": 0, "shuffle": False}


def missing(module="gru", **options):
    return SequenceRegressor(module, nan="mask", **OPTIONS, **options)


def filled(x):
    return np.where(np.isnan(x), np.nanmean(x.reshape(-1, 4), 0), x)


def test_missing_inputs_are_the_mean():
    model = missing(scale_y=None).fit(XM, Y)
    other = missing(scale_x=None, scale_y=None)
    center, scale = (f(XM.reshape(-1, 4), 0) for f in (np.nanmean, np.nanstd))
    other.fit((filled(XM) - center) / scale, Y)
    found, wanted = ([row["loss"] for row in m.history_] for m in (model, other))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(
        model.predict(XM), other.predict((filled(XM) - center) / scale), rtol=1e-5
    )


@pytest.mark.parametrize("ragged", [False, True])
def test_missing_targets_of_sequences_leave_loss_and_score(ragged):
    x = [a[: T - i % 3] for i, a in enumerate(X)] if ragged else X
    model = missing().fit(x, YM)
    error = (model.predict(x) - YM) / np.nanstd(YM, 0)
    estimator = model.estimator_
    ys = np.broadcast_to(YM, (T, N, 2)).copy()
    w = np.zeros((T, N))
    w[-1] = 1
    if not ragged:
        loss = estimator.evaluate(X.swapaxes(0, 1), ys, w)
        assert loss == pytest.approx(np.nanmean(error**2), rel=1e-5)
    parts = [
        r2_score(y[np.isfinite(y)], p[np.isfinite(y)])
        for y, p in zip(YM.T, model.predict(x).T, strict=True)
    ]
    assert model.score(x, YM) == pytest.approx(np.mean(parts), abs=1e-9)


def test_targets_that_are_missing_whole_are_as_if_they_had_no_weight():
    y = Y.copy()
    y[[3, 17]] = np.nan
    w = np.ones(N)
    w[[3, 17]] = 0
    found = missing(scale_x=None).fit(X, y)
    wanted = SequenceRegressor("gru", scale_x=None, **OPTIONS).fit(X, Y, w)
    np.testing.assert_allclose(found.predict(X), wanted.predict(X), rtol=1e-6)


def test_missing_steps_of_targets_per_step():
    y = X[..., 0] + X[..., 1]
    holes = np.where(RNG.random(y.shape) < 0.2, np.nan, y)
    found = missing(scale_x=None).fit(X, holes)
    wanted = SequenceRegressor("gru", scale_x=None, **OPTIONS).fit(
        X, y, np.isfinite(holes).astype(float)
    )
    np.testing.assert_allclose(found.predict(X), wanted.predict(X), rtol=1e-6)
    known = np.isfinite(holes)
    expected = r2_score(holes[known], found.predict(X)[known])
    assert found.score(X, holes) == pytest.approx(expected, abs=1e-9)


def test_classifiers_take_missing_inputs():
    labels = np.where(X[:, -1, 0] > 3, "high", "low")
    model = SequenceClassifier("gru", nan="mask", **OPTIONS).fit(XM, labels)
    np.testing.assert_allclose(
        model.predict_proba(XM), model.predict_proba(filled(XM)), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("scale_x", ["standard", "robust", None])
@pytest.mark.parametrize(
    "module",
    ["auto", "lstm", "rnn", "lstm-fcn", "inception", "tcn", "transformer", "mlp", "linear"],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_missing_inputs_of_every_module_are_the_center(module, scale_x, ragged):
    if ragged and module in ("mlp", "linear"):
        return
    x = XM.copy()
    x[::2, -2:] = np.nan  # the ends of sequences, too
    center = {"standard": np.nanmean, "robust": np.nanmedian}.get(scale_x, lambda *_: 0.0)
    given = [a[: T - i % 3] for i, a in enumerate(x)] if ragged else x
    at = center(np.concatenate(given), 0)
    if module in ("mlp", "linear"):  # whose features are those of all steps
        at = center(x, 0)
    wanted = [np.where(np.isnan(a), at, a) for a in given]
    wanted = wanted if ragged else np.stack(wanted)
    options = {**OPTIONS, "hidden_size": 16, "scale_x": scale_x, "epochs": 2}
    labels = (Y[:, 0] > 3).astype(int)
    model = SequenceClassifier(module, nan="mask", **options).fit(given, labels)
    np.testing.assert_allclose(
        model.predict_proba(given), model.predict_proba(wanted), rtol=1e-6, atol=1e-9
    )
    if scale_x is None:  # all sequences have been trained on, those that end in missing steps too
        same = SequenceClassifier(module, **options).fit(wanted, labels)
        np.testing.assert_allclose(
            model.predict_proba(given), same.predict_proba(wanted), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("ragged", [False, True])
def test_sequences_whose_last_steps_are_missing_are_learnt_from(ragged):
    x = [a[: T - i % 3].copy() for i, a in enumerate(X)] if ragged else X.copy()
    for a in x:
        a[-2:] = np.nan
    y = X[:, 0, 0]
    before = [a.copy() for a in x]
    model = missing("gru", scale_y=None, validation_fraction=0.2).fit(x, y)
    assert np.isfinite([(row["loss"], row["validation_loss"]) for row in model.history_]).all()
    np.testing.assert_equal(list(x), before)
    x[3][:] = np.nan  # nothing is known: as without weight
    w = np.ones(N)
    w[3] = 0
    other = [np.nan_to_num(a) for a in x]
    options = {**OPTIONS, "scale_x": None, "scale_y": None}
    found = SequenceRegressor("gru", nan="mask", **options).fit(x, y)
    wanted = SequenceRegressor("gru", **options).fit(other if ragged else np.stack(other), y, w)
    np.testing.assert_allclose(found.predict(x), wanted.predict(other), rtol=1e-6)


@pytest.mark.parametrize("scale_x", ["instance", "both"])
def test_sequences_with_missing_values_are_not_scaled_by_themselves(scale_x):
    with pytest.raises(ValueError, match="needs sequences without missing values, but nan is"):
        SequenceRegressor(nan="mask", scale_x=scale_x).fit(XM, Y)


def test_nan_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"Input X contains NaN: .*SequenceRegressor\(nan=\"mask\""
    ):
        SequenceRegressor("gru").fit(XM, Y)
    with pytest.raises(ValueError, match="Input X contains infinity"):
        SequenceRegressor("gru").fit(np.where(np.isnan(XM), np.inf, XM), Y)
    with pytest.raises(ValueError, match="Input y contains NaN"):
        SequenceRegressor("gru").fit(X, YM)
    with pytest.raises(ValueError, match='nan must be "raise" or "mask", got \'drop\''):
        SequenceRegressor("gru", nan="drop").fit(X, Y)


@pytest.mark.parametrize("label", [None, pd.NA, np.nan], ids=str)
def test_missing_labels_are_named(label):
    labels = np.array(["a", "b"] * (N // 2), object)
    labels[4] = label
    with pytest.raises(ValueError, match=r"y has no label at 4, but (None|<NA>|nan): leave such"):
        SequenceClassifier("gru").fit(X, labels)
    steps = [np.array(["a", "b"] * 4, object) for _ in range(N)]
    steps[2][1] = label
    with pytest.raises(ValueError, match=r"y\[2\] has no label at 1, but"):
        SequenceClassifier("gru").fit(list(X), steps)


def containers():
    parts = [torch.randn(n, 3) for n in (5, 4, 3)]
    objects = np.empty(3, object)
    objects[:] = [a.numpy() for a in parts]
    nested = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
    return {
        "packed": (pack_sequence(parts), "PackedSequence: pass .*unpack_sequence makes of it"),
        "nested": (nested, r"nested tensor: pass list\({}.unbind\(\)\)"),
        "objects": (objects, r"array of 3 arrays: .* pass a list of arrays \(T_i, F\)"),
        "lists": ([a.tolist() for a in parts], "list of lists of unequal lengths: .* pass a list"),
    }


@pytest.mark.parametrize("kind", containers())
def test_other_containers_say_what_to_pass(kind):
    array, message = containers()[kind]
    with pytest.raises((TypeError, ValueError), match="^X is an? " + message.format("X")):
        SequenceRegressor("gru").fit(array, np.zeros(3))
    est = fs.Estimator(
        torch.nn.GRU(3, 1), fs.seqloss(torch.nn.MSELoss()), torch.optim.Adam,
        {"epochs": 1, "batchsize": 2, "seqsize": 3}, progress=False,
    )  # fmt: skip
    with pytest.raises((TypeError, ValueError), match="^x is an? " + message.format("x")):
        est.fit(array, [np.zeros(n) for n in (5, 4, 3)])


@pytest.mark.parametrize(
    "array", ["text", None, {1.0}, (a for a in X)], ids=["str", "", "set", "g"]
)
def test_what_is_no_array_is_named(array):
    with pytest.raises(TypeError, match=r"X must be an array or a data frame, .*, got"):
        SequenceRegressor("gru").fit(array, Y)


def test_arrays_of_something_else_than_numbers():
    with pytest.raises(TypeError, match=r"X must hold numbers, got dtype datetime64\[s\]"):
        SequenceRegressor("gru").fit(X.astype("M8[s]"), Y)
    with pytest.raises(TypeError, match="X must hold numbers, got dtype <U"):
        SequenceRegressor("gru").fit(X.astype(str), Y)
    with pytest.raises(TypeError, match="X is a masked array"):
        SequenceRegressor("gru").fit(np.ma.masked_invalid(XM), Y)
    frame = pd.DataFrame({"a": np.arange(4.0), "town": list("abcd")})
    with pytest.raises(ValueError, match="X must hold numbers, but its column 'town' of dtype"):
        SequenceRegressor("gru").fit(frame, np.zeros(4))
    with pytest.raises(ValueError, match=r"X\[1\] must hold numbers, but its column 'town' of"):
        SequenceRegressor("gru").fit([frame[["a"]].assign(town=1.0), frame], np.zeros(2))
    frame["town"] = pd.date_range("2024", periods=4)
    with pytest.raises(
        ValueError, match=r"column 'town' of dtype datetime64.*times are not numbers"
    ):
        SequenceRegressor("gru").fit(frame, np.zeros(4))
    with pytest.raises(ValueError, match=r"all have two dimensions, .* got 1 and 2"):
        SequenceRegressor("gru").fit([np.zeros((3, 1)), np.zeros(3)], np.zeros(2))


@pytest.mark.parametrize(
    "lengths", [[T] * N, [T - i % 4 for i in range(N)]], ids=["same", "others"]
)
@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy, pd.Series], ids=["np", "torch", "pd"])
def test_lists_of_series_are_sequences_of_one_feature(lengths, of):
    series = [X[i, :n, 1] for i, n in enumerate(lengths)]
    found = SequenceRegressor("gru", **OPTIONS).fit([of(a) for a in series], Y[:, 1])
    assert found.n_features_in_ == 1
    wanted = SequenceRegressor("gru", **OPTIONS).fit([a[:, None] for a in series], Y[:, 1])
    np.testing.assert_array_equal(
        found.predict(series), wanted.predict([a[:, None] for a in series])
    )


@pytest.mark.parametrize(("module", "axis"), [("gru", 2), ("mlp", 1)])
def test_rows_of_tables_are_series_or_single_steps(module, axis):
    table = X[:, :, 0]
    model = SequenceRegressor(module, **OPTIONS).fit(table, Y[:, 0])
    assert model.n_features_in_ == T
    whole = np.expand_dims(table, axis)
    same = SequenceRegressor(module, **OPTIONS).fit(whole, Y[:, 0])
    np.testing.assert_allclose(model.predict(table), same.predict(whole), rtol=1e-6)


def test_targets_that_are_missing_in_all_samples_do_not_count_in_the_score():
    model = missing().fit(X, Y)
    y = Y.copy()
    y[:, 1] = np.nan
    expected = r2_score(Y[:, 0], model.predict(X)[:, 0])
    assert model.score(X, y) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="nothing to score"):
        model.score(X, y * np.nan)
