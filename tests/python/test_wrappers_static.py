"""Static features beside the sequences that classifiers and regressors get."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pandas as pd
import polars
import pytest
import sklearn
from sklearn.model_selection import cross_val_score
from torch import nn

import fastseq as fs
from fastseq.sklearn import SequenceClassifier, SequenceRegressor

RNG = np.random.default_rng(0)
N, T = 40, 6
X = RNG.standard_normal((N, T, 2)).astype(np.float32)
LIST = [one[: 3 + n % 4] for n, one in enumerate(X)]
NUMBERS = np.stack([RNG.uniform(50, 90, N), RNG.choice([-2e3, 5e3], N)], 1)
SCALED = (NUMBERS - NUMBERS.mean(0)) / NUMBERS.std(0)
STATIC = pd.DataFrame(NUMBERS, columns=["age", "income"]).assign(sex=RNG.choice(["f", "m"], N))
Y = SCALED[:, 1] + 0.5 * SCALED[:, 0]
SEX = (STATIC.sex == "f").to_numpy()
NAN = float("nan")


def regressor(module="gru", **kw):
    return SequenceRegressor(module, **{"epochs": 2, "hidden_size": 6, "random_state": 0, **kw})


def repeated(items, rows):
    """Append rows to the features of each step."""
    return [
        np.concatenate([one, np.repeat(row[None].astype(one.dtype), len(one), 0)], 1)
        for one, row in zip(items, rows, strict=True)
    ]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", ["lstm", "tcn", "transformer"])
@pytest.mark.parametrize("per_step", [False, True])
def test_static_features_are_columns_at_each_step(module, per_step):
    y = np.repeat(Y[:, None], T, 1) if per_step else Y
    kw = {"hidden_size": 8, "epochs": 1}
    model = regressor(module, **kw).fit(X, y, static=NUMBERS)
    beside = np.stack(repeated(X, SCALED))
    plain = regressor(module, **kw).fit(beside, y)
    assert type(model.estimator_.model) is type(plain.estimator_.model)
    assert_same(model.predict(X, static=NUMBERS), plain.predict(beside))
    assert model.n_features_in_ == 2
    assert model.score(X, y, static=NUMBERS) == pytest.approx(plain.score(beside, y), abs=1e-5)


@pytest.mark.parametrize("scale_x", [None, "instance"])
def test_static_features_of_lists_are_scaled_by_rows(scale_x):
    model = regressor(fs.nn.PooledRNN, scale_x=scale_x).fit(LIST, Y, static=NUMBERS)
    found = model.predict(LIST, static=NUMBERS)
    own = LIST
    if scale_x == "instance":
        own = [(one - one.mean(0)) / one.std(0) for one in LIST]
    plain = regressor(fs.nn.PooledRNN, scale_x=None).fit(repeated(own, SCALED), Y)
    assert_same(found, plain.predict(repeated(own, SCALED)))


@pytest.mark.parametrize("module", ["mlp", "linear"])
def test_whole_sequences_get_static_features_once(module):
    model = regressor(module).fit(X, Y, static=NUMBERS)
    table = np.concatenate([X.reshape(N, -1), SCALED.astype("f")], 1)
    plain = regressor(module).fit(table, Y)
    assert model.estimator_.model[0].in_features == 2 * T + 2
    assert_same(model.predict(X, static=NUMBERS), plain.predict(table))


@pytest.mark.parametrize("module", ["auto", "lstm", "mlp"])
@pytest.mark.parametrize("x", [X, LIST, X[:, :, 0]], ids=["array", "list", "rows"])
def test_classes_are_learnt_from_static_categories(module, x):
    if module == "mlp":
        x = X
    kw = {"hidden_size": 8, "epochs": 12, "lr": 0.05, "batchsize": 8, "random_state": 0}
    model = SequenceClassifier(module, **kw).fit(x, SEX, static=STATIC)
    assert model.score(x, SEX, static=STATIC) > 0.95
    other = STATIC.assign(sex=np.where(SEX, "m", "f"))
    assert model.score(x, SEX, static=other) < 0.05
    proba = model.predict_proba(x, static=STATIC)
    for i in (0, 5):  # in a batch as alone
        alone = model.predict_proba(x[i : i + 1], static=STATIC[i : i + 1])
        np.testing.assert_allclose(alone[0], proba[i], atol=1e-5)
    unseen, missing = (
        model.predict_proba(x, static=STATIC.assign(sex=sex)) for sex in ("unknown", None)
    )
    np.testing.assert_array_equal(missing, unseen)
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own)
    np.testing.assert_array_equal(again.predict_proba(x, static=STATIC), proba)


def test_categories_of_both_are_embedded():
    frames = [pd.DataFrame({"x": one[:, 0], "flag": one[:, 1] > 0}) for one in LIST]
    model = regressor("mlp").fit(frames[:1] * N, Y, static=STATIC)
    encode, hidden = model.estimator_.model[0], model.estimator_.model[1][0]
    assert (encode.sizes, encode.steps, encode.beside) == ((0, 2), 3, (0, 0, 2))
    assert hidden.in_features == 3 + 3 * 2 + 2 + 2
    model = regressor("lstm").fit(frames, Y, static=STATIC)
    encode = model.estimator_.model[0]
    assert encode.features == 1 + 2 + 2 + 2
    assert (
        model.predict(frames, static=STATIC) != model.predict(frames, static=STATIC[::-1])
    ).any()


def test_modules_of_ones_own_carry_their_state():
    steps = [np.cumsum(one[:, 0]) for one in LIST]

    def build(n_in, n_out, _):
        return fs.nn.Chain(nn.LSTM(n_in, 5), nn.Linear(5, n_out))

    model = regressor(build, seqsize=2).fit(LIST, steps, static=STATIC)
    whole = model.predict(LIST, static=STATIC)
    est = model.estimator_
    est.spec = dataclasses.replace(est.spec, seqsize=100)
    assert_same(whole, model.predict(LIST, static=STATIC))


# --- scaling


def test_scaling_is_that_of_training_samples():
    odd = NUMBERS.copy()
    odd[-10:] = 1e6
    kw = {"validation_fraction": 0.25, "shuffle": False}
    held = [
        regressor(**kw).fit(X, Y, static=one).predict(X[:9], static=NUMBERS[:9])
        for one in (NUMBERS, odd)
    ]
    np.testing.assert_array_equal(*held)
    weights = np.where(np.arange(N) < 30, 1.0, 0.0)
    model = [regressor(shuffle=False).fit(X, Y, weights, static=one) for one in (NUMBERS, odd)]
    found = [one.predict(X[:9], static=NUMBERS[:9]) for one in model]
    np.testing.assert_array_equal(*found)


def test_large_static_numbers_keep_their_digits():
    near = 1.7e9 + np.arange(N)[:, None]
    model = regressor(scale_x=None, epochs=1).fit(X, Y, static=near)
    plain = regressor(scale_x=None, epochs=1).fit(X, Y, static=near - 1.7e9)
    assert_same(model.predict(X, static=near), plain.predict(X, static=near - 1.7e9))


def test_static_numbers_may_be_missing_if_masked():
    gaps = NUMBERS.copy()
    gaps[3, 0], gaps[5, 1] = NAN, np.inf
    with pytest.raises(ValueError, match="static holds nan in row 3, column 0: fill it in"):
        regressor().fit(X, Y, static=gaps)
    with pytest.raises(ValueError, match="static holds nan in row 3, column 'age'"):
        regressor().fit(X, Y, static=STATIC.assign(age=gaps[:, 0]))
    model = regressor(nan="mask").fit(X, Y, static=gaps)
    known = np.where(np.isfinite(gaps), gaps, NAN)
    filled = np.where(np.isnan(known), np.nanmean(known, 0), known)
    assert_same(model.predict(X, static=gaps), model.predict(X, static=filled))
    with pytest.raises(ValueError, match="static has no value in column 1: leave it out"):
        regressor(nan="mask").fit(X, Y, static=np.where([True, False], NUMBERS, NAN))


def test_learning_rates_are_tested_with_static_features():
    found = regressor().find_lr(X, Y, static=STATIC, updates=20)
    assert len(found.losses) == 20
    beside = np.stack(repeated(X, SCALED))
    same = regressor().find_lr(X, Y, static=NUMBERS, updates=20)
    np.testing.assert_allclose(same.losses, regressor().find_lr(beside, Y, updates=20).losses, 1e-4)


# --- what continues


def test_training_continues_with_the_same_static_columns():
    model = regressor(warm_start=True)
    model.partial_fit(X, Y, static=STATIC)
    model.partial_fit(X, Y, static=STATIC.assign(sex="new"))
    assert model.n_iter_ == 2
    for static, match in ((None, "fit got static features"), (NUMBERS, "must be a data frame")):
        with pytest.raises((ValueError, TypeError), match=match):
            model.partial_fit(X, Y, static=static)
    moved = STATIC.assign(age=STATIC.age + 1e3)  # scaled as in the first fit
    before = model.set_params(epochs=3).fit(X, Y, static=moved)
    assert before.continued_
    assert not model.set_params(epochs=4).fit(X, Y, static=STATIC.assign(sex="x")).continued_
    assert not model.set_params(epochs=5).fit(X, Y, static=NUMBERS).continued_
    assert not model.set_params(epochs=6).fit(X, Y).continued_


# --- scikit-learn


def test_metadata_are_routed_to_the_folds():
    with sklearn.config_context(enable_metadata_routing=True):
        model = SequenceClassifier("linear", epochs=30, lr=0.1, random_state=0)
        model.set_fit_request(static=True).set_score_request(static=True)
        for static in (STATIC, STATIC.assign(sex=SEX)):
            scores = cross_val_score(model, X[:, :2, :1], SEX, params={"static": static}, cv=3)
            assert scores.mean() > 0.9
        shuffled = STATIC.sample(frac=1, random_state=0)
        assert (
            cross_val_score(model, X[:, :2, :1], SEX, params={"static": shuffled}, cv=3).mean()
            < 0.8
        )


@pytest.mark.parametrize(
    ("x", "static", "error", "match"),
    [
        (X, NUMBERS[:9], ValueError, "static must have a row for each of the 40 sequences, got 9"),
        (X, NUMBERS[:, 0], ValueError, "Expected 2D array, got 1D"),
        (X, X, ValueError, "Found array with dim 3"),
        (X, NUMBERS.astype(str).astype(object) + "a", ValueError, "for categories pass a data frame"),
        (X, NUMBERS.astype(str), ValueError, "for categories pass a data frame"),
        (X, NUMBERS.astype(str).astype(object), None, None),
        (X, STATIC.to_numpy(), ValueError, "for categories pass a data frame"),
        (X, NUMBERS[:, :0], ValueError, "static has no columns"),
        (X, STATIC[[]], ValueError, "static has no columns"),
        (X, STATIC.assign(when=pd.Timestamp(0)), ValueError, "static must hold numbers, but its col"),
        (X, STATIC.assign(name=[f"n{n}" for n in range(N)], age=2), None, None),
        (X[:, 0], NUMBERS, ValueError, "each row of X is a sample of one step: add its columns"),
    ],
)  # fmt: skip
def test_what_cannot_be_static_is_refused(x, static, error, match):
    model = regressor("mlp", epochs=1)
    if error is None:
        model.fit(x, Y, static=static)
        return
    with pytest.raises(error, match=match):
        model.fit(x, Y, static=static)


@pytest.mark.parametrize(
    ("static", "error", "match"),
    [
        (None, ValueError, "fit got static features, so they are needed here, too"),
        (NUMBERS, TypeError, "static must be a data frame, as in fit: its column 'sex'"),
        (STATIC[:3], ValueError, "a row for each of the 40 sequences, got 3"),
        (STATIC[["income", "age", "sex"]], ValueError, "in this order; got income, age, sex"),
        (STATIC.assign(more=1), ValueError, "got age, income, sex, more"),
        (STATIC.assign(sex=1), TypeError, "'sex' of static held categories in fit, but now its"),
        (STATIC.assign(age="old"), ValueError, "static must hold numbers, but its column 'age'"),
        (STATIC.assign(age=NAN), ValueError, "static holds nan in row 0, column 'age'"),
    ],
)
def test_later_static_features_must_be_those_of_fit(static, error, match):
    model = SequenceClassifier("lstm", hidden_size=4, epochs=1).fit(X, SEX, static=STATIC)
    for call in (
        model.predict,
        model.predict_proba,
        lambda x, static: model.score(x, SEX, static=static),
    ):
        with pytest.raises(error, match=match):
            call(X, static=static)


def test_images_have_no_static_features():
    with pytest.raises(ValueError, match="static is for sequences, but X holds images"):
        regressor("cnn").fit(X, Y, static=NUMBERS)


def test_static_features_without_those_of_fit_are_refused():
    model = regressor().fit(X, Y)
    with pytest.raises(ValueError, match="fit got no static, but static is given now"):
        model.predict(X, static=NUMBERS)
    model = regressor().fit(X, Y, static=NUMBERS)
    with pytest.raises(ValueError, match="static must have 2 columns, as in fit, got 1"):
        model.predict(X, static=NUMBERS[:, :1])


def test_static_frames_of_polars():
    frame = polars.from_pandas(STATIC)
    model = regressor().fit(X, Y, static=frame)
    plain = regressor().fit(X, Y, static=STATIC)
    np.testing.assert_array_equal(model.predict(X, static=frame), plain.predict(X, static=STATIC))
    with pytest.raises(TypeError, match="LazyFrame"):
        model.predict(X, static=frame.lazy())
