"""Columns of categories in the data frames that classifiers and regressors get."""

from __future__ import annotations

import datetime
import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import polars
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from torch import nn

import fastseq as fs
from fastseq.sklearn import SequenceClassifier, SequenceRegressor

RNG = np.random.default_rng(0)
N = 64
TABLE = pd.DataFrame(
    {
        "size": RNG.standard_normal(N),
        "kind": RNG.choice(list("pqrs"), N),
        "flag": RNG.random(N) > 0.5,
    }
)
HIT = np.where(TABLE.kind.isin(["p", "r"]), 2.0, -1.0) + TABLE.flag + TABLE["size"]
FRAMES = [
    pd.DataFrame({"x": RNG.standard_normal(n), "kind": RNG.choice(list("uv"), n)})
    for n in RNG.integers(5, 9, 40)
]
MOST = np.array([(one.kind == "u").mean() > 0.5 for one in FRAMES])
STEPS = [(one.kind == "u").to_numpy(float).cumsum() for one in FRAMES]
SAME = [one[:5] for one in FRAMES]
ALIKE = [one.assign(kind="vu"[int(most)]) for one, most in zip(SAME, MOST, strict=True)]
NAN = float("nan")


def regressor(module="linear", **kw):
    return SequenceRegressor(module, **{"epochs": 2, "hidden_size": 6, "random_state": 0, **kw})


def embeddings(model):
    encode = model.estimator_.model[0]
    assert type(encode) is fs.nn.ColumnEncoder
    return [one.weight.detach().double().numpy() for one in encode.embed]


def by_hand(model, numbers, codes):
    """Return what a linear module makes of scaled numbers and of embeddings."""
    parts = [numbers, *(e[c] for e, c in zip(embeddings(model), codes, strict=True))]
    layer = model.estimator_.model[1][0]
    rows = np.concatenate(parts, 1) @ layer.weight.detach().double().numpy().T
    return (rows + layer.bias.detach().double().numpy())[:, 0]


VALUES = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=6, max_size=20)


@settings(max_examples=12, deadline=None)
@given(seen=VALUES, later=VALUES, dtype=st.sampled_from([object, "str", "category"]))
def test_tables_are_encoded_as_by_hand(seen, later, dtype):
    def frame(values):
        numbers = np.arange(len(values)) * 1.5
        return pd.DataFrame({"c": pd.Series(values, dtype=dtype), "n": numbers})

    x = frame(seen)
    if dtype != "category" and not any(seen):
        return  # nothing tells that this is text
    model = regressor(scale_y=None, epochs=1).fit(x, x.n)
    known = {value: code for code, value in enumerate(sorted({*seen} - {None}), 1)}
    for values in (seen, later):
        x_new = frame(values)
        codes = [[known.get(value, 0) for value in values]]
        scaled = (x_new[["n"]].to_numpy() - x.n.mean()) / x.n.std(ddof=0)
        expected = by_hand(model, scaled, codes)
        np.testing.assert_allclose(model.predict(x_new), expected, rtol=1e-5, atol=1e-6)
    assert not any(e[0].any() for e in embeddings(model))
    assert all(e[1:].any(1).all() for e in embeddings(model))


@pytest.mark.parametrize("module", ["auto", "mlp", "linear"])
def test_tables_are_learnt_from_their_categories(module):
    model = regressor(module, epochs=60, lr=0.05).fit(TABLE, HIT)
    assert model.module_ == ("mlp" if module == "auto" else module)
    assert model.score(TABLE, HIT) > 0.98
    assert model.n_features_in_ == 3
    assert model.feature_names_in_.tolist() == ["size", "kind", "flag"]
    new = [TABLE.assign(kind=kind) for kind in ("new", None, NAN, "p")]
    unseen, *missing, known = map(model.predict, new)
    for one in missing:
        np.testing.assert_array_equal(one, unseen)
    assert (known != unseen).any()
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own)
    np.testing.assert_array_equal(again.predict(TABLE), model.predict(TABLE))
    np.testing.assert_array_equal(clone(model).fit(TABLE, HIT).predict(TABLE), model.predict(TABLE))


