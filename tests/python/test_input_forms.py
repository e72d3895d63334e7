"""Forms of X that other libraries have: (N, F, T), panels, nested and long frames."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import cross_val_score
from sktime.datatypes import check_is_mtype, convert_to
from wrapped import LABELS, LAST, LIST, STEPS, X, classifier, regressor, same

import fastseq as fs

FIRST = {"channels_first": True}
TURNED = np.ascontiguousarray(X.swapaxes(1, 2))  # (N, F, T)
CHOICE = {"epochs": 1, "batchsize": 4}


def turned(x):
    """Return inputs as aeon has them."""
    if isinstance(x, list):
        return [np.ascontiguousarray(a.T) for a in x]
    return np.ascontiguousarray(x.swapaxes(1, 2))


@given(
    module=st.sampled_from(["auto", "gru", "lstm-fcn", "tcn", "mlp", "linear"]),
    dtype=st.sampled_from(["f4", "f8", "i8", "u1", ">f8"]),
    ragged=st.booleans(),
    per_step=st.booleans(),
    holes=st.booleans(),
    shuffle=st.booleans(),
    fraction=st.sampled_from([None, 0.25]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=20)
def test_features_first_is_the_same_as_time_first(
    module, dtype, ragged, per_step, holes, shuffle, fraction, seed
):
    rng = np.random.default_rng(seed)
    count, steps, features = rng.integers(5, 10), rng.integers(2, 9), rng.integers(1, 6)
    if ragged and module in ("mlp", "linear"):
        per_step = True
    lengths = rng.integers(1, steps + 1, count) if ragged else [steps] * count
    x = [rng.uniform(0, 200, (n, features)).astype(dtype) for n in lengths]
    if holes and x[0].dtype.kind == "f":
        for a in x:
            a[rng.random(a.shape) < 0.1] = np.nan
    y = [rng.standard_normal(n) for n in lengths] if per_step else rng.standard_normal(count)
    if not ragged:
        x, y = np.stack(x), np.asarray(y)
    options = {"nan": "mask", "shuffle": shuffle, "validation_fraction": fraction, **CHOICE}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X.* is read as")
        plain = regressor(module, **options).fit(x, y)
    model = regressor(module, **options, **FIRST).fit(turned(x), y)
    assert same(model, plain)
    assert model.n_features_in_ == plain.n_features_in_ == features
    pairs = zip(model.predict(turned(x)), plain.predict(x), strict=True)
    for found, wanted in pairs:
        np.testing.assert_array_equal(found, wanted)
    if not holes and not per_step:
        assert model.score(turned(x), y) == plain.score(x, y)


@pytest.mark.parametrize(
    "of",
    [list, tuple, lambda x: torch.from_numpy(x), lambda x: x.tolist(),
     lambda x: [torch.from_numpy(a) for a in x]],
    ids=["list", "tuple", "tensor", "nested", "tensors"],
)  # fmt: skip
def test_features_first_in_other_containers(of):
    given_ = of(TURNED)
    model = classifier(**FIRST).fit(given_, LABELS)
    assert same(model, classifier().fit(X, LABELS))
    np.testing.assert_array_equal(
        model.predict_proba(given_), classifier().fit(X, LABELS).predict_proba(X)
    )


def test_features_first_of_steps_of_tables_and_of_bad_shapes():
    model = regressor(**FIRST).fit(TURNED, STEPS)
    assert same(model, regressor().fit(X, STEPS))
    assert model.predict(TURNED).shape == STEPS.shape
    assert model.score(TURNED, STEPS) == regressor().fit(X, STEPS).score(X, STEPS)
    series = regressor(**FIRST).fit(X[:, :, 0], LAST)  # (N, T) is the same in all libraries
    assert same(series, regressor().fit(X[:, :, 0], LAST))
    with pytest.raises(ValueError, match="6 features, but SequenceRegressor is expecting 3"):
        model.predict(X)
    with pytest.raises(ValueError, match=r"shape \(N, F, T\) .*arrays \(F, T_i\), got"):
        regressor(**FIRST).fit(X[..., None], LAST)
    with pytest.raises(ValueError, match=r"no time steps: its shape is \(48, 3, 0\)"):
        regressor(**FIRST).fit(TURNED[..., :0], LAST)
    with pytest.raises(TypeError, match="channels_first=True is for arrays"):
        regressor(**FIRST).fit([pd.DataFrame(a) for a in LIST], LAST)


def test_features_first_in_scikit_learn_and_on_going_on():
    scores = cross_val_score(classifier(**FIRST), TURNED, LABELS, cv=3)
    assert scores.tolist() == cross_val_score(classifier(), X, LABELS, cv=3).tolist()
    model = regressor(**FIRST).partial_fit(TURNED, LAST).partial_fit(TURNED, LAST)
    assert same(model, regressor().partial_fit(X, LAST).partial_fit(X, LAST))
    with pytest.raises(ValueError, match="cannot continue: channels_first changed"):
        model.set_params(channels_first=False).partial_fit(X, LAST)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((8, 1, 40)), r"X \(8, 1, 40\) is read as 1 step of 40 features: if it is \(N, F"),
        (np.ones((8, 3, 30)), r"X \(8, 3, 30\) is read as 3 steps of 30 features: if it is \(N, F"),
        (list(np.ones((8, 3, 30))), r"X\[0\] \(3, 30\) is read as .* \(F, T_i\), pass channels_f"),
    ],
)
@pytest.mark.parametrize("module", ["auto", "gru"])
def test_time_where_it_can_hardly_be_is_warned_of(module, x, message):
    with pytest.warns(UserWarning, match=message) as caught:
        model = regressor(module, epochs=1).fit(x, LAST[:8])
    assert {one.filename for one in caught if re.search(message, str(one.message))} == {__file__}
    model.predict(x)  # warnings are errors
    model.partial_fit(x, LAST[:8])


def test_no_warning_where_data_are_right():
    y, index = LAST[:8], pd.MultiIndex.from_product([range(8), range(2)])
    wide = np.random.default_rng(0).standard_normal((8, 2, 30))
    for module, x, more in (
        ("mlp", wide, {}), ("linear", wide[:, :1], {}), (fs.builders.MLP((4,)), wide, {}),
        ("gru", wide[..., :19], {}), ("auto", wide[:, :1, :9], {}), ("gru", wide[:, 0], {}),
        ("gru", wide, FIRST), ("gru", [pd.DataFrame(a) for a in wide], {}),
        ("gru", pd.DataFrame(wide.reshape(16, 30), index), {}),
    ):  # fmt: skip
        regressor(module, epochs=1, **more).fit(x, y)


def test_lists_that_differ_in_their_features_may_have_them_first():
    swapped = turned(LIST)
    with pytest.raises(ValueError, match=r"X\[1\] has 3 features.*\(F, T_i\), pass channels_first"):
        regressor().fit(swapped, LAST)
    with pytest.raises(ValueError, match=r"X\[1\] has 2 features, but X\[0\] has 3$"):
        regressor().fit([X[0], X[1, :4, :2]], LAST[:2])


def panel(x):
    """Return a frame as sktime calls "pd-multiindex"."""
    index = pd.MultiIndex.from_tuples(
        [(7 * n % 100, t) for n, a in enumerate(x) for t in range(len(a))], names=["case", "time"]
    )
    return pd.DataFrame(np.concatenate(list(x)), index, columns=["a", "b", "c"])


@pytest.mark.parametrize("x", [X, LIST], ids=["equal", "ragged"])
@pytest.mark.parametrize("module", ["auto", "gru", fs.builders.Recurrent("gru", 4)])
def test_panels_are_lists_of_sequences(x, module):
    frame = panel(x)
    model = classifier(module).fit(frame, LABELS)
    assert same(model, classifier(module).fit(list(x), LABELS))
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert model.n_features_in_ == 3
    np.testing.assert_array_equal(model.predict_proba(frame), model.predict_proba(list(x)))
    one = frame.loc[[7]]
    np.testing.assert_allclose(
        model.predict_proba(one), model.predict_proba(list(x))[1:2], rtol=1e-5
    )
    y = [a[:, 0] for a in x]
    steps = regressor("gru", **FIRST).fit(frame, y)  # says itself which is time
    assert [len(a) for a in steps.predict(frame)] == [len(a) for a in y]
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["c", "b", "a"]])


def test_panels_of_sktime():
    first = X.swapaxes(1, 2)
    frame = convert_to(first, "pd-multiindex", as_scitype="Panel")
    assert check_is_mtype(frame, "pd-multiindex", "Panel")
    model = regressor().fit(frame, LAST)
    assert same(model, regressor().fit(list(X), LAST))
    frames = convert_to(first, "df-list", as_scitype="Panel")
    assert same(model, regressor().fit(frames, LAST))
    assert same(model, regressor(**FIRST).fit(first, LAST))


def test_rows_of_panels_must_be_in_order():
    frame = panel(X)
    for wrong in (
        frame.iloc[::-1], pd.concat([frame.iloc[:4], frame.iloc[3:]]),
        frame.set_index(frame.index.set_levels([pd.NaT] * 6, level=1, verify_integrity=False)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="one row for each time of a sequence, in order"):
            regressor().fit(wrong, LAST)
    parted = pd.concat([frame.iloc[:4], frame.iloc[6:], frame.iloc[4:6]])
    with pytest.raises(ValueError, match="rows of the sequence 0 in several places: sort X by"):
        regressor().fit(parted, LAST)
    back = frame.iloc[::-1].sort_index()
    assert same(regressor().fit(back, LAST), regressor().fit(frame.sort_index(), LAST))


def test_what_belongs_to_a_panel_must_have_its_order():
    """By the index, if it names the panel's sequences; an array has no names."""
    frame = panel(X).rename(index="n{}".format, level=0)
    names = frame.index.unique(0)
    y = pd.Series(LAST, names)
    right = regressor(epochs=1).fit(frame, y, static=y.to_frame("a"), sample_weight=y.abs())
    back = y.iloc[::-1]
    for wrong in (
        (frame, back), (frame, y, back.abs()), (frame, y, None, back.to_frame("a")),
    ):  # fmt: skip
        x, *given, static = (*wrong, None, None)[:4]
        with pytest.raises(ValueError, match="the sequences of X in another order, by its index"):
            regressor(epochs=1).fit(x, *given, static=static)
    with pytest.raises(ValueError, match="y has the sequences of X in another order"):
        right.score(frame, back, static=y.to_frame("a"))
    with pytest.raises(ValueError, match="static has the sequences of X in another order"):
        right.predict(frame, static=back.to_frame("a"))
    other = y.set_axis(range(48))  # no names of sequences: rows count
    found = regressor(epochs=1).fit(
        frame, other, static=y.to_numpy()[:, None], sample_weight=y.abs()
    )
    assert same(right, found)


