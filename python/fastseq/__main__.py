"""The command line: ``python -m fastseq info`` and ``python -m fastseq h5 concat|info|check``."""

from __future__ import annotations

import argparse
import json
import sys

from .data.hdf5 import commands as h5
from .info import info


def main() -> int:
    """Run the command in the arguments; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastseq", description="fastseq's tools.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, devices, MPI, kernels and transport in use")
    h5.add_commands(commands.add_parser("h5", help="HDF5 files: join, describe, check"))
    arguments = parser.parse_args()
    if arguments.command == "h5":
        return h5.run(arguments)
    found = info()
    if found["ranks"]["rank"] == 0:
        print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
