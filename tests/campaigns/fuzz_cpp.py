"""Run the fuzzers of the core in turn, and count what they did.

Each goes on from the inputs that it has found, in ``build/fuzz/corpus``. Executions, time and what
is covered are kept in ``build/campaigns/fuzz-cpp.json``; an input that breaks a promise is kept in
``build/fuzz/crashes``, and ``build/fuzz/.../fuzz_NAME FILE`` repeats it. See ``make fuzz``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from harness import RESULTS, circumstances  # noqa: E402

BUILD = ROOT / "build" / "fuzz"
FOLDER = BUILD / "tests" / "campaigns" / "fuzz_cpp"
NAME = "fuzz-cpp"
WANTED = 100_000_000
PROMISE = "for any arguments, the core's functions return a right result or the documented error"
# Small quarantines stay in the cache; an input that takes 10 s or 1 GiB counts as broken.
SANITIZERS = {
    "ASAN_OPTIONS": "quarantine_size_mb=1:malloc_context_size=4",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
LIMITS = ("-max_len=256", "-timeout=10", "-rss_limit_mb=1024", "-malloc_limit_mb=512")


def run(name: str, seconds: int) -> dict[str, Any]:
    """Run a fuzzer for so long; return its counts and, if it found one, its failure."""
    corpus, crashes = BUILD / "corpus" / name, BUILD / "crashes"
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(exist_ok=True)
    command = [
        str(FOLDER / f"fuzz_{name}"), *LIMITS, f"-max_total_time={seconds}",
        "-print_final_stats=1", f"-artifact_prefix={crashes}/{name}-", str(corpus),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, **SANITIZERS},
    )  # fmt: skip
    output = done.stderr
    executed = re.search(r"number_of_executed_units: (\d+)", output)
    covered = re.findall(r"cov: (\d+) ft: (\d+)", output)
    ran = re.search(r"Done \d+ runs in (\d+) second", output)
    found: dict[str, Any] = {
        "executions": int(executed[1]) if executed else 0,
        "seconds": int(ran[1]) if ran else seconds,
        "edges": int(covered[-1][0]) if covered else 0,
        "features": int(covered[-1][1]) if covered else 0,
    }
    if done.returncode:
        found["failure"] = {"case": name, "output": output[-4000:]}
    return found


def load(file: Path, again: bool) -> dict[str, Any]:
    """Return what was done before, or what nothing looks like."""
    if not again:
        with contextlib.suppress(FileNotFoundError):
            return json.loads(file.read_text())
    return {"done": 0, "seconds": 0, "kinds": {}, "failures": [], "targets": {}}


def add(state: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    """Add a run to what was done."""
    target = state["targets"].setdefault(name, {"executions": 0, "seconds": 0})
    for key in ("executions", "seconds"):
        target[key] += found[key]
    for key in ("edges", "features"):
        target[key] = max(target.get(key, 0), found[key])
    if "failure" in found:
        state["failures"].append(found["failure"])
    state["done"] = sum(each["executions"] for each in state["targets"].values())
    state["seconds"] = sum(each["seconds"] for each in state["targets"].values())
    state["kinds"] = {each: counts["executions"] for each, counts in state["targets"].items()}


def main() -> None:
    """Run the fuzzers that the command line names, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="fuzzers; none: all")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all of them together")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at the same time")
    parser.add_argument("--again", action="store_true", help="count from 0")
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "campaigns")
    parser.add_argument("--publish", action="store_true", help=f"copy the counts to {RESULTS}")
    options = parser.parse_args()
    names = sorted(path.name[5:] for path in FOLDER.glob("fuzz_*") if path.suffix == "")
    names = [name for name in names if not options.names or name in options.names]
    if not names:
        sys.exit(
            f"{NAME}: no fuzzers in {FOLDER}, not run: make fuzz builds them where there is Clang"
        )
    file = options.state / f"{NAME}.json"
    state = load(file, options.again)
    failed = len(state["failures"])
    seconds = max(int(60 * options.minutes * options.jobs / len(names)), 1)
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, found in zip(
            names, pool.map(lambda name: run(name, seconds), names), strict=True
        ):
            add(state, name, found)
            end = found.get("failure", {}).get("output", "")
            print(
                f"{NAME}: {name}: {found['executions']} executions{end and ' FAILED'}\n{end}",
                end="",
            )
            keep(file, state)
    if options.publish:
        shutil.copy(file, RESULTS / f"campaign-{NAME}.json")
    print(f"{NAME}: {state['done']} of {WANTED} executions, {len(state['failures'])} failures")
    sys.exit(1 if len(state["failures"]) > failed else 0)


def keep(file: Path, state: dict[str, Any]) -> None:
    """Write what was done, in the form of all campaigns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        "campaign": NAME, "promise": PROMISE, "wanted": WANTED, **state,
        "circumstances": circumstances(),
    }  # fmt: skip
    file.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
