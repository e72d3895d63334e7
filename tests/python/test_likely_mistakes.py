"""Data and settings that are probably meant otherwise: warnings, and errors that say what is."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.exceptions import DataConversionWarning
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 6, 2)), RNG.standard_normal(12)
UP = (Y > 0).astype(int)
DAYS = pd.date_range("2024-01-01", periods=20)
LONG = pd.DataFrame(
    [(name, day, RNG.random(), "yes") for name in "ab" for day in DAYS],
    columns=["unique_id", "ds", "y", "promo"],
)
LONG.loc[::3, "promo"] = "no"
AHEAD = LONG.assign(ds=LONG["ds"] + pd.Timedelta("20D")).drop(columns="y").groupby("unique_id")
AHEAD = AHEAD.head(2).reset_index(drop=True)


def regressor(module="linear", epochs=1, **kw):
    return SequenceRegressor(module, epochs=epochs, random_state=0, **kw)


def classifier(module="linear", epochs=1, **kw):
    return SequenceClassifier(module, epochs=epochs, random_state=0, **kw)


def forecaster(module="linear", epochs=1, **kw):
    return SequenceForecaster(2, module=module, epochs=epochs, lags=4, random_state=0, **kw)


@pytest.fixture(scope="module")
def fitted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return forecaster().fit(LONG)


def told(call):
    """Return the warnings of a call, besides that it trained little."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    texts = [(str(one.message), one.filename) for one in found]
    return [(text, file) for text, file in texts if "were updated only" not in text]


def test_unseen_categories_of_the_horizon_are_named_once(fitted):
    new = AHEAD.assign(promo=["Yes", "no", "NO", None])
    ((text, file),) = told(lambda: fitted.predict(X=new))
    assert text == (
        "X holds categories that fit did not see, which have no effect: in column 'promo' 'Yes', "
        "'NO' (it saw 'no', 'yes')"
    )
    assert file == __file__
    assert not told(lambda: fitted.predict(X=AHEAD))


def test_unseen_categories_of_tables_are_named():
    table = pd.DataFrame({"size": Y, "kind": list("uv") * 6})
    assert not told(lambda: regressor("mlp").fit(table, Y))
    model = regressor("mlp").fit(table, Y)
    ((text, _),) = told(lambda: model.predict(table.assign(kind=[f"k{n}" for n in range(12)])))
    assert text.endswith("'k0', 'k1', 'k2', 'k3', 'k4', … (it saw 'u', 'v')")
    model = regressor().fit(X, Y, static=table)
    ((text, _),) = told(lambda: model.predict(X, static=table.assign(kind="w")))
    assert text.startswith("static holds categories that fit did not see")


@pytest.mark.parametrize("count", [5, 7])
def test_targets_one_step_off(count):
    y = RNG.standard_normal((12, count))
    with pytest.warns(UserWarning, match=rf"y is read as {count} targets .* must be \(N, 6\)"):
        regressor().fit(X, y)
    regressor(per_step=False).fit(X, y)  # which are errors elsewhere: warnings are


def test_targets_that_are_not_one_step_off():
    regressor().fit(X, RNG.standard_normal((12, 4)))
    regressor().fit(X, RNG.standard_normal((12, 6)))
    regressor().fit(X[:, :3], RNG.standard_normal((12, 2)))


def test_one_hot_rows():
    with pytest.warns(UserWarning, match=r"exactly one 1: .* pass y\.argmax\(1\)"):
        classifier().fit(X, np.eye(2)[UP])
    both = np.eye(2)[UP]
    both[0] = 1
    classifier().fit(X, both)
    classifier(loss="binary_cross_entropy").fit(X, np.eye(2)[UP])
    classifier("gru").fit(X, np.eye(6)[np.arange(12) % 6])  # one label per step


@pytest.mark.parametrize("loss", ["cross_entropy", "ordinal"])
@pytest.mark.parametrize(
    "of", [lambda y: y[:, None], lambda y: pd.DataFrame({"label": y})], ids=["array", "frame"]
)
def test_a_column_of_labels_is_no_axis_of_targets(of, loss):
    """Else predictions (N, 1) beside labels (N,) would be compared as (N, N)."""
    right = classifier(loss=loss).fit(X, UP)
    with pytest.warns(
        DataConversionWarning, match=r"y has the shape \(12, 1\) and is read"
    ) as found:
        model = classifier(loss=loss).fit(X, of(UP))
    assert {one.filename for one in found if "shape" in str(one.message)} == {__file__}
    np.testing.assert_array_equal(model.predict(X), right.predict(X))
    assert model.score(X, of(UP)) == right.score(X, UP)  # without a word
    model = classifier(loss=loss).partial_fit(X, UP)
    with pytest.warns(DataConversionWarning, match="y has the shape"):
        model.partial_fit(X, of(UP))
    assert model.n_iter_ == 2


def test_columns_of_targets_and_of_single_labels_stay_as_they_are():
    assert regressor().fit(X, Y[:, None]).predict(X).shape == (12, 1)
    model = classifier(loss="binary_cross_entropy").fit(X, UP[:, None])
    assert model.predict(X).shape == (12, 1)
    steps = np.repeat(UP[:, None], 6, 1)
    assert classifier().fit(X, steps).predict(X).shape == (12, 6)
    assert classifier().fit(X, steps[..., None]).predict(X).shape == (12, 6, 1)
    assert classifier().fit(X, np.stack([UP, 1 - UP, UP], 1)).predict(X).shape == (12, 3)


def table(columns):
    return pd.DataFrame(RNG.standard_normal((12, len(columns))), columns=columns)


