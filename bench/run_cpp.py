"""Run the C++ benches: python bench/run_cpp.py BUILD [--quick] [--results FOLDER].

BUILD is where their programs were built; `make bench-cpp` builds and runs them. That for ranks runs
alone and under mpirun.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from run import AS_ROOT

RESULTS = Path(__file__).parent / "results"
PROGRAMS = (
    ("pack", 0),
    ("bmm", 0),
    ("recurrence", 0),
    ("reader", 0),
    ("ranks", 0),
    ("ranks", 2),
    ("kernels", 0),
)
MEASURED = [
    "--benchmark_min_time=0.02",
    "--benchmark_repetitions=5",
    "--benchmark_report_aggregates_only=true",
]
QUICK = ["--benchmark_min_time=0.0001"]


def run(command: list[str], name: str, results: Path | None) -> bool:
    """Run a program, and keep its figures without this machine's paths; return if it succeeded."""
    environment = {f"{kind}_{key}": "1" for kind in ("OMPI", "PRTE") for key in AS_ROOT}
    environment["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    environment |= os.environ
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command += [f"--benchmark_out={out}", "--benchmark_out_format=json"]
        command.append("--benchmark_color=false")  # mpirun looks like a terminal
        if subprocess.run(command, env=environment, check=False).returncode:
            return False
        if results is None or not out.exists():  # a program that has nothing to run here says so
            return True
        found = json.loads(out.read_text())
    for key in ("executable", "host_name"):
        del found["context"][key]
    results.mkdir(parents=True, exist_ok=True)
    (results / f"cpp-{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=Path)
    parser.add_argument(
        "--quick", action="store_true", help="few calls; no files unless --results is given"
    )
    parser.add_argument("--results", type=Path, help=f"folder to write to, not {RESULTS}")
    options = parser.parse_args()
    results = options.results or (None if options.quick else RESULTS)
    failed = []
    for program, ranks in PROGRAMS:
        path = options.build / "bench" / "cpp" / f"bench_{program}"
        name = f"{program}_{ranks}" if ranks else program
        if not path.exists():
            print(f"{name}: left out: it was not built")
            continue
        launcher = ["mpirun", "-n", str(ranks)] if ranks else []
        if ranks and shutil.which("mpirun") is None:
            print(f"{name}: left out: there is no mpirun")
        elif not run(
            [*launcher, str(path), *(QUICK if options.quick else MEASURED)], name, results
        ):
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
