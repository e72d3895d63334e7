"""The layering rule: an include or an import may only point up the list of layers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Which layers of csrc each layer may include.
ALLOWED = {
    "core": {"core"},
    "cuda": {"core", "cuda"},
    "mpi": {"core", "mpi"},
    "torch": {"core", "cuda", "torch"},
    "python": {"core", "mpi", "python"},
}
NATIVE = sorted((ROOT / "csrc").rglob("*.[hc]*"))
PYTHON = sorted((ROOT / "python").rglob("*.py"))


def includes(path: Path) -> list[str]:
    return re.findall(r'#include\s+["<]([^">]+)[">]', path.read_text())


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: str(p.relative_to(ROOT)))
def test_includes_point_up(path: Path) -> None:
    if path.suffix not in {".h", ".cpp", ".cu"}:
        return
    layer = path.relative_to(ROOT / "csrc").parts[0]
    for name in includes(path):
        if (ROOT / "csrc" / name).exists():
            assert name.split("/")[0] in ALLOWED[layer], f"{path} includes {name}"


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [
        ("core", r"torch/|mpi\.h|cuda|Python\.h|pybind11"),
        ("cuda", r"torch/csrc|mpi\.h|Python\.h|pybind11"),
        ("mpi", r"torch/|cuda|Python\.h|pybind11"),
        ("torch", r"mpi\.h|pybind11|ATen|torch/extension"),
        ("python", r"torch/|cuda"),
    ],
)
def test_layers_do_not_know_each_others_libraries(layer: str, forbidden: str) -> None:
    for path in NATIVE:
        if path.relative_to(ROOT / "csrc").parts[0] == layer and path.suffix != ".txt":
            found = [
                i
                for i in includes(path)
                if re.match(forbidden, i) and not i.startswith(f"{layer}/")
            ]
            assert not found, f"{path} includes {found}"


def imported(path: Path) -> set[str]:
    """Return the names of fastseq's modules that a file imports, relative ones resolved."""
    package = ["fastseq", *path.relative_to(ROOT / "python" / "fastseq").parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize(
    ("module", "only"),
    [
        ("fastseq._C", {"native.py"}),
        ("fastseq._cuda", {"native.py"}),
        ("fastseq._reader", {"native.py"}),
        ("fastseq._comm", {"comm.py"}),
        ("fastseq._mpi", {"comm.py"}),
    ],
)
def test_one_python_module_touches_each_native_one(module: str, only: set[str]) -> None:
    assert {path.name for path in PYTHON if module in imported(path)} == only


def test_the_estimator_sees_no_operator_and_no_exchange() -> None:
    found = imported(ROOT / "python" / "fastseq" / "estimator.py")
    assert not {name for name in found if name.startswith(("fastseq._ops", "fastseq._comm"))}


def lines_of_code(path: Path) -> int:
    """Count the lines of a file that are neither blank nor comments nor docstrings."""
    text = path.read_text()
    lines = text.splitlines()
    if path.suffix != ".py":
        return sum(not re.match(r"\s*(//|$)", line) for line in lines)
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                docs |= set(range(node.lineno - 1, node.end_lineno or 0))
    return sum(not re.match(r"\s*(#|$)", line) for i, line in enumerate(lines) if i not in docs)


def test_files_have_one_subject_and_stay_short() -> None:
    tracked = [*NATIVE, *PYTHON, *(ROOT / "tests").rglob("*.py"), *(ROOT / "tests").rglob("*.cpp")]
    assert not {str(p): n for p in tracked if p.is_file() and (n := lines_of_code(p)) > 500}
