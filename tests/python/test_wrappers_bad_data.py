"""What data the scikit-learn estimators refuse, and what they just take."""

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
