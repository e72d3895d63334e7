"""The command line: ``python -m fastseq info``."""

from __future__ import annotations

import argparse
import json

from ._info import info


def main() -> None:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m fastseq", description="fastseq's tools.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, devices, MPI, kernels and transport in use")
    parser.parse_args()
    found = info()
    if found["ranks"]["rank"] == 0:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