@pytest.mark.parametrize("module", ["gru", "mlp"])
def test_what_belongs_to_a_table_must_have_its_order(module):
    index = pd.Index([f"n{7 * n % 48}" for n in range(48)])
    x, y = pd.DataFrame(X[:, :, 0], index), pd.Series(LAST, index)
    right = regressor(module, epochs=1).fit(x, y, y.abs())
    assert same(right, regressor(module, epochs=1).fit(x.to_numpy(), LAST, abs(LAST)))
    back = y.sample(frac=1, random_state=0)
    in_order = back.loc[x.index]  # as the message says
    assert same(right, regressor(module, epochs=1).fit(x, in_order, in_order.abs()))
    match = r"{} has the samples of X in another order, by its index: pass {}\.loc\[X\.index\]"
    for name, given_ in (("y", (back,)), ("y", (back.to_frame(),)), ("sample_weight", (y, back))):
        with pytest.raises(ValueError, match=match.format(name, name)):
            regressor(module, epochs=1).fit(x, *given_)
    with pytest.raises(ValueError, match="y has the samples of X in another order"):
        right.score(x, back)
    with pytest.raises(ValueError, match="y has the samples of X in another order"):
        classifier(module, epochs=1).fit(x.set_axis(range(48)), pd.Series(LABELS).iloc[::-1])


