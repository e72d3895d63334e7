"""Files of the estimators within classifiers and regressors predict without the wrapper."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from wrapped import LABELS, LAST, X, classifier, regressor

import fastseq as fs

GRADES = np.digitize(LAST, [-1.5, 0, 1.5])
FRAMES = [pd.DataFrame(x, columns=list("abc")).assign(d=list("xyxyyx")) for x in X]
CODED = np.concatenate([X, np.tile([1, 2, 1, 2, 2, 1], (48, 1))[..., None]], 2)
STATIC = LAST[:, None]
SCALED = (STATIC - STATIC.mean()) / STATIC.std()
WITH_STATIC = np.concatenate([CODED, np.repeat(SCALED[:, None], 6, 1)], 2)


def loaded(model, path):
    model.estimator_.save(path)
    return fs.Estimator.load(path)


@pytest.mark.parametrize("module", ["lstm-fcn", "inception", "tcn", "transformer", "rocket", "gru"])
@pytest.mark.parametrize("loss", ["cross_entropy", "ordinal"])
def test_networks(module, loss, tmp_path):
    model = classifier(module, loss=loss, epochs=1).fit(X, GRADES)
    est = loaded(model, tmp_path / "file")
    scores = est.predict(X.swapaxes(0, 1))[-1]
    odds = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(odds / odds.sum(1, keepdims=True), model.predict_proba(X))
    longer = np.concatenate([X, X], 1)
    expected = model.as_module()(torch.from_numpy(longer)).numpy()
    np.testing.assert_allclose(est.predict(longer.swapaxes(0, 1))[-1], expected)


@pytest.mark.parametrize("module", ["lstm-fcn", "gru"])
def test_categories_and_static_features(module, tmp_path):
    model = regressor(module, epochs=1).fit(FRAMES, LAST, static=STATIC)
    found = loaded(model, tmp_path / "file").predict(WITH_STATIC.swapaxes(0, 1))[-1]
    np.testing.assert_allclose(found.ravel(), model.predict(FRAMES, static=STATIC))


def test_images(tmp_path):
    images = X.reshape(48, 2, 3, 3)
    model = classifier("cnn", epochs=1).fit(images, LABELS)
    found = loaded(model, tmp_path / "file").predict(images.reshape(1, 48, -1))[0]
    np.testing.assert_array_equal(model.classes_[found.argmax(1)], model.predict(images))
