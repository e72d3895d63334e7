"""Threaded C++ tests under ThreadSanitizer, each time with another drawn schedule.

``tests/cpp/drawn_schedule.cpp``, loaded before a test, lets threads wait at drawn places: around
mutexes, condition variables, futexes and atomic operations. ``make sanitize`` builds it and the
tests; without them nothing is run.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

from campaign import ROOT, Campaign, main

BUILD = ROOT / "build" / "sanitize-thread" / "tests" / "cpp"
SCHEDULE = BUILD / "libdrawn_schedule.so"
# Tests with threads; not those that wait for clocks, or compute for seconds.
FILES = ("bucketizer", "node_communicator", "slab_reader")
LONG = {
    "a_rank_that_leaves_does_not_wait_long_for_others_that_make_no_calls",
    "all_of_a_meeting_s_waiting_has_one_deadline",
    "broadcasts_and_barriers",
    "gradients_become_weighted_means",
    "means_are_the_same_bits_wherever_the_data_lie",
    "pieces_are_read_and_converted",
    "ranks_that_do_not_come_are_named",
    "squares_of_the_means_are_summed_the_same_on_all_ranks",
}


def _tests() -> list[tuple[str, str]]:
    found = []
    for file in FILES:
        source = (ROOT / "tests" / "cpp" / f"test_{file}.cpp").read_text()
        found += [(file, name) for name in re.findall(r"^TEST\((\w+)\)", source, re.MULTILINE)]
    return [(file, name) for file, name in found if name not in LONG]


TESTS = _tests()


def case(number: int, folder: Path) -> str:
    """Run a drawn test with a drawn schedule."""
    file, name = random.Random(number).choice(TESTS)  # noqa: S311
    environment = {
        **os.environ, "LD_PRELOAD": str(SCHEDULE), "FASTSEQ_SCHEDULE": str(number),
        "TSAN_OPTIONS": "halt_on_error=1",
    }  # fmt: skip
    done = subprocess.run(
        [str(BUILD / f"test_{file}"), name], env=environment, check=False,
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, f"{file}: {name}\n{done.stdout}{done.stderr}"
    return file


RACES = Campaign(
    name="races",
    case=case,
    wanted=10_000,
    limit=60,
    promise="in whatever order threads run, those of the reader and of ranks have no data races, "
    "never wait forever, and compute the right result",
)
CAMPAIGNS = [RACES] if SCHEDULE.exists() else []


if __name__ == "__main__":
    if CAMPAIGNS:
        main(CAMPAIGNS)
    print(f"races: no {SCHEDULE}, not run: make sanitize builds it")
