"""w ranks come to what one process with w times their batch comes to, whatever is asked of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import mpirun


def assert_equal_to_one_process(tmp_path, monkeypatch, ranks, first, last):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    script = f"from drawn_runs import main\nmain({first}, {last})\n"
    done = mpirun(tmp_path, ranks, script, timeout=1800)
    assert "FAILED" not in done.stdout, done.stdout
    assert done.stdout.count("compared") == ranks, done.stdout + done.stderr


def test_some_drawn_runs(tmp_path, monkeypatch):
    assert_equal_to_one_process(tmp_path, monkeypatch, 2, 0, 20)


@pytest.mark.slow
@pytest.mark.timeout(2000)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_many_drawn_runs(tmp_path, monkeypatch, ranks):
    assert_equal_to_one_process(tmp_path, monkeypatch, ranks, 20, 190)
