"""What estimators, callbacks and plots show of themselves, in a shell and in a notebook."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import optuna
import pytest
import torch
from numpydoc.docscrape import NumpyDocString
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq import callbacks as cb

X = torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(0))


def estimator(**more):
    model = fs.nn.Chain(fs.nn.LSTM(3, 4), nn.Linear(4, 1))
    spec = {"epochs": 2, "batchsize": 4, "seqsize": 10}
    return fs.Estimator(
        model, fs.seqloss(mse_loss), lambda p: torch.optim.SGD(p, lr=0.25), spec,
        progress=False, comm=None, **more,
    )  # fmt: skip


def test_an_estimator_tells_what_it_is_and_how_far_it_is_trained():
    est = estimator(amp="bf16")
    assert repr(est).splitlines() == [
        "Estimator",
        "  model      Chain: 149 parameters, float32 on cpu",
        "  optimizer  SGD, lr 0.25",
        "  amp        bf16",
        "  spec       epochs=2, batchsize=4, seqsize=10",
        "  trained    not yet",
    ]
    est.fit(X, X[..., :1])
    loss = est.history_[-1]["loss"]
    assert repr(est).splitlines()[-1] == f"  trained    2 epochs, 4 updates, loss {loss:.5g}"
    page = est._repr_html_()
    assert "<tr><th>model</th><td>Chain: 149 parameters, float32 on cpu</td></tr>" in page
    assert page.count("<tr>") == 5


def test_names_are_escaped_in_notebooks():
    class Odd(nn.Linear):
        pass

    Odd.__name__ = "<b>"
    est = estimator()
    est.model = Odd(3, 1)
    assert "&lt;b&gt;: 4 parameters" in est._repr_html_()


@pytest.mark.parametrize(
    ("callback", "shown"),
    [
        (cb.NumberSinceBest(7), "NumberSinceBest(7)"),
        (cb.NumberSinceBest(), "NumberSinceBest()"),
        (cb.NumberSinceBest(3, min_delta=0.5), "NumberSinceBest(3, min_delta=0.5)"),
        (cb.RestoreBest(), "RestoreBest()"),
        (cb.AnyOf(cb.NumberLimit(3), cb.Patience(2)), "AnyOf(NumberLimit(3), Patience(2))"),
    ],
)
def test_callbacks_show_their_arguments(callback, shown):
    assert repr(callback) == shown


def test_every_callback_has_a_short_repr():
    made = [cb.TimeLimit(60), cb.Metrics("r2"), cb.Threshold(0.1), cb.GL(), cb.Log()]
    for callback in made:
        assert repr(callback).startswith(f"{type(callback).__name__}(")
        assert len(repr(callback)) < 80
        assert " at 0x" not in repr(callback)


def test_plots_are_pyplot_s_where_it_is_in_use():
    import matplotlib.pyplot as plt

    mpl.use("Agg")
    plt.close("all")
    axes = estimator().fit(X, X[..., :1]).history_.plot()
    assert plt.get_fignums() == [axes.figure.number]
    plt.close("all")


def test_plots_need_no_pyplot(tmp_path):
    script = """
import sys, torch, fastseq as fs
assert "matplotlib.pyplot" not in sys.modules
x = torch.randn(20, 4, 3)
model = torch.nn.Linear(3, 1)
spec = {"epochs": 1, "batchsize": 4, "seqsize": 10}
est = fs.Estimator(model, fs.seqloss(torch.nn.functional.mse_loss), torch.optim.SGD, spec)
est.progress = False
est.fit(x, x[..., :1]).history_.plot().figure.savefig("history.png")
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "history.png").stat().st_size > 5000


PACKAGES = [m.name for m in pkgutil.walk_packages(fs.__path__, "fastseq.") if m.ispkg]
PUBLIC_MODULES = ["fastseq.errors", "fastseq.huggingface", "fastseq.nn.builders", "fastseq.sktime"]


@pytest.mark.parametrize("name", ["fastseq", *PACKAGES, *PUBLIC_MODULES])
def test_completion_shows_a_module_s_public_names_only(name):
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)
    for shown in dir(module):
        getattr(module, shown)


def described(kind: type) -> set[str]:
    """Return the parameters and attributes that the docstrings of a class and its bases tell of."""
    found = set()
    for own in kind.__mro__:
        if own.__module__.startswith("fastseq") and own.__doc__:
            doc = NumpyDocString(inspect.cleandoc(own.__doc__))
            for entry in (*doc["Parameters"], *doc["Attributes"]):
                found |= {name.strip().lstrip("*") for name in entry.name.split(",")}
    return found


def undocumented(thing: object) -> list[str]:
    """Return the names that completion shows of an object, and no docstring explains."""
    kind = type(thing)
    shown = {name for name in dir(thing) if not name.startswith("_")} - described(kind)
    return sorted(name for name in shown if not inspect.getdoc(getattr(kind, name, None)))


def test_completion_of_estimators_shows_documented_names_only():
    est = estimator()
    assert undocumented(est) == []
    est.fit(X, X[..., :1], validation=0.25)
    for thing in (est, est.history_, est.spec, fs.Stateful(est.model), est.scaling_):
        assert undocumented(thing) == []


@pytest.mark.parametrize("kind", [fs.SequenceRegressor, fs.SequenceClassifier])
@pytest.mark.parametrize("shape", [(20, 4, 3), (20, 4)])
def test_completion_of_scikit_learn_s_estimators_shows_documented_names_only(kind, shape):
    model = kind(epochs=1, random_state=0)
    assert undocumented(model) == []
    x = np.random.default_rng(0).standard_normal(shape)
    model.fit(x, x.reshape(20, -1)[:, 0] > 0)
    assert undocumented(model) == []


def test_completion_of_a_forecaster_shows_documented_names_only():
    model = fs.SequenceForecaster(horizon=2, epochs=1, random_state=0)
    assert undocumented(model) == []
    model.fit(np.sin(np.arange(60.0)))
    assert undocumented(model) == []


NEEDED = {
    "AllOf": [cb.GL()], "AnyOf": [cb.GL()], "Checkpoint": ["folder"], "LivePlot": ["history.png"],
    "Metrics": ["r2"], "OptunaPruning": [optuna.trial.FixedTrial({})],
    "Schedule": [torch.optim.lr_scheduler.ConstantLR], "Snapshots": ["weights"],
    "TensorBoard": ["log"], "Threshold": [0.0], "TimeLimit": [60], "Warmup": [cb.GL()],
}  # fmt: skip
# They need more than a folder of the test: a trial, a database. `Checkpoint` is no callback.
NOT_IN_FIT = ("Checkpoint", "MLflow", "RayTune")


@pytest.mark.parametrize("name", cb.__all__)
def test_completion_of_callbacks_shows_documented_names_only(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = getattr(cb, name)(*NEEDED.get(name, ()))
    assert undocumented(callback) == []
    if name in NOT_IN_FIT or name == "Criterion":
        return
    x = X[..., :1] > 0
    loss = fs.seqloss(nn.BCEWithLogitsLoss())
    spec = {"epochs": 1, "batchsize": 4, "seqsize": 10}
    est = fs.Estimator(
        nn.Linear(3, 1), loss, lambda p: torch.optim.SGD(p, lr=0.1), spec,
        callbacks=[callback], progress=False, comm=None,
    )  # fmt: skip
    est.fit(X, x.float(), validation=0.25)
    assert undocumented(callback) == []
