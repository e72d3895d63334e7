"""A sample of each campaign; the whole of them: make soak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGNS = Path(__file__).parents[1] / "campaigns"
# File, campaign, number of cases.
SAMPLES: list[tuple[str, str, int]] = [
    ("kills", "kills-1", 5),
    ("kills", "kills-2", 2),
    ("kills", "kills-4", 1),
    ("kills_output", "kills-output", 8),
    ("system_calls", "system-calls", 10),
    ("two_jobs", "two-jobs", 8),
    ("fuzz_files", "fuzz-hdf5", 2),
    ("fuzz_files", "fuzz-settings", 2),
    ("fuzz_files", "fuzz-tables", 1),
    ("fuzz_models", "fuzz-models", 2),
    ("fuzz_models", "fuzz-checkpoints", 2),
    ("fuzz_models", "fuzz-requests", 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "name", "cases"), SAMPLES)
def test_a_sample(tmp_path, file, name, cases):
    done = subprocess.run(
        [sys.executable, str(CAMPAIGNS / f"{file}.py"), name, "--cases", str(cases), "--again",
         "--state", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f" {cases} of" in done.stdout, done.stdout
