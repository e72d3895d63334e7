"""Builds that leave parts out, installed into a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
    assert names == {"fastseq", next(n for n in names if n.endswith(".dist-info"))}
    assert (tmp_path / "site" / "fastseq" / "py.typed").exists()