MODULES = ["auto", "lstm", "gru", "rnn", "tcn", "inception", "transformer"]


@pytest.mark.parametrize("module", MODULES)
def test_sequences_are_learnt_from_their_categories(module):
    width = 16 if module == "transformer" else 8
    model = SequenceClassifier(module, hidden_size=width, lr=0.03, epochs=12, random_state=0)
    model.set_params(batchsize=8).fit(ALIKE, MOST)
    assert model.score(ALIKE, MOST) > 0.9
    proba = model.predict_proba(FRAMES)
    for i in (0, 7):  # in a batch as alone
        np.testing.assert_allclose(model.predict_proba([FRAMES[i]])[0], proba[i], atol=1e-5)


@pytest.mark.parametrize("scale_x", ["standard", "robust", None])
def test_state_is_carried_behind_embeddings(scale_x):
    model = regressor("lstm", seqsize=3, scale_x=scale_x).fit(FRAMES, STEPS)
    net, scaling, found = model.estimator_.model, model.estimator_.scaling_, model.predict(FRAMES)
    rows = np.concatenate([one.x for one in FRAMES])
    center, scale = rows.mean(), rows.std()
    if scale_x == "robust":
        lower, center, upper = np.quantile(rows, [0.25, 0.5, 0.75])
        scale = (upper - lower) / 1.349
    for one, mine in zip(FRAMES[:4], found, strict=False):
        x = one.x if scale_x is None else (one.x - center) / scale
        x = np.stack([x, (one.kind == "v") + 1.0], 1)
        with torch.no_grad():
            y = scaling.y.undo(net(torch.tensor(x)[:, None])[0])
        np.testing.assert_allclose(mine, y[:, 0, 0], rtol=1e-6)


def test_codes_are_not_scaled_within_sequences():
    kw = {"epochs": 12, "lr": 0.03, "batchsize": 8, "hidden_size": 8, "random_state": 0}
    model = SequenceClassifier("auto", scale_x="instance", **kw).fit(ALIKE, MOST)
    assert model.score(ALIKE, MOST) > 0.9
    moved = [one.assign(x=3 + 10 * one.x) for one in ALIKE]
    found, same = model.predict_proba(moved), model.predict_proba(ALIKE)
    np.testing.assert_allclose(found, same, atol=1e-4)


def test_whole_sequences_share_their_embeddings_over_steps():
    held = [one.assign(kind="a") for one in SAME[:10]]  # sorted before those of training
    kw = {"scale_x": None, "scale_y": None, "epochs": 1, "shuffle": False}
    model = regressor(validation_fraction=0.2, **kw).fit(SAME + held, np.arange(50.0))
    (kind,) = embeddings(model)
    assert kind.shape == (3, 2)
    x = np.stack([one.x for one in SAME])
    codes = np.stack([(one.kind == "v") + 1 for one in SAME])
    parts = np.concatenate([x, kind[codes].reshape(len(x), -1)], 1)
    layer = model.estimator_.model[1][0]
    expected = parts @ layer.weight.detach().double().numpy().T[:, 0] + layer.bias.item()
    np.testing.assert_allclose(model.predict(SAME), expected, rtol=1e-6)
    unseen = [one.assign(kind="new") for one in SAME[:10]]
    np.testing.assert_array_equal(model.predict(held), model.predict(unseen))


