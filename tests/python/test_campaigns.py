"""A sample of each campaign; the whole of them: make soak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGNS = Path(__file__).parents[1] / "campaigns"
sys.path.insert(0, str(CAMPAIGNS))

import fuzz_cpp  # noqa: E402
import races  # noqa: E402

# File, campaign, number of cases.
SAMPLES: list[tuple[str, str, int]] = [
    ("endurance", "endurance-predict", 2),
    ("endurance", "endurance-torch", 1),
    ("load", "load-files", 20),
    ("load", "load-shared", 3),
    ("kills", "kills-1", 5),
    ("kills", "kills-2", 2),
    ("kills", "kills-4", 1),
    ("kills_output", "kills-output", 8),
    ("system_calls", "system-calls", 10),
    ("two_jobs", "two-jobs", 8),
    ("ranks", "ranks", 10),
    ("links", "links", 4),
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
    if "not possible here" not in done.stdout:
        assert f" {cases} of" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_sample_of_races(tmp_path):
    if races.CAMPAIGNS:  # make sanitize builds these tests
        test_a_sample(tmp_path, "races", "races", 20)


def _fuzzer(folder, name, ending):
    script = folder / f"fuzz_{name}"
    script.write_text(f"#!/bin/sh\ncat >&2 <<END\n{ending}\nEND\n")
    script.chmod(0o755)
    return script


def test_executions_of_fuzzers_are_counted_and_failures_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_cpp, "BUILD", tmp_path)
    monkeypatch.setattr(fuzz_cpp, "FOLDER", tmp_path)
    _fuzzer(
        tmp_path, "good",
        "#8 NEW cov: 3 ft: 4 corp: 1/2b\n#9 DONE cov: 5 ft: 7 corp: 1/2b\n"
        "Done 9 runs in 2 second(s)\nstat::number_of_executed_units: 9",
    )  # fmt: skip
    bad = _fuzzer(tmp_path, "bad", "broken: a sum\nstat::number_of_executed_units: 3")
    bad.write_text(bad.read_text() + "exit 77\n")
    file = tmp_path / "state.json"
    for _ in range(2):
        state = fuzz_cpp.load(file, again=False)
        for name in ("good", "bad"):
            fuzz_cpp.add(state, name, fuzz_cpp.run(name, 1))
        fuzz_cpp.keep(file, state)
    assert state["kinds"] == {"good": 18, "bad": 6}
    assert state["done"] == 24
    assert state["targets"]["good"] == {"executions": 18, "seconds": 4, "edges": 5, "features": 7}
    assert [failure["case"] for failure in state["failures"]] == ["bad", "bad"]
    assert "broken: a sum" in state["failures"][0]["output"]
