"""The check for machines with a GPU, without one: what becomes of steps that fail or hang."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from waiting import until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "gpu_check.py"
spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
gpu_check = importlib.util.module_from_spec(spec)
sys.modules["gpu_check"] = gpu_check  # dataclasses look there
spec.loader.exec_module(gpu_check)


def step(name, code, seconds=60, **options):
    return gpu_check.Step(name, seconds, (sys.executable, "-c", code), **options)


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(child.pid, flush=True)
time.sleep(1000)
"""


def is_running(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_steps_that_fail_or_hang_do_not_end_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    summary = gpu_check.Summary(tmp_path / "logs")
    steps = [
        step("first", "print('3 passed'); print('bye')"),
        step("fails", "print('why'); raise SystemExit(3)"),
        step("hangs", PARENT, seconds=5),
        step("not-there", ""),
        step("needs-it", "print('never')", needs="fails"),
        step("last", "import os; print(os.environ['ONE'])", environment={"ONE": "1 passed"}),
    ]
    steps[3] = gpu_check.Step("not-there", 60, (tmp_path / "no-such-program",))
    for each in steps:
        summary.run(each)
    assert summary.failed == ["fails", "hangs", "not-there", "needs-it"]
    pid = int((tmp_path / "logs" / "hangs.log").read_text())
    until(lambda: not is_running(pid))
    lines = (tmp_path / "logs" / "summary.txt").read_text().splitlines()
    found = [re.sub(r"\s+\d+ s\s+", " | ", line) for line in lines]
    assert found[:3] == [
        "first | ok: 3 passed", "fails | FAILED, exit status 3: why",
        f"hangs | FAILED, ended after 5 s: {pid}",
    ]  # fmt: skip
    assert found[3].startswith("not-there | FAILED, not started: [Errno 2] No such file")
    assert found[4:] == ["needs-it | FAILED, left out, as fails failed", "last | ok: 1 passed"]
    printed = capsys.readouterr().out
    assert all(line in printed for line in lines)
    with tarfile.open(tmp_path / "gpu-check.tar.gz") as archive:
        assert {"gpu-check/summary.txt", "gpu-check/last.log"} <= set(archive.getnames())


def test_steps_share_one_time(tmp_path):
    summary = gpu_check.Summary(tmp_path / "logs", seconds=2 * gpu_check.GRACE + 2)
    summary.run(step("hangs", "import time; time.sleep(1000)"))
    summary.run(step("late", ""))
    told = (tmp_path / "logs" / "summary.txt").read_text().splitlines()
    assert "FAILED, ended after 2 s" in told[0]
    assert "FAILED, left out, as the time is up" in told[1]


@pytest.mark.parametrize("status", [0, 1])
def test_the_exit_status_tells_whether_all_is_well(tmp_path, monkeypatch, capsys, status):
    steps = [step("one", f"raise SystemExit({status})"), step("two", "")]
    monkeypatch.setattr(gpu_check, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(gpu_check, "MACHINE", "print('sm_90')")
    monkeypatch.setattr(gpu_check, "prepare", lambda wheels: [])
    monkeypatch.setattr(gpu_check, "builds", lambda architecture, mpi: [])
    monkeypatch.setattr(gpu_check, "checks", lambda mpi: steps)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert gpu_check.main() == status
    assert capsys.readouterr().out.endswith(f"failed: {'one' if status else 'nothing'}\n")


def run_alone(folder: Path, torch: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a folder that has nothing else, beside a PyTorch that is made up."""
    (folder / "tests").mkdir()
    (folder / "torch.py").write_text(torch)
    (folder / "nvcc").symlink_to("/bin/true")
    shutil.copy(SCRIPT, folder / "tests")
    env = os.environ | {"PYTHONPATH": str(folder), "PATH": str(folder)}
    command = [sys.executable, folder / "tests" / SCRIPT.name]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


TORCH = """
__version__ = "2.12.0"
class version:
    cuda = None
class cuda:
    is_available = lambda: {available}
    get_device_properties = lambda device: "a GPU"
    get_device_capability = lambda: (9, 0)
"""


def test_a_machine_without_a_gpu_is_told_so_at_once(tmp_path):
    ran = run_alone(tmp_path, TORCH.format(available=False))
    assert ran.returncode == 1
    assert re.search(
        r"^machine +\d+ s +FAILED, exit status 1: needs a GPU, which PyTorch 2.12.0 does not see",
        ran.stdout,
    )
    assert ran.stdout.endswith("nothing else is run\n")


def test_what_needs_the_package_is_left_out_if_that_does_not_build(tmp_path):
    ran = run_alone(tmp_path, TORCH.format(available=True))
    lines = [re.sub(r"\s+\d+ s\s+", " | ", line) for line in ran.stdout.splitlines()]
    assert "machine | ok: sm_90" in lines
    assert any(line.startswith("package | FAILED, exit status") for line in lines)
    assert "operators | FAILED, left out, as package failed" in lines
    assert any(
        line.startswith("two-ranks, nccl-one-rank: left out, as there is no MPI") for line in lines
    )
    assert re.fullmatch(
        r"\d+ s; failed: package, cpp-tests, operators, .*", ran.stdout.splitlines()[-1]
    )
    assert ran.returncode == 1


def test_steps_are_about_what_is_there():
    steps = {each.name: each for each in gpu_check.checks(mpi=True)}
    listed = re.search(r"foreach\(name (.*)\)", (ROOT / "tests/cuda/CMakeLists.txt").read_text())
    for name in listed[1].split():
        assert {f"test_{name}_on_gpu{more}" for more in ("", "-memcheck", "-racecheck")} <= set(
            steps
        )
    assert {"operators", "two-ranks", "nccl-one-rank", "bench_gpu", "operators-memcheck"} <= set(
        steps
    )
    for each in steps.values():
        files = [word for word in map(str, each.command) if word.endswith(".py")]
        assert all((ROOT / file).exists() for file in files)
        assert each.needs in {"", "package", *steps}
    # Tests on the GPU on the host need what is not built there.
    source = (ROOT / "tests/mpi/test_gradients_on_devices.py").read_text()
    for name in ("two-ranks", "nccl-one-rank"):
        chosen = re.findall(rf"def (test_\w*{steps[name].command[-1]}\w*)\(([^)]*)\)", source)
        assert [arguments for _, arguments in chosen] == ["world, way"]
    chosen = re.findall("test_[a-z_]+", steps["operators-memcheck"].command[-1])
    assert len(chosen) == 2
    for name in chosen:
        assert f"def {name}(" in (ROOT / "tests/python/test_cuda.py").read_text()
