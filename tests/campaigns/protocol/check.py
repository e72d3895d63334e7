"""Check the models of how ranks meet, in all their orders; then plant bugs, each of which must be found.

python tests/campaigns/protocol/check.py [--bugs-only] [--quick]

Spin enumerates every state of a model: MODEL.pml has what is modelled, assumed and shown. With
TIMEOUT any wait may end at any time; without it a wait for ever is found as a deadlock. A macro
BUG_... of a model makes it wrong in one way. Needs spin and a C compiler (Debian: spin, gcc).
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What is enumerated: of each model, what takes a few minutes. Time-outs make many more states.
SIZES: list[tuple[str, dict[str, int], tuple[str, ...]]] = [
    ("meeting", {"N": 2, "MEETINGS": 4, "TROUBLES": 2}, ()),
    ("meeting", {"N": 2, "MEETINGS": 4, "TROUBLES": 2}, ("TIMEOUT",)),
    ("meeting", {"N": 3, "MEETINGS": 3, "TROUBLES": 1}, ()),
    ("meeting", {"N": 3, "MEETINGS": 2, "TROUBLES": 0}, ("TIMEOUT",)),
    ("exchange", {"N": 2, "CALLS": 3, "PIECES": 2}, ()),
    ("exchange", {"N": 2, "CALLS": 3, "PIECES": 2}, ("TIMEOUT",)),
    ("exchange", {"N": 3, "CALLS": 2, "PIECES": 1}, ()),
    ("exchange", {"N": 3, "CALLS": 1, "PIECES": 1}, ("TIMEOUT",)),
    ("agreement", {"N": 2, "CALLS": 2, "TROUBLES": 1}, ()),
    ("agreement", {"N": 2, "CALLS": 2, "TROUBLES": 1}, ("TIMEOUT",)),
    ("agreement", {"N": 3, "CALLS": 1, "TROUBLES": 1}, ()),
    ("agreement", {"N": 3, "CALLS": 1, "TROUBLES": 1}, ("TIMEOUT",)),
]
# Those that bugs are planted in, two ranks: they are found within seconds.
SMALL = {
    "meeting": {"N": 2, "MEETINGS": 3, "TROUBLES": 2},
    "exchange": {"N": 2, "CALLS": 2, "PIECES": 2},
    "agreement": {"N": 2, "CALLS": 2, "TROUBLES": 1},
}
MEGABYTES = 6000


@dataclasses.dataclass
class Found:
    """What an enumeration has come to."""

    states: int
    depth: int
    seconds: float
    errors: int
    told: str


def enumerate_states(model: str, sizes: dict[str, int], *flags: str) -> Found:
    """Enumerate all states of a model, or those up to the first error."""
    defines = [f"-D{name}={value}" for name, value in sizes.items()]
    with tempfile.TemporaryDirectory() as folder:
        source = HERE / f"{model}.pml"
        # Spin leaves out orders that make no difference, but not where a process may die ("unless").
        order = ["-DNOREDUCE"] if "unless" in source.read_text() else []
        for command in (
            ["spin", *defines, *(f"-D{flag}" for flag in flags), "-a", source],
            ["gcc", "-O1", "-w", "-DSAFETY", *order, "-DCOLLAPSE", f"-DMEMLIM={MEGABYTES}",
             "-o", "pan", "pan.c"],
        ):  # fmt: skip
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        start = time.monotonic()
        done = subprocess.run(
            ["./pan", "-m2000000", "-w23"], cwd=folder, capture_output=True, text=True, check=False
        )
    seconds = time.monotonic() - start
    output = done.stdout + done.stderr
    counts = re.search(r"depth reached (\d+), errors: (\d+)\n\s+(\d+) states, stored", output)
    if not counts or "max search depth too small" in output or "reached -DMEMLIM" in output:
        raise SystemExit(f"{model} {sizes} {flags}: not enumerated\n{output}")
    told = re.search(r"pan:1: (.*)", output)
    depth, errors, states = map(int, counts.groups())
    return Found(states, depth, seconds, errors, told[1] if told else "")


def check_models(sizes: list[tuple[str, dict[str, int], tuple[str, ...]]]) -> list[str]:
    """Enumerate the models, print a table, and return what is wrong."""
    wrong = []
    print(f"{'model':45} {'states':>10} {'depth':>6} {'seconds':>7}")
    for model, size, flags in sizes:
        found = enumerate_states(model, size, *flags)
        name = " ".join([model, *(f"{key}={value}" for key, value in size.items()), *flags])
        print(
            f"{name:45} {found.states:10} {found.depth:6} {found.seconds:7.1f} {found.told}",
            flush=True,
        )
        if found.errors:
            wrong.append(f"{name}: {found.told}")
    return wrong


def check_bugs() -> list[str]:
    """Plant each bug, and return those that are not found."""
    left = []
    for model, size in SMALL.items():
        text = (HERE / f"{model}.pml").read_text()
        for bug in sorted(set(re.findall(r"\bBUG_\w+", text))):
            name = f"{model}: {bug.removeprefix('BUG_').lower().replace('_', ' ')}"
            for flags in ((), ("TIMEOUT",)):
                found = enumerate_states(model, size, bug, *flags)
                if found.errors:
                    print(f"found  {name}: {found.told[:90]}", flush=True)
                    break
            else:
                left.append(f"bug not found: {name}")
                print(f"LEFT   {name}", flush=True)
    return left


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bugs-only", action="store_true", help="do not enumerate the models")
    parser.add_argument("--quick", action="store_true", help="models of two ranks only, no bugs")
    options = parser.parse_args()
    if not (shutil.which("spin") and shutil.which("gcc")):
        print("protocol: no spin or no gcc here, not run")
        return
    sizes = [] if options.bugs_only else SIZES
    if options.quick:
        sizes = [(model, size, ()) for model, size in SMALL.items()]
    wrong = check_models(sizes) if sizes else []
    if not options.quick:
        wrong += check_bugs()
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