class Own(nn.Module):
    """Takes lengths, for nothing."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.layer = nn.Linear(n_in, n_out)

    def forward(self, x, lengths=None):  # noqa: ARG002
        return self.layer(x)


@pytest.mark.parametrize(
    "module",
    [
        Own, Own(3, 1), fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 1)),
        lambda n_in, n_out, _: fs.nn.PooledRNN(n_in, n_out, "gru", 4),
    ],
    ids=["class", "module", "chain", "builder"],
)  # fmt: skip
def test_modules_of_ones_own_get_numbers_and_embeddings(module):
    model = regressor(module, epochs=4).fit(FRAMES, MOST.astype(float))
    changed = [one.assign(kind="u") for one in FRAMES]
    assert not np.allclose(model.predict(changed), model.predict(FRAMES))
    with pytest.raises(ValueError, match=r"embedded categories, x has 3 features.* takes 2"):
        regressor(nn.Linear(2, 1)).fit(FRAMES, MOST.astype(float))


def test_nothing_comes_before_a_module_without_categories():
    x = TABLE[["size"]].assign(n=np.arange(N), text=[f"{n}.5" for n in range(N)])
    model, plain = regressor().fit(x, HIT), regressor().fit(x.to_numpy().astype(float), HIT)
    assert type(model.estimator_.model) is nn.Sequential
    expected = plain.predict(x.to_numpy().astype(float))
    np.testing.assert_array_equal(model.predict(x), expected)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float64", torch.float64), ("float32", torch.float32), ("int64", torch.float32),
     ("uint8", torch.float32), ("float16", torch.float32), (None, torch.float32)],
)  # fmt: skip
def test_codes_leave_the_precision_as_it_is(dtype, expected):
    many = pd.Series([f"c{n % 300}" for n in range(600)], dtype="category")
    x = pd.DataFrame({"c": many})
    if dtype is not None:
        x["n"] = (np.arange(600) % 7).astype(dtype)
    y = np.random.default_rng(0).permutation(300)[many.cat.codes].astype("float32")
    model = regressor(scale_y=None, epochs=1).fit(x, y)
    assert model.estimator_.model[0].embed[0].weight.dtype == expected
    numbers = np.zeros((600, 0))
    if dtype is not None:
        numbers = (x[["n"]].to_numpy(float) - x.n.mean()) / x.n.astype(float).std(ddof=0)
    hand = by_hand(model, numbers, [many.cat.codes.to_numpy() + 1])  # sorted as text
    np.testing.assert_allclose(model.predict(x), hand, rtol=1e-4, atol=1e-5)


# --- missing values


def test_a_missing_category_is_an_unseen_one_and_no_missing_value():
    x = TABLE.assign(kind=TABLE.kind.where(np.arange(N) % 3 > 0))
    model, other = regressor(nan="mask").fit(x, HIT), regressor().fit(x, HIT)
    np.testing.assert_array_equal(model.predict(x), other.predict(x))
    gap = x.assign(size=x["size"].where(np.arange(N) > 3))
    filled = gap.assign(size=gap["size"].fillna(x["size"].mean()))
    np.testing.assert_allclose(model.predict(gap), model.predict(filled), rtol=1e-6)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        other.predict(gap)


def test_rows_without_any_value_do_not_count():
    nothing = pd.DataFrame({"x": [NAN] * 4, "kind": [None] * 4})
    padded = [pd.concat([one, nothing], ignore_index=True) for one in FRAMES]
    more = [np.concatenate([y, np.full(4, 1e3)]) for y in STEPS]
    model = regressor("linear", nan="mask", shuffle=False, scale_y=None).fit(padded, more)
    plain = regressor("linear", shuffle=False, scale_y=None).fit(FRAMES, STEPS)
    for one, other in zip(model.predict(FRAMES), plain.predict(FRAMES), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


# --- what continues


def test_categories_that_training_did_not_see_are_unseen():
    late = TABLE.assign(kind=["z" if n >= N - 8 else kind for n, kind in enumerate(TABLE.kind)])
    held = regressor(validation_fraction=8 / N, shuffle=False).fit(late, HIT)
    weights = np.where(np.arange(N) < N - 8, 1.0, 0.0)
    weighted = regressor(shuffle=False).fit(late, HIT, weights)
    for model in (held, weighted):
        assert len(embeddings(model)[0]) == 5
        unknown = TABLE.assign(kind="new")
        np.testing.assert_array_equal(model.predict(late)[-8:], model.predict(unknown)[-8:])
    assert len(embeddings(regressor().fit(late, HIT))[0]) == 6


def test_partial_fit_keeps_its_first_categories():
    model = regressor(validation_fraction=0.25)
    for kind in ("p", "new"):
        model.partial_fit(TABLE.assign(kind=[kind, *TABLE.kind[1:]]), HIT)
    assert model.n_iter_ == 2
    assert len(embeddings(model)[0]) == 5
    np.testing.assert_array_equal(
        model.predict(TABLE.assign(kind="new")), model.predict(TABLE.assign(kind="x"))
    )
    with pytest.raises(TypeError, match="held categories in fit, but now its dtype is int64"):
        model.partial_fit(TABLE.assign(kind=1), HIT)


def test_a_warm_start_continues_with_the_same_categories():
    model = regressor(warm_start=True, validation_fraction=0.25).fit(TABLE, HIT)
    model.set_params(epochs=4).fit(TABLE[::-1], HIT[::-1])
    assert model.continued_
    model.set_params(epochs=6).fit(TABLE.assign(kind=TABLE.kind.replace("p", "t")), HIT)
    assert not model.continued_
    model.set_params(epochs=8).fit(TABLE.drop(columns="flag"), HIT)
    assert not model.continued_
    assert len(embeddings(model)) == 1


# --- forms of columns


def fitted_sizes(column):
    frame = pd.DataFrame({"c": column, "n": np.arange(len(column))})
    model = regressor("mlp", epochs=1).fit(frame, frame.n.astype(float))
    net = model.estimator_.model
    return net[0].sizes[0] if isinstance(net, fs.nn.Chain) else 0


@pytest.mark.parametrize(
    ("column", "size"),
    [
        (["a", "b", "a"], 2),
        ([True, False, True], 2),
        (pd.array([True, None, True], dtype="boolean"), 1),
        ([True, None, False], 2),
        (pd.Categorical([3, 1, 3], categories=[1, 2, 3]), 2),
        (pd.Categorical([1.5, 2.5, 1.5]), 2),
        (pd.Categorical([None, None, None], categories=["a"]), 1),
        ([None, ("a", 1), ("b", 2)], 2),
        (["1", "2", "x"], 3),
        (["1", "2", "3.5"], 0),
        ([Decimal(1), Decimal("2.5"), 3], 0),
        ([1, 2, 3], 0),
    ],
)
def test_kinds_of_columns(column, size):
    assert fitted_sizes(column) == size


@pytest.mark.parametrize(
    ("column", "error", "match"),
    [
        (pd.date_range("2020", periods=N), ValueError, "'c' of dtype datetime64.*times are not"),
        ([datetime.date(2020, 1, 1)] * N, ValueError, "must hold numbers, but its column 'c'"),
        (["2020-01-05", "2020-01-06 12:30"] * (N // 2), ValueError, "holds dates or times as text"),
        (["5.1.2020", "6/2/20"] * (N // 2), ValueError, "holds dates or times as text"),
        (["12:30", "23:59:10.5"] * (N // 2), ValueError, "dates or times as text, such as '12:30'"),
        (["1.5", "2", "n/a", "3"] * (N // 4), ValueError, "holds numbers, such as '1.5', beside"),
        ([1.5, "n/a"] * (N // 2), ValueError, "holds numbers, such as 1.5, beside 'n/a'"),
        ([*map(str, range(N - 1)), "?"], ValueError, "numbers, such as '0', beside '[?]'"),
        ([f"name {n}" for n in range(N)], ValueError, "64 different values in 64 rows"),
        ([None, *[[1, 2]] * (N - 1)], TypeError, r"'c' of X must hold numbers or categories, got"),
    ],
)
def test_what_is_neither_numbers_nor_categories_is_refused(column, error, match):
    with pytest.raises(error, match=match):
        regressor().fit(TABLE.assign(c=column), HIT)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        (
            TABLE.assign(kind=1.0),
            TypeError,
            "'kind' of X held categories in fit, but now its dtype",
        ),
        (TABLE.assign(flag=1), TypeError, "'flag' of X held categories in fit, but now its dtype"),
        (TABLE.assign(flag="yes"), TypeError, "holds 'yes', but in fit it held categories such as"),
        (TABLE.assign(size="large"), ValueError, "must hold numbers, but its column 'size'"),
        (TABLE[["kind", "size", "flag"]], ValueError, "in the same order"),
        (TABLE[["size", "kind"]], ValueError, "feature names should match"),
        (TABLE.rename(columns={"kind": "sort"}), ValueError, "feature names should match"),
        (np.zeros((3, 3)), TypeError, "X must be data frames, as its column 'kind' holds"),
        ([TABLE.to_numpy(object)], TypeError, "X must be data frames"),
    ],
)
def test_later_columns_must_be_those_of_fit(given, error, match):
    model = regressor().fit(TABLE, HIT)
    with pytest.raises(error, match=match):
        model.predict(given)


def test_columns_without_names_go_by_their_numbers():
    plain = TABLE.set_axis(range(3), axis=1)
    model = regressor().fit(plain, HIT)
    np.testing.assert_array_equal(model.predict(plain), regressor().fit(TABLE, HIT).predict(TABLE))
    with pytest.raises(ValueError, match="in another order, 0, 2, 1 instead of 0, 1, 2:"):
        model.predict(plain[[0, 2, 1]])
    with pytest.raises(ValueError, match="X has two columns 'kind'"):
        regressor().fit(TABLE.set_axis(["kind", "size", "kind"], axis=1), HIT)


def test_lists_need_the_same_columns_in_all_frames():
    y = np.arange(3.0)
    with pytest.raises(ValueError, match="feature names should match"):
        regressor("lstm").fit([*FRAMES[:2], FRAMES[2].rename(columns={"kind": "sort"})], y)
    with pytest.raises(TypeError, match=r"X must be data frames.* got ndarray"):
        regressor("lstm").fit([*FRAMES[:2], np.zeros((4, 2))], y)
    mixed = [FRAMES[0].assign(kind=None), FRAMES[1].assign(kind=NAN), FRAMES[2]]
    model = regressor("lstm").fit(mixed, y)  # frames without any category
    assert np.isfinite(model.predict(mixed)).all()
    with pytest.raises(TypeError, match=r"column 'kind' of X\[1\] held categories"):
        model.predict([FRAMES[0], FRAMES[1].assign(kind=2)])


def test_rows_of_tables_with_text_are_no_series():
    table = TABLE.set_axis(["0", "1", "2"], axis=1)
    with pytest.raises(ValueError, match=r"its column '1' of .*module='gru' reads each row as a"):
        regressor("gru").fit(table, HIT)
    assert regressor("auto").fit(table, HIT).module_ == "mlp"
    flags = pd.DataFrame(RNG.random((N, 6)) > 0.5)
    model = regressor("gru").fit(flags, HIT)  # booleans at steps are numbers
    assert model.rows_ == "series"
    np.testing.assert_array_equal(model.predict(flags), model.predict(flags.to_numpy(float)))


def test_panels_are_lists_of_their_sequences():
    panel = pd.concat(dict(enumerate(FRAMES)))
    y = MOST.astype(float)
    model, listed = regressor("gru").fit(panel, y), regressor("gru").fit(FRAMES, y)
    np.testing.assert_array_equal(model.predict(panel), listed.predict(FRAMES))
    assert model.feature_names_in_.tolist() == ["x", "kind"]
    with pytest.raises(TypeError, match="'kind' of X held categories in fit, but now its dtype"):
        model.predict(panel.assign(kind=1))
    with pytest.raises(ValueError, match="in the same order"):
        model.predict(panel[["kind", "x"]])
    with pytest.raises(ValueError, match="static features, too: use estimator_"):
        model.as_module()


def test_frames_of_polars():
    model = regressor().fit(TABLE, HIT)
    other = regressor().fit(polars.from_pandas(TABLE), HIT)
    found = other.predict(polars.from_pandas(TABLE))
    np.testing.assert_array_equal(found, model.predict(TABLE))
    np.testing.assert_array_equal(other.predict(TABLE), found)
    lists = [polars.DataFrame(one.to_dict("list")) for one in FRAMES]
    y = MOST.astype(float)
    found = regressor("gru").fit(lists, y).predict(lists)
    np.testing.assert_array_equal(found, regressor("gru").fit(FRAMES, y).predict(FRAMES))
    with pytest.raises(ValueError, match="must hold numbers, but its column 'when'"):
        when = polars.Series("when", [datetime.date(2020, 1, 1)] * N)
        regressor().fit(polars.from_pandas(TABLE).with_columns(when), HIT)
