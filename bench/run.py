"""Run all benches: python bench/run.py [--quick]. MPI ones run under mpirun with 2 ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ALONE = ("bench_fit.py", "bench_bmm.py", "bench_pack.py")
UNDER_MPI = ("bench_allreduce.py",)


def main() -> None:
    options = sys.argv[1:]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    commands = [[sys.executable, str(HERE / name), *options] for name in ALONE]
    commands += [
        ["mpirun", "-n", "2", sys.executable, str(HERE / name), *options] for name in UNDER_MPI
    ]
    failed = [c for c in commands if subprocess.run(c, env=environment, check=False).returncode]
    if failed:
        raise SystemExit(f"failed: {', '.join(Path(c[-1 - len(options)]).name for c in failed)}")


if __name__ == "__main__":
    main()
