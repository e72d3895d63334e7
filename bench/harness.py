"""What every bench needs: contenders in turn, paired ratios, a table, JSON with the circumstances.

A bench first checks that all contenders give the same answer; a wrong one ends it with an error.
Contenders then run alternately, each round from another one on, so that neither drift of the
machine's speed nor what ran just before favours one. The ratio of a pair is the median over rounds
of contender's time ÷ reference's time in the same round.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from roofline import Work, in_words, roofline

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass
class Mark:
    """What a ratio (contender ÷ `against`, or else ÷ the reference) must not exceed."""

    contender: str
    at_most: float
    against: str | None = None


class Seconds(float):
    """What a contender returns that times itself, because not all that its call does counts."""


@dataclasses.dataclass
class Bench:
    """Collects the cases of one bench, prints them as they are measured, and writes the file."""

    name: str
    rounds: int
    results: Path | None
    shown: bool = True
    cases: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def from_arguments(cls, name: str, rounds: int, *, shown: bool = True) -> Bench:
        """Make a bench as the command line wants it; of several ranks one is `shown`."""
        parser = argparse.ArgumentParser()
        parser.add_argument(
            "--quick", action="store_true", help="fewer rounds; no file unless --results is given"
        )
        parser.add_argument("--results", type=Path, help=f"folder to write to, not {RESULTS}")
        options = parser.parse_args()
        results = options.results or (None if options.quick else RESULTS)
        return cls(name, max(rounds // 10, 3) if options.quick else rounds, results, shown)

    def compare(
        self,
        case: str,
        contenders: dict[str, Callable[[], Any]],
        *,
        repeats: int = 1,
        bytes_moved: int | None = None,
        work: Work | None = None,
        marks: tuple[Mark, ...] = (),
    ) -> None:
        """Time contenders in turn; the first is the reference. `repeats` calls make one sample.

        With `bytes_moved`, rates are stored; with `work`, what a call has to do is set beside what
        the machine can do.
        """
        times: dict[str, list[float]] = {name: [] for name in contenders}
        names = list(contenders)
        for turn in range(self.rounds + 2):  # the first two warm up
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                call = contenders[name]
                begin = time.perf_counter()
                for _ in range(repeats):
                    answer = call()
                taken = (time.perf_counter() - begin) / repeats
                if turn >= 2:
                    times[name].append(answer if isinstance(answer, Seconds) else taken)
        reference = names[0]
        rows = {}
        roof = None if work is None else roofline(work)
        self.say(
            f"\n{case}\n  {'microseconds':34}{'min':>10}{'median':>10}{'p99':>10}"
            f"{'' if roof is None else '  reached'}{'ratio':>8}  quartiles"
        )
        for name, samples in times.items():
            ratios = [a / b for a, b in zip(samples, times[reference], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            ordered = sorted(samples)
            row: dict[str, Any] = {
                "min_us": 1e6 * ordered[0],
                "median_us": 1e6 * statistics.median(ordered),
                "p99_us": 1e6 * ordered[math.ceil(0.99 * len(ordered)) - 1],
                "ratio": middle,
                "ratio_quartiles": [low, high],
            }
            if bytes_moved is not None:
                row["gb_per_s"] = bytes_moved / row["median_us"] / 1e3
            figures = "".join(f"{row[key]:10.1f}" for key in ("min_us", "median_us", "p99_us"))
            if roof is not None:
                row["of_roofline"] = roof["least_us"] / row["median_us"]
                figures += f"{row['of_roofline']:9.2g}"
            rows[name] = row
            row["marks"] = []
            verdict = ""
            for mark in marks:
                if mark.contender == name:
                    against = mark.against or reference
                    pairs = zip(samples, times[against], strict=True)
                    ratio = statistics.median(a / b for a, b in pairs)
                    met = ratio <= mark.at_most
                    row["marks"].append(
                        {"against": against, "ratio": ratio, "at_most": mark.at_most, "met": met}
                    )
                    other = f" of {against} ({ratio:.2f})" if mark.against else ""
                    verdict += f"mark <= {mark.at_most:.3g}{other}: {'met' if met else 'NOT MET'}  "
            spread = f"{low:.3f} to {high:.3f}"
            self.say(f"  {name:34}{figures}{middle:8.3f}  {spread:18}{verdict}".rstrip())
        found = {
            "case": case,
            "threads": torch.get_num_threads(),
            "reference": reference,
            "contenders": rows,
        }
        if roof is not None:
            found["roofline"] = roof
            self.say(in_words(roof))
        self.cases.append(found)

    def say(self, text: str) -> None:
        if self.shown:
            print(text, flush=True)

    def write(self, **more: Any) -> None:
        """Count the marks that were met, and write ``<name>.json`` where it is wanted."""
        marks = [
            mark
            for case in self.cases
            for row in case["contenders"].values()
            for mark in row["marks"]
        ]
        met = sum(mark["met"] for mark in marks)
        self.say(f"\n{self.name}: {met} of {len(marks)} marks met")
        if self.results is None or not self.shown:
            return
        self.results.mkdir(parents=True, exist_ok=True)
        path = self.results / f"{self.name}.json"
        found = {
            "bench": self.name,
            "circumstances": {**circumstances(), "rounds": self.rounds, **more},
            "cases": self.cases,
        }
        path.write_text(json.dumps(found, indent=1) + "\n")
        self.say(f"{path}")


def circumstances() -> dict[str, Any]:
    """Describe the machine and the versions with which figures were measured."""
    packages = ("fastseq-torch", "torch", "numpy", "h5py")
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def same(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-5) -> None:
    """Raise unless two answers agree."""
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)
