"""What data the scikit-learn estimators refuse, and what they just take."""

import h5py
import numpy as np
import pandas as pd
import pytest
from wrapped import LABELS, LAST, LIST, RNG, STEPS, X, classifier, regressor, same


@pytest.mark.parametrize(
    ("x", "match"),
    [
        ([X[0], X[1, :0]], r"X\[1\] has no time steps"),
        (X[:, :0], "no time steps"),
        ([X[0], X[1, :, :2]], r"X\[1\] has 2 features, but X\[0\] has 3"),
        (X[:0], "minimum of 1 is required"),
        (np.full((4, 2, 3), np.nan), "NaN"),
        ([X[0], np.full((2, 3), np.inf)], "infinity"),
        (X[..., None], "must have the shape"),
        (X[..., :0], "0 feature"),
        (X[0, 0], "Expected 2D array"),
    ],
)
def test_bad_inputs(x, match):
    with pytest.raises(ValueError, match=match):
        regressor().fit(x, LAST[: len(x)])
    if "minimum" not in match:
        with pytest.raises(ValueError, match=match):
            regressor().fit(X, LAST).predict(x)


@pytest.mark.parametrize("x", [X, X[:, 0], LIST])
def test_missing_values_are_told_with_what_takes_them(x):
    x = [a.copy() for a in x] if isinstance(x, list) else x.copy()
    x[1][0] = np.nan
    for model in (regressor(), classifier()):
        with pytest.raises(ValueError, match=r'X contains NaN: .*nan="mask"'):
            model.fit(x, LABELS)


def test_other_data_than_fitted_on_is_told():
    model = regressor().fit(X, LAST)
    for x in (X[..., :2], X[:, 0, :2], list(X[..., :2])):
        with pytest.raises(ValueError, match="2 features, but SequenceRegressor is expecting 3"):
            model.predict(x)
    with pytest.raises(ValueError, match="inconsistent"):
        regressor().fit(X, LAST[:5])
    with pytest.raises(ValueError, match="targets per step, or per sequence, as in fit"):
        model.score(X, STEPS[..., 0])


def test_one_sequence_is_not_taken_for_samples_of_one_step():
    model = regressor().fit(X, LAST)
    with pytest.raises(ValueError, match=r"X\[None\]"):
        model.predict(X[0])
    assert model.predict(X[0][None]).shape == (1,)
    assert regressor().fit(X[:, 0], LAST).predict(X[0]).shape == (len(X[0]),)


def test_one_sample_and_constant_features():
    assert regressor().fit(X[:1], LAST[:1]).predict(X[:1]).shape == (1,)
    constant = np.concatenate([X, np.full((48, 6, 1), 7.0)], 2)
    assert np.isfinite(regressor().fit(constant, LAST).score(constant, LAST))
    assert regressor().fit(X, np.full(48, 5.0)).predict(X) == pytest.approx(5.0, abs=2)


def test_weights_of_steps():
    model = regressor().fit(X, STEPS, np.ones((48, 6)))
    assert same(model, regressor().fit(X, STEPS, np.ones(48)))
    lists = [np.ones(len(x)) for x in LIST]
    y = [x[:, 0] for x in LIST]
    assert same(regressor().fit(LIST, y, lists), regressor().fit(LIST, y, np.ones(48)))
    assert model.score(X, STEPS, np.ones(48)) == pytest.approx(model.score(X, STEPS))
    w = RNG.uniform(0, 1, (48, 6))
    assert model.score(X, STEPS, w) != pytest.approx(model.score(X, STEPS))
    for wrong in (-np.ones(48), np.ones((48, 6)), np.ones(47)):
        with pytest.raises(ValueError, match=r"(?i)sample.weight|negative"):
            regressor().fit(X, LAST, wrong)


def test_pandas():
    frame = pd.DataFrame(X[:, 0], columns=["a", "b", "c"])
    target = pd.Series(LAST, name="y")
    model = regressor("mlp").fit(frame, target)
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    assert same(model, regressor("mlp").fit(X[:, 0], LAST))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["c", "b", "a"]])
    assert not hasattr(model.fit(X, LAST), "feature_names_in_")
    labels = pd.Series(LABELS, dtype="category")
    assert classifier("mlp").fit(frame, labels).classes_.tolist() == ["down", "flat", "up"]


