"""What estimators, callbacks and plots show of themselves, in a shell and in a notebook."""

from __future__ import annotations

import subprocess
import sys

import matplotlib as mpl
import pytest
import torch
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
