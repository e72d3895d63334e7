"""Accuracy on test parts of public sets, in one call: the worst of five seeds, less a margin."""

import numpy as np
import pytest
from sktime.datasets import (
    load_arrow_head,
    load_basic_motions,
    load_gunpoint,
    load_italy_power_demand,
    load_japanese_vowels,
    load_tecator,
)

import fastseq as fs


def parts(load, **form):
    for part in ("train", "test"):
        yield from load(part, **form)


@pytest.mark.parametrize(
    ("load", "least"),
    [
        (load_italy_power_demand, 0.94),
        (load_japanese_vowels, 0.96),
        pytest.param(load_arrow_head, 0.80, marks=pytest.mark.slow),
        pytest.param(load_basic_motions, 0.97, marks=pytest.mark.slow),
        pytest.param(load_gunpoint, 0.97, marks=pytest.mark.slow),
    ],
)
def test_labels(load, least):
    ragged = load is load_japanese_vowels
    x, y, x_test, y_test = parts(load, return_type="pd-multiindex" if ragged else "numpy3D")
    model = fs.SequenceClassifier(channels_first=not ragged, random_state=0).fit(x, y)
    assert model.score(x_test, y_test) >= least


def test_numbers():
    x, y, x_test, y_test = parts(load_tecator, return_type="numpy3D")  # fat of meat, in percent
    model = fs.SequenceRegressor(channels_first=True, random_state=0).fit(x, y)
    assert np.sqrt(np.mean((model.predict(x_test) - y_test) ** 2)) < 0.9
