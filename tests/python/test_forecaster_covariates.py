"""Covariates of `SequenceForecaster`: known ahead or not, static, of numbers and categories."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from forecasting import LEVELS, NAN, Weights, assert_same_training, quick, wave

import fastseq as fs
from fastseq.nn import ColumnEncoder
from fastseq.sklearn import SequenceForecaster
from fastseq.sklearn.forecasting.categories import find_vocabularies
from fastseq.sklearn.forecasting.covariate_rows import CovariateRows, known_so_far
from fastseq.sklearn.forecasting.windows import SeriesScaling, Windows
from fastseq.sklearn.inputs.vocabulary import Vocabulary

STEPS, MORE, HORIZON = 60, 16, 4
DAYS = pd.date_range("2024-02-20", periods=STEPS + MORE + HORIZON, tz="Europe/Berlin")
MODULES = ("segrnn", "gru")


def table(index=DAYS, seed=0):
    """Return covariates of all kinds; "was" and "state" are known in the past only."""
    rng = np.random.default_rng(seed)
    count = len(index)
    return pd.DataFrame({
        "plan": rng.standard_normal(count),
        "was": np.where(rng.random(count) < 0.3, NAN, rng.standard_normal(count)),
        "kind": rng.choice(np.array(["a", "b", "c"], object), count),
        "state": pd.Categorical(rng.choice(["on", "off"], count)),
        "flag": rng.random(count) < 0.5,
    }, index)  # fmt: skip


PANEL = [pd.Series(one, DAYS) for one in wave(len(DAYS), 3)]
PLANS = [table(seed=n) for n in range(3)]
STATIC = pd.DataFrame({"size": [1.0, 5.0, 3.0], "shop": ["x", "y", "x"]})
PAST = ("was", "state")


def whole(**more):
    return quick(**{"past": PAST, "calendar": True, "holidays": "DE", "epochs": 1, **more})


def cut(tables, begin, end):
    return [one.iloc[begin:end] for one in tables]


def fitted(f, static=STATIC, steps=STEPS, plans=PLANS, panel=PANEL):
    return f.fit(cut(panel, 0, steps), cut(plans, 0, steps), static=static)


def numbers(found):
    """Return forecasts of a list of series as an array."""
    return np.stack([np.asarray(one) for one in found])


def backtest(f, begin, end, stride, plans=PLANS):
    """Return the forecasts of a backtest as an array, the times at which they are made first."""
    found = f.backtest(cut(PANEL, begin, end), cut(plans, begin, end), stride=stride)
    columns = [name for name in found if name == "forecast" or name.startswith("q")]
    values = found[columns].to_numpy().reshape(3, -1, HORIZON, len(columns))
    values = values if "q0.5" in columns else values[..., 0]
    return np.moveaxis(values, 1, 0)


# --- forecasts of all kinds of calls agree


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("more", [{}, {"quantiles": LEVELS, "season": 7, "lags": 9}])
def test_backtests_are_predictions_from_each_origin(module, more):
    f = fitted(whole(module=module, **more))
    every, apart = (backtest(f, STEPS, STEPS + MORE, stride) for stride in (1, 5))
    np.testing.assert_allclose(every[::5], apart, rtol=1e-4, atol=1e-5)
    for origin in range(0, MORE - HORIZON, 2):  # later ones see covariates that are not known
        end = STEPS + origin
        ahead = cut(PLANS, end, end + HORIZON)
        found = numbers(f.predict(X=ahead))
        np.testing.assert_allclose(every[origin], found, rtol=1e-4, atol=1e-5)
        if origin % 10 == 0:
            plans = cut(PLANS, 0, end + HORIZON)
            again = numbers(f.predict(cut(PANEL, 0, end), plans, static=STATIC))
            np.testing.assert_allclose(found, again, rtol=1e-4, atol=1e-4)
        f.update(cut(PANEL, end, end + 2), cut(PLANS, end, end + 2))


def test_recursive_forecasts_see_what_is_known_ahead():
    known = [one.drop(columns=list(PAST)) for one in PLANS]
    f = fitted(whole(strategy="recursive", past=(), season=3), plans=known)
    found = backtest(f, STEPS, STEPS + 8, 2, known)
    for number in range(2):
        end = STEPS + 2 * number
        one = numbers(f.predict(X=cut(known, end, end + HORIZON)))
        np.testing.assert_allclose(found[number], one, rtol=1e-4, atol=1e-5)
        f.update(cut(PANEL, end, end + 2), cut(known, end, end + 2))
    # By hand: a forecast of one step, which then is a value.
    g = fitted(whole(strategy="recursive", past=(), season=3), plans=known)
    steps = []
    for step in range(HORIZON):
        end = STEPS + step
        steps.append(numbers(g.predict(X=cut(known, end, end + HORIZON)))[:, 0])
        values = [pd.Series([one], DAYS[end : end + 1]) for one in steps[-1]]
        g.update(values, cut(known, end, end + 1))
    wanted = fitted(whole(strategy="recursive", past=(), season=3), plans=known)
    wanted = numbers(wanted.predict(X=cut(known, STEPS, STEPS + HORIZON)))
    np.testing.assert_allclose(np.stack(steps, 1), wanted, rtol=1e-4, atol=1e-5)


def test_variables_apart_share_covariates_and_statics():
    y = np.stack([*wave(STEPS, 2)], 1)
    x, static = np.random.default_rng(0).standard_normal((STEPS + HORIZON, 2)), [[1.0], [4.0]]
    f = quick(past=(1,), scale=None).fit(np.stack([y, 2 * y]), x[:STEPS], static=static)
    flat = [*y.T, *(2 * y).T]
    g = quick(past=(1,), scale=None).fit(flat, x[:STEPS], static=np.repeat(static, 2, 0))
    found = f.predict(X=x[STEPS:])
    np.testing.assert_allclose(np.moveaxis(found, 2, 1).reshape(4, -1), g.predict(X=x[STEPS:]))


# --- nothing of the future


@pytest.mark.parametrize("module", MODULES)
def test_past_columns_are_never_read_after_the_origin(module):
    f = fitted(whole(module=module))
    ahead = cut(PLANS, STEPS, STEPS + HORIZON)
    wanted = numbers(f.predict(X=ahead))
    left_out = [one.drop(columns=list(PAST)) for one in ahead]
    np.testing.assert_array_equal(numbers(f.predict(X=left_out)), wanted)
    for change in ({"was": NAN, "state": None}, {"was": 1e9, "state": "off"}):
        changed = [one.assign(**change) for one in ahead]
        np.testing.assert_array_equal(numbers(f.predict(X=changed)), wanted)
        plans = [
            pd.concat([p[:STEPS], a.dropna(axis=1)]) for p, a in zip(PLANS, changed, strict=True)
        ]
        found = numbers(f.predict(cut(PANEL, 0, STEPS), plans, static=STATIC))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    other = [one.copy() for one in PLANS]
    for one in other:
        one.loc[DAYS[STEPS + 10] :, "was"] = 50.0
    for stride in (1, 5):
        one, two = (backtest(f, STEPS, STEPS + MORE, stride, x) for x in (PLANS, other))
        seen = 10 // stride + 1
        np.testing.assert_array_equal(one[:seen], two[:seen])
        assert (one[seen:] != two[seen:]).any()


@pytest.mark.parametrize("levelled", [False, True])
def test_windows_see_past_columns_up_to_their_own_step(levelled):
    rng, lags, horizon = np.random.default_rng(0), 3, 2
    arrays = [rng.standard_normal((steps, 1)) for steps in (9, 6)]
    ahead = [rng.standard_normal((len(one), 2)) for one in arrays]
    past = [rng.standard_normal((len(one), 1)) for one in arrays]
    past[0][[0, 4, 5]] = NAN
    rows = CovariateRows(ahead, past).seen(np.array([9, 6]), lagged=levelled)
    static = rng.standard_normal((2, 3))
    windows = Windows.of(
        arrays, ahead, SeriesScaling.measure(arrays, None, None), past=rows, static=static,
        lag=None, season=None, lags=lags, horizon=horizon, levelled=levelled,
    )  # fmt: skip
    _, known, seen, fixed = windows.inputs(0, 8)
    filled = pd.DataFrame(past[0]).ffill().fillna(0).to_numpy(), past[1]
    for n, own in enumerate(filled):
        columns = np.concatenate([ahead[n], own], 1) if levelled else own
        before = np.repeat(columns[:1] if levelled else 0 * columns[:1], lags - 1, axis=0)
        columns = np.concatenate([before, columns])
        for t in range(len(own) - 1):
            wanted = columns[t : t + lags]
            np.testing.assert_allclose(seen[t, n].reshape(lags, -1), wanted, rtol=1e-6)
            np.testing.assert_allclose(fixed[t, n], static[n], rtol=1e-6)
            np.testing.assert_allclose(known[t, n, :2], ahead[n][t + 1], rtol=1e-6)
    cut_up = windows.segments(4)
    assert cut_up.inputs(0, 4)[2].shape[1:] == (len(cut_up.lengths), seen.shape[2])
    for name, view in zip(("past", "static"), (cut_up.past, cut_up.static), strict=True):
        assert len(view) == len(cut_up.lengths), name


def test_gaps_hold_the_last_known_value():
    rows = np.array([[NAN, 1.0], [2.0, NAN], [NAN, NAN]])
    np.testing.assert_array_equal(known_so_far(rows), [[0, 1], [2, 1], [2, 1]])
    np.testing.assert_array_equal(known_so_far(rows[:1], np.array([7.0, 8.0])), [[7, 1]])


@pytest.mark.parametrize("module", MODULES)
def test_nothing_of_the_part_to_validate_on_is_learnt(module):
    held, runs = 10, []
    other = [one.copy() for one in PLANS]
    for one in other:
        one.iloc[STEPS - held : STEPS, 0] = 1e3
        one.iloc[STEPS - held : STEPS, 1] = -1e3
        one["kind"] = [*one["kind"][: STEPS - held], *["other"] * (len(one) - STEPS + held)]
    for plans in (PLANS, other):
        f = whole(module=module, validation=held, callbacks=[Weights()], horizon=1)
        runs.append(fitted(f, plans=plans))
    assert_same_training(*runs)
    coding = runs[1]._known.x.coding
    assert coding.vocabularies["kind"].values == ("a", "b", "c")
    wanted = np.concatenate([one["plan"][: STEPS - held] for one in PLANS]).std()
    np.testing.assert_allclose(coding.scale[0], wanted)


# --- categories


def test_codes_do_not_depend_on_the_order_of_rows_and_columns():
    moved = [one.sample(frac=1, random_state=1)[one.columns[::-1]] for one in cut(PLANS, 0, STEPS)]
    f = fitted(whole())
    g = whole().fit(cut(PANEL, 0, STEPS), moved, static=STATIC[["shop", "size"]])
    assert f._known.x.coding.vocabularies == g._known.x.coding.vocabularies
    ahead = cut(PLANS, STEPS, STEPS + HORIZON)
    swapped = [one[sorted(one.columns)][::-1] for one in ahead]
    np.testing.assert_array_equal(numbers(f.predict(X=ahead)), numbers(f.predict(X=swapped)))
    found = find_vocabularies(moved, "X")
    assert found["flag"].values == (False, True)
    assert found["state"].values == ("off", "on")  # of which rows and dtypes are in any order


def test_categories_are_found_by_value():
    column = pd.Series([3, 1, None, 3], dtype=object)
    known = Vocabulary.of([column, pd.Series([10.0])])
    assert known.values == (1, 3, 10)
    np.testing.assert_array_equal(known.codes(column, "X"), [2, 1, NAN, 2])
    np.testing.assert_array_equal(known.codes(pd.Series([10, 2, 1]), "X"), [3, 0, 1])
    declared = pd.Series(pd.Categorical(["b"], categories=["c", "b", "a"]))
    assert Vocabulary.of([declared]).values == ("b",)
    with pytest.raises(TypeError, match="X holds '3', but in fit it held categories such as 1"):
        known.codes(pd.Series(["3"]), "X")


@pytest.mark.parametrize("kind", [float, Decimal])
def test_objects_that_are_broken_numbers_are_no_categories(kind):
    column = pd.Series([kind(1), None, kind("2.5")], dtype=object)
    with pytest.raises(TypeError, match=r"column 'p' of X holds numbers, such as 2\.5, as objects"):
        find_vocabularies(column.to_frame("p"), "X")
    for fine in (column.astype("category"), column[:2], pd.Series(["a", 2.5], dtype=object)):
        assert find_vocabularies(fine.to_frame("p"), "X")["p"].values


@pytest.mark.parametrize("module", MODULES)
def test_unseen_categories_are_all_alike_and_learn_nothing(module):
    f = fitted(whole(module=module, epochs=3))
    ahead = cut(PLANS, STEPS, STEPS + HORIZON)
    found = [
        numbers(f.predict(X=[one.assign(kind=kind) for one in ahead]))
        for kind in ("new", "other", None, "a")
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[3]).any()
    embeddings = [m for m in f.estimator_.model.modules() if isinstance(m, torch.nn.Embedding)]
    assert len(embeddings) == 4  # kind, state, flag, shop
    for one in embeddings:
        assert not one.weight[0].any()
        assert one.weight[1:].any(1).all()
    new = STATIC.assign(shop=["z", None, "x"])
    other = f.predict(cut(PANEL, 0, 9), cut(PLANS, 0, 9 + HORIZON), static=new)
    assert np.isfinite(other).all()


def test_columns_are_encoded_as_by_hand():
    torch.manual_seed(0)
    encode = ColumnEncoder((0, 2, 0, 3))
    rows = torch.tensor([[0.5, 1.0, -2.0, 3.0], [1.5, 0.0, 4.0, 0.0]])
    two, three = (layer.weight.detach() for layer in encode.embed)
    wanted = torch.cat([rows[:, [0, 2]], two[[1, 0]], three[[3, 0]]], 1)
    torch.testing.assert_close(encode(rows).detach(), wanted)
    assert encode.features == wanted.shape[1]
    assert not two[0].any()


def test_a_model_that_cannot_tell_categories_apart_is_told():
    def build(n_in, n_out, rng):
        return fs.nn.Chain(torch.nn.GRU(n_in, 4), torch.nn.Linear(4, n_out)).bfloat16()

    days = pd.date_range("2020-01-01", periods=300)
    x = pd.DataFrame({"name": [f"n{n}" for n in range(300)]}, days).astype("category")
    with pytest.raises(
        ValueError, match=r"torch\.bfloat16, which cannot distinguish 300 categories"
    ):
        quick(module=build).fit(pd.Series(np.arange(300.0), days), x)


# --- static covariates


@pytest.mark.parametrize("scale", ["standard", "series"])
def test_a_new_series_is_forecast_from_its_statics(scale):
    """Series of one value each; by "series", steps are as large as those of series of its size."""
    rng = np.random.default_rng(0)
    slopes, levels = rng.choice([-1.0, 2.0], 30), 50 + 5 * rng.standard_normal(30)
    y = [level + slope * np.arange(20) for slope, level in zip(slopes, levels, strict=True)]
    kinds = pd.DataFrame({"kind": np.where(slopes > 0, "up", "down")})
    f = SequenceForecaster(4, epochs=8, random_state=0, lr=0.02, scale=scale)
    f.fit(y, static=kinds)
    new = pd.DataFrame({"kind": ["up", "down"]})
    values = np.array([[47.0], [55.0]])
    found = f.predict(list(values), static=new)
    up, down = found[:, -1] - values[:, 0]
    if scale == "standard":
        np.testing.assert_allclose([up, down], [8, -4], atol=2)
    else:
        assert up > down + 4
        np.testing.assert_allclose(f.predict(list(10 * values), static=new), 10 * found, rtol=1e-5)


def test_logarithms_of_a_new_series_change_as_those_of_others():
    y = [level * np.exp(0.1 * np.arange(20)) for level in (1.0, 10.0, 300.0)]
    f = quick(scale="series", transform="log", epochs=5, lr=0.02).fit(y)
    one, two = f.predict([[2.0], [2e6]])
    np.testing.assert_allclose(two, 1e6 * one, rtol=1e-3)


def test_statics_are_scaled_as_in_fit_and_go_by_their_names():
    y = [*wave(STEPS, 3)]
    numbers = STATIC[["size"]].assign(other=[0.1, 0.2, 0.4])
    f = quick().fit(y, static=numbers)
    unit = quick().fit(y, static=7 + 1e4 * numbers.to_numpy())
    np.testing.assert_allclose(f.predict(), unit.predict(), rtol=1e-5)
    swapped = numbers[["other", "size"]]
    np.testing.assert_array_equal(f.predict(y, static=numbers), f.predict(y, static=swapped))
    np.testing.assert_allclose(f.predict(y, static=numbers), f.predict(), rtol=1e-5)


@pytest.mark.parametrize(
    ("static", "error", "match"),
    [
        (STATIC[:2], ValueError, "static must have a row for each of 3 series, got 2"),
        (STATIC.assign(size=NAN), ValueError, "static is NaN in row 0, column 0: fill it in"),
        (STATIC.assign(when=DAYS[:3]), TypeError, "column 'when' of static must hold numbers"),
        (np.zeros((3, 2, 2)), ValueError, r"static must have the shape \(series, columns\)"),
        (STATIC.assign(tags=[[1], [2], [3]]), TypeError, "'tags' of static must hold numbers or"),
    ],
)
def test_statics_that_are_wrong_are_told(static, error, match):
    with pytest.raises(error, match=match):
        quick().fit([*wave(STEPS, 3)], static=static)


def test_statics_are_missing_or_too_much():
    y = [*wave(STEPS, 3)]
    f, g = quick().fit(y, static=STATIC), quick().fit(y)
    with pytest.raises(ValueError, match=r"fit got static covariates: pass those of y by static=…"):
        f.predict(y)
    with pytest.raises(ValueError, match="static is given, but fit got no static covariates"):
        g.predict(y, static=STATIC)
    with pytest.raises(ValueError, match="static is given without y"):
        f.predict(static=STATIC)
    with pytest.raises(TypeError, match="static must be a DataFrame, as in fit: column 'shop'"):
        f.predict(y, static=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="static must have the columns size, shop, got size"):
        f.predict(y, static=STATIC[["size"]])


# --- frames with ids


def long_frame(begin, end, order=None):
    """Return rows of all series, shuffled on request."""
    parts = [
        PLANS[n].iloc[begin:end].assign(unique_id=name, y=PANEL[n].iloc[begin:end])
        for n, name in enumerate("cab")
    ]
    rows = pd.concat(parts).rename_axis("ds").reset_index()
    return rows if order is None else rows.sample(frac=1, random_state=order)


def test_long_frames_and_dictionaries_are_lists():
    order = {"a": 1, "b": 2, "c": 0}  # series of long frames are sorted by id

    def of(tables, begin, end, names="abc"):
        return {name: tables[order[name]].iloc[begin:end] for name in names}

    static = STATIC.set_axis(list("cab"))
    y, x, ahead = of(PANEL, 0, STEPS), of(PLANS, 0, STEPS), of(PLANS, STEPS, STEPS + HORIZON)
    listed = whole().fit(list(y.values()), list(x.values()), static=static.loc[list("abc")])
    wanted = numbers(listed.predict(X=list(ahead.values())))
    named = whole().fit(y, of(PLANS, 0, STEPS, "cba"), static=static)
    found = named.predict(X=of(PLANS, STEPS, STEPS + HORIZON, "bca"))
    np.testing.assert_allclose(numbers(found.values()), wanted, rtol=1e-5)
    by_id = static.rename_axis("unique_id").reset_index()[::-1]
    long = whole().fit(long_frame(0, STEPS, order=1), static=by_id)
    known = long_frame(STEPS, STEPS + HORIZON, order=2).drop(columns=["y", *PAST])
    found = long.predict(X=known)["forecast"].to_numpy().reshape(3, HORIZON)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    again = long.predict(long_frame(0, STEPS, order=3), known, static=static)["forecast"]
    np.testing.assert_allclose(again.to_numpy().reshape(3, HORIZON), wanted, rtol=1e-4, atol=1e-4)


def test_a_single_static_column_goes_by_id():
    frame = long_frame(0, STEPS)[["unique_id", "ds", "y"]]
    size = pd.Series([3.0, 1.0, 2.0], list("cab"))
    f = quick().fit(frame, static=size)
    wanted = quick().fit(frame, static=size.to_frame("size")).predict()
    pd.testing.assert_frame_equal(f.predict(), wanted)
    pd.testing.assert_frame_equal(
        f.predict(frame, static=size[::-1]), f.predict(frame, static=size)
    )
    named = {key: part["y"].to_numpy() for key, part in frame.groupby("unique_id")}
    found = quick().fit({key: named[key] for key in "bca"}, static=size)
    again = quick().fit(
        [named[key] for key in "bca"], static=size.loc[list("bca")].to_numpy()[:, None]
    )
    found = numbers(found.predict().values())
    np.testing.assert_array_equal(found, again.predict())


def test_what_belongs_to_a_long_frame_has_ids():
    frame = long_frame(0, STEPS)
    f = whole().fit(frame, static=STATIC.set_axis(list("cab")))
    later, tables = long_frame(STEPS, STEPS + 3), cut(PLANS, STEPS, STEPS + HORIZON)
    ahead = long_frame(STEPS, STEPS + HORIZON).drop(columns="y")
    for call, error, match in [
        (lambda: whole().fit(frame, static=np.zeros((3, 1))), TypeError, "static must be a table"),
        (lambda: f.predict(frame, ahead, static=np.zeros((3, 1))), TypeError, "static must be a table"),
        (lambda: f.predict(X=tables), ValueError, "X has no ids, but the series came in a long"),
        (lambda: f.update(cut(PANEL, STEPS, STEPS + 3)), ValueError,
         "y has no ids, but the series came in a long frame: pass y as a long frame, too"),
    ]:  # fmt: skip
        with pytest.raises(error, match=match):
            call()
    parts = {key: part.set_index("ds") for key, part in later.groupby("unique_id")}
    f.update(
        {key: part["y"] for key, part in parts.items()},
        {key: part.drop(columns=["unique_id", "y"]) for key, part in parts.items()},
    )
    known = long_frame(STEPS + 3, STEPS + 3 + HORIZON).drop(columns="y")
    assert len(f.predict(X=known)) == 3 * HORIZON


def test_some_series_may_advance_with_their_covariates():
    f = whole().fit(long_frame(0, STEPS), static=STATIC.set_axis(list("cab")))
    g = whole().fit(long_frame(0, STEPS), static=STATIC.set_axis(list("cab")))
    more = long_frame(STEPS, STEPS + 3, order=1)
    f.update(more)
    late = more["unique_id"].eq("b") & more["ds"].ge(DAYS[STEPS + 1])
    g.update(more[~late]).update(more[late])
    known = long_frame(STEPS + 3, STEPS + 3 + HORIZON).drop(columns="y")
    one, two = f.predict(X=known), g.predict(X=known)
    np.testing.assert_allclose(one["forecast"], two["forecast"], rtol=1e-4, atol=1e-5)


def test_statics_go_by_id():
    y = dict(zip("cab", wave(STEPS, 3), strict=True))
    static = STATIC.set_axis(list("cab"))
    wanted = quick().fit(y, static=static).predict()
    found = quick().fit(y, static=static.loc[["a", "b", "c"]]).predict()
    for name in "cab":
        np.testing.assert_array_equal(wanted[name], found[name])
    with pytest.raises(ValueError, match="has none for 'b'"):
        quick().fit(y, static=static.loc[["a", "c"]])
    with pytest.raises(ValueError, match="static has two rows for series 'a'"):
        quick().fit(y, static=static.loc[["a", "b", "c", "a"]])
    with pytest.raises(ValueError, match="indexed by their ids, but has none for 'c'"):
        quick().fit(y, static=STATIC)
    with pytest.raises(
        ValueError, match="a row for the series, indexed by its id, but has none for"
    ):
        quick().fit({"a": y["a"]}, static=STATIC)


# --- names and positions


@pytest.mark.parametrize(
    ("x", "past", "error", "match"),
    [
        (PLANS[0], ("gone",), ValueError, "past: X has no column 'gone', but plan, was, kind"),
        (np.zeros((STEPS, 2)), ("a",), ValueError, "X is an array, whose columns have positions"),
        (np.zeros((STEPS, 2)), (2,), ValueError, "past: X has 2 columns, so none at 2"),
        (np.zeros((STEPS, 2)), (1, -1), ValueError, "past must name each column once"),
        (np.zeros((STEPS, 2)), "ab", TypeError, "past must be a list of names"),
        (np.zeros((STEPS, 2)), None, TypeError, "past must be a list of names"),
        (PLANS[0], (), ValueError, "X is NaN at step .* name columns that are not known ahead in"),
    ],
)
def test_columns_that_are_wrong_are_told(x, past, error, match):
    with pytest.raises(error, match=match):
        quick(past=past).fit(PANEL[0][:STEPS], x[:STEPS])


def test_arrays_have_positions():
    y, x = wave(STEPS + HORIZON)[0], np.random.default_rng(0).standard_normal((90, 3))
    f = quick(past=(-1, 0)).fit(y[:STEPS], x[:STEPS])
    ahead = x[STEPS : STEPS + HORIZON]
    found = f.predict(X=ahead)
    np.testing.assert_array_equal(f.predict(X=ahead[:, 1:2]), found)
    changed = ahead.copy()
    changed[:, [0, 2]] = NAN
    np.testing.assert_array_equal(f.predict(X=changed), found)
    names = pd.DataFrame(x, columns=list("abc"))
    g = quick(past=("a", "c")).fit(y[:STEPS], names[:STEPS])
    np.testing.assert_array_equal(g.predict(X=ahead), found)
    with pytest.raises(ValueError, match="must have the 3 covariates that fit got, got 2"):
        f.predict(X=ahead[:, :2])


@pytest.mark.parametrize("module", MODULES)
def test_nothing_known_ahead_needs_no_covariates_to_forecast(module):
    y, x = wave(STEPS)[0], np.random.default_rng(0).standard_normal((STEPS + HORIZON, 2))
    f = quick(past=(0, 1), module=module).fit(y, x[:STEPS])
    found = f.predict()
    np.testing.assert_allclose(f.predict(y, x[:STEPS]), found, rtol=1e-5)
    np.testing.assert_allclose(f.predict(y, x), found, rtol=1e-5)


def test_tables_with_categories_stay_tables():
    f = fitted(whole())
    with pytest.raises(TypeError, match="X must be a DataFrame, as in fit: column 'kind' holds"):
        f.predict(X=[np.zeros((HORIZON, 3))] * 3)
    with pytest.raises(TypeError, match="holds 3, but in fit it held categories such as 'a'"):
        f.predict(X=[one.assign(kind=3) for one in cut(PLANS, STEPS, STEPS + HORIZON)])


# --- what covariates are worth


@pytest.mark.parametrize("module", MODULES)
def test_covariates_help_as_they_should(module):
    """A promotion known ahead, and a signal that matters some steps later."""
    rng, steps, learnt, delay = np.random.default_rng(0), 500, 420, 9
    promotion = (rng.random(steps) < 0.15).astype(float)
    signal, noise = rng.standard_normal(steps), 0.2 * rng.standard_normal(steps)
    came = np.concatenate([np.zeros(delay), signal[:-delay]])
    y = np.sin(2 * np.pi * np.arange(steps) / 7) + 5 * promotion + came + noise
    x = np.stack([promotion, signal], 1)

    def error(columns, past):
        f = SequenceForecaster(7, season=7, module=module, past=past, random_state=0, lr=0.01,
                               epochs=12 if module == "segrnn" else 40)  # fmt: skip
        known = x[:, columns] if columns else None
        f.fit(y[:learnt], None if known is None else known[:learnt])
        found = f.backtest(y[learnt:], None if known is None else known[learnt:])
        return np.abs(found.ravel()[: steps - learnt] - y[learnt : learnt + found.size]).mean()

    alone, promoted, both = error([], ()), error([0], ()), error([0, 1], (1,))
    oracle = np.abs(noise[learnt:]).mean()
    assert promoted < 0.8 * alone
    assert both < 0.4 * alone
    assert both < 4 * oracle


def test_further_steps_see_the_last_known_values_of_past_columns():
    f = fitted(whole())
    steps = STEPS + 2 * HORIZON + 1
    ahead = [one.drop(columns=[*PAST]) for one in cut(PLANS, STEPS, steps)]
    found = numbers(f.predict(X=ahead, horizon=2 * HORIZON + 1))
    again = f.predict(cut(PANEL, 0, STEPS), cut(PLANS, 0, steps), static=STATIC,
                      horizon=2 * HORIZON + 1)  # fmt: skip
    np.testing.assert_allclose(numbers(again), found, rtol=1e-5, atol=1e-5)
    first = numbers(f.predict(X=cut(PLANS, STEPS, STEPS + HORIZON)))
    np.testing.assert_allclose(found[:, :HORIZON], first, rtol=1e-5, atol=1e-5)


def test_texts_that_differ_from_row_to_row_are_not_taken_for_categories():
    y = wave(80, 1)[0]
    x = pd.DataFrame({"price": [f"{value:.3f}" for value in np.linspace(1, 2, 84)]})
    for given in (x, [x]):
        with pytest.raises(ValueError, match=r"'price' of X.* has 84 different values in 84 rows"):
            quick().fit([y] if isinstance(given, list) else y, given)
    quick(epochs=1).fit(y, x[:80].astype("category"))
    quick(epochs=1).fit(y, pd.DataFrame({"event": ["none", "sale"] * 40}))