def test_lists_of_frames():
    frames = [pd.DataFrame(x, columns=["a", "b", "c"]) for x in LIST]
    model = regressor().fit(frames, LAST)
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    assert same(model, regressor().fit(LIST, LAST))
    for wrong in ([0], [5], range(len(frames))):
        mixed = [f[["c", "b", "a"]] if i in wrong else f for i, f in enumerate(frames)]
        with pytest.raises(ValueError, match="feature names"):
            model.predict(mixed)
    with pytest.raises(ValueError, match="feature names"):
        regressor().fit([*frames[:-1], frames[-1][["b", "a", "c"]]], LAST)


def test_labels_of_pandas_stay_what_they_are():
    large = pd.Series(np.where(LAST > 0, 2**53, 2**53 + 1), dtype="Int64")
    model = classifier().fit(X, large)
    assert model.classes_.tolist() == [2**53, 2**53 + 1]
    assert model.predict(X).dtype == np.int64
    assert classifier().fit(X, pd.Series(LAST > 0, dtype="boolean")).classes_.dtype == bool


def test_labels_of_several_kinds_are_refused():
    with pytest.raises(TypeError, match="y mixes text labels with others"):
        classifier().fit(X, [1, "x"] * 24)


def test_columns_that_are_steps_are_told_how_to_pass():
    series = classifier(module="gru").fit(X[..., 0], LABELS)
    listed = classifier(module="gru").fit(list(X[..., 0]), LABELS)
    for model in (series, listed):
        with pytest.raises(
            ValueError, match=r"expecting \d features as input; .* pass X\[..., None\]"
        ):
            model.predict(X[:, :4, 0])
        assert model.predict(X[:, :4, :1]).shape == (48,)


def test_a_panel_may_have_one_step_of_each_sequence():
    index = pd.MultiIndex.from_product([range(48), range(X.shape[1])])
    panel = pd.DataFrame(X.reshape(-1, 3), index)
    model = classifier().fit(panel, LABELS)
    found = model.predict_proba(panel.xs(0, level=1, drop_level=False))
    np.testing.assert_allclose(found, model.predict_proba(list(X[:, :1])), rtol=1e-6)


def test_only_ratios_of_weights_count_however_large():
    weights = RNG.uniform(1, 2, 48)
    found = [regressor().fit(X, LAST, scale * weights).predict(X) for scale in (1, 2.0**120)]
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_samples_without_weight_are_not_held_out():
    weights = (np.arange(48) < 30) * 1.0
    model = regressor(validation_fraction=0.1, random_state=1).fit(X, LAST, weights)
    assert np.isfinite([row["validation_loss"] for row in model.history_]).all()
    model = regressor(validation_fraction=0.1, shuffle=False, epochs=1, batchsize=48)
    model.fit(X, LAST, weights)
    wanted = regressor(shuffle=False, epochs=1, batchsize=48)
    wanted.fit(X, LAST, np.where(np.arange(48) < 27, weights, 0))
    np.testing.assert_allclose(model.predict(X), wanted.predict(X), rtol=1e-5)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"validation_fraction": 0}, "validation_fraction must be above 0 and below 1, got 0"),
        ({"validation_fraction": 5}, "validation_fraction must be above 0 and below 1, got 5"),
        ({"class_weight": {0: -5, 1: 1}}, "class_weight must hold numbers that are not negative"),
        ({"class_weight": {0: np.nan}}, "class_weight must hold numbers that are not negative"),
        ({"class_weight": "balnced"}, "class_weight must be 'balanced' or weights"),
        ({"class_weight": [{0: 1}, {0: 1}]}, "class_weight must be 'balanced' or weights"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, and a whole number, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_hyperparameters_that_mean_nothing(parameter, message):
    with pytest.raises(ValueError, match=message):
        classifier(**parameter).fit(X, LAST > 0)


def test_nothing_to_predict():
    with pytest.raises(ValueError, match="X has no samples"):
        classifier().fit(X, LABELS).predict([])


def test_texts_of_hdf5_must_be_decoded():
    texts = np.where(LABELS, "walk", "run").astype("S")
    for labels in (texts, texts.astype(object)):
        with pytest.raises(TypeError, match=r"bytes, such as b'.*': decode .* by f\[\"y\"\].asstr"):
            classifier().fit(X, labels)


def test_bytes_are_not_scored_as_wrong_labels(tmp_path):
    model = classifier().fit(X, LABELS)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        y = file.create_dataset("y", data=LABELS.astype(object))
        with pytest.raises(TypeError, match=r"bytes, such as b'.*': decode .* by f\[\"y\"\].asstr"):
            model.score(X, y)
        assert model.score(X, y.asstr()[:]) == model.score(X, LABELS)