@pytest.mark.parametrize("stem", ["t", "day_2024-", ""])
def test_steps_sorted_as_text(stem):
    x = table(sorted(f"{stem}{n}" for n in range(12)))
    with pytest.warns(UserWarning, match=rf"order {stem}0, {stem}1, {stem}10, {stem}11") as found:
        regressor("gru").fit(x, Y)
    (one,) = [one for one in found if "order" in str(one.message)]
    assert one.filename == __file__
    code = str(one.message).split("pass ")[1]
    in_time = eval(code, {"X": x})  # noqa: S307 (our own)
    assert in_time.columns.tolist() == [f"{stem}{n}" for n in range(12)]
    model = regressor("gru").fit(in_time, Y)  # warnings are errors
    model.predict(in_time)


@pytest.mark.parametrize(
    "columns",
    [
        [f"lag{n}" for n in range(9, 0, -1)],
        [f"month {n}" for n in (10, 11, 12, *range(1, 10))],
        ["t0.1", "t0.15", "t0.2", "t0.25", "t0.3", "t0.35"],
        ["t-10", "t-5", "t0", "t5", "t10"],
        ["a1", "b3", "c2", "d5", "e4"],
        ["x3", "x1", "x4", "x1b", "x5"],
        [0, 1, 2, 3],
        [0.5, 0.25, 1.5, 0.75, 1],
        pd.date_range("2024-01-28", periods=9),
    ],
)
def test_steps_whose_labels_do_not_tell_of_another_order(columns):
    regressor("gru").fit(table(columns), Y)


def test_numbered_columns_of_tables_may_have_any_order():
    regressor("mlp").fit(table([f"x{n}" for n in (3, 1, 4, 0, 2)]), Y)


def test_steps_of_polars_sorted_as_text():
    x = pl.from_pandas(table(sorted(f"t{n}" for n in range(12))))
    with pytest.warns(UserWarning, match="which is not that of their numbers"):
        regressor("gru").fit(x, Y)


SCORE = r"score needs data that follow those of fit: y\['a'\]"


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda f: f.predict(X=AHEAD.assign(y=1.0)), r"pandas X\.drop\(columns='y'\)"),
        (lambda f: f.predict(AHEAD), r"covariates of a horizon are X, predict\(X=…\)"),
        (lambda f: f.predict(5), "to forecast 5 steps, pass horizon=5"),
        (lambda f: f.predict(X=AHEAD.drop(columns="promo")), "ids and times, but fit got promo"),
        (lambda f: f.score(LONG), SCORE),
    ],
)
def test_data_of_a_forecaster(fitted, call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call(fitted)


@pytest.mark.parametrize(
    ("make", "y", "match"),
    [
        (lambda: classifier("GRU"), UP, "several joined by .* got 'GRU': did you mean \"gru\""),
        (lambda: classifier(class_weight="balance"), UP, 'did you mean "balanced"'),
        (lambda: classifier(device="gpu"), UP, 'did you mean "cuda"'),
        (lambda: classifier(nan="masks"), UP, 'did you mean "mask"'),
        (lambda: classifier(epochs=0), UP, "^epochs must be positive"),
        (lambda: classifier(batchsize=0), UP, "^batchsize must be positive"),
        (lambda: classifier(seqsize=-1), UP, "^seqsize must be positive"),
        (lambda: classifier(lr=-1), UP, "^lr must be finite and not negative, or None, got -1"),
        (regressor, np.where(UP, "a", "b"), "got the text '[ab]': .* use SequenceClassifier"),
        (regressor, list(np.where(UP, "a", "b")), "got the text '[ab]'"),
        (regressor, RNG.random(6), r"if it is \(T, N, F\), pass X\.transpose\(1, 0, 2\)"),
    ],
)
def test_settings_and_targets(make, y, match):
    with pytest.raises(ValueError, match=match):
        make().fit(X, y)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"season": "weekly"}, "season must be a number of steps, \"auto\" or None, got 'weekly'"),
        ({"module": "GRU"}, 'did you mean "gru"'),
        ({"scale": "standart"}, 'did you mean "standard"'),
    ],
)
def test_settings_of_a_forecaster(settings, match):
    with pytest.raises((ValueError, TypeError), match=match):
        forecaster(**settings).fit(LONG)


def test_files_of_other_classes_say_whose_they_are(tmp_path):
    classifier().fit(X, UP).save(tmp_path / "model.st")
    with pytest.raises(fs.CheckpointError, match=r"Regressor\.save, but by that of SequenceClas"):
        SequenceRegressor.load(tmp_path / "model.st")


def estimator(progress=False):
    torch.manual_seed(0)
    spec = {"epochs": 1, "batchsize": 2, "seqsize": 5}
    optimizer = torch.optim.Adam
    return fs.Estimator(
        fs.nn.GRU(2, 1), fs.seqloss(mse_loss), optimizer, spec, progress=progress, comm=None
    )


def test_resume_that_is_no_folder():
    x = torch.zeros(5, 4, 2)
    with pytest.raises(FileNotFoundError, match='"auto" continues from'):
        estimator().fit(x, x[..., :1], resume="yes")


def test_a_resumed_run_says_so_where_progress_is_shown(tmp_path, capsys):
    x, said = torch.zeros(5, 4, 2), []
    for progress in (True, True, False):
        estimator(progress).fit(x, x[..., :1], checkpoint=tmp_path, resume="auto", epochs=2)
        said.append("fit continues from the checkpoint in" in capsys.readouterr().err)
    assert said == [False, True, False]