def test_static_features_of_a_table_must_have_its_order():
    x, static = pd.DataFrame(X[:, :, 0]), pd.DataFrame({"a": LAST})
    model = regressor(epochs=1).fit(x, LAST, static=static)
    with pytest.raises(ValueError, match="static has the samples of X in another order"):
        model.predict(x, static=static.iloc[::-1])


def test_rows_count_where_an_index_does_not_name_samples():
    x, y = pd.DataFrame(X[:, :, 0]), pd.Series(LAST)
    right = regressor(epochs=1).fit(x, y)
    twice = [0, *range(47)]
    assert same(right, regressor(epochs=1).fit(x.set_axis(twice), y.set_axis(twice[::-1])))
    assert same(right, regressor(epochs=1).fit(x.set_axis(range(1, 49)), y))
    text = x.set_axis(list("abcdef"), axis=1).assign(kind="k")
    framed = regressor("mlp", epochs=1).fit(text, y)
    unindexed = pl.from_pandas(text)
    found = regressor("mlp", epochs=1).fit(unindexed, y.set_axis(range(47, -1, -1)))
    assert same(framed, found)


DAYS = pd.date_range("2024-01-01", periods=6)
LABELLED = [
    range(6), DAYS, DAYS.date, DAYS.to_period("D"), [0.5, 1, 2, 4, 8, 16],
    pd.MultiIndex.from_product([["v"], range(6)]),
]  # fmt: skip


