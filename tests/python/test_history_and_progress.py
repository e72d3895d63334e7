from __future__ import annotations

import io
import json
import subprocess
import sys

import matplotlib as mpl
import pytest
import torch
from models import adamw, chain
from torch.nn.functional import mse_loss

import fastseq as fs

mpl.use("Agg")
X = torch.randn(20, 6, 3)


def fitted(**options):
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), adamw, fs.Spec(3, 2, 5), **options)
    return est.fit(X, X[..., :1])


def test_history():
    history = fitted(progress=False).history_
    frame = history.to_frame()
    assert list(frame["epoch"]) == [1, 2, 3]
    assert list(frame.columns) == ["epoch", "loss", "lr", "steps", "seconds", "steps_per_second"]
    assert (frame["steps"] == 12).all()
    assert [row["loss"] for row in history[1:]] == list(frame["loss"][1:])
    assert "3 epochs" in repr(history)


def test_plot(tmp_path):
    history = fitted(progress=False).history_
    ax = history.plot()
    (line,) = ax.get_lines()
    assert list(line.get_xdata()) == [1, 2, 3]
    assert list(line.get_ydata()) == [row["loss"] for row in history]
    assert ax.get_xlabel() == "epoch"
    assert "loss" in ax.get_ylabel()
    assert history.plot(ax) is ax
    ax.figure.savefig(tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 5000


def test_progress_bar_counts_all_steps_and_can_be_turned_off(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    fitted(progress=False)
    assert stream.getvalue() == ""
    fitted()
    assert "epoch 3" in stream.getvalue()
    assert "36/36" in stream.getvalue()
    assert "step/s" in stream.getvalue()


def test_info_says_what_is_in_use():
    found = fs.info()
    assert found["torch"] == torch.__version__
    assert found["ranks"] == {"rank": 0, "size": 1, "local_size": 1, "transport": "single"}
    command = [sys.executable, "-m", "fastseq", "info"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(text)["ranks"] == found["ranks"]


def test_import_is_light():
    """Importing fastseq loads neither MPI nor plotting nor data frames."""
    code = (
        "import fastseq, sys; print(sorted(set(sys.modules) & {'mpi4py', 'pandas', 'matplotlib'}))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("missing", ["pandas", "matplotlib"])
def test_history_works_without_extras(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    assert len(fitted(progress=False).history_) == 3
