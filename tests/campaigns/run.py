"""Run all campaigns, one after the other: ``python tests/campaigns/run.py --minutes 30``.

The options are those of each campaign's file, see campaign.py. Campaigns that this machine cannot
run say so, and count nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FILES = (
    "kills", "kills_output", "two_jobs", "ranks", "links", "system_calls", "fuzz_files",
    "fuzz_models", "races", "endurance", "load",
)  # fmt: skip


def main() -> None:
    failed = []
    for name in FILES:
        command = [sys.executable, str(HERE / f"{name}.py"), *sys.argv[1:]]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