@pytest.mark.parametrize("columns", LABELLED, ids=lambda c: type(c[0]).__name__)
def test_columns_in_another_order_than_in_fit(columns, tmp_path):
    """Those of a pivot table: numbers and times, which scikit-learn does not compare."""
    frame = pd.DataFrame(X[:, :, 0], columns=columns)
    model = regressor(epochs=1).fit(frame, LAST)
    model.save(tmp_path / "model.st")
    again = type(model).load(tmp_path / "model.st")
    for one in (model, again):
        found = one.predict(frame)
        with pytest.raises(ValueError, match=r"the columns of fit in another order, .* instead of"):
            one.predict(frame.iloc[:, ::-1])
        with pytest.raises(ValueError, match="in another order"):
            one.score(frame.iloc[:, ::-1], LAST)
        np.testing.assert_array_equal(one.predict(frame.to_numpy()), found)
        later = frame.set_axis([f"later {n}" for n in columns], axis=1)
        with pytest.warns(UserWarning, match="has feature names"):  # scikit-learn's
            np.testing.assert_array_equal(one.predict(later), found)


def test_columns_whose_times_moved_on_since_fit():
    frame = pd.DataFrame(X[:, :, 0], columns=DAYS)
    model = regressor(epochs=1).fit(frame, LAST)
    for days in (DAYS + pd.Timedelta("3D"), DAYS + pd.Timedelta("9D")):
        found = model.predict(frame.set_axis(days, axis=1))
        np.testing.assert_array_equal(found, model.predict(frame))
    back = frame.iloc[:, ::-1]
    with pytest.raises(ValueError, match="in another order"):
        model.partial_fit(back, LAST)
    model.fit(back, LAST)
    model.predict(back)
    with pytest.raises(ValueError, match="inconsistent"):
        model.fit(frame, LAST[:5])
    model.predict(back)  # a fit that failed changed nothing


def test_columns_of_frames_in_a_list_in_another_order():
    frames = [pd.DataFrame(a, columns=range(3)) for a in LIST]
    mixed = [*frames[:5], frames[5][[0, 2, 1]], *frames[6:]]
    with pytest.raises(
        ValueError, match=r"X\[5\] has the columns .* order, 0, 2, 1 instead of 0, 1, 2:"
    ):
        regressor(epochs=1).fit(mixed, LAST)
    model = regressor(epochs=1).fit(frames, LAST)
    with pytest.raises(ValueError, match=r"X\[5\] has the columns of fit in another order"):
        model.predict(mixed)
    steps = panel(X).set_axis(range(3), axis=1)
    with pytest.raises(ValueError, match="X has the columns of fit in another order"):
        model.predict(steps[[1, 0, 2]])


