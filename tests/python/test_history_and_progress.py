from __future__ import annotations

import functools
import importlib.metadata
import io
import json
import re
import subprocess
import sys

import matplotlib as mpl
import matplotlib.figure
import pytest
import torch
import tqdm.notebook
from models import adamw, chain
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq._util.progress import Progress

mpl.use("Agg")
RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(20, 6, 3, generator=RANDOM)


def fitted(**options):
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), adamw, fs.Spec(3, 2, 5), **options)
    return est.fit(X, X[..., :1])


def test_history():
    history = fitted(progress=False).history_
    frame = history.to_frame()
    assert list(frame["epoch"]) == [1, 2, 3]
    columns = ["epoch", "loss", "lr", "updates", "seconds", "updates_per_second"]
    assert list(frame.columns) == columns
    assert (frame["updates"] == 12).all()
    assert history.updates == 36
    assert [row["loss"] for row in history[1:]] == list(frame["loss"][1:])
    assert "3 epochs" in repr(history)


def test_a_printed_history_has_no_speeds_and_rates_of_one_form():
    history = fs.History()
    for epoch, lr in enumerate((0.005, 4e-08), 1):
        history.append({"epoch": epoch, "loss": 0.5, "lr": lr, "updates_per_second": 6111.0})
    assert repr(history).splitlines()[1:] == [
        "epoch     loss         lr", "    1  0.50000  5.000e-03", "    2  0.50000  4.000e-08"
    ]  # fmt: skip
    assert list(history.to_frame().columns)[-1] == "updates_per_second"


def test_replaced_rows_are_counted_anew():
    history = fitted(progress=False).history_
    history.replace([{"epoch": 1, "loss": 0.5, "updates": 5}])
    assert (len(history), history.updates) == (1, 5)
    history.replace(history)
    assert (len(history), history.updates) == (1, 5)


