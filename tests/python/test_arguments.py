"""Arguments of classes on the command line."""

from __future__ import annotations

import argparse
import inspect

import jsonargparse
import numpy as np
import pytest
from sklearn.base import clone

import fastseq as fs

KINDS = [fs.Spec, fs.SequenceClassifier, fs.SequenceRegressor, fs.SequenceForecaster]


def parsed(kind, words, **defaults):
    parser = argparse.ArgumentParser()
    kind.add_arguments(parser, **defaults)
    return kind.from_args(parser.parse_args(words.split()))


def test_the_command_line_overrides_the_script_which_overrides_the_class():
    spec = parsed(fs.Spec, "--epochs 5 --clip-norm 0.5", epochs=20, batchsize=10, seqsize=25)
    assert spec == fs.Spec(epochs=5, batchsize=10, seqsize=25, clip_norm=0.5)
    assert parsed(fs.Spec, "--epochs 1 --batchsize 2 --seqsize 3") == fs.Spec(1, 2, 3)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--shuffle", {"shuffle": True}),
        ("--no-shuffle", {"shuffle": False}),
        ("--clip-norm none", {"clip_norm": None}),
        ("--clip-norm 2", {"clip_norm": 2.0}),
        ("--scale-x standard --nan mask", {"scale_x": "standard", "nan": "mask"}),
        ("--scale-x None", {"scale_x": None}),
        ("--accumulate 4 --context 3", {"accumulate": 4, "context": 3}),
    ],
)
def test_values_of_a_spec(words, expected):
    script = {"epochs": 1, "batchsize": 2, "seqsize": 3, "shuffle": True, "clip_norm": 1.0}
    assert parsed(fs.Spec, words, **script) == fs.Spec(**{**script, **expected})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--quantiles 0.1,0.5,0.9", {"quantiles": [0.1, 0.5, 0.9]}),
        ("--quantiles 0.5", {"quantiles": [0.5]}),
        ("--quantiles none", {"quantiles": None}),
        ("--season 24", {"season": 24}),
        ("--season auto", {"season": "auto"}),
        ("--calendar true", {"calendar": True}),
        ("--calendar month", {"calendar": ["month"]}),
        ("--calendar month,quarter", {"calendar": ["month", "quarter"]}),
        ("--past price,3", {"past": ["price", 3]}),
        ("--lr 1e-2 --device cpu", {"lr": 0.01, "device": "cpu"}),
    ],
)
def test_values_of_a_forecaster(words, expected):
    found = parsed(fs.SequenceForecaster, words).get_params()
    assert found == fs.SequenceForecaster(**expected).get_params()


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_the_class_s(kind):
    given = {"epochs": 1, "batchsize": 2, "seqsize": 3} if kind is fs.Spec else {}
    found = parsed(kind, "", **given)
    if kind is fs.Spec:
        assert found == kind(**given)
    else:
        assert clone(found).get_params() == kind().get_params()


@pytest.mark.parametrize("kind", KINDS)
def test_help_describes_every_option(kind, capsys):
    with pytest.raises(SystemExit):
        parsed(kind, "--help")
    text = " ".join(capsys.readouterr().out.split())
    parser = argparse.ArgumentParser()
    kind.add_arguments(parser)
    for action in parser._actions[1:]:
        assert len(action.help.split("(default")[0].strip()) > 4, action.dest
        assert action.dest in inspect.signature(kind).parameters
        assert action.option_strings[0] in text
    assert text.count("(default: ") == sum(not a.required for a in parser._actions[1:])


def test_what_text_cannot_express_is_passed_apart():
    parser = argparse.ArgumentParser()
    fs.SequenceClassifier.add_arguments(parser, hidden_size=8)
    assert not any(action.dest in ("callbacks", "comm") for action in parser._actions)
    stop = fs.callbacks.Patience(3)
    found = fs.SequenceClassifier.from_args(parser.parse_args([]), callbacks=[stop], lr=0.5)
    assert (found.hidden_size, found.callbacks, found.lr) == (8, [stop], 0.5)


