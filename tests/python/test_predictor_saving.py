"""Classifiers and regressors in files: `save` and `load`."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

import fastseq as fs

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 9, 3)).astype(np.float32)
Y = np.where(X.sum((1, 2)) > 0, "up", "down")
SUMS = X.sum((1, 2))
TABLE = pd.DataFrame({"a": RNG.standard_normal(40), "c": ["u", "v", "w", "u"] * 10})
STATIC = pd.DataFrame({"kind": ["u", "v", "w", "u"] * 10, "size": RNG.standard_normal(40)})
IMAGES = RNG.random((40, 8, 8, 1)).astype(np.float32)

CASES = {
    "text": ("classifier", X, Y, {}),
    "integers of another byte order": (
        "classifier", X, RNG.integers(0, 3, 40).astype(">i8"), {"module": "mlp"},
    ),
    "booleans": ("classifier", X, SUMS > 0, {"module": "tcn"}),
    "several targets": (
        "classifier", X, np.array([["a", 1], ["b", 2]] * 20, object), {"module": "gru"},
    ),
    "labels": (
        "classifier", X, RNG.integers(0, 2, (40, 3)),
        {"loss": "binary_cross_entropy", "class_weight": [{0: 1, 1: 2}] * 3},
    ),
    "ordinal": ("classifier", X, np.digitize(SUMS, [-2, 2]), {"loss": "ordinal"}),
    "per step": ("classifier", X, np.where(X.sum(2) > 0, "+", "-"), {}),
    "unequal lengths": ("classifier", [x[: 4 + n % 5] for n, x in enumerate(X)], Y, {}),
    "rocket": ("classifier", X, Y, {"module": "rocket"}),
    "averaged over members": ("classifier", X, Y, {"module": "lstm-fcn"}),
    "images": ("classifier", IMAGES, Y, {"module": "cnn"}),
    "columns of categories": ("classifier", TABLE, Y, {"module": "mlp"}),
    "numbers": ("regressor", X, SUMS, {}),
    "double precision": ("regressor", X.astype(np.float64), SUMS.astype(np.float64), {}),
    "several numbers": ("regressor", X, X.sum(1), {"optimizer": "sgd", "scale_y": None}),
    "numbers per step": ("regressor", X, X.sum(2), {"schedule": "onecycle"}),
    "scaled by themselves": ("regressor", X, SUMS, {"scale_x": "both"}),
    "static features": ("regressor", X, SUMS, {"static": STATIC, "nan": "mask"}),
}  # fmt: skip
KINDS = {"classifier": fs.SequenceClassifier, "regressor": fs.SequenceRegressor}


def same(a: object, b: object) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_estimator_predicts_and_trains_with_the_same_bits(case, tmp_path):
    kind, x, y, given = CASES[case]
    given = dict(given)
    beside = {"static": given.pop("static")} if "static" in given else {}
    model = KINDS[kind](epochs=2, batchsize=16, random_state=0, **given).fit(x, y, **beside)
    model.save(tmp_path / "model.safetensors")
    again = KINDS[kind].load(tmp_path / "model.safetensors")
    assert again.get_params() == model.get_params()
    assert list(again.history_) == list(model.history_)
    assert again.n_iter_ == 2
    assert same(again.predict(x, **beside), model.predict(x, **beside))
    if kind == "classifier":
        assert same(again.predict_proba(x, **beside), model.predict_proba(x, **beside))
        assert same(again.classes_, model.classes_)
    for one in (model, again):
        one.partial_fit(x, y, **beside)
    assert again.history_[-1]["loss"] == model.history_[-1]["loss"]
    weights, weights_again = (m.estimator_.model.state_dict() for m in (model, again))
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)


def test_checks_of_inputs_are_as_before(tmp_path):
    path = tmp_path / "model.safetensors"
    fs.SequenceClassifier("mlp", epochs=1).fit(TABLE, Y).save(path)
    again = fs.SequenceClassifier.load(path)
    with pytest.raises(ValueError, match="feature names"):
        again.predict(TABLE.rename(columns={"a": "b"}))
    fs.SequenceClassifier(epochs=1).fit(X, Y).save(path)
    with pytest.raises(ValueError, match="3 features"):
        fs.SequenceClassifier.load(path).predict(X[..., :2])


def test_a_warm_start_continues_a_loaded_estimator(tmp_path):
    part = fs.SequenceRegressor("mlp", epochs=2, random_state=0, warm_start=True).fit(X, SUMS)
    part.save(tmp_path / "model.safetensors")
    again = fs.SequenceRegressor.load(tmp_path / "model.safetensors").set_params(epochs=4)
    assert again.fit(X, SUMS).continued_
    assert same(again.predict(X), part.set_params(epochs=4).fit(X, SUMS).predict(X))


class Last(nn.Module):
    """A module of a user, whose sizes are inferred."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(n_in, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_code_is_given_to_load(tmp_path):
    path = tmp_path / "model.safetensors"

    model = fs.SequenceRegressor(Last, loss=nn.HuberLoss(), epochs=1, random_state=0).fit(X, SUMS)
    model.save(path)
    with pytest.raises(ValueError, match="pass module=, as to the constructor"):
        fs.SequenceRegressor.load(path)
    again = fs.SequenceRegressor.load(path, Last)
    assert same(again.predict(X), model.predict(X))
    with pytest.raises(ValueError, match="needs a loss, which files do not hold"):
        again.partial_fit(X, SUMS)
    again = fs.SequenceRegressor.load(path, Last, loss=nn.HuberLoss()).partial_fit(X, SUMS)
    assert same(again.predict(X), model.partial_fit(X, SUMS).predict(X))
    with pytest.raises(fs.CheckpointError, match="another model"):
        fs.SequenceRegressor.load(path, fs.builders.MLP((4,)))
    with pytest.raises(ValueError, match="has epochs=1; change it"):
        fs.SequenceRegressor.load(path, Last, epochs=3)
    with pytest.raises(TypeError, match="no parameter epoch"):
        fs.SequenceRegressor.load(path, Last, epoch=3)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(NotFittedError):
        fs.SequenceRegressor().save(path)
    assert not path.exists()
    fs.SequenceRegressor("linear", epochs=1).fit(X, SUMS).save(path)
    for other in (fs.SequenceClassifier, fs.SequenceForecaster):
        with pytest.raises(fs.CheckpointError, match=f"not written by {other.__name__}.save"):
            other.load(path)
    whole = Path(path).read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(fs.CheckpointError):
        fs.SequenceRegressor.load(path)


@pytest.mark.parametrize("unit", ["D", "us", "ns"])
def test_labels_that_are_dates(unit, tmp_path):
    days = np.where(Y == "up", np.datetime64("2024-01-01"), np.datetime64("2024-06-01"))
    days = days.astype(f"M8[{unit}]")
    model = fs.SequenceClassifier("linear", epochs=1, random_state=0).fit(X, days)
    model.save(tmp_path / "model.safetensors")
    again = fs.SequenceClassifier.load(tmp_path / "model.safetensors")
    assert same(again.predict(X), model.predict(X))


def test_layers_frozen_after_fit_stay_so(tmp_path):
    model = fs.SequenceRegressor("gru", epochs=1, random_state=0).fit(X, SUMS)
    for p in list(model.estimator_.model.parameters())[:2]:
        p.requires_grad_(False)
    model.save(tmp_path / "model.safetensors")
    again = fs.SequenceRegressor.load(tmp_path / "model.safetensors")
    frozen = [not p.requires_grad for p in again.estimator_.model.parameters()]
    assert frozen == [not p.requires_grad for p in model.estimator_.model.parameters()]
    assert any(frozen)
    for one in (model, again):
        one.partial_fit(X, SUMS)
    assert same(again.predict(X), model.predict(X))