def test_plot(tmp_path):
    history = fitted(progress=False).history_
    ax = history.plot()
    line = ax.get_lines()[0]
    assert ax.figure.get_axes() == [ax]
    assert list(line.get_xdata()) == [1, 2, 3]
    assert list(line.get_ydata()) == [row["loss"] for row in history]
    assert ax.get_xlabel() == "epoch"
    assert "loss" in ax.get_ylabel()
    assert history.plot(ax) is ax
    ax.figure.savefig(tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 5000


def rows(count, **columns):
    history = fs.History()
    for i in range(count):
        history.append({"epoch": i + 1, **{key: values[i] for key, values in columns.items()}})
    return history


LOSSES = {"loss": [4.0, 2.0, 1.0, 0.5], "lr": [0.1] * 4, "validation_loss": [4.0, 2.5, 3.0, 3.5]}


def test_history_is_shown_as_an_aligned_table():
    history = rows(4, **LOSSES, validation_r2=[-0.25, 0.5, 0.75, None], note=["a<b", "", "", ""])
    lines = repr(history).splitlines()
    assert lines[0] == "History: 4 epochs"
    assert lines[1].split() == ["epoch", "loss", "validation_loss", "validation_r2", "note", "lr"]
    assert lines[2].split() == ["1", "4.0000", "4.0000", "-0.25000", "a<b", "0.1"]
    assert lines[5].split() == ["4", "0.50000", "3.5000", "0.1"]
    assert len({len(line) for line in lines[1:]}) == 1  # columns end below each other
    assert list(history.to_frame().columns) == lines[1].split()
    text = history._repr_html_()
    assert text.count("<tr>") == 5
    assert "<td>-0.25000</td><td>a&lt;b</td><td>0.1</td>" in text


def test_long_histories_are_shown_in_part():
    values = [1 / (i + 1) for i in range(100)]
    lines = repr(rows(100, loss=values)).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [*"12345", "…", *map(str, range(86, 101))]
    assert len(repr(rows(20, loss=values)).splitlines()) == 22
    assert repr(fs.History()) == "History: 0 epochs"
    assert "<table>" in fs.History()._repr_html_()


def lines_of(ax):
    return {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}


def test_plot_has_panels_for_metrics_and_learning_rate_and_marks_the_best_epoch():
    columns = LOSSES | {"lr": [0.1, 0.01, 0.001, 0.0001]}
    history = rows(4, **columns, r2=[0.1, 0.2, 0.3, 0.4], validation_r2=[0.0, 0.1, 0.2, float("nan")],
                   validation_f1=[0.1, 0.2, 0.3, 0.4])  # fmt: skip
    ax = history.plot()
    losses, r2, f1, lr = ax.figure.get_axes()
    assert losses is ax
    assert lines_of(losses)["training"] == LOSSES["loss"]
    assert lines_of(losses)["validation"] == LOSSES["validation_loss"]
    assert [panel.get_title(loc="left") for panel in (r2, f1, lr)] == ["r2", "f1", "learning rate"]
    assert lines_of(r2)["training"] == [0.1, 0.2, 0.3, 0.4]
    assert lines_of(r2)["validation"] == [0.0, 0.1, 0.2]
    assert lines_of(f1)["validation"] == [0.1, 0.2, 0.3, 0.4]
    assert lines_of(lr)["learning rate"] == columns["lr"]
    assert lr.get_yscale() == "log"
    for panel in ax.figure.get_axes():
        (best,) = (line for line in panel.get_lines() if line.get_label() == "best epoch: 2")
        assert list(best.get_xdata()) == [2, 2]
    assert "best epoch: 2" in {text.get_text() for text in losses.get_legend().get_texts()}


def test_plot_into_given_axes_draws_losses_only():
    figure = mpl.figure.Figure()
    left, right = figure.subplots(1, 2)
    rows(4, **LOSSES, validation_r2=[0.1, 0.2, 0.3, 0.4]).plot(right)
    assert not left.get_lines()
    assert {"training", "validation", "best epoch: 2"} == set(lines_of(right))
    assert figure.get_axes() == [left, right]


@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_epochs_are_marked_by_integers(epochs):
    ax = rows(epochs, loss=[1.0] * epochs).plot()
    ax.figure.draw_without_rendering()
    ticks = ax.get_xticks()
    assert 1 in ticks
    assert (ticks == ticks.round()).all()


def test_plot_marks_the_lowest_loss_without_validation():
    assert "best epoch: 4" in lines_of(rows(4, loss=LOSSES["loss"]).plot())
    assert not lines_of(fs.History().plot())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_counts_all_chunks_and_can_be_turned_off(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    fitted(progress=False)
    assert stream.getvalue() == ""
    fitted()
    last = stream.getvalue().splitlines()[-1]
    assert re.search(
        r"epoch 3/3: 100%\|.*\| 36/36 \[00:\d\d<00:00, .*chunk/s, loss [\d.e-]+\]", last
    )


def test_progress_bar_shows_the_validation_loss(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), adamw, fs.Spec(3, 2, 5))
    history = est.fit(X, X[..., :1], validation=2).history_
    last = stream.getvalue().splitlines()[-1]
    assert f", val {history[-1]['validation_loss']:.4g}]" in last


def test_logs_get_a_line_for_each_epoch(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), adamw, fs.Spec(4, 2, 5))
    history = est.fit(X, X[..., :1], validation=2).history_
    est.predict(X)
    expected = [
        f"epoch {row['epoch']}/4: loss {row['loss']:.4g}, "
        f"validation_loss {row['validation_loss']:.4g}, lr {row['lr']:.4g}, {row['seconds']:.1f} s"
        for row in history
    ]
    assert stream.getvalue().splitlines() == expected


def test_progress_bar_in_a_notebook(monkeypatch):
    monkeypatch.setattr(
        "fastseq._util.progress.tqdm", functools.partial(tqdm.notebook.tqdm, display=False)
    )
    bar = Progress(10, shown=True)
    with bar:
        bar.epoch(2, 5)
        bar.ended({"validation_loss": 0.25})
        for _ in range(10):
            bar.advance(0.5)
    label, gauge, rest = bar._bar.container.children
    assert label.value.replace("\u2007", " ") == "epoch 2/5: 100%"
    assert (gauge.value, gauge.max, gauge.bar_style) == (10, 10, "success")
    assert rest.value.replace("\u2007", " ").endswith("loss 0.5, val 0.25]")


