"""Builds that leave parts out, installed into a folder of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which("cmake") or "cmake"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def install(folder: Path, *settings: str) -> None:
    options = [f"--config-settings=cmake.define.{setting}" for setting in settings]
    options.append(f"--config-settings=build-dir={folder / 'build'}")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
    ]
    subprocess.run([*command, "--target", str(folder / "site"), *options, str(ROOT)], check=True)


def run(folder: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # -S and the path keep the installed fastseq of this environment out, -I would drop the path.
    paths = [str(folder / "site"), *(p for p in sys.path if p.endswith("site-packages"))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    return subprocess.run(
        [sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, check=False
    )


def test_without_mpi(tmp_path):
    install(tmp_path, "FASTSEQ_MPI=OFF")
    alone = run(
        tmp_path,
        "import fastseq as fs, torch; print(fs.__file__, fs.info()['mpi']); "
        "print(fs.distributed.world().allreduce_(torch.ones(2)))",
    )
    assert str(tmp_path) in alone.stdout, alone.stderr
    assert "not built" in alone.stdout
    assert "tensor([1., 1.])" in alone.stdout
    several = run(tmp_path, "import fastseq as fs; fs.distributed.Communicator('of mpi4py')")
    assert several.returncode != 0
    assert "MissingFeatureError: fastseq was built without MPI" in several.stderr
    assert "build fastseq again" in several.stderr
    # And where mpi4py finds no library: a launcher's variable is there, MPI is not.
    launched = run(tmp_path, "import fastseq as fs; fs.distributed.world()", PMI_RANK="0")
    assert launched.returncode != 0
    assert "MissingFeatureError" in launched.stderr


def test_a_wheel_holds_the_package_and_nothing_else(tmp_path):
    install(tmp_path)
    names = {p.name for p in (tmp_path / "site").iterdir()}
    # Scripts, such as the command `fastseq`, have a folder of their own.
    assert names == {"bin", "fastseq", next(n for n in names if n.endswith(".dist-info"))}
    assert [p.name for p in (tmp_path / "site" / "bin").iterdir()] == ["fastseq"]
    assert (tmp_path / "site" / "fastseq" / "py.typed").exists()


def configure_benches(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    layers = ("TORCH=OFF", "PYTHON=OFF", "BENCHES=ON", "WERROR=ON")
    options = [*(f"-DFASTSEQ_{layer}" for layer in layers), *(f"-D{text}" for text in settings)]
    return subprocess.run(
        [CMAKE, "-S", ROOT, "-B", folder, "-G", "Ninja", *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_cpp_benches_ask_for_their_library(tmp_path):
    found = configure_benches(tmp_path, "CMAKE_DISABLE_FIND_PACKAGE_benchmark=ON")
    assert found.returncode != 0
    assert "Google Benchmark was not found: install it" in " ".join(found.stderr.split())


def test_cpp_benches_run_where_their_library_is(tmp_path):
    build, results = tmp_path / "build", tmp_path / "results"
    found = configure_benches(build, "CMAKE_CUDA_ARCHITECTURES=90")
    if "Google Benchmark was not found" in " ".join(found.stderr.split()):
        assert found.returncode != 0
        return
    assert found.returncode == 0, found.stderr
    subprocess.run([CMAKE, "--build", build, "--target", "fastseq_benches"], check=True)
    command = [
        sys.executable,
        ROOT / "bench" / "run_cpp.py",
        build,
        "--quick",
        "--results",
        results,
    ]
    subprocess.run(command, check=True)
    names = {path.stem.removeprefix("cpp-") for path in results.iterdir()}
    assert names >= {"bmm", "pack", "ranks", "ranks_2", "reader", "recurrence"}
    for path in results.iterdir():
        measured = json.loads(path.read_text())
        assert {"cpu", "compiler", "fastseq"} <= measured["context"].keys()
        assert all(case["real_time"] > 0 for case in measured["benchmarks"])
    two = json.loads((results / "cpp-ranks_2.json").read_text())
    assert all("2 ranks" in case["name"] for case in two["benchmarks"])