def test_tables_with_an_index_of_two_levels_stay_tables():
    index = pd.MultiIndex.from_product([range(12), range(4)])
    table = pd.DataFrame(X[:, 0], index)
    assert same(regressor("mlp").fit(table, LAST), regressor("mlp").fit(X[:, 0], LAST))
    visits = table.set_index(pd.MultiIndex.from_tuples([(n, 3) for n in range(48)]))
    assert same(regressor("gru").fit(visits, LAST), regressor("gru").fit(X[:, 0], LAST))
    with pytest.raises(ValueError, match="inconsistent"):
        regressor("gru").fit(table, LAST)


def nested(of):
    columns = [[of(a[:, f]) for a in LIST] for f in range(3)]
    return pd.DataFrame(dict(zip("abc", columns, strict=True)))


def hint_of(error, x):
    """Return what the code in a message makes of X."""
    code = re.search(r"\[.* for .* in .*\]", str(error.value))[0]
    return eval(code, {"np": np, "X": x})  # noqa: S307 (our own)


@pytest.mark.parametrize(
    "of",
    [pd.Series, np.array, np.ndarray.tolist, torch.from_numpy],
    ids=["series", "array", "list", "tensor"],
)
@pytest.mark.parametrize("kind", ["frame", "array"])
@pytest.mark.parametrize("module", ["gru", "mlp", "auto"])
def test_nested_frames_say_how_to_convert_them(of, kind, module):
    x = nested(of)
    if kind == "array":
        x = np.frompyfunc(lambda cell: cell, 1, 1)(x.to_numpy())
    with pytest.raises(TypeError, match=r"^X is a nested \w+, whose cells hold series") as error:
        regressor(module).fit(x, LAST)
    for found, wanted in zip(hint_of(error, x), LIST, strict=True):
        np.testing.assert_array_equal(found, wanted)
    model = regressor("gru", **FIRST)
    with pytest.raises(TypeError) as error:
        model.fit(x, LAST)
    assert same(model.fit(hint_of(error, x), LAST), regressor().fit(LIST, LAST))


def test_nested_frames_of_sktime():
    x = convert_to(X.swapaxes(1, 2), "nested_univ", as_scitype="Panel")
    with pytest.raises(TypeError, match="X is a nested DataFrame") as error:
        regressor().fit(x, LAST)
    np.testing.assert_array_equal(np.stack(hint_of(error, x)), X)


@pytest.mark.parametrize("of", [list, np.array], ids=["lists", "arrays"])
def test_arrays_of_arrays_say_how_to_convert_them(of):
    x = np.empty(48, object)
    x[:] = [of(a.tolist()) for a in LIST]
    for given_ in (x, pd.Series(x)):
        with pytest.raises(TypeError, match=r"an array of 48 arrays: .*\(T_i, F\)") as error:
            regressor().fit(given_, LAST)
        assert same(regressor().fit(hint_of(error, given_), LAST), regressor().fit(LIST, LAST))


def test_objects_that_are_numbers_are_read():
    found = regressor().fit(X.astype(object), LAST)
    np.testing.assert_allclose(found.predict(X), regressor().fit(X, LAST).predict(X))


@pytest.mark.parametrize("module", ["gru", "mlp", "auto"])
@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_long_frames_say_how_to_convert_them(module, kind):
    parts = [
        pd.DataFrame(a, columns=["a", "b", "c"]).assign(unique_id=n, ds=range(len(a)))
        for n, a in enumerate(LIST)
    ]
    x = pd.concat(parts, ignore_index=True)
    x = pl.from_pandas(x) if kind == "polars" else x
    with pytest.raises(TypeError, match="X is a long frame, with the columns 'unique_id'") as error:
        regressor(module).fit(x, LAST)
    for found, wanted in zip(hint_of(error, x), LIST, strict=True):
        np.testing.assert_array_equal(np.asarray(found), wanted)
