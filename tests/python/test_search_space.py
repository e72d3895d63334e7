"""SearchSpace: what its values are, and Optuna's searches over them."""

from __future__ import annotations

import re

import numpy as np
import optuna
import pytest

import fastseq as fs

TEXT = """
module: [gru, lstm]
lr: {low: 1e-3, high: 0.1, log: true}
hidden_size: {low: 4, high: 16, step: 4}
dropout: {low: 0.0, high: 0.5, step: 0.25}
num_layers: {low: 1, high: 2}
clip_norm: [none, 1.0]
decay_biases: [true, false]
epochs: 1
optimizer: adamw
"""


def space(tmp_path, text=TEXT):
    (tmp_path / "space.yaml").write_text(text)
    return fs.SearchSpace(tmp_path / "space.yaml")


def test_values_are_in_their_ranges_and_of_their_types(tmp_path):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [space(tmp_path).suggest(study.ask()) for _ in range(200)]
    of = {name: [values[name] for values in found] for name in found[0]}
    assert list(of) == [line.partition(":")[0] for line in TEXT.split("\n") if line]
    assert set(of["module"]) == {"gru", "lstm"}
    assert set(of["hidden_size"]) == {4, 8, 12, 16}
    assert set(of["dropout"]) == {0.0, 0.25, 0.5}
    assert set(of["num_layers"]) == {1, 2}
    assert set(of["clip_norm"]) == {None, 1.0}
    assert set(of["decay_biases"]) == {True, False}
    assert set(of["epochs"]) == {1}
    assert set(of["optimizer"]) == {"adamw"}
    assert all(type(value) is int for value in of["hidden_size"] + of["num_layers"] + of["epochs"])
    rates = np.log10(of["lr"])
    assert rates.min() > -3
    assert rates.max() < -1
    assert abs(np.mean(rates) + 2) < 0.15  # uniform on the logarithmic scale


def test_a_study_over_a_file(tmp_path):
    found = space(tmp_path)
    x = np.random.default_rng(0).normal(size=(40, 6, 2)).astype(np.float32)

    def objective(trial):
        model = fs.SequenceRegressor(**found.suggest(trial), random_state=0)
        return model.fit(x, x[:, -1, 0]).history_[-1]["loss"]

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=2)
    assert set(study.best_params) == {
        "module", "lr", "hidden_size", "dropout", "num_layers", "clip_norm", "decay_biases",
    }  # fmt: skip
    assert repr(found).startswith("SearchSpace(module, lr, hidden_size")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: {low: 1, hihg: 2}", "lr is a range, which has no 'hihg': did you mean \"high\"?"),
        ("lr: {low: 1}", "lr must be a range such as {low: 0.001, high: 0.1, log: true}"),
        ("lr: {low: a, high: 2}", "lr must be a range such as"),
        ("lr: {low: 1, high: 2, log: 3}", "lr must be a range such as"),
        ("lr: {low: 2, high: 1}", "lr has the range from 2 to 1: low must be less"),
        ("lr: {low: 1, high: inf}", "low must be less"),
        ("lr: {low: 0, high: 1, log: true}", "low must be positive, and there is no step"),
        ("lr: {low: 1, high: 9, step: 0.5}", "lr has the step 0.5, which must be positive"),
        ("lr: {low: 1, high: 9, step: 0}", "lr has the step 0, which must be positive"),
        ("lr: []", "lr has no choices"),
        ("lr: [[1, 2]]", "lr must be values, lists of them, or ranges, got ['1', '2'] in it"),
        ("lr: 1\nlr: 2", "'lr' is there twice, again in line 2"),
        ("- lr", "it must have lines such as"),
    ],
)
def test_files_that_are_no_search_spaces_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=r"space\.yaml: .*" + re.escape(message)):
        space(tmp_path, text)
