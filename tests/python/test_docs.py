"""Every example runs: in docstrings, and in the documents."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from jobs import mpirun
from numpydoc.docscrape import NumpyDocString

import fastseq as fs

ROOT = Path(__file__).parents[2]
NATIVE = ("fastseq._C", "fastseq._comm", "fastseq._mpi", "fastseq._reader")
MODULES = [m.name for m in pkgutil.walk_packages(fs.__path__, "fastseq.")]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
LONG = (
    "classification",
    "forecasting",
    "gpus-and-clusters",
    "hierarchies",
    "images",
    "large-data",
    "resuming",
    "serving",
    "text",
    "tuning",
)  # ten seconds and more
LONG_MARKS = (pytest.mark.slow, pytest.mark.timeout(1200))
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *GUIDES, *REFERENCE
]  # fmt: skip


@pytest.mark.parametrize("name", [m for m in MODULES if m not in NATIVE])
def test_docstrings(name, capsys):
    module = importlib.import_module(name)
    names = {"torch": torch, "nn": torch.nn, "np": __import__("numpy")}
    result = doctest.testmod(
        module, extraglobs=names if not name.endswith("__main__") else None,
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )  # fmt: skip
    assert result.failed == 0, capsys.readouterr().out


def test_public_names_are_documented():
    for name in fs.__all__:
        thing = getattr(fs, name)
        assert thing.__doc__, name
        if callable(thing) and not (isinstance(thing, type) and issubclass(thing, Exception)):
            assert ">>>" in thing.__doc__, f"{name} has no example"


def test_the_reference_has_all_public_names():
    told = set(re.findall(r"^\.\. auto\w+:: (\S+)$", "".join(map(Path.read_text, REFERENCE)), re.M))
    modules = [fs, fs.nn, fs.builders, fs.callbacks, fs.distributed, fs.serving]
    modules += [importlib.import_module(f"fastseq.{name}") for name in ("huggingface", "sktime")]
    modules.append(importlib.import_module("fastseq.sklearn"))
    told_things = [_thing(name) for name in told]
    for module in modules:
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing):
                assert any(thing is own for own in told_things), f"{module.__name__}.{name}"


def _thing(path: str) -> object:
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


KINDS = {
    name: kind
    for page in REFERENCE
    for kind, name in re.findall(r"^\.\. auto(\w+):: (\S+)$", page.read_text(), re.M)
}
CLASSES = [name for name, kind in KINDS.items() if kind != "function"]
# Raise nothing of their own; errors are raised themselves.
RAISE_NOTHING = {
    "fastseq.History", "fastseq.callbacks.Callback", "fastseq.distributed.mpi_library",
    "fastseq.nn.builders.Builder",
    *(name for name, kind in KINDS.items() if kind == "exception"),
}  # fmt: skip
# Documented by torch.
OF_MODULES = ("extra_repr", "forward", "reset_parameters")


def _missing(thing: Any) -> list[str]:
    """Return what the docstring of a class, a function or a method does not tell."""
    doc = NumpyDocString(inspect.getdoc(thing) or "")
    try:
        signature = inspect.signature(thing)
    except ValueError:  # an exception without a constructor of its own
        signature = inspect.Signature()
    if getattr(thing, "_is_protocol", False):  # has no constructor
        signature = inspect.Signature()
    told = {one.strip().lstrip("*") for entry in doc["Parameters"] for one in entry.name.split(",")}
    missing = [name for name in signature.parameters if name not in told | {"self"}]
    returns = signature.return_annotation not in (None, "None", inspect.Signature.empty)
    if not isinstance(thing, type) and returns and not (doc["Returns"] or doc["Yields"]):
        missing.append("Returns")
    return missing


@pytest.mark.parametrize("name", KINDS)
def test_docstrings_of_names_are_complete(name):
    thing = _thing(name)
    doc = NumpyDocString(inspect.getdoc(thing))
    assert _missing(thing) == []
    assert doc["Examples"]
    assert ">>>" in "".join(doc["Examples"]) or name == "fastseq.serving.serve"  # it does not end
    assert bool(doc["Raises"]) != (name in RAISE_NOTHING)


@pytest.mark.parametrize("name", CLASSES)
def test_docstrings_of_methods_are_complete(name):
    kind = _thing(name)
    left_out = OF_MODULES if issubclass(kind, torch.nn.Module) else ()
    missing = {}
    for method, function in inspect.getmembers(kind, inspect.isroutine):
        ours = (getattr(function, "__module__", None) or "").startswith("fastseq")
        of_sklearn = re.fullmatch(r"set_\w+_request", method)
        if ours and not (method.startswith("_") or method in left_out or of_sklearn):
            assert inspect.getdoc(function), method
            missing[method] = _missing(function)
    assert not {method: names for method, names in missing.items() if names}


def test_each_page_is_in_the_site_s_index():
    listed = {"index"}
    for path in (*GUIDES, *REFERENCE):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", path.read_text(), re.DOTALL):
            folder = path.parent.relative_to(ROOT / "docs")
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {str(folder / name) for name in names}
    pages = {str(p.relative_to(ROOT / "docs").with_suffix("")) for p in (*GUIDES, *REFERENCE)}
    assert pages == listed


def test_tables_have_a_line_for_each_row():
    joined = [p.name for p in DOCUMENTS if re.search(r"^\|.*\| \|-", p.read_text(), re.MULTILINE)]
    assert joined == []
    rows = [
        (p.name, row) for p in DOCUMENTS for row in p.read_text().splitlines() if row[:2] == "| "
    ]
    assert [row for row in rows if not row[1].endswith("|")] == []  # text behind the last row


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def test_readme_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    code = "\n".join(blocks(ROOT / "README.md", "python"))
    assert "train.py" in code
    names: dict = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert names["forecast"].shape == (14, 5)
    assert names["classifier"].score(names["signals"][150:], names["labels"][150:]) > 0.95
    assert (tmp_path / "sales.png").exists()


def test_readme_mpirun(tmp_path):
    (command,) = [b.strip() for b in blocks(ROOT / "README.md", "sh") if "train.py" in b]
    assert command == "mpirun -n 2 python train.py"
    script = next(b for b in blocks(ROOT / "README.md", "python") if "# train.py" in b)
    done = mpirun(tmp_path, 2, script)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^loss 0\.0\d+, error 0\.0\d+$", done.stdout, re.MULTILINE)) == 2


# What MLflow's database does with this version of SQLAlchemy.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
@pytest.mark.parametrize(
    "guide",
    [pytest.param(path, marks=LONG_MARKS if path.stem in LONG else ()) for path in GUIDES],
    ids=lambda path: path.stem,
)
def test_guides_run(guide, tmp_path, monkeypatch, capfd):
    """Run all blocks of a guide, in order, in a folder that has only the examples."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    names: dict = {"__name__": guide.stem}
    for language, code in re.findall(r"```(\w+)\n(.*?)```", guide.read_text(), re.DOTALL):
        if language == "python":
            exec(compile(code, guide.name, "exec"), names)  # noqa: S102
        else:
            assert language == "sh", "what is no Python is run by bash"
            done = subprocess.run(["/bin/bash", "-e", "-c", code], check=False)
            assert done.returncode == 0, f"{code}\n{capfd.readouterr().err}"
    if guide.stem == "estimator":
        assert names["more"].shape == (200, 200, 1)
        assert names["y_t"].shape == (200, 1)
        assert len(names["table"]) == 6
        assert (tmp_path / "history.png").exists()
    if guide.stem == "large-data":
        output = capfd.readouterr().out
        assert "x holds NaN at step 100, sequence 3" in output
        limit, size = map(int, re.findall(r"at most (\d+) MB; file: (\d+) MB", output)[0])
        assert size > 1.5 * limit
        assert "in memory: MemoryError" in output