def test_a_script_has_options_of_its_own():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="x.h5")
    fs.Spec.add_arguments(parser, epochs=1, batchsize=2, seqsize=3)
    args = parser.parse_args(["--data", "y.h5", "--epochs", "7"])
    assert args.data == "y.h5"
    assert fs.Spec.from_args(args) == fs.Spec(7, 2, 3)


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        (fs.Spec, "--epochs 1.5", "argument --epochs: must be an integer, got '1.5'"),
        (fs.Spec, "--clip-norm much", "argument --clip-norm: must be a number or none, got 'much'"),
        (fs.Spec, "--batchsize 3", "the following arguments are required: --epochs, --seqsize"),
        (fs.Spec, "--epoch-count 3", "required"),
        (
            fs.SequenceForecaster,
            "--quantiles 0.1,high",
            "must be a list such as 0.1,0.9 or none, got 'high' in it",
        ),
        (fs.SequenceForecaster, "--horizons 3", "unrecognized arguments: --horizons 3"),
    ],
)
def test_wrong_words_end_the_script_with_a_message(kind, words, message, capsys):
    with pytest.raises(SystemExit):
        parsed(kind, words)
    assert message in capsys.readouterr().err


def test_wrong_use_raises():
    parser = argparse.ArgumentParser()
    with pytest.raises(TypeError, match="no option for 'batch_size': did you mean"):
        fs.Spec.add_arguments(parser, batch_size=3)
    with pytest.raises(TypeError, match="no option for 'callbacks': pass it to from_args"):
        fs.SequenceClassifier.add_arguments(parser, callbacks=[])
    with pytest.raises(TypeError, match=r"call Spec\.add_arguments"):
        fs.Spec.from_args(parser.parse_args([]))
    with pytest.raises(ValueError, match=r"spec\.shard must be"):
        parsed(fs.Spec, "--shard place", epochs=1, batchsize=2, seqsize=3)


def test_jsonargparse_reads_our_classes(tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("spec:\n  epochs: 3\n  batchsize: 4\n  seqsize: 5\nmodel:\n  lr: 0.5\n")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(fs.Spec, "spec")
    parser.add_class_arguments(fs.SequenceRegressor, "model")
    args = parser.parse_args(["--config", str(settings), "--spec.clip_norm", "2"])
    found = parser.instantiate(args)
    assert found.spec == fs.Spec(3, 4, 5, clip_norm=2.0)
    assert found.model.lr == 0.5


SAMPLES = np.random.default_rng(0).normal(size=(12, 5, 2))
WRAPPERS = [fs.SequenceClassifier, fs.SequenceRegressor]


def fit(model):
    if isinstance(model, fs.SequenceForecaster):
        return model.fit(np.arange(40.0))
    return model.fit(SAMPLES, np.arange(12) % 2)


@pytest.mark.parametrize(
    ("kinds", "name", "value", "wanted"),
    [
        (WRAPPERS, "shuffle", "no", "True or False, got 'no'"),
        (WRAPPERS, "channels_first", "no", "True or False"),
        (WRAPPERS, "bidirectional", "off", "True or False"),
        (WRAPPERS, "per_step", "no", "True, False or None"),
        (WRAPPERS, "validation_fraction", True, "a number or None"),
        (KINDS[1:], "decay_biases", "no", "True or False"),
        (KINDS[1:], "warm_start", 0, "True or False, got 0"),
        (KINDS[1:], "verbose", "no", "True, False or an integer"),
        (KINDS[1:], "lr", True, "a number"),
        (KINDS[1:], "lr", "0.01", "a number"),
        (KINDS[1:], "weight_decay", True, "a number"),
        (KINDS[1:], "dropout", "0.1", "a number"),
        (KINDS[1:], "hidden_size", 4.0, "an integer"),
        (KINDS[1:], "epochs", True, "an integer or None, got True"),
    ],
)
def test_texts_and_bools_in_place_of_others_are_refused_by_fit(kinds, name, value, wanted):
    for kind in kinds:
        with pytest.raises(TypeError, match=f"^{name} must be {wanted}"):
            fit(kind(**{name: value}))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_numbers_and_bools_of_numpy_are_numbers_and_bools(kind):
    given = {"lr": np.float32(0.01), "epochs": np.int64(1), "warm_start": np.bool_(False)}
    assert fit(kind(hidden_size=4, weight_decay=0, verbose=False, **given)).n_iter_ == 1


def test_a_subclass_whose_annotations_cannot_be_read_fits():
    class Own(fs.SequenceRegressor):
        def __init__(self, lr: NotImported = None, epochs=1):  # noqa: F821
            super().__init__(lr=lr, epochs=epochs)

        @classmethod
        def _get_param_names(cls):
            return fs.SequenceRegressor._get_param_names()

    assert fit(Own()).n_iter_ == 1


def test_a_test_of_learning_rates_checks_them_too():
    with pytest.raises(TypeError, match="shuffle must be True or False"):
        fs.SequenceRegressor(shuffle="no").find_lr(SAMPLES, np.arange(12.0))