def test_fit_logs_its_course(tmp_path, caplog):
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), adamw, fs.Spec(2, 2, 5), progress=False)
    with caplog.at_level("DEBUG", logger="fastseq"):
        est.fit(X, X[..., :1], checkpoint=tmp_path)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    chunks = "12 chunks an epoch, 1 rank, updates on cpu in C++"
    assert said[0] == ("INFO", f"fit starts after epoch 0 of 2: {chunks}")
    assert said[-1] == ("INFO", "fit ends after epoch 2 of 2")
    assert ("DEBUG", f"checkpoint after update 24 to {tmp_path}") in said
    assert [text[:14] for level, text in said if text.startswith("epoch")] == [
        "epoch 1 of 2: ", "epoch 2 of 2: "
    ]  # fmt: skip
    assert f"'loss': {est.history_[1]['loss']}" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="fastseq"):
        est.fit(X, X[..., :1], resume=tmp_path, epochs=3)
    first = caplog.records[0].getMessage()
    assert first == f"fit continues from the checkpoint in {tmp_path}"
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_verbose_says_nothing_or_shows_a_bar_or_a_line_for_each_epoch(capsys, caplog):
    x = X.transpose(0, 1).numpy()
    shown = {}
    for verbose in (0, 1, 2):
        model = fs.SequenceRegressor(
            hidden_size=2, epochs=2, random_state=0, verbose=verbose, warm_start=True
        )
        model.fit(x, x[:, -1, 0])
        shown[verbose] = capsys.readouterr()
    assert shown[0] == ("", "")
    lines = r"epoch 1/2: loss [\d.]+, lr .*, [\d.]+ s\nepoch 2/2: loss [\d.]+, lr .*, [\d.]+ s\n"
    assert shown[1].out == ""
    assert re.fullmatch(lines, shown[1].err)
    assert re.fullmatch(lines, shown[2].out)
    assert shown[2].err == ""
    with caplog.at_level("INFO", logger="fastseq"):
        model.set_params(epochs=3).fit(x, x[:, -1, 0])
    assert capsys.readouterr().out.startswith("SequenceRegressor continues after epoch 2\nepoch 3")
    assert "SequenceRegressor continues after epoch 2" in caplog.text


def test_info_says_what_is_in_use():
    found = fs.info()
    assert found["torch"] == torch.__version__
    assert found["ranks"] == {"rank": 0, "size": 1, "local_size": 1, "transport": "single"}
    command = [sys.executable, "-m", "fastseq", "info"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(text)["ranks"] == found["ranks"]


def test_import_is_light():
    """Importing fastseq loads neither MPI, plotting nor data frames, nor PyTorch's compiler."""
    code = (
        "import fastseq, sys; "
        "print(sorted(set(sys.modules) & {'mpi4py', 'pandas', 'matplotlib', 'torch._dynamo'}))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"


def test_the_package_lists_its_public_names():
    assert dir(fs) == sorted(fs.__all__)
    assert all(hasattr(fs, name) for name in dir(fs))
    assert fs.__version__ == importlib.metadata.version("fastseq-torch")
    assert not hasattr(fs, "SequenceTransformer")


def test_names_are_there_without_scikit_learn():
    code = """
import sys
sys.modules["sklearn"] = None
import inspect, fastseq as fs
from fastseq import SequenceRegressor
assert all(hasattr(fs, name) for name in dir(fs)) and inspect.getmembers(fs)
try:
    SequenceRegressor("gru")
except fs.MissingFeatureError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'scikit-learn>=1.6'" in found.stdout


@pytest.mark.parametrize("missing", ["pandas", "matplotlib"])
def test_history_works_without_extras(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    assert len(fitted(progress=False).history_) == 3
