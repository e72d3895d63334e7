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


def space(tmp_path, text=TEXT, **more):
    (tmp_path / "space.yaml").write_text(text, encoding="utf-8")
    return fs.SearchSpace(tmp_path / "space.yaml", **more)


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
        ("lr: {low: 1, high: 2, log: 3}", "lr has log: 3, which must be true or false"),
        ("lr: {low: 1, high: 2, log: yes}", "lr has the value yes: write true or false, or"),
        ("lr: {low: '1', high: 2}", "lr must be a range such as"),
        ("lr: {low: 1, high: 2, value: 3}", "which has no 'value': {value: …} is one value"),
        ("lr: {type: loguniform, low: 1, high: 2}", "has no 'type': a range is uniform, or with"),
        ("lr: {choice: [1, 2]}", "has no 'choice': write choices as a list, such as [gru, lstm]"),
        ("lr: {min: 1, max: 2}", "lr is a range, which has no 'min': did you mean \"low\"?"),
        ("lr: {Max: 1, low: 2}", "lr is a range, which has no 'Max': did you mean \"high\"?"),
        ("shuffle: no", "shuffle has the value no: write true or false, or 'no' in quotes for a"),
        ("shuffle: [Yes, NO]", "shuffle has the value Yes: write true or false"),
        ("shuffle: {value: ON}", "shuffle has the value ON: write true or false"),
        ("shuffle: off", "shuffle has the value off: write true or false"),
        ("lr: nan", "lr has the value nan, but numbers must be finite: write 'nan' in quotes"),
        ("lr: [1.0, 1e400]", "lr has the value 1e400, but numbers must be finite"),
        ("lr: -.inf", "lr has the value -.inf, but numbers must be finite"),
        ("lr: {low: 2, high: 1}", "lr has the range from 2 to 1: low must be less"),
        ("lr: {low: 1, high: inf}", "lr has the value inf, but numbers must be finite"),
        ("lr: {low: 0, high: 1, log: true}", "low must be positive, and step must be left out"),
        ("lr: {low: 1, high: 9, step: 0.5}", "lr has the step 0.5, which must be positive"),
        ("lr: {low: 1, high: 9, step: 0}", "lr has the step 0, which must be positive"),
        ("lr: []", "lr has no choices"),
        ("lr: [[1, 2]]", "lr must be values, lists of them, or ranges, got ['1', '2'] in it"),
        ("lr: 1\nlr: 2", "'lr' is given twice, again in line 2"),
        ("lr: {value: [[1, 2]]}", "lr must be values, lists of them, or ranges, got ['1', '2'] in"),
        ("- lr", "it must have lines such as"),
        ("", "it must have lines such as 'epochs: 20'"),
        ("# lr: 1\n", "it must have lines such as 'epochs: 20'"),
        ("---\n", "it must have lines such as 'epochs: 20'"),
        ("{}", "it must have lines such as 'epochs: 20'"),
    ],
)
def test_files_that_are_no_search_spaces_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=r"space\.yaml: .*" + re.escape(message)):
        space(tmp_path, text)


VALUES = """
quoted: ["10", 'none', 'no', "nan", 10, none]
quantiles: {value: [0.1, 0.9]}
past: {value: []}
single: {value: 3}
"huge": 1234567890123456789012345678901234567890
nothing: Null
"""


def test_quotes_make_texts_and_a_list_can_be_a_value(tmp_path):
    found = space(tmp_path, VALUES)
    trial = optuna.trial.FixedTrial({"quoted": "10"})
    values = found.suggest(trial)
    assert found._entries["quoted"] == ["10", "none", "no", "nan", 10, None]
    assert {type(value) for value in found._entries["quoted"]} == {str, int, type(None)}
    assert (values["quantiles"], values["past"], values["single"]) == ([0.1, 0.9], [], 3)
    assert values["huge"] == 1234567890123456789012345678901234567890
    assert values["nothing"] is None
    values["quantiles"].clear()
    assert found.suggest(trial)["quantiles"] == [0.1, 0.9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden_size: 3", "SequenceRegressor has no option 'hiden_size': did you mean \"hidden_size\"?"),
        ("shuffle: [true, 'no']", "shuffle must be True or False, got 'no'"),
        ("hidden_size: {low: 4, high: 8.0}", "hidden_size must be an integer, got 8.0"),
        ("lr: fast", "lr must be a number or None, got 'fast'"),
        ("lr: {value: [0.1]}", "lr must be a number or None, got [0.1]"),
    ],
)  # fmt: skip
def test_names_and_types_of_a_class_are_checked_before_any_trial(tmp_path, text, message):
    with pytest.raises(ValueError, match=r"space\.yaml: " + re.escape(message)):
        space(tmp_path, text, of=fs.SequenceRegressor)


def test_what_a_class_takes_passes(tmp_path):
    assert repr(space(tmp_path, TEXT, of=fs.SequenceClassifier)).startswith("SearchSpace(module")
    text = "quantiles: {value: [0.1, 0.9]}\nseason: [24, none]\nlr: {low: 1, high: 2}"
    space(tmp_path, text, of=fs.SequenceForecaster)
    space(tmp_path, "class_weight: [balanced, none]", of=fs.SequenceClassifier)
    with pytest.raises(TypeError, match=r"of must be a class such as fastseq\.Seq"):
        space(tmp_path, of=fs.SequenceRegressor())


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "space.yaml"
    path.write_bytes("lr: 1\nmodule: größer".encode(encoding))
    with pytest.raises(ValueError, match=r"space\.yaml is not UTF-8, see line [12]: save"):
        fs.SearchSpace(path)
    path.write_bytes("lr: 1\nmodule: größer".encode("utf-8-sig"))
    assert fs.SearchSpace(path)._entries == {"lr": 1, "module": "größer"}
