"""Run all benches: python bench/run.py [--quick] [--results FOLDER].

Those for MPI run under mpirun, with as many ranks as they are listed with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHES = (
    ("bench_fit.py", 0),
    ("bench_amp.py", 0),
    ("bench_wrappers.py", 0),
    ("bench_recurrent.py", 0),
    ("bench_reading.py", 0),
    ("bench_h5.py", 0),
    ("bench_bmm.py", 0),
    ("bench_pack.py", 0),
    ("bench_gather.py", 0),
    ("bench_allreduce.py", 2),
    ("bench_allreduce.py", 4),
    ("bench_step.py", 2),
    ("bench_scaling.py", 2),
    ("bench_checkpoint.py", 0),
    ("bench_hosts.py", 0),
    ("bench_serving.py", 0),
)
# Open MPI refuses to start as root unless asked to; containers often are.
AS_ROOT = ("ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM")


def main() -> None:
    options = sys.argv[1:]
    environment = {f"{kind}_{name}": "1" for kind in ("OMPI", "PRTE") for name in AS_ROOT}
    environment["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    environment |= os.environ
    failed = []
    for name, ranks in BENCHES:
        launcher = ["mpirun", "-n", str(ranks)] if ranks else []
        command = [*launcher, sys.executable, str(HERE / name), *options]
        if subprocess.run(command, env=environment, check=False).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