def test_make_commands_in_documents_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        text = "\n".join(re.findall(r"`([^`\n]+)`", path.read_text()) + blocks(path, "sh"))
        for target in re.findall(r"\bmake ([a-z-]+)", text):
            assert target in targets, f"{path.name}: make {target}"


def test_files_that_documents_name_exist():
    for path in DOCUMENTS:
        for name in re.findall(
            r"`((?:csrc|python|tests|bench|examples|docs)/[\w./]+)`", path.read_text()
        ):
            if "NAME" not in name:
                assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_links_between_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_figures_in_documents_are_the_bench_s(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import figures

    for page in figures.PAGES:
        assert figures.updated(page) == page.read_text(), "python bench/figures.py --write"
    for name in ("fit", "recurrent", "allreduce_2", "step_2"):
        found = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
        assert found["circumstances"]["cpu"] in (ROOT / "docs" / "benchmarks.md").read_text()


def test_the_page_on_scaling_is_made_of_the_bench_s_files(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import model_scaling

    monkeypatch.setattr(model_scaling, "DOCS", tmp_path)
    model_scaling.main()
    assert (tmp_path / "scaling.md").read_text() == (ROOT / "docs" / "scaling.md").read_text()
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resume", "retail", "search", "sensors", "serving", "streaming", "two_ranks"],
)
def test_examples_run_and_draw(name, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"Picture: {name}.png (")
    assert (tmp_path / f"{name}.png").stat().st_size > 8_000


@pytest.mark.slow
def test_two_ranks_of_mpirun_train_the_same_model(tmp_path):
    script = ROOT / "examples" / "two_ranks.py"
    done = mpirun(
        tmp_path, 2, f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Picture: two_ranks.png (") == 1


def test_the_gallery_s_page_names_each_example():
    page = (ROOT / "examples" / "README.md").read_text()
    listed = re.findall(r"^\| `(\w+\.py)`", page, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_demo_beats_the_naive_forecast(tmp_path, ranks):
    script = ROOT / "examples" / "demand.py"
    launcher = (
        "import runpy, sys; sys.argv = ['demand', '--out', 'demo']; "
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    if ranks == 1:
        done = subprocess.run(
            [sys.executable, "-c", launcher], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "MPLBACKEND": "Agg"}, check=False,
        )  # fmt: skip
    else:
        done = mpirun(tmp_path, ranks, launcher, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"error is [3-9]\d% below the seasonal-naive", done.stdout)
    for picture in ("forecast.png", "history.png"):
        assert (tmp_path / "demo" / picture).stat().st_size > 20_000
