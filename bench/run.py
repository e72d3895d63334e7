"""Run all benches: python bench/run.py [--quick] [--results FOLDER].

Those for MPI run under mpirun with 2 ranks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ALONE = ("bench_fit.py", "bench_bmm.py", "bench_pack.py")
UNDER_MPI = ("bench_allreduce.py",)
# Open MPI refuses to start as root unless told; containers often are.
AS_ROOT = ("ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM")


def main() -> None:
    options = sys.argv[1:]
    environment = {f"{kind}_{name}": "1" for kind in ("OMPI", "PRTE") for name in AS_ROOT}
    environment |= os.environ
    failed = []
    for name in ALONE + UNDER_MPI:
        launcher = ["mpirun", "-n", "2"] if name in UNDER_MPI else []
        command = [*launcher, sys.executable, str(HERE / name), *options]
        if subprocess.run(command, env=environment, check=False).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
