"""What every bench needs: contenders in turn, paired ratios, a table, JSON with the circumstances.

A bench first checks that all contenders give the same answer; a wrong one ends it with an error.
Contenders then run alternately, so that drift of the machine's speed meets all of them. The ratio
of a pair is the median over rounds of contender's time ÷ reference's time in the same round.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass
class Mark:
    """What a ratio (contender ÷ reference) must not exceed."""

    contender: str
    at_most: float


@dataclasses.dataclass
class Bench:
    """Collects the cases of one bench, prints them as they are measured, and writes the file."""

    name: str
    rounds: int
    cases: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def from_arguments(cls, name: str, rounds: int) -> Bench:
        """Make a bench; ``--quick`` on the command line runs a tenth of the rounds."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--quick", action="store_true", help="fewer rounds, no result file")
        quick = parser.parse_args().quick
        return cls("" if quick else name, max(rounds // 10, 3) if quick else rounds)

    def compare(
        self,
        case: str,
        contenders: dict[str, Callable[[], Any]],
        *,
        repeats: int = 1,
        bytes_moved: int | None = None,
        marks: tuple[Mark, ...] = (),
    ) -> None:
        """Time contenders in turn; the first is the reference. `repeats` calls make one sample."""
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(self.rounds + 2):  # the first two warm up
            for name, call in contenders.items():
                begin = time.perf_counter()
                for _ in range(repeats):
                    call()
                if turn >= 2:
                    times[name].append((time.perf_counter() - begin) / repeats)
        reference = next(iter(contenders))
        rows = {}
        print(f"\n{case}\n  {'':34}{'min':>10}{'median':>10}{'p99':>10}{'ratio':>8}")
        for name, samples in times.items():
            ratios = sorted(a / b for a, b in zip(samples, times[reference], strict=True))
            ordered = sorted(samples)
            row = {
                "min_us": 1e6 * ordered[0],
                "median_us": 1e6 * statistics.median(ordered),
                "p99_us": 1e6 * ordered[int(0.99 * (len(ordered) - 1))],
                "ratio": statistics.median(ratios),
                "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
            }
            if bytes_moved is not None:
                row["gb_per_s"] = bytes_moved / row["median_us"] / 1e3
            rows[name] = row
            verdict = ""
            for mark in marks:
                if mark.contender == name:
                    met = row["ratio"] <= mark.at_most
                    row |= {"mark": mark.at_most, "met": met}
                    verdict = f"  mark <= {mark.at_most:.3g}: {'met' if met else 'NOT MET'}"
            figures = "".join(f"{row[key]:10.1f}" for key in ("min_us", "median_us", "p99_us"))
            print(f"  {name:34}{figures}{row['ratio']:8.3f}{verdict}", flush=True)
        self.cases.append({"case": case, "reference": reference, "contenders": rows})

    def write(self, **more: Any) -> None:
        """Write ``bench/results/<name>.json``."""
        if not self.name:
            return
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        found = {
            "bench": self.name,
            "circumstances": {**circumstances(), **more},
            "cases": self.cases,
        }
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"\n{path}")


def circumstances() -> dict[str, Any]:
    """Tell on what and with what the figures were measured."""
    packages = ("fastseq", "torch", "numpy", "h5py")
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def same(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-5) -> None:
    """Raise unless two answers agree."""
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)
