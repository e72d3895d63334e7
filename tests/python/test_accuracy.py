"""Accuracy on test parts of public sets, in one call: the worst of five seeds, less a margin."""

import numpy as np
import pytest

import fastseq as fs


def parts(name, **form):
    from sktime import datasets  # imports much

    for part in ("train", "test"):
        yield from getattr(datasets, f"load_{name}")(part, **form)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("italy_power_demand", 0.94),
        pytest.param("japanese_vowels", 0.96, marks=pytest.mark.slow),
        pytest.param("arrow_head", 0.80, marks=pytest.mark.slow),
        pytest.param("basic_motions", 0.97, marks=pytest.mark.slow),
        pytest.param("gunpoint", 0.97, marks=pytest.mark.slow),
    ],
)
def test_labels(name, least):
    ragged = name == "japanese_vowels"
    x, y, x_test, y_test = parts(name, return_type="pd-multiindex" if ragged else "numpy3D")
    model = fs.SequenceClassifier(channels_first=not ragged, random_state=0).fit(x, y)
    assert model.score(x_test, y_test) >= least


@pytest.mark.slow
def test_numbers():
    x, y, x_test, y_test = parts("tecator", return_type="numpy3D")  # fat of meat, in percent
    model = fs.SequenceRegressor(channels_first=True, random_state=0).fit(x, y)
    assert np.sqrt(np.mean((model.predict(x_test) - y_test) ** 2)) < 0.9
